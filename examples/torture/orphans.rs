//! Figures 2 and 3: parents that are killed, alone or together with their zygote, and who is left.

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use offspring::{Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::copies;
use crate::figure::{Job, Tally, ms, quantile};
use crate::peers;
use crate::processes::{eventually, signal, tag_below, until_gone, zygotes_and_spares};

/// What a unit that obeys has until it is gone.
const OBEDIENT: Duration = Duration::from_millis(50);
/// The grace of those that do not, and what may come on top of it.
const GRACE: Duration = Duration::from_millis(50);
const ON_TOP: Duration = Duration::from_millis(50);
/// Who is there after this is an orphan.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long whoever sleeps here would do so.
const FOR_LONG: Duration = Duration::from_secs(600);

/// Starts units that sleep, one after the other, and says when it is about to start the first.
pub(crate) fn parent() {
    println!("first");
    let _units: Vec<_> = (0..200).map(|_| spawn((), |()| std::thread::sleep(FOR_LONG))).collect();
    std::thread::sleep(FOR_LONG);
}

/// Says when it no longer hears TERM.
#[derive(Serialize, Deserialize)]
struct Deaf;

impl Subprocess for Deaf {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(GRACE);

    fn run(self) {
        // SAFETY: sets a disposition.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        println!("deaf");
        loop {
            std::thread::sleep(FOR_LONG);
        }
    }
}

/// So many deaf units in each parent.
const DEAF: usize = 4;

/// Starts some units that are deaf to TERM, each of which says so.
pub(crate) fn deaf_parent() {
    let _units: Vec<_> = (0..DEAF).map(|_| Offspring::new(Deaf)).collect();
    std::thread::sleep(FOR_LONG);
}

/// Lets parents die, so many at a time; gives how long it took until all of theirs were gone, and how many never were.
fn deaths(
    job: &Job,
    role: &str,
    lanes: usize,
    lines: usize,
    kill: &(dyn Fn(&mut Child) + Sync),
    tally: &Tally,
) -> (Vec<Duration>, u64) {
    let (next, orphans, times) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Vec::new()));
    let one = |n: u64| {
        let tag = tag_below(n);
        let mut command = match &job.peer {
            None => copies::copy(&[role], &tag),
            Some(peer) => peers::command(peer, &[role], &tag),
        };
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return tally.fail(format!("no parent: {error}")),
        };
        let mut output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let mut line = String::new();
        for _ in 0..lines {
            if output.read_line(&mut line).unwrap_or(0) == 0 {
                tally.fail(format!("parent {n} said {line:?} and ended"));
            }
        }
        kill(&mut child);
        let killed = Instant::now();
        let _ = child.wait();
        match until_gone(&tag, killed, PATIENCE) {
            Ok(time) => times.lock().unwrap().push(time),
            Err(left) => {
                orphans.fetch_add(left.len() as u64, Relaxed);
                tally.fail(format!("parent {n} left {left:?}"));
            }
        }
        tally.done();
    };
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                loop {
                    match next.fetch_add(1, Relaxed) {
                        n if n < job.count => one(n),
                        _ => return,
                    }
                }
            });
        }
    });
    (times.into_inner().unwrap(), orphans.into_inner())
}

pub(crate) fn at_any_moment(job: &Job) -> String {
    let kill = |child: &mut Child| {
        let micros = RandomState::new().hash_one(child.id()) % 10_000;
        std::thread::sleep(Duration::from_micros(micros));
        let _ = child.kill();
    };
    let (mut times, orphans) = deaths(job, "parent", 1, 1, &kill, &job.tally);
    let longest = quantile(&mut times, 1.0);
    job.tally.bound("until all are gone", longest, OBEDIENT);
    said(orphans, &mut times, job)
}

pub(crate) fn with_the_zygote(job: &Job) -> String {
    let kill = |child: &mut Child| {
        let mut zygotes = Vec::new();
        // A list of children may lack one while others end.
        let is_there = job.peer.is_some()
            || eventually(|| {
                zygotes = zygotes_and_spares(child.id()).0;
                !zygotes.is_empty()
            });
        job.tally.check(is_there, || "a parent has no zygote".into());
        let kill_zygotes = || zygotes.iter().for_each(|pid| signal(*pid, libc::SIGKILL));
        // In turns, who is the first.
        let is_first = child.id().is_multiple_of(2);
        if is_first {
            kill_zygotes();
        }
        let _ = child.kill();
        if !is_first {
            kill_zygotes();
        }
    };
    let (mut times, orphans) = deaths(job, "deaf", 2, DEAF, &kill, &job.tally);
    let longest = quantile(&mut times, 1.0);
    job.tally.bound("until all are gone", longest, GRACE + ON_TOP);
    let grace = if job.peer.is_none() { format!(", with a grace of {}", ms(GRACE)) } else { String::new() };
    said(orphans, &mut times, job) + &grace
}

fn said(orphans: u64, times: &mut [Duration], job: &Job) -> String {
    if times.is_empty() {
        return format!("{orphans} orphans, of each parent");
    }
    let of = match job.tally.failed() {
        0 => "; all".into(),
        parents => format!(" of {parents} parents; those of the others"),
    };
    let (p99, longest) = (ms(quantile(times, 0.99)), ms(quantile(times, 1.0)));
    format!("{orphans} orphans{of} gone after {p99} (p99), {longest} at most")
}
