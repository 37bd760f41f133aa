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
    let (mut report, mut ended) = (None, None);
    let mut patience = None;
    loop {
        match told.recv_timeout(Duration::from_millis(20)) {
            Ok(Message::Done(count)) => done(count),
            Ok(Message::Report(found)) => report = Some(found),
            // Nobody has the pipe any more.
            Err(RecvTimeoutError::Disconnected) if ended.is_some() => break,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(5)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() {
            ended = child.try_wait().ok().flatten();
        }
        // What it said last may be still on its way.
        if ended.is_some() {
            let end = *patience.get_or_insert_with(|| Instant::now() + Duration::from_secs(5));
            if report.is_some() || Instant::now() > end {
                break;
            }
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
