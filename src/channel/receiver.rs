//! The end of a channel that receives.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::reactor::Registration;
use super::{AGAIN, BAG, ELSEWHERE, End, RecvError, RecvTimeoutError, SMALL, Stop, TryRecvError, Wanted};
use crate::fd::{Arrived, Leaving};
use crate::sys::io::{self as sysio, AsFd, Sign};
use crate::sys::memory::Mapping;
use crate::wire::crossing;

/// The end of a [`channel`](crate::channel()) that receives. Cheap to clone; clones may be in other processes, and each message goes to one of
/// them. When the last is dropped, what nobody has received is lost, and sending is an error from then on.
///
/// ```
/// use offspring::{Sender, channel, spawn};
///
/// let (sender, receiver) = channel(4)?;
/// let unit = spawn(sender, |sender: Sender<u32>| (1..=3).for_each(|n| sender.send(n).unwrap()))?;
/// assert_eq!(receiver.recv()?, 1);
/// assert_eq!(receiver.into_iter().collect::<Vec<_>>(), [2, 3]);
/// unit.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Receiver<T> {
    end: Arc<End>,
    message: PhantomData<fn() -> T>,
}

impl<T> Receiver<T> {
    pub(super) fn new(end: Arc<End>) -> Self {
        Self { end, message: PhantomData }
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives a message; waits for one.
    ///
    /// # Errors
    /// [`Disconnected`](RecvError::Disconnected) when nobody can send any more and all has been received, also while it waits;
    /// [`Failed`](RecvError::Failed).
    pub fn recv(&self) -> Result<T, RecvError> {
        Ok(self.recv_until(None)?)
    }

    /// As [`recv`](Self::recv), but does not wait.
    ///
    /// # Errors
    /// As there; and [`Empty`](TryRecvError::Empty).
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        Ok(self.end.receive(false)?)
    }

    /// As [`recv`](Self::recv), but waits for so long at most.
    ///
    /// # Errors
    /// As there; and [`Timeout`](RecvTimeoutError::Timeout).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        // Beyond what the clock can tell is for ever.
        Ok(self.recv_until(Instant::now().checked_add(timeout))?)
    }

    /// As [`recv`](Self::recv), on any executor. Dropped before it is done, it has received nothing.
    ///
    /// # Errors
    /// As there.
    pub fn recv_async(&self) -> impl Future<Output = Result<T, RecvError>> + use<'_, T> {
        Receiving { receiver: self, wait: None }
    }

    /// The messages, until nobody can send any more, or one cannot be had (which of these, [`recv`](Self::recv) tells). Waits for each.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter(self)
    }

    /// The messages that are there.
    ///
    /// ```
    /// let (sender, receiver) = offspring::channel(2)?;
    /// sender.send(1)?;
    /// sender.send(2)?;
    /// assert_eq!(receiver.try_iter().collect::<Vec<i32>>(), [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_iter(&self) -> TryIter<'_, T> {
        TryIter(self)
    }

    fn recv_until(&self, deadline: Option<Instant>) -> Result<T, Stop> {
        loop {
            // In the receive itself: one call in the place of three, and each message wakes one of those who wait so. Not if the count
            // speaks of messages, which may be wrong.
            let waits = deadline.is_none() && !self.end.gate.is_counted();
            match self.end.receive(waits) {
                Err(stop @ Stop::Wait(_)) => {
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|left| left.is_zero()) {
                        return Err(stop);
                    }
                    // If the count speaks of messages that are not there, that is looked at again.
                    let again = self.end.gate.is_counted().then_some(AGAIN);
                    let time = left.into_iter().chain(again).min();
                    sysio::wait_for(&[(self.end.socket.as_fd(), Sign::Readable)], time);
                }
                done => return done,
            }
        }
    }
}

thread_local! {
    /// Where messages are received. Not in the middle of one that is being decoded, whose code may receive others.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl End {
    /// The next message; `waits` for one, if its socket does.
    fn receive<T: DeserializeOwned>(&self, waits: bool) -> Result<T, Stop> {
        // (When the thread ends there is none any more.)
        let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
        // A byte more than there can be, so that what is cut off shows.
        buffer.resize(SMALL + 2, 0);
        let receive = if waits { sysio::await_with } else { sysio::receive_with };
        let received = receive(&self.socket, &mut buffer);
        let is_over = || sysio::wait_for(&[(self.socket.as_fd(), Sign::End)], Some(Duration::ZERO));
        let no_message = || Stop::Failed(io::Error::other("it is no message"));
        let received = received.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                self.gate.suspect(true);
                Stop::Wait(Wanted::Message)
            }
            // Said once, when the last sender has gone and something that he did not read was sent to him. What he sent before comes after.
            io::ErrorKind::ConnectionReset => no_message(),
            _ => Stop::Failed(error),
        });
        let result = received.and_then(|received| match buffer[..received.count] {
            // Of somebody who means no good, or of nobody.
            [] => Err(if is_over() { Stop::Disconnected } else { no_message() }),
            [tag, ref body @ ..] => {
                self.gate.leave();
                let mut descriptors = received.descriptors.into_iter().flatten();
                unpack(tag, body, &mut descriptors).map_err(Stop::Failed)
            }
        });
        let _ = BUFFER.try_with(|kept| kept.set(buffer));
        result
    }
}

/// A message of which this is the first byte and the rest; its descriptors.
fn unpack<T: DeserializeOwned>(
    tag: u8,
    body: &[u8],
    descriptors: &mut impl Iterator<Item = sysio::OwnedFd>,
) -> io::Result<T> {
    let lost = || io::Error::other("its descriptor was lost: too many open files");
    let mapping = if tag & ELSEWHERE != 0 {
        let length =
            body.try_into().ok().map(u64::from_le_bytes).and_then(|length| usize::try_from(length).ok());
        let length = length.ok_or_else(|| io::Error::other("it is no message"))?;
        Some(Mapping::of(&descriptors.next().ok_or_else(lost)?, length, true)?)
    } else {
        None
    };
    let bag = if tag & BAG != 0 { Some(descriptors.next().ok_or_else(lost)?) } else { None };
    crossing::unpack(mapping.as_deref().unwrap_or(body), bag).map_err(io::Error::other)
}

/// A message that is to be received.
struct Receiving<'a, T> {
    receiver: &'a Receiver<T>,
    wait: Option<Registration>,
}

impl<T: DeserializeOwned> Future for Receiving<'_, T> {
    type Output = Result<T, RecvError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.wait = None;
        let end = &this.receiver.end;
        let first = end.receive(false);
        let Err(Stop::Wait(_)) = first else { return Poll::Ready(first.map_err(RecvError::from)) };
        match Registration::new(&end.socket, Sign::Readable, None, context.waker()) {
            // Whatever has come meanwhile, it is told of.
            Ok(wait) => this.wait = Some(wait),
            Err(stop) => return Poll::Ready(Err(stop.into())),
        }
        Poll::Pending
    }
}

/// The messages of a channel: see [`Receiver::iter`].
///
/// ```
/// let (sender, receiver) = offspring::channel(1)?;
/// sender.send(1)?;
/// let mut messages = receiver.iter();
/// assert_eq!(messages.next(), Some(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Iter<'a, T>(&'a Receiver<T>);

impl<T: DeserializeOwned> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}

/// The messages that are there: see [`Receiver::try_iter`].
///
/// ```
/// let (_sender, receiver) = offspring::channel::<u8>(1)?;
/// assert_eq!(receiver.try_iter().next(), None);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct TryIter<'a, T>(&'a Receiver<T>);

impl<T: DeserializeOwned> Iterator for TryIter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.try_recv().ok()
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T: DeserializeOwned> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

/// The messages of a channel, and its end: `for message in receiver`.
///
/// ```
/// let (sender, receiver) = offspring::channel(1)?;
/// sender.send(1)?;
/// assert_eq!(receiver.into_iter().next(), Some(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IntoIter<T>(Receiver<T>);

impl<T: DeserializeOwned> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self::new(self.end.clone())
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

#[cfg(unix)]
impl<T> AsFd for Receiver<T> {
    /// Readable when a message is there, or nobody can send any more.
    fn as_fd(&self) -> sysio::BorrowedFd<'_> {
        self.end.socket.as_fd()
    }
}

impl<T> Serialize for Receiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Leaving(self.end.socket.as_fd()), &self.end.gate).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Receiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Arrived(socket), gate) = Deserialize::deserialize(deserializer)?;
        Ok(Self::new(Arc::new(End { socket, gate })))
    }
}
