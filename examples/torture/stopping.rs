//! Figure 8: how long it takes to end units, from the shutdown until their end is seen.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use offspring::{Offspring, Process, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

use crate::figure::{Job, ms, quantile};
use crate::processes::{eventually, state};

const OBEYED: Duration = Duration::from_millis(5);
const GRACE: Duration = Duration::from_millis(50);
const ON_TOP: Duration = Duration::from_millis(20);
/// Of those that take the grace, so many at a time.
const LANES: usize = 4;

#[derive(Serialize, Deserialize)]
struct Sleeps {
    deaf: bool,
}

impl Subprocess for Sleeps {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(GRACE);

    fn run(self) {
        if self.deaf {
            // SAFETY: sets a disposition.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        }
        println!("here");
        loop {
            std::thread::sleep(Duration::from_secs(600));
        }
    }
}

/// From the shutdown until the process's own descriptor tells of its end.
fn shutdown(process: &Process) -> Option<Duration> {
    let mut poll = libc::pollfd { fd: process.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let began = Instant::now();
    process.begin_shutdown();
    // SAFETY: one valid record.
    let ended = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
    (ended == 1).then(|| began.elapsed())
}

fn one(deaf: bool, stopped: bool) -> Result<Duration, String> {
    let unit = Offspring::builder(Sleeps { deaf }).stdout(Stdio::piped()).spawn();
    let mut unit = unit.map_err(|error| error.to_string())?;
    let mut output = unit.take_stdout().ok_or("no output")?;
    output.read_exact(&mut [0; 5]).map_err(|error| format!("it does not run: {error}"))?;
    let process = unit.process().ok_or("no process")?.clone();
    if stopped {
        process.send_signal(libc::SIGSTOP).map_err(|error| error.to_string())?;
        if !eventually(|| state(process.id()) == Some('T')) {
            return Err("it does not stop".into());
        }
    }
    let time = shutdown(&process).ok_or("it does not end")?;
    match unit.wait() {
        Err(error) if error.death().is_some() => Ok(time),
        other => Err(format!("after its shutdown: {other:?}")),
    }
}

/// So many of them; their times.
fn kind(job: &Job, what: &str, lanes: usize, how: fn(u64) -> (bool, bool)) -> Vec<Duration> {
    let (next, times) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= job.count {
                        return;
                    }
                    let (deaf, stopped) = how(n);
                    match one(deaf, stopped) {
                        Ok(time) => times.lock().unwrap().push(time),
                        Err(error) => job.tally.fail(format!("{what}: {error}")),
                    }
                    job.tally.done();
                }
            });
        }
    });
    times.into_inner().unwrap()
}

pub(crate) fn all(job: &Job) -> String {
    let mut obeyed = kind(job, "obeyed", 1, |_| (false, false));
    let obeyed = quantile(&mut obeyed, 0.99);
    job.tally.bound("TERM obeyed, p99", obeyed, OBEYED);
    let mut deaf = kind(job, "ignored", LANES, |_| (true, false));
    for time in deaf.iter().filter(|time| **time < GRACE) {
        job.tally.fail(format!("killed before its grace was over: {time:?}"));
    }
    // Half of them would obey.
    let mut stopped = kind(job, "stopped", LANES, |n| (n.is_multiple_of(2), true));
    let late = |what: &str, times: &mut Vec<Duration>| {
        let longest = quantile(times, 1.0);
        job.tally.bound(what, longest, GRACE + ON_TOP);
        ms(longest)
    };
    let (deaf, stopped) = (late("TERM ignored", &mut deaf), late("stopped", &mut stopped));
    format!(
        "{} wrong; obeyed in {} (p99); with a grace of {}: ignored, gone after {deaf} at most; stopped, after {stopped} at most",
        job.tally.failed(),
        ms(obeyed),
        ms(GRACE)
    )
}
