//! What a unit knows of itself, how it is told to stop, and what it reports.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use harness::eventually;
use offspring::{Offspring, Stdio, Subprocess, current, spawn};
use serde::{Deserialize, Serialize};

const LONG: Duration = Duration::from_secs(3600);

/// How a unit hears that it is to stop.
#[derive(Serialize, Deserialize, Clone, Copy)]
enum Ear {
    None,
    Wait,
    Ask,
    Poll,
}

impl Subprocess for Ear {
    type Output = (bool, u32);
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_secs(60));

    fn run(self) -> (bool, u32) {
        let current = current().unwrap();
        if matches!(self, Self::None) {
            println!("ready");
            std::thread::sleep(LONG);
        }
        let stop = current.catch_stop().unwrap();
        assert!(!stop.is_requested() && !current.stop_requested());
        println!("ready");
        match self {
            Self::Wait => assert!(stop.wait_timeout(LONG)),
            Self::Ask => {
                while !current.stop_requested() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            _ => {
                let mut poll = libc::pollfd {
                    fd: std::os::fd::AsRawFd::as_raw_fd(&stop.as_fd()),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one valid record. (Interrupted by the very signal, perhaps.)
                while unsafe { libc::poll(&raw mut poll, 1, -1) } != 1 {}
            }
        }
        // Asked once more, all say the same; one that is made now as well.
        let again = current.catch_stop().unwrap();
        (
            stop.is_requested() && again.wait_timeout(Duration::ZERO) && stop.wait_timeout(LONG),
            current.parent_id(),
        )
    }
}

fn ready(ear: Ear) -> Offspring<(bool, u32)> {
    let mut unit = Offspring::builder(ear).stdout(Stdio::piped()).spawn().unwrap();
    unit.take_stdout().unwrap().read_exact(&mut [0; 6]).unwrap();
    unit
}

behaviour! {
    fn a_plain_unit_that_wants_to_ends_in_good_order() {
        for ear in [Ear::Wait, Ear::Ask, Ear::Poll] {
            assert_eq!(ready(ear).shutdown().unwrap(), Some((true, std::process::id())));
        }
        // INT as well.
        let unit = ready(Ear::Wait);
        unit.process().unwrap().send_signal(libc::SIGINT).unwrap();
        assert!(unit.wait().unwrap().0);
        // One that does not want to ends of it.
        assert_eq!(ready(Ear::None).shutdown().unwrap(), None);
    }

    fn a_unit_knows_its_name_and_its_parent() {
        let unit = spawn((), |()| std::thread::spawn(|| {
            let current = current().unwrap();
            (current.name().to_owned(), current.parent_id())
        }).join().unwrap());
        let (name, parent) = unit.unwrap().wait().unwrap();
        assert!(name.contains("Call") && parent == std::process::id(), "{name} {parent}");
        assert!(current().is_none());
    }

    fn the_latest_report_is_seen_at_once_and_after_the_end() {
        #[derive(Serialize, Deserialize)]
        struct Reports;
        impl Subprocess for Reports {
            type Output = ();
            fn run(self) {
                let current = current().unwrap();
                for n in 1..=100_000 {
                    current.progress(n, Some(100_000), "counting");
                }
                println!("ready");
                std::io::stdin().read_exact(&mut [0]).unwrap();
                current.progress(7, None, "");
            }
        }
        let mut unit = Offspring::builder(Reports).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        unit.take_stdout().unwrap().read_exact(&mut [0; 6]).unwrap();
        let progress = unit.progress().unwrap();
        assert_eq!((progress.done, progress.total, progress.message.as_str()), (100_000, Some(100_000), "counting"));
        std::io::Write::write_all(&mut unit.take_stdin().unwrap(), b"x").unwrap();
        let process = unit.process().unwrap().clone();
        eventually("its end", || !process.is_alive());
        let progress = unit.progress().unwrap();
        assert_eq!((progress.done, progress.total, progress.message.as_str()), (7, None, ""));
        unit.wait().unwrap();
    }

    fn reports_of_many_threads_and_of_one_that_dies_of_it() {
        let unit = spawn((), |()| -> () {
            let current = current().unwrap();
            for who in 0..4_u64 {
                std::thread::spawn(move || for n in 0.. {
                    current.progress(n * 4 + who, Some(n * 4 + who), &(n * 4 + who).to_string());
                });
            }
            std::thread::sleep(LONG);
        });
        let unit = unit.unwrap();
        let mut seen = 0;
        eventually("reports", || {
            if let Some(progress) = unit.progress() {
                // Each is whole.
                assert_eq!(progress.total, Some(progress.done));
                assert_eq!(progress.message, progress.done.to_string());
                seen += 1;
            }
            seen > 1000
        });
        unit.process().unwrap().kill().unwrap();
        let process = unit.process().unwrap().clone();
        eventually("its end", || !process.is_alive());
        let progress = unit.progress().unwrap();
        assert_eq!(progress.total, Some(progress.done));
        assert!(unit.wait().is_err());
    }

    fn a_report_that_had_no_place_does_not_keep_back_the_next() {
        let unit = spawn((), |()| {
            let current = current().unwrap();
            let before = harness::limit_files(4);
            current.progress(1, None, "");
            assert!(std::fs::File::open("/dev/null").is_err());
            harness::limit_files(before);
            (2..=4).for_each(|n| current.progress(n, None, ""));
            std::io::stdin().read_exact(&mut [0]).unwrap_err();
        });
        let unit = unit.unwrap();
        let process = unit.process().unwrap().clone();
        eventually("its end", || !process.is_alive());
        assert_eq!(unit.progress().map(|progress| progress.done), Some(4));
        unit.wait().unwrap();
    }

    fn a_forked_copy_has_a_descriptor_of_its_own() {
        let unit = spawn((), |()| {
            let ours = current().unwrap().catch_stop().unwrap();
            let is_readable = |stop: &offspring::StopSignal| {
                let mut poll = libc::pollfd { fd: stop.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: asks of one descriptor.
                unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
            };
            // SAFETY: a copy of a process with one thread.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let own = current().unwrap().catch_stop();
                // SAFETY: signals this process, and ends it.
                unsafe {
                    libc::raise(libc::SIGTERM);
                    libc::_exit(i32::from(!own.is_ok_and(|own| own.is_requested() && is_readable(&own))));
                }
            }
            let mut status = -1;
            // SAFETY: waits for our own child.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            (status, ours.is_requested() || is_readable(&ours))
        });
        assert_eq!(unit.unwrap().wait().unwrap(), (0, false));
    }

    fn without_a_report_there_is_none() {
        let unit = spawn((), |()| ()).unwrap();
        assert_eq!(unit.progress(), None);
        unit.wait().unwrap();
    }
}
