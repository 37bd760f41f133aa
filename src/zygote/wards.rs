//! The children that must not outlive the parent. Each carries a guard of its own; the zygote sees to those that cannot
//! hear it: that are stopped, block every signal, or have changed their user.
//!
//! No descriptor is kept for them, for each child would inherit it, and starts would take longer the more units are alive.
//! A child is known by its pid and by the number that the kernel gave its pidfd, which is never given again; before Linux
//! 6.9 there is no such number, and the guard is all that they have.

use std::time::{Duration, Instant};

use crate::sys::clone::identity;
use crate::sys::io::{AsFd, OwnedFd};
use crate::sys::ledger::{Care, Ledger};
use crate::sys::{io, lifecycle, limit, pidfd, signals};

#[derive(Default)]
pub(crate) struct Wards {
    list: Vec<Ward>,
    /// How long the list may get before those that have ended are struck off.
    limit: usize,
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
        while !left.is_empty() {
            let spent = now.elapsed();
            let rest = |grace: &Duration| grace.saturating_sub(spent);
            for (child, _) in left.iter().filter(|(_, grace)| rest(grace).is_zero()) {
                let _ = pidfd::send_signal(child, signals::KILL);
            }
            // One that was killed needs a moment.
            let pause = left.iter().map(|(_, grace)| rest(grace)).min().unwrap_or_default();
            let pause = pause.max(Duration::from_millis(1));
            let children: Vec<_> = left.iter().map(|(child, _)| child.as_fd()).collect();
            let mut ended = io::wait_any(&children, false, Some(pause)).into_iter();
            left.retain(|_| !ended.next().unwrap_or(true));
        }
        lifecycle::exit_now(0)
    }
}
