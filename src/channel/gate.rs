//! How many messages wait in a channel, and who waits for room.
//!
//! The messages are in the kernel's queue, which knows of bytes alone; their number is kept in a word of memory that all ends
//! share. Anybody may die between a message and its count, or write there what he likes: the count is never more than a guess
//! of how much may be sent, and is set right when the queue is seen to be empty.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::AGAIN;
use crate::fd::{Arrived, Leaving};
use crate::sys::io::{self as sysio, AsFd, OwnedFd};
use crate::sys::memory::{self, Words};

/// How many bytes are mapped.
const BYTES: usize = 4096;

/// The number of messages that wait.
const COUNT: usize = 0;

/// Whether a sender has been waiting for room since it was last told of some. (In another line of the cache.)
const WANTED: usize = 64;

/// How often anything was counted.
const TURNS: usize = 128;

#[derive(Debug)]
pub(super) struct Gate {
    words: Words,
    memory: OwnedFd,
    /// A counter that is readable while there is news of room.
    pub(super) room: OwnedFd,
    bound: u32,
    /// What was seen the last time that the count spoke of messages and the queue was empty: the turns, and when that was.
    suspicion: Mutex<Option<(u32, Instant)>>,
}

impl Gate {
    pub(super) fn new(bound: u32) -> io::Result<Self> {
        Self::open(memory::shared(BYTES as u64)?, sysio::counter()?, bound)
    }

    fn open(memory: OwnedFd, room: OwnedFd, bound: u32) -> io::Result<Self> {
        Ok(Self { words: Words::of(&memory, BYTES)?, memory, room, bound, suspicion: Mutex::default() })
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Self::open(sysio::duplicate(&self.memory)?, sysio::duplicate(&self.room)?, self.bound)
    }

    /// A message is about to be sent, if there is room for it.
    pub(super) fn enter(&self) -> bool {
        let more = |count| (count < self.bound).then(|| count + 1);
        let entered = self.words[COUNT].fetch_update(AcqRel, Acquire, more).is_ok();
        if entered {
            self.words[TURNS].fetch_add(1, SeqCst);
        }
        entered
    }

    /// It was not sent after all, or has been received: there is room, of which who waits is told.
    pub(super) fn leave(&self) {
        let fewer = |count: u32| count.checked_sub(1);
        let _ = self.words[COUNT].fetch_update(SeqCst, Relaxed, fewer);
        self.words[TURNS].fetch_add(1, SeqCst);
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

    /// Whether the count speaks of messages.
    pub(super) fn is_counted(&self) -> bool {
        self.words[COUNT].load(SeqCst) > 0
    }

    /// The queue has been seen to be `empty`, or not. If it is, the count speaks of messages all the same, and nothing has been counted
    /// for a while, then whoever is counted is dead (or has been kept from his send for so long: then there is room for one more than there
    /// should be, until that is received). Whether it was set right.
    pub(super) fn suspect(&self, empty: bool) -> bool {
        let mut suspicion = self.suspicion.lock().unwrap_or_else(PoisonError::into_inner);
        let (turns, count) = (self.words[TURNS].load(SeqCst), self.words[COUNT].load(SeqCst));
        match *suspicion {
            _ if !empty || count == 0 => *suspicion = None,
            Some((before, since)) if before == turns => {
                if since.elapsed() >= AGAIN
                    && self.words[COUNT].compare_exchange(count, 0, SeqCst, SeqCst).is_ok()
                {
                    *suspicion = None;
                    self.words[TURNS].fetch_add(1, SeqCst);
                    self.ring();
                    return true;
                }
            }
            _ => *suspicion = Some((turns, Instant::now())),
        }
        false
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
        // They are dead, and nobody else is about.
        assert!(!gate.suspect(true) && !gate.suspect(true));
        std::thread::sleep(AGAIN);
        assert!(gate.suspect(true) && gate.enter());
        // There is a message, or somebody has sent since.
        assert!(!gate.suspect(true));
        std::thread::sleep(AGAIN);
        assert!(!gate.suspect(false) && !gate.suspect(true));
        assert!(gate.enter());
        std::thread::sleep(AGAIN);
        assert!(!gate.suspect(true));
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
