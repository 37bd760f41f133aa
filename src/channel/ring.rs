//! Small messages, in memory that all ends have mapped: one process at a time puts them in, any may take them out, and neither needs
//! the kernel for it.
//!
//! Two words are all that decides: how far it has been filled, and how far emptied. A message is written behind all others and is there once the one
//! word is changed; it is copied out and is taken once the other is. Who dies or is stopped before has done nothing, and after it all. So nothing is
//! ever held, and nobody waits for who does not go on.
//!
//! Whatever this cannot do is the socket's: messages that are large or have descriptors, and senders in two processes. Then the ring is *closed*, for
//! good, by the word that whoever fills it changes. What is in it comes before all that goes by the socket, so each sender's messages stay in their
//! order.
//!
//! Anybody who has an end may write anything anywhere here. What is copied is looked at afterwards, and a ring that makes no sense is closed and
//! empty.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::end::{EMPTIED, FILLED, FILLER, GONE, MOST, ROOM};
use crate::sys::lifecycle::generation;
use crate::sys::memory::Words;

#[derive(Debug)]
pub(super) struct Ring {
    words: Arc<Words>,
    /// How many words of eight bytes there is room for; a power of two.
    capacity: u32,
    filling: Mutex<Filling>,
    /// How far it had been filled when that was last looked at for want of messages.
    seen: AtomicU64,
    /// The process that has made this: a forked copy may find the lock held for ever, and has claimed nothing.
    generation: u64,
}

/// What a process that fills it keeps to itself.
#[derive(Debug, Default)]
struct Filling {
    /// That it is ours to fill.
    is_claimed: bool,
    /// How far it had been emptied when that was last looked at for want of room.
    emptied: Place,
    /// When it was last seen that somebody can receive, and how many ends had gone by then.
    looked: Option<(Instant, u32)>,
}

/// So long it is taken for true that somebody can receive. A process that has died is not told of before the others have had
/// time for a system call or two; one that lets go of its end says so.
const LOOK: Duration = Duration::from_micros(2);

/// In the word that tells how far it has been filled: it never will be again.
const CLOSED: u64 = 1 << 63;

/// Which message, and at which word it begins: the one counted modulo 2^16, which is more than there are at a time, the other modulo 2^47, which
/// takes months.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    message: u16,
    word: u64,
}

const WORD: u32 = 47;
const WORDS: u64 = (1 << WORD) - 1;
const _: () = assert!(MOST / 2 < 1 << 16 && CLOSED == 1 << (WORD + 16));

impl Place {
    fn of(word: u64) -> Self {
        Self { message: (word >> WORD) as u16, word: word & WORDS }
    }

    fn to_word(self) -> u64 {
        u64::from(self.message) << WORD | self.word
    }

    /// Behind a message of so many words.
    fn next(self, words: u64) -> Self {
        Self { message: self.message.wrapping_add(1), word: self.word.wrapping_add(words) & WORDS }
    }

    fn messages_since(self, before: Self) -> u32 {
        u32::from(self.message.wrapping_sub(before.message))
    }

    fn words_since(self, before: Self) -> u64 {
        self.word.wrapping_sub(before.word) & WORDS
    }
}

/// What has become of a message that was to be put in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Done,
    /// There is no room.
    Full,
    /// Nobody can receive any more.
    Over,
    Closed,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Popped {
    /// A message of so many bytes.
    Message(usize),
    Empty,
    /// And there never will be any.
    Closed,
    /// Others were faster, again and again.
    Busy,
}

/// How often it is tried at most.
const TRIES: usize = 1000;

impl Ring {
    pub(super) fn new(words: Arc<Words>, capacity: u32) -> Self {
        let seen = AtomicU64::new(words.wide()[EMPTIED].load(Relaxed));
        Self { words, capacity, filling: Mutex::default(), seen, generation: generation() }
    }

    /// Whether this is a forked copy of the process that has made it.
    pub(super) fn is_copy(&self) -> bool {
        self.generation != generation()
    }

    /// How many bytes a message may have: a quarter of all.
    pub(super) fn most(&self) -> usize {
        self.capacity as usize * 2
    }

    fn filled(&self) -> &AtomicU64 {
        &self.words.wide()[FILLED]
    }

    fn emptied(&self) -> &AtomicU64 {
        &self.words.wide()[EMPTIED]
    }

    fn at(&self, word: u64) -> &AtomicU64 {
        &self.words.wide()[ROOM + (word & u64::from(self.capacity - 1)) as usize]
    }

    /// It is not filled any more, by anybody.
    pub(super) fn close(&self) {
        if self.filled().load(Relaxed) & CLOSED == 0 {
            self.filled().fetch_or(CLOSED, SeqCst);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.filled().load(SeqCst) & CLOSED != 0
    }

    /// Whether it is worth a look: there is a message, or it has been closed.
    pub(super) fn has_news(&self) -> bool {
        let filled = self.filled().load(SeqCst);
        filled & CLOSED != 0 || !self.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        Place::of(self.filled().load(SeqCst)) == Place::of(self.emptied().load(SeqCst))
    }

    /// How many messages are in it, or some more: those that are being taken.
    pub(super) fn count(&self) -> u32 {
        let emptied = Place::of(self.emptied().load(SeqCst));
        Place::of(self.filled().load(SeqCst)).messages_since(emptied)
    }

    /// Puts a message in, of [`Ring::most`] bytes at most, if fewer than `bound` are there. `is_over` asks whether nobody can receive any more.
    pub(super) fn push(&self, message: &[u8], bound: u32, is_over: impl FnOnce() -> bool) -> Pushed {
        if self.is_copy() {
            self.close();
            return Pushed::Closed;
        }
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if !filling.is_claimed {
            // Whoever has it may be dead; that is not looked into.
            if self.words[FILLER].compare_exchange(0, 1, AcqRel, Relaxed).is_err() {
                self.close();
                return Pushed::Closed;
            }
            filling.is_claimed = true;
            filling.emptied = Place::of(self.emptied().load(SeqCst));
        }
        let filled = self.filled().load(Relaxed);
        if filled & CLOSED != 0 {
            return Pushed::Closed;
        }
        let place = Place::of(filled);
        let words = 1 + message.len().div_ceil(8) as u64;
        let capacity = u64::from(self.capacity);
        let has_room = |emptied: Place| {
            let used = place.words_since(emptied);
            place.messages_since(emptied) < bound && used <= capacity && capacity - used >= words
        };
        if !has_room(filling.emptied) {
            filling.emptied = Place::of(self.emptied().load(SeqCst));
            if place.words_since(filling.emptied) > capacity {
                // Somebody has written here what he should not.
                self.close();
                return Pushed::Closed;
            }
            if !has_room(filling.emptied) {
                return Pushed::Full;
            }
        }
        let gone = self.words[GONE].load(Acquire);
        let now = Instant::now();
        if filling.looked.is_none_or(|(since, before)| before != gone || now.duration_since(since) >= LOOK) {
            if is_over() {
                return Pushed::Over;
            }
            filling.looked = Some((now, gone));
        }
        self.at(place.word).store(message.len() as u64, Relaxed);
        for (n, bytes) in message.chunks(8).enumerate() {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            self.at(place.word + 1 + n as u64).store(u64::from_le_bytes(eight), Relaxed);
        }
        // Now it is there.
        let next = place.next(words).to_word();
        match self.filled().compare_exchange(filled, next, SeqCst, Relaxed) {
            Ok(_) => Pushed::Done,
            // Closed, or somebody has written here what he should not.
            Err(_) => {
                self.close();
                Pushed::Closed
            }
        }
    }

    /// Takes the next message out, into a buffer of [`Ring::most`] bytes at least.
    pub(super) fn pop(&self, buffer: &mut [u8]) -> Popped {
        for _ in 0..TRIES {
            let before = self.emptied().load(Acquire);
            let place = Place::of(before);
            let mut filled = self.seen.load(Acquire);
            // What was seen is behind when others have emptied it further.
            let is_ahead = |filled: u64| {
                let filled = Place::of(filled);
                let words = filled.words_since(place);
                // Each message has two words at least.
                words <= u64::from(self.capacity)
                    && (1..=words / 2).contains(&u64::from(filled.messages_since(place)))
            };
            if !is_ahead(filled) {
                filled = self.filled().load(SeqCst);
                if Place::of(filled) == place {
                    return if filled & CLOSED != 0 { Popped::Closed } else { Popped::Empty };
                }
                self.seen.store(filled, Release);
            }
            let there = Place::of(filled).words_since(place);
            let length = self.at(place.word).load(Relaxed) as usize;
            let words = length.div_ceil(8) + 1;
            // (No message is of nothing.)
            if !is_ahead(filled)
                || length == 0
                || length > self.most().min(buffer.len())
                || words > there as usize
            {
                // It has been emptied meanwhile (which only the latest can tell: hence no load), or makes no sense.
                if self.emptied().compare_exchange(before, before, SeqCst, SeqCst).is_ok() {
                    return self.give_up();
                }
                continue;
            }
            for (n, bytes) in buffer[..length].chunks_mut(8).enumerate() {
                let word = self.at(place.word + 1 + n as u64).load(Relaxed);
                bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
            }
            // If it has not been taken by another meanwhile, nobody has written there, and now it is ours.
            let next = place.next(words as u64).to_word();
            if self.emptied().compare_exchange(before, next, SeqCst, Relaxed).is_ok() {
                return Popped::Message(length);
            }
        }
        Popped::Busy
    }

    /// Somebody has written here what he should not.
    #[cold]
    fn give_up(&self) -> Popped {
        self.close();
        self.emptied().store(self.filled().load(SeqCst) & !CLOSED, SeqCst);
        Popped::Closed
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let is_copy = self.is_copy();
        let filling = self.filling.get_mut().unwrap_or_else(PoisonError::into_inner);
        if filling.is_claimed && !is_copy {
            // The next may have it.
            self.words[FILLER].store(0, Release);
        }
        // Its socket is closed already: whoever sees this finds it so. (But for an end that serde has tried in vain, which is still there
        // for the next type: then it is found by the next look.)
        self.words[GONE].fetch_add(1, SeqCst);
        #[cfg(test)]
        if let Some(act) = AT_GONE.try_with(std::cell::Cell::take).ok().flatten() {
            act();
        }
    }
}

#[cfg(test)]
thread_local! {
    /// What is to be done once, at the moment from which on others can see that an end is gone.
    pub(super) static AT_GONE: std::cell::Cell<Option<Box<dyn FnOnce()>>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
mod tests;
