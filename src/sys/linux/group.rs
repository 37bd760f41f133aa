//! The process group of a child: signals to all of it, and whether something of it is left.
//!
//! A group has its leader's number, and the kernel does not give that number to anybody else while the group has a member. By
//! the leader's pidfd a group can be signalled also when the leader has been reaped (Linux 6.9); by its number only before, for
//! after that it may be a stranger's.

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

/// Whether a member is seen to live. Slow: where nobody reaps orphans, as in many containers, those that have ended stay, and the
/// kernel has no question that leaves them out. One that has a child in its stead at that very moment may be overlooked.
pub(crate) fn is_seen_alive(leader: &OwnedFd, pid: u32) -> bool {
    if !has_member(leader) {
        return false;
    }
    let Ok(all) = std::fs::read_dir("/proc") else { return true };
    let is_member = |name: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{name}/stat")).unwrap_or_default();
        is_alive_in(&stat, pid)
    };
    all.flatten().any(|entry| {
        let name = entry.file_name();
        name.to_str()
            .is_some_and(|name| name.starts_with(|first: char| first.is_ascii_digit()) && is_member(name))
    })
}

/// Whether that line of proc_pid_stat(5) is of a live process of that group.
fn is_alive_in(stat: &str, group: u32) -> bool {
    // The name stands in parentheses, and may have some itself.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
    // `Z` is said as well of one whose first thread has ended, and others go on.
    let is_dead = fields[0] == "X" || fields[0] == "Z" && number(17).is_none_or(|threads| threads <= 1);
    !is_dead && number(2) == Some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_and_strangers_are_no_live_members() {
        assert!(is_alive_in("12 (a) Z 3) S 1 77 12 0 -1", 77));
        let ended = |threads| format!("12 (a) Z 1 77 12 0 -1 4 5 6 7 8 9 10 11 12 13 14 {threads} 0 99");
        assert!(is_alive_in(&ended(2), 77) && !is_alive_in(&ended(1), 77));
        assert!(!is_alive_in("12 (a) Z 1 77 12 0 -1", 77));
        assert!(!is_alive_in("12 (a) R 77 78 77 0 -1", 77));
        assert!(!is_alive_in("", 77) && !is_alive_in("12 (a) ", 77));
    }
}
