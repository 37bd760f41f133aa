//! Who waits for messages that the kernel does not know of.
//!
//! Whoever is about to wait makes a wish, which is counted, looks once more, and waits for a semaphore. Whoever has put a message in answers all
//! wishes that are counted, each by a token, and takes them off the count. A token is taken for each wish, by whoever waits and finds one. So for each that waits there is a
//! token, or he is counted; whatever becomes of one of them, the others are told.
//!
//! A wish cannot be taken back, for it may just be being answered. Whoever did not wait after all keeps it for the next time.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::end::WAITING;
use crate::sys::io::{self as sysio, OwnedFd};
use crate::sys::lifecycle::generation;
use crate::sys::memory::Words;

#[derive(Debug)]
pub(super) struct Bell {
    words: Arc<Words>,
    pub(super) tokens: OwnedFd,
    /// Wishes that are counted or have been answered, and nobody waits for.
    kept: AtomicU32,
    /// How often in a row somebody was told and found nothing.
    vain: AtomicU32,
    /// The process that has made these wishes: a forked copy has made none.
    generation: u64,
}

/// Somebody who waits. Dropped, he does so no more.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Bell);

impl Waiting<'_> {
    /// He waits no more, for there may be a token. Whether there was.
    pub(super) fn told(self) -> bool {
        let is_told = self.0.is_ours() && sysio::take(&self.0.tokens);
        if is_told {
            // His wish has been answered.
            std::mem::forget(self);
        }
        is_told
    }
}

impl Bell {
    pub(super) fn new(words: Arc<Words>, tokens: OwnedFd) -> Self {
        Self { words, tokens, kept: AtomicU32::new(0), vain: AtomicU32::new(0), generation: generation() }
    }

    fn is_ours(&self) -> bool {
        self.generation == generation()
    }

    /// Somebody is about to wait. He is to look once more before he does.
    pub(super) fn wait(&self) -> Waiting<'_> {
        let one_less = |kept: u32| kept.checked_sub(1);
        if !self.is_ours() || self.kept.fetch_update(SeqCst, SeqCst, one_less).is_err() {
            self.words[WAITING].fetch_add(1, SeqCst);
        }
        Waiting(self)
    }

    /// A message has been put in: all who wait are told. `has_room`: the semaphore has just been seen to.
    pub(super) fn ring(&self, has_room: bool) {
        let count = self.words[WAITING].load(SeqCst);
        if count > 0 {
            let add = if has_room { sysio::add_unasked } else { sysio::add };
            // In this order: whoever dies in between has told somebody twice, and not taken him for told.
            add(&self.tokens, count);
            self.less(count);
        }
    }

    /// So many fewer are counted; whether any were.
    fn less(&self, count: u32) -> bool {
        let fewer = |waiting: u32| (waiting > 0).then(|| waiting.saturating_sub(count));
        self.words[WAITING].fetch_update(SeqCst, SeqCst, fewer).is_ok()
    }

    /// Somebody was told, and has found something or not. Whether that is often in vain: because many are told of each message, of whom one gets
    /// it, or because of tokens for those who have died.
    pub(super) fn is_in_vain(&self, has_found: bool) -> bool {
        const OFTEN: u32 = 64;
        if has_found {
            self.vain.store(0, Relaxed);
            return false;
        }
        self.vain.fetch_add(1, Relaxed) >= OFTEN
    }

    #[cfg(test)]
    pub(super) fn has_waiting(&self) -> bool {
        self.words[WAITING].load(SeqCst) > 0
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.is_ours() {
            self.0.kept.fetch_add(1, SeqCst);
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // There may be one token too many then, which whoever takes it bears.
        let kept = if self.is_ours() { *self.kept.get_mut() } else { 0 };
        for _ in 0..kept {
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
        let mut copy = others(&bell);
        copy.generation += 1;
        let waiting = bell.wait();
        assert!(!Waiting(&copy).told());
        bell.ring(false);
        assert!(!Waiting(&copy).told());
        copy.kept.store(1, SeqCst);
        drop(copy);
        assert!(is_told(&bell));
        assert!(waiting.told());
        assert!(!is_told(&bell));
    }
}
