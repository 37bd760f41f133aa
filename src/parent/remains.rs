//! What is left of the process groups (and cgroups) of units that we have ended, when the unit itself is gone: it has the rest of the unit's
//! grace.
//!
//! Nothing tells of a group's end, so the reaper looks again and again while there is one.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::runtime::Runtime;
use super::unit::{Unit, lock};
use crate::sys::group;

/// Between two looks: at first, and at most.
const FIRST: Duration = Duration::from_millis(1);
const MOST: Duration = Duration::from_millis(50);

/// So long what was killed is waited for: it is on its way out, unless the kernel holds it.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Remains {
    list: Mutex<Vec<Rest>>,
    changed: Condvar,
}

/// One group.
struct Rest {
    unit: Arc<Unit>,
    kill_at: Instant,
    killed: Option<Instant>,
    /// Who was seen to live at the last look.
    seen: Option<u32>,
    /// At the last look there was nobody.
    is_unseen: bool,
    pause: Duration,
    look_at: Instant,
}

impl Rest {
    /// Sends KILL if it is time for that.
    fn kill_if_due(&mut self, now: Instant) {
        if self.kill_at <= now && self.killed.is_none() {
            self.unit.kill_rest();
            self.killed = Some(now);
        }
    }

    /// This one of the group was seen to live, or nobody, and somebody or nobody of it all, in a look that took so long. Whether there
    /// is no more to be done.
    fn is_done(&mut self, seen: Option<u32>, is_alive: bool, took: Duration) -> bool {
        let now = Instant::now();
        self.seen = seen;
        let was_unseen = std::mem::replace(&mut self.is_unseen, false);
        if !is_alive {
            // Somebody may have been overlooked, who has been made at that moment. With the KILL he makes nobody else, and is seen as long as he
            // is on his way out.
            self.unit.kill_rest();
            self.is_unseen = true;
            self.look_at = now;
            return was_unseen;
        }
        self.look_at = now + self.pause.max(4 * took);
        match self.killed {
            None => self.look_at = self.look_at.min(self.kill_at),
            // One that was made in the middle of the KILL may have had none.
            Some(_) => self.unit.kill_rest(),
        }
        self.pause = (2 * self.pause).min(MOST);
        self.killed.is_some_and(|killed| killed + PATIENCE <= now)
    }
}

impl Remains {
    /// A unit has been reaped; what there may be of its group gets KILL at that time. Whether there is something.
    pub(super) fn add(&self, unit: &Arc<Unit>, kill_at: Instant) -> bool {
        let there = unit.has_rest();
        if there {
            let look_at = Instant::now();
            lock(&self.list).push(Rest {
                unit: unit.clone(),
                kill_at,
                killed: None,
                seen: None,
                is_unseen: false,
                pause: FIRST,
                look_at,
            });
        }
        there
    }

    /// For the reaper, who alone strikes off: does what is due. If one is to be looked at, all are, for it is one look.
    pub(super) fn tend(&self, runtime: &Runtime) {
        let now = Instant::now();
        let all: Vec<(Arc<Unit>, Option<u32>)> = {
            let mut list = lock(&self.list);
            if list.iter().all(|rest| rest.look_at > now) {
                return;
            }
            list.iter_mut().for_each(|rest| rest.kill_if_due(now));
            list.iter().map(|rest| (rest.unit.clone(), rest.seen)).collect()
        };
        // It takes its time, in which others end.
        let groups: Vec<_> = all.iter().map(|(unit, seen)| (unit.pidfd(), unit.pid(), *seen)).collect();
        let seen = group::seen_alive(&groups);
        let is_alive: Vec<bool> =
            all.iter().zip(&seen).map(|((unit, _), seen)| seen.is_some() || unit.is_populated()).collect();
        let took = now.elapsed();
        // Those that were added since stand behind, and have not been looked for.
        let done: Vec<Arc<Unit>> = lock(&self.list)
            .iter_mut()
            .zip(seen.into_iter().zip(is_alive))
            .filter_map(|(rest, (seen, is_alive))| {
                rest.is_done(seen, is_alive, took).then(|| rest.unit.clone())
            })
            .collect();
        if done.is_empty() {
            return;
        }
        // It is gone when nobody waits for it any more.
        done.iter().for_each(|unit| unit.vacate(runtime));
        lock(&self.list).retain(|rest| done.iter().all(|unit| unit.id != rest.unit.id));
        done.iter().for_each(|unit| runtime.zygotes.release(unit));
        self.changed.notify_all();
    }

    /// For the reaper: when to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        lock(&self.list).iter().map(|rest| rest.look_at).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.list).is_empty()
    }

    /// The units whose groups are left.
    pub(super) fn units(&self) -> Vec<Arc<Unit>> {
        lock(&self.list).iter().map(|rest| rest.unit.clone()).collect()
    }

    /// Does that if something of that unit's group is left. What comes of its end comes after.
    pub(super) fn while_left(&self, unit: &Unit, act: impl FnOnce()) {
        let list = lock(&self.list);
        if list.iter().any(|rest| rest.unit.id == unit.id) {
            act();
        }
    }

    /// Waits until nothing is left of that unit's group.
    pub(super) fn wait_for(&self, unit: &Unit) {
        let mut list = lock(&self.list);
        while list.iter().any(|rest| rest.unit.id == unit.id) {
            list = self.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
