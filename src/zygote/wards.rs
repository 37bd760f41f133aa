//! The children that must not outlive the parent. Each carries a guard of its own; the zygote sees to those that cannot
//! hear it: that are stopped, block every signal, or have changed their user.
//!
//! No descriptor is kept for them, for each child would inherit it, and starts would take longer the more units are alive (but for
//! those that lead a process group, whose descriptors a child closes all at once). A child is known by its pid and by the number that
//! the kernel gave its pidfd, which is never given again; before Linux 6.9 there is no such number, and the guard is all that they have.

use std::time::{Duration, Instant};

use crate::sys::cgroup::Cgroup;
use crate::sys::clone::identity;
use crate::sys::io::{AsFd, OwnedFd};
use crate::sys::kept::Kept;
use crate::sys::ledger::{Care, Ledger};
use crate::sys::{group, io, lifecycle, limit, pidfd, signals};

/// So long at most between two looks whether a group is still there.
const LOOK: Duration = Duration::from_millis(50);

/// So long what was killed is waited for: it is on its way out, unless the kernel holds it.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Wards {
    list: Vec<Ward>,
    /// How long the list may get before those that have ended are struck off.
    limit: usize,
    /// Those that lead a process group, which is to end with them: by their identity their pidfd, for one may be gone before the rest
    /// of its group, and only a descriptor still stands for that then.
    groups: Kept<Group>,
}

/// A child with a group.
struct Group {
    pid: u32,
    grace: Option<Duration>,
    cgroup: Option<Cgroup>,
}

impl Group {
    fn is_populated(&self) -> bool {
        self.cgroup.as_ref().is_some_and(Cgroup::is_populated)
    }

    fn kill(&self, pidfd: &OwnedFd) {
        group::send_to_rest(pidfd, signals::KILL);
        self.cgroup.iter().for_each(Cgroup::kill);
    }
}

struct Ward {
    pid: u32,
    identity: u64,
    care: Told,
}

/// What is to become of a child: known from the beginning, or to be looked up in the ledger.
pub(crate) enum Told {
    Now(Care),
    In(usize),
}

impl Ward {
    /// Its pidfd; `None` if it has been reaped, or is somebody else by now. An error says nothing of it.
    fn open(&self) -> std::io::Result<Option<OwnedFd>> {
        const NO_SUCH_PROCESS: i32 = 3;
        match pidfd::open(self.pid) {
            Ok(pidfd) => Ok(Some(pidfd).filter(|pidfd| identity(pidfd) == Some(self.identity))),
            Err(error) if error.raw_os_error() == Some(NO_SUCH_PROCESS) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Wards {
    pub(crate) fn add(&mut self, pid: u32, pidfd: &OwnedFd, care: Told) {
        let Some(identity) = identity(pidfd) else { return };
        if self.list.len() >= self.limit {
            self.list.retain(|ward| !matches!(ward.open(), Ok(None)));
            // Twice what is left: so each is looked at a few times in all, however many live.
            self.limit = (2 * self.list.len()).max(64);
        }
        self.list.push(Ward { pid, identity, care });
    }

    /// As [`Wards::add`], for one that leads a group.
    pub(crate) fn add_group(
        &mut self,
        pid: u32,
        pidfd: OwnedFd,
        grace: Option<Duration>,
        cgroup: Option<Cgroup>,
    ) {
        if let Some(identity) = identity(&pidfd) {
            self.groups.insert(identity, pidfd, Group { pid, grace, cgroup });
        }
    }

    /// That one has ended, and its group is nobody's concern any more.
    pub(crate) fn release(&mut self, identity: u64) {
        self.groups.remove(identity);
    }

    /// In a copy of the zygote, which is to have no descriptors of other children.
    pub(crate) fn forget(self) {
        self.groups.close();
        // Whose pages are not worth to be touched.
        std::mem::forget(self.list);
    }

    /// The parent is gone: lets the guard of each child be heard, kills what lives after its grace, ends.
    pub(crate) fn mourn(&self, ledger: &Ledger) -> ! {
        // A descriptor for each.
        limit::raise_files();
        let now = Instant::now();
        let mut left = Vec::new();
        for ward in &self.list {
            let care = match ward.care {
                Told::Now(care) => care,
                Told::In(slot) => ledger.care(slot),
            };
            let (Ok(Some(child)), false) = (ward.open(), care == Care::LetBe) else { continue };
            let _ = pidfd::send_signal(&child, signals::GUARD);
            let _ = pidfd::send_signal(&child, signals::CONT);
            match care {
                Care::End(Some(grace)) if now.checked_add(grace).is_some() => left.push((child, grace)),
                // Never to be killed, and so not waited for; or a spare, which ends by itself unless it is stopped.
                Care::End(_) | Care::LetBe | Care::Parked => {}
            }
        }
        // And who of each was seen last.
        let mut groups: Vec<(&OwnedFd, &Group, Option<u32>)> = Vec::new();
        for (pidfd, group) in self.groups.iter() {
            // The guard of its leader sends TERM to all of it.
            let _ = pidfd::send_signal(pidfd, signals::GUARD);
            group::send_to_rest(pidfd, signals::CONT);
            if let Some(cgroup) = &group.cgroup {
                cgroup.send_to_others(group.pid, &[signals::TERM, signals::CONT]);
            }
            groups.extend(group.grace.and_then(|grace| now.checked_add(grace)).map(|_| (pidfd, group, None)));
        }
        let mut look = Duration::from_millis(1);
        while !left.is_empty() || !groups.is_empty() {
            let spent = now.elapsed();
            let rest = |grace: &Duration| grace.saturating_sub(spent);
            let looked: Vec<_> =
                groups.iter().map(|(pidfd, group, seen)| (*pidfd, group.pid, *seen)).collect();
            let mut alive = group::seen_alive(&looked).into_iter();
            groups.retain_mut(|(pidfd, group, seen)| {
                *seen = alive.next().flatten();
                let is_alive = seen.is_some() || group.is_populated();
                let grace = group.grace.unwrap_or_default();
                if !is_alive || rest(&grace).is_zero() {
                    // Also if nobody was seen, for somebody may have been overlooked; and again, for one that was made in the middle of it may
                    // have had none.
                    group.kill(pidfd);
                }
                is_alive && spent < grace.saturating_add(PATIENCE)
            });
            for (child, _) in left.iter().filter(|(_, grace)| rest(grace).is_zero()) {
                let _ = pidfd::send_signal(child, signals::KILL);
            }
            // One that was killed needs a moment.
            let graces = left
                .iter()
                .map(|(_, grace)| *grace)
                .chain(groups.iter().filter_map(|(_, group, _)| group.grace));
            let pause = graces.map(|grace| rest(&grace)).min().unwrap_or_default();
            // Nothing tells of the end of a group.
            let pause = if groups.is_empty() { pause } else { pause.min(look) };
            let pause = pause.max(Duration::from_millis(1));
            look = (2 * look).min(LOOK);
            let children: Vec<_> = left.iter().map(|(child, _)| child.as_fd()).collect();
            let mut ended = io::wait_any(&children, false, Some(pause)).into_iter();
            left.retain(|_| !ended.next().unwrap_or(true));
        }
        self.clear_away();
        lifecycle::exit_now(0)
    }

    /// Removes the cgroups of those that have been ended. Whoever was killed needs a moment.
    fn clear_away(&self) {
        /// So often at most, for the kernel may hold one.
        const LOOKS: u32 = 20;
        let mut cgroups: Vec<&Cgroup> =
            self.groups.iter().filter_map(|(_, group)| group.cgroup.as_ref()).collect();
        for look in 0..LOOKS {
            cgroups.retain(|cgroup| !cgroup.remove());
            if cgroups.is_empty() {
                break;
            }
            std::thread::sleep(LOOK.min(Duration::from_millis(1 << look.min(10))));
        }
    }
}
