//! How many messages wait in a channel's socket, and who waits for room.
//!
//! These messages are in the kernel's queue, which knows of bytes alone; their number is kept in a word of memory that all ends
//! share. Anybody may die between a message and its count, or write there what he likes: the count is never more than a guess
//! of how much may be sent, and is set right when the queue is seen to be empty.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::time::Instant;

use super::AGAIN;
use super::end::{COUNT, TURNS, WANTED};
use crate::sys::io::{self as sysio, OwnedFd};
use crate::sys::memory::Words;

#[derive(Debug)]
pub(super) struct Gate {
    words: Arc<Words>,
    /// A counter that is readable while there is news of room.
    pub(super) room: OwnedFd,
    pub(super) bound: u32,
    made: Instant,
    /// What was seen the last time that the count spoke of messages and the queue was empty: the turns, and when that was, in milliseconds since this was
    /// made, with the highest bit set; or 0. (No lock: a forked copy might find it held for ever.)
    suspicion: AtomicU64,
}

/// The bits of a time.
const LATEST: u32 = u32::MAX >> 1;

impl Gate {
    pub(super) fn new(words: Arc<Words>, room: OwnedFd, bound: u32) -> Self {
        Self { words, room, bound, made: Instant::now(), suspicion: AtomicU64::new(0) }
    }

    /// A message is about to be sent, if there is room for it beside so many that wait elsewhere.
    pub(super) fn enter(&self, others: u32) -> bool {
        let more = |count: u32| (count.saturating_add(others) < self.bound).then(|| count + 1);
        let entered = self.words[COUNT].fetch_update(AcqRel, Acquire, more).is_ok();
        if entered {
            self.words[TURNS].fetch_add(1, SeqCst);
        }
        entered
    }

    /// It was not sent after all, or has been received.
    pub(super) fn leave(&self) {
        let fewer = |count: u32| count.checked_sub(1);
        let _ = self.words[COUNT].fetch_update(SeqCst, Relaxed, fewer);
        self.words[TURNS].fetch_add(1, SeqCst);
        self.tell();
    }

    /// There is room, of which who waits is told.
    pub(super) fn tell(&self) {
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

    /// A sender that has waited has got room. If there is more, beside so many messages that wait elsewhere, the next is told; else it is to be
    /// told later.
    pub(super) fn pass_on(&self, others: impl FnOnce() -> u32) {
        // First the wish, for who makes room from now on; then a look.
        self.want();
        if self.words[COUNT].load(SeqCst).saturating_add(others()) < self.bound {
            self.tell();
        }
    }

    /// Forgets the news of room, which is about to be looked for.
    pub(super) fn hear(&self) {
        sysio::take(&self.room);
    }

    /// Whether the count speaks of messages.
    pub(super) fn is_counted(&self) -> bool {
        self.words[COUNT].load(SeqCst) > 0
    }

    /// The queue has been seen to be `empty`, or not. If it is, the count speaks of messages all the same, and nothing has been counted
    /// for a while, then whoever is counted is dead (or has been kept from his send for so long: then there is room for one more than there
    /// should be, until that is received). Whether it was set right.
    pub(super) fn suspect(&self, empty: bool) -> bool {
        let (turns, count) = (self.words[TURNS].load(SeqCst), self.words[COUNT].load(SeqCst));
        if !empty || count == 0 {
            self.suspicion.store(0, SeqCst);
            return false;
        }
        let now = self.made.elapsed().as_millis() as u32 & LATEST;
        let before = self.suspicion.load(SeqCst);
        if before == 0 || (before >> 32) as u32 != turns {
            self.suspicion.store(u64::from(turns) << 32 | u64::from(now | !LATEST), SeqCst);
            return false;
        }
        let is_long_ago = u128::from(now.wrapping_sub(before as u32) & LATEST) >= AGAIN.as_millis();
        let is_right = is_long_ago && self.words[COUNT].compare_exchange(count, 0, SeqCst, SeqCst).is_ok();
        if is_right {
            self.suspicion.store(0, SeqCst);
            self.words[TURNS].fetch_add(1, SeqCst);
            self.ring();
        }
        is_right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::end::testing::words;

    fn gates(bound: u32) -> [Gate; 2] {
        let words = words();
        let room = sysio::counter().unwrap();
        let other = sysio::duplicate(&room).unwrap();
        [Gate::new(words.clone(), room, bound), Gate::new(words, other, bound)]
    }

    #[test]
    fn no_more_enter_than_there_is_room_for() {
        let [gate, other] = gates(2);
        assert!(gate.enter(0) && other.enter(0) && !gate.enter(0));
        other.leave();
        assert!(!gate.enter(1));
        assert!(gate.enter(0) && !other.enter(0));
        // More leave than have entered, as after a death.
        (0..5).for_each(|_| gate.leave());
        assert!(gate.enter(0) && gate.enter(0) && !gate.enter(0));
        // They are dead, and nobody else is about.
        assert!(!gate.suspect(true) && !gate.suspect(true));
        std::thread::sleep(AGAIN);
        assert!(gate.suspect(true) && gate.enter(0));
        // There is a message, or somebody has sent since.
        assert!(!gate.suspect(true));
        std::thread::sleep(AGAIN);
        assert!(!gate.suspect(false) && !gate.suspect(true));
        assert!(gate.enter(0));
        std::thread::sleep(AGAIN);
        assert!(!gate.suspect(true));
    }

    #[test]
    fn who_waits_is_told_once() {
        let [gate, _] = gates(1);
        assert!(gate.enter(0));
        gate.leave();
        assert!(!sysio::is_readable(&gate.room, 0));
        assert!(gate.enter(0));
        gate.want();
        gate.leave();
        assert!(sysio::is_readable(&gate.room, 0));
        gate.hear();
        assert!(!sysio::is_readable(&gate.room, 0));
        gate.pass_on(|| 0);
        assert!(sysio::is_readable(&gate.room, 0));
    }
}
