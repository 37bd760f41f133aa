//! The thread that watches: ends that nobody waits for, lines, pipes that nobody reads, the zygote, and the time.
//!
//! It reaps by pidfd, one child at a time, and holds no lock while it wakes anybody.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use super::runtime::Runtime;
use super::unit::{Birth, Unit};
use super::zygote::Zygote;
use crate::sys::io::{self as sysio, BATCH, BELL};
use crate::sys::pidfd;
use crate::wire::codec;
use crate::wire::message::{Hello, Reply};

/// What of a unit an event is about: the low bits of its token.
pub(crate) const LINE: u64 = 0;
pub(crate) const EXIT: u64 = 1;
pub(crate) const SINK: u64 = 2;

/// In the place of a unit's number.
pub(crate) const ZYGOTE: u64 = 0;

pub(crate) const fn token(id: u64, what: u64) -> u64 {
    id << 2 | what
}

thread_local! {
    /// For which runtime this thread works, and in which process: a forked copy has the thread's memory, and no reaper.
    static REAPS: Cell<(*const Runtime, u32)> = const { Cell::new((std::ptr::null(), 0)) };
}

/// The calling thread is that runtime's reaper from now on.
pub(crate) fn mark_this_thread(runtime: &Runtime) {
    REAPS.set((runtime, std::process::id()));
}

/// Whether the caller runs on a reaper: it is a waker, which must not wait for what only a reaper can bring about.
pub(crate) fn is_this_thread() -> bool {
    let (runtime, pid) = REAPS.get();
    !runtime.is_null() && pid == std::process::id()
}

/// Whether the caller runs on the reaper of that runtime.
pub(crate) fn is_this_thread_of(runtime: &Runtime) -> bool {
    is_this_thread() && std::ptr::eq(REAPS.get().0, runtime)
}

/// Later than this is much later, as after a stop of the process.
pub(super) const MUCH: Duration = Duration::from_secs(1);

/// Works until the runtime is closed and every child is gone.
pub(crate) fn work(runtime: &Runtime) {
    let mut buffer = vec![0; 64 << 10];
    // A stop may also have come while this thread was awake.
    let mut was_held_up = false;
    while let Some(pause) = runtime.pause() {
        runtime.zygotes.make_if_wanted(runtime);
        if runtime.is_all_but_closed() {
            runtime.parking.close();
            if let Some(zygote) = runtime.zygotes.current() {
                zygote.kill();
            }
        }
        let tokens = runtime.poller.wait(pause);
        // After a long stop (SIGSTOP, a suspended machine) deadlines are over and news is waiting: the news first, so
        // that nobody's time is held to be over who had answered before.
        let awake = Instant::now();
        let overdue = runtime.due();
        if was_held_up || runtime.woke_late() {
            overdue.iter().for_each(Unit::on_late_waking);
        }
        let mut held = false;
        for token in tokens {
            held |= on_event(runtime, token, &mut buffer);
        }
        if held {
            // Its pidfd stays ready until whoever traces it lets go: a moment, or this thread would do nothing else.
            std::thread::sleep(Duration::from_millis(1));
        }
        if !overdue.is_empty() {
            // Bounded, for a line that takes long to be read is ready all the while.
            for _ in 0..1000 {
                let more = runtime.poller.wait(Some(Duration::ZERO));
                for token in &more {
                    on_event(runtime, *token, &mut buffer);
                }
                if more.len() < BATCH {
                    break;
                }
            }
        }
        let due = runtime.due();
        if awake.elapsed() > MUCH {
            due.iter().for_each(Unit::on_late_waking);
        }
        for unit in due {
            runtime.on_time(&unit, &mut buffer);
        }
        runtime.remains.tend(runtime);
        runtime.cgroups.tend();
        if let Some(zygote) = runtime.zygotes.current() {
            zygote.release();
        }
        runtime.parking.tend(runtime, runtime.is_alone());
        was_held_up = awake.elapsed() > MUCH;
    }
    runtime.cgroups.close();
}

/// Whether it is the end of a child that whoever traces it has first, so that it cannot be reaped yet.
fn on_event(runtime: &Runtime, event: u64, buffer: &mut [u8]) -> bool {
    if event == BELL {
        return false;
    }
    if event >> 2 == ZYGOTE {
        let Some(zygote) = runtime.zygotes.current() else { return false };
        if event & 3 == EXIT {
            return !on_zygotes_end(runtime, &zygote, buffer);
        }
        if hear_zygote(runtime, &zygote, buffer) == Heard::End {
            // It has ended, or is no zygote of ours. Its pidfd will say so.
            runtime.forget(zygote.line());
            zygote.kill();
        }
        return false;
    }
    // If it is no spare either, it is gone already: an earlier event of the same turn was its end.
    let Some(unit) = runtime.unit(event >> 2) else {
        return runtime.parking.on_event(runtime, event >> 2, event & 3);
    };
    match event & 3 {
        LINE => unit.on_line(buffer),
        EXIT => return !runtime.on_exit(&unit, buffer),
        SINK => runtime.on_sink(unit.id),
        _ => {}
    }
    false
}

#[derive(PartialEq, Eq)]
enum Heard {
    Something,
    /// Nothing is there.
    Nothing,
    /// It will not say any more.
    End,
}

/// Hears one thing that a zygote has said.
fn hear_zygote(runtime: &Runtime, zygote: &Zygote, buffer: &mut [u8]) -> Heard {
    let received = match sysio::receive_with(zygote.line(), buffer) {
        Ok(received) if received.count > 0 => received,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
        // It died with requests unread. A line of packets says so once, and first: what was said before is still to come.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Heard::Something,
        _ => return Heard::End,
    };
    zygote.on_word();
    let bytes = &buffer[..received.count];
    if !zygote.has_spoken() {
        match codec::decode::<Hello>(bytes) {
            Ok(hello) => {
                runtime.zygotes.on_hello(zygote, hello);
                // Those of the one before, and those that were executed.
                runtime.born().iter().for_each(|unit| zygote.entrust(unit));
                runtime.remains.units().iter().for_each(|unit| zygote.entrust(unit));
                runtime.parking.on_zygote();
            }
            // No zygote of ours.
            Err(_) => return Heard::End,
        }
    } else if let Some(Reply { id, made }) = Reply::from_bytes(bytes) {
        let pidfd = received.descriptors.into_iter().next().flatten();
        if made.is_ok() {
            zygote.on_child();
        }
        let Some(unit) = runtime.unit(id) else {
            // A spare, then. What stands in the way of one is told to nobody.
            let child = made.ok().and_then(|pid| Some((pid, pidfd::take_over(pid, pidfd).ok()?)));
            runtime.parking.on_reply(runtime, id, child);
            return Heard::Something;
        };
        // Said twice, or of nobody that was asked for.
        if !unit.is_asked_for() {
            return Heard::Something;
        }
        match made {
            // If the descriptor was lost on the way here, there is a child all the same.
            Ok(pid) => adopt(&unit, pid, pidfd),
            Err(errno) => {
                let error = io::Error::from_raw_os_error(errno);
                unit.on_no_birth(Birth::Refused("clone, in the zygote".into(), error));
            }
        }
    }
    Heard::Something
}

/// A child of that pid has been made for this unit.
fn adopt(unit: &std::sync::Arc<Unit>, pid: u32, pidfd: Option<sysio::OwnedFd>) {
    match pidfd::take_over(pid, pidfd) {
        // Its error is told to who waits for the birth.
        Ok(pidfd) => drop(unit.on_birth((pid, pidfd))),
        Err(error) => unit.on_no_birth(Birth::Lost("receiving the child's pidfd", error)),
    }
}

/// Whether it could be reaped.
fn on_zygotes_end(runtime: &Runtime, zygote: &Zygote, buffer: &mut [u8]) -> bool {
    let Some(reaped) = pidfd::reap(&zygote.pidfd) else { return false };
    // First what it has said before; then the child of which it could not speak any more. The rest were never made.
    while hear_zygote(runtime, zygote, buffer) == Heard::Something {}
    for unit in runtime.bereave(zygote) {
        match zygote.child_of(unit.id) {
            Some(pid) => {
                zygote.on_child();
                adopt(&unit, pid, None);
            }
            None => unit.on_no_birth(Birth::Gone),
        }
    }
    runtime.parking.bereave(runtime, zygote);
    runtime.forget(zygote.line());
    runtime.forget(&zygote.pidfd);
    runtime.zygotes.on_end(zygote, reaped.status);
    true
}
