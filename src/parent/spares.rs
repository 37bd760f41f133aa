//! How many spares there are to be, and when they are made and given back. Decides only: the time is told, not asked.
//!
//! Few will do: those that were taken are replaced after a unit has ended, or a little later if it goes on, so that the making
//! keeps out of the way of what was just started; and at the reaper's leisure, as long as a quarter of them is left. Who has to
//! start without one shows that there were too few; a second with few starts, that there are too many.

use std::time::{Duration, Instant};

/// While there are starts at all.
const LEAST: usize = 8;
/// However many starts come at once.
const MOST: usize = 16;
/// A unit that was just started has this long for itself.
const LATER: Duration = Duration::from_millis(2);
/// Without a start for so long, the spares are given back,
const IDLE: Duration = Duration::from_secs(1);
/// and the zygote as well.
const LONG_IDLE: Duration = Duration::from_secs(10);

/// What is known of the demand.
#[derive(Debug, Default)]
pub(crate) struct Supply {
    target: usize,
    last_start: Option<Instant>,
    /// Since when starts are counted, and how many there were.
    counted: Option<(Instant, usize)>,
    refill_at: Option<Instant>,
    given_back: bool,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    /// So many more are to be made.
    Make(usize),
    GiveBack,
    /// Nobody needs the zygote any more.
    Retire,
}

impl Supply {
    /// A unit was started; whether there was a spare for it, and if not, whether some are being made.
    pub(crate) fn on_start(&mut self, found: bool, coming: bool, now: Instant) {
        if !found && !coming {
            // The very first tells nothing.
            self.target = (self.target * 2).min(MOST);
        }
        self.counted = match self.counted {
            Some((since, count)) if now.saturating_duration_since(since) < IDLE => Some((since, count + 1)),
            Some((_, count)) => {
                if count <= self.target / 2 {
                    // Those that are too many are taken, and not replaced.
                    self.target /= 2;
                }
                Some((now, 1))
            }
            None => Some((now, 1)),
        };
        self.target = self.target.max(LEAST);
        self.last_start = Some(now);
        self.given_back = false;
        self.refill_at = self.refill_at.or_else(|| now.checked_add(LATER));
    }

    /// A unit was started for which no spare will do.
    pub(crate) fn on_other_start(&mut self, now: Instant) {
        self.last_start = self.last_start.map(|_| now);
    }

    /// A unit has ended, and so many spares are there; whether the reaper is to be woken to make more.
    pub(crate) fn on_end(&mut self, there: usize, now: Instant) -> bool {
        if self.target > 0 {
            self.refill_at = Some(now);
        }
        there <= self.target / 4 && self.target > 0
    }

    /// A spare has died, and nobody had asked it to. Whatever it is that kills them: not at once again.
    pub(crate) fn on_loss(&mut self, now: Instant) {
        if self.target > 0 {
            self.refill_at = self.refill_at.or_else(|| now.checked_add(LATER));
        }
    }

    /// When [`Supply::due`] is to be asked again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let idle = if self.given_back { LONG_IDLE } else { IDLE };
        let idle_at = self.last_start.and_then(|start| start.checked_add(idle));
        self.refill_at.into_iter().chain(idle_at).min()
    }

    /// The zygote cannot be given up yet. It is looked at again after a while.
    pub(crate) fn on_postponed(&mut self, now: Instant) {
        if self.last_start.is_none() {
            *self = Self { last_start: Some(now), given_back: true, ..Self::default() };
        }
    }

    /// Whether more starts are to be expected.
    pub(crate) fn is_busy(&self) -> bool {
        self.target > 0
    }

    /// What the time asks for; `there`: how many spares there are or have been asked for; `alone`: whether no unit lives.
    pub(crate) fn due(&mut self, there: usize, alone: bool, now: Instant) -> Wish {
        let since = self.last_start.map(|start| now.saturating_duration_since(start));
        if self.given_back && since.is_some_and(|since| since >= LONG_IDLE) {
            if !alone {
                // It is still to see to them, should we die.
                self.last_start = Some(now);
                return Wish::Nothing;
            }
            *self = Self::default();
            return Wish::Retire;
        }
        if !self.given_back && since.is_some_and(|since| since >= IDLE) {
            *self = Self { last_start: self.last_start, given_back: true, ..Self::default() };
            return Wish::GiveBack;
        }
        if self.refill_at.is_some_and(|at| at <= now) {
            self.refill_at = None;
            if there < self.target {
                return Wish::Make(self.target - there);
            }
        }
        Wish::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_made_for_each_that_was_taken_when_its_unit_has_ended() {
        let now = Instant::now();
        let mut supply = Supply::default();
        assert_eq!((supply.deadline(), supply.due(0, true, now)), (None, Wish::Nothing));
        supply.on_start(true, false, now);
        assert_eq!(supply.due(1, true, now), Wish::Nothing);
        assert!(!supply.on_end(LEAST - 1, now + LATER / 2));
        assert!(supply.on_end(LEAST / 4, now + LATER / 2));
        assert_eq!(supply.deadline(), Some(now + LATER / 2));
        assert_eq!(supply.due(LEAST / 4, true, now + LATER / 2), Wish::Make(LEAST - LEAST / 4));
        assert_eq!(supply.due(1, true, now + LATER), Wish::Nothing);
    }

    #[test]
    fn one_that_dies_is_not_replaced_at_once() {
        let now = Instant::now();
        let mut supply = Supply::default();
        supply.on_loss(now);
        assert_eq!(supply.deadline(), None);
        supply.on_start(true, false, now);
        supply.on_end(LEAST, now);
        assert_eq!(supply.due(LEAST, true, now), Wish::Nothing);
        supply.on_loss(now);
        assert_eq!(supply.due(LEAST - 1, true, now), Wish::Nothing);
        assert_eq!(supply.due(LEAST - 1, true, now + LATER), Wish::Make(1));
    }

    #[test]
    fn a_unit_that_goes_on_is_not_waited_for() {
        let now = Instant::now();
        let mut supply = Supply::default();
        supply.on_start(true, false, now);
        assert_eq!(supply.deadline(), Some(now + LATER));
        assert_eq!(supply.due(0, true, now + LATER), Wish::Make(LEAST));
    }

    #[test]
    fn who_finds_none_shows_that_there_were_too_few() {
        let now = Instant::now();
        let mut supply = Supply::default();
        for expected in [LEAST, 16, MOST, MOST] {
            supply.on_start(false, false, now);
            supply.on_start(false, true, now);
            supply.on_start(true, false, now);
            supply.on_end(0, now);
            assert_eq!(supply.due(0, true, now), Wish::Make(expected));
        }
    }

    #[test]
    fn who_starts_little_keeps_few() {
        let start = Instant::now();
        let mut supply = Supply::default();
        (0..2 * MOST).for_each(|_| supply.on_start(false, false, start));
        assert_eq!(supply.target, MOST);
        // In the second of the burst there were many.
        supply.on_start(true, false, start + IDLE);
        assert_eq!(supply.target, MOST);
        (1..MOST).for_each(|_| supply.on_start(true, false, start + IDLE));
        supply.on_start(true, false, start + 2 * IDLE);
        assert_eq!(supply.target, MOST);
        supply.on_start(true, false, start + 3 * IDLE);
        assert_eq!(supply.target, MOST / 2);
        supply.on_start(true, false, start + 4 * IDLE);
        assert_eq!(supply.target, LEAST);
    }

    #[test]
    fn a_zygote_that_cannot_be_given_up_yet_is_not_forgotten() {
        let now = Instant::now();
        let mut supply = Supply::default();
        supply.on_start(true, false, now);
        assert_eq!(supply.due(0, true, now + IDLE), Wish::GiveBack);
        assert_eq!(supply.due(0, true, now + LONG_IDLE), Wish::Retire);
        supply.on_postponed(now + LONG_IDLE);
        assert_eq!(supply.deadline(), Some(now + 2 * LONG_IDLE));
        assert_eq!(supply.due(0, true, now + 2 * LONG_IDLE), Wish::Retire);
        // There was a start meanwhile.
        supply.on_start(true, false, now + 3 * LONG_IDLE);
        supply.on_postponed(now + 3 * LONG_IDLE);
        assert_eq!(supply.due(0, true, now + 3 * LONG_IDLE + LATER), Wish::Make(LEAST));
    }

    #[test]
    fn who_starts_nothing_any_more_keeps_nothing() {
        let now = Instant::now();
        let mut supply = Supply::default();
        supply.on_start(false, false, now);
        supply.on_end(0, now);
        supply.due(0, true, now);
        assert_eq!(supply.deadline(), Some(now + IDLE));
        assert_eq!(supply.due(LEAST, true, now + IDLE - LATER), Wish::Nothing);
        assert_eq!(supply.due(LEAST, true, now + IDLE), Wish::GiveBack);
        // The end of a unit that was still running brings none back.
        assert!(!supply.on_end(0, now + 2 * IDLE));
        assert_eq!(supply.due(0, true, now + 2 * IDLE), Wish::Nothing);
        assert_eq!(supply.deadline(), Some(now + LONG_IDLE));
        assert_eq!(supply.due(0, false, now + LONG_IDLE), Wish::Nothing);
        assert_eq!(supply.deadline(), Some(now + 2 * LONG_IDLE));
        assert_eq!(supply.due(0, true, now + 2 * LONG_IDLE), Wish::Retire);
        assert_eq!((supply.deadline(), supply.due(0, true, now + 3 * LONG_IDLE)), (None, Wish::Nothing));
    }

    #[test]
    fn who_needs_no_spares_keeps_the_zygote() {
        let now = Instant::now();
        let mut supply = Supply::default();
        supply.on_other_start(now);
        assert_eq!(supply.deadline(), None);
        supply.on_start(false, true, now);
        supply.on_other_start(now + LONG_IDLE);
        supply.due(LEAST, true, now + LONG_IDLE);
        assert_eq!(supply.due(LEAST, true, now + LONG_IDLE), Wish::Nothing);
        assert_eq!(supply.due(LEAST, true, now + LONG_IDLE + IDLE), Wish::GiveBack);
        assert_eq!(supply.due(0, true, now + 2 * LONG_IDLE), Wish::Retire);
    }
}
