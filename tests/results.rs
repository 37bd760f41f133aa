//! Results that come before the end of their child.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::ops::ControlFlow;
use std::time::Duration;

use harness::eventually;
use offspring::{EndedBy, ErrorKind, Offspring, Subprocess, SubprocessLoop, spawn};
use serde::{Deserialize, Serialize};

const LONG: Duration = Duration::from_secs(3600);

extern "C" fn linger() {
    std::thread::sleep(LONG);
}

/// Its end takes an hour.
fn slow_to_end(n: u32) -> u32 {
    // SAFETY: a function that lives as long as the program.
    unsafe { libc::atexit(linger) };
    n
}

#[derive(Serialize, Deserialize)]
struct Explicit(u32);

impl Subprocess for Explicit {
    type Output = u32;
    const EXPLICIT_START: bool = true;

    fn run(self) -> u32 {
        self.0 + 1
    }
}

#[derive(Serialize, Deserialize)]
struct Loop(u32);

impl SubprocessLoop for Loop {
    type Output = u32;

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        self.0 += 1;
        if self.0 < 3 { ControlFlow::Continue(Duration::ZERO) } else { ControlFlow::Break(()) }
    }

    fn end(self) -> u32 {
        self.0
    }
}

behaviour! {
    fn a_result_does_not_wait_for_the_end() {
        let unit = spawn(7, slow_to_end).unwrap();
        let process = unit.process().unwrap().clone();
        assert_eq!(unit.result().unwrap(), 7);
        assert!(process.is_alive());
        process.kill().unwrap();
        eventually("it was not reaped", || !process.is_alive());
    }

    fn one_that_does_not_come_to_its_end_is_killed_when_its_result_is_home() {
        #[derive(Serialize, Deserialize)]
        struct Lingers;
        impl Subprocess for Lingers {
            type Output = u32;
            const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(20));
            fn run(self) -> u32 {
                slow_to_end(9)
            }
        }
        let unit = Lingers.spawn().unwrap();
        let process = unit.process().unwrap().clone();
        assert_eq!(unit.result().unwrap(), 9);
        eventually("it was not killed", || !process.is_alive());
    }

    fn results_of_any_size_come_at_once() {
        for size in [0, 1, 100_000, 8 << 20] {
            let unit = spawn("x".repeat(size), |text: String| {
                slow_to_end(0);
                text
            });
            let unit = unit.unwrap();
            let process = unit.process().unwrap().clone();
            assert!(unit.result().unwrap() == "x".repeat(size));
            process.kill().unwrap();
            eventually("it was not reaped", || !process.is_alive());
        }
    }

    fn a_result_that_takes_its_time_is_waited_for() {
        // So long that the reaper listens by then.
        let unit = spawn((), |()| {
            std::thread::sleep(Duration::from_millis(100));
            slow_to_end(3)
        });
        let mut unit = unit.unwrap();
        assert!(unit.wait_timeout(Duration::from_millis(50)).unwrap().is_none());
        let process = unit.process().unwrap().clone();
        assert_eq!(unit.result().unwrap(), 3);
        process.kill().unwrap();
        eventually("it was not reaped", || !process.is_alive());
    }

    fn one_that_is_home_already_is_given_before_and_after_the_end() {
        let unit = spawn((), |()| slow_to_end(4)).unwrap();
        let process = unit.process().unwrap().clone();
        // Nobody tells when it is home; the reaper has heard it by then, or has not.
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(unit.result().unwrap(), 4);
        process.kill().unwrap();
        eventually("it was not reaped", || !process.is_alive());
        let unit = spawn((), |()| 5).unwrap();
        let process = unit.process().unwrap().clone();
        eventually("it does not end", || !process.is_alive());
        assert_eq!(unit.result().unwrap(), 5);
    }

    fn without_a_result_the_reason_is_the_same_as_after_the_end() {
        let kind = |unit: Result<Offspring<()>, _>| unit.unwrap().result().unwrap_err().kind();
        assert_eq!(kind(spawn((), |()| panic!("no"))), ErrorKind::Panicked);
        assert_eq!(kind(spawn((), |()| std::process::exit(3))), ErrorKind::Died);
        let abort: fn(()) = |()| std::process::abort();
        let error = spawn((), abort).unwrap().result().unwrap_err();
        assert!(error.death().is_some(), "{error}");
        let unit = Offspring::builder(Sleeps).timeout(Duration::from_millis(20)).spawn();
        assert_eq!(kind(unit), ErrorKind::TimedOut);
        let unit = Offspring::new(Explicit(1)).unwrap();
        assert_eq!(unit.result().unwrap_err().kind(), ErrorKind::NotStarted);
    }

    fn one_that_hangs_up_is_waited_for_to_its_end() {
        let unit = spawn((), |()| {
            // SAFETY: the line; nobody else in this process uses the number.
            unsafe { libc::close(3) };
            std::thread::sleep(Duration::from_millis(20));
        });
        assert_eq!(unit.unwrap().result().unwrap_err().kind(), ErrorKind::Died);
    }

    fn what_comes_after_its_time_comes_too_late() {
        #[derive(Serialize, Deserialize)]
        struct Deaf;
        impl Subprocess for Deaf {
            type Output = u32;
            fn run(self) -> u32 {
                // SAFETY: sets a disposition.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                std::thread::sleep(Duration::from_millis(200));
                1
            }
        }
        let unit = Offspring::builder(Deaf).timeout(Duration::from_millis(50)).spawn().unwrap();
        assert_eq!(unit.result().unwrap_err().kind(), ErrorKind::TimedOut);
    }

    fn a_panic_after_its_time_comes_with_the_timeout() {
        #[derive(Serialize, Deserialize)]
        struct Stumbles;
        impl SubprocessLoop for Stumbles {
            type Output = ();
            const SHUTDOWN_TIMEOUT: Option<Duration> = None;
            fn tick(&mut self) -> ControlFlow<(), Duration> {
                ControlFlow::Continue(Duration::from_secs(3600))
            }
            fn end(self) {
                panic!("on the way out");
            }
        }
        let unit = Offspring::builder(Stumbles).timeout(Duration::from_millis(20)).spawn();
        let error = unit.unwrap().wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert_eq!(error.panic().unwrap().message(), "on the way out");
        let death = error.death().unwrap();
        assert_eq!((death.ended_by(), death.panic()), (EndedBy::Timeout, error.panic()));
        assert!(error.to_string().contains("its time (20ms) was over"), "{error}");
    }

    fn a_call_is_a_start_and_its_result() {
        assert_eq!(Explicit(1).call().unwrap(), 2);
        assert_eq!(Loop(0).call().unwrap(), 3);
        let calls = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || Explicit(n).call().unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(calls, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[derive(Serialize, Deserialize)]
struct Sleeps;

impl Subprocess for Sleeps {
    type Output = ();

    fn run(self) {
        std::thread::sleep(LONG);
    }
}
