#![doc = include_str!("guide.md")]

// What a user writes
mod subprocess;
// What a user holds
mod offspring;
mod builder;
pub mod fd;
mod shared;
mod channel;
mod current;
mod progress;
mod process;
mod error;
mod death;
mod verdict;
mod limits;
// The user's process
mod parent;
// What the processes say to each other
mod wire;
// The program, executed again
mod zygote;
// The child
mod child;
// The floor
mod sys;
mod log;
mod hook;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use builder::{Builder, Stdio};
pub use channel::{
    IntoIter, Iter, Receiver, RecvError, RecvTimeoutError, SendError, SendTimeoutError, Sender, TryIter,
    TryRecvError, TrySendError, channel,
};
pub use current::{Current, StopSignal, current};
pub use death::{Death, EndedBy};
pub use error::{Error, ErrorKind, Panic};
pub use limits::Limit;
pub use offspring::Offspring;
pub use process::Process;
pub use progress::Progress;
pub use shared::{SharedBytes, SharedMemory, SharedWriter};
pub use subprocess::{PAUSE, Subprocess, SubprocessLoop, spawn};

/// Ends every unit, and what the library keeps: afterwards the process is as if it had never used it. A later start
/// begins afresh.
///
/// As when the parent exits: TERM in the reverse order of start, all graces at once, then KILL; units that are not to be
/// terminated are waited for. Threads that wait for a unit get its result, or [`ErrorKind::ShuttingDown`]. Returns when
/// all are reaped.
///
/// ```
/// let unit = offspring::spawn((), |()| std::thread::sleep(std::time::Duration::from_secs(3600)))?;
/// offspring::shutdown();
/// assert_eq!(unit.wait().unwrap_err().kind(), offspring::ErrorKind::ShuttingDown);
/// # Ok::<(), offspring::Error>(())
/// ```
pub fn shutdown() {
    parent::runtime::shutdown();
    channel::shutdown();
}

/// For units and loops: `use offspring::prelude::*;`. Channels, streams and shared memory are imported by name.
pub mod prelude {
    pub use crate::{Error, ErrorKind, Offspring, PAUSE, Process, Subprocess, SubprocessLoop};
}
