//! A program that reaps everybody's children, ignores SIGCHLD, or is interrupted all the time: values and statuses are
//! right all the same (statuses from Linux 6.15 on, where the kernel tells them again).
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};

use offspring::{ErrorKind, spawn};

/// Whether the kernel tells the status of a child that was reaped by somebody else.
fn tells() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

fn rounds() {
    for n in 0..30_i32 {
        assert_eq!(spawn(n, |n: i32| n * 2).unwrap().wait().unwrap(), n * 2);
        let error = spawn(n, |n: i32| -> () { std::process::exit(n) }).unwrap().wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Died);
        let status = error.death().unwrap().status();
        assert!(status.code() == Some(n) || !tells() && status.code().is_none(), "{error}");
        let error = spawn((), |()| -> () { std::process::abort() }).unwrap().wait().unwrap_err();
        let status = error.death().unwrap().status();
        assert!(status.signal() == Some(libc::SIGABRT) || !tells() && status.signal().is_none(), "{error}");
    }
}

extern "C" fn nothing(_: i32) {}

fn on(signal: i32, handler: usize, flags: i32) {
    // SAFETY: a record filled in full; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

behaviour! {
    fn one_that_ignores_sigchld() {
        on(libc::SIGCHLD, libc::SIG_IGN, 0);
        rounds();
    }

    fn one_that_wants_no_zombies() {
        on(libc::SIGCHLD, nothing as *const () as usize, libc::SA_NOCLDWAIT);
        rounds();
    }

    fn one_with_a_thread_that_reaps_everybodys_children() {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // SAFETY: null asks for no status.
                    unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
                    std::thread::yield_now();
                }
            });
            rounds();
            done.store(true, Ordering::Relaxed);
        });
    }
}
