//! An end of a channel: what it consists of, and how it crosses.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bell::Bell;
use super::gate::Gate;
use super::ring::Ring;
use crate::fd::{Arrived, Leaving};
use crate::sys::io::{self as sysio, AsFd, OwnedFd, Sign};
use crate::sys::memory::{self, Words};

// Where everything is in the memory that all ends share: in a line of the cache of its own what is written often.

/// The number of messages in the socket.
pub(super) const COUNT: usize = 0;
/// Whether a sender has been waiting for room since it was last told of some.
pub(super) const WANTED: usize = 64;
/// How often anything was counted.
pub(super) const TURNS: usize = 128;
/// Whether a process has taken it upon itself to fill the ring.
pub(super) const FILLER: usize = 192;
/// How many wait for the ring's messages.
pub(super) const WAITING: usize = 256;
/// How many ends have been let go of: a hint that somebody is gone.
pub(super) const GONE: usize = 257;
/// In words of eight bytes: how far the ring has been emptied, how far filled, and the ring itself.
pub(super) const EMPTIED: usize = 256;
pub(super) const FILLED: usize = 320;
pub(super) const ROOM: usize = 512;

/// An end of a channel.
#[derive(Debug)]
pub(super) struct End {
    /// Packets: each is a message. The first to be dropped: what the ring does then says that it is gone.
    pub(super) socket: OwnedFd,
    pub(super) ring: Ring,
    pub(super) gate: Gate,
    pub(super) bell: Bell,
    memory: OwnedFd,
    /// The second is a forked copy's: a thread that it does not have may be about to make the first.
    watches: [OnceLock<Option<Watch>>; 2],
}

/// For who polls an end by himself: one descriptor for both the socket and what is left in the ring.
#[derive(Debug)]
struct Watch {
    either: OwnedFd,
    /// A counter that is readable until the ring is known to be empty; and whether it is.
    left: OwnedFd,
    is_left: AtomicBool,
}

/// How many words of eight bytes a ring has at most.
pub(super) const MOST: u32 = 32 << 10;

/// How many it has for so many messages: for small ones, all of them.
fn capacity(bound: u32) -> u32 {
    const SMALL: u32 = 8;
    bound.saturating_mul(SMALL).clamp(4 << 10, MOST).next_power_of_two()
}

/// How many bytes are mapped.
fn bytes(bound: u32) -> usize {
    8 * (ROOM + capacity(bound) as usize)
}

impl End {
    pub(super) fn new(socket: OwnedFd, bound: u32) -> io::Result<Self> {
        let memory = memory::shared(bytes(bound) as u64)?;
        Self::open(socket, memory, sysio::counter()?, sysio::semaphore()?, bound)
    }

    fn open(
        socket: OwnedFd,
        memory: OwnedFd,
        room: OwnedFd,
        tokens: OwnedFd,
        bound: u32,
    ) -> io::Result<Self> {
        let words = Arc::new(Words::of(&memory, bytes(bound))?);
        Ok(Self {
            socket,
            ring: Ring::new(words.clone(), capacity(bound)),
            gate: Gate::new(words.clone(), room, bound),
            bell: Bell::new(words, tokens),
            memory,
            watches: Default::default(),
        })
    }

    /// The end at the other side.
    pub(super) fn other(&self, socket: OwnedFd) -> io::Result<Self> {
        let [memory, room, tokens] = [&self.memory, &self.gate.room, &self.bell.tokens].map(sysio::duplicate);
        Self::open(socket, memory?, room?, tokens?, self.gate.bound)
    }

    /// A descriptor that is readable while there is a message, or nobody can send any more. The ring is closed for it.
    pub(super) fn watched(&self) -> &OwnedFd {
        self.ring.close();
        let watch = self.watches[usize::from(self.ring.is_copy())].get_or_init(|| {
            // What is in it no socket tells of.
            let watch = || -> io::Result<Watch> {
                let left = sysio::counter()?;
                sysio::add(&left);
                let either = sysio::any_of(&[&self.socket, &left])?;
                Ok(Watch { either, left, is_left: AtomicBool::new(true) })
            };
            if self.ring.is_empty() { None } else { watch().ok() }
        });
        watch.as_ref().map_or(&self.socket, |watch| &watch.either)
    }

    /// The ring is closed and has been emptied.
    pub(super) fn is_emptied(&self) {
        for watch in self.watches.iter().filter_map(|watch| watch.get()?.as_ref()) {
            if watch.is_left.swap(false, Relaxed) {
                sysio::take(&watch.left);
            }
        }
    }

    /// Whether the last other end is gone.
    pub(super) fn is_over(&self) -> bool {
        sysio::wait_for(&[(self.socket.as_fd(), Sign::End)], Some(Duration::ZERO))
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let all = [&self.socket, &self.memory, &self.gate.room, &self.bell.tokens];
        (all.map(|descriptor| Leaving(descriptor.as_fd())), self.gate.bound).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ([Arrived(socket), Arrived(memory), Arrived(room), Arrived(tokens)], bound) =
            Deserialize::deserialize(deserializer)?;
        Self::open(socket, memory, room, tokens, bound).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Of the smallest ring.
    pub(in crate::channel) const CAPACITY: u32 = 4 << 10;

    /// The memory of a channel that has it.
    pub(in crate::channel) fn words() -> Arc<Words> {
        assert_eq!(capacity(1), CAPACITY);
        let memory = memory::shared(bytes(1) as u64).unwrap();
        Arc::new(Words::of(&memory, bytes(1)).unwrap())
    }
}
