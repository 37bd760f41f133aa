//! What differs from start to start.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::limits::{self, Limit, Limits};
use crate::offspring::{Offspring, Plan};
use crate::subprocess::Subprocess;
use crate::sys::io::OwnedFd;
use crate::sys::variables::Variables;

/// Sets up a unit's child before it is started; made by [`Offspring::builder`].
///
/// The words are those of [`std::process::Command`], where it has them; setters take and give the builder by value.
///
/// ```
/// use offspring::{Offspring, Stdio, Subprocess};
/// use serde::{Deserialize, Serialize};
/// use std::io::Read;
///
/// #[derive(Serialize, Deserialize)]
/// struct Hello;
///
/// impl Subprocess for Hello {
///     type Output = ();
///     fn run(self) {
///         print!("hello from {}", std::env::current_dir().unwrap().display());
///     }
/// }
///
/// let mut unit = Offspring::builder(Hello).current_dir("/").stdout(Stdio::piped()).spawn()?;
/// let mut text = String::new();
/// unit.take_stdout().unwrap().read_to_string(&mut text)?;
/// unit.wait()?;
/// assert_eq!(text, "hello from /");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is started before `build` or `spawn`"]
pub struct Builder<R> {
    plan: Result<Plan<R>, Error>,
    explicit: bool,
}

/// What a builder collects.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) name: Option<String>,
    pub(crate) environment: Environment,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) umask: Option<u32>,
    pub(crate) process_group: bool,
    pub(crate) limits: Limits,
    pub(crate) streams: [Stream; 3],
    pub(crate) timeout: Option<Duration>,
    pub(crate) shutdown_timeout: Option<Duration>,
    pub(crate) start_timeout: Duration,
}

/// The caller's environment, changed.
#[derive(Clone, Default)]
pub(crate) struct Environment {
    clear: bool,
    /// In the order of the calls; `None` removes.
    changes: Vec<(OsString, Option<OsString>)>,
}

impl Environment {
    /// What a variable is to be, for the test-only switches.
    #[cfg(feature = "testing")]
    pub(crate) fn value(&self, wanted: &OsStr) -> Option<OsString> {
        match self.changes.iter().rfind(|(name, _)| name == wanted) {
            Some((_, value)) => value.clone(),
            None => std::env::var_os(wanted).filter(|_| !self.clear),
        }
    }

    pub(crate) fn changes_any(&self) -> bool {
        self.clear || !self.changes.is_empty()
    }

    /// What it makes of the caller's own; the same, if it changes nothing.
    pub(crate) fn apply(&self, own: Variables) -> Variables {
        if !self.changes_any() {
            return own;
        }
        let mut all: Vec<_> = own.iter().filter(|_| !self.clear).cloned().collect();
        for (name, value) in &self.changes {
            all.retain(|(other, _)| other != name);
            all.extend(value.clone().map(|value| (name.clone(), value)));
        }
        Arc::new(all)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Stream {
    Inherit,
    Null,
    Piped,
    File(Arc<OwnedFd>),
}

/// What one of a child's standard streams is to be.
///
/// ```
/// use offspring::{Offspring, Stdio};
/// # use offspring::Subprocess;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)]
/// # struct Quiet;
/// # impl Subprocess for Quiet { type Output = (); fn run(self) { println!("lost") } }
/// let file = std::fs::File::create("/dev/null")?;
/// Offspring::builder(Quiet).stdout(file).stderr(Stdio::null()).spawn()?.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Stdio(Stream);

impl Stdio {
    /// The parent's own stream. The default.
    pub fn inherit() -> Self {
        Self(Stream::Inherit)
    }

    /// `/dev/null`.
    pub fn null() -> Self {
        Self(Stream::Null)
    }

    /// A pipe, whose other end is taken from the handle. One that is not taken is read and thrown away once the handle
    /// is gone or waited for (an input is closed).
    pub fn piped() -> Self {
        Self(Stream::Piped)
    }
}

impl<T: Into<OwnedFd>> From<T> for Stdio {
    /// A file, socket or pipe of the caller's, which the child gets a duplicate of.
    fn from(file: T) -> Self {
        Self(Stream::File(Arc::new(file.into())))
    }
}

impl<R> fmt::Debug for Builder<R> {
    /// Whether what was set so far would do; nothing of the unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.plan.as_ref().err();
        f.debug_struct("Builder")
            .field("explicit_start", &self.explicit)
            .field("refused", &refused)
            .finish_non_exhaustive()
    }
}

impl<R> Builder<R> {
    pub(crate) fn new<T: Subprocess<Output = R>>(unit: &T) -> Self {
        Self { plan: Plan::new(unit), explicit: T::EXPLICIT_START }
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        if let Ok(plan) = &mut self.plan {
            change(plan.settings());
        }
        self
    }

    /// The name in errors, logs and `ps` (which shows 15 bytes). Default: the type's.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.set(|settings| settings.name = Some(name.into()))
    }

    /// Sets a variable in the child's environment, which is otherwise the parent's at the start.
    pub fn env(self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let change = (name.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self.set(|settings| settings.environment.changes.push(change))
    }

    /// Removes a variable.
    pub fn env_remove(self, name: impl AsRef<OsStr>) -> Self {
        self.set(|settings| settings.environment.changes.push((name.as_ref().to_owned(), None)))
    }

    /// Removes all: the parent's, and those set so far.
    pub fn env_clear(self) -> Self {
        self.set(|settings| settings.environment = Environment { clear: true, changes: Vec::new() })
    }

    /// The child's current directory. Default: the parent's at the start.
    pub fn current_dir(self, directory: impl AsRef<Path>) -> Self {
        self.set(|settings| settings.current_dir = Some(directory.as_ref().to_owned()))
    }

    /// The child's file mode creation mask. Default: the parent's at its first start.
    pub fn umask(self, mask: u32) -> Self {
        self.set(|settings| settings.umask = Some(mask))
    }

    /// Makes the child the leader of a process group of its own, which is ended with it. Default:
    /// [`Subprocess::PROCESS_GROUP`].
    ///
    /// What the unit starts itself is in its group, unless it leaves it (setpgid(2), setsid(2)); that is reached as well, where the unit can
    /// have a cgroup (see below). Whenever this crate ends the unit
    /// (a shutdown, a timeout, its parent's exit; one that does not end after its result), every signal goes to the whole group: TERM and CONT, and KILL after the shutdown
    /// timeout. What outlives the unit itself has the rest of that time, and then KILL; [`Offspring::shutdown`],
    /// [`shutdown`](crate::shutdown) and the parent's exit wait for that, `wait` does not. Without a shutdown timeout
    /// it gets TERM alone. (Before Linux 6.9, what outlives the unit gets KILL at once.)
    ///
    /// When the parent dies without a word, the group gets TERM, and what is left after the shutdown timeout gets KILL, from the
    /// zygote: not where there is none, where it is killed together with the parent, or before Linux 6.9. Under a unit that blocks all
    /// signals or has executed another program, the others get KILL alone.
    ///
    /// A unit that ends by itself, with a result or without, leaves the others alone, and so does
    /// [`Process::kill`](crate::Process::kill). On a terminal, Ctrl-C does not reach the group, and it may not read from it
    /// (SIGTTIN).
    ///
    /// # Cgroups
    /// Where the parent may make cgroups of version 2 in its own, at the first start of such a unit, each has one, below the parent's (`offspring.PID.ID.N`). All that
    /// is said above of the group holds then for whoever is in the cgroup, which nobody leaves but who may write to `cgroup.procs` as the parent may. So it is in a service of systemd with
    /// `Delegate=`, and for the superuser in a container, if the hierarchy is mounted so that it can be written to. (Where the superuser's
    /// process is not in the uppermost cgroup that it sees, systemd's mark on it is asked for: the extended attribute `user.delegate`.) Elsewhere
    /// there is the process group alone, and nothing but an event of the feature `tracing` says so. The start takes somewhat longer, for no
    /// child can be there already. To look into a cgroup takes a free descriptor: who has left the group is not reached by a parent that has none from
    /// the end of the grace until a second later.
    ///
    /// When nothing is left in it, the cgroup is removed. It stays as long as something lives that a unit which ended by itself has
    /// left. What is there still when the parent ends, or was there when parent and zygote were killed together, is removed by the next process that makes
    /// its first one in the same place.
    ///
    /// ```
    /// use offspring::{Offspring, Subprocess};
    /// use serde::{Deserialize, Serialize};
    /// use std::process::Command;
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Convert(String);
    ///
    /// impl Subprocess for Convert {
    ///     type Output = bool;
    ///     fn run(self) -> bool {
    ///         Command::new("sleep").arg(self.0).status().unwrap().success()
    ///     }
    /// }
    ///
    /// let unit = Offspring::builder(Convert("3600".into())).process_group().spawn()?;
    /// assert_eq!(unit.shutdown()?, None); // `sleep` has ended as well
    /// # Ok::<(), offspring::Error>(())
    /// ```
    pub fn process_group(self) -> Self {
        self.set(|settings| settings.process_group = true)
    }

    /// At most so many bytes of address space (RLIMIT_AS). What is reserved counts, whether it is used or not: code, stacks,
    /// a mapped file.
    ///
    /// More is refused: an allocation fails, which in Rust ends the process (SIGABRT), and the error says that it may have been
    /// this ([`Error::limit`]). Less than the child takes before it begins is an error of its start.
    ///
    /// If the unit has a cgroup ([`process_group`](Self::process_group)) with a controller of memory, all that is in there together also
    /// uses no more memory (memory.max), without swap. Beyond it the kernel kills somebody there; if it is the unit, the error names the
    /// limit. The kernel lets only the topmost cgroup of all hand on such a controller while processes are in it.
    ///
    /// The limits of a unit, these and those below, hold for what it starts as well, each process for itself. They cannot be
    /// raised above those of the zygote (as the parent had them at its first start) without privileges: then the start fails
    /// ([`ErrorKind::Start`]). They are set before the unit is decoded.
    ///
    /// ```
    /// use offspring::{Offspring, Subprocess};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Small;
    /// impl Subprocess for Small {
    ///     type Output = bool;
    ///     fn run(self) -> bool {
    ///         Vec::<u8>::new().try_reserve(2 << 30).is_ok()
    ///     }
    /// }
    /// assert!(!Offspring::builder(Small).limit_memory(1 << 30).spawn()?.wait()?);
    /// # Ok::<(), offspring::Error>(())
    /// ```
    ///
    /// [`ErrorKind::Start`]: crate::ErrorKind::Start
    pub fn limit_memory(self, bytes: u64) -> Self {
        self.limit(Limit::Memory(bytes))
    }

    /// At most so much processor time (RLIMIT_CPU), of all threads together, in whole seconds, rounded up. Then comes SIGXCPU,
    /// which ends the process; one that catches it has a second more. The error names the limit ([`Error::limit`]).
    ///
    /// Unlike a [`timeout`](Self::timeout) it does not count the time in which the unit waits.
    pub fn limit_cpu_time(self, time: Duration) -> Self {
        self.limit(Limit::CpuTime(limits::in_seconds(time)))
    }

    /// At most so many descriptors at the same time (RLIMIT_NOFILE): more are refused (EMFILE). A unit begins with four.
    pub fn limit_open_files(self, count: u64) -> Self {
        self.limit(Limit::OpenFiles(count))
    }

    /// At most so many processes and threads of this user in all (RLIMIT_NPROC), as seen by the unit: if there are as many, it can
    /// start no other (EAGAIN). Does not bind the superuser.
    ///
    /// If the unit has a cgroup ([`process_group`](Self::process_group)) with a controller of processes, there are also no more than that in
    /// there (pids.max), whoever's they are. When it has one, [`limit_memory`](Self::limit_memory) says.
    pub fn limit_processes(self, count: u64) -> Self {
        self.limit(Limit::Processes(count))
    }

    /// A core dump of so many bytes at most (RLIMIT_CORE); 0 for none.
    pub fn limit_core_size(self, bytes: u64) -> Self {
        self.limit(Limit::CoreSize(bytes))
    }

    /// No file is written beyond so many bytes (RLIMIT_FSIZE). Then comes SIGXFSZ, which ends the process, and the error names
    /// the limit ([`Error::limit`]); one that ignores it gets EFBIG.
    pub fn limit_file_size(self, bytes: u64) -> Self {
        self.limit(Limit::FileSize(bytes))
    }

    /// Adds to the child's niceness, as nice(2) and nice(1) do: 19 in all is the least urgent. Less than 0 needs privileges; without
    /// them the start fails ([`ErrorKind::Start`]).
    ///
    /// [`ErrorKind::Start`]: crate::ErrorKind::Start
    pub fn nice(self, increment: i32) -> Self {
        self.set(|settings| settings.limits.nice = Some(increment))
    }

    fn limit(self, limit: Limit) -> Self {
        self.set(|settings| settings.limits.set(limit))
    }

    /// The child's standard input.
    pub fn stdin(self, stream: impl Into<Stdio>) -> Self {
        self.set(|settings| settings.streams[0] = stream.into().0)
    }

    /// The child's standard output.
    pub fn stdout(self, stream: impl Into<Stdio>) -> Self {
        self.set(|settings| settings.streams[1] = stream.into().0)
    }

    /// The child's standard error.
    pub fn stderr(self, stream: impl Into<Stdio>) -> Self {
        self.set(|settings| settings.streams[2] = stream.into().0)
    }

    /// How long the unit may take, from the start's return. Then it is ended as by a shutdown, and the error is
    /// [`ErrorKind::TimedOut`], unless its result came first; also if it panics on the way. Default: no limit.
    ///
    /// [`ErrorKind::TimedOut`]: crate::ErrorKind::TimedOut
    pub fn timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.timeout = Some(timeout))
    }

    /// How long after TERM comes KILL; `None`: never. Default: [`Subprocess::SHUTDOWN_TIMEOUT`].
    pub fn shutdown_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.set(|settings| settings.shutdown_timeout = timeout.into())
    }

    /// How long the child may take until it is about to run the unit. Then it is killed, and the error is
    /// [`ErrorKind::Start`]. Default: 10 s. (A start that waits for that does so for two seconds more if the child does not end of KILL,
    /// because a debugger holds it, say.)
    ///
    /// [`ErrorKind::Start`]: crate::ErrorKind::Start
    pub fn start_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.start_timeout = timeout)
    }

    /// Makes the handle and, unless [`Subprocess::EXPLICIT_START`], starts the child.
    ///
    /// # Errors
    /// As [`Offspring::new`].
    pub fn build(self) -> Result<Offspring<R>, Error> {
        let explicit = self.explicit;
        let mut offspring = Offspring::planned(self.plan?);
        if !explicit {
            offspring.start()?;
        }
        Ok(offspring)
    }

    /// Makes the handle and starts the child.
    ///
    /// # Errors
    /// As [`Offspring::new`].
    pub fn spawn(self) -> Result<Offspring<R>, Error> {
        Self { explicit: false, ..self }.build()
    }
}
