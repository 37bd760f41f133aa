//! What a user writes: a unit of work.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::child;
use crate::error::Error;
use crate::offspring::Offspring;
use crate::sys::image::Function;

/// The pause between two ticks for who has no other in mind: 50 ms.
///
/// ```
/// assert_eq!(offspring::PAUSE.as_millis(), 50);
/// ```
pub const PAUSE: Duration = Duration::from_millis(50);

/// A unit of work that runs once, in a child process.
///
/// The unit itself crosses to the child as a serde value, and its output back.
///
/// ```
/// use offspring::{Offspring, Subprocess};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Add(u32, u32);
///
/// impl Subprocess for Add {
///     type Output = u32;
///     fn run(self) -> u32 {
///         self.0 + self.1 // in the child
///     }
/// }
///
/// let sum = Offspring::new(Add(2, 3))?.wait()?;
/// assert_eq!(sum, 5);
/// # Ok::<(), offspring::Error>(())
/// ```
pub trait Subprocess: Serialize + DeserializeOwned + 'static {
    /// What comes home.
    type Output: Serialize + DeserializeOwned + 'static;

    /// Whether the start returns only once the child is about to call `run`. Default: no.
    const WAIT_FOR_CHILD: bool = false;

    /// Whether shutdown and the parent's end send TERM (and KILL after [`Self::SHUTDOWN_TIMEOUT`]). If not, the unit is
    /// waited for, and runs to its end even if its parent dies (unless that is a unit with a cgroup of its own, which ends all in it: see
    /// [`Builder::process_group`](crate::Builder::process_group)). Default: yes.
    const TERMINATE_ON_SHUTDOWN: bool = true;

    /// Whether a new handle waits for [`Offspring::start`] before there is a child. Default: no.
    const EXPLICIT_START: bool = false;

    /// How long after TERM comes KILL; `None`: never. Default: 10 s.
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_secs(10));

    /// Whether the unit leads a process group of its own, which is ended with it: see [`Builder::process_group`]. Default: no,
    /// it is in its parent's.
    ///
    /// [`Builder::process_group`]: crate::Builder::process_group
    const PROCESS_GROUP: bool = false;

    #[doc(hidden)]
    const LOOPS: bool = false;

    /// The work. Runs in the child process, on its first thread.
    fn run(self) -> Self::Output;

    /// Starts the unit, whatever [`Self::EXPLICIT_START`] says. Runs in the parent.
    ///
    /// # Errors
    /// As [`Offspring::new`].
    ///
    /// ```
    /// # use offspring::Subprocess;
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Answer;
    /// impl Subprocess for Answer {
    ///     type Output = u32;
    ///     fn run(self) -> u32 {
    ///         42
    ///     }
    /// }
    /// assert_eq!(Answer.spawn()?.wait()?, 42);
    /// # Ok::<(), offspring::Error>(())
    /// ```
    fn spawn(self) -> Result<Offspring<Self::Output>, Error> {
        Offspring::builder(self).spawn()
    }

    /// Runs the unit, and gives its result as soon as it is home: [`spawn`](Self::spawn) and
    /// [`result`](Offspring::result) in one. Runs in the parent, and blocks.
    ///
    /// # Errors
    /// As these.
    ///
    /// ```
    /// # use offspring::Subprocess;
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize)]
    /// struct Length(String);
    ///
    /// impl Subprocess for Length {
    ///     type Output = usize;
    ///     fn run(self) -> usize {
    ///         self.0.len()
    ///     }
    /// }
    /// assert_eq!(Length("four".into()).call()?, 4);
    /// # Ok::<(), offspring::Error>(())
    /// ```
    fn call(self) -> Result<Self::Output, Error> {
        self.spawn()?.result()
    }
}

/// A unit of work that runs in a loop, in a child process, until it breaks or is told to stop.
///
/// TERM and INT end the loop after the tick in progress; a sleep is cut short. `end` runs however the loop ended, also
/// after a panic in `begin` or `tick` (but not in a program built with `panic = "abort"`).
///
/// ```
/// use std::{ops::ControlFlow, time::Duration};
/// use offspring::{Offspring, SubprocessLoop};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Count(u32);
///
/// impl SubprocessLoop for Count {
///     type Output = u32;
///     fn tick(&mut self) -> ControlFlow<(), Duration> {
///         self.0 += 1;
///         if self.0 < 3 { ControlFlow::Continue(Duration::ZERO) } else { ControlFlow::Break(()) }
///     }
///     fn end(self) -> u32 {
///         self.0
///     }
/// }
///
/// assert_eq!(Offspring::new(Count(0))?.wait()?, 3);
/// # Ok::<(), offspring::Error>(())
/// ```
pub trait SubprocessLoop: Serialize + DeserializeOwned + 'static {
    /// What comes home.
    type Output: Serialize + DeserializeOwned + 'static;

    /// As [`Subprocess::TERMINATE_ON_SHUTDOWN`].
    const TERMINATE_ON_SHUTDOWN: bool = true;

    /// As [`Subprocess::EXPLICIT_START`].
    const EXPLICIT_START: bool = false;

    /// As [`Subprocess::SHUTDOWN_TIMEOUT`].
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_secs(10));

    /// As [`Subprocess::PROCESS_GROUP`].
    const PROCESS_GROUP: bool = false;

    /// Called once, before the first tick.
    fn begin(&mut self) {}

    /// Called again and again. Gives how long to sleep until the next, or `Break`.
    fn tick(&mut self) -> ControlFlow<(), Duration>;

    /// Called once, however the loop ended; gives the result.
    fn end(self) -> Self::Output;
}

/// A loop is a unit whose start returns once its handlers for TERM and INT are in place: `begin` and `end` are called
/// even if TERM is the next thing to happen.
impl<T: SubprocessLoop> Subprocess for T {
    type Output = T::Output;

    const WAIT_FOR_CHILD: bool = true;
    const TERMINATE_ON_SHUTDOWN: bool = T::TERMINATE_ON_SHUTDOWN;
    const EXPLICIT_START: bool = T::EXPLICIT_START;
    const SHUTDOWN_TIMEOUT: Option<Duration> = T::SHUTDOWN_TIMEOUT;
    const PROCESS_GROUP: bool = T::PROCESS_GROUP;
    const LOOPS: bool = true;

    fn run(self) -> T::Output {
        child::tick::drive(self)
    }
}

/// Runs `f(args)` in a child process: a function, or a closure that captures nothing.
///
/// # Errors
/// As [`Offspring::new`]. A function of a shared library, which a child cannot name, is [`ErrorKind::Encode`].
///
/// [`ErrorKind::Encode`]: crate::ErrorKind::Encode
///
/// ```
/// let unit = offspring::spawn((2, 3), |(a, b): (u32, u32)| a + b)?;
/// assert_eq!(unit.wait()?, 5);
/// # Ok::<(), offspring::Error>(())
/// ```
pub fn spawn<A, R>(args: A, f: fn(A) -> R) -> Result<Offspring<R>, Error>
where
    A: Serialize + DeserializeOwned + 'static,
    R: Serialize + DeserializeOwned + 'static,
{
    Call { args, f: Function(f) }.spawn()
}

/// The unit behind [`spawn`].
#[derive(Serialize, Deserialize)]
#[serde(bound(serialize = "A: Serialize", deserialize = "A: DeserializeOwned"))]
struct Call<A, R> {
    args: A,
    f: Function<A, R>,
}

impl<A, R> Subprocess for Call<A, R>
where
    A: Serialize + DeserializeOwned + 'static,
    R: Serialize + DeserializeOwned + 'static,
{
    type Output = R;

    fn run(self) -> R {
        (self.f.0)(self.args)
    }
}
