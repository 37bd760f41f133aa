//! How units end that do not end well: panics, exits, signals, want of memory, streams that nobody reads.

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess, SubprocessLoop, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, can, eventually};
use crate::held::Held;

const LONG: Duration = Duration::from_secs(3600);

fn fail<R>(unit: Result<Offspring<R>, Error>) -> Error {
    unit.and_then(Offspring::wait).map(drop).unwrap_err()
}

/// Why there is no result, and what the unit has said on its standard error.
fn fail_aloud<T: Subprocess>(unit: T, backtrace: bool) -> (Error, String) {
    let builder = Offspring::builder(unit)
        .stderr(Stdio::piped())
        .env("RUST_BACKTRACE", u32::from(backtrace).to_string());
    let mut unit = builder.spawn().unwrap();
    let mut text = String::new();
    unit.take_stderr().unwrap().read_to_string(&mut text).unwrap();
    (unit.wait().map(drop).unwrap_err(), text)
}

fn limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: a valid record.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
}

/// Panics in its destructor.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("second");
    }
}

/// A death by the processor's or the kernel's hand, not by a signal that somebody sent.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
enum Fault {
    Abort,
    Address,
    BeyondTheFile,
    #[cfg(target_arch = "x86_64")]
    Division,
    #[cfg(target_arch = "x86_64")]
    Instruction,
    ForbiddenCall,
}

fn commit(fault: Fault) {
    match fault {
        Fault::Abort => std::process::abort(),
        // SAFETY: none. The fault is what is wanted.
        Fault::Address => unsafe {
            std::ptr::without_provenance::<u8>(8).read_volatile();
        },
        // SAFETY: an empty file is mapped, and reading the mapping is what is to fail.
        Fault::BeyondTheFile => unsafe {
            let file = libc::memfd_create(c"empty".as_ptr(), 0);
            let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file, 0);
            assert_ne!(page, libc::MAP_FAILED);
            page.cast::<u8>().read_volatile();
        },
        // SAFETY: the fault is what is wanted; the registers that it writes are told.
        #[cfg(target_arch = "x86_64")]
        Fault::Division => unsafe {
            std::arch::asm!("xor eax, eax", "xor edx, edx", "xor ecx, ecx", "div ecx", out("eax") _, out("edx") _, out("ecx") _);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Fault::Instruction => unsafe { std::arch::asm!("ud2") },
        Fault::ForbiddenCall => {
            if !harness::forbid(libc::SYS_getppid) {
                // SAFETY: raise(3) has no conditions.
                unsafe { libc::raise(libc::SIGSYS) };
            }
            let _ = std::os::unix::process::parent_id();
        }
    }
}

fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 64]);
    if n == u64::MAX { 0 } else { block[1] + deep(n + 1) }
}

/// Takes memory and writes to all of it.
fn take_memory(size: usize) -> usize {
    let block = std::hint::black_box(vec![1_u8; size]);
    block.iter().map(|byte| usize::from(*byte)).sum()
}

/// Does not want to be ended.
#[derive(Serialize, Deserialize)]
struct Stubborn;

impl Subprocess for Stubborn {
    type Output = ();
    const WAIT_FOR_CHILD: bool = true;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) {
        // SAFETY: dispositions, and the mask of this thread; the set is filled in before it is read.
        unsafe {
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_IGN);
            }
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        }
        println!("ready");
        std::thread::sleep(LONG);
    }
}

/// A loop that takes away the handler which was to end it well.
#[derive(Serialize, Deserialize)]
struct Careless;

impl SubprocessLoop for Careless {
    type Output = ();

    fn begin(&mut self) {
        // SAFETY: a disposition.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
        println!("ready");
    }

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        ControlFlow::Continue(LONG)
    }

    fn end(self) {}
}

/// Shuts one down that has said that it is ready; how it ended.
fn stubborn<R>(builder: offspring::Builder<R>) -> i32 {
    let mut unit = builder.stdout(Stdio::piped()).spawn().unwrap();
    unit.take_stdout().unwrap().read_exact(&mut [0; 6]).unwrap();
    let process = unit.process().unwrap().clone();
    assert!(unit.shutdown().unwrap().is_none());
    process.exit_status().unwrap().signal().unwrap()
}

behaviour! {
    fn case_35_a_payload_that_is_no_string_and_a_hook_of_the_units_own() {
        let error = fail(spawn((), |()| -> () { std::panic::panic_any(7_u8) }));
        assert_eq!(error.panic().unwrap().message(), "Box<dyn Any>");
        let error = fail(spawn((), |()| -> () { std::panic::panic_any(Bomb) }));
        assert_eq!(error.panic().unwrap().message(), "Box<dyn Any>");
        let error = fail(spawn((), |()| -> () {
            std::panic::set_hook(Box::new(|_| {}));
            panic!("quiet");
        }));
        assert_eq!((error.panic().unwrap().message(), error.panic().unwrap().file()), ("quiet", None));
    }

    fn case_35_a_panic_that_cannot_unwind_is_told_all_the_same() {
        let error = fail(spawn((), |()| -> () {
            let _bomb = Bomb;
            panic!("first");
        }));
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGABRT));
    }

    fn case_36_a_panic_comes_home_whole() {
        fn thrower(n: u32) {
            panic!("no {n}");
        }
        // SAFETY: this process has one thread but the test's.
        unsafe { std::env::set_var("RUST_BACKTRACE", "1") };
        let error = fail(spawn(5, thrower));
        assert_eq!(error.kind(), ErrorKind::Panicked);
        let panic = error.panic().unwrap();
        assert_eq!(panic.message(), "no 5");
        assert!(panic.file().unwrap().ends_with("endings.rs"));
        assert_eq!(panic.thread(), Some("main"));
        assert!(panic.column().is_some());
        let backtrace = panic.backtrace().unwrap();
        assert!(cfg!(not(debug_assertions)) || backtrace.contains("thrower"), "{backtrace}");
        let text = error.to_string();
        assert!(text.contains("endings.rs") && text.contains("no 5"), "{text}");
        // SAFETY: as above.
        unsafe { std::env::set_var("RUST_BACKTRACE", "0") };
        assert_eq!(fail(spawn(5, thrower)).panic().unwrap().backtrace(), None);
        let line = line!() + 1;
        let error = fail(spawn((), |()| -> () { panic!("here") }));
        assert_eq!(error.panic().unwrap().line(), Some(line));
    }

    fn case_36_a_panic_is_said_on_standard_error_as_it_is_told() {
        #[derive(Serialize, Deserialize)]
        struct Throws;
        impl Subprocess for Throws {
            type Output = ();
            fn run(self) {
                panic!("in two places");
            }
        }
        for traced in [false, true] {
            let (error, text) = fail_aloud(Throws, traced);
            let panic = error.panic().unwrap();
            let place = (panic.file().unwrap(), panic.line().unwrap(), panic.column().unwrap());
            let pid = error.death().unwrap().id();
            for part in [format!("thread '{}'", panic.thread().unwrap()), format!("pid {pid}"), "in two places".into(),
                         format!("{}:{}:{}", place.0, place.1, place.2), "Throws".into()] {
                assert!(text.contains(&part), "{part}: {text}");
            }
            assert_eq!(panic.backtrace().is_some(), traced);
            assert!(panic.backtrace().is_none_or(|backtrace| text.contains(backtrace)), "{text}");
        }
    }

    fn case_37_exit_codes_are_told_apart_from_success() {
        for code in [0, 1, 2, 255, 256 + 7] {
            // SAFETY: each ends the process.
            let ways: [fn(i32); 4] = [
                |code| std::process::exit(code),
                |code| unsafe { libc::exit(code) },
                |code| unsafe { libc::_exit(code) },
                |code| std::thread::spawn(move || std::process::exit(code)).join().unwrap(),
            ];
            for way in ways {
                let error = fail(spawn(code, way));
                assert_eq!(error.kind(), ErrorKind::Died);
                assert_eq!(error.death().unwrap().status().code(), Some(code & 255), "{error}");
            }
        }
    }

    fn case_38_faults_are_told_by_their_signal() {
        let faults = [
            (Fault::Abort, libc::SIGABRT),
            (Fault::Address, libc::SIGSEGV),
            (Fault::BeyondTheFile, libc::SIGBUS),
            #[cfg(target_arch = "x86_64")]
            (Fault::Division, libc::SIGFPE),
            #[cfg(target_arch = "x86_64")]
            (Fault::Instruction, libc::SIGILL),
            (Fault::ForbiddenCall, libc::SIGSYS),
        ];
        for (fault, signal) in faults {
            let error = fail(spawn(fault, commit));
            let status = error.death().unwrap().status();
            assert_eq!((error.kind(), status.signal()), (ErrorKind::Died, Some(signal)), "{fault:?}: {error}");
        }
    }

    fn case_38_signals_are_told_apart() {
        for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSYS, libc::SIGKILL,
                       libc::SIGTERM, libc::SIGINT, libc::SIGXCPU, libc::SIGXFSZ, libc::SIGUSR1, libc::SIGHUP] {
            // SAFETY: raise(3) has no conditions.
            let error = fail(spawn(signal, |signal: i32| -> () { unsafe { libc::raise(signal); } std::process::exit(99) }));
            let status = error.death().unwrap().status();
            assert_eq!((error.kind(), status.signal()), (ErrorKind::Died, Some(signal)), "{error}");
        }
    }

    fn case_38_a_core_dump_is_told() {
        let error = fail(spawn((), |()| -> () {
            let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: a valid record; raising the hard limit needs root, else the soft one alone.
            unsafe {
                let mut now: libc::rlimit = std::mem::zeroed();
                libc::getrlimit(libc::RLIMIT_CORE, &raw mut now);
                if libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) != 0 {
                    now.rlim_cur = now.rlim_max;
                    libc::setrlimit(libc::RLIMIT_CORE, &raw const now);
                }
            }
            std::env::set_current_dir(std::env::temp_dir()).unwrap();
            std::process::abort();
        }));
        let status = error.death().unwrap().status();
        assert_eq!(status.signal(), Some(libc::SIGABRT));
        assert_eq!(error.to_string().contains("core dumped"), status.core_dumped());
        let _ = std::fs::remove_file(std::env::temp_dir().join("core"));
        let _ = std::fs::remove_file(std::env::temp_dir().join(format!("core.{}", error.death().unwrap().id())));
    }

    fn case_39_a_stack_overflow_says_so() {
        #[derive(Serialize, Deserialize)]
        struct Deep;
        impl Subprocess for Deep {
            type Output = u64;
            fn run(self) -> u64 {
                deep(1)
            }
        }
        let (error, text) = fail_aloud(Deep, false);
        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGABRT), "{text}");
        assert!(text.contains("'main' has overflowed its stack"), "{text}");
    }

    fn case_39_a_stack_overflow_of_another_thread_is_a_death_like_any_other() {
        let overflow: fn(()) = |()| {
            let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(|| deep(1));
            let _ = thread.unwrap().join();
        };
        let error = fail(spawn((), overflow));
        assert_eq!(error.kind(), ErrorKind::Died);
        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGSEGV), "{error}");
    }

    fn case_40_one_that_may_have_no_more_memory() {
        let greedy = |_: ()| {
            limit(libc::RLIMIT_AS, 1 << 30, 1 << 30);
            take_memory(2 << 30)
        };
        let error = fail(spawn((), greedy));
        assert_eq!(error.kind(), ErrorKind::Died);
        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGABRT), "{error}");
        assert_eq!(spawn(1 << 20, take_memory).unwrap().wait().unwrap(), 1 << 20);
    }

    fn case_40_one_that_the_kernel_kills_for_its_memory() {
        // Not where the memory has a hierarchy of its own, or groups are not ours to make.
        let root = Path::new("/sys/fs/cgroup");
        let group = root.join(harness::tag().replace(':', "-"));
        let set = |file: &str, value: &str| {
            let file = std::fs::File::options().write(true).open(group.join(file));
            file.and_then(|mut file| file.write_all(value.as_bytes())).is_ok()
        };
        let is_one = root.join("cgroup.controllers").exists() && std::fs::create_dir(&group).is_ok();
        let limited = is_one && set("memory.max", "64M");
        if can("a group with a limit of memory", limited) {
            // Where there is swap it is to have none of it.
            set("memory.swap.max", "0");
            let unit = spawn(group.clone(), |group: std::path::PathBuf| {
                std::fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
                take_memory(1 << 30)
            });
            let error = fail(unit);
            assert_eq!(error.kind(), ErrorKind::Died);
            assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGKILL), "{error}");
            assert_eq!(spawn(1 << 20, take_memory).unwrap().wait().unwrap(), 1 << 20);
        }
        if is_one {
            std::fs::remove_dir(&group).unwrap();
        }
    }

    fn case_41_limits_of_time_and_of_files_are_told_by_their_signal() {
        let spin: fn(()) = |()| {
            limit(libc::RLIMIT_CPU, 1, 60);
            loop {
                std::hint::spin_loop();
            }
        };
        let write: fn(()) = |()| {
            limit(libc::RLIMIT_FSIZE, 1000, 1000);
            // SAFETY: a new descriptor, and a buffer as long as is said; the signal ends all of it.
            unsafe {
                let file = libc::memfd_create(c"small".as_ptr(), 0);
                libc::write(file, [0_u8; 1000].as_ptr().cast(), 1000);
                libc::write(file, [0_u8; 1000].as_ptr().cast(), 1000);
            }
        };
        for (work, signal, name) in [(spin, libc::SIGXCPU, "SIGXCPU"), (write, libc::SIGXFSZ, "SIGXFSZ")] {
            let error = fail(spawn((), work));
            assert_eq!(error.kind(), ErrorKind::Died);
            assert_eq!(error.death().unwrap().status().signal(), Some(signal), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    fn case_42_one_that_hears_no_signal_is_killed_after_the_grace() {
        assert_eq!(stubborn(Offspring::builder(Stubborn)), libc::SIGKILL);
    }

    fn case_42_a_loop_without_its_handler_is_terminated() {
        assert_eq!(stubborn(Offspring::builder(Careless)), libc::SIGTERM);
    }

    fn case_43_a_write_to_a_closed_pipe_is_an_error_not_a_death() {
        let unit = spawn((), |()| {
            let (reader, mut writer) = std::io::pipe().unwrap();
            drop(reader);
            writer.write_all(b"x").unwrap_err().kind() == std::io::ErrorKind::BrokenPipe
        });
        assert!(unit.unwrap().wait().unwrap());
    }

    fn case_43_a_standard_output_that_nobody_reads_is_an_error_not_a_death() {
        #[derive(Serialize, Deserialize)]
        struct Prints;
        impl Subprocess for Prints {
            type Output = bool;
            fn run(self) -> bool {
                let result = std::io::stdout().write_all(b"x\n");
                // SAFETY: a constant string; C's stream is flushed at the exit, once more into the void.
                unsafe { libc::printf(c"x".as_ptr()) };
                result.unwrap_err().kind() == std::io::ErrorKind::BrokenPipe
            }
        }
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert!(writer.as_raw_fd() > 2);
        let unit = Offspring::builder(Prints).stdout(std::os::fd::OwnedFd::from(writer)).spawn().unwrap();
        let process = unit.process().unwrap().clone();
        assert!(unit.wait().unwrap());
        assert!(process.exit_status().unwrap().success());
    }

    fn case_44_an_end_that_takes_the_kernel_long_delays_nobody_else() {
        let Some(mut held) = Held::new(Duration::from_secs(3600)) else { return };
        held.abort();
        // It has died, and is not gone: so it is while its memory is written to a core file.
        assert!(held.unit.wait_timeout(Duration::from_millis(100)).unwrap().is_none());
        assert!(held.unit.try_wait().unwrap().is_none());
        assert_eq!(spawn(1, |n: u32| n).unwrap().wait().unwrap(), 1);
        let process = held.unit.process().unwrap().clone();
        assert!(process.is_alive());
        let error = held.let_go().wait().unwrap_err();
        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGABRT), "{error}");
        eventually("it is not gone", || !process.is_alive());
    }
}
