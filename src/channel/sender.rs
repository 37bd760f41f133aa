//! The end of a channel that sends.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::end::End;
use super::reactor::Registration;
use super::ring::Pushed;
use super::{AGAIN, BAG, ELSEWHERE, SMALL, SendError, SendTimeoutError, Stop, TrySendError, Wanted};
use crate::sys::io::{self as sysio, AsFd, BorrowedFd, OwnedFd, Sign};
use crate::sys::memory;
use crate::wire::codec::Encoded;
use crate::wire::crossing::{self, Packed};

/// The end of a [`channel`](crate::channel()) that sends. Cheap to clone; clones may be in other processes. When the last is dropped, those who
/// receive get what is there, and then the end.
///
/// ```
/// let (sender, receiver) = offspring::channel(2)?;
/// sender.send("a message".to_owned())?;
/// drop(sender);
/// assert_eq!(receiver.iter().collect::<Vec<String>>(), ["a message"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sender<T> {
    pub(super) end: Arc<End>,
    message: PhantomData<fn(T)>,
}

impl<T> Sender<T> {
    pub(super) fn new(end: Arc<End>) -> Self {
        Self { end, message: PhantomData }
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a message; waits for room.
    ///
    /// # Errors
    /// [`Disconnected`](SendError::Disconnected) when nobody can receive any more, also while it waits; [`Failed`](SendError::Failed). The
    /// message comes back.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.send_until(&message, None).map_err(|stop| SendError::new(message, stop))
    }

    /// As [`send`](Self::send), but does not wait.
    ///
    /// # Errors
    /// As there; and [`Full`](TrySendError::Full).
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let sent = Message::pack(&message).and_then(|packed| self.end.send(&packed));
        sent.map_err(|stop| TrySendError::new(message, stop))
    }

    /// As [`send`](Self::send), but waits for so long at most.
    ///
    /// # Errors
    /// As there; and [`Timeout`](SendTimeoutError::Timeout).
    pub fn send_timeout(&self, message: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        // Beyond what the clock can tell is for ever.
        let deadline = Instant::now().checked_add(timeout);
        self.send_until(&message, deadline).map_err(|stop| SendTimeoutError::new(message, stop))
    }

    /// As [`send`](Self::send), on any executor. Dropped before it is done, it has sent nothing.
    ///
    /// # Errors
    /// As there.
    pub fn send_async(&self, message: T) -> impl Future<Output = Result<(), SendError<T>>> + use<'_, T> {
        Sending { sender: self, packed: None, message: Some(message), waits: Vec::new() }
    }

    fn send_until(&self, message: &T, deadline: Option<Instant>) -> Result<(), Stop> {
        let message = Message::pack(message)?;
        let (mut has_waited, mut has_asked) = (false, false);
        loop {
            match self.end.send(&message) {
                Ok(()) if has_waited => {
                    self.end.pass_on();
                    return Ok(());
                }
                // Whatever is made from now on, we are told of; some may have been made before.
                Err(Stop::Wait(Wanted::Place)) if !has_asked => {
                    self.end.ask_for_room();
                    (has_waited, has_asked) = (true, true);
                }
                Err(Stop::Wait(wanted)) => {
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|left| left.is_zero()) {
                        return Err(Stop::Wait(wanted));
                    }
                    if !self.end.wait_for_room(wanted, left) {
                        // Who could make some may have been kept from hearing of what is there.
                        self.end.bell.insist();
                    }
                    has_asked = false;
                }
                done => return done,
            }
        }
    }
}

/// A message, encoded.
struct Message {
    /// What is sent: the tag, and the bytes, or, if they are in memory, how many they are.
    packet: Vec<u8>,
    memory: Option<OwnedFd>,
    bag: Option<OwnedFd>,
}

impl Message {
    fn pack(value: &impl Serialize) -> Result<Self, Stop> {
        // Its code is foreign; a panic in it is its caller's.
        let Packed { body, bag } =
            crossing::pack(value).map_err(|error| Stop::Failed(io::Error::other(error)))?;
        let tag = if bag.is_some() { BAG } else { 0 };
        let sealed = match body {
            Encoded::Here(mut bytes) if bytes.len() <= SMALL => {
                // In one piece it is sent faster.
                bytes.insert(0, tag);
                return Ok(Self { packet: bytes, memory: None, bag });
            }
            Encoded::Here(bytes) => memory::Sealed::new(&bytes).map_err(Stop::Failed)?,
            Encoded::Elsewhere(sealed) => sealed,
        };
        let mut packet = vec![tag | ELSEWHERE];
        packet.extend((sealed.length as u64).to_le_bytes());
        Ok(Self { packet, memory: Some(sealed.file), bag })
    }

    /// What goes where there is no room for descriptors.
    fn plain(&self) -> Option<&[u8]> {
        let is_plain = self.memory.is_none() && self.bag.is_none();
        is_plain.then(|| &self.packet[1..])
    }
}

impl End {
    /// Sends it if there is room.
    fn send(&self, message: &Message) -> Result<(), Stop> {
        let no_place = || {
            // Of what fills it nobody may know yet, if its sender has died before he could say so.
            self.bell.ring(false);
            // For ever there is none where nobody receives any more.
            Err(if self.is_over() { Stop::Disconnected } else { Stop::Wait(Wanted::Place) })
        };
        match message.plain().filter(|bytes| bytes.len() <= self.ring.most()) {
            Some(bytes) => {
                let mut has_room = false;
                let look = || {
                    let is_over;
                    (is_over, has_room) = sysio::look_at(&self.socket, &self.bell.tokens);
                    is_over
                };
                match self.ring.push(bytes, self.gate.bound, look) {
                    Pushed::Done => {
                        self.bell.ring(has_room);
                        return Ok(());
                    }
                    Pushed::Full => return no_place(),
                    Pushed::Over => return Err(Stop::Disconnected),
                    Pushed::Closed => {}
                }
            }
            None => self.ring.close(),
        }
        let others = self.ring.count();
        let is_empty = || sysio::is_all_received(&self.socket);
        if !(self.gate.enter(others) || self.gate.suspect(is_empty()) && self.gate.enter(others)) {
            return no_place();
        }
        let descriptors = [&message.memory, &message.bag];
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.into_iter().flatten().map(AsFd::as_fd).collect();
        let sent = if descriptors.is_empty() {
            sysio::send_now(&self.socket, &message.packet)
        } else {
            sysio::send_with(&self.socket, &[&message.packet], &descriptors)
        };
        let error = match sent {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        self.gate.leave();
        Err(match error.kind() {
            io::ErrorKind::WouldBlock => Stop::Wait(Wanted::Buffer),
            // Too many descriptors of this user's are on their way, until some of them are received.
            _ if !descriptors.is_empty() && sysio::is_too_many_on_their_way(&error) => {
                Stop::Wait(Wanted::Pause)
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Stop::Disconnected,
            _ => Stop::Failed(error),
        })
    }

    /// Whatever room is made from now on, the caller is told of.
    fn ask_for_room(&self) {
        self.gate.hear();
        self.gate.want();
    }

    /// The caller has been told of room, and has taken some.
    fn pass_on(&self) {
        self.gate.pass_on(|| self.ring.count());
    }

    /// Until there may be room (of that which was asked for), nobody can receive any more, or so long, which is `false`.
    fn wait_for_room(&self, wanted: Wanted, time: Option<Duration>) -> bool {
        let time = time.map_or(AGAIN, |time| time.min(AGAIN));
        let over = (self.socket.as_fd(), Sign::End);
        let (signs, time) = match wanted {
            // The kernel tells of it when a quarter is used at most, but there is room for this one before.
            Wanted::Buffer => (vec![(self.socket.as_fd(), Sign::Writable)], time),
            Wanted::Pause => (vec![over], time.min(PAUSE)),
            Wanted::Place | Wanted::Message => (vec![(self.gate.room.as_fd(), Sign::Readable), over], time),
        };
        sysio::wait_for(&signs, Some(time))
    }
}

/// Where nothing tells when it may be tried again.
const PAUSE: Duration = Duration::from_millis(5);

/// A message that is to be sent.
struct Sending<'a, T> {
    sender: &'a Sender<T>,
    packed: Option<Message>,
    message: Option<T>,
    waits: Vec<Registration>,
}

// Nothing in it is pinned.
impl<T> Unpin for Sending<'_, T> {}

impl<T: Serialize> Future for Sending<'_, T> {
    type Output = Result<(), SendError<T>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        // UNWRAP: taken by the last poll, after which there must be none.
        let message = this.message.as_ref().expect("polled after it was done");
        let end = &this.sender.end;
        let has_waited = !this.waits.is_empty();
        this.waits.clear();
        let mut step = || -> Result<(), Stop> {
            if this.packed.is_none() {
                this.packed = Some(Message::pack(message)?);
            }
            // UNWRAP: set above.
            let packed = this.packed.as_ref().expect("it is packed");
            for _ in 0..2 {
                let wanted = match end.send(packed) {
                    Err(Stop::Wait(wanted)) => wanted,
                    done => {
                        if has_waited && done.is_ok() {
                            end.pass_on();
                        }
                        return done;
                    }
                };
                if !this.waits.is_empty() {
                    return Err(Stop::Wait(wanted));
                }
                // First the wish, then a second look.
                this.waits = match wanted {
                    Wanted::Place => {
                        if has_waited {
                            // As who waits in `send_until`.
                            end.bell.insist();
                        }
                        end.ask_for_room();
                        vec![
                            Registration::new(&end.gate.room, Sign::Readable, Some(AGAIN), context.waker())?,
                            Registration::new(&end.socket, Sign::End, None, context.waker())?,
                        ]
                    }
                    Wanted::Pause => {
                        vec![Registration::new(&end.socket, Sign::End, Some(PAUSE), context.waker())?]
                    }
                    _ => vec![Registration::new(&end.socket, Sign::Writable, Some(AGAIN), context.waker())?],
                };
            }
            Err(Stop::Wait(Wanted::Place))
        };
        match step() {
            Err(Stop::Wait(_)) => Poll::Pending,
            done => {
                this.waits.clear();
                // UNWRAP: as above.
                let message = this.message.take().expect("polled after it was done");
                Poll::Ready(done.map_err(|stop| SendError::new(message, stop)))
            }
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self::new(self.end.clone())
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> Serialize for Sender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.end.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Sender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        End::deserialize(deserializer).map(|end| Self::new(Arc::new(end)))
    }
}
