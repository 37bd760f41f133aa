//! Figure 7: large values in both directions at once, and what else goes on meanwhile.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use offspring::{Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::figure::{Job, ms, quantile};

const SIZE: usize = 64 << 20;
/// Two at a time, so that one comes while the other goes.
const LANES: usize = 2;
const BESIDE: usize = 32;
/// Nothing may wait longer.
const STALL: Duration = Duration::from_secs(1);

/// A unit that runs until its standard input ends.
#[derive(Serialize, Deserialize)]
pub(crate) struct Runs;

impl Subprocess for Runs {
    type Output = u32;

    fn run(self) -> u32 {
        let _ = std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new());
        7
    }
}

/// Starts units that run, and gives what ends them: how many were harmed meanwhile.
pub(crate) fn beside(count: usize) -> Result<impl FnOnce() -> Vec<String>, offspring::Error> {
    let units = (0..count).map(|_| Offspring::builder(Runs).stdin(Stdio::piped()).spawn());
    let mut units: Vec<_> = units.collect::<Result<_, _>>()?;
    Ok(move || {
        let mut harmed = Vec::new();
        for unit in &mut units {
            drop(unit.take_stdin());
        }
        for unit in units {
            match unit.wait() {
                Ok(7) => {}
                other => harmed.push(format!("what ran beside: {other:?}")),
            }
        }
        harmed
    })
}

pub(crate) fn both_ways(job: &Job) -> String {
    let tally = &job.tally;
    let end = match beside(BESIDE) {
        Ok(end) => end,
        Err(error) => {
            tally.fail(error);
            return String::new();
        }
    };
    // Not all alike, so that what is exchanged shows.
    let content: Vec<u8> = (0..SIZE).map(|n| (n * 31 + n / 4096) as u8).collect();
    let (next, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let (times, small) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let began = Instant::now();
    let time = |into: &Mutex<Vec<Duration>>, began: Instant| into.lock().unwrap().push(began.elapsed());
    std::thread::scope(|scope| {
        let carriers: Vec<_> = (0..LANES)
            .map(|_| {
                scope.spawn(|| {
                    while next.fetch_add(1, Relaxed) < job.count {
                        let mut bytes = ByteBuf::from(content.clone());
                        bytes[SIZE / 2] ^= 1;
                        let began = Instant::now();
                        let back = spawn(bytes, |mut bytes: ByteBuf| {
                            bytes[SIZE / 2] ^= 1;
                            bytes
                        });
                        match back.and_then(Offspring::wait) {
                            Ok(back) => tally.check(*back == content, || "another value came back".into()),
                            Err(error) => tally.fail(error),
                        }
                        time(&times, began);
                        tally.done();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let began = Instant::now();
                let answer = spawn(1, |n: u32| n + 1).and_then(Offspring::wait);
                tally.check(matches!(answer, Ok(2)), || format!("a small one beside: {answer:?}"));
                time(&small, began);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        carriers.into_iter().for_each(|carrier| drop(carrier.join()));
        done.store(true, Relaxed);
    });
    let rate = (2 * SIZE) as f64 * job.count as f64 / 1e6 / began.elapsed().as_secs_f64();
    end().into_iter().for_each(|harmed| tally.fail(harmed));
    let longest = quantile(&mut times.into_inner().unwrap(), 1.0);
    let small = quantile(&mut small.into_inner().unwrap(), 1.0);
    tally.bound("there and back", longest, STALL);
    tally.bound("a small unit beside", small, STALL);
    format!(
        "{} wrong; there and back in {} at most, a small unit beside in {} at most; {rate:.0} MB/s",
        tally.failed(),
        ms(longest),
        ms(small)
    )
}
