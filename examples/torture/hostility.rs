//! What a program may do that makes it hard to learn how its children ended. The peers' program has this file as well.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::figure::Tally;

pub(crate) const HOSTILITIES: [&str; 5] = ["ignores", "no-zombies", "thief", "forks", "interrupted"];

/// Does the work in a process that does that.
pub(crate) fn under(hostility: &str, tally: &Tally, work: impl FnOnce() -> String) -> String {
    match hostility {
        "ignores" => on(libc::SIGCHLD, libc::SIG_IGN, 0),
        "no-zombies" => on(libc::SIGCHLD, nothing as *const () as usize, libc::SA_NOCLDWAIT),
        "thief" => return thief(tally, work),
        "forks" => return forks(tally, work),
        "interrupted" => return interrupted(work),
        other => panic!("no such hostility: {other}"),
    }
    work()
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

/// Does the work, and beside it something else again and again.
fn beside(what: impl Fn() + Sync, work: impl FnOnce() -> String) -> String {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                what();
            }
        });
        let text = work();
        is_over.store(true, Relaxed);
        text
    })
}

fn thief(tally: &Tally, work: impl FnOnce() -> String) -> String {
    let stolen = AtomicU64::new(0);
    let steal = || {
        // SAFETY: null asks for no status.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            pid if pid > 0 => drop(stolen.fetch_add(1, Relaxed)),
            _ => std::thread::yield_now(),
        }
    };
    let text = beside(steal, work);
    let stolen = stolen.into_inner();
    tally.check(stolen > 0, || "the thief got nothing".into());
    format!("{text}, {stolen} stolen")
}

fn forks(tally: &Tally, work: impl FnOnce() -> String) -> String {
    let fork = || {
        // SAFETY: the copy makes one system call; the original waits for it by its pid.
        let status = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::_exit(5);
            }
            let mut status = 0;
            if pid < 0 || libc::waitpid(pid, &raw mut status, 0) != pid {
                return tally.fail("the program's own child cannot be waited for");
            }
            status
        };
        tally.check(libc::WEXITSTATUS(status) == 5, || format!("the program's own child ended by {status}"));
    };
    beside(fork, work)
}

fn interrupted(work: impl FnOnce() -> String) -> String {
    on(libc::SIGALRM, nothing as *const () as usize, 0);
    on(libc::SIGCHLD, nothing as *const () as usize, 0);
    let time = libc::timeval { tv_sec: 0, tv_usec: 1000 };
    let mut timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: a valid record.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    let text = work();
    timer.it_value.tv_usec = 0;
    // SAFETY: as above; the timer is off now.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    text
}
