//! One child as the rest of its parent's process knows it: shared by its handle, its `Process`es and the reaper.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;
use std::time::Instant;

use super::launcher::Launch;
use super::line::{Interest, Line, Piece};
use super::parking::{Slot, Spare};
use super::runtime::Runtime;
use super::shutdown::{Act, Why};
use super::table::{Life, Outcome, Verdict};
use crate::sys::io::{BorrowedFd, OwnedFd};
use crate::sys::{pidfd, signals};
use crate::wire::codec;
use crate::wire::frame::{self, Frame, Kind};
use crate::wire::message::Guard;

/// Locks, also after a panic elsewhere: nothing in this crate panics while it holds one.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child.
pub(crate) struct Unit {
    pub(crate) id: u64,
    pub(crate) name: String,
    began: Instant,
    /// Its pid and its pidfd, once it has been made.
    child: OnceLock<(u32, OwnedFd)>,
    /// The process whose child it is. A copy that the user forks must not touch it: the locks may be held for ever,
    /// and the child is not its own.
    owner: u32,
    runtime: Weak<Runtime>,
    /// What it was told of its guard.
    pub(crate) guard: Option<Guard>,
    /// Whether its start waits until it is about to run.
    awaited: bool,
    /// Whether it is the zygote that says whether it was made.
    asked_for: bool,
    state: Mutex<State>,
    changed: Condvar,
    line: Mutex<Line>,
    /// The line's descriptor while there is one, for whoever must not wait for the lock.
    end: Weak<OwnedFd>,
    /// If it was a spare: its place in the ledger, until it has been reaped.
    slot: Mutex<Option<Slot>>,
}

/// What came of a child that was asked for.
pub(crate) enum Birth {
    Born,
    /// Who was asked is dead, and the child was not made.
    Gone,
    /// It was not made: the step that failed, and why.
    Refused(String, io::Error),
    /// It was made, and ended because of what failed then. It may have run.
    Lost(&'static str, io::Error),
}

struct State {
    life: Life,
    birth: Option<Birth>,
    end: Option<End>,
    waker: Option<Waker>,
}

/// How it ended: for the handle to take.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// Gone once it has been taken.
    pub(crate) verdict: Option<Verdict>,
}

impl Unit {
    /// A child that has been executed, and its line.
    pub(crate) fn executed(launch: &Launch<'_>, line: OwnedFd) -> Arc<Self> {
        Arc::new(Self::with_id(launch.starting.runtime.next_id(), launch, line))
    }

    /// A child that a zygote is about to be asked for, and its line.
    pub(crate) fn asked_for(launch: &Launch<'_>, line: OwnedFd) -> Arc<Self> {
        let id = launch.starting.runtime.next_id();
        Arc::new(Self { asked_for: true, ..Self::with_id(id, launch, line) })
    }

    /// A child that is there already, and watched.
    pub(crate) fn of_spare(launch: &Launch<'_>, spare: Spare) -> Arc<Self> {
        let Spare { id, child, line, slot } = spare;
        let unit =
            Self { child: child.into(), slot: Mutex::new(Some(slot)), ..Self::with_id(id, launch, line) };
        Arc::new(unit)
    }

    fn with_id(id: u64, launch: &Launch<'_>, line: OwnedFd) -> Self {
        let runtime = &launch.starting.runtime;
        let line = Arc::new(line);
        Self {
            id,
            name: launch.name.to_owned(),
            began: launch.began,
            child: OnceLock::new(),
            owner: std::process::id(),
            runtime: Arc::downgrade(runtime),
            guard: launch.guard(),
            awaited: launch.order.wait_for_child,
            asked_for: false,
            state: Mutex::new(State {
                life: Life::new(launch.terms, launch.began),
                birth: None,
                end: None,
                waker: None,
            }),
            changed: Condvar::new(),
            end: Arc::downgrade(&line),
            line: Mutex::new(Line::new(line)),
            slot: Mutex::new(None),
        }
    }

    /// Sends what fits of what the child is to be told; what is left, the reaper will send.
    pub(crate) fn tell(&self, parts: [&[u8]; 3], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = lock(&self.line);
        let [start, header, unit] = parts;
        if line.tell([start, header, unit, &frame::header(Kind::Go, 0)], descriptors)? {
            return Ok(());
        }
        // If it is watched already. Else it will be as it is wanted then.
        if let (Some(fd), Some(runtime)) = (&line.fd, self.runtime.upgrade()) {
            runtime.watch_line(self.id, fd, line.interest);
        }
        Ok(())
    }

    /// Whoever asked for it does not want it any more: it is killed, now or when it is made.
    pub(crate) fn give_up(self: &Arc<Self>) {
        // When it hears that there will be no more, it does not begin, if it has not yet.
        if let Some(line) = self.end.upgrade() {
            crate::sys::io::end_sending(&*line);
        }
        self.change(Life::on_given_up);
    }

    /// It was a spare, and has been told what to run.
    pub(crate) fn on_taken(self: &Arc<Self>) {
        // It may have been asked to end before it was in the table; its first deadline is to be noted.
        self.change(|_, _| None);
    }

    /// The child has been made: watches it from now on.
    pub(crate) fn on_birth(self: &Arc<Self>, child: (u32, OwnedFd)) -> io::Result<()> {
        let (_, pidfd) = self.child.get_or_init(|| child);
        let watched = self.runtime.upgrade().map_or(Ok(()), |runtime| runtime.watch(self, pidfd));
        if let Err(error) = watched {
            // A child that nobody watches must not be.
            let _ = pidfd::send_signal(pidfd, signals::KILL);
            pidfd::reap_blocking(pidfd);
            self.on_no_birth(Birth::Lost(
                "epoll",
                error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
            ));
            return Err(error);
        }
        // It may have been asked to end before there was anybody to be told.
        self.change(|life, _| life.on_birth());
        self.settle(Birth::Born);
        Ok(())
    }

    /// There will be no child.
    pub(crate) fn on_no_birth(self: &Arc<Self>, why: Birth) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.strike(self);
        }
        self.settle(why);
    }

    fn settle(&self, birth: Birth) {
        lock(&self.state).birth = Some(birth);
        self.changed.notify_all();
    }

    /// Waits until it is known what came of it, or the time comes. For the one that asked for it.
    pub(crate) fn wait_born(&self, deadline: Option<Instant>) -> Option<Birth> {
        self.wait_for(deadline, |state| state.birth.is_some());
        lock(&self.state).birth.take()
    }

    /// Whether the zygote has been asked for it, and has not answered.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.asked_for && !self.is_born()
    }

    pub(crate) fn is_born(&self) -> bool {
        self.child.get().is_some()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child().0
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.child().1
    }

    fn child(&self) -> &(u32, OwnedFd) {
        // UNWRAP: asked by handles and by the reaper alone. The first are made after the birth; the second is told of its
        // end by the pidfd that came with it.
        self.child.get().expect("the child has been made")
    }

    /// When its start began: the order in which units are ended. (Spares have older numbers than their starts.)
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Whether this process is its parent, or only a fork's copy of it.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.is_ours() && lock(&self.state).end.is_none()
    }

    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        let end = |state: &State| {
            state.end.as_ref().map(|end| end.status).filter(|status| !pidfd::is_lost(*status))
        };
        self.is_ours().then(|| end(&lock(&self.state))).flatten()
    }

    /// Waits until it ended, or the time comes; whether it did.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        self.wait_for(deadline, |state| state.end.is_some())
    }

    /// Waits until it is about to run or has ended.
    pub(crate) fn wait_ready(&self) {
        self.wait_for(None, |state| state.life.is_ready() || state.life.has_outcome() || state.end.is_some());
    }

    fn wait_for(&self, deadline: Option<Instant>, done: impl Fn(&State) -> bool) -> bool {
        let mut state = lock(&self.state);
        while !done(&state) {
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return false,
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
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

    /// Whether it was ready before it ended.
    pub(crate) fn was_ready(&self) -> bool {
        lock(&self.state).life.is_ready()
    }

    /// The start has returned; the unit's own time runs.
    pub(crate) fn on_started(self: &Arc<Self>) {
        self.change(|life, now| {
            life.on_started(now);
            None
        });
    }

    /// Begins to end it, for that reason; returns at once.
    pub(crate) fn ask_to_end(self: &Arc<Self>, why: Why) {
        self.change(|life, now| life.ask_to_end(why, now));
    }

    pub(crate) fn on_late_waking(self: &Arc<Self>) {
        self.change(|life, now| {
            life.on_late_waking(now);
            None
        });
    }

    pub(crate) fn on_time(self: &Arc<Self>) {
        self.look_whether_begun();
        self.change(|life, now| life.on_time(now));
    }

    /// A unit that nobody waits for does not say that it is about to run.
    fn look_whether_begun(self: &Arc<Self>) {
        if lock(&self.line).has_begun() {
            self.change(|life, _| {
                life.on_ready();
                None
            });
        }
    }

    /// Lets something happen to its life, does what that asks for, and notes the next deadline.
    fn change(self: &Arc<Self>, event: impl FnOnce(&mut Life, Instant) -> Option<Act>) {
        let mut state = lock(&self.state);
        if state.end.is_some() {
            return;
        }
        if let Some(act) = event(&mut state.life, Instant::now()) {
            self.act(act);
        }
        // Under the lock still: of two changes at once, the later one's deadline is to be noted last. (The order of the
        // locks is line, state, table; nobody asks for a unit's under the table's.)
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.schedule(self.id, state.life.deadline());
        }
    }

    /// Under the lock, and only while it has not been reaped.
    fn act(&self, act: Act) {
        // None yet: then it is told when it is born.
        let Some((_, pidfd)) = self.child.get() else { return };
        let sent = match act {
            Act::Terminate => {
                let sent = pidfd::send_signal(pidfd, signals::TERM);
                let _ = pidfd::send_signal(pidfd, signals::CONT);
                sent
            }
            Act::Kill => pidfd::send_signal(pidfd, signals::KILL),
        };
        // It has another user than we have by now. But it hears when we have no more to say, as when we die, and ends itself.
        if let (Err(_), Some(line)) = (sent, self.end.upgrade()) {
            crate::sys::io::end_sending(&*line);
        }
    }

    /// Reads and throws away what it writes into these pipes.
    pub(crate) fn drain(&self, pipes: Vec<OwnedFd>) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.drain(self, pipes);
        }
    }

    /// Runs `look` on the line's descriptor, while there is one, and what it is to be watched for.
    pub(crate) fn with_line<R>(&self, look: impl FnOnce(&OwnedFd, Interest) -> R) -> Option<R> {
        let line = lock(&self.line);
        line.fd.as_ref().map(|fd| look(fd, line.interest))
    }

    /// The line is ready: sends what is left to be sent, hears what there is to hear. Gives what it is to be watched for
    /// from now on, if that is something else.
    pub(crate) fn on_line(self: &Arc<Self>, buffer: &mut [u8]) -> Option<Interest> {
        let mut line = lock(&self.line);
        line.send_left();
        // Bounded, so that a chatterer does not keep the reaper from the others.
        self.hear(&mut line, 16, buffer);
        line.changed_interest()
    }

    /// Hears what is there, in at most so many pieces. `fd` is `None` after the end.
    fn hear(self: &Arc<Self>, line: &mut Line, pieces: usize, buffer: &mut [u8]) {
        for _ in 0..pieces {
            let (count, more) = match line.receive(buffer) {
                Piece::Nothing => return,
                Piece::Some { count, more } => (count, more),
                Piece::End(fd) => return self.forget_line(&fd),
            };
            let mut input = &buffer[..count];
            while !input.is_empty() {
                match line.decoder.next(&mut input) {
                    Ok(Some(frame)) => self.on_frame(frame),
                    Ok(None) => {}
                    Err(breach) => {
                        self.change(|life, now| life.on_breach(breach.to_string(), now));
                        if let Some(fd) = line.fd.take() {
                            self.forget_line(&fd);
                        }
                        return;
                    }
                }
            }
            if !more {
                return;
            }
        }
    }

    fn forget_line(&self, fd: &OwnedFd) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.forget(fd);
        }
    }

    fn on_frame(self: &Arc<Self>, frame: Frame) {
        let Frame { kind, body } = frame;
        let garbled = || Some("a message that cannot be read".to_owned());
        let breach = match kind {
            Kind::Ready => {
                self.change(|life, _| {
                    life.on_ready();
                    None
                });
                // Whoever waits for the end is not to be woken for this.
                if self.awaited {
                    self.changed.notify_all();
                }
                None
            }
            Kind::Value => self.outcome(Outcome::Value(body)),
            Kind::Note => match codec::decode(&body) {
                Ok(panic) => {
                    self.change(|life, _| {
                        life.on_note(panic);
                        None
                    });
                    None
                }
                Err(_) => garbled(),
            },
            Kind::Panicked => {
                codec::decode(&body).map_or_else(|_| garbled(), |p| self.outcome(Outcome::Panicked(p)))
            }
            Kind::Failed => {
                codec::decode(&body).map_or_else(|_| garbled(), |f| self.outcome(Outcome::Failed(f)))
            }
            Kind::Start | Kind::Unit | Kind::Go => Some("a message that only parents send".to_owned()),
        };
        if let Some(breach) = breach {
            self.change(|life, now| life.on_breach(breach, now));
        }
    }

    fn outcome(self: &Arc<Self>, outcome: Outcome) -> Option<String> {
        self.change(|life, now| {
            life.on_outcome(outcome, now);
            None
        });
        if self.awaited {
            self.changed.notify_all();
        }
        None
    }

    /// It has ended: hears its last words, reaps it, tells everybody. `false` if it lives after all.
    pub(crate) fn on_exit(self: &Arc<Self>, buffer: &mut [u8]) -> bool {
        {
            let mut line = lock(&self.line);
            // The dead add nothing, so this ends: at the last byte, at its last word, or, where a grandchild holds the
            // line and goes on talking, after so much.
            for _ in 0..64 {
                let before = line.fd.is_some() && !lock(&self.state).life.has_outcome();
                let more = line.fd.as_ref().is_some_and(|fd| crate::sys::io::is_readable(fd, 0));
                if !before || !more {
                    break;
                }
                self.hear(&mut line, 16, buffer);
            }
        }
        self.look_whether_begun();
        let waker = {
            let mut state = lock(&self.state);
            if state.end.is_some() {
                return true;
            }
            let Some(status) = pidfd::reap(self.pidfd()) else { return false };
            let verdict = state.life.on_end(status);
            state.end = Some(End { status, verdict: Some(verdict) });
            state.waker.take()
        };
        self.changed.notify_all();
        if let Some(waker) = waker {
            // The executor's code: it may panic, and nothing of ours is locked.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
                // Its destructor is foreign code as well, and may panic in its turn.
                std::mem::forget(payload);
            }
        }
        // Who waited for it may have to run on our processor. The rest is housekeeping.
        std::thread::yield_now();
        drop(lock(&self.slot).take());
        if let Some(fd) = lock(&self.line).fd.take() {
            self.forget_line(&fd);
        }
        true
    }
}
