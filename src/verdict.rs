//! What is told of a unit that has ended: its result, or why there is none. Decides only.

use std::time::Duration;

use crate::death::{Death, EndedBy};
use crate::error::{Error, ErrorKind, Panic, Subject};
use crate::limits::{Hit, Limits};
use crate::parent::shutdown::Why;
use crate::parent::table::Verdict;
use crate::parent::unit::End;
use crate::sys::pidfd;
use crate::wire::message::Step;
use crate::wire::parcel::Bytes;

/// The certificate, but for what the verdict adds.
pub(crate) fn certify(subject: &Subject, end: &mut End) -> Death {
    Death {
        subject: subject.clone(),
        status: end.status,
        ran: end.ran,
        usage: end.usage,
        ended_by: end.ended_by,
        stderr: end.stderr.take(),
        panic: None,
    }
}

/// The bytes of its result, or the error. `timeout`: the time that it had.
pub(crate) fn judge(
    verdict: Verdict,
    mut death: Death,
    limits: &Limits,
    timeout: Option<Duration>,
) -> Result<Bytes, Error> {
    let cpu_time = death.usage.map(|usage| usage.cpu_time);
    let hit = match death.ended_by {
        EndedBy::Limit(limit) => Some(Hit { limit, is_certain: true }),
        _ => pidfd::signal(death.status).and_then(|signal| limits.hit(signal, cpu_time)),
    };
    if let Some(Hit { limit, is_certain: true }) = hit
        && matches!(death.ended_by, EndedBy::Itself | EndedBy::Other | EndedBy::OutOfMemory)
    {
        death.ended_by = EndedBy::Limit(limit);
    }
    let time = timeout.unwrap_or_default();
    let how = death.how();
    let subject = death.subject.clone();
    let error = |kind, what: &str| Error::new(kind, &subject, what);
    let error = match verdict {
        Verdict::Value(bytes) => return Ok(bytes),
        Verdict::Panicked(panic) => {
            let place = match (&panic.file, panic.line) {
                (Some(file), Some(line)) => format!(" at {file}:{line}"),
                _ => String::new(),
            };
            death.panic = Some(Panic(panic.clone()));
            error(ErrorKind::Panicked, &format!("panicked{place}: {}", panic.message)).with_panic(panic)
        }
        Verdict::Failed(failed) => {
            let (kind, what) = match failed.step {
                Step::Setup => (ErrorKind::Start, "could not be set up in the child"),
                Step::Decode => (ErrorKind::Decode, "could not be decoded in the child"),
                Step::Receive => (ErrorKind::Decode, "its result could not be received"),
                Step::Encode => (ErrorKind::Encode, "its result could not be encoded in the child"),
            };
            error(kind, &format!("{what}: {}", failed.why))
        }
        Verdict::Died { breach: Some(breach), .. } => {
            error(ErrorKind::Died, &format!("was killed by us, for {breach}"))
        }
        Verdict::Died { ended: Some((Why::Timeout, _)), panic: Some(panic), breach: None, .. } => {
            death.panic = Some(Panic(panic.clone()));
            let what =
                format!("its time ({time:?}) was over; in the grace it panicked: {} ({how})", panic.message);
            error(ErrorKind::TimedOut, &what).with_panic(panic)
        }
        Verdict::Died { ended: Some((why, killed)), .. } => {
            let by = if killed { "killed" } else { "terminated" };
            match why {
                Why::Timeout => {
                    error(ErrorKind::TimedOut, &format!("its time ({time:?}) was over; {by} by us ({how})"))
                }
                Why::Start => error(ErrorKind::Start, &format!("did not become ready in time; {by} by us")),
                Why::Exit => {
                    error(ErrorKind::ShuttingDown, &format!("{by} by us when its parent shut down ({how})"))
                }
                Why::Shutdown | Why::Breach | Why::Lingering => {
                    error(ErrorKind::Died, &format!("{by} by us on shutdown ({how})"))
                }
            }
        }
        Verdict::Died { ended: None, ready, .. } => {
            let (kind, what) = match ready {
                false => (ErrorKind::Start, "died before it could run"),
                true => (ErrorKind::Died, "died while it ran, without a result"),
            };
            let why = hit.map_or_else(String::new, |hit| format!("; {hit}"));
            error(kind, &format!("{what}: {how}{why}")).with_limit(hit.map(|hit| hit.limit))
        }
    };
    Err(error.with_death(death))
}
