//! Every step of the protocol, every fault, in each of the processes, and each case in a process of its own: nobody hangs, there is
//! an error of the right kind at once, or a right result where the library can go on, and the next start works.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::fmt::Debug;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use harness::{Case, eventually};
use offspring::{Builder, Error, ErrorKind, Offspring, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

const DEADLY: [&str; 3] = ["kill", "exit", "abort"];
const FAULTS: [&str; 5] = ["kill", "exit", "abort", "stop", "garbage"];

/// What a child that dies there is: one that never ran, one without a result, one whose result is home.
const BEFORE: [&str; 4] = ["boot", "received", "setup", "decoded"];
const BETWEEN: [&str; 4] = ["go", "ready", "ran", "result"];
const AFTER: [&str; 2] = ["sent", "end"];

/// A fault is known in less than a second; under load in less than this. Nothing else that could end a start or a unit is as short.
const AT_ONCE: Duration = Duration::from_secs(10);
/// What a start may take where it is not this that is to end it.
const LONG: Duration = Duration::from_secs(60);
/// And where it is.
const SHORT: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize)]
struct Unit;

impl Subprocess for Unit {
    type Output = u32;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) -> u32 {
        7
    }
}

#[derive(Serialize, Deserialize)]
struct Awaited;

impl Subprocess for Awaited {
    type Output = u32;
    const WAIT_FOR_CHILD: bool = true;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) -> u32 {
        7
    }
}

#[derive(Serialize, Deserialize)]
struct Endless;

impl Subprocess for Endless {
    type Output = u32;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) -> u32 {
        std::thread::sleep(Duration::from_secs(3600));
        0
    }
}

/// Declares a walk: its launchers, whose steps they are, and the body, which is told the step and the fault.
macro_rules! walk {
    ($($name:ident: $launchers:expr, $process:expr, $steps:expr => $body:expr;)*) => {$(
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            let cases = cases(&$launchers, $process, $steps);
            harness::run_cases(&cases, path, 3, Duration::from_secs(100), |wish| {
                let mut parts = wish.split(':').skip(1);
                $body(wish, parts.next().unwrap(), parts.next().unwrap());
            });
        }
    )*};
}

fn cases(
    launchers: &[&'static str],
    process: &str,
    steps: impl IntoIterator<Item = &'static str> + Clone,
) -> Vec<Case> {
    let mut cases = Vec::new();
    for launcher in launchers {
        for step in steps.clone() {
            cases.extend(
                FAULTS
                    .iter()
                    .filter(|fault| is_possible(process, step, fault))
                    .map(|fault| (*launcher, format!("{process}:{step}:{fault}"))),
            );
        }
    }
    cases
}

/// A parent can say rubbish only where it has a line to somebody.
fn is_possible(process: &str, step: &str, fault: &str) -> bool {
    process != "parent"
        || fault != "garbage"
        || ["made", "hello", "asked", "launched", "told"].contains(&step)
}

/// The wish of the whole process: also of the zygote and of the spares that are made from now on.
fn wish(wish: &str) {
    // SAFETY: the tests here have one thread that uses the environment.
    unsafe { std::env::set_var("OFFSPRING_STEP", wish) };
}

/// What came of it, and that this took no long time.
fn soon<R>(what: impl FnOnce() -> R) -> R {
    let began = Instant::now();
    let result = what();
    assert!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
    result
}

/// A start without a wish of its own, and its result.
fn works() {
    assert_eq!(soon(|| builder(Unit).spawn().and_then(Offspring::wait)).unwrap(), 7);
}

fn builder<T: Subprocess<Output = u32>>(unit: T) -> Builder<u32> {
    Offspring::builder(unit).stderr(Stdio::null()).start_timeout(LONG)
}

fn assert_kind<T: Debug>(result: Result<T, Error>, kind: ErrorKind, word: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

/// Whether that is the end that the fault brings.
fn is_end_by(fault: &str, status: std::process::ExitStatus) -> bool {
    match fault {
        "kill" => status.signal() == Some(libc::SIGKILL),
        "abort" => status.signal() == Some(libc::SIGABRT),
        "exit" => status.code() == Some(9),
        // It was killed because of it, or was through already.
        _ => status.success() || [Some(libc::SIGKILL), Some(libc::SIGTERM)].contains(&status.signal()),
    }
}

/// Starts a child that has the wish, and looks whether what comes of it is right.
fn child_with<T: Subprocess<Output = u32>>(unit: T, wish: Option<&str>, step: &str, fault: &str) {
    let builder = wish.into_iter().fold(builder(unit), |builder, wish| builder.env("OFFSPRING_STEP", wish));
    // What is waited for is the word that follows.
    let is_before = BEFORE.contains(&step) || step == "go" && T::WAIT_FOR_CHILD;
    let builder = match fault {
        "stop" if is_before => builder.start_timeout(SHORT),
        "stop" if BETWEEN.contains(&step) => builder.timeout(SHORT),
        _ => builder,
    };
    let mut process = None;
    let result = soon(|| {
        builder.spawn().and_then(|unit| {
            process = unit.process().cloned();
            unit.wait()
        })
    });
    match (fault, step) {
        (_, step) if AFTER.contains(&step) => {
            assert_eq!(result.unwrap(), 7);
            assert!(is_end_by(fault, process.unwrap().exit_status().unwrap()));
        }
        ("garbage", _) => assert_kind(result, ErrorKind::Died, "something else than messages"),
        ("stop", _) if is_before => assert_kind(result, ErrorKind::Start, "in time"),
        ("stop", _) => assert_kind(result, ErrorKind::TimedOut, ""),
        (_, step) => {
            let death = result.as_ref().unwrap_err().death().unwrap().status();
            assert!(is_end_by(fault, death), "{death}");
            assert_kind(result, if BEFORE.contains(&step) { ErrorKind::Start } else { ErrorKind::Died }, "");
        }
    }
}

fn child(wish: &str, step: &str, fault: &str) {
    child_with(Unit, Some(wish), step, fault);
    works();
    child_with(Awaited, Some(wish), step, fault);
    works();
    if fault == "stop" && BETWEEN.contains(&step) {
        // It may be asked before it has stopped, and end at the step or before it; or go on after CONT.
        let unit = builder(Unit).env("OFFSPRING_STEP", wish).spawn().unwrap();
        assert!(matches!(soon(|| unit.shutdown()), Ok(None | Some(7))));
    }
}

/// The units of spares that have the wish.
fn spare(asked: &str, step: &str, fault: &str) {
    wish(asked);
    child_with(Unit, None, step, fault);
    child_with(Awaited, None, step, fault);
    after_spares();
}

/// Spares that come to harm before there is a unit for them.
fn parked(asked: &str, _: &str, fault: &str) {
    wish(asked);
    // This one is executed.
    works();
    if fault == "stop" {
        eventually("no spare stops", || {
            harness::spares().iter().any(|pid| harness::state(*pid) == Some('T'))
        });
    }
    let mut failed = 0;
    for _ in 0..20 {
        match soon(|| {
            builder(Unit)
                .start_timeout(if fault == "stop" { SHORT } else { LONG })
                .spawn()
                .and_then(Offspring::wait)
        }) {
            Ok(7) => {}
            Err(error) => {
                // It got the unit while it was on its way there.
                let (kind, word) = match fault {
                    "stop" => (ErrorKind::Start, "in time"),
                    "garbage" => (ErrorKind::Died, "something else than messages"),
                    _ => (ErrorKind::Start, "died"),
                };
                assert_kind(Err::<(), _>(error), kind, word);
                failed += 1;
            }
            Ok(other) => panic!("{other}"),
        }
    }
    assert!(failed > 0 || DEADLY.contains(&fault));
    after_spares();
}

/// From now on there is no wish; but spares that are there may have one still.
fn after_spares() {
    wish("");
    let mut right = 0;
    for _ in 0..60 {
        let result =
            soon(|| builder(Unit).start_timeout(SHORT).timeout(SHORT).spawn().and_then(Offspring::wait));
        right = if result.is_ok() { right + 1 } else { 0 };
        if right == 5 {
            return works();
        }
    }
    panic!("starts go on to fail");
}

/// Every zygote has the wish.
fn zygotes(asked: &str, step: &str, fault: &str) {
    wish(asked);
    let start = || {
        // As long as one that is silent may take, and longer.
        let time = if DEADLY.contains(&fault) { Duration::from_secs(1) } else { Duration::from_secs(3) };
        let time = if ["boot", "welcomed"].contains(&step) && fault != "stop" { LONG } else { time };
        soon(|| builder(Unit).start_timeout(time).spawn().and_then(Offspring::wait))
    };
    let result = start();
    match (step, fault) {
        ("boot" | "welcomed", "kill") => assert_kind(result, ErrorKind::Start, "signal: 9"),
        ("boot" | "welcomed", "exit") => assert_kind(result, ErrorKind::Start, "exit status: 9"),
        ("boot" | "welcomed", "abort") => assert_kind(result, ErrorKind::Start, "signal: 6"),
        ("boot" | "welcomed", "garbage") => assert_kind(result, ErrorKind::Start, "zygote"),
        // The child is made.
        ("cloned" | "told", _) | (_, "garbage") => assert_eq!(result.unwrap(), 7),
        _ => assert_kind(result, ErrorKind::Start, "in time"),
    }
    wish("");
    if fault == "stop" {
        offspring::shutdown();
    }
    works();
    works();
}

/// The first zygote alone has the wish: nobody notices, or at the worst one start.
fn one_zygote(asked: &str, step: &str, fault: &str) {
    wish(asked);
    // This one is executed, and the zygote made meanwhile.
    works();
    wish("");
    if fault == "stop" && ["boot", "welcomed"].contains(&step) {
        // It has five seconds for its constructors.
        let result =
            soon(|| builder(Unit).start_timeout(Duration::from_secs(6)).spawn().and_then(Offspring::wait));
        assert_kind(result, ErrorKind::Start, "in time");
    }
    (0..5).for_each(|_| works());
}

/// A parent that takes the wish upon itself, for a start of its own. What it tells: two results.
fn parent_with(asked: String) -> (Result<u32, String>, Result<u32, String>) {
    let told = |result: Result<u32, Error>| result.map_err(|error| format!("{:?}", error.kind()));
    let is_deadly = DEADLY.iter().any(|fault| asked.ends_with(fault));
    let is_waited_for = asked.contains(":ended:") || asked.contains(":reaped:");
    wish(&asked);
    if is_deadly && !is_waited_for {
        let _unit = builder(Endless).spawn();
        if asked.contains(":parked:") {
            std::thread::sleep(Duration::from_secs(3600));
        }
        offspring::shutdown();
        // It is to be dead by now.
        return (Ok(0), Ok(0));
    }
    let first = told(builder(Unit).spawn().and_then(Offspring::wait));
    offspring::shutdown();
    wish("");
    (first, told(builder(Unit).spawn().and_then(Offspring::wait)))
}

fn parent(asked: &str, step: &str, fault: &str) {
    let parent = offspring::spawn(asked.to_owned(), parent_with).unwrap();
    let process = parent.process().unwrap().clone();
    if fault == "stop" {
        let mut stops = 0;
        // There may be several spares.
        eventually("it does not go on", || {
            if harness::state(process.id()) == Some('T') {
                process.send_signal(libc::SIGCONT).unwrap();
                stops += 1;
            }
            !process.is_alive()
        });
        assert!(stops > 0);
    }
    let result = soon(|| parent.wait());
    if DEADLY.contains(&fault) {
        let death = result.unwrap_err().death().unwrap().status();
        assert!(is_end_by(fault, death), "{death}");
    } else {
        let (first, second) = result.unwrap();
        // Its child hears rubbish in the place of its unit.
        let expected = if (step, fault) == ("launched", "garbage") { Err("Start".to_owned()) } else { Ok(7) };
        assert_eq!((first, second), (expected, Ok(7)));
    }
    no_orphan();
}

fn no_orphan() {
    eventually("an orphan is left", || harness::tagged(&harness::tag()).is_empty());
}

/// A zygote that comes to harm when it sees to its dead parent's children: those have their own guard.
fn mourner(asked: &str, _: &str, fault: &str) {
    let unit = offspring::spawn(asked.to_owned(), |asked: String| {
        wish(&asked);
        let units = [0, 1].map(|_| builder(Endless).spawn().unwrap());
        harness::kill(std::process::id(), libc::SIGKILL);
        drop(units);
    });
    assert!(soon(|| unit.unwrap().wait()).is_err());
    if fault == "stop" {
        // It alone may stay: what wakes it at the parent's death may have come before.
        let left = || harness::tagged(&harness::tag());
        let is_stopped = |pid: &u32| harness::state(*pid) == Some('T');
        eventually("units are left", || left().len() <= 1 && left().iter().all(is_stopped));
        left().into_iter().for_each(|pid| harness::kill(pid, libc::SIGKILL));
    }
    no_orphan();
}

const ALONE: [&str; 8] = ["launch", "entered", "launched", "told", "queued", "ended", "reaped", "closing"];

walk! {
    children: ["exec", "zygote"], "child", BEFORE.into_iter().chain(BETWEEN).chain(AFTER) => child;
    units_of_spares: ["spare"], "spare", BEFORE.into_iter().skip(1).chain(BETWEEN).chain(AFTER) => spare;
    spares_without_a_unit: ["auto"], "spare", ["boot", "parked"] => parked;
    all_zygotes: ["zygote"], "zygote", ["boot", "welcomed", "ready", "asked", "begun", "cloned", "told"] => zygotes;
    the_first_zygote: ["auto"], "zygote", ["boot", "welcomed", "ready", "asked", "begun", "cloned", "told"] => one_zygote;
    mourning_zygotes: ["zygote", "spare"], "zygote", ["mourning"] => mourner;
    parents: ["exec", "zygote", "spare"], "parent", ALONE => parent;
    parents_that_wait_for_a_birth: ["exec", "zygote"], "parent", ["born"] => parent;
    parents_with_a_zygote: ["zygote", "spare"], "parent", ["made", "hello"] => parent;
    parents_that_ask: ["zygote"], "parent", ["asked"] => parent;
    parents_with_a_spare: ["spare"], "parent", ["parked"] => parent;
}
