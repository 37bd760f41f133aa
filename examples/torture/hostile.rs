//! Figure 9: parents that do to their children, or to themselves, what makes it hard to learn how a child ended.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use offspring::{Error, Offspring, spawn};

use crate::copies;
use crate::figure::{Job, Message, Tally};
use crate::hostility::{HOSTILITIES, under};
use crate::peers;
use crate::processes::tag_below;

const THREADS: u64 = 4;

/// The rounds in a parent that does that.
pub(crate) fn role(hostility: &str, count: u64) {
    let tally = Tally::new();
    let figure = under(hostility, &tally, || rounds(count, &tally));
    Message::Report(tally.into_report(figure)).say();
}

pub(crate) fn all(job: &Job) -> String {
    let mut said = Vec::new();
    for hostility in HOSTILITIES {
        let count = job.count.to_string();
        if let Some(peer) = &job.peer {
            said.push(format!(
                "{hostility}: {}",
                peers::measure(peer, &["hostile", hostility, &count], &job.tally)
            ));
            continue;
        }
        let tag = tag_below(hostility);
        let limit = Duration::from_secs(100 + job.count / 100);
        let command = copies::copy(&["hostile", hostility, &count], &tag);
        let report = copies::run(command, &tag, limit, &mut |_| job.tally.done());
        said.push(format!("{hostility} {}", job.tally.adopt(hostility, report)));
    }
    let wrong = job.tally.failed();
    match job.peer {
        None => format!("{wrong} wrong ({})", said.join(", ")),
        Some(_) => said.join("; "),
    }
}

/// Whether the kernel tells the status of a child that was reaped by somebody else.
fn tells() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

fn is_right(status: ExitStatus, expected: ExitStatus, tells: bool) -> bool {
    let is_lost = status.code().is_none() && status.signal().is_none();
    status.code() == expected.code() && status.signal() == expected.signal() || is_lost && !tells
}

/// One that returns, one that exits with a code of its own, one that aborts, in turns.
fn one(n: u64, tells: bool) -> Result<(), String> {
    let died = |unit: Result<Offspring<()>, Error>, expected: i32| match unit.and_then(Offspring::wait) {
        Err(error) => match error.death() {
            Some(death) if is_right(death.status(), ExitStatus::from_raw(expected), tells) => Ok(()),
            _ => Err(error.to_string()),
        },
        Ok(()) => Err("a value".into()),
    };
    match n % 3 {
        0 => {
            let unit = spawn(n, |n: u64| n + 1).map_err(|error| error.to_string())?;
            let process = unit.process().cloned();
            let value = unit.wait().map_err(|error| error.to_string())?;
            let status = process.and_then(|process| process.exit_status());
            let is_good = status.map_or(!tells, |status| is_right(status, ExitStatus::from_raw(0), tells));
            if value == n + 1 && is_good { Ok(()) } else { Err(format!("value {value}, status {status:?}")) }
        }
        1 => {
            let code = (n % 255 + 1) as i32;
            died(spawn(code, |code: i32| -> () { std::process::exit(code) }), code << 8)
        }
        _ => died(spawn((), |()| -> () { std::process::abort() }), libc::SIGABRT),
    }
}

fn rounds(count: u64, tally: &Tally) -> String {
    let (next, tells, began) = (AtomicU64::new(0), tells(), std::time::Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= count {
                        return;
                    }
                    if let Err(what) = one(n, tells) {
                        tally.fail(format!("start {n}: {what}"));
                    }
                    tally.done();
                }
            });
        }
    });
    format!("{:.0}/s", count as f64 / began.elapsed().as_secs_f64())
}
