//! The parent's own way out of `main`, which a test function cannot show: this file has a `main` of its own, and is run
//! again by itself in each role.
#![allow(unsafe_code)]

use std::process::{Command, Stdio};
use std::time::Duration;

use offspring::{ErrorKind, Offspring, SubprocessLoop, spawn};
use serde::{Deserialize, Serialize};

/// A loop that says when it begins and ends.
#[derive(Serialize, Deserialize)]
struct Loop(u32);

impl SubprocessLoop for Loop {
    type Output = ();

    fn begin(&mut self) {
        println!("begin {}", self.0);
    }

    fn tick(&mut self) -> std::ops::ControlFlow<(), Duration> {
        std::ops::ControlFlow::Continue(Duration::from_secs(3600))
    }

    fn end(self) {
        println!("end {}", self.0);
    }
}

fn kind<R>(result: Result<R, offspring::Error>) -> String {
    result.map_or_else(|error| format!("{:?}", error.kind()), |_| "started".into())
}

/// Prints a line in one piece: on its way out the process prints piece by piece, and others print at the same time.
fn say(what: &str, result: &str) {
    let line = format!("{what}: {result}\n");
    print!("{line}");
}

/// Runs after the library's own exit handler, because it was registered before the first start.
extern "C" fn late() {
    say("late start", &kind(spawn((), |()| ())));
}

/// Runs before it.
extern "C" fn early() {
    say("early start", &kind(spawn((), |()| ())));
}

struct Destroyed;

impl Drop for Destroyed {
    fn drop(&mut self) {
        say("destructor's start", &kind(spawn((), |()| ()).and_then(Offspring::wait)));
    }
}

thread_local! {
    static DESTROYED: Destroyed = const { Destroyed };
}

fn role(role: &str) {
    // SAFETY: functions that live as long as the program.
    unsafe { libc::atexit(late) };
    let first = Offspring::new(Loop(1)).unwrap();
    let _second = Offspring::new(Loop(2)).unwrap();
    // SAFETY: as above.
    unsafe { libc::atexit(early) };
    DESTROYED.with(|_| ());
    // A thread that waits while the process exits.
    std::thread::spawn(move || {
        let waited = first.wait().inspect_err(|error| assert_eq!(error.kind(), ErrorKind::ShuttingDown));
        say("waiter", &kind(waited));
    });
    match role {
        "return" => {}
        "exit" => std::process::exit(3),
        "panic" => panic!("out of main"),
        other => unreachable!("{other}"),
    }
}

fn main() {
    if let Ok(name) = std::env::var("EXITS_ROLE") {
        return role(&name);
    }
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("exits: test");
        }
        return;
    }
    for (name, code) in [("return", 0), ("exit", 3), ("panic", 101)] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.env("EXITS_ROLE", name).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{name}: {text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let at = |line: &str| {
            text.lines().position(|other| other == line).unwrap_or_else(|| panic!("{line}:\n{text}"))
        };
        for line in ["begin 1", "begin 2", "late start: ShuttingDown", "early start: started"] {
            at(line);
        }
        at("end 1");
        at("end 2");
        assert!(
            text.contains("destructor's start: started") || text.contains("destructor's start: ShuttingDown"),
            "{text}"
        );
        println!("test exits::{name} ... ok");
    }
    println!("3 passed, 0 failed");
}
