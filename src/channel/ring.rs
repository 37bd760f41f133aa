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

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::end::{EMPTIED, FILLED, FILLER, GONE, ROOM};
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
}

/// What a process that fills it keeps to itself.
#[derive(Debug, Default)]
struct Filling {
    /// That it is ours, and of which process that is true.
    claimed: Option<u64>,
    /// How far it had been emptied when that was last looked at for want of room.
    emptied: Place,
    /// When it was last seen that somebody can receive, and how many ends had gone by then.
    looked: Option<(Instant, u32)>,
}

/// So long it is taken for true that somebody can receive. A process that has died is not told of before the others have had
/// time for a system call or two; one that lets go of its end says so.
const LOOK: Duration = Duration::from_micros(5);

/// In the word that tells how far it has been filled: it never will be again.
const CLOSED: u64 = 1 << 63;

/// Which message, and where it begins. The one is counted modulo 2^31, the other in words, modulo 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    message: u32,
    word: u32,
}

const MESSAGES: u32 = u32::MAX >> 1;

impl Place {
    fn of(word: u64) -> Self {
        Self { message: (word >> 32) as u32 & MESSAGES, word: word as u32 }
    }

    fn to_word(self) -> u64 {
        u64::from(self.message) << 32 | u64::from(self.word)
    }

    /// Behind a message of so many words.
    fn next(self, words: u32) -> Self {
        Self { message: self.message.wrapping_add(1) & MESSAGES, word: self.word.wrapping_add(words) }
    }

    fn messages_since(self, before: Self) -> u32 {
        self.message.wrapping_sub(before.message) & MESSAGES
    }

    fn words_since(self, before: Self) -> u32 {
        self.word.wrapping_sub(before.word)
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
}

/// How often it is tried at most: others may be faster, as often as they like.
const TRIES: usize = 1000;

impl Ring {
    pub(super) fn new(words: Arc<Words>, capacity: u32) -> Self {
        let seen = AtomicU64::new(words.wide()[EMPTIED].load(Relaxed));
        Self { words, capacity, filling: Mutex::default(), seen }
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

    fn at(&self, word: u32) -> &AtomicU64 {
        &self.words.wide()[ROOM + (word & (self.capacity - 1)) as usize]
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

    /// How many messages are in it.
    pub(super) fn count(&self) -> u32 {
        Place::of(self.filled().load(SeqCst)).messages_since(Place::of(self.emptied().load(SeqCst)))
    }

    /// Puts a message in, of [`Ring::most`] bytes at most, if fewer than `bound` are there. `is_over` asks whether nobody can receive any more.
    pub(super) fn push(&self, message: &[u8], bound: u32, is_over: impl FnOnce() -> bool) -> Pushed {
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if filling.claimed != Some(generation()) {
            // Whoever has it may be dead; that is not looked into.
            if self.words[FILLER].compare_exchange(0, 1, AcqRel, Relaxed).is_err() {
                self.close();
                return Pushed::Closed;
            }
            *filling = Filling { claimed: Some(generation()), ..Filling::default() };
            filling.emptied = Place::of(self.emptied().load(Acquire));
        }
        let filled = self.filled().load(Relaxed);
        if filled & CLOSED != 0 {
            return Pushed::Closed;
        }
        let place = Place::of(filled);
        let words = 1 + message.len().div_ceil(8) as u32;
        let has_room = |emptied: Place| {
            place.messages_since(emptied) < bound
                && place.words_since(emptied) <= self.capacity
                && self.capacity - place.words_since(emptied) >= words
        };
        if !has_room(filling.emptied) {
            filling.emptied = Place::of(self.emptied().load(Acquire));
            if place.words_since(filling.emptied) > self.capacity {
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
            self.at(place.word.wrapping_add(1 + n as u32)).store(u64::from_le_bytes(eight), Relaxed);
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
                (1..=self.capacity).contains(&filled.words_since(place)) && filled.messages_since(place) > 0
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
                // It has been emptied meanwhile, or makes no sense.
                fence(Acquire);
                if self.emptied().load(SeqCst) == before {
                    return self.give_up();
                }
                continue;
            }
            for (n, bytes) in buffer[..length].chunks_mut(8).enumerate() {
                let word = self.at(place.word.wrapping_add(1 + n as u32)).load(Relaxed);
                bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
            }
            // If it has not been taken by another meanwhile, nobody has written there, and now it is ours.
            let next = place.next(words as u32).to_word();
            if self.emptied().compare_exchange(before, next, SeqCst, Relaxed).is_ok() {
                return Popped::Message(length);
            }
        }
        Popped::Empty
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
        let filling = self.filling.get_mut().unwrap_or_else(PoisonError::into_inner);
        if filling.claimed == Some(generation()) {
            // The next may have it.
            self.words[FILLER].store(0, Release);
        }
        // Its socket is closed already: whoever sees this finds it so.
        self.words[GONE].fetch_add(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::end::testing::{self, words};
    use proptest::prelude::*;

    fn ring(words: &Arc<Words>) -> Ring {
        Ring::new(words.clone(), testing::CAPACITY)
    }

    fn push(ring: &Ring, message: &[u8]) -> Pushed {
        ring.push(message, 1000, || false)
    }

    fn pop(ring: &Ring) -> Result<Vec<u8>, Popped> {
        let mut buffer = vec![0; ring.most()];
        match ring.pop(&mut buffer) {
            Popped::Message(length) => Ok(buffer[..length].to_vec()),
            other => Err(other),
        }
    }

    #[test]
    fn what_is_put_in_comes_out_in_its_order_in_whatever_process() {
        let words = words();
        let (ours, theirs, others) = (ring(&words), ring(&words), ring(&words));
        let message = |n: usize| vec![n as u8; 1 + n * 61 % ours.most()];
        let (mut pushed, mut popped) = (0, 0);
        while popped < 2000 {
            while pushed < 2000 && push(&ours, &message(pushed)) == Pushed::Done {
                pushed += 1;
            }
            for ring in [&theirs, &others, &theirs] {
                match pop(ring) {
                    Ok(bytes) => assert_eq!(bytes, message(popped)),
                    Err(other) => assert_eq!((other, popped), (Popped::Empty, pushed)),
                }
                popped = (popped + 1).min(pushed);
            }
        }
        assert_eq!((pop(&theirs), theirs.count()), (Err(Popped::Empty), 0));
    }

    #[test]
    fn the_bound_is_exact_and_so_is_the_room() {
        let words = words();
        let ring = ring(&words);
        for bound in [1, 2, 100] {
            (0..bound).for_each(|_| assert_eq!(ring.push(b"small", bound, || false), Pushed::Done));
            assert_eq!(ring.push(b"small", bound, || false), Pushed::Full);
            (0..bound).for_each(|_| assert!(pop(&ring).is_ok()));
        }
        let large = vec![1; ring.most()];
        // Each has a word for its length.
        (0..3).for_each(|_| assert_eq!(push(&ring, &large), Pushed::Done));
        assert_eq!(push(&ring, &large), Pushed::Full);
        assert_eq!(ring.count(), 3);
    }

    #[test]
    fn one_fills_it_until_he_lets_go_of_it_and_a_second_closes_it() {
        let words = words();
        let (first, second, third) = (ring(&words), ring(&words), ring(&words));
        assert_eq!(push(&first, b"first"), Pushed::Done);
        drop(first);
        assert_eq!(push(&second, b"second"), Pushed::Done);
        assert!(!third.is_closed());
        assert_eq!(push(&third, b"third"), Pushed::Closed);
        assert_eq!(push(&second, b"fourth"), Pushed::Closed);
        assert_eq!((pop(&third).unwrap(), pop(&second).unwrap()), (b"first".to_vec(), b"second".to_vec()));
        assert_eq!((pop(&third), pop(&second)), (Err(Popped::Closed), Err(Popped::Closed)));
    }

    #[test]
    fn it_is_asked_whether_anybody_receives_when_an_end_has_gone() {
        let words = words();
        let (ours, theirs) = (ring(&words), ring(&words));
        assert_eq!(ours.push(b"first", 9, || true), Pushed::Over);
        assert_eq!(push(&ours, b"first"), Pushed::Done);
        drop(theirs);
        assert_eq!(ours.push(b"second", 9, || true), Pushed::Over);
        assert_eq!(ours.count(), 1);
    }

    #[test]
    fn many_threads_take_each_message_once() {
        const COUNT: u32 = 20_000;
        let words = words();
        let rings: Vec<Ring> = (0..3).map(|_| ring(&words)).collect();
        let received: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let take = |ring: &Ring| {
                let mut all = Vec::new();
                loop {
                    match pop(ring) {
                        Ok(bytes) => all.push(u32::from_le_bytes(bytes.try_into().unwrap())),
                        Err(Popped::Closed) => return all,
                        Err(_) => std::thread::yield_now(),
                    }
                }
            };
            let takers: Vec<_> =
                rings.iter().chain([&rings[0]]).map(|ring| scope.spawn(move || take(ring))).collect();
            let filler = ring(&words);
            for n in 0..COUNT {
                while filler.push(&n.to_le_bytes(), 8, || false) != Pushed::Done {
                    std::thread::yield_now();
                }
            }
            filler.close();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        assert!(received.iter().all(|list| list.is_sorted()));
        let mut all: Vec<u32> = received.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..COUNT).collect::<Vec<_>>());
    }

    proptest! {
        /// Whatever stands in the memory, each step ends, and after some of them all goes by the socket or the ring works.
        #[test]
        fn rubbish_ends_in_a_ring_that_works_or_is_closed(rubbish in proptest::collection::vec((0..2_usize, any::<u64>(), 0..64_u32), 1..20)) {
            let words = words();
            let (ours, theirs) = (ring(&words), ring(&words));
            for (place, value, shift) in rubbish {
                let _ = push(&ours, b"message");
                // Often near to what is there.
                let word = &words.wide()[[EMPTIED, FILLED][place]];
                word.fetch_xor(value >> shift & !CLOSED, SeqCst);
                words.wide()[ROOM].store(value.rotate_left(shift), SeqCst);
                let _ = push(&ours, b"message");
                let _ = pop(&theirs);
            }
            let mut left = 0;
            while pop(&theirs).is_ok() {
                left += 1;
                prop_assert!(left <= testing::CAPACITY);
            }
            match push(&ours, b"at last") {
                Pushed::Done => prop_assert_eq!(pop(&theirs).unwrap(), b"at last".to_vec()),
                other => prop_assert_eq!(other, Pushed::Closed),
            }
        }
    }
}
