//! The one place that clones a running process, and the proof that must come first: it has one thread.
//!
//! The child is a copy of the caller in all but this: it is a child of the caller's own parent (`CLONE_PARENT`). glibc
//! knows nothing of the call, so what its fork(3) would have set right in the copy is set right here.

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ledger::Ledger;

/// A process that has one thread, and will have no other by itself: whoever holds this blocks all signals and calls no
/// code that is not of this crate.
pub(crate) struct Alone {
    /// Where glibc keeps the thread's id, and the kernel writes it.
    tid: *mut c_int,
    /// The head of glibc's list of robust locks, and its size.
    robust: (*mut c_void, usize),
}

impl Alone {
    /// Counts the threads, and finds what a copy needs; or says why this process cannot be copied.
    pub(crate) fn prove() -> Result<Self, String> {
        let failed = |what: &str| format!("{what}: {}", io::Error::last_os_error());
        let threads = std::fs::read_dir("/proc/self/task")
            .map_err(|error| format!("/proc/self/task: {error}"))?
            .count();
        if threads != 1 {
            return Err(format!(
                "a constructor of the program or of a library started a thread ({threads} in all)"
            ));
        }
        const PR_GET_TID_ADDRESS: c_int = 40;
        let mut tid: *mut c_int = null_mut();
        // SAFETY: writes one pointer (needs CONFIG_CHECKPOINT_RESTORE, else EINVAL).
        if unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut tid) } != 0 || tid.is_null() {
            return Err(failed("the address of the thread's id"));
        }
        let mut robust = (null_mut(), 0);
        // SAFETY: get_robust_list(2) of the calling thread writes a pointer and a size.
        let got =
            unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust.0, &raw mut robust.1) };
        if got != 0 {
            return Err(failed("the list of robust locks"));
        }
        Ok(Self { tid, robust })
    }

    /// Makes a copy of this process, a child of its parent; the copy's pid, and its pidfd if there is
    /// a descriptor left for it; or `None` in the copy itself.
    ///
    /// The kernel notes the pid in the ledger before the copy runs: whoever holds the ledger's other end knows of the copy
    /// even if this process is killed in the next instant.
    pub(crate) fn clone(&self, ledger: &Ledger) -> io::Result<Option<(u32, Option<OwnedFd>)>> {
        static REFUSED: AtomicBool = AtomicBool::new(false);
        let mut pidfd = -1;
        let mut pid =
            if REFUSED.load(Ordering::Relaxed) { -1 } else { self.clone3(ledger, None, &mut pidfd) };
        if pid < 0 {
            let error = io::Error::last_os_error();
            if !REFUSED.load(Ordering::Relaxed) {
                // Filters that have not heard of it say ENOSYS or EPERM; they let the old call through.
                if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
                    return Err(error);
                }
                REFUSED.store(true, Ordering::Relaxed);
            }
            pid = self.clone_of_old(ledger);
        }
        self.told(pid, pidfd)
    }

    /// The same, but the copy is made in that cgroup (Linux 5.7). An error says nothing of what else can be.
    pub(crate) fn clone_into(
        &self,
        ledger: &Ledger,
        cgroup: &OwnedFd,
    ) -> io::Result<Option<(u32, Option<OwnedFd>)>> {
        let mut pidfd = -1;
        let pid = self.clone3(ledger, Some(cgroup), &mut pidfd);
        self.told(pid, pidfd)
    }

    /// What a clone has returned, with its pidfd if it is not negative.
    fn told(&self, pid: c_long, pidfd: c_int) -> io::Result<Option<(u32, Option<OwnedFd>)>> {
        match pid {
            0 => {
                // SAFETY: tells the kernel of glibc's own list, which stands where it stood in the original.
                unsafe { libc::syscall(libc::SYS_set_robust_list, self.robust.0, self.robust.1) };
                Ok(None)
            }
            // SAFETY: the kernel made the descriptor in this call, and nobody else knows of it.
            1.. if pidfd >= 0 => Ok(Some((pid as u32, Some(unsafe { OwnedFd::from_raw_fd(pidfd) })))),
            // If it cannot be opened, the copy is there all the same.
            1.. => Ok(Some((pid as u32, super::pidfd::open(pid as u32).ok()))),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn clone3(&self, ledger: &Ledger, cgroup: Option<&OwnedFd>, pidfd: &mut c_int) -> c_long {
        const CLONE_INTO_CGROUP: u64 = 1 << 33;
        #[repr(C)]
        struct Arguments {
            flags: u64,
            pidfd: u64,
            child_tid: u64,
            parent_tid: u64,
            /// None: a copy's end is told by the signal that this process's own would be (clone(2), CLONE_PARENT).
            exit_signal: u64,
            stack: u64,
            stack_size: u64,
            tls: u64,
            set_tid: u64,
            set_tid_size: u64,
            cgroup: u64,
        }
        /// What all kernels know that have the call; what stands behind it is zero, or a flag of theirs says what it is.
        const FIRST: usize = 64;
        let size = if cgroup.is_some() { size_of::<Arguments>() } else { FIRST };
        let arguments = Arguments {
            flags: (FLAGS | libc::CLONE_PIDFD) as u64 | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
            pidfd: std::ptr::from_mut(pidfd) as u64,
            child_tid: self.tid as u64,
            parent_tid: ledger.pid() as u64,
            exit_signal: 0,
            stack: 0,
            stack_size: 0,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
        };
        // SAFETY: without CLONE_VM this is a fork: the copy has its own memory, and goes on here on its own stack. We
        // are the only thread, so no lock is held in the copy by a thread that it lacks. The pointers are to a local,
        // to glibc's own record, and to the ledger's page, each of which lives through the call.
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) }
    }

    /// As `clone3`, but the old call has one place for both the pidfd and the pid. The pid is what must not be lost; the
    /// pidfd is opened after.
    fn clone_of_old(&self, ledger: &Ledger) -> c_long {
        // The last two, the thread pointer (which is not set) and the child's id, stand the other way round on x86-64.
        let last = (0, self.tid as usize);
        let (fourth, fifth) = if cfg!(target_arch = "x86_64") { (last.1, last.0) } else { last };
        // SAFETY: as above.
        unsafe {
            libc::syscall(libc::SYS_clone, FLAGS as c_long, null::<c_void>(), ledger.pid(), fourth, fifth)
        }
    }
}

/// The child is our parent's; its thread's id is written where glibc looks for it, its pid where the ledger is.
const FLAGS: c_int =
    libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::CLONE_PARENT_SETTID;

/// A pidfd's identity: its number in the kernel's own file system, which is given once and never again (Linux 6.9 and
/// newer, pidfs); `None` before that.
pub(crate) fn identity(pidfd: &OwnedFd) -> Option<u64> {
    const PIDFS: i64 = 0x5049_4446;
    static GIVEN: OnceLock<bool> = OnceLock::new();
    let given = GIVEN.get_or_init(|| rustix::fs::fstatfs(pidfd).is_ok_and(|system| system.f_type == PIDFS));
    if *given { Some(rustix::fs::fstat(pidfd).ok()?.st_ino) } else { None }
}
