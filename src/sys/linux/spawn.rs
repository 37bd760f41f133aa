//! Re-executes this program: one `clone` that shares the caller's memory until the `exec`, as posix_spawn(3) does it,
//! so that its price does not grow with the parent.
//!
//! Written by hand for what std and posix_spawn lack: a pidfd from the kernel with the child (no window in which the
//! pid could be somebody else's), the signals that matter blocked until the child has its handlers, the death signal set before
//! the `exec`, the other descriptors closed, and the name of the step that failed.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::ptr::null;

use super::io::above_stdio;
use super::signals;

/// The descriptor at which a child finds its line.
pub(crate) const LINE: i32 = 3;

/// What the new process is to be.
pub(crate) struct Image<'a> {
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<OsString>,
    pub(crate) directory: Option<&'a Path>,
    pub(crate) umask: Option<u32>,
    /// What to put in the place of descriptors 0 to 2; `None` leaves the caller's.
    pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
    pub(crate) line: BorrowedFd<'a>,
    /// The signal to be sent to it when the calling thread ends.
    pub(crate) death_signal: Option<i32>,
}

/// What the child's few lines before `exec` read and write, in memory shared with the caller, who stands still.
struct Shared {
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    directory: *const c_char,
    umask: Option<u32>,
    streams: [c_int; 3],
    line: c_int,
    death_signal: c_int,
    failed: (&'static str, c_int),
}

/// Starts the program anew; gives its pid and pidfd, or the step that failed and why.
pub(crate) fn spawn(image: Image<'_>) -> Result<(u32, OwnedFd), (&'static str, io::Error)> {
    const STACK: usize = 64 * 1024;
    let string = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let strings = |texts: Vec<OsString>| texts.into_iter().map(string).collect::<io::Result<Vec<CString>>>();
    let arguments = strings(image.arguments).map_err(|error| ("arguments", error))?;
    let environment = strings(image.environment).map_err(|error| ("environment", error))?;
    let directory = image.directory.map(|path| string(path.into())).transpose();
    let directory = directory.map_err(|error| ("current directory", error))?;
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([null()]).collect();
    let raw = |stream: Option<BorrowedFd<'_>>| stream.map_or(-1, |stream| stream.as_raw_fd());
    let mut shared = Shared {
        arguments: pointers(&arguments),
        environment: pointers(&environment),
        directory: directory.as_deref().map_or(null(), CStr::as_ptr),
        umask: image.umask,
        streams: image.streams.map(raw),
        line: image.line.as_raw_fd(),
        death_signal: image.death_signal.unwrap_or(0),
        failed: ("", 0),
    };
    let mut stack: Vec<u128> = Vec::with_capacity(STACK / 16);
    let mut pidfd: c_int = -1;
    let mask = signals::block_all();
    // SAFETY: the child runs `child` on a stack of its own, in our memory (CLONE_VM), while this thread stands still
    // (CLONE_VFORK) until it has executed or ended: so `shared` and `stack` outlive its use of them, and no one else
    // touches them. All signals are blocked, so that no handler of the program can run in it. The top of the stack is
    // aligned to 16. With CLONE_PIDFD the kernel writes the descriptor where `pidfd` is.
    let pid = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr().add(STACK / 16).cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            (&raw mut shared).cast(),
            &raw mut pidfd,
            null::<c_void>(),
            null::<c_void>(),
        )
    };
    let error = io::Error::last_os_error();
    signals::restore(mask);
    if pid < 0 {
        return Err(("clone", error));
    }
    // SAFETY: clone succeeded, so the kernel made this descriptor for us, and nobody else knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let (step, errno) = shared.failed;
    if errno != 0 {
        super::pidfd::reap_blocking(&pidfd);
        return Err((step, io::Error::from_raw_os_error(errno)));
    }
    if pidfd.as_raw_fd() > 2 {
        return Ok((pid as u32, pidfd));
    }
    let above =
        pidfd.try_clone().and_then(above_stdio).map_err(|error| ("descriptor", abandon(&pidfd, error)))?;
    Ok((pid as u32, above))
}

/// A child that cannot be handed out must not be.
fn abandon(pidfd: &OwnedFd, error: io::Error) -> io::Error {
    let _ = super::pidfd::send_signal(pidfd, signals::KILL);
    super::pidfd::reap_blocking(pidfd);
    error
}

/// The child's lines before `exec`. It shares our memory, so: system calls alone, no allocation, no lock, no panic.
extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: `spawn` passed a pointer to its Shared, which lives until we have executed or ended, and stands still.
    let shared = unsafe { &mut *shared.cast::<Shared>() };
    // SAFETY: plain system calls with valid pointers; the tables of handlers, descriptors, directory and umask that
    // they change are the child's own (neither CLONE_SIGHAND, CLONE_FILES nor CLONE_FS was asked for).
    unsafe {
        // 1. Signals: default actions; what the program ignores or handles is its own affair. From here on none can run
        //    a handler of the program, so that all may come but those that are to find one of ours.
        signals::default_all();
        signals::block_until_open();
        // 2. The guard: pending until the child's handler is in place, and kept over exec. (0: none.)
        if libc::prctl(libc::PR_SET_PDEATHSIG, shared.death_signal) != 0 {
            return fail(shared, "death signal");
        }
        // 3. Descriptors: streams, line, and nothing else.
        for stream in 0..3 {
            let source = shared.streams[stream as usize];
            if source >= 0 && libc::dup2(source, stream) < 0 {
                return fail(shared, "standard streams");
            }
        }
        let kept = if shared.line == LINE {
            libc::fcntl(LINE, libc::F_SETFD, 0)
        } else {
            libc::dup2(shared.line, LINE)
        };
        if kept < 0 {
            return fail(shared, "line");
        }
        if libc::syscall(libc::SYS_close_range, LINE + 1, c_int::MAX, 0) != 0 {
            // Before Linux 5.9.
            for descriptor in LINE + 1..libc::sysconf(libc::_SC_OPEN_MAX).clamp(0, 1 << 20) as c_int {
                libc::close(descriptor);
            }
        }
        // 4. Directory and umask.
        if !shared.directory.is_null() && libc::chdir(shared.directory) != 0 {
            return fail(shared, "current directory");
        }
        if let Some(mask) = shared.umask {
            libc::umask(mask);
        }
        // 5. The same file, by the link that the kernel keeps even when the name is gone.
        libc::execve(c"/proc/self/exe".as_ptr(), shared.arguments.as_ptr(), shared.environment.as_ptr());
    }
    fail(shared, "exec of /proc/self/exe")
}

fn fail(shared: &mut Shared, step: &'static str) -> c_int {
    // SAFETY: errno is this thread's own.
    shared.failed = (step, unsafe { *libc::__errno_location() });
    127
}
