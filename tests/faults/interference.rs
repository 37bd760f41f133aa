//! A parent whose other parts meddle with children, copies and descriptors: values and statuses are right all the same, and
//! nobody else's child is harmed. (Statuses from Linux 6.15 on, where the kernel tells them again.)

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use offspring::{ErrorKind, Offspring, Stdio, spawn};

use crate::behaviour;
use crate::harness::marks::Asked;
use crate::harness::{self, double, eventually};

/// Whether the kernel tells the status of a child that was reaped by somebody else.
fn tells() -> bool {
    harness::is_kernel(6, 15)
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

fn park(_: ()) {
    loop {
        std::thread::park();
    }
}

static HEARD: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: i32) {
    HEARD.fetch_add(1, Ordering::SeqCst);
}

behaviour! {
    fn case_70_one_that_ignores_sigchld() {
        on(libc::SIGCHLD, libc::SIG_IGN, 0);
        rounds();
    }

    fn case_70_one_that_wants_no_zombies() {
        on(libc::SIGCHLD, nothing as *const () as usize, libc::SA_NOCLDWAIT);
        rounds();
    }

    fn case_71_one_with_a_thread_that_reaps_everybodys_children() {
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

    fn case_72_one_that_handles_sigchld_hears_of_units_and_keeps_its_own_children() {
        const UNITS: usize = 30;
        on(libc::SIGCHLD, count as *const () as usize, libc::SA_RESTART);
        let mut own = Command::new("sh").args(["-c", "exit 5"]).spawn().unwrap();
        eventually("its child does not end", || harness::state(own.id()) == Some('Z'));
        let before = HEARD.load(Ordering::SeqCst);
        assert_eq!(before, 1);
        for n in 0..UNITS as u32 {
            assert_eq!(double(n).unwrap(), 2 * n);
        }
        // Not one for each, for those that come at once are one. And no more: spares and zygote live.
        let heard = HEARD.load(Ordering::SeqCst) - before;
        assert!((1..=UNITS).contains(&heard), "{heard}");
        assert_eq!(own.wait().unwrap().code(), Some(5));
        // SAFETY: reads a disposition.
        let handler = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action);
            action.sa_sigaction
        };
        assert_eq!(handler, count as *const () as usize);
    }

    fn case_78_programs_that_other_threads_start_meanwhile_get_no_descriptor_of_ours() {
        let look = || {
            let output = Command::new("ls").arg("/proc/self/fd").stdin(std::process::Stdio::null()).output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        // Its streams, the directory that it reads, and what this process has itself inherited.
        let before = look();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Every kind of descriptor: lines, pidfds, pipes, memory; and those of a zygote that is made.
                for n in 0.. {
                    let mut unit = Offspring::builder(Asked).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
                    let text = "x".repeat(100_000);
                    assert!(spawn(text.clone(), |text: String| text).unwrap().wait().unwrap() == text);
                    drop(unit.take_stdin());
                    unit.wait().unwrap();
                    if n % 10 == 9 {
                        offspring::shutdown();
                    }
                    if done.load(Ordering::SeqCst) && n >= 20 {
                        break;
                    }
                }
            });
            let looks: Vec<String> = (0..200).map(|_| look()).collect();
            done.store(true, Ordering::SeqCst);
            looks.into_iter().for_each(|seen| assert_eq!(seen, before));
        });
    }

    fn case_79_a_copy_of_this_process_neither_reaps_nor_kills_and_starts_afresh() {
        let unit = spawn((), park).unwrap();
        let process = unit.process().unwrap().clone();
        // SAFETY: the copy calls this library, which is made for it, and ends through _exit.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            let foreign = unit.wait().unwrap_err().kind() == ErrorKind::Unsupported;
            let foreign = foreign && process.kill().is_err() && !process.is_alive();
            let own = spawn(1, |n: u32| n + 1).unwrap().wait().ok() == Some(2);
            offspring::shutdown();
            // SAFETY: ends the copy without running this process's handlers.
            unsafe { libc::_exit(if foreign && own { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the copy, which is ours, by its pid.
        unsafe { libc::waitpid(copy, &raw mut status, 0) };
        assert_eq!(status, 0);
        assert!(process.is_alive());
        assert_eq!(unit.shutdown().unwrap(), None);
    }

    fn case_79_a_copy_of_this_process_that_drops_its_handles_and_exits_harms_no_unit() {
        let mut unit = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
        let unit_of_mine = spawn((), park).unwrap();
        // SAFETY: the copy drops what it has of this library, which is made for it, and exits.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            drop(unit_of_mine);
            unit.process().unwrap().begin_shutdown();
            drop(unit);
            offspring::shutdown();
            // With its exit handlers.
            std::process::exit(0);
        }
        let mut status = 0;
        // SAFETY: waits for the copy, which is ours, by its pid.
        unsafe { libc::waitpid(copy, &raw mut status, 0) };
        assert_eq!(status, 0);
        drop(unit.take_stdin());
        assert_eq!(unit.wait().unwrap(), 0);
        assert!(unit_of_mine.process().unwrap().is_alive());
        assert_eq!(unit_of_mine.shutdown().unwrap(), None);
    }
}

behaviour! { through ["auto"];
    fn case_73_one_that_waits_for_all_children_comes_to_an_end() {
        double(1).unwrap();
        // SAFETY: null asks for no status.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
        double(2).unwrap();
    }
}
