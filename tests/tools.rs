//! Tools that a program may run under, and cannot with this crate.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::process::Command;

use harness::is_again;
use offspring::{ErrorKind, Offspring, spawn};

fn double(n: u32) -> Result<u32, offspring::Error> {
    spawn(n, |n: u32| 2 * n).and_then(Offspring::wait)
}

/// A program under it must be told clearly; it can be run where there is one.
#[test]
fn valgrind_is_a_clear_refusal() {
    if is_again() {
        let error = double(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("valgrind"), "{error}");
        return;
    }
    let mut command = Command::new("valgrind");
    command.args(["-q", "--error-exitcode=7"]).arg(std::env::current_exe().unwrap());
    command.args(["valgrind_is_a_clear_refusal", "--exact", "--nocapture"]).env("AGAIN", "1");
    match command.output() {
        Err(_) => println!("skipped: there is no valgrind here"),
        Ok(output) => assert!(output.status.success(), "{output:?}"),
    }
}
