//! Children by their pidfd: signals, and the wait that ends them. Never by pid, which may be somebody else's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

/// What stands for a status that another waiter took and that the kernel does not tell again: neither success, nor a
/// code, nor a signal.
const LOST: i32 = 0x007f;

/// A pid, if it can be one.
fn number(pid: u32) -> Option<rustix::process::Pid> {
    i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
}

/// A process by its pid.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = number(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    super::io::above_stdio(pidfd)
}

/// Our child of that pid, which the kernel told us of. An error if it is gone, or if there is no descriptor for it.
fn open_child(pid: u32) -> io::Result<OwnedFd> {
    let pidfd = open(pid)?;
    // Fails with ECHILD for whoever is no child of ours.
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), LOOK)?;
    Ok(pidfd)
}

/// Ends a child of ours for which there is no descriptor: by its number, which cannot be a stranger's before it has been
/// waited for.
fn end_by_number(pid: u32) {
    let Some(pid) = number(pid) else { return };
    if rustix::process::waitid(WaitId::Pid(pid), LOOK).is_ok() {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let _ =
            rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
    }
}

/// The pidfd of a child that was made for us, if it came along; else the child is looked up by its pid. One that cannot be
/// had is ended.
pub(crate) fn take_over(pid: u32, pidfd: Option<OwnedFd>) -> io::Result<OwnedFd> {
    pidfd.map_or_else(|| open_child(pid), Ok).inspect_err(|_| end_by_number(pid))
}

/// Whether there is such a child, ended or not. It stays to be waited for.
const LOOK: WaitIdOptions = WaitIdOptions::EXITED.union(WaitIdOptions::NOHANG).union(WaitIdOptions::NOWAIT);

/// Sends a signal. `Ok` too if the process has ended.
pub(crate) fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal(2) takes a descriptor, which the borrow keeps open, a number and a null record.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<u8>(),
            0,
        )
    };
    match io::Error::last_os_error() {
        error if sent != 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// Reaps the child if it has ended; `None` while it lives.
pub(crate) fn reap(pidfd: &OwnedFd) -> Option<ExitStatus> {
    wait(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

/// Reaps a child that is known to be ending.
pub(crate) fn reap_blocking(pidfd: &OwnedFd) {
    wait(pidfd, WaitIdOptions::EXITED);
}

fn wait(pidfd: &OwnedFd, options: WaitIdOptions) -> Option<ExitStatus> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(status) => return status.map(|status| ExitStatus::from_raw(raw(status))),
            Err(rustix::io::Errno::INTR) => {}
            // Somebody else's wait(-1), or SIGCHLD ignored: reaped, and not by us.
            Err(_) => return Some(ExitStatus::from_raw(told_by_the_kernel(pidfd).unwrap_or(LOST))),
        }
    }
}

fn raw(status: WaitIdStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (_, Some(signal)) => signal | if status.dumped() { 0x80 } else { 0 },
        _ => LOST,
    }
}

/// The signal that ended it.
pub(crate) fn signal(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// Whether the status was taken by another waiter and is lost.
pub(crate) fn is_lost(status: ExitStatus) -> bool {
    status.into_raw() == LOST
}

/// PIDFD_GET_INFO (Linux 6.15 and newer) tells the status of a process that has been reaped to whoever holds a pidfd.
fn told_by_the_kernel(pidfd: &OwnedFd) -> Option<i32> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, 64 bytes)`.
    const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
    // The thief's wait may have taken the status a moment before the kernel records it; without this request (before
    // Linux 6.15) there is nothing to wait for.
    for _ in 0..1000 {
        let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
        // SAFETY: the request carries the size of the record, and the kernel writes no more than that (it takes every
        // size from the first published one on: include/uapi/linux/pidfd.h, PIDFD_INFO_SIZE_VER0 = 64).
        let told = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        if told == 0 && info.mask & PIDFD_INFO_EXIT != 0 {
            return Some(info.exit_code);
        }
        if told != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH) {
            return None;
        }
        std::thread::yield_now();
    }
    None
}
