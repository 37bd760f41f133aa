//! What does not show in a few starts: orphans of parents killed at any moment, and what many starts leave behind.
//!
//! `cargo bench --bench endurance`, or `-- FRACTION` for a part of it (`0.05`). Prints each figure; exits 1 if one is not as
//! promised. The parents that are killed are this program again.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use offspring::{Offspring, spawn};

const TAG: &str = "OFFSPRING_BENCH";

/// Every live process with that tag in its environment.
fn tagged(tag: &str) -> Vec<u32> {
    let entry = format!("{TAG}={tag}\0");
    let list = std::fs::read_dir("/proc").unwrap();
    let pids = list.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(entry.len()).any(|window| window == entry.as_bytes())
    })
    .collect()
}

/// A parent to be killed: starts units that sleep, one after the other.
fn parent() {
    let _units: Vec<_> =
        (0..).map(|_| spawn((), |()| std::thread::sleep(Duration::from_secs(600)))).take(200).collect();
    std::thread::sleep(Duration::from_secs(600));
}

/// Parents that are killed at a random moment in the first ten milliseconds; the orphans, and the longest time until
/// nobody was left.
fn killed_parents(count: usize) -> (usize, Duration) {
    let (mut orphans, mut longest) = (0, Duration::ZERO);
    for n in 0..count {
        let tag = format!("{}-{n}", std::process::id());
        let mut command = Command::new("/proc/self/exe");
        let mut child = command
            .arg("--parent")
            .env(TAG, &tag)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Its first use comes some milliseconds after its start.
        let micros = RandomState::new().hash_one(n) % 12_000;
        std::thread::sleep(Duration::from_micros(micros));
        child.kill().unwrap();
        child.wait().unwrap();
        let killed = Instant::now();
        loop {
            let left = tagged(&tag);
            if left.is_empty() {
                longest = longest.max(killed.elapsed());
                break;
            }
            if killed.elapsed() > Duration::from_secs(2) {
                orphans += left.len();
                // Ours: they carry this run's tag.
                // SAFETY: kill(2) has no conditions.
                left.iter().for_each(|pid| assert_eq!(unsafe { libc::kill(*pid as i32, libc::SIGKILL) }, 0));
                break;
            }
        }
    }
    (orphans, longest)
}

fn entries(directory: &str) -> BTreeSet<String> {
    let list = std::fs::read_dir(directory).unwrap();
    list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Private memory of a process, in KiB.
fn private(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let fields = text.lines().filter(|line| line.starts_with("Private_"));
    fields.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

/// This process's zygotes, and the clones that are no units (yet): those have the zygote's name, but not what it shares.
fn zygotes_and_spares() -> (Vec<u32>, Vec<u32>) {
    let children = std::fs::read_dir("/proc/self/task").unwrap().flat_map(|task| {
        let list = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    let is_named = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("offspring"))
    };
    let shares = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/maps"))
            .is_ok_and(|maps| maps.contains("/memfd:offspring"))
    };
    children.filter(is_named).partition(shares)
}

fn rounds(count: usize, from: u64) {
    for n in 0..count as u64 {
        assert_eq!(
            spawn(from + n, |n: u64| n.wrapping_mul(3)).and_then(Offspring::wait).unwrap(),
            (from + n).wrapping_mul(3)
        );
    }
}

/// What one hundredth of the starts and all of them leave: descriptors, threads and KiB in the parent; descriptors and KiB
/// in the zygote.
fn footprint(zygote: u32) -> [u64; 5] {
    // Spares come and go; after a second without a start there are none.
    let began = Instant::now();
    while !zygotes_and_spares().1.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "the spares stay");
        std::thread::sleep(Duration::from_millis(10));
    }
    let count = |directory: &str| entries(directory).len() as u64;
    [
        count("/proc/self/fd"),
        count("/proc/self/task"),
        private(std::process::id()),
        count(&format!("/proc/{zygote}/fd")),
        private(zygote),
    ]
}

fn main() {
    if std::env::args().any(|argument| argument == "--parent") {
        return parent();
    }
    let fraction: f64 = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(1.0);
    let times = |count: f64| (count * fraction).ceil() as usize;
    let mut good = true;
    let mut say = |promise: &str, figure: String, is_so: bool| {
        println!("{:<58} {figure:<44} {}", promise, if is_so { "pass" } else { "FAIL" });
        good &= is_so;
    };

    let parents = times(1000.0);
    let (orphans, longest) = killed_parents(parents);
    say(
        &format!("{parents} parents killed at random: no orphan"),
        format!("{orphans}; all gone {longest:?} after, at most"),
        orphans == 0,
    );

    let starts = times(20_000.0).max(200);
    rounds(starts / 100, 0);
    let zygote = zygotes_and_spares().0[0];
    let before = footprint(zygote);
    rounds(starts, 1 << 40);
    let after = footprint(zygote);
    let grown: Vec<i64> =
        before.iter().zip(after).map(|(before, after)| after as i64 - *before as i64).collect();
    say(
        &format!("{starts} starts: nothing left in parent and zygote"),
        format!(
            "fds {:+}, threads {:+}, {:+} KiB; fds {:+}, {:+} KiB",
            grown[0], grown[1], grown[2], grown[3], grown[4]
        ),
        grown[0] == 0 && grown[1] == 0 && grown[3] == 0 && grown[2] < 1024 && grown[4] < 1024,
    );

    let each = times(200.0);
    std::thread::scope(|scope| {
        for thread in 0..64 {
            scope.spawn(move || rounds(each, thread << 32));
        }
    });
    let (zygotes, _) = zygotes_and_spares();
    say(
        &format!("64 threads x {each} starts at once: all right, one zygote"),
        zygotes.len().to_string(),
        zygotes == [zygote],
    );

    offspring::shutdown();
    // SAFETY: null asks for no status.
    let child = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
    say("after shutdown: no child", format!("waitpid gives {child}"), child == -1);
    std::process::exit(i32::from(!good));
}
