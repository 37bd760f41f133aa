//! Units that do not want to end, that cannot, and that are ended by others.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use offspring::{ErrorKind, Offspring, Process, Stdio, Subprocess, SubprocessLoop, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, eventually, is_alive, state};
use crate::held::Held;

const LONG: Duration = Duration::from_secs(3600);
const GRACE: Duration = Duration::from_millis(50);

fn sleep(_: ()) {
    std::thread::sleep(LONG);
}

/// How a unit takes TERM.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Ear {
    Ignores,
    Blocks,
    /// And has never a moment of rest.
    IgnoresAndSpins,
    /// As every unit does that says nothing else: it obeys.
    Spins,
}

#[derive(Serialize, Deserialize)]
struct Deaf(Ear);

impl Subprocess for Deaf {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(GRACE);

    fn run(self) {
        // SAFETY: a disposition, and the mask of this thread; the set is filled in before it is read.
        unsafe {
            if [Ear::Ignores, Ear::IgnoresAndSpins].contains(&self.0) {
                libc::signal(libc::SIGTERM, libc::SIG_IGN);
            }
            if self.0 == Ear::Blocks {
                let mut all: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            }
        }
        println!("ready");
        while [Ear::Spins, Ear::IgnoresAndSpins].contains(&self.0) {
            std::hint::spin_loop();
        }
        std::thread::sleep(LONG);
    }
}

/// A loop; its tick may last for ever.
#[derive(Serialize, Deserialize)]
struct Loop {
    is_stuck: bool,
}

impl SubprocessLoop for Loop {
    type Output = u32;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_secs(60));

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        println!("ready");
        if self.is_stuck {
            std::thread::sleep(LONG);
        }
        ControlFlow::Continue(LONG)
    }

    fn end(self) -> u32 {
        8
    }
}

/// Starts a unit that says when it is ready.
fn ready<R>(builder: offspring::Builder<R>) -> (Offspring<R>, Process) {
    let mut unit = builder.stdout(Stdio::piped()).spawn().unwrap();
    unit.take_stdout().unwrap().read_exact(&mut [0; 6]).unwrap();
    let process = unit.process().unwrap().clone();
    (unit, process)
}

fn signal(process: &Process) -> Option<i32> {
    process.exit_status().unwrap().signal()
}

/// What a job in a terminal does: starts a unit and a loop, waits for both.
#[derive(Serialize, Deserialize)]
struct Job;

#[derive(Serialize, Deserialize, Debug)]
struct Report {
    unit: Option<i32>,
    looped: u32,
    zygote: Option<u32>,
    later: u32,
}

extern "C" fn nothing(_: i32) {}

impl Subprocess for Job {
    type Output = Report;

    fn run(self) -> Report {
        // SAFETY: a process group of its own, as shells give their jobs; a handler that does nothing.
        unsafe {
            assert_eq!(libc::setpgid(0, 0), 0);
            libc::signal(libc::SIGINT, nothing as extern "C" fn(i32) as usize);
        }
        let (unit, process) = ready(Offspring::builder(Deaf(Ear::Spins)));
        let (looped, other) = ready(Offspring::builder(Loop { is_stuck: false }));
        eventually("there is no zygote", || {
            std::env::var("OFFSPRING_LAUNCHER").unwrap() == "exec" || harness::zygote().is_some()
        });
        println!("{} {} {}", process.id(), other.id(), harness::zygote().unwrap_or(0));
        let unit = unit.wait().unwrap_err().death().unwrap().status().signal();
        let looped = looped.wait().unwrap();
        // What the terminal said reached all before it reached us.
        let later = spawn(4, |n: u32| n).unwrap().wait().unwrap();
        Report { unit, looped, zygote: harness::zygote(), later }
    }
}

/// A terminal of its own, of which this process becomes the leader.
fn terminal() -> (std::fs::File, OwnedFd) {
    // SAFETY: this process leads no group; new descriptors, which nobody else knows of; the name is the terminal's until it
    // is asked for another.
    unsafe {
        assert!(libc::setsid() > 0);
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY);
        assert!(master >= 0 && libc::grantpt(master) == 0 && libc::unlockpt(master) == 0);
        let mut name = [0; 64];
        assert_eq!(libc::ptsname_r(master, name.as_mut_ptr(), name.len()), 0);
        let slave = libc::open(name.as_ptr(), libc::O_RDWR);
        assert!(slave >= 0);
        (std::fs::File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

/// Sits at a terminal as a shell does: stops its job by ^Z, lets it go on, and interrupts it by ^C.
fn sit_at_a_terminal(_: ()) {
    let (mut keyboard, screen) = terminal();
    // What comes when the terminal is closed, to whoever leads its session.
    // SAFETY: a disposition.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let mut job = Offspring::builder(Job).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(job.take_stdout().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    let pids: Vec<u32> = line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    let group = job.process().unwrap().id();
    // SAFETY: numbers alone.
    assert_eq!(unsafe { libc::tcsetpgrp(screen.as_raw_fd(), group as i32) }, 0);
    let stopped = |pid: u32| state(pid) == Some('T');
    keyboard.write_all(b"\x1a").unwrap();
    eventually("^Z does not stop all", || [group, pids[0], pids[1]].iter().all(|pid| stopped(*pid)));
    assert!(pids[2] == 0 || is_alive(pids[2]) && !stopped(pids[2]));
    // SAFETY: kill(2) has no conditions; the group's leader is our child, not reaped.
    unsafe { libc::kill(-(group as i32), libc::SIGCONT) };
    eventually("it does not go on", || [group, pids[0], pids[1]].iter().all(|pid| !stopped(*pid)));
    assert!(job.try_wait().unwrap().is_none());
    keyboard.write_all(b"\x03").unwrap();
    let report = job.wait().unwrap();
    assert_eq!((report.unit, report.looped, report.later), (Some(libc::SIGINT), 8, 4), "{report:?}");
    assert_eq!(report.zygote.unwrap_or(0), pids[2], "{report:?}");
}

/// The reaper's thread. It takes its name itself, a moment after it begins.
fn reaper() -> u32 {
    let mut found = None;
    eventually("there is no reaper", || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        found = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).find(|task| {
            std::fs::read_to_string(format!("/proc/self/task/{task}/comm"))
                .is_ok_and(|name| name == "offspring\n")
        });
        found.is_some()
    });
    found.unwrap()
}

static HANDLED: AtomicU32 = AtomicU32::new(0);
static HANDLED_BY: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(_: i32) {
    // SAFETY: gettid(2) has no conditions.
    HANDLED_BY.store(unsafe { libc::gettid() } as u32, Ordering::SeqCst);
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

behaviour! {
    fn case_45_one_that_is_deaf_to_term_is_killed_after_the_grace() {
        for (ear, wanted) in [(Ear::Ignores, libc::SIGKILL), (Ear::Blocks, libc::SIGKILL),
                              (Ear::IgnoresAndSpins, libc::SIGKILL), (Ear::Spins, libc::SIGTERM)] {
            let (unit, process) = ready(Offspring::builder(Deaf(ear)));
            assert_eq!(unit.shutdown().unwrap(), None);
            assert_eq!(signal(&process), Some(wanted), "{ear:?}");
            // And when nobody waits for it.
            let (_unit, process) = ready(Offspring::builder(Deaf(ear)));
            process.begin_shutdown();
            eventually("it does not end", || !process.is_alive());
            assert_eq!(signal(&process), Some(wanted), "{ear:?}");
        }
    }

    fn case_45_a_loop_whose_tick_does_not_end_is_killed_after_the_grace() {
        let (unit, process) = ready(Offspring::builder(Loop { is_stuck: true }).shutdown_timeout(GRACE));
        assert_eq!(unit.shutdown().unwrap(), None);
        assert_eq!(signal(&process), Some(libc::SIGKILL));
    }

    fn case_46_one_that_is_stopped_ends_on_shutdown() {
        let stop = |process: &Process| {
            process.send_signal(libc::SIGSTOP).unwrap();
            eventually("it does not stop", || state(process.id()) == Some('T'));
        };
        let (unit, process) = ready(Offspring::builder(Deaf(Ear::Spins)));
        stop(&process);
        assert_eq!(unit.shutdown().unwrap(), None);
        assert_eq!(signal(&process), Some(libc::SIGTERM));
        let (unit, process) = ready(Offspring::builder(Deaf(Ear::Ignores)));
        stop(&process);
        assert_eq!(unit.shutdown().unwrap(), None);
        assert_eq!(signal(&process), Some(libc::SIGKILL));
        let (unit, process) = ready(Offspring::builder(Loop { is_stuck: false }));
        stop(&process);
        assert_eq!(unit.shutdown().unwrap(), Some(8));
        // TERM alone waits until it goes on.
        let (mut unit, process) = ready(Offspring::builder(Loop { is_stuck: false }));
        stop(&process);
        process.terminate().unwrap();
        assert!(unit.wait_timeout(Duration::from_millis(20)).unwrap().is_none());
        process.send_signal(libc::SIGCONT).unwrap();
        assert_eq!(unit.wait().unwrap(), 8);
    }

    fn case_47_one_that_cannot_die_yet_keeps_nobody_who_has_a_limit() {
        let Some(mut held) = Held::new(GRACE) else { return };
        let process = held.unit.process().unwrap().clone();
        process.begin_shutdown();
        held.await_hold();
        // Beyond the grace: KILL has been sent by then, and does not help.
        assert!(held.unit.wait_timeout(4 * GRACE).unwrap().is_none());
        assert!(process.is_alive());
        // The reaper goes on with the others.
        let (_unit, other) = ready(Offspring::builder(Deaf(Ear::Ignores)));
        other.begin_shutdown();
        eventually("another does not end", || !other.is_alive());
        let unit = held.let_go();
        eventually("it is not reaped", || !process.is_alive());
        assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::Died);
    }

    fn case_47_one_that_is_dead_and_cannot_be_reaped_yet_costs_nothing() {
        let Some(mut held) = Held::new(GRACE) else { return };
        let process = held.unit.process().unwrap().clone();
        process.begin_shutdown();
        held.await_hold();
        held.die();
        let reaper = reaper();
        assert!(held.unit.wait_timeout(Duration::from_millis(20)).unwrap().is_none());
        // A reaper that spins never sleeps, whatever else the machine does.
        let asleep = (0..100).filter(|_| {
            std::thread::sleep(Duration::from_millis(5));
            state(reaper) == Some('S')
        });
        let asleep = asleep.count();
        assert!(asleep >= 5, "{asleep} of 100");
        assert_eq!(spawn(1, |n: u32| n).unwrap().wait().unwrap(), 1);
        let unit = held.let_go();
        eventually("it is not reaped", || !process.is_alive());
        assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::Died);
    }

    fn case_48_what_is_typed_at_a_terminal_is_for_units_and_not_for_their_maker() {
        spawn((), sit_at_a_terminal).unwrap().wait().unwrap();
    }

    fn case_49_drop_detaches() {
        let unit = spawn((), sleep).unwrap();
        let process = unit.process().unwrap().clone();
        drop(unit);
        assert!(process.is_alive());
        process.begin_shutdown();
        eventually("it was not reaped", || !process.is_alive());
        // And nobody has killed it before.
        assert_eq!(signal(&process), Some(libc::SIGTERM));
        process.terminate().unwrap();
        process.kill().unwrap();
        for _ in 0..100 {
            drop(spawn((), |()| vec![1_u8; 300_000]).unwrap());
        }
    }

    fn case_49_many_that_are_dropped_while_they_run_are_all_reaped() {
        let start = |n: u32| {
            let unit = spawn(n, |n: u32| std::thread::sleep(Duration::from_micros(u64::from(n) * 50))).unwrap();
            unit.process().unwrap().clone()
        };
        let dropped: Vec<Process> = (0..200).map(start).collect();
        for process in &dropped {
            eventually("it was not reaped", || !process.is_alive());
            assert!(process.exit_status().unwrap().success());
        }
    }

    fn case_50_a_value_is_given_once_and_an_error_each_time() {
        let mut unit = spawn((), |()| 1_u8).unwrap();
        assert_eq!(unit.wait_timeout(LONG).unwrap(), Some(1));
        assert_eq!(unit.try_wait().unwrap_err().kind(), ErrorKind::Taken);
        assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::Taken);
        let mut unit = spawn((), |()| -> () { std::process::exit(3) }).unwrap();
        for _ in 0..3 {
            assert_eq!(unit.wait_timeout(LONG).unwrap_err().death().unwrap().status().code(), Some(3));
        }
    }

    fn case_50_a_wait_with_a_limit_leaves_the_child_alone() {
        let mut unit = spawn((), sleep).unwrap();
        assert!(unit.try_wait().unwrap().is_none());
        assert!(unit.wait_timeout(Duration::from_millis(1)).unwrap().is_none());
        assert!(unit.process().unwrap().is_alive());
        assert_eq!(unit.shutdown().unwrap(), None);
    }

    fn case_50_one_thread_stops_what_another_waits_for() {
        let unit = spawn((), sleep).unwrap();
        let process = unit.process().unwrap().clone();
        let waiter = std::thread::spawn(|| unit.wait());
        process.begin_shutdown();
        assert_eq!(waiter.join().unwrap().unwrap_err().kind(), ErrorKind::Died);
    }

    fn case_50_eight_threads_wait_for_one_unit() {
        for code in [None, Some(5)] {
            let unit = spawn(code, |code: Option<i32>| {
                std::thread::sleep(Duration::from_millis(20));
                code.map_or(7, |code| std::process::exit(code))
            });
            let unit = Mutex::new(unit.unwrap());
            let wait = || loop {
                // Each has it for a moment, so that they come to it by turns.
                match unit.lock().unwrap().wait_timeout(Duration::from_millis(1)) {
                    Ok(None) => {}
                    Ok(Some(value)) => return Ok(value),
                    Err(error) => return Err(error),
                }
            };
            let results: Vec<Result<i32, offspring::Error>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(wait)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let values: Vec<i32> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
            assert_eq!(values, code.map_or(vec![7], |_| vec![]));
            let wanted = if code.is_some() { ErrorKind::Died } else { ErrorKind::Taken };
            assert!(results.iter().filter_map(|result| result.as_ref().err()).all(|error| error.kind() == wanted));
        }
    }

    fn case_51_a_waker_that_panics_harms_nobody() {
        /// Whose destructor panics as well.
        struct Payload;
        impl Drop for Payload {
            fn drop(&mut self) {
                panic!("a bad payload");
            }
        }
        struct Bad;
        impl Wake for Bad {
            fn wake(self: Arc<Self>) {
                std::panic::panic_any(Payload);
            }
        }
        let mut unit = spawn((), sleep).unwrap();
        let waker = Waker::from(Arc::new(Bad));
        assert!(pin!(&mut unit).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(unit.shutdown().unwrap(), None);
        assert_eq!(spawn(1, |n: u32| n).unwrap().wait().unwrap(), 1);
        // And on the reaper's own thread.
        let before = reaper();
        let mut unit = spawn((), sleep).unwrap();
        let process = unit.process().unwrap().clone();
        assert!(Pin::new(&mut unit).poll(&mut Context::from_waker(&waker)).is_pending());
        process.kill().unwrap();
        eventually("it does not end", || !process.is_alive());
        let (unit, process) = ready(Offspring::builder(Deaf(Ear::Spins)));
        drop(unit);
        process.begin_shutdown();
        eventually("nobody reaps any more", || !process.is_alive());
        assert_eq!(reaper(), before);
    }

    fn case_52_no_signal_handler_runs_on_the_reaper() {
        // SAFETY: a handler that makes a system call and writes atomics.
        unsafe { libc::signal(libc::SIGUSR1, note as extern "C" fn(i32) as usize) };
        let mut unit = spawn((), sleep).unwrap();
        let reaper = reaper();
        let status = std::fs::read_to_string(format!("/proc/self/task/{reaper}/status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        let blocked = u64::from_str_radix(blocked, 16).unwrap();
        // All but KILL, STOP, and libc's own two.
        assert_eq!(blocked | 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1) | 0b11 << 31, u64::MAX, "{blocked:x}");
        for n in 0..500 {
            // SAFETY: to this process; the handler is set.
            unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) };
            eventually("a signal is lost", || HANDLED.load(Ordering::SeqCst) > n);
            assert_ne!(HANDLED_BY.load(Ordering::SeqCst), reaper);
            assert!(unit.try_wait().unwrap().is_none());
        }
        assert_eq!(unit.shutdown().unwrap(), None);
    }
}
