//! Waiting for what a child does, and its end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::{Birth, End, Gone, State, Unit, YOUNG};
use crate::death::EndedBy;
use crate::hook;
use crate::log::News;
use crate::parent::reaper;
use crate::parent::shutdown::Why;
use crate::parent::table::Verdict;
use crate::parent::unit::lock;
use crate::sys::io::{self as sysio, AsFd};
use crate::sys::pidfd::{self, Reaped};
use crate::sys::{group, limit, signals};
use crate::wire::parcel::Bytes;

/// So long a start waits for the end of what was killed. It is on its way out, unless a tracer or the kernel holds it.
const HELD: Duration = Duration::from_secs(2);

impl Unit {
    /// Waits until it is known what came of it, or the time comes. For the one that asked for it.
    pub(crate) fn wait_born(&self, deadline: Option<Instant>) -> Option<Birth> {
        self.wait_for(deadline, |state| state.birth.is_some());
        lock(&self.state).birth.take()
    }

    /// Waits until it ended, or the time comes; whether it did.
    ///
    /// Who waits sees to the end himself: the way over the reaper's thread would cost as much as the rest of the wait.
    pub(crate) fn wait_until(self: &Arc<Self>, deadline: Option<Instant>) -> bool {
        let Some(runtime) = self.runtime.upgrade().filter(|_| self.is_alive()) else { return true };
        let token = reaper::token(self.id, reaper::EXIT);
        runtime.poller.mute(self.pidfd(), token);
        if runtime.is_closing() {
            // All were unmuted, perhaps before.
            runtime.poller.modify(self.pidfd(), token, false);
        }
        // The reaper may have been told of it already, or be told again by a shutdown. Then it does the work.
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let over = left.is_some_and(|left| left.is_zero());
            let ended = sysio::wait_any(&[self.pidfd().as_fd()], false, left)[0];
            if !self.is_alive() || ended && runtime.on_exit(self, &mut [0; 8 << 10]) {
                return true;
            }
            if over {
                runtime.poller.modify(self.pidfd(), token, false);
                return false;
            }
            if ended {
                // Whoever traces it has it first.
                runtime.poller.mute(self.pidfd(), token);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Waits until its last word is home, or it has ended.
    ///
    /// At first who waits hears it himself, as most units give their result soon. (The reaper may hear it before, at a deadline; then
    /// this is told at the end of that time.) Of one that takes longer the reaper tells.
    pub(crate) fn wait_outcome(self: &Arc<Self>) {
        let is_settled = |state: &State| state.life.has_outcome() || state.end.is_some();
        let mut buffer = [0; 8 << 10];
        let mut until = Instant::now() + YOUNG;
        while !is_settled(&lock(&self.state)) {
            let (Some(line), Some(runtime)) = (self.end.upgrade(), self.runtime.upgrade()) else {
                // It has hung up.
                self.wait_until(None);
                return;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || lock(&self.line).is_watched() {
                if self.listen(&mut lock(&self.line)).is_ok() {
                    self.wait_for(None, is_settled);
                    return;
                }
                // The kernel is short of something.
                until = Instant::now() + YOUNG;
                continue;
            }
            let ready = sysio::wait_any(&[line.as_fd(), self.pidfd().as_fd()], false, Some(left));
            drop(line);
            if ready[0] {
                self.on_line(&mut buffer);
            }
            if ready[1] && !runtime.on_exit(self, &mut buffer) {
                // Whoever traces it has it first.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// The bytes of its value, if that is its last word and came in time.
    pub(crate) fn take_value(&self) -> Option<Bytes> {
        let mut state = lock(&self.state);
        match &mut state.end {
            Some(End { verdict, .. }) => match verdict.take() {
                Some(Verdict::Value(bytes)) => Some(bytes),
                other => {
                    *verdict = other;
                    None
                }
            },
            None => state.life.take_value(),
        }
    }

    pub(super) fn tell_sleepers(&self) {
        if lock(&self.state).sleepers > 0 {
            self.changed.notify_all();
        }
    }

    /// Waits until it is about to run or has ended.
    pub(crate) fn wait_ready(&self, deadline: Option<Instant>) {
        let is_over = |state: &State| state.life.is_ready() || state.end.is_some();
        let mut killed = None;
        // Nobody is told of a KILL. So who waits looks, when it may have been sent.
        loop {
            let (is_killed, next) = {
                let state = lock(&self.state);
                (state.life.is_killed(), state.life.deadline())
            };
            let now = Instant::now();
            let until = match (is_killed, next) {
                (true, _) => Some(*killed.get_or_insert(now + HELD)),
                (false, Some(next)) => next.max(now).checked_add(YOUNG),
                // Another may ask it to end.
                (false, None) => now.checked_add(HELD),
            };
            if self.wait_for(until, |state| is_over(state) || state.life.has_outcome()) {
                break;
            }
            if killed.is_some_and(|held| held <= Instant::now()) {
                return;
            }
        }
        // It has said why it will not run, and comes to its end: soon, or else the start does not wait for that.
        self.wait_for(deadline, is_over);
    }

    /// For whom it was killed, if it was, and has not ended.
    pub(crate) fn is_held(&self) -> Option<Why> {
        let state = lock(&self.state);
        state.life.why().filter(|_| state.life.is_killed() && state.end.is_none())
    }

    fn wait_for(&self, deadline: Option<Instant>, done: impl Fn(&State) -> bool) -> bool {
        let mut state = lock(&self.state);
        while !done(&state) {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            state.sleepers += 1;
            state = match left {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.sleepers -= 1;
        }
        true
    }

    /// Looks at the end, if it has come; else leaves a waker to be called then.
    pub(crate) fn poll<R>(&self, waker: Option<&Waker>, look: impl FnOnce(&mut End) -> R) -> Option<R> {
        // The executor's code, which is not to run under our lock: neither to clone a waker nor to drop the one before.
        let waker = waker.cloned();
        let mut state = lock(&self.state);
        if let Some(end) = &mut state.end {
            return Some(look(end));
        }
        let before = if waker.is_some() { std::mem::replace(&mut state.waker, waker) } else { None };
        drop(state);
        drop(before);
        None
    }

    /// Where the kernel knows no group without its leader, what is left of its group gets KILL now, and no grace.
    fn before_the_end(&self, state: &State) {
        let is_ended = self.leads && state.life.rest(Instant::now()).is_some_and(|kill_at| kill_at.is_some());
        if is_ended && !group::outlives_leader(self.pidfd()) && sysio::is_readable(self.pidfd(), 0) {
            let _ = self.signal(signals::KILL);
        }
    }

    /// It has been reaped; nobody has been told yet. What is left of its group is seen to, if it was ended by us. Whether nothing is left to be
    /// ended.
    fn leave(self: &Arc<Self>, state: &State) -> bool {
        let Some(runtime) = self.runtime.upgrade().filter(|_| self.leads) else { return true };
        let kill_at = state.life.rest(Instant::now()).flatten();
        if !kill_at.is_some_and(|kill_at| runtime.remains.add(self, kill_at)) {
            runtime.zygotes.release(self);
            return true;
        }
        if !reaper::is_this_thread_of(&runtime) {
            runtime.poller.ring();
        }
        false
    }

    /// Does that, unless the zygote has been told that its group is nobody's concern any more: that is said after, if it is to be.
    pub(crate) fn before_release(&self, act: impl FnOnce()) {
        let state = lock(&self.state);
        match self.runtime.upgrade() {
            Some(runtime) if state.end.is_some() => runtime.remains.while_left(self, act),
            _ => act(),
        }
    }

    /// Waits until nothing is left of its group that is to be ended with it.
    pub(crate) fn wait_for_group(&self) {
        if let Some(runtime) = self.runtime.upgrade().filter(|_| self.leads && !reaper::is_this_thread()) {
            runtime.remains.wait_for(self);
        }
    }

    /// It has ended: hears its last words, reaps it, tells everybody. [`Gone::Alive`] if it lives after all.
    pub(crate) fn on_exit(self: &Arc<Self>, buffer: &mut [u8]) -> Gone {
        {
            let mut line = lock(&self.line);
            // The dead add nothing, so this ends: at the last byte, at its last word, or, where a grandchild holds the
            // line and goes on talking, after so much.
            for _ in 0..512 {
                if line.fd.is_none()
                    || lock(&self.state).life.has_outcome()
                    || !self.hear(&mut line, 16, buffer)
                {
                    break;
                }
            }
        }
        if !lock(&self.state).life.has_outcome() {
            self.look_whether_begun();
        }
        let (waker, is_all) = {
            let mut state = lock(&self.state);
            if state.end.is_some() {
                return Gone::Before;
            }
            self.before_the_end(&state);
            hook::step_alone("ended");
            // Told of the dead as well, until they are reaped.
            let is_unasked = !state.life.has_outcome() && state.life.why().is_none();
            let memory = if is_unasked { limit::memory_group(self.pid()) } else { None };
            let Some(Reaped { status, usage }) = pidfd::reap(self.pidfd()) else { return Gone::Alive };
            let is_all = self.leave(&state);
            let runtime = self.runtime.upgrade();
            let starved = || runtime.as_ref().is_some_and(|runtime| runtime.was_memory_short(memory));
            let ended_by = state.life.ended_by(status, starved);
            let ended_by = self.limit_hit(ended_by, status).map_or(ended_by, EndedBy::Limit);
            let verdict = state.life.on_end(status);
            let stderr = match &verdict {
                Verdict::Value(_) => None,
                _ => runtime.as_ref().and_then(|runtime| runtime.last_words(self)),
            };
            let ran = self.began.elapsed();
            let without_result = (!matches!(verdict, Verdict::Value(_))).then_some(ended_by);
            let cpu_time = usage.map(|usage| usage.cpu_time);
            self.log.note(News::Ended { status, ran, cpu_time, without_result });
            state.end = Some(End { status, usage, ran, ended_by, stderr, verdict: Some(verdict) });
            (state.waker.take(), is_all)
        };
        hook::step_alone("reaped");
        // Before anybody is told: a waker may leave the process, or shut all of it down, and neither is to wait for this one.
        drop(lock(&self.slot).take());
        self.close(&mut lock(&self.line));
        if let Some(runtime) = self.runtime.upgrade() {
            if is_all {
                self.vacate(&runtime);
            }
            runtime.strike(self);
        }
        self.tell_sleepers();
        self.log.tell();
        if let Some(waker) = waker {
            // The executor's code: it may panic, and nothing of ours is locked.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
                // Its destructor is foreign code as well, and may panic in its turn.
                std::mem::forget(payload);
            }
        }
        Gone::Now
    }
}
