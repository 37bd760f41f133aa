//! A figure: what is promised, how often that is tried, and what came of it.

use std::fmt::Display;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// One row of the table.
pub(crate) struct Figure {
    pub(crate) number: u32,
    /// How often, by default; `LONG` times as often by night.
    pub(crate) count: u64,
    /// The least that tells anything.
    pub(crate) least: u64,
    pub(crate) promise: &'static str,
    pub(crate) measure: Measure,
}

/// Runs in a process of its own, and says what it found; what is not as promised goes to the tally.
pub(crate) type Measure = fn(&Job) -> String;

/// The nightly counts are so many times the usual ones.
pub(crate) const LONG: u64 = 5;

/// What a figure is told.
pub(crate) struct Job {
    pub(crate) count: u64,
    /// Whose figure it is: a peer's name, or nobody's for ours.
    pub(crate) peer: Option<String>,
    pub(crate) tally: Tally,
}

/// What came of it, as it crosses from the process that measured.
#[derive(Serialize, Deserialize, Default)]
pub(crate) struct Report {
    pub(crate) figure: String,
    /// How often it was not as promised, and the first of these.
    pub(crate) failed: u64,
    pub(crate) failures: Vec<String>,
    /// What took longer than promised.
    pub(crate) late: Vec<String>,
}

/// What a process that measures says on its standard output, a line each.
#[derive(Serialize, Deserialize)]
pub(crate) enum Message {
    /// So many are done.
    Done(u64),
    Report(Report),
}

impl Message {
    pub(crate) fn say(&self) {
        let mut out = std::io::stdout().lock();
        let line = serde_json::to_string(self).expect("a message is JSON");
        // Whoever asked may be gone.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// The failures that are told in full.
const TOLD: usize = 5;

/// Counts what is done and what goes wrong, from any thread.
pub(crate) struct Tally {
    report: Mutex<Report>,
    done: AtomicU64,
    said: Mutex<Instant>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self { report: Mutex::default(), done: AtomicU64::new(0), said: Mutex::new(Instant::now()) }
    }

    /// One more is done, well or not.
    pub(crate) fn done(&self) {
        self.have(1);
    }

    fn have(&self, more: u64) {
        let done = self.done.fetch_add(more, Relaxed) + more;
        let Ok(mut said) = self.said.try_lock() else { return };
        if said.elapsed() > Duration::from_millis(100) {
            *said = Instant::now();
            Message::Done(done).say();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap());
    }

    pub(crate) fn fail(&self, what: impl Display) {
        self.change(|report| {
            report.failed += 1;
            if report.failures.len() < TOLD {
                report.failures.push(what.to_string());
            }
        });
    }

    /// Fails if it is not so.
    pub(crate) fn check(&self, is_so: bool, what: impl FnOnce() -> String) {
        if !is_so {
            self.fail(what());
        }
    }

    /// What was promised to take no longer.
    pub(crate) fn bound(&self, what: &str, time: Duration, limit: Duration) {
        if time > limit {
            self.change(|report| report.late.push(format!("{what}: {time:.1?}, for {limit:.1?}")));
        }
    }

    /// What a part of it, that was measured in a process of its own, found.
    pub(crate) fn adopt(&self, part: &str, found: Report) -> String {
        self.change(|report| {
            report.failed += found.failed;
            let room = TOLD.saturating_sub(report.failures.len());
            report.failures.extend(found.failures.iter().take(room).map(|what| format!("{part}: {what}")));
            report.late.extend(found.late.iter().map(|what| format!("{part}: {what}")));
        });
        found.figure
    }

    pub(crate) fn failed(&self) -> u64 {
        self.report.lock().unwrap().failed
    }

    pub(crate) fn into_report(self, figure: String) -> Report {
        Report { figure, ..self.report.into_inner().unwrap() }
    }
}

/// The time that so much of them does not exceed; zero if there are none.
pub(crate) fn quantile(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    let place = (times.len() as f64 * part).ceil() as usize;
    times.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

/// A time in milliseconds.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// A number as people read it.
pub(crate) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
