//! One child as the rest of its parent's process knows it: shared by its handle, its `Process`es and the reaper.

mod hearing;
mod waiting;

use std::io;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::cgroup::Place;
use super::launcher::Launch;
use super::line::Line;
use super::parking::{Slot, Spare};
use super::runtime::Runtime;
use super::shutdown::{Act, Why};
use super::table::{Life, Verdict};
use crate::death::EndedBy;
use crate::hook;
use crate::log::{Log, News};
use crate::progress::Board;
use crate::sys::io::OwnedFd;
use crate::sys::pidfd::Usage;
use crate::sys::{group, pidfd, signals};
use crate::wire::message::Guard;

/// Locks, also after a panic elsewhere: nothing in this crate panics while it holds one.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child.
pub(crate) struct Unit {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) log: Log,
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
    /// Whether it leads a process group, which is ended with it.
    leads: bool,
    /// Its cgroup, if it leads a group and can have one.
    pub(super) place: Option<Place>,
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

/// What a look at a child that is said to have ended has found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    Alive,
    /// It has been reaped by this look.
    Now,
    Before,
}

/// So long after its start nobody listens to a unit's line, for most units end before: then all is heard at once at the end,
/// and nobody is woken for less.
pub(super) const YOUNG: Duration = Duration::from_millis(10);

struct State {
    life: Life,
    /// When the reaper begins to listen to what it says.
    listen_at: Option<Instant>,
    /// When the reaper looks whether it can be reaped by now. Apart from the other, which is over once it has been heard.
    reap_at: Option<Instant>,
    birth: Option<Birth>,
    /// Where it reports how far it has got, once it has said.
    board: Option<Board>,
    end: Option<End>,
    waker: Option<Waker>,
    /// How many threads sleep until it changes.
    sleepers: usize,
}

/// How it ended: for the handle to take.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) usage: Option<Usage>,
    /// From the beginning of its start until it was reaped.
    pub(crate) ran: Duration,
    pub(crate) ended_by: EndedBy,
    /// What it said last on its standard error, if that was drained.
    pub(crate) stderr: Option<String>,
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
        let Spare { id, child, line, slot, .. } = spare;
        let unit =
            Self { child: child.into(), slot: Mutex::new(Some(slot)), ..Self::with_id(id, launch, line) };
        Arc::new(unit)
    }

    fn with_id(id: u64, launch: &Launch<'_>, line: OwnedFd) -> Self {
        let runtime = &launch.starting.runtime;
        let line = Arc::new(line);
        let settings = &launch.order.settings;
        let place = settings.process_group.then(|| runtime.cgroups.make(&settings.limits)).flatten();
        Self {
            id,
            name: launch.name.to_owned(),
            log: Log::new(launch.name, launch.order.type_name),
            began: launch.began,
            child: OnceLock::new(),
            owner: std::process::id(),
            runtime: Arc::downgrade(runtime),
            guard: launch.guard(),
            awaited: launch.order.wait_for_child,
            leads: settings.process_group,
            place,
            asked_for: false,
            state: Mutex::new(State {
                life: Life::new(launch.terms, launch.began),
                listen_at: launch.began.checked_add(YOUNG),
                reap_at: None,
                birth: None,
                board: None,
                end: None,
                waker: None,
                sleepers: 0,
            }),
            changed: Condvar::new(),
            end: Arc::downgrade(&line),
            line: Mutex::new(Line::new(line)),
            slot: Mutex::new(None),
        }
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
        self.log.note(News::Started { pid: self.pid() });
        // It may have been asked to end before it was in the table; its first deadline is to be noted.
        self.change(|_, _| None);
    }

    /// The child has been made: watches it from now on.
    pub(crate) fn on_birth(self: &Arc<Self>, child: (u32, OwnedFd)) -> io::Result<()> {
        let (pid, pidfd) = self.child.get_or_init(|| child);
        self.log.note(News::Started { pid: *pid });
        let watched = self.runtime.upgrade().map_or(Ok(()), |runtime| {
            runtime.watch(self, pidfd)?;
            let mut line = lock(&self.line);
            match () {
                () if line.has_unsent() => self.listen(&mut line),
                () if self.awaited => {
                    // If not now, then a little later.
                    let _ = self.listen(&mut line);
                    Ok(())
                }
                () => Ok(()),
            }
        });
        if let Err(error) = watched {
            // A child that nobody watches must not be.
            let _ = self.signal(signals::KILL);
            self.kill_others();
            if let Some(runtime) = self.runtime.upgrade() {
                runtime.forget(pidfd);
            }
            pidfd::reap_blocking(pidfd);
            self.on_no_birth(Birth::Lost(
                "epoll",
                error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
            ));
            return Err(error);
        }
        hook::step_alone("born");
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

    /// Whether the zygote has been asked for it, and has not answered.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.asked_for && !self.is_born()
    }

    pub(crate) fn is_born(&self) -> bool {
        self.child.get().is_some()
    }

    /// Whether its child is there when it is told what to run: no zygote has been asked for it.
    pub(crate) fn is_made(&self) -> bool {
        !self.asked_for
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
        self.log.tell();
    }

    /// Begins to end it, for that reason; returns at once.
    pub(crate) fn ask_to_end(self: &Arc<Self>, why: Why) {
        self.wish_to_end(why);
        self.log.tell();
    }

    /// The same for who holds a lock: listeners are told of it later, by whoever sees to the unit next.
    pub(crate) fn wish_to_end(self: &Arc<Self>, why: Why) {
        self.change(|life, now| life.ask_to_end(why, now));
    }

    pub(crate) fn on_late_waking(self: &Arc<Self>) {
        self.change(|life, now| {
            life.on_late_waking(now);
            None
        });
    }

    /// It has ended and cannot be reaped yet, and nothing will tell when it can: the reaper is to look in a while.
    pub(crate) fn look_again(self: &Arc<Self>) {
        lock(&self.state).reap_at = Instant::now().checked_add(YOUNG);
        self.change(|_, _| None);
    }

    pub(crate) fn on_time(self: &Arc<Self>, buffer: &mut [u8]) {
        // What it has said by now was in time.
        self.on_line(buffer);
        // One that is waited for says so itself; until it has, its start is not through.
        if !self.awaited {
            self.look_whether_begun();
        }
        let is_old = {
            let mut state = lock(&self.state);
            state.listen_at.take_if(|at| *at <= Instant::now()).is_some()
        };
        if is_old && self.listen(&mut lock(&self.line)).is_err() {
            // The kernel is short of something. Its end will be heard of all the same.
            lock(&self.state).listen_at = Instant::now().checked_add(Duration::from_secs(1));
        }
        self.change(|life, now| life.on_time(now));
        self.log.tell();
    }

    /// Lets something happen to its life, does what that asks for, and notes the next deadline.
    fn change(self: &Arc<Self>, event: impl FnOnce(&mut Life, Instant) -> Option<Act>) {
        let mut state = lock(&self.state);
        if state.end.is_some() {
            return;
        }
        let after_term = state.life.why().is_some();
        if let Some(act) = event(&mut state.life, Instant::now()) {
            self.act(act);
            if let Some(why) = state.life.why() {
                self.log.note(match act {
                    Act::Terminate => News::Asked { why },
                    Act::Kill => News::Killed { why, after_term },
                });
            }
        }
        // Under the lock still: of two changes at once, the later one's deadline is to be noted last. (The order of the
        // locks is line, state, table; nobody asks for a unit's under the table's.)
        if let Some(runtime) = self.runtime.upgrade() {
            let deadlines = [state.life.deadline(), state.listen_at, state.reap_at];
            runtime.schedule(self.id, deadlines.into_iter().flatten().min());
        }
    }

    /// Under the lock, and only while it has not been reaped.
    fn act(&self, act: Act) {
        // None yet: then it is told when it is born.
        if !self.is_born() {
            return;
        }
        let sent = match act {
            Act::Terminate => {
                let sent = self.signal(signals::TERM);
                let _ = self.signal(signals::CONT);
                self.terminate_others();
                sent
            }
            Act::Kill => {
                self.kill_others();
                self.signal(signals::KILL)
            }
        };
        // It has another user than we have by now. But it hears when we have no more to say, as when we die, and ends itself.
        if let (Err(_), Some(line)) = (sent, self.end.upgrade()) {
            crate::sys::io::end_sending(&*line);
        }
    }

    /// To all of its process group, if it has one of its own. While it has not been reaped.
    fn signal(&self, signal: i32) -> io::Result<()> {
        let (pid, pidfd) = self.child();
        if self.leads { group::send(pidfd, *pid, signal) } else { pidfd::send_signal(pidfd, signal) }
    }

    /// Reads what it writes into these pipes, standard output and error, and throws it away, but for the last of its errors. If it has
    /// ended already, the second pipe comes back.
    pub(crate) fn drain(&self, pipes: [Option<OwnedFd>; 2]) -> Option<OwnedFd> {
        let runtime = self.runtime.upgrade()?;
        runtime.drain(self, pipes)
    }
}
