//! The limits of a process.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits::Limit;

/// The step in which the descriptors of a value are duplicated.
pub(crate) const PACK: &str = "pack";

fn of(resource: Resource, name: &str) -> String {
    let limit = getrlimit(resource).current;
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    format!("; the limit is {limit} ({name})")
}

/// Why a descriptor has not arrived here: the kernel drops those that there is no room for (unix(7)).
pub(crate) fn no_room() -> String {
    format!("too many open files{}", of(Resource::Nofile, "RLIMIT_NOFILE"))
}

/// Which limit an error of the system speaks of that came of that step, in words for the end of its message.
pub(crate) fn hint(step: &str, error: &io::Error) -> Option<String> {
    match error.raw_os_error()? {
        libc::EMFILE if step == PACK => Some(of(Resource::Nofile, "RLIMIT_NOFILE")),
        libc::EMFILE => Some(of(Resource::Nofile, "RLIMIT_NOFILE; each unit takes two descriptors")),
        libc::ENFILE => Some("; the limit is the whole system's (fs.file-max)".into()),
        // fork(2): also a cgroup's pids.max, and the system's own.
        libc::EAGAIN if step.starts_with("clone") => {
            Some(of(Resource::Nproc, "RLIMIT_NPROC, or a cgroup's pids.max"))
        }
        _ => None,
    }
}

/// Sets a limit of this process, for good. An error, if it would have to be raised and may not be.
pub(crate) fn set(limit: Limit) -> io::Result<()> {
    let (resource, most) = match limit {
        Limit::Memory(bytes) => (Resource::As, bytes),
        Limit::CpuTime(time) => (Resource::Cpu, time.as_secs()),
        Limit::OpenFiles(count) => (Resource::Nofile, count),
        Limit::Processes(count) => (Resource::Nproc, count),
        Limit::CoreSize(bytes) => (Resource::Core, bytes),
        Limit::FileSize(bytes) => (Resource::Fsize, bytes),
    };
    let maximum = match limit {
        // XCPU first, and KILL for who goes on.
        Limit::CpuTime(_) => {
            let next = most.saturating_add(1);
            getrlimit(resource).maximum.map_or(next, |maximum| next.min(maximum.max(most)))
        }
        Limit::Memory(_) => {
            let there = address_space().unwrap_or(0);
            if there >= most {
                let what = format!("the process takes {there} bytes before it begins");
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, what));
            }
            most
        }
        _ => most,
    };
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(maximum) })?)
}

/// How many bytes of address space this process takes.
fn address_space() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').next()?.parse().ok()?;
    // SAFETY: sysconf(3) has no conditions.
    Some(pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64)
}

/// Adds to this process's niceness, as nice(2).
pub(crate) fn be_nicer(by: i32) -> io::Result<()> {
    Ok(rustix::process::nice(by).map(drop)?)
}

/// From now on this process may have as many files open as it can be given.
pub(crate) fn raise_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// How often the kernel has killed a process for want of memory since the system began, in whatever group of processes.
pub(crate) fn memory_kills() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/vmstat").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

/// The control group (of version 2) to which the memory of that process is counted, also of one that has ended and was not reaped; `None`
/// where that is not told.
pub(crate) fn memory_group(pid: u32) -> Option<PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    group_in(&groups, Path::new("/sys/fs/cgroup"))
}

const GROUP_COUNTS: &str = "memory.events.local";

/// The same, of what proc_pid_cgroup(5) says.
fn group_in(groups: &str, root: &Path) -> Option<PathBuf> {
    let own =
        groups.lines().find_map(|line| line.strip_prefix("0::/")).filter(|own| !own.starts_with(".."))?;
    let place = root.join(own);
    // Where a group counts nothing of its own, the one above it does.
    let mut above = place.ancestors().take_while(|place| place.starts_with(root));
    above.find(|place| place.join(GROUP_COUNTS).exists()).map(Path::to_owned)
}

/// How often the kernel has killed a process of that control group for want of memory.
pub(crate) fn memory_kills_of(group: &Path) -> Option<u64> {
    let counts = std::fs::read_to_string(group.join(GROUP_COUNTS)).ok()?;
    counts.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_named_where_there_is_one() {
        let hint = |step, errno| hint(step, &io::Error::from_raw_os_error(errno));
        assert!(hint("socketpair", libc::EMFILE).unwrap().contains("RLIMIT_NOFILE"));
        assert!(hint("clone, in the zygote", libc::EAGAIN).unwrap().contains("RLIMIT_NPROC"));
        assert_eq!(hint("sending its context", libc::EAGAIN), None);
        assert_eq!(hint("clone", libc::ENOENT), None);
        assert_eq!(super::hint("clone", &io::Error::other("of ours")), None);
    }
    #[test]
    fn the_group_is_the_nearest_that_counts() {
        let root = std::env::temp_dir().join(format!("offspring-groups-{}", std::process::id()));
        let group = root.join("a/b");
        std::fs::create_dir_all(group.join("c")).unwrap();
        std::fs::write(group.join(GROUP_COUNTS), "low 0\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        let found = |groups| group_in(groups, &root);
        assert_eq!(found("0::/a/b\n"), Some(group.clone()));
        assert_eq!(found("4:memory:/x\n0::/a/b/c\n"), Some(group.clone()));
        assert_eq!((found("0::/\n"), found("4:memory:/a/b\n"), found("0::/../a")), (None, None, None));
        assert_eq!((memory_kills_of(&group), memory_kills_of(&root)), (Some(2), None));
        std::fs::remove_dir_all(root).unwrap();
    }
}
