//! A process group of one's own: what the unit has started ends with it when it is ended, and only then.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::descendant::Descendant;
use harness::{eventually, is_alive};
use offspring::{Builder, ErrorKind, Offspring, Stdio, Subprocess, SubprocessLoop};
use serde::{Deserialize, Serialize};

/// With cgroups, where they can be had, and without.
const EVERY: [&str; 6] =
    ["exec", "zygote", "spare", "exec without cgroups", "zygote without cgroups", "spare without cgroups"];
const MAKERS: [&str; 4] = ["zygote", "spare", "zygote without cgroups", "spare without cgroups"];

const LONG: Duration = Duration::from_secs(3600);

/// What the unit does once it has told of its descendant.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Then {
    Sleep,
    /// Ignores TERM itself.
    Deaf,
    Return,
    Crash,
    /// Goes back into its parent's group.
    Leave,
}

/// Starts a descendant, prints its pid.
#[derive(Serialize, Deserialize)]
struct Leader(Descendant, Then);

impl Subprocess for Leader {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) {
        let pid = self.0.start();
        match self.1 {
            // SAFETY: sets a disposition.
            Then::Deaf => drop(unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) }),
            // SAFETY: changes this process's group.
            Then::Leave => assert_eq!(unsafe { libc::setpgid(0, libc::getpgid(libc::getppid())) }, 0),
            _ => {}
        }
        println!("{pid}");
        match self.1 {
            Then::Return => {}
            Then::Crash => std::process::abort(),
            _ => std::thread::sleep(LONG),
        }
    }
}

/// Starts one; gives the descendant's pid.
fn start(builder: Builder<()>) -> (Offspring<()>, u32) {
    let mut unit = builder.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(unit.take_stdout().unwrap()).read_line(&mut line).unwrap();
    (unit, line.trim().parse().unwrap())
}

fn leader(descendant: Descendant, then: Then) -> Builder<()> {
    Offspring::builder(Leader(descendant, then)).process_group()
}

/// Where a slow descendant leaves its mark.
fn mark() -> PathBuf {
    std::env::temp_dir().join(harness::tag())
}

/// How often the thread that watches has read something.
fn reads_of_the_reaper() -> usize {
    let of = |task: PathBuf| {
        let is_it = std::fs::read_to_string(task.join("comm")).ok()? == "offspring\n";
        let all = std::fs::read_to_string(task.join("io")).ok().filter(|_| is_it)?;
        all.lines().find_map(|line| line.strip_prefix("syscr: "))?.parse().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().find_map(|task| of(task.path())).unwrap()
}

fn group(pid: u32) -> i32 {
    // SAFETY: getpgid(2) has no conditions.
    unsafe { libc::getpgid(pid as i32) }
}

/// Sleeps until it is ended; gives its group.
#[derive(Serialize, Deserialize)]
struct Looper;

impl SubprocessLoop for Looper {
    type Output = (u32, i32);
    const PROCESS_GROUP: bool = true;

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        ControlFlow::Continue(LONG)
    }

    fn end(self) -> (u32, i32) {
        (std::process::id(), group(0))
    }
}

/// Tells its group when it is decoded.
#[derive(Serialize)]
struct Early(i32);

impl<'de> Deserialize<'de> for Early {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i32::deserialize(deserializer).map(|_| Self(group(0)))
    }
}

impl Subprocess for Early {
    type Output = (u32, i32);

    fn run(self) -> (u32, i32) {
        (std::process::id(), self.0)
    }
}

/// A parent that starts a unit with a descendant, prints the descendant's pid, and dies.
#[derive(Serialize, Deserialize)]
struct Parent {
    descendant: Descendant,
    then: Then,
    /// The grace of its unit.
    grace: Duration,
    /// How many have gone before, so that the unit is made by the launcher in question.
    before: u32,
}

impl Subprocess for Parent {
    type Output = ();

    fn run(self) {
        for _ in 0..self.before {
            offspring::spawn((), |()| ()).unwrap().wait().unwrap();
        }
        let (unit, pid) = start(leader(self.descendant, self.then).shutdown_timeout(self.grace));
        if self.then == Then::Return {
            unit.wait().unwrap();
        } else {
            std::mem::forget(unit);
        }
        println!("{pid}");
        harness::kill(std::process::id(), libc::SIGKILL);
    }
}

/// Lets a parent die; gives the descendant's pid.
fn die(parent: Parent) -> u32 {
    let (unit, pid) = start(Offspring::builder(parent));
    let error = unit.wait().unwrap_err();
    assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGKILL));
    pid
}

fn parent(descendant: Descendant, then: Then) -> Parent {
    Parent { descendant, then, grace: Duration::from_millis(50), before: 0 }
}

behaviour! { through EVERY;
    fn a_unit_leads_a_group_before_any_of_its_code_runs() {
        let (pid, group_of_it) = Offspring::builder(Early(0)).process_group().spawn().unwrap().wait().unwrap();
        assert_eq!(group_of_it, pid as i32);
        let (pid, group_of_it) = Offspring::new(Looper).unwrap().shutdown().unwrap().unwrap();
        assert_eq!(group_of_it, pid as i32);
        let (_, group_of_it) = Early(0).spawn().unwrap().wait().unwrap();
        assert_eq!(group_of_it, group(0));
    }

    fn a_shutdown_ends_the_whole_group_before_it_returns() {
        for then in [Then::Sleep, Then::Deaf] {
            for descendant in [Descendant::Good, Descendant::Deaf] {
                let (unit, pid) = start(leader(descendant, then));
                assert_eq!(unit.shutdown().unwrap(), None);
                assert!(!is_alive(pid), "{descendant:?} lives");
            }
        }
    }

    fn what_outlives_the_unit_has_the_rest_of_its_grace_and_no_more_is_waited() {
        let (mark, begun) = (mark(), Instant::now());
        let (unit, pid) = start(leader(Descendant::Slow, Then::Sleep).env("MARK", &mark).shutdown_timeout(LONG));
        assert_eq!(unit.shutdown().unwrap(), None);
        assert!(!is_alive(pid) && mark.exists());
        assert!(begun.elapsed() < LONG / 10);
        std::fs::remove_file(mark).unwrap();
    }

    fn a_stopped_descendant_ends_as_well() {
        // While its leader lives: when that ends, the kernel itself lets it go on.
        let (unit, pid) = start(leader(Descendant::Good, Then::Deaf).shutdown_timeout(LONG));
        harness::kill(pid, libc::SIGSTOP);
        eventually("it does not stop", || harness::state(pid) == Some('T'));
        let process = unit.process().unwrap().clone();
        process.begin_shutdown();
        eventually("the descendant lives", || !is_alive(pid));
        assert!(process.is_alive());
        process.kill().unwrap();
        unit.wait().unwrap_err();
    }

    fn a_unit_with_units_of_its_own_ends_with_all_of_them() {
        #[derive(Serialize, Deserialize)]
        struct Grandparent;
        impl Subprocess for Grandparent {
            type Output = ();
            fn run(self) {
                // So that there is a zygote, and spares.
                offspring::spawn((), |()| ()).unwrap().wait().unwrap();
                let unit = offspring::spawn((), |()| std::thread::sleep(LONG)).unwrap();
                println!("{}", unit.process().unwrap().id());
                unit.wait().unwrap();
            }
        }
        let begun = Instant::now();
        let (unit, pid) = start(Offspring::builder(Grandparent).process_group().shutdown_timeout(LONG));
        assert_eq!(unit.shutdown().unwrap(), None);
        assert!(!is_alive(pid));
        assert_eq!(harness::tagged(&harness::tag()), []);
        assert!(begun.elapsed() < LONG / 10);
    }

    fn a_timeout_ends_the_group() {
        for descendant in [Descendant::Good, Descendant::Deaf] {
            let (unit, pid) = start(leader(descendant, Then::Sleep).timeout(Duration::from_secs(2)));
            assert!(is_alive(pid));
            assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::TimedOut);
            eventually("the descendant lives", || !is_alive(pid));
        }
    }

    fn the_parents_exit_waits_for_the_group() {
        let all = Descendant::ALL.map(|descendant| start(leader(descendant, Then::Sleep).env("MARK", mark())));
        offspring::shutdown();
        for ((unit, pid), descendant) in all.into_iter().zip(Descendant::ALL) {
            assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::ShuttingDown);
            assert!(!is_alive(pid), "{descendant:?} lives");
        }
    }

    fn a_begun_shutdown_reaches_the_group_and_signals_the_process_alone() {
        for descendant in [Descendant::Good, Descendant::Deaf] {
            let (unit, pid) = start(leader(descendant, Then::Sleep));
            unit.process().unwrap().begin_shutdown();
            drop(unit);
            eventually("the descendant lives", || !is_alive(pid));
            let (unit, pid) = start(leader(descendant, Then::Sleep));
            unit.process().unwrap().kill().unwrap();
            unit.wait().unwrap_err();
            assert!(is_alive(pid));
            harness::kill(pid, libc::SIGKILL);
            eventually("it stays", || !is_alive(pid));
        }
    }

    fn a_unit_that_ends_by_itself_leaves_the_others_alone() {
        for then in [Then::Return, Then::Crash] {
            let (mut unit, pid) = start(leader(Descendant::Good, then).shutdown_timeout(LONG));
            assert_eq!(unit.wait_timeout(LONG).is_ok(), then == Then::Return);
            drop(unit);
            offspring::shutdown();
            assert!(is_alive(pid));
            harness::kill(pid, libc::SIGKILL);
            eventually("it stays", || !is_alive(pid));
        }
    }

    fn one_that_runs_away_from_signals_is_caught() {
        for then in [Then::Sleep, Then::Deaf] {
            let mut unit = leader(Descendant::Runaway, then).stdout(Stdio::piped()).spawn().unwrap();
            let mut output = BufReader::new(unit.take_stdout().unwrap());
            output.read_line(&mut String::new()).unwrap();
            let begun = Instant::now();
            assert_eq!(unit.shutdown().unwrap(), None);
            // All of them hold its other end; nobody who looks for them can be sure to see one.
            output.read_to_end(&mut Vec::new()).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(30), "it ended by itself");
        }
    }

    fn a_unit_that_left_its_group_ends_and_the_group_too() {
        let (unit, pid) = start(leader(Descendant::Good, Then::Leave));
        assert_ne!(group(pid), group(0));
        assert_eq!(group(unit.process().unwrap().id()), group(0));
        assert_eq!(unit.shutdown().unwrap(), None);
        assert!(!is_alive(pid));
    }

    fn without_a_group_of_its_own_what_it_has_started_is_let_be() {
        let (unit, pid) = start(Offspring::builder(Leader(Descendant::Good, Then::Sleep)));
        assert_eq!(unit.shutdown().unwrap(), None);
        assert!(is_alive(pid));
        harness::kill(pid, libc::SIGKILL);
        eventually("it stays", || !is_alive(pid));
    }

    fn the_group_ends_when_the_parent_dies() {
        let pid = die(parent(Descendant::Good, Then::Sleep));
        eventually("the descendant lives", || !is_alive(pid));
    }

    fn an_older_kernel_ends_the_group_with_its_leader() {
        // As before Linux 6.9.
        let group_flag = 1 << 2;
        if !harness::can("a filter", harness::filter_argument(libc::SYS_pidfd_send_signal, 3, group_flag, libc::EINVAL)) {
            return;
        }
        for (descendant, then) in [(Descendant::Good, Then::Sleep), (Descendant::Deaf, Then::Sleep), (Descendant::Deaf, Then::Deaf)] {
            let (unit, pid) = start(leader(descendant, then).shutdown_timeout(Duration::from_millis(200)));
            assert_eq!(unit.shutdown().unwrap(), None);
            // KILL has been sent, and takes a moment.
            eventually("the descendant lives", || !is_alive(pid));
        }
    }
}

behaviour! { through ["zygote"];
    fn the_rests_of_many_groups_cost_the_thread_that_watches_one_look() {
        const GROUPS: usize = 40;
        let all: Vec<_> = (0..GROUPS)
            .map(|_| start(leader(Descendant::Deaf, Then::Sleep).shutdown_timeout(LONG)))
            .collect();
        for (unit, _) in &all {
            unit.process().unwrap().begin_shutdown();
        }
        eventually("a leader lives", || all.iter().all(|(unit, _)| !unit.process().unwrap().is_alive()));
        let (before, begun) = (reads_of_the_reaper(), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        let reads = reads_of_the_reaper() - before;
        let took = begun.elapsed();
        for (unit, pid) in all {
            harness::kill(pid, libc::SIGKILL);
            assert_eq!(unit.shutdown().unwrap(), None);
        }
        // It looks twenty times a second, and after a new one some times more.
        let looks = took.as_millis() as usize / 50 + 20;
        assert!(reads < looks * GROUPS * 8, "{reads} reads in {looks} looks");
    }
}

behaviour! { through MAKERS;
    fn the_zygote_sees_to_those_that_outlive_the_unit_and_the_parent() {
        for then in [Then::Sleep, Then::Deaf] {
            let pid = die(parent(Descendant::Deaf, then));
            eventually("the descendant lives", || !is_alive(pid));
        }
    }

    fn what_outlives_both_has_its_grace() {
        let mark = mark();
        let builder = Offspring::builder(Parent { grace: LONG, ..parent(Descendant::Slow, Then::Sleep) });
        let (unit, pid) = start(builder.env("MARK", &mark));
        unit.wait().unwrap_err();
        eventually("the descendant lives", || !is_alive(pid));
        assert!(mark.exists());
        // The zygote does not wait for a grace of which nobody has need.
        eventually("the zygote is left", || harness::tagged(&harness::tag()).is_empty());
        std::fs::remove_file(mark).unwrap();
    }

    fn what_a_unit_left_that_ended_by_itself_survives_the_parent() {
        let pid = die(parent(Descendant::Good, Then::Return));
        eventually("the zygote is left", || harness::tagged(&harness::tag()) == [pid]);
        harness::kill(pid, libc::SIGKILL);
        eventually("it stays", || !is_alive(pid));
    }

    fn a_zygote_gives_its_children_no_descriptors_of_others() {
        let leaders: Vec<_> = (0..4).map(|_| start(leader(Descendant::Good, Then::Sleep))).collect();
        let zygote = harness::zygote().unwrap();
        let held = || std::fs::read_dir(format!("/proc/{zygote}/fd")).unwrap().count();
        // Streams, line, the parent's pidfd; and the leaders'. A spare that is being made has some more.
        eventually("it has others", || held() == 5 + leaders.len());
        for _ in 0..4 {
            let open = offspring::spawn((), |()| std::fs::read_dir("/proc/self/fd").unwrap().count());
            // Streams, line, and the directory that is read.
            assert_eq!(open.unwrap().wait().unwrap(), 5);
        }
        for (unit, _) in leaders {
            assert_eq!(unit.shutdown().unwrap(), None);
        }
        eventually("the zygote keeps them", || {
            std::fs::read_dir(format!("/proc/{zygote}/fd")).unwrap().count() == 5
        });
    }
}

behaviour! { through ["auto", "auto without cgroups"];
    fn one_that_was_executed_is_entrusted_to_the_zygote_with_its_group() {
        // The very first is executed while the zygote is being made, and entrusted to it when it is ready.
        let (unit, pid) = start(Offspring::builder(Parent { grace: LONG, ..parent(Descendant::Slow, Then::Sleep) }).env("MARK", mark()));
        unit.wait().unwrap_err();
        eventually("the descendant lives", || !is_alive(pid));
        eventually("its mark is not there", || mark().exists());
        std::fs::remove_file(mark()).unwrap();
        let pid = die(Parent { before: 2, ..parent(Descendant::Deaf, Then::Sleep) });
        eventually("the descendant lives", || !is_alive(pid));
    }
}
