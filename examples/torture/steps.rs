//! Figure 4: each fault at each step of the protocol. CONTRIBUTING.md has the steps; `WALKS` is all of them here.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use offspring::{Builder, Error, ErrorKind, Offspring, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

use crate::copies;
use crate::figure::{Job, Report, ms};
use crate::processes::{self, Belongings, eventually, state, tag_below, zygotes};

/// Whose steps, through which launchers.
struct Walk {
    process: &'static str,
    launchers: &'static [&'static str],
    steps: &'static [&'static str],
    faults: &'static [&'static str],
}

const FAULTS: &[&str] = &["kill", "exit", "abort", "stop"];

const WALKS: &[Walk] = &[
    Walk {
        process: "child",
        launchers: &["exec", "zygote", "spare"],
        steps: &["boot", "received", "setup", "ready", "ran", "result", "sent", "end"],
        faults: FAULTS,
    },
    Walk {
        process: "zygote",
        launchers: &["zygote", "auto"],
        steps: &["boot", "ready", "asked", "cloned", "told"],
        faults: FAULTS,
    },
    Walk {
        process: "parent",
        launchers: &["exec", "zygote", "spare"],
        steps: &["launch", "launched", "queued"],
        faults: FAULTS,
    },
];

const WISH: &str = "OFFSPRING_STEP";
/// The wish of a case, for a copy that is to give it to others.
const CASE: &str = "OFFSPRING_TORTURE_CASE";

/// Cases at a time, for many of them wait.
const LANES: usize = 3;
/// What a start or a unit may take if nothing but this can end it.
const SHORT: Duration = Duration::from_millis(100);
/// Until a fault is known, whatever that is.
const KNOWN: Duration = Duration::from_secs(1);
/// A case that is not over by then hangs, on however busy a machine.
const HANGS: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Unit;

impl Subprocess for Unit {
    type Output = u32;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(20));

    fn run(self) -> u32 {
        7
    }
}

#[derive(Serialize, Deserialize)]
struct Endless;

impl Subprocess for Endless {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(20));

    fn run(self) {
        std::thread::sleep(Duration::from_secs(600));
    }
}

fn builder() -> Builder<u32> {
    Offspring::builder(Unit).stderr(Stdio::null())
}

pub(crate) fn all(job: &Job) -> String {
    let mut cases = Vec::new();
    for walk in WALKS {
        for (launcher, step) in
            walk.launchers.iter().flat_map(|l| walk.steps.iter().map(move |step| (*l, *step)))
        {
            cases.extend(
                walk.faults.iter().map(|fault| (launcher, format!("{}:{step}:{fault}", walk.process))),
            );
        }
    }
    let (next, longest) = (AtomicUsize::new(0), Mutex::new(Duration::ZERO));
    let one = |(launcher, wish): &(&str, String)| {
        let name = format!("{wish} through {launcher}");
        let tag = tag_below(name.replace(' ', "-"));
        let mut command = copies::copy(&["step", &job.count.to_string()], &tag);
        command.env(CASE, wish).env("OFFSPRING_LAUNCHER", launcher);
        let report: Report = copies::run(command, &tag, HANGS, &mut |_| ());
        let time = job.tally.adopt(&name, report).parse().unwrap_or_default();
        let mut longest = longest.lock().unwrap();
        *longest = longest.max(Duration::from_micros(time));
        job.tally.done();
    };
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Relaxed)) {
                    one(case);
                }
            });
        }
    });
    let longest = longest.into_inner().unwrap();
    job.tally.bound("until it was known", longest, KNOWN);
    format!("{} wrong of {} cases; known in {} at most", job.tally.failed(), cases.len(), ms(longest))
}

/// One case, so many times; says the longest time in microseconds.
pub(crate) fn case(job: &Job) -> String {
    let wish = std::env::var(CASE).unwrap_or_default();
    let mut parts = wish.split(':');
    let (process, _step, fault) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let belongings = Belongings::now();
    let mut longest = Duration::ZERO;
    for _ in 0..job.count {
        let time = match process {
            Some("child") => child(job, &wish, fault),
            Some("zygote") => zygote(job, &wish, fault),
            _ => of_parent(job, &wish, fault),
        };
        longest = longest.max(time);
        let began = Instant::now();
        let next = builder().env_remove(WISH).spawn().and_then(Offspring::wait);
        job.tally.check(matches!(next, Ok(7)), || format!("the next start: {next:?}"));
        longest = longest.max(began.elapsed());
    }
    if let Some(left) = belongings.left_over() {
        job.tally.fail(left);
    }
    longest.as_micros().to_string()
}

/// Whether that is the end that the fault brings.
fn is_end_by(fault: &str, status: ExitStatus) -> bool {
    match fault {
        "kill" => status.signal() == Some(libc::SIGKILL),
        "abort" => status.signal() == Some(libc::SIGABRT),
        "exit" => status.code() == Some(9),
        "stop" => [Some(libc::SIGKILL), Some(libc::SIGTERM)].contains(&status.signal()),
        // It goes on, or is killed for it.
        _ => status.success() || status.signal() == Some(libc::SIGKILL),
    }
}

fn is_typed(error: &Error) -> bool {
    [ErrorKind::Start, ErrorKind::Died, ErrorKind::TimedOut].contains(&error.kind())
}

/// A child with the wish: its result if it had sent that, else an error of the right kind; and the end that the fault brings.
fn child(job: &Job, wish: &str, fault: &str) -> Duration {
    let mut builder = builder().env(WISH, wish);
    if fault == "stop" {
        builder = builder.start_timeout(SHORT).timeout(SHORT);
    }
    let mut process = None;
    let began = Instant::now();
    let result = builder.spawn().and_then(|unit| {
        process = unit.process().cloned();
        unit.wait()
    });
    let time = began.elapsed();
    let status = match &result {
        Ok(_) => process.and_then(|process| process.exit_status()),
        Err(error) => error.death().map(|death| death.status()),
    };
    let is_right = result.as_ref().map_or_else(is_typed, |value| *value == 7);
    job.tally.check(is_right && status.is_some_and(|status| is_end_by(fault, status)), || {
        format!("{result:?}, {status:?}")
    });
    time
}

/// Zygotes that all have the wish. What is started through them is right, or refused; and one of them comes to harm.
fn zygote(job: &Job, wish: &str, fault: &str) -> Duration {
    offspring::shutdown();
    // SAFETY: there is one thread, but for the library's.
    unsafe { std::env::set_var(WISH, wish) };
    let (mut longest, mut seen, mut is_harmed) = (Duration::ZERO, HashSet::new(), false);
    let is_forced = std::env::var("OFFSPRING_LAUNCHER").is_ok_and(|launcher| launcher == "zygote");
    let end = Instant::now() + Duration::from_secs(10);
    while !is_harmed && Instant::now() < end {
        let began = Instant::now();
        let result = builder().start_timeout(SHORT).spawn().and_then(Offspring::wait);
        longest = longest.max(began.elapsed());
        let is_right = result.as_ref().map_or_else(is_typed, |value| *value == 7);
        job.tally.check(is_right, || format!("{result:?}"));
        let now = zygotes();
        is_harmed = result.is_err() || now.iter().any(|pid| state(*pid) == Some('T'));
        seen.extend(now);
        // One that made a child and is gone, or has been replaced.
        is_harmed |= seen.len() > 1 || is_forced && seen.is_empty();
    }
    job.tally.check(is_harmed, || "nothing happened".into());
    // SAFETY: as above.
    unsafe { std::env::remove_var(WISH) };
    if fault == "stop" {
        // It would be replaced in time; here it is not waited for.
        offspring::shutdown();
    }
    longest
}

/// Who has the wish to come to harm as a parent: one unit runs, another gives its result, and all is shut down.
pub(crate) fn parent() {
    let endless = Offspring::builder(Endless).spawn();
    let result = builder().spawn().and_then(Offspring::wait);
    drop(endless);
    offspring::shutdown();
    std::process::exit(match result {
        Ok(7) => 0,
        Err(error) if is_typed(&error) => 0,
        _ => 1,
    });
}

/// A parent with the wish: it ends as the fault has it, and nobody is left; or it goes on after a stop, and does all it had to.
fn of_parent(job: &Job, wish: &str, fault: &str) -> Duration {
    let tag = tag_below("parent");
    let mut command = copies::copy(&["step-parent"], &tag);
    command.env(WISH, wish).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let Ok(mut parent) = command.spawn() else {
        job.tally.fail("no parent");
        return Duration::ZERO;
    };
    let (mut stops, mut status) = (0, None);
    let is_over = eventually(|| {
        if fault == "stop" && state(parent.id()) == Some('T') {
            stops += 1;
            processes::signal(parent.id(), libc::SIGCONT);
        }
        status = parent.try_wait().ok().flatten();
        status.is_some()
    });
    if !is_over {
        let _ = parent.kill();
        let _ = parent.wait();
        job.tally.fail("the parent hangs");
    }
    let is_right = |status: ExitStatus| match fault {
        "stop" => status.success() && stops > 0,
        _ => is_end_by(fault, status),
    };
    job.tally.check(status.is_none_or(is_right), || format!("the parent: {status:?}, {stops} stops"));
    match processes::until_gone(&tag, Instant::now(), Duration::from_secs(10)) {
        Ok(time) => time,
        Err(left) => {
            job.tally.fail(format!("orphans: {left:?}"));
            Duration::ZERO
        }
    }
}
