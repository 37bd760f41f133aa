//! What a process has once it has started its first child: a thread that watches, and a table of who lives.
//!
//! It comes with the first start and goes with [`shutdown`]. A process that is a fork's copy finds the runtime of the
//! original in its memory, with locks that nobody will ever release: it leaves all of it alone and begins afresh.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use super::cgroup::Cgroups;
use super::parking::Parking;
use super::reaper;
use super::remains::Remains;
use super::shutdown::Why;
use super::starvation::Kills;
use super::unit::{Gone, Unit, YOUNG, lock};
use super::zygote::{Zygote, Zygotes};
use crate::death::{LAST_BYTES, last_lines};
use crate::hook;
use crate::sys::io::{self as sysio, AsFd, OwnedFd, Poller};
use crate::sys::{lifecycle, limit, signals};

/// One process's view of the library.
struct Process {
    pid: u32,
    closing: AtomicBool,
    runtime: Mutex<Option<Arc<Runtime>>>,
    /// Held through a whole shutdown, so that a second one waits for the first.
    shutting_down: Mutex<()>,
}

/// The thread that watches, and what it knows.
pub(crate) struct Runtime {
    pub(crate) poller: Poller,
    pub(crate) table: Mutex<Table>,
    pub(super) zygotes: Zygotes,
    pub(super) parking: Parking,
    pub(super) remains: Remains,
    pub(super) cgroups: Cgroups,
    next_id: AtomicU64,
    /// What is known of the processes that the kernel has killed for want of memory.
    memory_kills: Mutex<Kills>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
pub(crate) struct Table {
    units: BTreeMap<u64, (Arc<Unit>, Option<Instant>)>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Pipes of units whose handles are gone: read, so that the unit does not wait for a reader for ever.
    sinks: BTreeMap<u64, Vec<Sink>>,
    /// Starts between their first step and their entry in `units`.
    starting: usize,
    closing: Option<Why>,
    /// Until when the reaper sleeps; `None`: without end.
    sleeps_until: Option<Instant>,
}

/// A pipe that is read so that nobody waits for a reader.
struct Sink {
    pipe: OwnedFd,
    /// The last of what was read, if it is of interest.
    last: Option<Vec<u8>>,
}

impl Sink {
    /// Reads what is there, or some of it; whether there may be more to come.
    fn read(&mut self) -> bool {
        let Self { pipe, last } = self;
        sysio::drain(pipe, |bytes| {
            let Some(last) = last else { return };
            last.extend_from_slice(bytes);
            let before = last.len().saturating_sub(2 * LAST_BYTES);
            last.drain(..before);
        })
    }
}

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(null_mut());

/// This process's view: made at the first call, and anew in a forked copy (whose inherited one is left as it is).
fn process() -> &'static Process {
    lifecycle::per_process(
        &PROCESS,
        |process| process.pid == std::process::id(),
        || Process {
            pid: std::process::id(),
            closing: AtomicBool::new(false),
            runtime: Mutex::new(None),
            shutting_down: Mutex::new(()),
        },
    )
}

/// A control group, and how often the kernel has killed there for want of memory, if it counts that.
fn counted(group: Option<PathBuf>) -> Option<(PathBuf, u64)> {
    let group = group?;
    limit::memory_kills_of(&group).map(|count| (group, count))
}

/// The process is on its way out: nothing is started any more.
pub(crate) struct Closing;

/// A start in progress. While it lives, the runtime stays.
pub(crate) struct Starting {
    pub(crate) runtime: Arc<Runtime>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut table = lock(&self.runtime.table);
        table.starting -= 1;
        if table.closing.is_some() {
            self.runtime.poller.ring();
        }
    }
}

/// Enters the runtime for one start; makes it first if there is none.
pub(crate) fn enter() -> Result<Result<Starting, Closing>, io::Error> {
    let process = process();
    let mut slot = lock(&process.runtime);
    if process.closing.load(Ordering::SeqCst) {
        return Ok(Err(Closing));
    }
    // Looked at and counted in one: a waker may close it at any moment.
    let enters = |runtime: &Runtime| {
        let mut table = lock(&runtime.table);
        let is_open = table.closing.is_none();
        table.starting += usize::from(is_open);
        is_open
    };
    let runtime = match &*slot {
        Some(runtime) if enters(runtime) => runtime.clone(),
        // None yet, or one that a waker has closed and that ends by itself.
        _ => {
            // Inherited by forked copies, where it finds their own view. Under the slot's lock, so once.
            static ONCE: AtomicBool = AtomicBool::new(false);
            if !ONCE.load(Ordering::SeqCst) {
                lifecycle::at_exit(at_exit)?;
                ONCE.store(true, Ordering::SeqCst);
            }
            let runtime = slot.insert(Runtime::begin()?).clone();
            // Under the slot's lock still: nobody knows of it who could close it.
            enters(&runtime);
            runtime
        }
    };
    Ok(Ok(Starting { runtime }))
}

/// Ends every unit and the runtime; returns when all are gone. A later start begins afresh.
pub(crate) fn shutdown() {
    end(Why::Exit, false);
}

extern "C" fn at_exit() {
    end(Why::Exit, true);
}

fn end(why: Why, for_good: bool) {
    let process = process();
    if for_good {
        process.closing.store(true, Ordering::SeqCst);
    }
    // A waker may call us on the reaper's own thread. There, nobody can be waited for but by doing the work; and whoever
    // is in the middle of a shutdown waits for us.
    if reaper::is_this_thread() {
        let Some(runtime) = lock(&process.runtime).clone() else { return };
        runtime.close(why);
        if for_good && reaper::is_this_thread_of(&runtime) {
            reaper::work(&runtime);
        } else if for_good {
            // Another's, made since ours was closed: it does its own work.
            let is_done = || lock(&runtime.thread).as_ref().is_none_or(JoinHandle::is_finished);
            while !is_done() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        return;
    }
    let _first = lock(&process.shutting_down);
    let Some(runtime) = lock(&process.runtime).take() else { return };
    runtime.close(why);
    let thread = lock(&runtime.thread).take();
    if let Some(thread) = thread {
        let _ = thread.join();
    }
}

impl Runtime {
    fn begin() -> io::Result<Arc<Self>> {
        let runtime = Arc::new(Self {
            poller: Poller::new()?,
            table: Mutex::default(),
            zygotes: Zygotes::default(),
            parking: Parking::default(),
            remains: Remains::default(),
            cgroups: Cgroups::default(),
            next_id: AtomicU64::new(1),
            memory_kills: Mutex::default(),
            thread: Mutex::new(None),
        });
        // The program's signal handlers are not to run on our thread.
        let mask = signals::block_handled();
        let own = runtime.clone();
        let thread = std::thread::Builder::new().name("offspring".into()).spawn(move || {
            reaper::mark_this_thread(&own);
            own.begin_to_count_kills();
            reaper::work(&own);
        });
        signals::restore(mask);
        *lock(&runtime.thread) = Some(thread?);
        Ok(runtime)
    }

    /// From now on no unit is let be: TERM in the reverse order of start, and the reaper ends when all are gone.
    fn close(&self, why: Why) {
        let units: Vec<_> = {
            let mut table = lock(&self.table);
            table.closing = Some(why);
            let mut units: Vec<_> = table.units.values().map(|(unit, _)| unit.clone()).collect();
            units.sort_by_key(|unit| std::cmp::Reverse(unit.began()));
            units
        };
        for unit in units.iter().filter(|unit| unit.is_born()) {
            // Whoever waits for it may not be able to see to its end: it may be our caller, in a signal handler.
            self.poller.modify(unit.pidfd(), reaper::token(unit.id, reaper::EXIT), false);
        }
        for unit in units {
            unit.wish_to_end(why);
        }
        hook::step_alone("closing");
        self.poller.ring();
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Enters a child that is about to be asked for, unless `goes_on` says no: nothing is struck off between the two.
    pub(crate) fn expect(&self, unit: &Arc<Unit>, goes_on: impl FnOnce() -> bool) -> bool {
        let closing = {
            let mut table = lock(&self.table);
            if !goes_on() {
                return false;
            }
            table.units.insert(unit.id, (unit.clone(), None));
            table.closing
        };
        // Closing has begun since this start entered: the child is ended with the rest.
        if let Some(why) = closing {
            unit.ask_to_end(why);
        }
        true
    }

    /// Watches a child from now on, one that is in the table already: the reaper looks up there whom an event is about.
    pub(crate) fn watch(&self, unit: &Unit, pidfd: &OwnedFd) -> io::Result<()> {
        self.poller.add(pidfd, reaper::token(unit.id, reaper::EXIT), false)
    }

    /// A child is said to have ended: sees to that, if it is true, and whether it is.
    pub(crate) fn on_exit(&self, unit: &Arc<Unit>, buffer: &mut [u8]) -> bool {
        // Before it is reaped, for that is an event as well.
        self.poller.remove(unit.pidfd());
        match unit.on_exit(buffer) {
            Gone::Alive => {
                if sysio::is_readable(unit.pidfd(), 0) {
                    // Somebody traces it, and has it first. Its pidfd says that it has ended all the while: the reaper
                    // would do nothing but hear that.
                    unit.look_again();
                    return false;
                }
                let _ = self.watch(unit, unit.pidfd());
                if !unit.is_alive() {
                    // Another has reaped it since.
                    self.poller.remove(unit.pidfd());
                }
                return false;
            }
            Gone::Before => {}
            Gone::Now => {
                // Another may have found it alive, and watch it again.
                self.poller.remove(unit.pidfd());
                self.parking.on_end(self);
            }
        }
        true
    }

    /// For the reaper: a time that the unit has asked for has come.
    pub(super) fn on_time(&self, unit: &Arc<Unit>, buffer: &mut [u8]) {
        // Whoever waits for its end, and is to see to it, may not have got as far: it ended in time.
        let has_ended = unit.is_born() && sysio::is_readable(unit.pidfd(), 0);
        if !(has_ended && self.on_exit(unit, buffer)) {
            unit.on_time(buffer);
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        lock(&self.table).closing.is_some()
    }

    /// Watches a zygote from now on.
    pub(super) fn watch_zygote(&self, zygote: &Zygote) -> io::Result<()> {
        self.poller.add(&zygote.pidfd, reaper::token(reaper::ZYGOTE, reaper::EXIT), false)?;
        let line = self.poller.add(zygote.line(), reaper::token(reaper::ZYGOTE, reaper::LINE), false);
        line.inspect_err(|_| self.poller.remove(&zygote.pidfd))
    }

    /// The zygote is dead: the children that it was asked for and that nobody has been told of. From now on it is asked
    /// for no other.
    pub(super) fn bereave(&self, zygote: &Zygote) -> Vec<Arc<Unit>> {
        let table = lock(&self.table);
        zygote.on_death();
        table.units.values().filter(|(unit, _)| unit.is_asked_for()).map(|(unit, _)| unit.clone()).collect()
    }

    /// The children that have been made and not reaped.
    pub(super) fn born(&self) -> Vec<Arc<Unit>> {
        let table = lock(&self.table);
        table.units.values().filter(|(unit, _)| unit.is_born()).map(|(unit, _)| unit.clone()).collect()
    }

    /// For the reaper: when nothing is left but the zygote, and all is to end, it is ended as well.
    pub(super) fn is_all_but_closed(&self) -> bool {
        let table = lock(&self.table);
        table.closing.is_some()
            && table.starting == 0
            && table.units.values().all(|(unit, _)| !unit.is_born())
            && self.remains.is_empty()
    }

    /// For the reaper: whether no unit lives.
    pub(super) fn is_alone(&self) -> bool {
        let table = lock(&self.table);
        table.units.is_empty() && table.starting == 0 && self.remains.is_empty()
    }

    pub(crate) fn unit(&self, id: u64) -> Option<Arc<Unit>> {
        lock(&self.table).units.get(&id).map(|(unit, _)| unit.clone())
    }

    /// Strikes a child that was reaped off the table.
    pub(crate) fn strike(&self, unit: &Unit) {
        self.schedule(unit.id, None);
        let (sinks, is_closing) = {
            let mut table = lock(&self.table);
            table.units.remove(&unit.id);
            (table.sinks.remove(&unit.id), table.closing.is_some())
        };
        if is_closing && !reaper::is_this_thread_of(self) {
            // It may have been the last.
            self.poller.ring();
        }
        for sink in sinks.into_iter().flatten() {
            self.poller.remove(&sink.pipe);
        }
    }

    /// What the kernel has counted so far is none of our units'.
    fn begin_to_count_kills(&self) {
        if let Some(all) = limit::memory_kills() {
            let group = limit::memory_group(std::process::id());
            lock(&self.memory_kills).begin(all, counted(group));
        }
    }

    /// A unit has been killed that was in that control group: whether the kernel may have done that for want of memory.
    pub(super) fn was_memory_short(&self, group: Option<PathBuf>) -> bool {
        let mut kills = lock(&self.memory_kills);
        limit::memory_kills().is_some_and(|all| kills.account(all, counted(group), Instant::now()))
    }

    /// Reads what a unit writes into these pipes, until it ends. If it has ended, the second one comes back.
    pub(crate) fn drain(&self, unit: &Unit, pipes: [Option<OwnedFd>; 2]) -> Option<OwnedFd> {
        let mut table = lock(&self.table);
        let [output, errors] = pipes;
        // (Its last words have been asked for, or it has been struck off as well.)
        if !table.units.contains_key(&unit.id) || table.sinks.contains_key(&unit.id) {
            return errors;
        }
        let output = output.map(|pipe| Sink { pipe, last: None });
        let errors = errors.map(|pipe| Sink { pipe, last: Some(Vec::new()) });
        for sink in output.into_iter().chain(errors) {
            let token = reaper::token(unit.id, reaper::SINK);
            let watched =
                sysio::set_nonblocking(&sink.pipe).and_then(|()| self.poller.add(&sink.pipe, token, false));
            if watched.is_ok() {
                table.sinks.entry(unit.id).or_default().push(sink);
            }
        }
        None
    }

    pub(crate) fn on_sink(&self, id: u64) {
        let mut table = lock(&self.table);
        let Some(sinks) = table.sinks.get_mut(&id) else { return };
        for sink in sinks {
            // It stays until the unit ends, for its last words.
            if !sink.read() {
                self.poller.remove(&sink.pipe);
            }
        }
    }

    /// What a unit that has ended has written last to its standard error, if that is read here. From now on nothing of it is.
    pub(crate) fn last_words(&self, unit: &Unit) -> Option<String> {
        let mut table = lock(&self.table);
        let sinks = table.sinks.entry(unit.id).or_default();
        let sink = sinks.iter_mut().find(|sink| sink.last.is_some())?;
        sink.read();
        sink.last.as_deref().map(last_lines)
    }

    /// Stops watching a descriptor that is about to be closed.
    pub(crate) fn forget(&self, fd: impl AsFd) {
        self.poller.remove(fd);
    }

    /// Notes when a unit wants to hear of the time again.
    pub(crate) fn schedule(&self, id: u64, deadline: Option<Instant>) {
        let mut table = lock(&self.table);
        let Some((_, noted)) = table.units.get_mut(&id) else { return };
        let old = std::mem::replace(noted, deadline);
        if old == deadline {
            return;
        }
        if let Some(old) = old {
            table.deadlines.remove(&(old, id));
        }
        let Some(deadline) = deadline else { return };
        table.deadlines.insert((deadline, id));
        let is_earlier = table.sleeps_until.is_none_or(|until| deadline < until);
        drop(table);
        // The reaper itself looks before it sleeps.
        if is_earlier && !reaper::is_this_thread_of(self) {
            self.poller.ring();
        }
    }

    /// For the reaper: how long to sleep, or `None` when all work is done.
    pub(crate) fn pause(&self) -> Option<Option<std::time::Duration>> {
        let (parking, is_busy) = self.parking.deadline();
        // While there are starts it wakes so often that none of them has to wake it for its own first deadline.
        let tick = is_busy.then(|| Instant::now() + YOUNG);
        let nobody_else =
            self.zygotes.current().is_none() && self.parking.is_empty() && self.remains.is_empty();
        let rest = [self.remains.deadline(), self.cgroups.deadline()].into_iter().flatten();
        let mut table = lock(&self.table);
        if table.closing.is_some() && table.units.is_empty() && table.starting == 0 && nobody_else {
            return None;
        }
        let first = table.deadlines.first().map(|(deadline, _)| *deadline);
        table.sleeps_until = first.into_iter().chain(parking).chain(rest).chain(tick).min();
        Some(table.sleeps_until.map(|until| until.saturating_duration_since(Instant::now())))
    }

    /// For the reaper: whether it was woken much later than it asked, as after a stop of the process.
    pub(crate) fn woke_late(&self) -> bool {
        lock(&self.table).sleeps_until.is_some_and(|until| until.elapsed() > reaper::MUCH)
    }

    /// For the reaper: the units whose time has come.
    pub(crate) fn due(&self) -> Vec<Arc<Unit>> {
        let now = Instant::now();
        let table = lock(&self.table);
        let due = table.deadlines.iter().take_while(|(deadline, _)| *deadline <= now);
        due.filter_map(|(_, id)| table.units.get(id)).map(|(unit, _)| unit.clone()).collect()
    }
}
