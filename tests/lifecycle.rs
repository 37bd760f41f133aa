//! Start, wait, shutdown, timeouts: what the handle promises.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use harness::eventually;
use offspring::{ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

const LONG: Duration = Duration::from_secs(3600);

fn sleep(_: ()) {
    std::thread::sleep(LONG);
}

/// Ignores TERM, says so, and sleeps.
#[derive(Serialize, Deserialize)]
struct Deaf;

impl Subprocess for Deaf {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) {
        // SAFETY: sets a disposition.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        println!("deaf");
        std::thread::sleep(LONG);
    }
}

fn deaf() -> Offspring<()> {
    let mut unit = Offspring::builder(Deaf).stdout(Stdio::piped()).spawn().unwrap();
    unit.take_stdout().unwrap().read_exact(&mut [0; 5]).unwrap();
    unit
}

#[derive(Serialize, Deserialize)]
struct Explicit;

impl Subprocess for Explicit {
    type Output = u32;
    const EXPLICIT_START: bool = true;

    fn run(self) -> u32 {
        7
    }
}

#[derive(Serialize, Deserialize)]
struct Patient(u64);

impl Subprocess for Patient {
    type Output = u64;
    const TERMINATE_ON_SHUTDOWN: bool = false;

    fn run(self) -> u64 {
        std::thread::sleep(Duration::from_millis(self.0));
        self.0
    }
}

behaviour! {
    fn a_result_comes_home() {
        assert_eq!(spawn((20, 22), |(a, b): (u32, u32)| a + b).unwrap().wait().unwrap(), 42);
    }

    fn an_explicit_start_happens_once() {
        let mut unit = Offspring::new(Explicit).unwrap();
        assert!(unit.process().is_none());
        assert_eq!(unit.try_wait().unwrap_err().kind(), ErrorKind::NotStarted);
        unit.start().unwrap();
        assert_eq!(unit.start().unwrap_err().kind(), ErrorKind::AlreadyStarted);
        assert_eq!(unit.wait().unwrap(), 7);
        assert_eq!(Offspring::new(Explicit).unwrap().wait().unwrap_err().kind(), ErrorKind::NotStarted);
        assert_eq!(Offspring::new(Explicit).unwrap().shutdown().unwrap(), None);
        assert_eq!(Explicit.spawn().unwrap().wait().unwrap(), 7);
    }

    fn shutdown_gives_a_result_that_came_and_an_error_that_was() {
        let unit = spawn((), |()| 5).unwrap();
        let process = unit.process().unwrap().clone();
        eventually("it did not end", || !process.is_alive());
        assert_eq!(unit.shutdown().unwrap(), Some(5));
        let unit = spawn((), |()| -> () { panic!("early") }).unwrap();
        let process = unit.process().unwrap().clone();
        eventually("it did not end", || !process.is_alive());
        assert_eq!(unit.shutdown().unwrap_err().kind(), ErrorKind::Panicked);
    }

    fn one_that_is_not_to_be_terminated_is_waited_for() {
        assert_eq!(Offspring::new(Patient(50)).unwrap().shutdown().unwrap(), Some(50));
        let unit = Offspring::new(Patient(20)).unwrap();
        offspring::shutdown();
        assert_eq!(unit.wait().unwrap(), 20);
    }

    fn a_timeout_ends_the_unit() {
        let unit = Offspring::builder(Deaf).timeout(Duration::from_millis(10)).spawn().unwrap();
        let error = unit.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.death().is_some());
        let unit = Offspring::builder(Explicit).timeout(LONG).spawn().unwrap();
        assert_eq!(unit.wait().unwrap(), 7);
    }



    fn a_unit_that_forks_and_returns_twice_speaks_once() {
        let unit = spawn((), |()| {
            // SAFETY: the child process has one thread.
            let copy = unsafe { libc::fork() };
            if copy == 0 { "copy" } else { "original" }.to_owned()
        });
        assert_eq!(unit.unwrap().wait().unwrap(), "original");
        // The copy ends by itself, and is no child of ours.
        eventually("the copy stays", || harness::tagged(&harness::tag()).is_empty());
    }


    fn offspring_shutdown_ends_all_and_a_later_start_begins_afresh() {
        let units: Vec<_> = (0..8).map(|_| spawn((), sleep).unwrap()).collect();
        let deaf = deaf();
        offspring::shutdown();
        for unit in units {
            assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::ShuttingDown);
        }
        assert_eq!(deaf.wait().unwrap_err().kind(), ErrorKind::ShuttingDown);
        assert_eq!(spawn((), |()| 1).unwrap().wait().unwrap(), 1);
        offspring::shutdown();
        offspring::shutdown();
    }

    fn one_that_lingers_after_its_result_is_killed_and_its_value_stands() {
        #[derive(Serialize, Deserialize)]
        struct Lingers;
        impl Subprocess for Lingers {
            type Output = u8;
            const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(20));
            fn run(self) -> u8 {
                extern "C" fn linger() {
                    std::thread::sleep(LONG);
                }
                // SAFETY: a function that lives as long as the program.
                unsafe { libc::atexit(linger) };
                9
            }
        }
        let start = Instant::now();
        assert_eq!(Lingers.spawn().unwrap().wait().unwrap(), 9);
        assert!(start.elapsed() < LONG);
    }

    fn piped_streams_are_taken_or_drained() {
        let chatty = || {
            #[derive(Serialize, Deserialize)]
            struct Chatty;
            impl Subprocess for Chatty {
                type Output = usize;
                fn run(self) -> usize {
                    let mut text = String::new();
                    std::io::stdin().read_to_string(&mut text).unwrap();
                    print!("{}", "x".repeat(1 << 20));
                    text.len()
                }
            }
            Offspring::builder(Chatty).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        };
        assert_eq!(chatty().wait().unwrap(), 0);
        let mut unit = chatty();
        unit.take_stdin().unwrap().write_all(b"hello").unwrap();
        assert!(unit.take_stdin().is_none());
        let mut text = String::new();
        unit.take_stdout().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text.len(), 1 << 20);
        assert_eq!(unit.wait().unwrap(), 5);
        drop(chatty());
    }
}
