//! Cgroups, version 2: whether others can be made in one's own, and what is done to all that is in one.
//!
//! Who is in a cgroup stays in it, whatever it does to its session and its process group, and so does what it starts. They are known by
//! their path: to be told from one process to another, and so that none takes a descriptor.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, getpgid, test_kill_process};
use serde::{Deserialize, Serialize};

use super::{pidfd, signals};
use crate::limits::Limit;

/// One of them, by its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroup(String);

/// A longer path is not told to anybody.
const LONGEST: usize = 1024;

/// What begins the names of ours; then come the maker's pid, what tells apart the programs that have had it, and a number.
const PREFIX: &str = "offspring.";

/// For the names of this process's.
static NUMBER: AtomicU64 = AtomicU64::new(1);

impl Cgroup {
    /// The one that this process is in, if it can make others in it and move processes there; or why not. What processes that are no more have
    /// left in it, or this program before it began afresh, is removed.
    pub(crate) fn own() -> Result<Self, String> {
        let read = |file: &str| {
            let bytes = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
            Ok::<_, String>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (groups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
        let own = own_in(&groups).ok_or("this process is in none of version 2")?;
        let mut why = "none of version 2 is mounted in which this process would be".to_owned();
        for path in places(&mounts, own) {
            let cgroup = Self(path);
            if !cgroup.is_delegated(own) {
                why = format!("{}: it is not delegated", cgroup.0);
                continue;
            }
            match cgroup.prove() {
                Ok(()) => {
                    cgroup.tidy();
                    return Ok(cgroup);
                }
                Err(error) => why = format!("{}: {error}", cgroup.0),
            }
        }
        Err(why)
    }

    /// Whether it is ours to divide. To others than root its owner says so by letting them write to it. To root, who may write to all, by the
    /// mark that systemd sets; or it is the uppermost that is to be seen, or one of those that are made here.
    fn is_delegated(&self, own: &str) -> bool {
        let is_marked = |name| {
            let mut mark = [0; 1];
            matches!(rustix::fs::getxattr(&*self.0, name, &mut mark), Ok(1)) && mark == *b"1"
        };
        !rustix::process::geteuid().is_root()
            || own == "/"
            || own.rsplit('/').next().and_then(maker_in).is_some()
            || ["user.delegate", "trusted.delegate"].into_iter().any(is_marked)
    }

    /// Whether others can be made in it, and processes be moved there.
    fn prove(&self) -> io::Result<()> {
        const MAGIC: i64 = 0x6367_7270;
        if rustix::fs::statfs(&*self.0)?.f_type != MAGIC || self.0.len() > LONGEST {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Who moves a process needs to write to this in what holds both places. Nothing is written.
        self.open_to_write("cgroup.procs")?;
        let trial = self.make()?;
        let kind = trial.read("cgroup.type");
        trial.remove();
        // Not one that shares its threads' resources with others.
        if kind?.trim_end() == "domain" { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Makes a new one in it.
    pub(crate) fn make(&self) -> io::Result<Self> {
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let (above, pid, image) = (self.0.trim_end_matches('/'), std::process::id(), image());
            let path = format!("{above}/{PREFIX}{pid}.{image:x}.{number}");
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                // Of one that had our number before us.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes what was left in it, if nobody is in there.
    fn tidy(&self) {
        for below in self.below() {
            let name = below.0.rsplit('/').next().unwrap_or_default();
            // Another that lives may be about to put somebody there.
            let is_over = |(maker, of): (u32, u64)| {
                let other = i32::try_from(maker).ok().and_then(Pid::from_raw);
                let is_none = |pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
                (maker, of) == (std::process::id(), image()) || other.is_none_or(is_none)
            };
            if maker_in(name).is_some_and(is_over) {
                below.remove();
            }
        }
    }

    /// A descriptor of it, for a clone to be made there.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        super::io::above_stdio(rustix::fs::openat(CWD, &*self.0, flags, Mode::empty())?)
    }

    /// Moves this process there.
    pub(crate) fn join(&self) -> io::Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Sets a limit for all of it together, if there is such a controller; whether that is done.
    pub(crate) fn limit(&self, limit: Limit) -> bool {
        match limit {
            Limit::Memory(bytes) => {
                // What does not fit is not to be swapped out instead.
                let _ = self.write("memory.swap.max", "0");
                self.write("memory.max", &bytes.to_string()).is_ok()
            }
            Limit::Processes(count) => self.write("pids.max", &count.to_string()).is_ok(),
            _ => false,
        }
    }

    /// Whether somebody in it has been killed because its limit of memory was reached.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.read("memory.events").is_ok_and(|events| is_out_of_memory(&events))
    }

    /// Whether somebody in it lives, or in one below it. If that cannot be known, for want of descriptors say, there is somebody.
    pub(crate) fn is_populated(&self) -> bool {
        match self.read("cgroup.events") {
            Ok(events) => value(&events, "populated") != Some(0),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Sends signals to those in it, or below it, that are not in that process group, and not its leader either.
    pub(crate) fn send_to_others(&self, group: u32, signals: &[i32]) {
        self.send(signals, |pid| pid != group && group_of(pid).is_none_or(|of| of != group));
        self.below().iter().for_each(|below| below.send_to_others(group, signals));
    }

    /// Kills all that is in it and below it.
    pub(crate) fn kill(&self) {
        if self.write("cgroup.kill", "1").is_err() {
            self.kill_each();
        }
    }

    /// The same before Linux 5.14.
    fn kill_each(&self) {
        /// Whoever is made meanwhile is seen the next time.
        const TIMES: usize = 16;
        for _ in 0..TIMES {
            if !self.send(&[signals::KILL], |_| true) {
                break;
            }
        }
        self.below().iter().for_each(Self::kill_each);
    }

    /// Removes it, and what is below it, unless somebody is in there; whether it is gone.
    pub(crate) fn remove(&self) -> bool {
        let is_gone = || match fs::remove_dir(&self.0) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        is_gone() || {
            if !self.is_populated() {
                self.below().iter().for_each(|below| _ = below.remove());
            }
            is_gone()
        }
    }

    /// Sends signals to those of its members for whom that is so; whether there was one.
    fn send(&self, signals: &[i32], is_meant: impl Fn(u32) -> bool) -> bool {
        /// No more descriptors at a time.
        const SOME: usize = 256;
        let meant: Vec<u32> = self.members().into_iter().filter(|pid| is_meant(*pid)).collect();
        for some in meant.chunks(SOME) {
            let open: Vec<_> = some.iter().filter_map(|pid| Some((*pid, pidfd::open(*pid).ok()?))).collect();
            // A number may have become somebody else's before it was opened. Who is still a member has kept it.
            let members = self.members();
            for (_, pidfd) in open.iter().filter(|(pid, _)| members.contains(pid)) {
                for signal in signals {
                    let _ = pidfd::send_signal(pidfd, *signal);
                }
            }
        }
        !meant.is_empty()
    }

    /// Those in it, without those below it.
    fn members(&self) -> Vec<u32> {
        let list = self.read("cgroup.procs").unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Those below it.
    fn below(&self) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.filter_map(|entry| Some(Self(entry.path().to_str()?.to_owned()))).collect()
    }

    fn open_to_write(&self, file: &str) -> io::Result<File> {
        File::options().write(true).open(Path::new(&self.0).join(file))
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        self.open_to_write(file)?.write_all(text.as_bytes())
    }

    fn read(&self, file: &str) -> io::Result<String> {
        let mut text = String::new();
        File::open(Path::new(&self.0).join(file))?.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// A number of this program's own: one that is executed has the pid of the one before it, the zygote of which may see to its cgroups still, by
/// their names.
fn image() -> u64 {
    static IMAGE: OnceLock<u64> = OnceLock::new();
    *IMAGE.get_or_init(|| RandomState::new().hash_one(std::process::id()))
}

fn group_of(pid: u32) -> Option<u32> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    Some(getpgid(Some(pid)).ok()?.as_raw_nonzero().get() as u32)
}

/// The path that a process has in its hierarchy, by its line in /proc/PID/cgroup (cgroups(7)).
fn own_in(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Where a cgroup of that path would be found, by the lines of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
fn places(mounts: &str, own: &str) -> Vec<String> {
    let place = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then_some(())?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (unescaped(fields.next()?), unescaped(fields.next()?));
        // A part of the hierarchy may be mounted alone. What lies outside of a namespace begins with `/..`.
        let rest = own.strip_prefix(root.trim_end_matches('/'))?;
        let is_below = rest.is_empty() || rest.starts_with('/');
        (is_below && !own.split('/').any(|part| part == "..")).then_some(())?;
        Some(format!("{}{}", point.trim_end_matches('/'), rest.trim_end_matches('/')))
    };
    mounts.lines().filter_map(place).filter(|path| !path.is_empty()).collect()
}

/// With what stands there as `\ooo`, which are spaces and the like.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let character = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()).map(char::from);
        text.extend(character);
        text.push_str(if character.is_some() { &part[3..] } else { part });
    }
    text
}

/// Who has made the one of that name, if it is one of ours.
fn maker_in(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('.');
    let maker = parts.next()?.parse().ok()?;
    let image = u64::from_str_radix(parts.next()?, 16).ok()?;
    parts.next()?.parse::<u64>().ok()?;
    parts.next().is_none().then_some((maker, image))
}

/// What stands there beside a key.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// Whether a memory.events tells that the limit was reached, and that somebody was killed. (If it was one further up, or the whole system's,
/// the first is not said.)
fn is_out_of_memory(events: &str) -> bool {
    ["oom", "oom_kill"].iter().all(|key| value(events, key).is_some_and(|count| count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
38 31 0:35 / /sys/fs/cgroup/unified rw,relatime shared:10 master:2 - cgroup2 cgroup2 rw,nsdelegate
40 31 0:35 /a/b /mnt/a\\040place rw,relatime - cgroup2 none rw
41 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
42 31 0:35 /../.. /mnt/outside rw,relatime - cgroup2 none rw
";

    #[test]
    fn ones_own_is_the_line_of_version_2() {
        assert_eq!(own_in("8:pids:/x\n1:name=systemd:/y\n0::/user.slice/a:b\n"), Some("/user.slice/a:b"));
        assert_eq!(own_in("8:pids:/x\n"), None);
        assert_eq!(own_in(""), None);
    }

    #[test]
    fn a_path_is_found_below_each_mount_that_shows_it() {
        assert_eq!(places(MOUNTS, "/"), ["/sys/fs/cgroup/unified"]);
        assert_eq!(places(MOUNTS, "/a"), ["/sys/fs/cgroup/unified/a"]);
        assert_eq!(places(MOUNTS, "/a/b"), ["/sys/fs/cgroup/unified/a/b", "/mnt/a place"]);
        assert_eq!(places(MOUNTS, "/a/b/c"), ["/sys/fs/cgroup/unified/a/b/c", "/mnt/a place/c"]);
        assert_eq!(places(MOUNTS, "/a/bc"), ["/sys/fs/cgroup/unified/a/bc"]);
        assert_eq!(places(MOUNTS, "/../x"), [""; 0]);
        assert_eq!(places("", "/"), [""; 0]);
        assert_eq!(places("1 2 0:3 / - cgroup2\n - cgroup2 a b\nnothing\n", "/"), [""; 0]);
    }

    #[test]
    fn what_a_mount_is_called_is_read_as_it_is_written() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/a\\04"), "/a04");
        assert_eq!(unescaped("\\ü\\999"), "ü999");
    }

    #[test]
    fn ours_are_known_by_their_names() {
        assert_eq!(maker_in("offspring.17.fe.3"), Some((17, 0xfe)));
        for other in
            ["offspring.17.3", "offspring.x.a.3", "offspring.17.a.", "offspring.17.a.3.service", "init.scope"]
        {
            assert_eq!(maker_in(other), None, "{other}");
        }
    }

    #[test]
    fn events_are_read_by_their_names() {
        assert_eq!(value("populated 1\nfrozen 0\n", "populated"), Some(1));
        assert_eq!(value("populated 1\nfrozen 0\n", "frozen"), Some(0));
        assert_eq!(value("populated\n", "populated"), None);
        let events = |oom, kill| {
            format!("low 0\nhigh 0\nmax 31\noom {oom}\noom_kill {kill}\noom_group_kill 0\nsock_throttled 0\n")
        };
        assert!(is_out_of_memory(&events(2, 1)));
        // Killed for the whole system's want; or refused, and nobody killed.
        assert!(!is_out_of_memory(&events(0, 1)) && !is_out_of_memory(&events(3, 0)));
        assert!(!is_out_of_memory("oom_kill 1\n") && !is_out_of_memory(""));
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no such files")]
    fn an_older_kernel_kills_each_by_itself() {
        let Ok(cgroup) = Cgroup::own().and_then(|own| own.make().map_err(|error| error.to_string())) else {
            println!("skipped: a cgroup cannot be had here");
            return;
        };
        let below = cgroup.make().unwrap();
        let mut children = [&cgroup, &below].map(|place| {
            let child = Command::new("sleep").arg("3600").spawn().unwrap();
            place.write("cgroup.procs", &child.id().to_string()).unwrap();
            child
        });
        assert!(cgroup.is_populated() && !cgroup.remove());
        cgroup.kill_each();
        children.iter_mut().for_each(|child| _ = child.wait().unwrap());
        assert!(!cgroup.is_populated() && cgroup.remove() && cgroup.remove());
    }
}
