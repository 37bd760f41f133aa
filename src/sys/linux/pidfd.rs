//! Children by their pidfd: signals, and the wait that ends them. Never by pid, which may be somebody else's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{WaitId, WaitIdOptions};

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

/// What a child was when it had ended.
#[derive(Clone, Copy)]
pub(crate) struct Reaped {
    pub(crate) status: ExitStatus,
    /// `None` if another waiter was told.
    pub(crate) usage: Option<Usage>,
}

/// What it has used, and its own children that it has waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_time: Duration,
    /// In bytes.
    pub(crate) peak_memory: u64,
}

/// Reaps the child if it has ended; `None` while it lives.
pub(crate) fn reap(pidfd: &OwnedFd) -> Option<Reaped> {
    wait(pidfd, libc::WEXITED | libc::WNOHANG)
}

/// Reaps a child that is known to be ending.
pub(crate) fn reap_blocking(pidfd: &OwnedFd) {
    wait(pidfd, libc::WEXITED);
}

fn wait(pidfd: &OwnedFd, options: libc::c_int) -> Option<Reaped> {
    loop {
        // SAFETY: all zeros are a valid value of both records, in which the kernel writes; the descriptor is open. The system call
        // itself, because waitid(3) leaves the second record out.
        let (result, info, usage) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let mut usage: libc::rusage = std::mem::zeroed();
            let (kind, fd) = (libc::P_PIDFD, pidfd.as_raw_fd());
            let result = libc::syscall(libc::SYS_waitid, kind, fd, &raw mut info, options, &raw mut usage);
            (result, info, usage)
        };
        // SAFETY: the record is one of waitid(2)'s, or all zeros.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        match result {
            0 if pid == 0 => return None,
            0 => {
                let status = ExitStatus::from_raw(match info.si_code {
                    libc::CLD_EXITED => (status & 0xff) << 8,
                    libc::CLD_DUMPED => status | 0x80,
                    _ => status,
                });
                return Some(Reaped { status, usage: Some(used(&usage)) });
            }
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            // Somebody else's wait(-1), or SIGCHLD ignored: reaped, and not by us.
            _ => {
                let status = ExitStatus::from_raw(told_by_the_kernel(pidfd).unwrap_or(LOST));
                return Some(Reaped { status, usage: None });
            }
        }
    }
}

fn used(usage: &libc::rusage) -> Usage {
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.max(0) as u64) + Duration::from_micros(time.tv_usec.max(0) as u64)
    };
    Usage {
        cpu_time: time(usage.ru_utime) + time(usage.ru_stime),
        // In KiB: getrusage(2).
        peak_memory: (usage.ru_maxrss.max(0) as u64).saturating_mul(1024),
    }
}

/// Whether a core was dumped.
pub(crate) fn core_dumped(status: ExitStatus) -> bool {
    status.core_dumped()
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
