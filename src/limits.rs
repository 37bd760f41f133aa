//! What bounds a unit, and which of it has ended one. Decides only: the kernel sets and watches the limits.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::signals;

/// A bound that was set for a unit by its [`Builder`], and which [`Error::limit`] names if it ended the unit.
///
/// Its text is as it stands in the error's: `limit of CPU time (2 s)`.
///
/// ```
/// use offspring::Limit;
/// assert_eq!(Limit::OpenFiles(16).to_string(), "limit of open files (16)");
/// ```
///
/// [`Builder`]: crate::Builder
/// [`Error::limit`]: crate::Error::limit
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Limit {
    /// Of address space, or of all memory of a cgroup, in bytes: [`Builder::limit_memory`](crate::Builder::limit_memory).
    Memory(u64),
    /// Of processor time, in whole seconds: [`Builder::limit_cpu_time`](crate::Builder::limit_cpu_time).
    CpuTime(Duration),
    /// Of descriptors: [`Builder::limit_open_files`](crate::Builder::limit_open_files).
    OpenFiles(u64),
    /// Of processes and threads of the user: [`Builder::limit_processes`](crate::Builder::limit_processes).
    Processes(u64),
    /// Of a core dump, in bytes: [`Builder::limit_core_size`](crate::Builder::limit_core_size).
    CoreSize(u64),
    /// Of a file that is written, in bytes: [`Builder::limit_file_size`](crate::Builder::limit_file_size).
    FileSize(u64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "limit of memory ({bytes} bytes)"),
            Self::CpuTime(time) => write!(f, "limit of CPU time ({} s)", time.as_secs()),
            Self::OpenFiles(count) => write!(f, "limit of open files ({count})"),
            Self::Processes(count) => write!(f, "limit of processes ({count})"),
            Self::CoreSize(bytes) => write!(f, "limit of a core dump's size ({bytes} bytes)"),
            Self::FileSize(bytes) => write!(f, "limit of a file's size ({bytes} bytes)"),
        }
    }
}

/// All that bounds a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// At most one of a kind.
    list: Vec<Limit>,
    /// What is added to the niceness that it starts with.
    pub(crate) nice: Option<i32>,
}

/// A limit that a unit has run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) limit: Limit,
    /// Whether nothing else can have been the cause.
    pub(crate) is_certain: bool,
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_certain { "ran" } else { "may have run" };
        write!(f, "it {how} into its {}", self.limit)
    }
}

/// Whole seconds, at least one: what the kernel counts in.
pub(crate) fn in_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).max(1))
}

impl Limits {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Sets one, in the place of an earlier one of its kind.
    pub(crate) fn set(&mut self, limit: Limit) {
        self.list.retain(|other| std::mem::discriminant(other) != std::mem::discriminant(&limit));
        self.list.push(limit);
    }

    /// As they are to be set: those that come last take away what setting the others needs, memory and a descriptor.
    pub(crate) fn in_order(&self) -> Vec<Limit> {
        let mut list = self.list.clone();
        list.sort_by_key(|limit| match limit {
            Limit::Memory(_) => 1,
            Limit::OpenFiles(_) => 2,
            _ => 0,
        });
        list
    }

    /// The limit that a unit has run into that died of this signal, after so much processor time, if that is known.
    pub(crate) fn hit(&self, signal: i32, used: Option<Duration>) -> Option<Hit> {
        self.list.iter().find_map(|limit| {
            let is_certain = match (limit, signal) {
                (Limit::CpuTime(_), signals::XCPU) | (Limit::FileSize(_), signals::XFSZ) => true,
                // A second after XCPU, which it has caught. Or somebody else's; and the time is that of its children as well.
                (Limit::CpuTime(time), signals::KILL) if used.is_none_or(|used| used >= *time) => false,
                // An allocation that fails ends in an abort; a stack that cannot grow, in a bad address. So do other faults.
                (Limit::Memory(_), signals::ABRT | signals::SEGV | signals::BUS) => false,
                _ => return None,
            };
            Some(Hit { limit: *limit, is_certain })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const CPU: Limit = Limit::CpuTime(Duration::from_secs(2));
    const ALL: [Limit; 6] = [
        Limit::Memory(1 << 30),
        CPU,
        Limit::OpenFiles(3),
        Limit::Processes(4),
        Limit::CoreSize(0),
        Limit::FileSize(5),
    ];

    fn limits(list: &[Limit]) -> Limits {
        let mut limits = Limits::default();
        list.iter().for_each(|limit| limits.set(*limit));
        limits
    }

    fn hit(list: &[Limit], signal: i32, used: Option<Duration>) -> Option<(Limit, bool)> {
        limits(list).hit(signal, used).map(|hit| (hit.limit, hit.is_certain))
    }

    #[test]
    fn signals_that_speak_of_one_limit_are_certain() {
        assert_eq!(hit(&ALL, signals::XCPU, None), Some((CPU, true)));
        assert_eq!(hit(&ALL, signals::XFSZ, None), Some((Limit::FileSize(5), true)));
    }

    #[test]
    fn a_kill_may_be_the_limits_if_the_time_was_used_up() {
        assert_eq!(hit(&ALL, signals::KILL, Some(2 * SECOND)), Some((CPU, false)));
        assert_eq!(hit(&ALL, signals::KILL, Some(3 * SECOND)), Some((CPU, false)));
        assert_eq!(hit(&ALL, signals::KILL, Some(2 * SECOND - Duration::from_nanos(1))), None);
        assert_eq!(hit(&ALL, signals::KILL, None), Some((CPU, false)));
        assert_eq!(hit(&[Limit::Memory(1)], signals::KILL, Some(2 * SECOND)), None);
    }

    #[test]
    fn want_of_memory_is_a_guess() {
        for signal in [signals::ABRT, signals::SEGV, signals::BUS] {
            assert_eq!(hit(&ALL, signal, None), Some((ALL[0], false)));
            assert_eq!(hit(&ALL[1..], signal, None), None);
        }
        assert_eq!(hit(&ALL, signals::TERM, Some(9 * SECOND)), None);
    }

    #[test]
    fn a_limit_that_was_not_set_has_ended_nothing() {
        for signal in 1..32 {
            assert_eq!(hit(&[], signal, Some(9 * SECOND)), None);
            assert_eq!(hit(&ALL[2..5], signal, Some(9 * SECOND)), None);
        }
    }

    #[test]
    fn the_last_of_a_kind_counts_and_memory_and_files_are_set_last() {
        let list = [Limit::OpenFiles(9), Limit::Memory(1), Limit::OpenFiles(3), CPU, Limit::Memory(2)];
        let limits = limits(&list);
        assert_eq!(limits.in_order(), [CPU, Limit::Memory(2), Limit::OpenFiles(3)]);
        assert!(!limits.is_empty() && Limits::default().is_empty());
        assert!(!Limits { nice: Some(0), ..Limits::default() }.is_empty());
    }

    #[test]
    fn time_is_rounded_up_to_whole_seconds() {
        let rounded = [(0, 1), (1, 1), (1000, 1), (1001, 2), (2000, 2)];
        for (milliseconds, seconds) in rounded {
            assert_eq!(in_seconds(Duration::from_millis(milliseconds)), Duration::from_secs(seconds));
        }
        assert_eq!(in_seconds(Duration::MAX).as_secs(), u64::MAX);
    }

    #[test]
    fn the_words_name_the_limit() {
        let text = |signal, used| limits(&ALL).hit(signal, used).unwrap().to_string();
        assert_eq!(text(signals::XCPU, None), "it ran into its limit of CPU time (2 s)");
        assert_eq!(text(signals::ABRT, None), "it may have run into its limit of memory (1073741824 bytes)");
        let kinds = ALL.map(|limit| limit.to_string());
        assert!(kinds.iter().all(|kind| kind.starts_with("limit of ")));
    }
}
