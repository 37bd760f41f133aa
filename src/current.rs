//! What a unit knows of itself.

use std::fmt;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::child::run::Line;
use crate::progress::{self, Board};
use crate::sys::io::{BorrowedFd, OwnedFd};
use crate::sys::memory;
use crate::sys::signals;

/// The unit that this process runs; `None` in a process that is no unit's, as the parent is. A copy that the unit forks has it too.
///
/// ```
/// assert!(offspring::current().is_none());
/// let unit = offspring::spawn((), |()| {
///     let current = offspring::current().unwrap();
///     (current.name().to_owned(), current.parent_id())
/// })?;
/// let (name, parent) = unit.wait()?;
/// assert!(name.contains("Call"));
/// assert_eq!(parent, std::process::id());
/// # Ok::<(), offspring::Error>(())
/// ```
pub fn current() -> Option<Current> {
    HERE.get().map(|here| Current { here })
}

static HERE: OnceLock<Here> = OnceLock::new();

struct Here {
    name: String,
    parent: u32,
    line: Line,
    /// Where it reports how far it has got; until there is such a place, how often that was wanted.
    board: Mutex<Result<Board, u32>>,
}

/// For the child's set-up: from now on this is that unit.
pub(crate) fn enter(line: &Line, name: &str, parent: u32) {
    let here = Here { name: name.to_owned(), parent, line: line.clone(), board: Mutex::new(Err(0)) };
    let _ = HERE.set(here);
}

/// The unit that this process runs: given by [`current`], to any of its threads.
#[derive(Clone, Copy)]
pub struct Current {
    here: &'static Here,
}

impl Current {
    /// The unit's name: the builder's, or its type's.
    pub fn name(&self) -> &str {
        &self.here.name
    }

    /// The process id of the parent that started it, which may be gone.
    pub fn parent_id(&self) -> u32 {
        self.here.parent
    }

    /// Whether TERM or INT has come: somebody wants the unit to end. Of a plain unit that is only known after
    /// [`catch_stop`](Self::catch_stop), for before that, it would have been its end.
    pub fn stop_requested(&self) -> bool {
        signals::stopped()
    }

    /// From now on TERM and INT do not end this process, but are told by what this gives, and by
    /// [`stop_requested`](Self::stop_requested): so a plain unit can end in good order, with a result, as loops do. It has the shutdown timeout for it;
    /// then comes KILL. System calls that wait go on (`SA_RESTART`), save those that never do (signal(7)).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use offspring::{Offspring, Subprocess};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Server;
    ///
    /// impl Subprocess for Server {
    ///     type Output = String;
    ///     const WAIT_FOR_CHILD: bool = true;
    ///     fn run(self) -> String {
    ///         let stop = offspring::current().unwrap().catch_stop().unwrap();
    /// #       println!("ready");
    ///         while !stop.wait_timeout(Duration::from_secs(3600)) {}
    ///         "in good order".into()
    ///     }
    /// }
    ///
    /// # use std::io::Read;
    /// let mut server = Offspring::builder(Server).stdout(offspring::Stdio::piped()).spawn()?;
    /// # server.take_stdout().unwrap().read_exact(&mut [0; 5])?;
    /// assert_eq!(server.shutdown()?, Some("in good order".into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Too many open files: it needs one descriptor, once.
    pub fn catch_stop(&self) -> io::Result<StopSignal> {
        Ok(StopSignal { descriptor: signals::catch_stop()? })
    }

    /// Reports how far the unit has got: how much is `done`, of how much in all if that is known, and a message, of which a thousand
    /// bytes are kept. The parent sees the latest, with [`Offspring::progress`](crate::Offspring::progress). Costs no system call but the first
    /// time, so that it can be called as often as there is news. Where there is no memory for it, nothing is reported; that is tried again after as many
    /// reports as there were. (A parent that has no descriptor left for it is not told again.)
    ///
    /// ```
    /// let unit = offspring::spawn(1000_u64, |count: u64| {
    ///     let current = offspring::current().unwrap();
    ///     (0..count).for_each(|n| current.progress(n + 1, Some(count), "counting"));
    /// })?;
    /// unit.wait()?;
    /// # Ok::<(), offspring::Error>(())
    /// ```
    pub fn progress(&self, done: u64, total: Option<u64>, message: &str) {
        let mut board = self.here.board.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(wanted) = &mut *board {
            *wanted = wanted.saturating_add(1);
            // What was in the way may be gone: the second time, the fourth, the eighth.
            if wanted.is_power_of_two()
                && let Ok(made) = self.board()
            {
                *board = Ok(made);
            }
        }
        if let Ok(board) = &*board {
            board.write(done, total, message);
        }
    }

    /// A new one, of which the parent is told.
    fn board(&self) -> io::Result<Board> {
        let memory: OwnedFd = memory::shared(progress::BYTES as u64)?;
        let board = Board::of(&memory)?;
        self.here.line.board(&memory)?;
        Ok(board)
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("name", &self.name()).field("parent_id", &self.parent_id()).finish()
    }
}

/// Tells a unit that it is to end: see [`Current::catch_stop`].
///
/// It is readable (`AsFd`) once it is so, to be waited for beside other things.
///
/// ```
/// use std::time::Duration;
/// # use offspring::spawn;
/// let unit = spawn((), |()| {
///     let stop = offspring::current().unwrap().catch_stop().unwrap();
///     stop.wait_timeout(Duration::from_millis(1))
/// })?;
/// assert!(!unit.wait()?);
/// # Ok::<(), offspring::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct StopSignal {
    descriptor: BorrowedFd<'static>,
}

impl StopSignal {
    /// Whether it has come.
    pub fn is_requested(&self) -> bool {
        signals::stopped()
    }

    /// Waits until it comes, for so long at most; whether it has.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        signals::sleep_until_stopped(timeout);
        signals::stopped()
    }
}

#[cfg(unix)]
impl crate::sys::io::AsFd for StopSignal {
    /// Readable once it has come. Not to be read from: it is told to all who wait. (A process that the unit has forked asks for its own.)
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor
    }
}
