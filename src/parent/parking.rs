//! The spares that are there: children that the zygote made before they were asked for. Each waits on its line.
//!
//! They are made and seen to by the reaper, in the order that `spares.rs` decides; whoever starts a unit takes one. One that
//! dies meanwhile is struck off without a word. All belong to one zygote: with its end, those that are left are given back.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::reaper::{self, EXIT};
use super::runtime::Runtime;
use super::spares::{Supply, Wish};
use super::unit::lock;
use super::zygote::Zygote;
use crate::hook;
use crate::sys::io::{self as sysio, AsFd, OwnedFd, Place};
use crate::sys::ledger::{Care, SLOTS};
use crate::sys::variables::Variables;
use crate::sys::{pidfd, signals};
use crate::wire::message::Wanted;

/// A place in the ledger, held as long as the child lives.
pub(crate) struct Slot {
    slots: Arc<Slots>,
    pub(crate) number: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots.0).push(self.number);
    }
}

/// One that can be taken.
pub(crate) struct Spare {
    /// Under which pidfd and line are watched.
    pub(crate) id: u64,
    pub(crate) child: (u32, OwnedFd),
    pub(crate) line: OwnedFd,
    pub(crate) slot: Slot,
    pub(crate) there: There,
}

/// What a child has already.
#[derive(Clone)]
pub(crate) struct There {
    /// Where it waits.
    pub(crate) place: Option<Place>,
    pub(crate) environment: Variables,
}

/// What has become of one so far.
enum Parked {
    Asked {
        line: OwnedFd,
        slot: Slot,
        there: There,
    },
    Ready(Spare),
    /// Asked for, and not wanted any more before it was there.
    Unwanted,
    /// It has been killed, and is to be reaped.
    Ending(OwnedFd),
}

#[derive(Default)]
pub(crate) struct Parking {
    all: Mutex<All>,
    changed: Condvar,
}

#[derive(Default)]
struct All {
    spares: BTreeMap<u64, Parked>,
    supply: Supply,
    closed: bool,
    /// What was started last: the next is likely to be the same.
    entry: u64,
}

impl All {
    /// How many there are, or will be.
    fn count(&self) -> usize {
        let is_one = |parked: &&Parked| matches!(parked, Parked::Asked { .. } | Parked::Ready(_));
        self.spares.values().filter(is_one).count()
    }
}

impl Parking {
    /// A unit is started without a spare, for there is no zygote yet. There may be more.
    pub(super) fn on_first(&self, entry: u64) {
        let mut all = lock(&self.all);
        all.entry = entry;
        all.supply.on_start(false, true, Instant::now());
    }

    /// A unit is started for which none will do.
    pub(super) fn on_other_start(&self) {
        lock(&self.all).supply.on_other_start(Instant::now());
    }

    /// For the reaper: the zygote is ready.
    pub(super) fn on_zygote(&self) {
        let (mut all, now) = (lock(&self.all), Instant::now());
        all.supply.on_loss(now);
        // If nobody has wanted a spare since the last was given up.
        all.supply.on_postponed(now);
    }

    /// Takes a spare of that zygote's, for a start.
    pub(super) fn take(&self, runtime: &Runtime, zygote: &Arc<Zygote>, entry: u64) -> Option<Spare> {
        let mut all = lock(&self.all);
        all.entry = entry;
        let is_ready = |(id, parked): (&u64, &Parked)| match parked {
            Parked::Ready(spare) if Arc::ptr_eq(&spare.slot.slots, &zygote.slots) => Some(*id),
            _ => None,
        };
        let found = all.spares.iter().find_map(is_ready);
        let coming = all.spares.values().any(|parked| matches!(parked, Parked::Asked { .. }));
        all.supply.on_start(found.is_some(), coming, Instant::now());
        let Some(Parked::Ready(spare)) = all.spares.remove(&found?) else { return None };
        let was_last = !all.spares.values().any(|parked| matches!(parked, Parked::Ready(_)));
        drop(all);
        if was_last {
            // The reaper may hear nothing of this unit for long; the next start is not to find none.
            runtime.poller.ring();
        }
        Some(spare)
    }

    /// As [`Parking::take`], but waits for one: for the test-only switch.
    pub(super) fn wait(
        &self,
        runtime: &Runtime,
        zygote: &Arc<Zygote>,
        entry: u64,
        deadline: Option<Instant>,
    ) -> Option<Spare> {
        loop {
            if let Some(spare) = self.take(runtime, zygote, entry) {
                return Some(spare);
            }
            let mut all = lock(&self.all);
            all.supply.on_end(0, Instant::now());
            runtime.poller.ring();
            let left = deadline?.checked_duration_since(Instant::now())?.min(super::zygote::PATIENCE);
            if !zygote.is_alive() {
                return None;
            }
            drop(self.changed.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// A unit has ended.
    pub(super) fn on_end(&self, runtime: &Runtime) {
        let is_low = {
            let mut all = lock(&self.all);
            let there = all.count();
            all.supply.on_end(there, Instant::now())
        };
        // (The reaper looks by itself.)
        if is_low && !reaper::is_this_thread_of(runtime) {
            runtime.poller.ring();
        }
    }

    /// For the reaper: until when it may sleep; and whether starts are to be expected.
    pub(super) fn deadline(&self) -> (Option<Instant>, bool) {
        let all = lock(&self.all);
        (all.supply.deadline(), all.supply.is_busy())
    }

    /// For the reaper: does what is due. `is_alone`: whether no unit lives.
    pub(super) fn tend(&self, runtime: &Runtime, is_alone: bool) {
        let wish = {
            let mut all = lock(&self.all);
            let there = all.count();
            all.supply.due(there, is_alone, Instant::now())
        };
        match (wish, runtime.zygotes.current()) {
            (Wish::Make(count), Some(zygote)) if zygote.has_spoken() => {
                // What stands in the way of a spare will be told to whoever starts without.
                for _ in 0..count {
                    if self.ask(runtime, &zygote).is_err() {
                        break;
                    }
                }
            }
            (Wish::GiveBack, _) => self.give_back(),
            (Wish::Retire, Some(zygote)) if zygote.has_spoken() => zygote.kill(),
            (Wish::Retire, Some(_)) => lock(&self.all).supply.on_postponed(Instant::now()),
            _ => {}
        }
    }

    fn ask(&self, runtime: &Runtime, zygote: &Arc<Zygote>) -> io::Result<()> {
        let slot = zygote.take_slot().ok_or(io::ErrorKind::OutOfMemory)?;
        let (line, theirs) = sysio::line()?;
        // It waits where it is likely to be wanted. If it cannot go there, the start will say so.
        let directory = sysio::directory(None).ok();
        let place = directory
            .as_ref()
            .filter(|directory| sysio::tells_places(directory))
            .and_then(|directory| sysio::place(Some(directory)));
        let id = runtime.next_id();
        let mut all = lock(&self.all);
        if all.closed {
            return Ok(());
        }
        let wanted = Wanted {
            id,
            guard: None,
            cgroup: None,
            slot: Some(slot.number),
            directory: directory.is_some(),
            entry: all.entry,
            wish: hook::wish_of_spares(),
        };
        let with: Vec<_> = [theirs.as_fd()].into_iter().chain(directory.iter().map(AsFd::as_fd)).collect();
        let environment = zygote.try_child(&wanted, &with)?;
        all.spares.insert(id, Parked::Asked { line, slot, there: There { place, environment } });
        Ok(())
    }

    /// For the reaper: what came of one that was asked for; `child`: none if it could not be made.
    pub(super) fn on_reply(&self, runtime: &Runtime, id: u64, child: Option<(u32, OwnedFd)>) {
        let mut all = lock(&self.all);
        // Else it has been said before.
        if !matches!(all.spares.get(&id), Some(Parked::Asked { .. } | Parked::Unwanted)) {
            return;
        }
        let (Some(parked), Some((pid, pidfd))) = (all.spares.remove(&id), child) else { return };
        if runtime.poller.add(&pidfd, reaper::token(id, EXIT), false).is_err() {
            let _ = pidfd::send_signal(&pidfd, signals::KILL);
            pidfd::reap_blocking(&pidfd);
            return;
        }
        let parked = match parked {
            Parked::Asked { line, slot, there } => {
                Parked::Ready(Spare { id, child: (pid, pidfd), line, slot, there })
            }
            _ => {
                let _ = pidfd::send_signal(&pidfd, signals::KILL);
                Parked::Ending(pidfd)
            }
        };
        all.spares.insert(id, parked);
        drop(all);
        hook::step_alone("parked");
        self.changed.notify_all();
    }

    /// For the reaper: something has happened to one of ours. Whether it has ended and cannot be reaped yet.
    pub(super) fn on_event(&self, runtime: &Runtime, id: u64, what: u64) -> bool {
        let mut all = lock(&self.all);
        match all.spares.get(&id) {
            Some(Parked::Ready(Spare { child: (_, pidfd), .. }) | Parked::Ending(pidfd)) if what == EXIT => {
                if pidfd::reap(pidfd).is_none() {
                    return true;
                }
                runtime.poller.remove(pidfd);
                if let Some(Parked::Ready(_)) = all.spares.remove(&id) {
                    all.supply.on_loss(Instant::now());
                }
            }
            _ => {}
        }
        false
    }

    /// Ends all that are there.
    pub(super) fn give_back(&self) {
        let mut all = lock(&self.all);
        for parked in all.spares.values_mut() {
            *parked = match std::mem::replace(parked, Parked::Unwanted) {
                Parked::Ready(Spare { child: (_, pidfd), .. }) => {
                    let _ = pidfd::send_signal(&pidfd, signals::KILL);
                    Parked::Ending(pidfd)
                }
                Parked::Asked { .. } | Parked::Unwanted => Parked::Unwanted,
                ending @ Parked::Ending(_) => ending,
            };
        }
    }

    /// For the reaper: nobody will take one any more.
    pub(super) fn close(&self) {
        lock(&self.all).closed = true;
        self.give_back();
    }

    /// For the reaper, after the zygote's death, when it has been heard to its end: those that it was asked for and did
    /// not speak of, and the child that it had made of one.
    pub(super) fn bereave(&self, runtime: &Runtime, zygote: &Zygote) {
        self.give_back();
        let unheard: Vec<u64> = {
            let all = lock(&self.all);
            let unheard = all.spares.iter().filter(|(_, parked)| matches!(parked, Parked::Unwanted));
            unheard.map(|(id, _)| *id).collect()
        };
        for id in unheard {
            let child = zygote.child_of(id).and_then(|pid| Some((pid, pidfd::take_over(pid, None).ok()?)));
            self.on_reply(runtime, id, child);
        }
        self.changed.notify_all();
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.all).spares.is_empty()
    }
}

/// The places of a ledger.
pub(super) struct Slots(Mutex<Vec<usize>>);

impl Slots {
    pub(super) fn new() -> Self {
        Self(Mutex::new((0..SLOTS).rev().collect()))
    }

    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let number = lock(&self.0).pop()?;
        Some(Slot { slots: self.clone(), number })
    }
}

/// What is to become of a unit without its parent.
pub(super) fn care(terminate: bool, grace: Option<std::time::Duration>) -> Care {
    if terminate { Care::End(grace) } else { Care::LetBe }
}
