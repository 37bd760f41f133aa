//! Figures 1 and 6: many starts, none wrong, and nothing that stays.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use offspring::{Offspring, spawn};

use crate::figure::{Job, Tally, number};
use crate::processes::{Belongings, entries, eventually, private_memory, zygotes, zygotes_and_spares};

/// At once: what two processors are kept busy by.
const THREADS: u64 = 4;

/// No descriptor comes or goes for so long.
const SETTLED: Duration = Duration::from_millis(500);

/// So much memory may come, in KiB.
const GROWTH: i64 = 1024;

/// Starts so many, from as many threads: each has a number, and its answer must be that one's.
fn rounds(threads: u64, count: u64, from: u64, tally: &Tally) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= count {
                        return;
                    }
                    let n = from + n;
                    match spawn(n, |n: u64| n.wrapping_mul(3)).and_then(Offspring::wait) {
                        Ok(answer) if answer == n.wrapping_mul(3) => {}
                        other => tally.fail(format!("start {n}: {other:?}")),
                    }
                    tally.done();
                }
            });
        }
    });
}

/// Descriptors, threads and KiB in the parent; descriptors and KiB in the zygote.
fn footprint(zygote: u32, tally: &Tally) -> [i64; 5] {
    let own = std::process::id();
    // Spares come and go; after a second without a start there are none.
    tally.check(eventually(|| zygotes_and_spares(own).1.is_empty()), || "the spares stay".into());
    let count = |pid, directory| entries(pid, directory).len() as i64;
    // What belonged to the last of them is let go of a moment later.
    let (mut descriptors, mut since) = (count(own, "fd"), Instant::now());
    let is_settled = eventually(|| {
        let now = count(own, "fd");
        if now != descriptors {
            (descriptors, since) = (now, Instant::now());
        }
        since.elapsed() > SETTLED
    });
    tally.check(is_settled, || "the number of descriptors does not come to rest".into());
    [
        count(own, "fd"),
        count(own, "task"),
        private_memory(own) as i64,
        count(zygote, "fd"),
        private_memory(zygote) as i64,
    ]
}

pub(crate) fn many(job: &Job) -> String {
    let tally = &job.tally;
    let belongings = Belongings::now();
    rounds(THREADS, job.count / 100, 0, tally);
    // A list of children may lack one while others end.
    let mut zygote = 0;
    let is_there = eventually(|| {
        zygote = zygotes().first().copied().unwrap_or(0);
        zygote != 0
    });
    if !is_there {
        tally.fail("there is no zygote");
        return String::new();
    }
    let before = footprint(zygote, tally);
    let began = Instant::now();
    rounds(THREADS, job.count, 1 << 40, tally);
    let rate = job.count as f64 / began.elapsed().as_secs_f64();
    let after = footprint(zygote, tally);
    let grown: Vec<i64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    let wrong = tally.failed();
    let text = format!(
        "{wrong} wrong; parent {:+} descriptors, {:+} threads, {:+} KiB; zygote {:+} descriptors, {:+} KiB; {rate:.0} starts/s",
        grown[0], grown[1], grown[2], grown[3], grown[4]
    );
    tally.check(grown[0] == 0 && grown[1] == 0 && grown[3] == 0, || format!("something stays: {text}"));
    tally.check(grown[2] < GROWTH && grown[4] < GROWTH, || format!("memory grows: {text}"));
    // All at once, and there is one zygote for them, still the same.
    rounds(64, job.count / 50, 1 << 50, tally);
    tally
        .check(eventually(|| zygotes() == [zygote]), || format!("zygotes: {:?}, before {zygote}", zygotes()));
    if let Some(left) = belongings.left_over() {
        tally.fail(left);
    }
    text
}

extern "C" fn leave() {
    // SAFETY: ends the process, with another status than success.
    unsafe { libc::_exit(3) }
}

extern "C" fn die() {
    // SAFETY: raise(3) has no conditions.
    unsafe { libc::raise(libc::SIGKILL) };
}

/// Tells its number, and is gone the moment after that was sent: by returning, by `_exit`, or by KILL, in turns.
fn last_word(n: u64) -> u64 {
    let at_exit = [None, Some(leave as extern "C" fn()), Some(die)][n as usize % 3];
    if let Some(at_exit) = at_exit {
        // SAFETY: a function that lives as long as the program, called at the exit that follows upon the result.
        unsafe { libc::atexit(at_exit) };
    }
    n
}

pub(crate) fn last_words(job: &Job) -> String {
    if let Some(peer) = &job.peer {
        return crate::peers::measure(peer, &["exits", &job.count.to_string()], &job.tally);
    }
    let heard: Vec<AtomicU8> = (0..job.count).map(|_| AtomicU8::new(0)).collect();
    let next = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= job.count {
                        return;
                    }
                    // Half of them are waited for to their end, half for their result alone.
                    let unit = spawn(n, last_word);
                    let result =
                        unit.and_then(|unit| if n.is_multiple_of(2) { unit.wait() } else { unit.result() });
                    match result.as_ref().map(|told| heard.get(*told as usize)) {
                        Ok(Some(heard)) => drop(heard.fetch_add(1, Relaxed)),
                        Ok(None) => job.tally.fail(format!("unit {n}: told {result:?}")),
                        Err(error) => job.tally.fail(format!("unit {n}: {error}")),
                    }
                    job.tally.done();
                }
            });
        }
    });
    let rate = job.count as f64 / began.elapsed().as_secs_f64();
    let lost = heard.iter().filter(|heard| heard.load(Relaxed) == 0).count();
    let doubled = heard.iter().filter(|heard| heard.load(Relaxed) > 1).count();
    job.tally.check(lost == 0 && doubled == 0, || format!("lost {lost}, doubled {doubled}"));
    format!("{} lost, {} doubled; {rate:.0} results/s", number(lost as u64), number(doubled as u64))
}
