//! A unit whose death takes as long as a test likes.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use offspring::{Offspring, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

use crate::harness::{can, eventually, state};

/// A unit whose death is not complete before it is let go: another process traces it, and holds it in its exit. The kernel
/// takes that long where it waits for a disk.
pub(crate) struct Held {
    pub(crate) unit: Offspring<()>,
    tracer: Offspring<()>,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    orders: ChildStdin,
    /// Ends the tracer, and so its hold.
    release: ChildStdin,
}

#[derive(Serialize, Deserialize)]
struct Victim;

impl Subprocess for Victim {
    type Output = ();

    fn run(self) {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).unwrap() > 0 {
            if byte[0] == b'a' {
                std::process::abort();
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Tracer(u32);

impl Subprocess for Tracer {
    type Output = ();

    fn run(self) {
        let pid = self.0 as i32;
        // SAFETY: ptrace(2) of another process, by numbers alone; the status is written by waitpid(2).
        unsafe {
            let options = libc::PTRACE_O_TRACEEXIT as usize;
            if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, options) != 0 {
                return println!("refused");
            }
            println!("seized");
            for _ in 0..1000 {
                let mut status = 0;
                assert_eq!(libc::waitpid(pid, &raw mut status, libc::__WALL), pid);
                assert!(libc::WIFSTOPPED(status));
                if status >> 16 == libc::PTRACE_EVENT_EXIT {
                    break;
                }
                // A signal on its way to it; or a stop that has no signal.
                let signal = if status >> 16 == 0 { libc::WSTOPSIG(status) } else { 0 };
                libc::ptrace(libc::PTRACE_CONT, pid, 0, signal as usize);
            }
        }
        println!("held");
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).unwrap() > 0 {
            // SAFETY: as above. It ends, and we do not hear of it.
            unsafe { libc::ptrace(libc::PTRACE_CONT, pid, 0, 0) };
        }
    }
}

impl Held {
    /// One with that grace; `None` if it may not be traced.
    pub(crate) fn new(grace: Duration) -> Option<Self> {
        let mut unit =
            Offspring::builder(Victim).stdin(Stdio::piped()).shutdown_timeout(grace).spawn().unwrap();
        let orders = unit.take_stdin().unwrap();
        let builder = Offspring::builder(Tracer(unit.process().unwrap().id()));
        let mut tracer = builder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(tracer.take_stdout().unwrap()).lines();
        let release = tracer.take_stdin().unwrap();
        if !can("a tracer", lines.next().unwrap().unwrap() == "seized") {
            drop(orders);
            unit.wait().unwrap();
            tracer.wait().unwrap();
            return None;
        }
        Some(Self { unit, tracer, lines, orders, release })
    }

    /// Has it abort; returns when it hangs in its exit.
    pub(crate) fn abort(&mut self) {
        self.orders.write_all(b"a").unwrap();
        self.await_hold();
    }

    pub(crate) fn await_hold(&mut self) {
        assert_eq!(self.lines.next().unwrap().unwrap(), "held");
    }

    /// Lets it die, but not be reaped.
    pub(crate) fn die(&mut self) {
        self.release.write_all(b"d").unwrap();
        let pid = self.unit.process().unwrap().id();
        eventually("it does not die", || state(pid) == Some('Z'));
    }

    /// Lets its death be completed.
    pub(crate) fn let_go(self) -> Offspring<()> {
        drop(self.release);
        self.tracer.wait().unwrap();
        self.unit
    }
}
