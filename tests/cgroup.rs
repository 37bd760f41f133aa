//! A cgroup of one's own: what a unit has started ends with it though it has left the process group, and nothing of the cgroup is left.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;
#[path = "cgroup/home.rs"]
mod home;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::descendant::Descendant;
use harness::told::Told;
use harness::{can, eventually, is_alive};
use home::{Home, enter, hide_all};
use offspring::{Builder, EndedBy, ErrorKind, Limit, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(50);
const MIB: u64 = 1 << 20;

/// Every launcher, and the library's own choice.
const EVERY: [&str; 4] = ["auto", "exec", "zygote", "spare"];

/// In a process of its own, which is a unit: does it in such a home.
fn at_home(work: impl FnOnce(&Home)) {
    if let Some(home) = Home::new(&harness::place("cgroup")) {
        work(&home);
    }
}

/// What has begun there is good.
fn good(unit: Result<Offspring<()>, offspring::Error>) {
    unit.unwrap().wait().unwrap();
}

/// The cgroup that a process is in.
fn place_of(pid: u32) -> String {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
}

/// What the unit does once it has told of its daemon.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Then {
    Sleep,
    /// Ignores TERM itself.
    Deaf,
    Return,
}

/// Starts a daemon, prints its pid.
#[derive(Serialize, Deserialize)]
struct Leader(Descendant, Then);

impl Subprocess for Leader {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(SHORT);
    const PROCESS_GROUP: bool = true;

    fn run(self) {
        let pid = self.0.start_apart();
        if self.1 == Then::Deaf {
            // SAFETY: sets a disposition.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        }
        println!("{pid}");
        if self.1 != Then::Return {
            std::thread::sleep(LONG);
        }
    }
}

fn mark() -> PathBuf {
    harness::place("mark")
}

fn leader(daemon: Descendant, then: Then) -> Builder<()> {
    Offspring::builder(Leader(daemon, then)).env("MARK", mark())
}

/// Starts one; gives the pid that it prints.
fn start(builder: Builder<()>) -> (Offspring<()>, u32) {
    let mut unit = builder.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(unit.take_stdout().unwrap()).read_line(&mut line).unwrap();
    (unit, line.trim().parse().unwrap())
}

fn end(pid: u32) {
    harness::kill(pid, libc::SIGKILL);
    eventually("it stays", || !is_alive(pid));
}

/// A parent that starts a unit with a daemon, prints the daemon's pid, and dies, with its zygote or without.
#[derive(Serialize, Deserialize)]
struct Parent {
    daemon: Descendant,
    then: Then,
    grace: Duration,
    takes_zygote: bool,
}

impl Subprocess for Parent {
    type Output = ();

    fn run(self) {
        let (unit, pid) = start(leader(self.daemon, self.then).shutdown_timeout(self.grace));
        std::mem::forget(unit);
        if self.takes_zygote {
            // It is not to see its parent die.
            harness::zygotes().iter().for_each(|zygote| harness::kill(*zygote, libc::SIGSTOP));
            harness::zygotes().iter().for_each(|zygote| harness::kill(*zygote, libc::SIGKILL));
        }
        println!("{pid}");
        harness::kill(std::process::id(), libc::SIGKILL);
    }
}

/// Lets a parent die; gives the daemon's pid.
fn die(parent: Parent) -> u32 {
    let (unit, pid) = start(Offspring::builder(parent));
    unit.wait().unwrap_err();
    pid
}

/// Where it is when it is decoded.
#[derive(Serialize)]
struct Early(String);

impl<'de> Deserialize<'de> for Early {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|_| Self(place_of(std::process::id())))
    }
}

impl Subprocess for Early {
    type Output = String;

    fn run(self) -> String {
        self.0
    }
}

/// Takes so much memory that is nobody's address space.
#[derive(Serialize, Deserialize)]
struct Hoard(u64);

impl Subprocess for Hoard {
    type Output = ();

    fn run(self) {
        use std::io::Write;
        // SAFETY: a constant name; a new descriptor.
        let mut file: std::fs::File =
            unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::memfd_create(c"hoard".as_ptr(), 0)) };
        for _ in 0..self.0 / MIB {
            file.write_all(&vec![1; MIB as usize]).unwrap();
        }
    }
}

/// Starts so many threads that stay; how many it can.
#[derive(Serialize, Deserialize)]
struct Threads(usize);

impl Subprocess for Threads {
    type Output = usize;

    fn run(self) -> usize {
        let start = |_| std::thread::Builder::new().spawn(|| std::thread::sleep(LONG)).ok();
        (0..self.0).map_while(start).count()
    }
}

/// As without cgroups: the group ends, and who has left it does not.
fn is_as_without(home: Option<&Home>) {
    let own = place_of(std::process::id());
    for _ in 0..2 {
        let early = Offspring::builder(Early(String::new())).process_group().spawn().unwrap();
        assert_eq!(early.wait().unwrap(), own);
    }
    let (unit, pid) = start(leader(Descendant::Good, Then::Deaf));
    assert!(home.is_none_or(|home| home.below().is_empty()));
    assert_eq!(unit.shutdown().unwrap(), None);
    assert!(is_alive(pid));
    end(pid);
}

behaviour! { through EVERY;
    fn a_unit_is_in_a_cgroup_of_its_own_before_any_of_its_code_runs() {
        good(spawn((), |()| at_home(|home| {
            let own = place_of(std::process::id());
            let early = || Offspring::builder(Early(String::new()));
            for _ in 0..3 {
                let place = early().process_group().spawn().unwrap().wait().unwrap();
                assert!(place.starts_with(&format!("{own}/offspring.{}.", std::process::id())), "{place}");
                // Whoever reaps it, if it is not who waits, removes it in the next moment.
                eventually("it is left", || home.below().is_empty());
                assert_eq!(early().spawn().unwrap().wait().unwrap(), own);
            }
        })));
    }

    fn a_shutdown_ends_who_has_left_the_group() {
        good(spawn((), |()| at_home(|home| {
            for (daemon, then) in [(Descendant::Good, Then::Sleep), (Descendant::Deaf, Then::Sleep), (Descendant::Deaf, Then::Deaf)] {
                let (unit, pid) = start(leader(daemon, then));
                assert_eq!(place_of(pid), place_of(unit.process().unwrap().id()));
                assert_eq!(home.below().len(), 1);
                assert_eq!(unit.shutdown().unwrap(), None);
                assert!(!is_alive(pid), "{daemon:?} lives");
                eventually("one is left", || home.below().is_empty());
            }
        })));
    }

    fn who_has_left_the_group_hears_term_and_has_the_rest_of_the_grace() {
        good(spawn((), |()| at_home(|_| {
            let begun = Instant::now();
            let (unit, pid) = start(leader(Descendant::Slow, Then::Sleep).shutdown_timeout(LONG));
            assert_eq!(unit.shutdown().unwrap(), None);
            assert!(!is_alive(pid) && mark().exists());
            assert!(begun.elapsed() < LONG / 10);
            std::fs::remove_file(mark()).unwrap();
        })));
    }

    fn a_timeout_and_the_parents_exit_do_so_too() {
        good(spawn((), |()| at_home(|home| {
            let (unit, pid) = start(leader(Descendant::Deaf, Then::Sleep).timeout(Duration::from_secs(2)));
            assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::TimedOut);
            eventually("the daemon lives", || !is_alive(pid));
            eventually("its cgroup stays", || home.below().is_empty());
            let all = Descendant::ALL.map(|daemon| start(leader(daemon, Then::Sleep).shutdown_timeout(LONG / 3600)));
            assert_eq!(home.below().len(), 3);
            offspring::shutdown();
            assert!(all.iter().all(|(_, pid)| !is_alive(*pid)) && mark().exists());
            eventually("one is left", || home.below().is_empty());
            std::fs::remove_file(mark()).unwrap();
        })));
    }

    fn a_unit_that_ends_by_itself_leaves_them_alone() {
        good(spawn((), |()| at_home(|home| {
            let (unit, pid) = start(leader(Descendant::Good, Then::Return).shutdown_timeout(LONG));
            unit.wait().unwrap();
            assert!(is_alive(pid));
            assert_eq!(home.below().len(), 1);
            end(pid);
            eventually("its cgroup stays", || home.below().is_empty());
            // One that goes on when there is nobody any more who would look.
            let (unit, pid) = start(leader(Descendant::Good, Then::Return));
            unit.wait().unwrap();
            offspring::shutdown();
            assert!(is_alive(pid));
            end(pid);
            assert_eq!(home.below().len(), 1);
            let left = home.below();
            let (unit, _) = start(leader(Descendant::Good, Then::Sleep));
            assert!(home.below().len() == 1 && home.below() != left, "{left:?}");
            unit.shutdown().unwrap();
        })));
    }

    fn a_unit_with_units_of_its_own_ends_with_all_of_them() {
        #[derive(Serialize, Deserialize)]
        struct Grandparent(bool);
        impl Subprocess for Grandparent {
            type Output = ();
            const PROCESS_GROUP: bool = true;
            fn run(self) {
                if !self.0 {
                    return (0..2).for_each(|_| good(spawn((), |()| ())));
                }
                let (unit, pid) = start(leader(Descendant::Deaf, Then::Deaf).shutdown_timeout(LONG));
                println!("{pid}");
                // Its own units are not to have time for anything.
                // SAFETY: sets a disposition.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                unit.wait().unwrap();
            }
        }
        good(spawn((), |()| at_home(|home| {
            let (unit, pid) = start(Offspring::builder(Grandparent(true)).shutdown_timeout(SHORT));
            assert!(place_of(pid).starts_with(&format!("{}/", place_of(unit.process().unwrap().id()))));
            assert_eq!(unit.shutdown().unwrap(), None);
            assert!(!is_alive(pid));
            eventually("one is left", || home.below().is_empty());
            // Its zygote ends a moment after it.
            good(Offspring::new(Grandparent(false)));
            eventually("its cgroup stays", || home.below().is_empty());
        })));
    }

    fn without_such_a_hierarchy_all_is_as_before() {
        good(spawn((), |()| {
            if !harness::own_mounts() {
                return;
            }
            hide_all();
            // Who is told of it starts such a unit himself.
            let told = Told::listen_and("no cgroups can be made", || {
                let unit = Offspring::builder(Threads(0)).process_group().spawn().unwrap();
                assert_eq!(unit.wait().unwrap(), 0);
            });
            is_as_without(None);
            let why: Vec<_> = told.events().into_iter().filter(|said| said.text.contains("no cgroups can be made")).collect();
            assert_eq!(why.len(), 1, "{why:?}");
            assert!(told.warnings().is_empty() || !told.warnings().iter().any(|text| text.contains("cgroup")));
        }));
    }

    fn where_none_can_be_made_all_is_as_before() {
        good(spawn((), |()| at_home(|home| {
            assert!(harness::mount(c"none", &home.root, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY));
            is_as_without(Some(home));
            offspring::shutdown();
            assert!(harness::mount(c"none", &home.root, libc::MS_REMOUNT | libc::MS_BIND));
            // No more below it.
            std::fs::write(home.path.join("cgroup.max.descendants"), "0").unwrap();
            is_as_without(Some(home));
            offspring::shutdown();
            std::fs::write(home.path.join("cgroup.max.descendants"), "max").unwrap();
            // One for threads. It becomes one while nobody is there.
            assert!(enter(&home.root));
            std::fs::write(home.path.join("cgroup.type"), "threaded").unwrap();
            assert!(enter(&home.path));
            is_as_without(Some(home));
        })));
    }

    fn it_is_not_taken_for_empty_when_there_is_no_descriptor_to_look() {
        good(spawn((), |()| at_home(|_| {
            let (unit, pid) = start(leader(Descendant::Deaf, Then::Sleep).shutdown_timeout(SHORT));
            let all = harness::take_all_descriptors();
            let process = unit.process().unwrap();
            process.begin_shutdown();
            eventually("the unit lives", || !process.is_alive());
            drop(all);
            assert_eq!(unit.shutdown().unwrap(), None);
            assert!(!is_alive(pid));
        })));
    }

    fn the_superuser_has_none_where_they_are_not_delegated() {
        good(spawn((), |()| at_home(|home| {
            assert!(home.delegate(false));
            good(spawn((), |()| is_as_without(None)));
            assert!(home.delegate(true));
            good(spawn((), |()| {
                let (unit, pid) = start(leader(Descendant::Deaf, Then::Sleep));
                assert_eq!(unit.shutdown().unwrap(), None);
                assert!(!is_alive(pid));
            }));
        })));
    }

    fn another_user_has_them_where_they_are_delegated_to_him() {
        good(spawn((), |()| at_home(|home| {
            const USER: u32 = 65527;
            let give = |file: &str, to: u32| std::os::unix::fs::chown(home.path.join(file), Some(to), Some(to)).unwrap();
            // The directory alone is not enough.
            give("", USER);
            good(spawn((), |()| if harness::become_user(USER) { is_as_without(None) }));
            eventually("one is left", || home.below().is_empty());
            give("cgroup.procs", USER);
            good(spawn((), |()| if harness::become_user(USER) {
                let (unit, pid) = start(leader(Descendant::Deaf, Then::Sleep));
                assert_eq!(unit.shutdown().unwrap(), None);
                assert!(!is_alive(pid));
            }));
        })));
    }

    fn limits_are_the_cgroups_too_where_it_has_them() {
        good(spawn((), |()| at_home(|home| {
            // A home has people in it, and hands on no controllers; the root may.
            let builder = || Offspring::builder(Early(String::new())).process_group();
            assert!(builder().limit_memory(4096 * MIB).limit_processes(10_000).spawn().unwrap().wait().is_ok());
            offspring::shutdown();
            enter(&home.root);
            let handed = std::fs::read_to_string(home.root.join("cgroup.subtree_control")).unwrap();
            if can("a controller of memory", handed.contains("memory")) {
                let limit = Limit::Memory(256 * MIB);
                let hoard = |bytes| Offspring::builder(Hoard(bytes)).process_group().limit_memory(256 * MIB);
                hoard(MIB).spawn().unwrap().wait().unwrap();
                let error = hoard(1024 * MIB).spawn().unwrap().wait().unwrap_err();
                assert_eq!(error.limit(), Some(limit), "{error}");
                assert_eq!(error.death().unwrap().ended_by(), EndedBy::Limit(limit));
                // Of somebody else's doing.
                let (unit, _) = start(leader(Descendant::Good, Then::Sleep).limit_memory(256 * MIB));
                unit.process().unwrap().kill().unwrap();
                assert_eq!(unit.wait().unwrap_err().death().unwrap().ended_by(), EndedBy::Other);
            }
            if can("a controller of processes", handed.contains("pids")) {
                let spawns = |most| Offspring::builder(Threads(3)).process_group().limit_processes(most).spawn();
                assert_eq!(spawns(100).unwrap().wait().unwrap(), 3);
                assert_eq!(spawns(3).unwrap().wait().unwrap(), 2);
            }
            offspring::shutdown();
            enter(&home.path);
        })));
    }
}

behaviour! { through ["zygote", "spare"];
    fn the_zygote_ends_them_when_the_parent_dies() {
        good(spawn((), |()| at_home(|home| {
            for then in [Then::Sleep, Then::Deaf] {
                let pid = die(Parent { daemon: Descendant::Deaf, then, grace: SHORT, takes_zygote: false });
                eventually("the daemon lives", || !is_alive(pid));
                eventually("its cgroup stays", || home.below().is_empty());
            }
            let pid = die(Parent { daemon: Descendant::Slow, then: Then::Sleep, grace: LONG, takes_zygote: false });
            eventually("the daemon lives", || !is_alive(pid));
            eventually("its cgroup stays", || home.below().is_empty());
            std::fs::remove_file(mark()).unwrap();
        })));
    }

    fn what_parent_and_zygote_have_left_is_removed_by_the_next() {
        good(spawn((), |()| at_home(|home| {
            let pid = die(Parent { daemon: Descendant::Deaf, then: Then::Sleep, grace: SHORT, takes_zygote: true });
            assert!(is_alive(pid));
            let left = home.below();
            assert_eq!(left.len(), 1);
            end(pid);
            eventually("the unit lives", || std::fs::read_to_string(left[0].join("cgroup.procs")).unwrap().is_empty());
            let (unit, _) = start(leader(Descendant::Good, Then::Sleep));
            assert!(home.below().len() == 1 && home.below() != left, "{left:?}");
            unit.shutdown().unwrap();
        })));
    }
}
