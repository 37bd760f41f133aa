//! Surroundings that are not as usual: filters, limits, libraries with constructors, namespaces, tools.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::process::Command;

use harness::{good, is_again, library, myself, remove, zygote};
use offspring::{ErrorKind, Offspring, spawn};

fn double(n: u32) -> Result<u32, offspring::Error> {
    spawn(n, |n: u32| 2 * n).and_then(Offspring::wait)
}

behaviour! { through ["zygote"];
    fn what_a_constructor_left_to_be_printed_is_printed_once() {
        if is_again() {
            (0..10).for_each(|n| assert_eq!(double(n).unwrap(), 2 * n));
            return;
        }
        let library = library("prints", r#"
            #include <stdio.h>
            __attribute__((constructor)) static void it(void) { printf("<from a constructor>"); }
        "#);
        let mut command = myself();
        command.env("LD_PRELOAD", &library);
        let text = good(command);
        remove(&library);
        // The program's own, and the zygote's.
        assert_eq!(text.matches("<from a constructor>").count(), 2, "{text}");
    }
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
