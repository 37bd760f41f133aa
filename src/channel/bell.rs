//! Who waits for messages that the kernel does not know of.
//!
//! Whoever is about to wait makes a wish, which is counted, looks once more, and waits for a semaphore. Whoever has put a message in answers the
//! wishes that are counted, each by a token, and takes them off the count. A token is taken for each wish, by whoever waits and finds one. So for
//! each that waits there is a token, or he is counted; whatever becomes of one of them, the others are told.
//!
//! A wish cannot be taken back, for it may just be being answered. Whoever did not wait after all keeps it for the next time.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::end::WAITING;
use crate::sys::io::{self as sysio, OwnedFd};
use crate::sys::lifecycle::generation;
use crate::sys::memory::Words;

#[derive(Debug)]
pub(super) struct Bell {
    words: Arc<Words>,
    pub(super) tokens: OwnedFd,
    /// Wishes that are counted or have been answered, and nobody waits for: how many, and in the upper half the process that has made them. A forked
    /// copy has made none of them.
    kept: AtomicU64,
    /// How often in a row somebody was told and found nothing.
    vain: AtomicU32,
}

/// Somebody who waits. Dropped, he does so no more.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    bell: &'a Bell,
    /// The process whose wish it is.
    process: u64,
}

/// So many are told of a message at most; those beyond, of the next.
const MANY: u32 = 64;

/// So often in a row somebody is told in vain. (All tokens of one message may be his, for others who are dead.)
const OFTEN: u32 = 32;
const _: () = assert!(OFTEN < MANY);

/// This process, for the upper half.
fn process() -> u64 {
    generation() << 32
}

/// How many are kept by that process.
fn count(kept: u64, process: u64) -> u64 {
    if kept & !COUNT == process { kept & COUNT } else { 0 }
}

const COUNT: u64 = u32::MAX as u64;

impl Waiting<'_> {
    /// He waits no more, for there may be a token. Whether there was.
    pub(super) fn told(self) -> bool {
        let is_told = self.process == process() && sysio::take(&self.bell.tokens);
        if is_told {
            // His wish has been answered.
            std::mem::forget(self);
        }
        is_told
    }
}

impl Bell {
    pub(super) fn new(words: Arc<Words>, tokens: OwnedFd) -> Self {
        Self { words, tokens, kept: AtomicU64::new(0), vain: AtomicU32::new(0) }
    }

    /// Somebody is about to wait. He is to look once more before he does.
    pub(super) fn wait(&self) -> Waiting<'_> {
        let process = process();
        let one_less = |kept| (count(kept, process) > 0).then(|| kept - 1);
        if self.kept.fetch_update(SeqCst, SeqCst, one_less).is_err() {
            self.words[WAITING].fetch_add(1, SeqCst);
        }
        Waiting { bell: self, process }
    }

    /// A message has been put in: all who wait are told. `has_room`: the semaphore has just been seen to.
    pub(super) fn ring(&self, has_room: bool) {
        let count = self.words[WAITING].load(SeqCst).min(MANY);
        for n in 0..count {
            // One by one: so many may have no room where one has.
            if has_room && n == 0 { sysio::add_unasked(&self.tokens) } else { sysio::add(&self.tokens) }
        }
        // In this order: whoever dies in between has told somebody twice, and not taken him for told.
        if count > 0 {
            self.less(count);
        }
    }

    /// Whoever waits is told, counted or not.
    pub(super) fn insist(&self) {
        if !sysio::is_readable(&self.tokens, 0) {
            sysio::add(&self.tokens);
        }
    }

    /// So many fewer are counted; whether any were.
    fn less(&self, count: u32) -> bool {
        let fewer = |waiting: u32| (waiting > 0).then(|| waiting.saturating_sub(count));
        self.words[WAITING].fetch_update(SeqCst, SeqCst, fewer).is_ok()
    }

    /// Somebody was told, and has found nothing. Whether that is so all the time: because many are told of each message, of whom one gets it, or because
    /// of tokens for those who have died.
    pub(super) fn is_in_vain(&self) -> bool {
        self.vain.fetch_add(1, Relaxed) >= OFTEN
    }

    /// Somebody has found something.
    pub(super) fn has_found(&self) {
        if self.vain.load(Relaxed) != 0 {
            self.vain.store(0, Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn has_waiting(&self) -> bool {
        self.words[WAITING].load(SeqCst) > 0
    }

    #[cfg(test)]
    pub(super) fn forget_all(&self) {
        self.words[WAITING].store(0, SeqCst);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let process = self.process;
        if process == self::process() {
            let one_more = |kept| Some(process | (count(kept, process) + 1));
            let _ = self.bell.kept.fetch_update(SeqCst, SeqCst, one_more);
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // There may be one token too many then, which whoever takes it bears.
        for _ in 0..count(*self.kept.get_mut(), process()) {
            let _ = self.less(1) || sysio::take(&self.tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::end::testing::words;

    fn is_told(bell: &Bell) -> bool {
        sysio::is_readable(&bell.tokens, 0)
    }

    fn others(bell: &Bell) -> Bell {
        Bell::new(bell.words.clone(), sysio::duplicate(&bell.tokens).unwrap())
    }

    #[test]
    fn there_is_a_token_for_each_that_waits_or_he_is_counted() {
        let bell = Bell::new(words(), sysio::semaphore().unwrap());
        let other = others(&bell);
        bell.ring(false);
        assert!(!is_told(&bell), "nobody waits");
        let (first, second) = (bell.wait(), other.wait());
        bell.ring(false);
        assert!(is_told(&bell) && !bell.has_waiting());
        assert!(first.told());
        assert!(is_told(&other), "the other's is gone");
        // One more takes the other's, and his wish is the other's then.
        assert!(bell.wait().told());
        assert!(!is_told(&other) && bell.has_waiting());
        bell.ring(true);
        assert!(is_told(&other));
        assert!(second.told());
        assert!(!is_told(&bell) && !bell.has_waiting());
    }

    #[test]
    fn a_wish_is_kept_for_the_next_time_whenever_it_is_answered() {
        let bell = Bell::new(words(), sysio::semaphore().unwrap());
        for is_answered in [false, true, false] {
            drop(bell.wait());
            if is_answered {
                bell.ring(false);
            }
            let again = bell.wait();
            assert_eq!(bell.words[WAITING].load(SeqCst), u32::from(!is_answered));
            bell.ring(false);
            assert!(is_told(&bell));
            assert!(again.told());
            assert!(!is_told(&bell) && !bell.has_waiting());
        }
        drop(bell.wait());
        let other = others(&bell);
        drop(bell);
        assert!(!is_told(&other) && !other.has_waiting());
    }

    #[test]
    fn a_forked_copy_takes_nobodys_token_and_leaves_his_wish() {
        let bell = Bell::new(words(), sysio::semaphore().unwrap());
        let copy = others(&bell);
        let elsewhere = process() + (1 << 32);
        let inherited = || Waiting { bell: &copy, process: elsewhere };
        let waiting = bell.wait();
        assert!(!inherited().told());
        bell.ring(false);
        assert!(!inherited().told());
        copy.kept.store(elsewhere | 1, SeqCst);
        // Its own is another.
        drop(copy.wait());
        assert_eq!(copy.kept.load(SeqCst), process() | 1);
        assert!(bell.has_waiting());
        copy.kept.store(elsewhere | 1, SeqCst);
        drop(copy);
        assert!(is_told(&bell) && bell.has_waiting());
        assert!(waiting.told());
        assert!(!is_told(&bell));
    }

    #[test]
    fn many_are_told_of_one_message_and_more_of_the_next() {
        let bell = Bell::new(words(), sysio::semaphore().unwrap());
        let all: Vec<_> = (0..100).map(|_| bell.wait()).collect();
        bell.ring(false);
        assert_eq!(bell.words[WAITING].load(SeqCst), 36);
        bell.ring(true);
        assert!(all.into_iter().all(Waiting::told) && !is_told(&bell) && !bell.has_waiting());
    }
}
