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

use super::bell::Waiting;
use super::end::End;
use super::reactor::Registration;
use super::ring::Popped;
use super::{AGAIN, BAG, ELSEWHERE, RecvError, RecvTimeoutError, SMALL, Stop, TryRecvError, Wanted};
use crate::sys::io::{self as sysio, AsFd, Sign};
use crate::sys::limit;
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
    pub(super) end: Arc<End>,
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
        Ok(self.end.receive(Look::Now)?)
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
        let end = &*self.end;
        let mut look = Look::Ring;
        loop {
            // In the receive itself: one call in the place of three, and each message wakes one of those who wait so. Not if the count
            // speaks of messages, which may be wrong.
            if deadline.is_none() && end.ring.is_closed() && !end.gate.is_counted() {
                look = Look::Wait;
            }
            let received = end.receive(look);
            if look == Look::Told {
                end.found(&received);
            }
            let stop = match received {
                Err(stop @ Stop::Wait(_)) => stop,
                done => return done,
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            look = match left {
                // At the end of the time all is looked at once more.
                Some(Duration::ZERO) if look == Look::Now => return Err(stop),
                Some(Duration::ZERO) => Look::Now,
                _ => end.wait_for_message(left),
            };
        }
    }
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// A message in the ring; one in the socket only if there can be none in the ring.
    Ring,
    /// The same, as somebody has said that there is one.
    Told,
    /// A message, or the end.
    Now,
    /// The same; if there is none in the socket, it is waited for, if the socket does.
    Wait,
}

thread_local! {
    /// Where messages are received. Not in the middle of one that is being decoded, whose code may receive others.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl End {
    /// The next message.
    pub(super) fn receive<T: DeserializeOwned>(&self, look: Look) -> Result<T, Stop> {
        // (When the thread ends there is none any more.)
        let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
        // A byte more than there can be, so that what is cut off shows.
        let most = self.ring.most().max(SMALL + 2);
        if buffer.len() < most {
            buffer.resize(most, 0);
        }
        let result = match self.ring.pop(&mut buffer) {
            Popped::Message(length) => self.take(&buffer[..length]),
            Popped::Closed => {
                self.is_emptied();
                self.hear(&mut buffer, look)
            }
            Popped::Busy => Err(Stop::Wait(Wanted::Message)),
            Popped::Empty
                if matches!(look, Look::Ring | Look::Told) || !sysio::is_readable(&self.socket, 0) =>
            {
                Err(Stop::Wait(Wanted::Message))
            }
            // It has been closed meanwhile, or all senders are gone; whatever they have put in before can be seen now.
            Popped::Empty => match self.ring.pop(&mut buffer) {
                Popped::Message(length) => self.take(&buffer[..length]),
                Popped::Busy => Err(Stop::Wait(Wanted::Message)),
                Popped::Empty | Popped::Closed => self.hear(&mut buffer, Look::Now),
            },
        };
        let _ = BUFFER.try_with(|kept| kept.set(buffer));
        result
    }

    /// What has come out of the ring.
    fn take<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, Stop> {
        self.bell.has_found();
        self.gate.tell();
        crossing::unpack(bytes, None).map_err(|error| Stop::Failed(io::Error::other(error)))
    }

    /// What is in the socket.
    pub(super) fn hear<T: DeserializeOwned>(&self, buffer: &mut [u8], look: Look) -> Result<T, Stop> {
        let receive = if look == Look::Wait { sysio::await_with } else { sysio::receive_with };
        let received = receive(&self.socket, buffer);
        let no_message = || Stop::Failed(io::Error::other("it is no message"));
        let received = received.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                self.gate.suspect(true);
                Stop::Wait(Wanted::Message)
            }
            // Said once, when the last sender has gone and something that he did not read was sent to him. What he sent before comes after.
            io::ErrorKind::ConnectionReset => no_message(),
            _ => Stop::Failed(error),
        })?;
        match buffer[..received.count] {
            // The last may have put something into the ring before it went.
            [] if self.is_over() => match self.ring.pop(buffer) {
                Popped::Message(length) => self.take(&buffer[..length]),
                Popped::Busy => Err(Stop::Wait(Wanted::Message)),
                Popped::Empty | Popped::Closed => Err(Stop::Disconnected),
            },
            // Of somebody who means no good, or of nobody.
            [] => Err(no_message()),
            [tag, ref body @ ..] => {
                self.gate.leave();
                let mut descriptors = received.descriptors.into_iter().flatten();
                unpack(tag, body, &mut descriptors).map_err(Stop::Failed)
            }
        }
    }

    /// What somebody has found who was told that there is something.
    fn found<T>(&self, received: &Result<T, Stop>) {
        if matches!(received, Err(Stop::Wait(_))) && self.bell.is_in_vain() {
            // The kernel wakes one for each message.
            self.ring.close();
        }
    }

    /// Until there may be a message, nobody can send any more, or so long; where to look then.
    pub(super) fn wait_for_message(&self, time: Option<Duration>) -> Look {
        if self.ring.is_closed() {
            // Who put this in may have told nobody, or us, who do not listen to that any more.
            if !self.ring.is_empty() {
                return Look::Now;
            }
            // If the count speaks of messages that are not there, that is looked at again.
            let again = self.gate.is_counted().then_some(AGAIN);
            sysio::wait_for(&[(self.socket.as_fd(), Sign::Readable)], time.into_iter().chain(again).min());
            return Look::Now;
        }
        let waiting = self.bell.wait();
        if self.ring.has_news() {
            return Look::Ring;
        }
        let ready = sysio::wait_any(&[self.bell.tokens.as_fd(), self.socket.as_fd()], false, time);
        if ready[0] {
            return if waiting.told() { Look::Told } else { Look::Ring };
        }
        // Also at the end of the time.
        Look::Now
    }
}

/// A message of which this is the first byte and the rest; its descriptors.
fn unpack<T: DeserializeOwned>(
    tag: u8,
    body: &[u8],
    descriptors: &mut impl Iterator<Item = sysio::OwnedFd>,
) -> io::Result<T> {
    let lost = || io::Error::other(format!("its descriptor was lost: {}", limit::no_room()));
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
    wait: Option<(Waiting<'a>, Vec<Registration>)>,
}

impl<T: DeserializeOwned> Future for Receiving<'_, T> {
    type Output = Result<T, RecvError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let end = &*this.receiver.end;
        let is_told = this.wait.take().is_some_and(|(waiting, _)| waiting.told());
        let mut step = || {
            let first = end.receive(Look::Now);
            if is_told {
                end.found(&first);
            }
            let Err(Stop::Wait(_)) = first else { return first };
            // First the wish, then a second look: of whatever comes after that, it is told.
            let waiting = end.bell.wait();
            let register = |descriptor| Registration::new(descriptor, Sign::Readable, None, context.waker());
            let mut all = vec![register(&end.socket)?];
            // Nobody rings any more for one that is closed.
            if !end.ring.is_closed() {
                all.push(register(&end.bell.tokens)?);
            }
            this.wait = Some((waiting, all));
            end.receive(Look::Now)
        };
        match step() {
            Err(Stop::Wait(_)) => Poll::Pending,
            done => {
                this.wait = None;
                Poll::Ready(done.map_err(RecvError::from))
            }
        }
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
    /// Readable when a message is there, or nobody can send any more; there may be none all the same. Small messages go by the kernel from the first
    /// time on that this is asked for: it would not know of them, and tell nobody. (Without a descriptor to be had for it, those that were sent
    /// before do not show.)
    fn as_fd(&self) -> sysio::BorrowedFd<'_> {
        self.end.watched().as_fd()
    }
}

impl<T> Serialize for Receiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.end.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Receiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        End::deserialize(deserializer).map(|end| Self::new(Arc::new(end)))
    }
}
