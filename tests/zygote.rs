//! What may happen to the zygote, and what it leaves where: starts go on, running units are not harmed, nothing stays.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::Read;

use harness::{doubles, eventually, is_alive, zygote, zygotes};
use offspring::{Offspring, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

behaviour! { through ["zygote"];


    fn after_a_shutdown_there_is_none_and_the_next_start_makes_another() {
        doubles(1);
        let first = zygote().unwrap();
        offspring::shutdown();
        assert!(!is_alive(first));
        assert!(zygotes().is_empty());
        doubles(2);
        assert_ne!(zygote(), Some(first));
    }

    fn it_ends_with_its_parent() {
        for signal in [libc::SIGKILL, libc::SIGABRT, libc::SIGTERM] {
            let pid = told_by(Parent(signal));
            eventually("the zygote outlives its parent", || !is_alive(pid));
        }
    }

    fn a_stopped_one_ends_with_its_parent_as_well() {
        let pid = told_by(StoppingParent);
        eventually("the zygote outlives its parent", || !is_alive(pid));
    }
}

/// The pid that such a parent tells before it dies.
fn told_by(parent: impl Subprocess<Output = ()>) -> u32 {
    let mut parent = Offspring::builder(parent).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    let mut output = parent.take_stdout().unwrap();
    assert!(parent.wait().is_err());
    output.read_to_string(&mut text).unwrap();
    text.trim().parse().unwrap()
}

/// Starts a unit of its own, tells its zygote's pid, and ends itself.
#[derive(Serialize, Deserialize)]
struct Parent(i32);

impl Subprocess for Parent {
    type Output = ();

    fn run(self) {
        doubles(1);
        println!("{}", zygote().unwrap());
        // SAFETY: ends this process.
        unsafe { libc::raise(self.0) };
        loop {
            std::thread::park();
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoppingParent;

impl Subprocess for StoppingParent {
    type Output = ();

    fn run(self) {
        doubles(1);
        let pid = zygote().unwrap();
        harness::kill(pid, libc::SIGSTOP);
        eventually("it does not stop", || harness::state(pid) == Some('T'));
        println!("{pid}");
        harness::kill(std::process::id(), libc::SIGKILL);
    }
}
