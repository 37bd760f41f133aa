//! Why there is no result: panics, deaths, values that refuse; told apart, and named.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::os::unix::process::ExitStatusExt;

use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

fn fail<R>(unit: Result<Offspring<R>, Error>) -> Error {
    unit.and_then(Offspring::wait).map(drop).unwrap_err()
}

/// Does something on the way: in `Serialize` or `Deserialize`, in the parent or in the child.
#[derive(Clone, Debug)]
struct Touchy {
    place: String,
    deed: String,
    parent: u32,
}

impl Touchy {
    fn at(&self, place: &str) -> Result<(), String> {
        let here = if std::process::id() == self.parent { "parent" } else { "child" };
        if self.place != format!("{place} in {here}") {
            return Ok(());
        }
        match self.deed.as_str() {
            "error" => Err("refused".into()),
            "panic" => panic!("touched"),
            "exit" => std::process::exit(3),
            // SAFETY: ends the process, which is what is wanted.
            "crash" => unsafe {
                libc::raise(libc::SIGSEGV);
                unreachable!()
            },
            other => unreachable!("{other}"),
        }
    }
}

impl Serialize for Touchy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.at("serialize").map_err(serde::ser::Error::custom)?;
        (&self.place, &self.deed, self.parent).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, deed, parent) = Deserialize::deserialize(deserializer)?;
        let this = Self { place, deed, parent };
        this.at("deserialize").map_err(serde::de::Error::custom)?;
        Ok(this)
    }
}

#[derive(Serialize, Deserialize)]
struct Echo(Touchy);

impl Subprocess for Echo {
    type Output = Touchy;

    fn run(self) -> Touchy {
        self.0
    }
}

fn touch(place: &str, deed: &str) -> Error {
    let touchy = Touchy { place: place.into(), deed: deed.into(), parent: std::process::id() };
    fail(Offspring::builder(Echo(touchy)).stderr(Stdio::null()).spawn())
}

behaviour! {
    fn a_panic_comes_home_whole() {
        fn thrower(n: u32) {
            panic!("no {n}");
        }
        // SAFETY: this process has one thread but the test's.
        unsafe { std::env::set_var("RUST_BACKTRACE", "1") };
        let error = fail(spawn(5, thrower));
        assert_eq!(error.kind(), ErrorKind::Panicked);
        let panic = error.panic().unwrap();
        assert_eq!(panic.message(), "no 5");
        assert!(panic.file().unwrap().ends_with("errors.rs"));
        assert_eq!(panic.thread(), Some("main"));
        assert!(panic.column().is_some());
        let backtrace = panic.backtrace().unwrap();
        assert!(cfg!(not(debug_assertions)) || backtrace.contains("thrower"), "{backtrace}");
        let text = error.to_string();
        assert!(text.contains("errors.rs") && text.contains("no 5"), "{text}");
        // SAFETY: as above.
        unsafe { std::env::set_var("RUST_BACKTRACE", "0") };
        assert_eq!(fail(spawn(5, thrower)).panic().unwrap().backtrace(), None);
    }

    fn the_line_of_a_panic_is_exact() {
        let line = line!() + 1;
        let error = fail(spawn((), |()| -> () { panic!("here") }));
        assert_eq!(error.panic().unwrap().line(), Some(line));
    }

    fn a_payload_that_is_no_string_and_a_hook_of_the_units_own() {
        let error = fail(spawn((), |()| -> () { std::panic::panic_any(7_u8) }));
        assert_eq!(error.panic().unwrap().message(), "Box<dyn Any>");
        let error = fail(spawn((), |()| -> () {
            std::panic::set_hook(Box::new(|_| {}));
            panic!("quiet");
        }));
        assert_eq!((error.panic().unwrap().message(), error.panic().unwrap().file()), ("quiet", None));
    }

    fn a_panic_that_was_caught_is_not_told() {
        let unit = spawn((), |()| std::panic::catch_unwind(|| panic!("caught")).is_err());
        assert!(unit.unwrap().wait().unwrap());
        let unit = spawn((), |()| std::thread::spawn(|| panic!("other")).join().is_err());
        assert!(unit.unwrap().wait().unwrap());
    }

    fn a_panic_that_cannot_unwind_is_told_all_the_same() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("second");
            }
        }
        let error = fail(spawn((), |()| -> () {
            let _bomb = Bomb;
            panic!("first");
        }));
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGABRT));
    }

    fn panics_of_other_threads_do_not_fall_into_a_large_result() {
        let unit = spawn((), |()| {
            for _ in 0..4 {
                std::thread::spawn(|| loop {
                    let _ = std::thread::spawn(|| std::panic::panic_any("beside")).join();
                });
            }
            "x".repeat(16 << 20)
        });
        let text = unit.unwrap().wait().unwrap();
        assert!(text.len() == 16 << 20 && text.bytes().all(|byte| byte == b'x'));
    }

    fn a_panic_with_a_very_long_message_is_cut() {
        let error = fail(spawn((), |()| -> () { panic!("{}", "x".repeat(20 << 20)) }));
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(error.panic().unwrap().message().len() < 2 << 20);
    }

    fn exit_codes_are_told_apart_from_success() {
        for code in [0, 1, 2, 255] {
            let error = fail(spawn(code, |code: i32| -> () { std::process::exit(code) }));
            assert_eq!(error.kind(), ErrorKind::Died);
            assert_eq!(error.death().unwrap().status().code(), Some(code));
        }
        // SAFETY: ends the process.
        let error = fail(spawn((), |()| -> () { unsafe { libc::_exit(256 + 7) } }));
        assert_eq!(error.death().unwrap().status().code(), Some(7));
    }

    fn signals_are_told_apart() {
        for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSYS, libc::SIGKILL,
                       libc::SIGTERM, libc::SIGINT, libc::SIGXCPU, libc::SIGXFSZ, libc::SIGUSR1, libc::SIGHUP] {
            // SAFETY: raise(3) has no conditions.
            let error = fail(spawn(signal, |signal: i32| -> () { unsafe { libc::raise(signal); } std::process::exit(99) }));
            let status = error.death().unwrap().status();
            assert_eq!((error.kind(), status.signal()), (ErrorKind::Died, Some(signal)), "{error}");
        }
    }

    fn a_core_dump_is_told() {
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

    fn a_stack_overflow_says_so() {
        fn deep(n: u64) -> u64 {
            let block = std::hint::black_box([n; 64]);
            if n == u64::MAX { 0 } else { block[1] + deep(n + 1) }
        }
        let mut text = String::new();
        #[derive(Serialize, Deserialize)]
        struct Deep;
        impl Subprocess for Deep {
            type Output = u64;
            fn run(self) -> u64 {
                deep(1)
            }
        }
        let mut unit = Offspring::builder(Deep).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Read::read_to_string(&mut unit.take_stderr().unwrap(), &mut text).unwrap();
        let error = unit.wait().unwrap_err();
        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGABRT), "{text}");
        assert!(text.contains("has overflowed its stack"), "{text}");
    }

    fn every_step_of_a_value_that_refuses_is_told_and_the_next_start_works() {
        use ErrorKind::{Decode, Died, Encode, Panicked, Start};
        let cases = [
            ("serialize in parent", "error", Encode),
            ("serialize in parent", "panic", Encode),
            ("deserialize in child", "error", Decode),
            ("deserialize in child", "panic", Panicked),
            ("deserialize in child", "exit", Start),
            ("deserialize in child", "crash", Start),
            ("serialize in child", "error", Encode),
            ("serialize in child", "panic", Panicked),
            ("serialize in child", "exit", Died),
            ("serialize in child", "crash", Died),
            ("deserialize in parent", "error", Decode),
            ("deserialize in parent", "panic", Decode),
        ];
        for (place, deed, kind) in cases {
            let error = touch(place, deed);
            assert_eq!(error.kind(), kind, "{place}, {deed}: {error}");
            assert!(error.to_string().contains("Echo"), "{error}");
            let before = place == "serialize in parent";
            assert!(before || error.to_string().contains("pid"), "{error}");
            assert!(deed != "error" || error.to_string().contains("refused"), "{error}");
            assert_eq!(spawn(1, |n: u32| n).unwrap().wait().unwrap(), 1);
        }
    }

    fn a_value_wins_over_what_its_destructor_does() {
        #[derive(Serialize, Deserialize)]
        struct Last(u32);
        impl Drop for Last {
            fn drop(&mut self) {
                if self.0 != std::process::id() {
                    std::process::abort();
                }
            }
        }
        let unit = spawn(std::process::id(), Last).unwrap();
        let process = unit.process().unwrap().clone();
        assert_eq!(unit.wait().unwrap().0, std::process::id());
        assert_eq!(process.exit_status().unwrap().signal(), Some(libc::SIGABRT));
    }
}
