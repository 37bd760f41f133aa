//! The one thread that watches: lines, ends, pipes that nobody reads, and the time.
//!
//! It reaps by pidfd, one child at a time, and holds no lock while it wakes anybody.

use std::cell::Cell;

use super::runtime::Runtime;
use super::unit::{Interest, Unit};
use crate::sys::io::{BATCH, BELL};

/// What of a unit an event is about: the low bits of its token.
pub(crate) const LINE: u64 = 0;
pub(crate) const EXIT: u64 = 1;
pub(crate) const SINK: u64 = 2;

pub(crate) const fn token(id: u64, what: u64) -> u64 {
    id << 2 | what
}

thread_local! {
    static REAPS: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread is a reaper from now on.
pub(crate) fn mark_this_thread() {
    REAPS.set(true);
}

/// Whether the caller runs on a reaper: it is a waker, which must not wait for what only a reaper can bring about.
pub(crate) fn is_this_thread() -> bool {
    REAPS.get()
}

/// Works until the runtime is closed and every child is gone.
pub(crate) fn work(runtime: &Runtime) {
    while let Some(pause) = runtime.pause() {
        let tokens = runtime.poller.wait(pause);
        // After a long stop (SIGSTOP, a suspended machine) deadlines are over and news is waiting: the news first, so
        // that nobody's time is held to be over who had answered before.
        let overdue = runtime.due();
        if runtime.woke_late() {
            overdue.iter().for_each(Unit::on_late_waking);
        }
        for token in tokens {
            on_event(runtime, token);
        }
        if !overdue.is_empty() {
            // Bounded, for a line that takes long to be read is ready all the while.
            for _ in 0..1000 {
                let more = runtime.poller.wait(Some(std::time::Duration::ZERO));
                more.iter().for_each(|token| on_event(runtime, *token));
                if more.len() < BATCH {
                    break;
                }
            }
        }
        for unit in runtime.due() {
            unit.on_time();
        }
    }
}

fn on_event(runtime: &Runtime, event: u64) {
    if event == BELL {
        return;
    }
    // Gone already: an earlier event of the same turn was its end.
    let Some(unit) = runtime.unit(event >> 2) else { return };
    match event & 3 {
        LINE => match unit.on_line() {
            Interest::Nothing => {}
            Interest::Reads => drop(unit.with_line(|line| runtime.poller.modify(line, event, false))),
            Interest::ReadsAndWrites => drop(unit.with_line(|line| runtime.poller.modify(line, event, true))),
        },
        EXIT if unit.on_exit() => runtime.strike(&unit),
        SINK => runtime.on_sink(unit.id),
        _ => {}
    }
}
