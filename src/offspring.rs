//! The handle.

use std::fmt;
use std::pin::Pin;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::builder::{Builder, Environment, Settings, Stream};
use crate::child;
use crate::death::{is_as_asked, last_lines};
use crate::error::{Error, ErrorKind, Subject};
use crate::limits::Limits;
use crate::parent::launcher::{self, Order, Started};
use crate::parent::reaper;
use crate::parent::shutdown::Why;
use crate::parent::table::Verdict;
use crate::parent::unit::End;
use crate::process::Process;
use crate::progress::Progress;
use crate::subprocess::Subprocess;
use crate::sys::io::{self as sysio, OwnedFd};
use crate::verdict;
use crate::wire::codec::CodecError;
use crate::wire::crossing;
use crate::wire::parcel::Bytes;

/// A unit of work in a child process, and the way to its result.
///
/// Generic in the output alone, so that units of many types fit into one `Vec`. It is a [`Future`] as well: `.await` is
/// [`wait`](Self::wait), on any executor.
///
/// Dropping it detaches the unit: the child goes on, its result is thrown away, it is reaped, and it is shut down with
/// the rest when the parent exits.
///
/// ```
/// use offspring::{Offspring, Subprocess};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Double(u32);
///
/// impl Subprocess for Double {
///     type Output = u32;
///     fn run(self) -> u32 {
///         2 * self.0
///     }
/// }
///
/// let units: Vec<Offspring<u32>> = (0..4).map(|n| Offspring::new(Double(n))).collect::<Result<_, _>>()?;
/// let results: Vec<u32> = units.into_iter().map(Offspring::wait).collect::<Result<_, _>>()?;
/// assert_eq!(results, [0, 2, 4, 6]);
/// # Ok::<(), offspring::Error>(())
/// ```
#[must_use = "dropping it lets the unit go on unseen; `wait` for it"]
pub struct Offspring<R> {
    subject: Subject,
    decode: Decode<R>,
    /// Until the start.
    order: Option<Order>,
    process: Option<Process>,
    pipes: [Option<OwnedFd>; 3],
    limits: Limits,
    timeout: Option<Duration>,
    ended: Ended,
}

/// What this handle has made of the unit's end.
enum Ended {
    NotYet,
    Taken,
    Error(Error),
}

/// A handle to be.
pub(crate) struct Plan<R> {
    order: Order,
    decode: Decode<R>,
}

/// Apart from [`Plan::new`], because the compiler forgets the bounds of `T::Output` where it is also called `R`.
fn decoder<T: Subprocess>() -> Decode<T::Output> {
    crossing::unpack::<T::Output>
}

type Decode<R> = fn(&[u8], Option<OwnedFd>) -> Result<R, CodecError>;

impl<R> Plan<R> {
    pub(crate) fn new<T: Subprocess<Output = R>>(unit: &T) -> Result<Self, Error> {
        let type_name = std::any::type_name::<T>();
        let subject = Subject { type_name, name: None, pid: None };
        let encoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| crossing::pack(unit)));
        let unit = match encoded {
            Ok(Ok(unit)) => unit,
            Ok(Err(error)) => {
                let what = format!("could not be encoded: {error}");
                return Err(Error::new(ErrorKind::Encode, &subject, &what).with_source(error));
            }
            Err(_) => {
                return Err(Error::new(
                    ErrorKind::Encode,
                    &subject,
                    "could not be encoded: its Serialize panicked",
                ));
            }
        };
        let settings = Settings {
            name: None,
            environment: Environment::default(),
            current_dir: None,
            umask: None,
            process_group: T::PROCESS_GROUP,
            limits: Limits::default(),
            streams: [Stream::Inherit, Stream::Inherit, Stream::Inherit],
            timeout: None,
            shutdown_timeout: T::SHUTDOWN_TIMEOUT,
            start_timeout: Duration::from_secs(10),
        };
        let order = Order {
            entry: child::run::entry::<T>(),
            type_name,
            unit,
            wait_for_child: T::WAIT_FOR_CHILD,
            terminate: T::TERMINATE_ON_SHUTDOWN,
            settings,
        };
        Ok(Self { order, decode: decoder::<T>() })
    }

    pub(crate) fn settings(&mut self) -> &mut Settings {
        &mut self.order.settings
    }
}

impl<R> Offspring<R> {
    /// Makes the handle and, unless [`Subprocess::EXPLICIT_START`], starts the child.
    ///
    /// With [`Subprocess::WAIT_FOR_CHILD`] this returns once the child is about to run, which blocks for about as long
    /// as a process takes to start.
    ///
    /// # Errors
    /// [`Encode`](ErrorKind::Encode): the unit's `Serialize` refused. [`Start`](ErrorKind::Start): the child could not
    /// be made; the error names the step, and [`source`](std::error::Error::source) is the system's error.
    /// [`ShuttingDown`](ErrorKind::ShuttingDown): the process is exiting. [`Unsupported`](ErrorKind::Unsupported): not
    /// Linux 5.4 or newer, or the program has raised privileges, or this crate is in a shared library that another
    /// program loaded. With `WAIT_FOR_CHILD`, also what keeps a child from getting as far as its unit.
    pub fn new<T: Subprocess<Output = R>>(unit: T) -> Result<Self, Error> {
        Self::builder(unit).build()
    }

    /// Sets up what differs from start to start.
    pub fn builder<T: Subprocess<Output = R>>(unit: T) -> Builder<R> {
        Builder::new(&unit)
    }

    pub(crate) fn planned(plan: Plan<R>) -> Self {
        let Plan { order, decode } = plan;
        let subject = order.subject();
        Self {
            subject,
            decode,
            limits: order.settings.limits.clone(),
            timeout: order.settings.timeout,
            order: Some(order),
            process: None,
            pipes: [None, None, None],
            ended: Ended::NotYet,
        }
    }

    /// Starts the child of a unit with [`Subprocess::EXPLICIT_START`].
    ///
    /// # Errors
    /// [`AlreadyStarted`](ErrorKind::AlreadyStarted), or as [`Offspring::new`]. After any other error than
    /// `AlreadyStarted` it counts as started, and the error is what `wait` gives.
    pub fn start(&mut self) -> Result<(), Error> {
        let Some(order) = self.order.take() else {
            return Err(Error::new(ErrorKind::AlreadyStarted, &self.subject, "has been started already"));
        };
        let waits = order.wait_for_child;
        let started = launcher::start(&order).and_then(|Started { unit, pipes }| {
            self.subject.pid = Some(unit.pid());
            self.pipes = pipes;
            let ready = !waits || unit.was_ready();
            self.process = Some(Process(unit));
            if ready { Ok(()) } else { self.look(None).unwrap_or_else(|| self.held()).map(drop) }
        });
        if let Err(error) = &started {
            self.ended = Ended::Error(error.clone());
        }
        started
    }

    /// It is not about to run, and has not ended: an error if it was killed.
    fn held(&self) -> Result<Option<R>, Error> {
        let (kind, why) = match self.process.as_ref().and_then(|process| process.0.is_held()) {
            None => return Ok(None),
            Some(Why::Start) => (ErrorKind::Start, "in time"),
            Some(Why::Exit) => (ErrorKind::ShuttingDown, "before its parent shut down"),
            Some(_) => (ErrorKind::Start, "before it was to end"),
        };
        Err(self.error(
            kind,
            &format!("did not become ready {why}; killed by us, and a tracer or the kernel holds it"),
        ))
    }

    /// Waits until the child has ended and been reaped; gives its result. (Who wants to keep the handle, for its progress say, waits by
    /// [`wait_timeout`](Self::wait_timeout).)
    ///
    /// # Errors
    /// Why there is none: any [`ErrorKind`] but `AlreadyStarted`.
    pub fn wait(mut self) -> Result<R, Error> {
        self.release_pipes();
        self.wait_at_most(None)?.ok_or_else(|| self.taken())
    }

    /// Waits for the result alone, and gives it as soon as it is home. The child's end (its exit handlers, the kernel's taking
    /// down of its memory) is seen to in the background, and killed after the shutdown timeout if it does not come.
    ///
    /// For a small unit that is a third to two thirds of the time that [`wait`](Self::wait) takes. If there is no result, it waits for
    /// the end, which is where the reason comes from.
    ///
    /// ```
    /// let unit = offspring::spawn(20, |n: u64| (1..=n).product::<u64>())?;
    /// assert_eq!(unit.result()?, 2_432_902_008_176_640_000);
    /// # Ok::<(), offspring::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn result(mut self) -> Result<R, Error> {
        self.release_pipes();
        let process = self.checked()?;
        self.may_block(&process)?;
        process.0.wait_outcome();
        match process.0.take_value() {
            Some(bytes) => self.decoded(bytes),
            None => self.wait(),
        }
    }

    /// As [`wait`](Self::wait), but for so long at most; `None` if the child goes on. The result is given once.
    ///
    /// # Errors
    /// As [`wait`](Self::wait); [`Taken`](ErrorKind::Taken) after the result has been given. An error is given again.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<R>, Error> {
        // Beyond what the clock can tell is for ever.
        self.wait_at_most(Some(Instant::now().checked_add(timeout)))
    }

    /// The result if the child has ended and been reaped, else `None`, at once.
    ///
    /// # Errors
    /// As [`wait_timeout`](Self::wait_timeout).
    pub fn try_wait(&mut self) -> Result<Option<R>, Error> {
        self.wait_timeout(Duration::ZERO)
    }

    fn wait_at_most(&mut self, deadline: Option<Option<Instant>>) -> Result<Option<R>, Error> {
        let process = self.checked()?;
        self.may_block(&process)?;
        if process.0.wait_until(deadline.flatten()) { self.look(None).unwrap_or(Ok(None)) } else { Ok(None) }
    }

    /// Ends the unit, and waits for its end: TERM (and CONT, for a stopped one), KILL after the shutdown timeout. One that leads
    /// a process group ([`Subprocess::PROCESS_GROUP`]) is ended, and waited for, with all of it.
    ///
    /// `Some` if its result came, `None` if it was ended first or never started. A unit that is not to be terminated
    /// ([`Subprocess::TERMINATE_ON_SHUTDOWN`]) is waited for.
    ///
    /// # Errors
    /// Any other death, a panic, or a timeout that struck before.
    pub fn shutdown(mut self) -> Result<Option<R>, Error> {
        if self.order.is_some() {
            return Ok(None);
        }
        self.release_pipes();
        let process = self.checked()?;
        process.0.ask_to_end(Why::Shutdown);
        self.may_block(&process)?;
        process.0.wait_until(None);
        process.0.wait_for_group();
        let was_ended = process.0.poll(None, was_ended).unwrap_or(false);
        if was_ended { Ok(None) } else { self.look(None).unwrap_or(Ok(None)) }
    }

    /// The child process; `None` before the start, and after one that failed.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// How far the unit has got, as it has reported last ([`Current::progress`](crate::Current::progress)); also after its end. `None`
    /// before the first report, before the start, and in a process that a user's own `fork` copied. Does not wait.
    ///
    /// ```
    /// let unit = offspring::spawn((), |()| ())?;
    /// assert_eq!(unit.progress(), None);
    /// unit.wait()?;
    /// # Ok::<(), offspring::Error>(())
    /// ```
    pub fn progress(&self) -> Option<Progress> {
        self.process.as_ref().filter(|process| process.0.is_ours())?.0.progress()
    }

    /// The writing end of the child's standard input, if it was asked for as a pipe. Once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.pipes[0].take().map(ChildStdin::from)
    }

    /// The reading end of the child's standard output, if it was asked for as a pipe. Once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.pipes[1].take().map(ChildStdout::from)
    }

    /// The reading end of the child's standard error, if it was asked for as a pipe. Once.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.pipes[2].take().map(ChildStderr::from)
    }

    fn error(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(kind, &self.subject, what)
    }

    fn taken(&self) -> Error {
        self.error(ErrorKind::Taken, "its result has been given already")
    }

    /// A waker may be called by the reaper: to wait for an end there would be for ever.
    fn may_block(&self, process: &Process) -> Result<(), Error> {
        if process.is_alive() && reaper::is_this_thread() {
            return Err(self.error(ErrorKind::Unsupported, "cannot be waited for in a waker"));
        }
        Ok(())
    }

    /// The process, if waiting for it makes sense.
    fn checked(&self) -> Result<Process, Error> {
        match (&self.ended, &self.process) {
            (Ended::Error(error), _) => Err(error.clone()),
            (Ended::Taken, _) => Err(self.taken()),
            (Ended::NotYet, None) => Err(self.error(ErrorKind::NotStarted, "has not been started")),
            (Ended::NotYet, Some(process)) if !process.0.is_ours() => Err(self.error(
                ErrorKind::Unsupported,
                "belongs to the process that was forked, not to this copy of it",
            )),
            (Ended::NotYet, Some(process)) => Ok(process.clone()),
        }
    }

    /// The end, if it has come.
    fn look(&mut self, context: Option<&mut Context<'_>>) -> Option<Result<Option<R>, Error>> {
        let process = match self.checked() {
            Ok(process) => process,
            Err(error) => return Some(Err(error)),
        };
        let waker = context.map(|context| context.waker());
        let (verdict, mut death) =
            process.0.poll(waker, |end| (end.verdict.take(), verdict::certify(&self.subject, end)))?;
        if let (None, Some(pipe)) = (&death.stderr, &self.pipes[2]) {
            death.stderr = sysio::peek(pipe).ok().map(|bytes| last_lines(&bytes));
        }
        // Decoded here, in the thread that asks.
        let result = verdict
            .ok_or_else(|| self.taken())
            .and_then(|verdict| verdict::judge(verdict, death, &self.limits, self.timeout))
            .and_then(|bytes| self.decoded(bytes));
        self.ended = match &result {
            Ok(_) => Ended::Taken,
            Err(error) => Ended::Error(error.clone()),
        };
        Some(result.map(Some))
    }

    fn decoded(&self, mut bytes: Bytes) -> Result<R, Error> {
        let bag = bytes.bag.take();
        let decode = std::panic::AssertUnwindSafe(|| (self.decode)(&bytes, bag));
        match std::panic::catch_unwind(decode) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let what = format!("its result could not be decoded in the parent: {error}");
                Err(self.error(ErrorKind::Decode, &what).with_source(error))
            }
            Err(_) => Err(self.error(
                ErrorKind::Decode,
                "its result could not be decoded in the parent: its Deserialize panicked",
            )),
        }
    }

    /// Nobody can take the pipes any more: the input is closed, the outputs are read and thrown away.
    fn release_pipes(&mut self) {
        let pipes = std::mem::take(&mut self.pipes);
        let Some(process) = &self.process else { return };
        let [_input, output, errors] = pipes;
        if (output.is_some() || errors.is_some()) && process.0.is_ours() {
            // If it has ended, what it said last is in there.
            self.pipes[2] = process.0.drain([output, errors]);
        }
    }
}

/// Whether it was a shutdown that ended it, and nothing else.
fn was_ended(end: &mut End) -> bool {
    let Some(Verdict::Died { ended: Some((why, _)), breach: None, .. }) = &end.verdict else { return false };
    matches!(why, Why::Shutdown | Why::Exit) && is_as_asked(end.status)
}

impl<R> Drop for Offspring<R> {
    fn drop(&mut self) {
        self.release_pipes();
    }
}

impl<R> Future for Offspring<R> {
    type Output = Result<R, Error>;

    /// As [`Offspring::wait`], but the pipes stay: `(&mut handle).await` keeps the handle.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.look(Some(context)) {
            None => Poll::Pending,
            Some(result) => Poll::Ready(result.and_then(|value| value.ok_or_else(|| this.taken()))),
        }
    }
}

impl<R> fmt::Debug for Offspring<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offspring").field("unit", &self.subject.to_string()).finish_non_exhaustive()
    }
}
