//! What differs from start to start.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
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

#[derive(Clone)]
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
    /// [`ErrorKind::TimedOut`], unless its result came first. Default: no limit.
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
    /// [`ErrorKind::Start`]. Default: 10 s.
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
