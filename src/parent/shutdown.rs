//! Ending a child: TERM, a grace, KILL. Decides only: no signal is sent here, and the time is told, not asked.

use std::time::{Duration, Instant};

/// Who wants a child to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its handle's or its process's `shutdown`.
    Shutdown,
    /// Its parent's exit, or `offspring::shutdown`.
    Exit,
    /// Its time is over.
    Timeout,
    /// It did not become ready in time. No grace.
    Start,
    /// It sent what no child of ours sends. No grace.
    Breach,
    /// It gave its result and did not end. No second TERM; the result stands.
    Lingering,
}

/// What is to be done to a child now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// TERM, then CONT, for a stopped process sees TERM only once it goes on.
    Terminate,
    Kill,
}

/// A child's ending, once it has been asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) why: Why,
    kill_at: Option<Instant>,
    pub(crate) killed: bool,
}

impl Ending {
    /// Begins it. `grace`: how long from TERM to KILL; `None` for ever.
    pub(crate) fn begin(why: Why, now: Instant, grace: Option<Duration>) -> (Self, Act) {
        let at_once = matches!(why, Why::Start | Why::Breach | Why::Lingering);
        let kill_at = if at_once { None } else { grace.and_then(|grace| now.checked_add(grace)) };
        (Self { why, kill_at, killed: at_once }, if at_once { Act::Kill } else { Act::Terminate })
    }

    /// When [`Ending::due`] is to be asked again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.kill_at.filter(|_| !self.killed)
    }

    /// When what it leaves behind gets KILL; `None`: never.
    pub(crate) fn rest(&self, now: Instant) -> Option<Instant> {
        if self.killed { Some(now) } else { self.kill_at }
    }

    /// What the time that has come asks for.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Act> {
        self.deadline().filter(|deadline| *deadline <= now).map(|_| {
            self.killed = true;
            Act::Kill
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn term_then_kill_after_the_grace_and_once() {
        let now = Instant::now();
        let (mut ending, act) = Ending::begin(Why::Shutdown, now, Some(GRACE));
        assert_eq!(act, Act::Terminate);
        assert_eq!(ending.deadline(), Some(now + GRACE));
        assert_eq!(ending.rest(now), Some(now + GRACE));
        assert_eq!(ending.due(now + GRACE - Duration::from_nanos(1)), None);
        assert_eq!(ending.due(now + GRACE), Some(Act::Kill));
        assert_eq!(ending.deadline(), None);
        assert_eq!(ending.due(now + 2 * GRACE), None);
    }

    #[test]
    fn without_a_grace_there_is_no_kill() {
        let now = Instant::now();
        for grace in [None, Some(Duration::MAX)] {
            let (mut ending, act) = Ending::begin(Why::Timeout, now, grace);
            assert_eq!((act, ending.deadline(), ending.due(now + GRACE)), (Act::Terminate, None, None));
            assert_eq!(ending.rest(now), None);
        }
    }

    #[test]
    fn what_is_beyond_hope_is_killed_at_once() {
        for why in [Why::Start, Why::Breach, Why::Lingering] {
            let (ending, act) = Ending::begin(why, Instant::now(), Some(GRACE));
            assert_eq!((act, ending.deadline(), ending.killed), (Act::Kill, None, true));
            let later = Instant::now() + GRACE;
            assert_eq!(ending.rest(later), Some(later));
        }
    }
}
