//! What is known of processes from outside: who lives, whose they are, what they hold.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The variable by which all that a figure has started is found.
pub(crate) const TAG: &str = "OFFSPRING_TORTURE";

/// This process's own tag.
pub(crate) fn own_tag() -> String {
    std::env::var(TAG).unwrap_or_default()
}

/// A tag for something below this process, so that it has this one's tag as well.
pub(crate) fn tag_below(name: impl std::fmt::Display) -> String {
    format!("{}.{name}", own_tag())
}

/// All live processes, zombies left out, with that tag or one below it.
pub(crate) fn tagged(tag: &str) -> Vec<u32> {
    let entry = format!("{TAG}={tag}");
    let processes = std::fs::read_dir("/proc")
        .expect("there is /proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let has_it = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| {
            variable
                .strip_prefix(entry.as_bytes())
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'.')))
        })
    };
    processes.filter(has_it).filter(|pid| is_alive(*pid)).collect()
}

/// Kills all that have a tag, which somebody of this run has given them.
pub(crate) fn kill_tagged(tag: &str) {
    // Who is about to make another is found the next time.
    for _ in 0..100 {
        let left = tagged(tag);
        let left: Vec<u32> = left.into_iter().filter(|pid| *pid != std::process::id()).collect();
        if left.is_empty() {
            return;
        }
        left.into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until nobody with that tag lives: how long that took, or who is left after that time (and is killed).
pub(crate) fn until_gone(tag: &str, since: Instant, patience: Duration) -> Result<Duration, Vec<u32>> {
    loop {
        let left = tagged(tag);
        let elapsed = since.elapsed();
        if left.is_empty() {
            return Ok(elapsed);
        }
        if elapsed > patience {
            kill_tagged(tag);
            return Err(left);
        }
        // Whoever looked all the time would keep them from the processor that they need to end.
        left.iter().for_each(|pid| wait_for_end(*pid, patience.saturating_sub(since.elapsed())));
    }
}

/// Waits until that process has ended, or so long at most.
fn wait_for_end(pid: u32, time: Duration) {
    // SAFETY: pidfd_open(2) has no conditions; what it gives is nobody else's.
    let pidfd = unsafe {
        let made = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if made < 0 {
            return;
        }
        OwnedFd::from_raw_fd(made as i32)
    };
    let mut end = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid record.
    unsafe { libc::poll(&raw mut end, 1, time.as_millis() as i32) };
}

/// Sends a signal to a process that this run has started.
pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: kill(2) has no conditions.
    unsafe { libc::kill(pid as i32, signal) };
}

/// The letter that stands for a process's state in /proc: `T` for stopped.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

pub(crate) fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !['Z', 'X'].contains(&state))
}

/// Whether it is so within some seconds, where nothing tells of it.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

/// A process's zygotes, and the clones that are no units (yet): those have the zygote's name, but not what it shares.
pub(crate) fn zygotes_and_spares(parent: u32) -> (Vec<u32>, Vec<u32>) {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    let is_named = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("offspring"))
    };
    let shares = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/maps"))
            .is_ok_and(|maps| maps.contains("/memfd:offspring"))
    };
    children.filter(|pid| is_alive(*pid)).filter(is_named).partition(shares)
}

/// This process's zygotes.
pub(crate) fn zygotes() -> Vec<u32> {
    zygotes_and_spares(std::process::id()).0
}

/// The names in a directory of a process's in /proc, without the one by which this list is read.
pub(crate) fn entries(pid: u32, directory: &str) -> BTreeSet<String> {
    let place = format!("/proc/{pid}/{directory}");
    let list = std::fs::read_dir(&place).into_iter().flatten().flatten();
    let names: Vec<String> = list.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.into_iter().filter(|name| std::fs::symlink_metadata(format!("{place}/{name}")).is_ok()).collect()
}

/// Private memory of a process, in KiB.
pub(crate) fn private_memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let fields = text.lines().filter(|line| line.starts_with("Private_"));
    fields.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// A child of this process that has not been reaped, dead or alive; 0 stands for one that lives.
pub(crate) fn any_child() -> Option<i32> {
    // SAFETY: null asks for no status.
    let child = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
    (child != -1).then_some(child)
}

/// What this process had before its first unit, to be compared with what it has after the library was shut down.
pub(crate) struct Belongings {
    descriptors: BTreeSet<String>,
    threads: BTreeSet<String>,
}

impl Belongings {
    pub(crate) fn now() -> Self {
        let own = std::process::id();
        Self { descriptors: entries(own, "fd"), threads: entries(own, "task") }
    }

    /// Shuts the library down; what is left over all the same.
    pub(crate) fn left_over(&self) -> Option<String> {
        offspring::shutdown();
        let own = std::process::id();
        if let Some(child) = any_child() {
            return Some(format!("a child is left: waitpid gives {child}"));
        }
        if !eventually(|| entries(own, "fd") == self.descriptors) {
            return Some(format!("descriptors: {:?}, before {:?}", entries(own, "fd"), self.descriptors));
        }
        // One that was joined is in the list until the kernel has done away with it.
        if !eventually(|| entries(own, "task").is_subset(&self.threads)) {
            return Some(format!("threads: {:?}, before {:?}", entries(own, "task"), self.threads));
        }
        None
    }
}
