//! Whether a unit was killed by the kernel for want of memory. Decides only: the kernel's counts of such kills come in.
//!
//! The kernel says how many it has killed, and not whom. So each kill that it has counted accounts for one end, and for none that comes
//! much later than it was seen.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// So long a kill that was seen is waited for whom it was. It may have been none of ours.
const FRESH: Duration = Duration::from_secs(2);

/// More groups than this are not remembered.
const GROUPS: usize = 256;

/// One of the kernel's counts.
#[derive(Debug, Default)]
struct Count {
    seen: u64,
    /// How many of those account for no end yet, and when the last was seen.
    open: u64,
    at: Option<Instant>,
}

impl Count {
    fn look(&mut self, count: u64, now: Instant) {
        if self.at.is_some_and(|at| now.saturating_duration_since(at) > FRESH) {
            self.open = 0;
        }
        // Fewer than before: another group, in the place of one that was removed.
        let more = count.checked_sub(self.seen).unwrap_or(count);
        if more > 0 {
            self.open += more;
            self.at = Some(now);
        }
        self.seen = count;
    }
}

#[derive(Debug, Default)]
pub(crate) struct Kills {
    /// Of the whole system; `None`: never looked at.
    all: Option<Count>,
    groups: BTreeMap<PathBuf, Count>,
}

impl Kills {
    /// What has been counted so far is nobody's of ours. `group`: the control group that units are in, and its own count, if it has one.
    pub(crate) fn begin(&mut self, all: u64, group: Option<(PathBuf, u64)>) {
        self.all = Some(Count { seen: all, ..Count::default() });
        self.groups =
            group.map(|(group, seen)| (group, Count { seen, ..Count::default() })).into_iter().collect();
    }

    /// A unit of that group has been killed, and not by us: whether a kill has been counted that may have been its own.
    pub(crate) fn account(&mut self, all: u64, group: Option<(PathBuf, u64)>, now: Instant) -> bool {
        let Some(system) = &mut self.all else {
            self.begin(all, group);
            return false;
        };
        system.look(all, now);
        if self.groups.len() > GROUPS {
            self.groups.clear();
        }
        let own = group.map(|(group, count)| {
            let own = self.groups.entry(group).or_default();
            own.look(count, now);
            own
        });
        if system.open == 0 || own.as_ref().is_some_and(|own| own.open == 0) {
            return false;
        }
        system.open -= 1;
        if let Some(own) = own {
            own.open -= 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, count: u64) -> Option<(PathBuf, u64)> {
        Some((name.into(), count))
    }

    #[test]
    fn each_kill_accounts_for_one_end() {
        let now = Instant::now();
        let mut kills = Kills::default();
        kills.begin(7, None);
        assert!(!kills.account(7, None, now));
        // Two in the same moment, of which both are seen at the first end.
        assert!(kills.account(9, None, now) && kills.account(9, None, now));
        assert!(!kills.account(9, None, now));
        assert!(kills.account(10, None, now));
    }

    #[test]
    fn a_kill_of_long_ago_was_somebody_elses() {
        let now = Instant::now();
        let mut kills = Kills::default();
        kills.begin(0, None);
        assert!(kills.account(2, None, now));
        assert!(!kills.account(2, None, now + 2 * FRESH));
        assert!(kills.account(3, None, now + 2 * FRESH));
    }

    #[test]
    fn a_kill_in_another_group_was_somebody_elses() {
        let now = Instant::now();
        let mut kills = Kills::default();
        kills.begin(0, group("ours", 3));
        assert!(!kills.account(1, group("ours", 3), now));
        assert!(kills.account(2, group("ours", 4), now) && !kills.account(2, group("ours", 4), now));
        // One that nobody knew of before; and one that was made anew.
        assert!(kills.account(3, group("new", 1), now));
        assert!(kills.account(5, group("ours", 1), now));
    }

    #[test]
    fn whoever_has_not_looked_before_accounts_for_nothing() {
        let now = Instant::now();
        let mut kills = Kills::default();
        assert!(!kills.account(5, None, now));
        assert!(kills.account(6, None, now));
    }
}
