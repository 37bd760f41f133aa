//! The certificate of a child's death. Decides only: what is known comes in, what is to be told of it goes out.

use std::fmt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::error::{Panic, Subject};
use crate::limits::Limit;
use crate::parent::shutdown::Why;
use crate::sys::{pidfd, signals};

/// The end of a child that gave no result: who it was, how it ended, what it had used, and who ended it.
///
/// `Display` says it in two lines.
///
/// ```
/// # use offspring::{EndedBy, spawn};
/// let error = spawn((), |()| -> () { std::process::exit(5) }).and_then(|unit| unit.wait()).unwrap_err();
/// let death = error.death().unwrap();
/// assert_eq!(death.status().code(), Some(5));
/// assert_eq!(death.ended_by(), EndedBy::Itself);
/// assert_ne!(death.id(), std::process::id());
/// assert!(death.peak_memory() > Some(0));
/// assert_eq!(death.to_string().lines().count(), 2);
/// # Ok::<(), offspring::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    pub(crate) subject: Subject,
    pub(crate) status: ExitStatus,
    pub(crate) ran: Duration,
    pub(crate) usage: Option<pidfd::Usage>,
    pub(crate) ended_by: EndedBy,
    pub(crate) stderr: Option<String>,
    pub(crate) panic: Option<Panic>,
}

/// Who ended a child that gave no result.
///
/// ```
/// use offspring::{EndedBy, spawn};
/// let unit = spawn((), |()| std::thread::sleep(std::time::Duration::from_secs(3600)))?;
/// unit.process().unwrap().kill()?;
/// // A signal of the program's own is nobody's order to the library.
/// assert_eq!(unit.wait().unwrap_err().death().unwrap().ended_by(), EndedBy::Other);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndedBy {
    /// The unit: it left the process, panicked, aborted, or did what the kernel ends a process for (a bad address, say).
    Itself,
    /// We, for a `shutdown` of its handle or its `Process`.
    Shutdown,
    /// We, because its parent was about to exit, or by [`offspring::shutdown`](crate::shutdown()).
    ParentExit,
    /// We, because its time was over.
    Timeout,
    /// We, because it was not about to run in time.
    StartTimeout,
    /// We, because it sent what is no message.
    Protocol,
    /// We, because it did not end in time after its last word.
    Lingering,
    /// The kernel, for want of memory: it was killed, not by us, and the kernel has counted such a kill (`oom_kill` in `/proc/vmstat`) that
    /// no other end of a unit accounts for; and counted it in the unit's own control group, where groups are of version 2
    /// (`memory.events.local`).
    ///
    /// The kernel does not say whom it has killed. So it may have been another process of that group (of the system, where groups do not tell),
    /// since a unit was last killed by somebody else; then this one was killed by somebody else too. And of two that were killed by somebody in the same two seconds, one by
    /// the kernel, it is the one whose end was seen first.
    OutOfMemory,
    /// The kernel, for a limit that the builder set. (If it only may have been, as with memory that is no cgroup's, that is in
    /// [`Error::limit`](crate::Error::limit), and here it is `Itself`.)
    Limit(Limit),
    /// It is not known (the status was lost), or somebody else, by a signal. Or itself: nothing tells the two apart.
    Other,
}

impl EndedBy {
    /// What a signal of that kind tells when we have not sent it. `starved`: the kernel has killed somebody for want of memory.
    pub(crate) fn of(ending: Option<Why>, status: ExitStatus, starved: bool) -> Self {
        let signal = pidfd::signal(status);
        match ending {
            None if pidfd::is_lost(status) => Self::Other,
            Some(why) if is_as_asked(status) => match why {
                Why::Shutdown => Self::Shutdown,
                Why::Exit => Self::ParentExit,
                Why::Timeout => Self::Timeout,
                Why::Start => Self::StartTimeout,
                Why::Breach => Self::Protocol,
                Why::Lingering => Self::Lingering,
            },
            _ => match signal {
                Some(signals::KILL) if starved => Self::OutOfMemory,
                Some(signal) if !signals::is_own_doing(signal) => Self::Other,
                _ => Self::Itself,
            },
        }
    }
}

/// Whether a child that was asked to end ended in a way that can be due to that.
pub(crate) fn is_as_asked(status: ExitStatus) -> bool {
    pidfd::signal(status).is_none_or(|signal| [signals::TERM, signals::KILL].contains(&signal))
}

impl Death {
    /// The unit's type.
    pub fn type_name(&self) -> &str {
        self.subject.type_name
    }

    /// The unit's name: the builder's, or its type's.
    pub fn name(&self) -> &str {
        self.subject.name.as_deref().unwrap_or(self.subject.type_name)
    }

    /// Its process id, which may belong to another by now.
    pub fn id(&self) -> u32 {
        self.subject.pid.unwrap_or_default()
    }

    /// How it ended: a code or a signal. The code is 101 after a panic, and 1 if the unit could not be set up or decoded, or its result not be
    /// encoded; unless something else has ended the process on its way out. If another part of the program waited for the child, and the kernel is older than
    /// 6.15, this is a status with neither, and the texts say that it was lost.
    pub fn status(&self) -> ExitStatus {
        self.status
    }

    /// Whether the kernel wrote its memory to a file (core(5)), or to who asks for such.
    pub fn core_dumped(&self) -> bool {
        pidfd::core_dumped(self.status)
    }

    /// How long after the beginning of its start it had been waited for by us.
    pub fn ran(&self) -> Duration {
        self.ran
    }

    /// The processor time of all its threads, and of those of its own children that it has waited for. `None` if another part of
    /// the program waited for the child.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.usage.map(|usage| usage.cpu_time)
    }

    /// The most memory that it, or one of the children that it has waited for, had at one time (`ru_maxrss`), in bytes. What it
    /// shares with others counts, such as the program's code. `None` if another part of the program waited for the child.
    ///
    /// One that was made by execution (the first unit of all, or where there can be no zygote) is said to have had at least what its
    /// parent had: so the kernel counts, which takes a process before `execve` for the same one as after it.
    pub fn peak_memory(&self) -> Option<u64> {
        self.usage.map(|usage| usage.peak_memory)
    }

    /// Who ended it.
    pub fn ended_by(&self) -> EndedBy {
        self.ended_by
    }

    /// The last lines that it wrote to its standard error, ten or two thousand bytes at most, if that was asked for as a pipe which nobody
    /// has taken: `builder(unit).stderr(Stdio::piped())`. Else `None`.
    ///
    /// ```
    /// # use offspring::{Offspring, Stdio, Subprocess};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize)]
    /// struct Fails;
    ///
    /// impl Subprocess for Fails {
    ///     type Output = ();
    ///     fn run(self) {
    ///         eprintln!("no more disks");
    ///         std::process::exit(3);
    ///     }
    /// }
    ///
    /// let error = Offspring::builder(Fails).stderr(Stdio::piped()).spawn()?.wait().unwrap_err();
    /// assert_eq!(error.death().unwrap().stderr(), Some("no more disks"));
    /// # Ok::<(), offspring::Error>(())
    /// ```
    pub fn stderr(&self) -> Option<&str> {
        self.stderr.as_deref()
    }

    /// The panic, if that was the end of it. The same as [`Error::panic`](crate::Error::panic).
    pub fn panic(&self) -> Option<&Panic> {
        self.panic.as_ref()
    }

    /// The status in words.
    pub(crate) fn how(&self) -> String {
        if pidfd::is_lost(self.status) {
            return "its exit status was taken by another waiter".into();
        }
        match self.ended_by {
            EndedBy::OutOfMemory => format!("{}, for want of memory", self.status),
            _ => self.status.to_string(),
        }
    }
}

impl fmt::Display for Death {
    /// Two lines: who ended how, after what time, by whom; and what it had used and said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.ended_by {
            EndedBy::Itself => "by its own doing",
            EndedBy::Shutdown => "ended by us on shutdown",
            EndedBy::ParentExit => "ended by us when its parent shut down",
            EndedBy::Timeout => "ended by us, for its time was over",
            EndedBy::StartTimeout => "ended by us, for it was not ready in time",
            EndedBy::Protocol => "ended by us, for it sent what is no message",
            EndedBy::Lingering => "ended by us, for it went on after its last word",
            EndedBy::OutOfMemory => "ended by the kernel",
            EndedBy::Limit(limit) => &format!("ended by the kernel, for its {limit}"),
            EndedBy::Other => "ended by somebody else",
        };
        writeln!(f, "{}: {} after {:.3?}, {by}", self.subject, self.how(), self.ran)?;
        match self.usage {
            Some(usage) => {
                let megabytes = usage.peak_memory as f64 / f64::from(1 << 20);
                write!(f, "used {:.3?} of processor time and {megabytes:.1} MiB at most", usage.cpu_time)?;
            }
            None => write!(f, "what it used is not known")?,
        }
        if let Some(panic) = &self.panic {
            write!(f, "; panicked: {}", one_line(&panic.to_string()))?;
        }
        // A panic ends with words of std's.
        let stderr = self.stderr.as_deref().filter(|_| self.panic.is_none());
        match stderr.and_then(|text| text.lines().last()) {
            Some(last) => write!(f, "; its last line: {}", one_line(last)),
            None => Ok(()),
        }
    }
}

/// Text of the unit's own in a line of ours.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" / ")
}

/// The last lines of what a child has written.
pub(crate) fn last_lines(bytes: &[u8]) -> String {
    const LINES: usize = 10;
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end();
    let first = text.rmatch_indices('\n').nth(LINES - 1).map_or(0, |(at, _)| at + 1);
    let text = &text[first..];
    // What is not whole is left out, if there is more than that.
    let from = text.len().saturating_sub(LAST_BYTES);
    match (from, text[text.ceil_char_boundary(from)..].split_once('\n')) {
        (0, _) => text.to_owned(),
        (_, Some((_, whole))) => whole.to_owned(),
        (_, None) => text[text.ceil_char_boundary(from)..].to_owned(),
    }
}

/// So much of its standard error is told.
pub(crate) const LAST_BYTES: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn who_ended_it() {
        let of = |ending, raw, starved| EndedBy::of(ending, ExitStatus::from_raw(raw), starved);
        assert_eq!(of(None, 3 << 8, true), EndedBy::Itself);
        assert_eq!(of(None, 11, true), EndedBy::Itself);
        assert_eq!(of(None, 6 | 0x80, false), EndedBy::Itself);
        assert_eq!(of(None, 15, true), EndedBy::Other);
        assert_eq!(of(None, 9, false), EndedBy::Other);
        assert_eq!(of(None, 9, true), EndedBy::OutOfMemory);
        assert_eq!(of(Some(Why::Shutdown), 15, false), EndedBy::Shutdown);
        assert_eq!(of(Some(Why::Exit), 9, true), EndedBy::ParentExit);
        // It obeyed by leaving.
        assert_eq!(of(Some(Why::Timeout), 1 << 8, false), EndedBy::Timeout);
        // It fell over before it could.
        assert_eq!(of(Some(Why::Shutdown), 11, false), EndedBy::Itself);
    }

    #[test]
    fn the_last_lines_are_few_and_whole() {
        assert_eq!(last_lines(b""), "");
        assert_eq!(last_lines(b"one\ntwo\n\n"), "one\ntwo");
        let many: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(last_lines(many.as_bytes()), "90\n91\n92\n93\n94\n95\n96\n97\n98\n99");
        let long = format!("{}\nlast", "x".repeat(5000));
        assert_eq!(last_lines(long.as_bytes()), "last");
        assert_eq!(last_lines("ü".repeat(3000).as_bytes()).len(), LAST_BYTES);
        assert_eq!(last_lines(b"\xff!"), "\u{fffd}!");
    }

    #[test]
    fn two_lines_whatever_it_said() {
        let panic = crate::wire::message::Panicked {
            message: "a\nb".into(),
            file: None,
            line: None,
            column: None,
            thread: None,
            backtrace: None,
        };
        let death = Death {
            subject: Subject { type_name: "T", name: Some("n".into()), pid: Some(7) },
            status: ExitStatus::from_raw(9),
            ran: Duration::from_millis(1500),
            usage: Some(pidfd::Usage { cpu_time: Duration::from_millis(20), peak_memory: 3 << 19 }),
            ended_by: EndedBy::OutOfMemory,
            stderr: Some("x\ry".into()),
            panic: Some(Panic(panic)),
        };
        let lines = |by: &str, last: &str| {
            format!(
                "unit T 'n' (pid 7): signal: 9 (SIGKILL){by}\n\
                 used 20.000ms of processor time and 1.5 MiB at most; {last}"
            )
        };
        let starved = ", for want of memory after 1.500s, ended by the kernel";
        assert_eq!(death.to_string(), lines(starved, "panicked: a / b"));
        let limit = EndedBy::Limit(crate::limits::Limit::CpuTime(Duration::from_secs(1)));
        let death = Death { panic: None, ended_by: limit, ..death };
        let limited = " after 1.500s, ended by the kernel, for its limit of CPU time (1 s)";
        assert_eq!(death.to_string(), lines(limited, "its last line: x / y"));
    }
}
