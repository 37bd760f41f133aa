//! The process group of a child: signals to all of it, and whether something of it is left.
//!
//! A group has its leader's number, and the kernel does not give that number to anybody else while the group has a member. By
//! the leader's pidfd a group can be signalled also when the leader has been reaped (Linux 6.9); by its number only before, for
//! after that it may be a stranger's.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use super::pidfd;

/// Makes the calling process the leader of a new group.
pub(crate) fn lead() -> io::Result<()> {
    Ok(rustix::process::setpgid(None, None)?)
}

fn signal(leader: &OwnedFd, signal: i32) -> io::Result<()> {
    /// `PIDFD_SIGNAL_PROCESS_GROUP`.
    const GROUP: u32 = 1 << 2;
    let none = std::ptr::null::<u8>();
    // SAFETY: pidfd_send_signal(2) takes a descriptor, which the borrow keeps open, numbers and a null record.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, leader.as_raw_fd(), signal, none, GROUP) };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel knows groups by their leader's pidfd.
pub(crate) fn outlives_leader(leader: &OwnedFd) -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| !signal(leader, 0).is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)))
}

/// Sends a signal to the group of a child that has not been reaped, and to the child itself if it is not in it (yet, or any
/// more). Whether the child may be signalled.
pub(crate) fn send(leader: &OwnedFd, pid: u32, number: i32) -> io::Result<()> {
    let id = pid as i32;
    // Another waiter may have reaped it; then the number says nothing.
    let may = pidfd::send_signal(leader, 0);
    // SAFETY: getpgid(2) and kill(2) have no conditions. The number is the child's own until it is reaped.
    let is_member = unsafe { libc::getpgid(id) } == id;
    if outlives_leader(leader) {
        let _ = signal(leader, number);
    } else if is_member {
        // SAFETY: as above.
        unsafe { libc::kill(-id, number) };
    }
    if is_member { may } else { pidfd::send_signal(leader, number) }
}

/// Sends a signal to what is left of the group, if the kernel knows it without its leader.
pub(crate) fn send_to_rest(leader: &OwnedFd, number: i32) {
    let _ = signal(leader, number);
}

/// Whether the group has a member, be it one that has ended and waits to be reaped.
pub(crate) fn has_member(leader: &OwnedFd) -> bool {
    // Refused (EPERM): there is somebody.
    signal(leader, 0).map_or_else(|error| error.raw_os_error() == Some(libc::EPERM), |()| true)
}

/// Of each of these groups (its leader, the leader's pid, and who was seen the last time) a member that is seen to live. Slow: where nobody
/// reaps orphans, as in many containers, those that have ended stay, and the kernel has no question that leaves them out. So all
/// processes are looked at, but once for all the groups, and only if of one of them nobody lives who was seen before. One that has a
/// child in its stead at that very moment may be overlooked.
pub(crate) fn seen_alive(groups: &[(&OwnedFd, u32, Option<u32>)]) -> Vec<Option<u32>> {
    let still =
        |group: u32, seen: Option<u32>| seen.filter(|pid| group_of_live(&pid.to_string()) == Some(group));
    let mut alive: Vec<Option<u32>> =
        groups.iter().map(|(leader, pid, seen)| still(*pid, *seen).filter(|_| has_member(leader))).collect();
    let mut sought: BTreeMap<u32, usize> = (0..)
        .zip(groups)
        .filter(|(at, (leader, ..))| alive[*at].is_none() && has_member(leader))
        .map(|(at, (_, pid, _))| (*pid, at))
        .collect();
    if sought.is_empty() {
        return alive;
    }
    let Ok(all) = std::fs::read_dir("/proc") else {
        // It is not known. There is somebody.
        sought.into_iter().for_each(|(pid, at)| alive[at] = Some(pid));
        return alive;
    };
    for entry in all.flatten() {
        let name = entry.file_name();
        let Some((name, pid)) = name.to_str().and_then(|name| Some((name, name.parse().ok()?))) else {
            continue;
        };
        if let Some(at) = group_of_live(name).and_then(|group| sought.remove(&group)) {
            alive[at] = Some(pid);
            if sought.is_empty() {
                break;
            }
        }
    }
    alive
}

/// The group of that process, if it lives.
fn group_of_live(pid: &str) -> Option<u32> {
    group_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The group of the process that this line of proc_pid_stat(5) is of, if it lives.
fn group_in(stat: &str) -> Option<u32> {
    // The name stands in parentheses, and may have some itself.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
    // `Z` is said as well of one whose first thread has ended, and others go on.
    let is_dead = fields[0] == "X" || fields[0] == "Z" && number(17).is_none_or(|threads| threads <= 1);
    number(2).filter(|_| !is_dead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_of_no_group() {
        assert_eq!(group_in("12 (a) Z 3) S 1 77 12 0 -1"), Some(77));
        let ended = |threads| format!("12 (a) Z 1 77 12 0 -1 4 5 6 7 8 9 10 11 12 13 14 {threads} 0 99");
        assert_eq!((group_in(&ended(2)), group_in(&ended(1))), (Some(77), None));
        assert_eq!(group_in("12 (a) Z 1 77 12 0 -1"), None);
        assert_eq!(group_in("12 (a) R 77 78 77 0 -1"), Some(78));
        assert_eq!((group_in(""), group_in("12 (a) ")), (None, None));
    }
}
