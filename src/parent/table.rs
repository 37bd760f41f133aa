//! A child's life as its parent sees it: what it said, what was asked of it, how it ended. Decides only: events go in
//! with the time at which they happened, acts and, at the end, a verdict come out.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::shutdown::{Act, Ending, Why};
use crate::death::EndedBy;
use crate::sys::{pidfd, signals};
use crate::wire::message::{Failed, Panicked};
use crate::wire::parcel::Bytes;

/// The terms on which a child was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// `TERMINATE_ON_SHUTDOWN`.
    pub(crate) terminate: bool,
    /// `SHUTDOWN_TIMEOUT`.
    pub(crate) grace: Option<Duration>,
    /// How long it may take until it is about to run.
    pub(crate) start_timeout: Duration,
    /// How long it may take in all.
    pub(crate) timeout: Option<Duration>,
}

/// The child's last word.
#[derive(Debug)]
pub(crate) enum Outcome {
    Value(Bytes),
    Panicked(Panicked),
    Failed(Failed),
}

/// What became of a unit.
#[derive(Debug)]
pub(crate) enum Verdict {
    Value(Bytes),
    Panicked(Panicked),
    Failed(Failed),
    /// It ended without a word of its own; who ended it, if it was us, and whether by KILL.
    Died {
        ended: Option<(Why, bool)>,
        ready: bool,
        breach: Option<String>,
        /// In the grace, when its time was over.
        panic: Option<Panicked>,
    },
}

/// One child.
#[derive(Debug)]
pub(crate) struct Life {
    terms: Terms,
    ready: bool,
    start_by: Option<Instant>,
    end_by: Option<Instant>,
    linger_until: Option<Instant>,
    outcome: Option<Outcome>,
    note: Option<Panicked>,
    breach: Option<String>,
    ending: Option<Ending>,
}

impl Life {
    pub(crate) fn new(terms: Terms, now: Instant) -> Self {
        Self {
            terms,
            ready: false,
            start_by: now.checked_add(terms.start_timeout),
            end_by: None,
            linger_until: None,
            outcome: None,
            note: None,
            breach: None,
            ending: None,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Why it was asked to end, if it was.
    pub(crate) fn why(&self) -> Option<Why> {
        self.ending.map(|ending| ending.why)
    }

    /// Whether KILL has been sent.
    pub(crate) fn is_killed(&self) -> bool {
        self.ending.is_some_and(|ending| ending.killed)
    }

    pub(crate) fn has_outcome(&self) -> bool {
        self.outcome.is_some()
    }

    /// The start has returned to its caller: the unit's own time runs from here.
    pub(crate) fn on_started(&mut self, now: Instant) {
        // A fast one may have given its result before its start returned.
        if self.outcome.is_none() {
            self.end_by = self.terms.timeout.and_then(|timeout| now.checked_add(timeout));
        }
    }

    /// We were stopped, or the machine was, beyond what was to be the end of its start. It may not have been fed, or have
    /// been stopped with us: it gets its time anew.
    pub(crate) fn on_late_waking(&mut self, now: Instant) {
        if self.start_by.is_some_and(|deadline| deadline <= now) {
            self.start_by = now.checked_add(self.terms.start_timeout);
        }
    }

    pub(crate) fn on_ready(&mut self) {
        self.ready = true;
        self.start_by = None;
    }

    pub(crate) fn on_note(&mut self, panic: Panicked) {
        self.note = Some(panic);
    }

    /// The first last word counts; none does after a breach, also if it was on its way already.
    pub(crate) fn on_outcome(&mut self, outcome: Outcome, now: Instant) {
        if self.outcome.is_none() && self.breach.is_none() {
            self.outcome = Some(outcome);
            self.start_by = None;
            self.end_by = None;
            self.linger_until = self.terms.grace.and_then(|grace| now.checked_add(grace));
        }
    }

    pub(crate) fn on_breach(&mut self, what: String, now: Instant) -> Option<Act> {
        if self.outcome.is_some() {
            return None;
        }
        self.breach.get_or_insert(what);
        self.begin(Why::Breach, now)
    }

    /// Its value, if that is its last word and came in time: for whoever does not wait for its end.
    pub(crate) fn take_value(&mut self) -> Option<Bytes> {
        let is_late = self.ending.is_some_and(|ending| ending.why == Why::Timeout);
        match &mut self.outcome {
            Some(Outcome::Value(bytes)) if !is_late => Some(std::mem::take(bytes)),
            _ => None,
        }
    }

    /// Somebody wants it to end. A second wish changes nothing.
    pub(crate) fn ask_to_end(&mut self, why: Why, now: Instant) -> Option<Act> {
        if self.ending.is_some() || !self.terms.terminate && matches!(why, Why::Shutdown | Why::Exit) {
            return None;
        }
        self.begin(why, now)
    }

    fn begin(&mut self, why: Why, now: Instant) -> Option<Act> {
        let (mut ending, act) = Ending::begin(why, now, self.terms.grace);
        // The first cause is what is told in the end.
        ending.why = self.ending.map_or(why, |first| first.why);
        self.ending = Some(ending);
        Some(act)
    }

    /// Whoever asked for it has gone on without it.
    pub(crate) fn on_given_up(&mut self, now: Instant) -> Option<Act> {
        self.begin(Why::Start, now)
    }

    /// It has just been made; what was asked of it before is to be done now.
    pub(crate) fn on_birth(&self) -> Option<Act> {
        self.ending.map(|ending| if ending.killed { Act::Kill } else { Act::Terminate })
    }

    /// When [`Life::on_time`] is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let ending = self.ending.as_ref();
        let own = [self.start_by, self.end_by].into_iter().flatten().filter(|_| ending.is_none());
        let linger = self.linger_until.filter(|_| !ending.is_some_and(|ending| ending.killed));
        own.chain(linger).chain(ending.and_then(Ending::deadline)).min()
    }

    pub(crate) fn on_time(&mut self, now: Instant) -> Option<Act> {
        let over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if let Some(act) = self.ending.as_mut().and_then(|ending| ending.due(now)) {
            return Some(act);
        }
        if over(self.linger_until) && !self.ending.is_some_and(|ending| ending.killed) {
            return self.begin(Why::Lingering, now);
        }
        match () {
            () if self.ending.is_some() => None,
            () if over(self.start_by) => self.begin(Why::Start, now),
            () if over(self.end_by) => self.begin(Why::Timeout, now),
            () => None,
        }
    }

    /// Whether we are ending it; and when what it leaves of its process group gets KILL, `None` for never.
    pub(crate) fn rest(&self, now: Instant) -> Option<Option<Instant>> {
        self.ending.map(|ending| ending.rest(now))
    }

    /// Who ended it. `starved`: whether the kernel has killed a process for want of memory.
    pub(crate) fn ended_by(&self, status: ExitStatus, starved: impl FnOnce() -> bool) -> EndedBy {
        let ending = self.why();
        let is_unasked = ending.is_none() && pidfd::signal(status) == Some(signals::KILL);
        EndedBy::of(ending, status, is_unasked && starved())
    }

    /// It has been reaped: no event comes after this one.
    pub(crate) fn on_end(&mut self, status: ExitStatus) -> Verdict {
        let ended = self.ending.map(|ending| (ending.why, ending.killed));
        let outcome = match (self.outcome.take(), self.note.take()) {
            (None, Some(panic)) if pidfd::signal(status) == Some(signals::ABRT) => {
                Some(Outcome::Panicked(panic))
            }
            (outcome, _) => outcome,
        };
        // What came after its time was over came too late.
        let is_late = matches!(ended, Some((Why::Timeout, _)));
        let panic = match outcome {
            Some(Outcome::Panicked(panic)) if is_late => Some(panic),
            Some(Outcome::Value(bytes)) if !is_late => return Verdict::Value(bytes),
            Some(Outcome::Panicked(panic)) => return Verdict::Panicked(panic),
            Some(Outcome::Failed(failed)) if !is_late => return Verdict::Failed(failed),
            _ => None,
        };
        Verdict::Died { ended, ready: self.ready, breach: self.breach.take(), panic }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const SECOND: Duration = Duration::from_secs(1);
    const ABRT: i32 = 6;

    fn terms() -> Terms {
        Terms { terminate: true, grace: Some(SECOND), start_timeout: 10 * SECOND, timeout: Some(5 * SECOND) }
    }

    fn running(terms: Terms, now: Instant) -> Life {
        let mut life = Life::new(terms, now);
        life.on_ready();
        life.on_started(now);
        life
    }

    fn value(byte: u8) -> Outcome {
        Outcome::Value(vec![byte].into())
    }

    fn panicked() -> Panicked {
        Panicked { message: "m".into(), file: None, line: None, column: None, thread: None, backtrace: None }
    }

    #[test]
    fn a_value_wins_whatever_the_status() {
        let now = Instant::now();
        let mut life = running(terms(), now);
        life.on_outcome(value(1), now);
        life.on_outcome(value(2), now);
        assert!(matches!(life.on_end(ExitStatus::from_raw(11)), Verdict::Value(v) if *v == [1]));
    }

    #[test]
    fn not_ready_in_time_is_killed_and_told_so() {
        let now = Instant::now();
        let mut life = Life::new(terms(), now);
        assert_eq!(life.deadline(), Some(now + 10 * SECOND));
        assert_eq!(life.on_time(now + 9 * SECOND), None);
        assert_eq!(life.on_time(now + 10 * SECOND), Some(Act::Kill));
        let verdict = life.on_end(ExitStatus::from_raw(9));
        assert!(matches!(verdict, Verdict::Died { ended: Some((Why::Start, true)), ready: false, .. }));
    }

    #[test]
    fn a_late_waking_gives_a_start_its_time_anew_and_nothing_else() {
        let now = Instant::now();
        let mut life = Life::new(terms(), now);
        life.on_late_waking(now + 9 * SECOND);
        assert_eq!(life.deadline(), Some(now + 10 * SECOND));
        life.on_late_waking(now + 20 * SECOND);
        assert_eq!(life.deadline(), Some(now + 30 * SECOND));
        let mut life = running(terms(), now);
        life.on_late_waking(now + 20 * SECOND);
        assert_eq!(life.deadline(), Some(now + 5 * SECOND));
    }

    #[test]
    fn a_timeout_strikes_even_if_the_value_comes_in_the_grace() {
        let now = Instant::now();
        let mut life = running(terms(), now);
        assert_eq!(life.on_time(now + 5 * SECOND), Some(Act::Terminate));
        life.on_outcome(value(0), now + 5 * SECOND);
        let verdict = life.on_end(ExitStatus::from_raw(0));
        assert!(matches!(verdict, Verdict::Died { ended: Some((Why::Timeout, false)), .. }));
    }

    #[test]
    fn a_panic_in_the_grace_after_a_timeout_is_told_with_the_timeout() {
        let now = Instant::now();
        for aborts in [false, true] {
            let mut life = running(terms(), now);
            life.on_time(now + 5 * SECOND);
            if aborts {
                life.on_note(panicked());
            } else {
                life.on_outcome(Outcome::Panicked(panicked()), now + 5 * SECOND);
            }
            let verdict = life.on_end(ExitStatus::from_raw(if aborts { ABRT } else { 101 << 8 }));
            let Verdict::Died { ended: Some((Why::Timeout, false)), panic: Some(_), .. } = verdict else {
                panic!("{verdict:?}")
            };
        }
        // By another end than a timeout it is the panic.
        let mut life = running(terms(), now);
        life.ask_to_end(Why::Shutdown, now);
        life.on_outcome(Outcome::Panicked(panicked()), now);
        assert!(matches!(life.on_end(ExitStatus::from_raw(101 << 8)), Verdict::Panicked(_)));
    }

    #[test]
    fn one_that_lingers_after_its_result_is_killed_and_its_value_stands() {
        let now = Instant::now();
        let mut life = running(terms(), now);
        life.on_outcome(value(7), now);
        assert_eq!(life.deadline(), Some(now + SECOND));
        assert_eq!(life.on_time(now + SECOND), Some(Act::Kill));
        assert_eq!(life.deadline(), None);
        assert!(matches!(life.on_end(ExitStatus::from_raw(9)), Verdict::Value(_)));
    }

    #[test]
    fn a_value_that_came_before_the_start_returned_is_never_too_late() {
        let now = Instant::now();
        let mut life = Life::new(terms(), now);
        life.on_ready();
        life.on_outcome(value(7), now);
        life.on_started(now);
        assert_eq!(life.deadline(), Some(now + SECOND));
        assert_eq!(life.on_time(now + 5 * SECOND), Some(Act::Kill));
        assert!(matches!(life.on_end(ExitStatus::from_raw(9)), Verdict::Value(_)));
    }

    #[test]
    fn one_that_must_not_be_terminated_is_let_be() {
        let now = Instant::now();
        let mut life = running(Terms { terminate: false, timeout: None, ..terms() }, now);
        assert_eq!(life.ask_to_end(Why::Exit, now), None);
        assert_eq!(life.ask_to_end(Why::Shutdown, now), None);
        assert_eq!(life.deadline(), None);
    }

    #[test]
    fn a_second_wish_neither_repeats_term_nor_prolongs_the_grace() {
        let now = Instant::now();
        let mut life = running(terms(), now);
        assert_eq!(life.ask_to_end(Why::Shutdown, now), Some(Act::Terminate));
        assert_eq!(life.ask_to_end(Why::Exit, now + SECOND / 2), None);
        assert_eq!(life.deadline(), Some(now + SECOND));
        assert_eq!(life.on_time(now + SECOND), Some(Act::Kill));
    }

    #[test]
    fn what_was_asked_before_it_was_made_is_done_when_it_is() {
        let now = Instant::now();
        let mut life = Life::new(terms(), now);
        assert_eq!(life.on_birth(), None);
        life.ask_to_end(Why::Exit, now);
        assert_eq!(life.on_birth(), Some(Act::Terminate));
        let mut life = Life::new(terms(), now);
        life.on_time(now + 10 * SECOND);
        assert_eq!(life.on_birth(), Some(Act::Kill));
    }

    #[test]
    fn an_abort_after_a_panic_began_is_that_panic() {
        let now = Instant::now();
        let mut life = running(terms(), now);
        life.on_note(panicked());
        assert!(matches!(life.on_end(ExitStatus::from_raw(ABRT)), Verdict::Panicked(_)));
        let mut life = running(terms(), now);
        life.on_note(panicked());
        assert!(matches!(life.on_end(ExitStatus::from_raw(9)), Verdict::Died { ended: None, .. }));
    }

    #[test]
    fn what_one_leaves_behind_has_the_rest_of_its_grace_if_it_was_ended_by_us() {
        let now = Instant::now();
        let mut life = running(terms(), now);
        assert_eq!(life.rest(now), None);
        life.ask_to_end(Why::Shutdown, now);
        assert_eq!(life.rest(now + SECOND / 2), Some(Some(now + SECOND)));
        let mut life = running(Terms { grace: None, ..terms() }, now);
        life.ask_to_end(Why::Shutdown, now);
        assert_eq!(life.rest(now), Some(None));
    }

    #[test]
    fn a_breach_is_killed_unless_the_result_is_home() {
        let now = Instant::now();
        let mut life = running(terms(), now);
        assert_eq!(life.on_breach("x".into(), now), Some(Act::Kill));
        // What stands behind it does not count.
        life.on_outcome(value(0), now);
        life.on_breach("y".into(), now);
        let Verdict::Died { breach, .. } = life.on_end(ExitStatus::from_raw(0)) else { panic!("a result") };
        assert_eq!(breach.as_deref(), Some("x"));
        let mut life = running(terms(), now);
        life.on_outcome(value(0), now);
        assert_eq!(life.on_breach("x".into(), now), None);
    }
}
