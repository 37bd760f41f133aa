//! A start by a caller of a special kind: by many threads at once, in handlers, with signals blocked, interrupted all the time.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Barrier;

use offspring::{Offspring, spawn};

use crate::behaviour;
use crate::harness::{self, double, eventually, zygotes};

/// Every launcher, and the library's own choice.
const EVERY: [&str; 4] = ["auto", "zygote", "spare", "exec"];

fn twice(n: u32) {
    assert_eq!(double(n).unwrap(), 2 * n);
}

behaviour! { through EVERY;
    fn case_6_many_threads_that_start_for_the_first_time_at_once() {
        let barrier = Barrier::new(64);
        std::thread::scope(|scope| {
            for thread in 0..64 {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    (0..5).for_each(|n| twice(100 * thread + n));
                });
            }
        });
        let is_executed = std::env::var("OFFSPRING_LAUNCHER").unwrap() == "exec";
        eventually("there is more than one zygote, or none", || zygotes().len() == usize::from(!is_executed));
    }

    fn case_8_what_the_caller_blocks_and_ignores_is_not_the_units() {
        // SAFETY: dispositions and the mask of this thread.
        let mask = unsafe {
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut old);
            old
        };
        let looks: Vec<_> = (0..3).map(|_| spawn((), signals).and_then(Offspring::wait)).collect();
        // SAFETY: puts the mask back.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut()) };
        for status in looks {
            let status = status.unwrap();
            assert_eq!(status["SigBlk"], "0000000000000000");
            assert_eq!(status["SigPnd"], "0000000000000000");
            // As Rust has it.
            let ignored = 1_u64 << (libc::SIGPIPE - 1);
            assert_eq!(status["SigIgn"], format!("{ignored:016x}"));
            // The overflow of a stack, and the parent's death.
            let caught = [libc::SIGSEGV, libc::SIGBUS, 61].iter().fold(0_u64, |mask, signal| mask | 1 << (signal - 1));
            assert_eq!(status["SigCgt"], format!("{caught:016x}"));
            assert_eq!(status["Threads"], "1");
        }
    }
}

/// What the kernel says of this process.
fn signals(_: ()) -> BTreeMap<String, String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field =
        |line: &str| line.split_once(":\t").map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    status.lines().filter_map(field).collect()
}

fn told(place: &str) {
    let unit = spawn(1, |n: u32| n + 1).and_then(Offspring::wait);
    println!(
        "\n{place}: {}",
        unit.map_or_else(|error| format!("{:?}", error.kind()), |n| format!("started {n}"))
    );
}

extern "C" fn registered_before() {
    told("after the library's own exit handler");
}

extern "C" fn registered_after() {
    told("before it");
}

extern "C" fn destructor() {
    told("in a destructor of a library");
}

extern "C" fn handler(_: i32) {
    told("in a signal handler");
}

struct Destroyed;

impl Drop for Destroyed {
    fn drop(&mut self) {
        told("in a destructor of a thread's value");
    }
}

thread_local! {
    static DESTROYED: Destroyed = const { Destroyed };
}

behaviour! { through EVERY;
    fn case_7_a_start_in_handlers_and_destructors() {
        if harness::is_again() {
            // SAFETY: functions that live as long as the program; the library that was loaded ahead has such a variable.
            unsafe {
                let place = libc::dlsym(libc::RTLD_DEFAULT, c"at_end".as_ptr());
                place.cast::<extern "C" fn()>().write(destructor);
                libc::atexit(registered_before);
                twice(1);
                libc::atexit(registered_after);
                // Between two lines of ours: in the middle of an allocation no handler may allocate.
                libc::signal(libc::SIGUSR1, handler as *const () as usize);
                libc::raise(libc::SIGUSR1);
            }
            std::thread::spawn(|| DESTROYED.with(|_| ())).join().unwrap();
            return;
        }
        let library = harness::library("at-end", r"
            void (*at_end)(void);
            __attribute__((destructor)) static void it(void) { if (at_end) at_end(); }
        ");
        let mut command = harness::myself();
        command.env("LD_PRELOAD", &library);
        let text = harness::good(command);
        harness::remove(&library);
        for line in [
            "in a signal handler: started 2",
            "in a destructor of a thread's value: started 2",
            "before it: started 2",
            "after the library's own exit handler: ShuttingDown",
            "in a destructor of a library: ShuttingDown",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        }
    }
}

extern "C" fn nothing(_: i32) {}

/// A handler for a signal, after which the kernel does not go on with what it interrupted.
fn interrupt_by(signal: i32) {
    // SAFETY: a record filled in full; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

fn alarm_every(micros: i64) {
    let every = libc::timeval { tv_sec: 0, tv_usec: micros };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: a valid record.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}

behaviour! { through EVERY;
    fn case_14_a_caller_that_is_interrupted_all_the_time() {
        interrupt_by(libc::SIGALRM);
        interrupt_by(libc::SIGCHLD);
        alarm_every(1000);
        for n in 0..200 {
            twice(n);
            let error = spawn(n as i32, |n: i32| -> () { std::process::exit(n) }).unwrap().wait().unwrap_err();
            assert_eq!(error.death().unwrap().status().code(), Some(n as i32), "{error}");
            if n % 10 == 0 {
                let text = "x".repeat(1 << 20);
                assert!(spawn(text.clone(), |text: String| text).unwrap().wait().unwrap() == text);
                let error = spawn((), |()| -> () { std::process::abort() }).unwrap().wait().unwrap_err();
                assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGABRT), "{error}");
            }
        }
        alarm_every(0);
    }

    fn case_15_many_starts_at_once_and_each_gets_its_own() {
        std::thread::scope(|scope| {
            for thread in 0..32_u64 {
                scope.spawn(move || {
                    for round in 0..4 {
                        let number = |n: u64| (thread << 32 | round << 16 | n, format!("{thread} {round} {n}"));
                        let echo = |pair: (u64, String)| (pair.0, pair.1, std::process::id());
                        let units: Vec<_> = (0..10).map(|n| spawn(number(n), echo).unwrap()).collect();
                        // Not in the order in which they were started.
                        for (n, unit) in units.into_iter().enumerate().rev() {
                            let pid = unit.process().unwrap().id();
                            let (a, b) = number(n as u64);
                            assert_eq!(unit.wait().unwrap(), (a, b, pid));
                        }
                    }
                });
            }
        });
    }
}
