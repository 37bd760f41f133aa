//! Figure 10: the zygote is killed again and again while units are started and while units run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use offspring::{Offspring, spawn};

use crate::figure::{Job, ms, quantile};
use crate::processes::{Belongings, signal, zygotes};
use crate::values::beside;

const THREADS: u64 = 8;
const EVERY: Duration = Duration::from_millis(50);
const RECOVERED: Duration = Duration::from_millis(30);
const RUNNING: usize = 8;

/// When one was started, and when its answer was there.
type Span = (Instant, Instant);

fn starts(job: &Job) -> Vec<Span> {
    let next = AtomicU64::new(0);
    let one = |n: u64| {
        let began = Instant::now();
        let answer = spawn(n, |n: u64| n.wrapping_mul(3)).and_then(Offspring::wait);
        job.tally
            .check(matches!(answer, Ok(m) if m == n.wrapping_mul(3)), || format!("start {n}: {answer:?}"));
        job.tally.done();
        (began, Instant::now())
    };
    let own = || {
        let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Relaxed)).filter(|n| *n < job.count));
        numbers.map(one).collect::<Vec<Span>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(own)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

pub(crate) fn killed(job: &Job) -> String {
    let belongings = Belongings::now();
    let end = match beside(RUNNING) {
        Ok(end) => end,
        Err(error) => {
            job.tally.fail(error);
            return String::new();
        }
    };
    let (is_over, kills) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let mut spans = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                std::thread::sleep(EVERY);
                for zygote in zygotes() {
                    kills.lock().unwrap().push(Instant::now());
                    signal(zygote, libc::SIGKILL);
                }
            }
        });
        let spans = starts(job);
        is_over.store(true, Relaxed);
        spans
    });
    end().into_iter().for_each(|harmed| job.tally.fail(harmed));
    if let Some(left) = belongings.left_over() {
        job.tally.fail(left);
    }
    let kills = kills.into_inner().unwrap();
    job.tally.check(kills.len() > 3, || format!("there were only {} kills", kills.len()));
    // What was felt of a kill: the longest of the starts that it met, or that came soon after.
    spans.sort_unstable();
    let felt = |kill: &Instant| {
        let met = spans.iter().filter(|(began, ended)| *ended > *kill && *began < *kill + EVERY);
        met.map(|(began, ended)| *ended - *began).max().unwrap_or_default()
    };
    let mut recoveries: Vec<Duration> = kills.iter().map(felt).collect();
    let recovery = quantile(&mut recoveries, 0.99);
    job.tally.bound("recovery, p99", recovery, RECOVERED);
    format!(
        "{} failed; {} zygotes killed, {RUNNING} units ran on; recovered in {} (p99), {} (median)",
        job.tally.failed(),
        kills.len(),
        ms(recovery),
        ms(quantile(&mut recoveries, 0.5))
    )
}
