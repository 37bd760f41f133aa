//! This program again, or a peer's, in a role: what kills, leaks or starves is not to do so to who measures.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::figure::{Message, Report};
use crate::processes::{self, TAG};

/// The word by which this program knows that it has a role.
pub(crate) const ROLE: &str = "role";

/// This program in a role; it and all that comes of it carry the tag.
pub(crate) fn copy(role: &[&str], tag: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ROLE).args(role);
    tag_it(&mut command, tag);
    command
}

pub(crate) fn tag_it(command: &mut Command, tag: &str) {
    command.env(TAG, tag).stdin(Stdio::null()).stdout(Stdio::piped());
}

/// Runs one that reports, to its end; nobody with its tag is alive afterwards. Whoever takes longer than it may is killed, with
/// all that carry the tag. `done` hears how far it is.
pub(crate) fn run(mut command: Command, tag: &str, limit: Duration, done: &mut dyn FnMut(u64)) -> Report {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return failed(format!("could not be started: {error}")),
    };
    let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
    let (tell, told) = channel();
    // Not joined: whoever has inherited the pipe may keep it open.
    std::thread::spawn(move || {
        for line in output.lines() {
            let Ok(line) = line else { return };
            if let Ok(message) = serde_json::from_str::<Message>(&line)
                && tell.send(message).is_err()
            {
                return;
            }
        }
    });
    let began = Instant::now();
    let mut report = None;
    let mut ended = None;
    loop {
        match told.recv_timeout(Duration::from_millis(20)) {
            Ok(Message::Done(count)) => done(count),
            Ok(Message::Report(found)) => report = Some(found),
            // Once more after its end, for what it said last.
            Err(RecvTimeoutError::Timeout) if ended.is_none() => {}
            Err(_) if ended.is_some() => break,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        if ended.is_none() {
            ended = child.try_wait().ok().flatten();
        }
        if ended.is_none() && began.elapsed() > limit {
            processes::kill_tagged(tag);
            let _ = child.wait();
            return failed(format!("HANGS: not over after {limit:?}; it was killed"));
        }
    }
    let mut report = match (report, ended) {
        (Some(report), Some(status)) if status.success() => report,
        (report, status) => {
            let mut report = report.unwrap_or_default();
            report.failed += 1;
            report.failures.push(format!("the process that measured ended by {status:?}"));
            report
        }
    };
    if let Err(left) = processes::until_gone(tag, Instant::now(), Duration::from_secs(5)) {
        report.failed += 1;
        report.failures.push(format!("processes are left: {left:?}"));
    }
    report
}

fn failed(what: String) -> Report {
    Report { figure: "-".into(), failed: 1, failures: vec![what], late: Vec::new() }
}
