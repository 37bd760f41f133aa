//! The cgroups of units that lead a process group, where this process may make some: one for each, in its own. What leaves the process
//! group is still in there.
//!
//! A unit is cloned into its cgroup by the zygote; one that is there already, or is executed, joins it before its first line. If that
//! fails, it is in none, and all is as without: so nothing here is ever an error.

use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::reaper;
use super::runtime::Runtime;
use super::unit::{Unit, lock};
use crate::death::EndedBy;
use crate::hook;
use crate::limits::{Limit, Limits};
use crate::log;
use crate::sys::cgroup::Cgroup;
use crate::sys::{group, pidfd, signals};

/// Between two tries to remove one that somebody is in still: at first, and at most.
const FIRST: Duration = Duration::from_millis(1);
const MOST: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Cgroups {
    /// Where they are made; `None` if they cannot be.
    own: OnceLock<Option<Cgroup>>,
    /// Of units that have ended by themselves, while what they have started lives.
    left: Mutex<Vec<Left>>,
}

struct Left {
    cgroup: Cgroup,
    pause: Duration,
    look_at: Instant,
}

/// A unit's.
pub(crate) struct Place {
    pub(crate) cgroup: Cgroup,
    /// The limit of memory that it has.
    memory: Option<Limit>,
    /// A copy that the user forks must not touch it.
    owner: u32,
    is_seen_to: AtomicBool,
}

impl Place {
    /// The limit of memory, if that has killed somebody there.
    pub(super) fn limit_hit(&self) -> Option<Limit> {
        self.memory.filter(|_| self.cgroup.ran_out_of_memory())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Its unit was never made.
        if self.owner == std::process::id() && !*self.is_seen_to.get_mut() {
            self.cgroup.remove();
        }
    }
}

impl Cgroups {
    fn own(&self) -> Option<&Cgroup> {
        let mut refused = None;
        let own = self.own.get_or_init(|| {
            let own = if hook::may_have_cgroups() { Some(Cgroup::own()) } else { None };
            own?.map_err(|why| refused = Some(why)).ok()
        });
        // Those who listen may be about to start such a unit too.
        if let Some(why) = refused {
            log::no_cgroups(&why);
        }
        own.as_ref()
    }

    /// Whether units can have some.
    pub(super) fn are_at_hand(&self) -> bool {
        self.own().is_some()
    }

    /// A new one, with those limits that it can have.
    pub(super) fn make(&self, limits: &Limits) -> Option<Place> {
        let cgroup = self.own()?.make().ok()?;
        let set: Vec<Limit> = limits.in_order().into_iter().filter(|limit| cgroup.limit(*limit)).collect();
        let memory = set.into_iter().find(|limit| matches!(limit, Limit::Memory(_)));
        Some(Place { cgroup, memory, owner: std::process::id(), is_seen_to: AtomicBool::new(false) })
    }

    /// Its unit is gone: removes it, now or when nobody is in it any more.
    pub(super) fn remove(&self, place: &Place) -> bool {
        let is_gone = place.is_seen_to.swap(true, Ordering::Relaxed) || place.cgroup.remove();
        if !is_gone {
            let left = Left { cgroup: place.cgroup.clone(), pause: FIRST, look_at: Instant::now() };
            lock(&self.left).push(left);
        }
        is_gone
    }

    /// For the reaper: tries again.
    pub(super) fn tend(&self) {
        lock(&self.left).retain_mut(|left| {
            let now = Instant::now();
            if left.look_at > now {
                return true;
            }
            left.look_at = now + left.pause;
            left.pause = (2 * left.pause).min(MOST);
            !left.cgroup.remove()
        });
    }

    /// For the reaper: when to try again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        lock(&self.left).iter().map(|left| left.look_at).min()
    }

    /// For the reaper, which ends: tries once more. What stays is empty some day, and removed by who makes his first one there.
    pub(super) fn close(&self) {
        lock(&self.left).drain(..).for_each(|left| _ = left.cgroup.remove());
    }
}

/// All that a unit has started, in so far as we can reach it: its process group, and its cgroup if it has one.
impl Unit {
    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        self.place.as_ref().map(|place| &place.cgroup)
    }

    /// Sends TERM and CONT to those that have left its group, which has had them.
    pub(super) fn terminate_others(&self) {
        if let Some(cgroup) = self.cgroup() {
            cgroup.send_to_others(self.pid(), &[signals::TERM, signals::CONT]);
        }
    }

    /// Kills those that have left its group.
    pub(super) fn kill_others(&self) {
        if let Some(cgroup) = self.cgroup() {
            cgroup.kill();
        }
    }

    /// Whether there is something left, be it one that has ended and waits to be reaped.
    pub(super) fn has_rest(&self) -> bool {
        group::has_member(self.pidfd()) || self.is_populated()
    }

    /// Whether somebody lives in its cgroup, if it has one.
    pub(super) fn is_populated(&self) -> bool {
        self.cgroup().is_some_and(Cgroup::is_populated)
    }

    /// Kills what is left.
    pub(super) fn kill_rest(&self) {
        group::send_to_rest(self.pidfd(), signals::KILL);
        self.kill_others();
    }

    /// The limit that ended it, if that is known of its cgroup.
    pub(super) fn limit_hit(&self, ended_by: EndedBy, status: ExitStatus) -> Option<Limit> {
        // What its cgroup has counted may have been another's end, long ago.
        let is_starved = ended_by == EndedBy::OutOfMemory && pidfd::signal(status) == Some(signals::KILL);
        self.place.as_ref().filter(|_| is_starved)?.limit_hit()
    }

    /// Nothing of it is to be ended any more.
    pub(super) fn vacate(&self, runtime: &Runtime) {
        if let Some(place) = &self.place
            && !runtime.cgroups.remove(place)
            && !reaper::is_this_thread_of(runtime)
        {
            runtime.poller.ring();
        }
    }
}
