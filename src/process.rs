//! A child process, for whoever has to do with it: apart from its handle, and after it.

use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;

use crate::parent::shutdown::Why;
use crate::parent::unit::Unit;
use crate::sys::{pidfd, signals};

/// A unit's child process. Cheap to clone; stays valid after the handle, and the process, are gone.
///
/// ```
/// use offspring::{Offspring, spawn};
/// use std::time::Duration;
///
/// let unit = spawn((), |()| std::thread::sleep(Duration::from_secs(3600)))?;
/// let process = unit.process().unwrap().clone();
/// let stopper = std::thread::spawn(move || process.terminate());
/// assert!(unit.wait().is_err());
/// stopper.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Process(pub(crate) Arc<Unit>);

impl Process {
    /// Its process id. After its end it may be another's.
    pub fn id(&self) -> u32 {
        self.0.pid()
    }

    /// The unit's name: the builder's, or its type's.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it has not been reaped yet. In a process that a user's own `fork` copied: `false`.
    pub fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// How it ended; `None` while it lives, or if the status was lost to another waiter (before Linux 6.15).
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.0.exit_status()
    }

    /// Sends it a signal: the process alone, also if it leads a process group. `Ok` also after its end.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal, `EPERM` if it has taken another user's rights, and
    /// [`io::ErrorKind::Unsupported`] in a process that a user's own `fork` copied, whose child it is not.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        if !self.0.is_ours() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the child belongs to the process that was forked",
            ));
        }
        pidfd::send_signal(self.0.pidfd(), signal)
    }

    /// Sends TERM, to the process alone. `Ok` also after its end.
    ///
    /// # Errors
    /// As [`Process::send_signal`].
    pub fn terminate(&self) -> io::Result<()> {
        self.send_signal(signals::TERM)
    }

    /// Sends KILL, to the process alone. `Ok` also after its end.
    ///
    /// # Errors
    /// As [`Process::send_signal`].
    pub fn kill(&self) -> io::Result<()> {
        self.send_signal(signals::KILL)
    }

    /// Begins to shut it down, and returns at once: TERM (and CONT), and KILL after the shutdown timeout. A unit that
    /// is not to be terminated ([`Subprocess::TERMINATE_ON_SHUTDOWN`]) is let be. One that leads a process group
    /// ([`Subprocess::PROCESS_GROUP`]) is ended with all of it.
    ///
    /// [`Subprocess::PROCESS_GROUP`]: crate::Subprocess::PROCESS_GROUP
    /// [`Subprocess::TERMINATE_ON_SHUTDOWN`]: crate::Subprocess::TERMINATE_ON_SHUTDOWN
    pub fn begin_shutdown(&self) {
        if self.0.is_ours() {
            self.0.ask_to_end(Why::Shutdown);
        }
    }
}

#[cfg(unix)]
impl crate::sys::io::AsFd for Process {
    /// Its pidfd, which is readable once it has ended (pidfd_open(2)).
    fn as_fd(&self) -> crate::sys::io::BorrowedFd<'_> {
        self.0.pidfd().as_fd()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id()).field("name", &self.name()).finish_non_exhaustive()
    }
}
