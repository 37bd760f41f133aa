//! Why there is no result: panics, starts that cannot be; told apart, and named.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::error::Error as _;

use offspring::{Error, ErrorKind, Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

fn fail<R>(unit: Result<Offspring<R>, Error>) -> Error {
    unit.and_then(Offspring::wait).map(drop).unwrap_err()
}

#[derive(Serialize, Deserialize)]
struct Nothing;

impl Subprocess for Nothing {
    type Output = ();

    fn run(self) {}
}

behaviour! {
    fn a_panic_that_was_caught_is_not_told() {
        let unit = spawn((), |()| std::panic::catch_unwind(|| panic!("caught")).is_err());
        assert!(unit.unwrap().wait().unwrap());
        let unit = spawn((), |()| std::thread::spawn(|| panic!("other")).join().is_err());
        assert!(unit.unwrap().wait().unwrap());
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

    fn a_panic_with_a_long_message_comes_home_whole() {
        let error = fail(spawn((), |()| -> () { panic!("{}", "x".repeat(300_000)) }));
        assert_eq!(error.panic().unwrap().message().len(), 300_000);
    }

    fn a_panic_with_a_very_long_message_is_cut() {
        let error = fail(spawn((), |()| -> () { panic!("{}", "x".repeat(20 << 20)) }));
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(error.panic().unwrap().message().len() < 2 << 20);
    }

    fn a_start_that_cannot_be_names_the_step_and_the_cause() {
        let error = fail(Offspring::builder(Nothing).current_dir("/no/such/place").spawn());
        assert_eq!(error.kind(), ErrorKind::Start);
        assert!(error.to_string().contains("current directory"), "{error}");
        assert!(error.source().is_some());
        let error = fail(Offspring::builder(Nothing).env("A", "nul\0nul").spawn());
        assert!(error.to_string().contains("environment"), "{error}");
        assert!(error.death().is_none());
    }
}
