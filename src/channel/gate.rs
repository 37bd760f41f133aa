//! How many messages wait in a channel, and who waits for room.
//!
//! The messages are in the kernel's queue, which knows of bytes alone; their number is kept in a word of memory that all ends
//! share. Anybody may die between a message and its count, or write there what he likes: the count is never more than a guess
//! of how much may be sent, and is set right when the queue is seen to be empty.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fd::{Arrived, Leaving};
use crate::sys::io::{self as sysio, AsFd, OwnedFd};
use crate::sys::memory::{self, Words};

/// How many bytes are mapped.
const BYTES: usize = 4096;

/// The number of messages that wait.
const COUNT: usize = 0;

/// Whether a sender has been waiting for room since it was last told of some. (In another line of the cache.)
const WANTED: usize = 64;

#[derive(Debug)]
pub(super) struct Gate {
    words: Words,
    memory: OwnedFd,
    /// A counter that is readable while there is news of room.
    pub(super) room: OwnedFd,
    bound: u32,
}

impl Gate {
    pub(super) fn new(bound: u32) -> io::Result<Self> {
        Self::open(memory::shared(BYTES as u64)?, sysio::counter()?, bound)
    }

    fn open(memory: OwnedFd, room: OwnedFd, bound: u32) -> io::Result<Self> {
        Ok(Self { words: Words::of(&memory, BYTES)?, memory, room, bound })
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Self::open(sysio::duplicate(&self.memory)?, sysio::duplicate(&self.room)?, self.bound)
    }

    /// A message is about to be sent, if there is room for it.
    pub(super) fn enter(&self) -> bool {
        let more = |count| (count < self.bound).then(|| count + 1);
        self.words[COUNT].fetch_update(AcqRel, Acquire, more).is_ok()
    }

    /// It was not sent after all, or has been received: there is room, of which who waits is told.
    pub(super) fn leave(&self) {
        let fewer = |count: u32| count.checked_sub(1);
        let _ = self.words[COUNT].fetch_update(SeqCst, Relaxed, fewer);
        if self.words[WANTED].load(SeqCst) != 0 && self.words[WANTED].swap(0, SeqCst) != 0 {
            self.ring();
        }
    }

    fn ring(&self) {
        sysio::add(&self.room);
    }

    /// A sender is about to wait for room. Whatever is made from now on, it is told of.
    pub(super) fn want(&self) {
        self.words[WANTED].store(1, SeqCst);
    }

    /// A sender that has waited has got room. If there is more, the next is told; else it is to be told later.
    pub(super) fn pass_on(&self) {
        if self.words[COUNT].load(SeqCst) < self.bound {
            self.ring();
        } else {
            self.want();
        }
    }

    /// Forgets the news of room, which is about to be looked for.
    pub(super) fn hear(&self) {
        sysio::take_all(&self.room);
    }

    /// The queue is empty: whoever is still counted is dead. (Or about to send. Then there is room for one more than there should
    /// be, for a while.)
    pub(super) fn set_right(&self) {
        if self.words[COUNT].swap(0, SeqCst) > 0 {
            self.ring();
        }
    }
}

impl Serialize for Gate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Leaving(self.memory.as_fd()), Leaving(self.room.as_fd()), self.bound).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Gate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Arrived(memory), Arrived(room), bound) = Deserialize::deserialize(deserializer)?;
        Self::open(memory, room, bound).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_enter_than_there_is_room_for() {
        let gate = Gate::new(2).unwrap();
        let other = gate.try_clone().unwrap();
        assert!(gate.enter() && other.enter() && !gate.enter());
        other.leave();
        assert!(gate.enter() && !other.enter());
        // More leave than have entered, as after a death.
        (0..5).for_each(|_| gate.leave());
        assert!(gate.enter() && gate.enter() && !gate.enter());
        gate.set_right();
        assert!(gate.enter());
    }

    #[test]
    fn who_waits_is_told_once() {
        let gate = Gate::new(1).unwrap();
        assert!(gate.enter());
        gate.leave();
        assert!(!sysio::is_readable(&gate.room, 0));
        assert!(gate.enter());
        gate.want();
        gate.leave();
        assert!(sysio::is_readable(&gate.room, 0));
        gate.hear();
        assert!(!sysio::is_readable(&gate.room, 0));
        gate.pass_on();
        assert!(sysio::is_readable(&gate.room, 0));
    }
}
