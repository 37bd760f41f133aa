//! A process as a whole: who it is, how it ends.

use std::ffi::{CString, c_int, c_long};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicPtr, Ordering};

pub(crate) use super::generation::generation;

/// Runs `handler` when the process leaves `main` or calls `exit`. Refused only for want of memory.
pub(crate) fn at_exit(handler: extern "C" fn()) -> std::io::Result<()> {
    // SAFETY: a function that lives as long as the program.
    let refused = unsafe { libc::atexit(handler) };
    if refused == 0 { Ok(()) } else { Err(std::io::ErrorKind::OutOfMemory.into()) }
}

/// Ends the process through libc: exit handlers run, streams are flushed.
pub(crate) fn exit(code: c_int) -> ! {
    std::process::exit(code)
}

/// Ends the process at once: no handler, no flush.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: _exit(2) has no conditions.
    unsafe { libc::_exit(code) }
}

/// Sends a signal to the calling thread.
#[cfg(feature = "testing")]
pub(crate) fn raise(signal: i32) {
    // SAFETY: raise(3) has no conditions.
    unsafe { libc::raise(signal) };
}

/// Flushes Rust's standard output and every stream of C.
pub(crate) fn flush_streams() {
    use std::io::Write;
    let _ = std::io::stdout().flush();
    // SAFETY: fflush(3) of null flushes all open streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// The name that `ps` and `top` show (of which the kernel keeps 15 bytes).
pub(crate) fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// In a process with one thread: whether copies of it may try [`step_back`]. A filter of system calls may kill who does.
pub(crate) fn may_step_back() -> bool {
    // SAFETY: the first asks of the calling thread. The second copies the process, which has one thread, as fork(2) does; the copy makes system
    // calls alone, and ends. It is waited for, and nobody else knows of it.
    unsafe {
        if libc::prctl(libc::PR_GET_SECCOMP) == 0 {
            return true;
        }
        let copy = libc::syscall(libc::SYS_clone, c_long::from(libc::SIGCHLD), 0, 0, 0, 0);
        if copy == 0 {
            step_back();
            libc::_exit(0);
        }
        if copy < 0 {
            return false;
        }
        let mut status = -1;
        while libc::waitpid(copy as c_int, &raw mut status, 0) < 0 && *libc::__errno_location() == libc::EINTR
        {
        }
        status == 0
    }
}

/// Has the calling thread push nobody off a processor when it is woken (SCHED_BATCH, sched(7)): it has its turn, as others have. Not if it
/// is scheduled otherwise than by default; whether it is done.
pub(crate) fn step_back() -> bool {
    // SAFETY: sched_getscheduler(2) of the calling thread has no conditions.
    let policy = unsafe { libc::sched_getscheduler(0) };
    policy == libc::SCHED_OTHER && schedule(libc::SCHED_BATCH)
}

/// After [`step_back`]: as before. The niceness stays.
pub(crate) fn step_forward() {
    schedule(libc::SCHED_OTHER);
}

fn schedule(policy: c_int) -> bool {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: sched_setscheduler(2) of the calling thread, with a valid record.
    unsafe { libc::sched_setscheduler(0, policy, &raw const none) == 0 }
}

/// Goes to a directory.
pub(crate) fn go_to(directory: &OwnedFd) -> std::io::Result<()> {
    Ok(rustix::process::fchdir(directory)?)
}

/// Goes where no directory of anybody's is kept.
pub(crate) fn go_to_root() {
    let _ = rustix::process::chdir("/");
}

/// Sets the file mode creation mask.
pub(crate) fn set_umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(mask));
}

/// The calling thread's id in the kernel. Unlike std's, it can be asked while thread-local storage is torn down.
pub(crate) fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// What `slot` holds for this process, made at the first call and anew in a forked copy. What a copy inherited is left
/// as it is, for its locks may be held by threads that the copy does not have.
pub(crate) fn per_process<T: Sync>(
    slot: &'static AtomicPtr<T>,
    is_current: impl Fn(&T) -> bool,
    make: impl FnOnce() -> T,
) -> &'static T {
    let old = slot.load(Ordering::Acquire);
    // SAFETY: the slot holds null or what the lines below leaked into it, which is never freed or moved.
    if let Some(current) = unsafe { old.as_ref() }.filter(|current| is_current(current)) {
        return current;
    }
    let new = Box::into_raw(Box::new(make()));
    match slot.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: leaked just above, for good.
        Ok(_) => unsafe { &*new },
        Err(winner) => {
            // SAFETY: nobody has seen ours; another thread of this process was faster, and leaked its own.
            unsafe {
                drop(Box::from_raw(new));
                &*winner
            }
        }
    }
}
