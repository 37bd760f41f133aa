//! Why there is no result.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::death::Death;
use crate::limits::Limit;
use crate::sys::limit;
use crate::wire::message::Panicked;

/// Why a unit could not be started, or has no result.
///
/// Its text names the unit, its pid if it had one, and the step that failed. Cheap to clone: a handle gives the same
/// error again each time it is asked.
///
/// ```
/// # use offspring::{spawn, ErrorKind};
/// let unit = spawn(3, |code: i32| -> () { std::process::exit(code) })?;
/// let error = unit.wait().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Died);
/// assert_eq!(error.death().unwrap().status().code(), Some(3));
/// # Ok::<(), offspring::Error>(())
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: Subject,
    what: String,
    panic: Option<Panic>,
    death: Option<Death>,
    limit: Option<Limit>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What kind of failure an [`Error`] tells of.
///
/// ```
/// use offspring::ErrorKind;
/// assert_ne!(ErrorKind::Panicked, ErrorKind::Died);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The unit had been started before.
    AlreadyStarted,
    /// The unit has not been started yet.
    NotStarted,
    /// The child could not be made, or did not get as far as its unit.
    Start,
    /// The unit could not be encoded in the parent, or its result in the child.
    Encode,
    /// The unit could not be decoded in the child, or its result in the parent.
    Decode,
    /// The unit panicked: see [`Error::panic`].
    Panicked,
    /// The child ended without a result: see [`Error::death`].
    Died,
    /// The unit's time was over before its result came, and it was ended.
    TimedOut,
    /// The result has been given already.
    Taken,
    /// The parent is exiting, or `offspring::shutdown` ended the unit.
    ShuttingDown,
    /// Not possible on this platform, or for this program.
    Unsupported,
}

/// Whom an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) type_name: &'static str,
    pub(crate) name: Option<String>,
    pub(crate) pid: Option<u32>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}", self.type_name)?;
        if let Some(name) = self.name.as_deref().filter(|name| *name != self.type_name) {
            write!(f, " '{name}'")?;
        }
        self.pid.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, subject: &Subject, what: &str) -> Self {
        let (subject, what) = (subject.clone(), what.to_owned());
        Self(Arc::new(Inner { kind, subject, what, panic: None, death: None, limit: None, source: None }))
    }

    pub(crate) fn start(subject: &Subject, step: &str, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Start,
        };
        let limit = limit::hint(step, &source).unwrap_or_default();
        Self::new(kind, subject, &format!("could not be started: {step}: {source}{limit}"))
            .with_source(source)
    }

    // The builders below are called on an error that nobody else has seen yet, so that it is still our own.
    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            change(inner);
        }
        self
    }

    pub(crate) fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.change(|inner| inner.source = Some(Box::new(source)))
    }

    pub(crate) fn with_panic(self, panic: Panicked) -> Self {
        self.change(|inner| inner.panic = Some(Panic(panic)))
    }

    pub(crate) fn with_death(self, death: Death) -> Self {
        self.change(|inner| inner.death = Some(death))
    }

    pub(crate) fn with_limit(self, limit: Option<Limit>) -> Self {
        self.change(|inner| inner.limit = limit)
    }

    /// What kind of failure this is.
    ///
    /// ```
    /// # use offspring::{spawn, ErrorKind};
    /// let error = spawn((), |()| -> () { panic!("no") }).and_then(|unit| unit.wait()).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Panicked);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The panic that ended the unit, if one did.
    ///
    /// ```
    /// # use offspring::spawn;
    /// let error = spawn((), |()| -> () { panic!("no") }).and_then(|unit| unit.wait()).unwrap_err();
    /// assert_eq!(error.panic().unwrap().message(), "no");
    /// ```
    pub fn panic(&self) -> Option<&Panic> {
        self.0.panic.as_ref()
    }

    /// The death of the child, whenever there was one and it gave no result.
    ///
    /// ```
    /// # use offspring::spawn;
    /// let error = spawn((), |()| -> () { std::process::abort() }).and_then(|unit| unit.wait()).unwrap_err();
    /// assert!(!error.death().unwrap().status().success());
    /// ```
    pub fn death(&self) -> Option<&Death> {
        self.0.death.as_ref()
    }
}

impl Error {
    /// The limit that has ended the unit. Of [`Limit::Memory`] this is a guess (a program that gets no memory aborts or crashes, as
    /// it does for other reasons), and the error's text says "may have".
    ///
    /// ```
    /// use offspring::{Limit, Offspring, Subprocess};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Hungry;
    /// impl Subprocess for Hungry {
    ///     type Output = usize;
    ///     fn run(self) -> usize {
    ///         std::hint::black_box(vec![1_u8; 4 << 30]).len()
    ///     }
    /// }
    /// let unit = Offspring::builder(Hungry).limit_memory(1 << 30).limit_core_size(0).spawn()?;
    /// let error = unit.wait().unwrap_err();
    /// assert_eq!(error.limit(), Some(Limit::Memory(1 << 30)));
    /// # Ok::<(), offspring::Error>(())
    /// ```
    pub fn limit(&self) -> Option<Limit> {
        self.0.limit
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.subject, self.0.what)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("text", &self.to_string())
            // It stands in the death, if there was one.
            .field("panic", &self.0.panic.as_ref().filter(|_| self.0.death.is_none()))
            .field("death", &self.0.death)
            .field("limit", &self.0.limit)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// A panic in a child, brought home whole.
///
/// ```
/// # use offspring::spawn;
/// let error = spawn(7, |n: u32| -> () { panic!("seen {n}") })?.wait().unwrap_err();
/// let panic = error.panic().unwrap();
/// assert_eq!(panic.message(), "seen 7");
/// assert!(panic.line().is_some());
/// assert_eq!(panic.thread(), Some("main"));
/// # Ok::<(), offspring::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic(pub(crate) Panicked);

impl Panic {
    /// What it said; `Box<dyn Any>` if its payload was no string.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The source file; `None` if the unit had set a panic hook of its own.
    pub fn file(&self) -> Option<&str> {
        self.0.file.as_deref()
    }

    /// The line in it, from 1.
    pub fn line(&self) -> Option<u32> {
        self.0.line
    }

    /// The column in it, from 1.
    pub fn column(&self) -> Option<u32> {
        self.0.column
    }

    /// The thread's name: `main` for the unit's own.
    pub fn thread(&self) -> Option<&str> {
        self.0.thread.as_deref()
    }

    /// The backtrace, if the child's `RUST_BACKTRACE` asked for one.
    pub fn backtrace(&self) -> Option<&str> {
        self.0.backtrace.as_deref()
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.message)?;
        if let (Some(file), Some(line), Some(column)) = (self.file(), self.line(), self.column()) {
            write!(f, ", at {file}:{line}:{column}")?;
        }
        Ok(())
    }
}
