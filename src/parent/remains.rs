//! What is left of the process groups (and cgroups) of units that we have ended, when the unit itself is gone: it has the rest of the unit's
//! grace.
//!
//! Nothing tells of a group's end, so the reaper looks again and again while there is one.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::runtime::Runtime;
use super::unit::{Unit, lock};

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
    /// At the last look nobody was seen to live.
    is_unseen: bool,
    pause: Duration,
    look_at: Instant,
}

impl Rest {
    /// Whether there is no more to be done.
    fn is_done(&mut self, now: Instant) -> bool {
        if self.kill_at <= now && self.killed.is_none() {
            self.unit.kill_rest();
            self.killed = Some(now);
        }
        let was_unseen = std::mem::replace(&mut self.is_unseen, false);
        if !self.unit.is_rest_alive() {
            // Somebody may have been overlooked, who has been made at that moment. With the KILL he makes nobody else, and is seen as long as he
            // is on his way out.
            self.unit.kill_rest();
            self.is_unseen = true;
            self.look_at = now;
            return was_unseen;
        }
        self.look_at = now + self.pause;
        if self.killed.is_none() {
            self.look_at = self.look_at.min(self.kill_at);
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
                is_unseen: false,
                pause: FIRST,
                look_at,
            });
        }
        there
    }

    /// For the reaper: does what is due.
    pub(super) fn tend(&self, runtime: &Runtime) {
        let now = Instant::now();
        let mut done = Vec::new();
        lock(&self.list).retain_mut(|rest| {
            let is_done = rest.look_at <= now && rest.is_done(now);
            if is_done {
                rest.unit.vacate(runtime);
                done.push(rest.unit.clone());
            }
            !is_done
        });
        for unit in done {
            runtime.zygotes.release(&unit);
            self.changed.notify_all();
        }
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

    /// Waits until nothing is left of that unit's group.
    pub(super) fn wait_for(&self, unit: &Unit) {
        let mut list = lock(&self.list);
        while list.iter().any(|rest| rest.unit.id == unit.id) {
            list = self.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
