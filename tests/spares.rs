//! Children that are there before they are asked for: never in the way, never missed, and gone when nobody needs them.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use harness::{eventually, is_alive, spares, zygote, zygotes};
use offspring::{Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

fn double(n: u32) {
    assert_eq!(spawn(n, |n: u32| 2 * n).and_then(Offspring::wait).unwrap(), 2 * n);
}

/// Waits until there are spares, and knows them.
fn some_spares() -> Vec<u32> {
    let mut there = Vec::new();
    eventually("there are no spares", || {
        there = spares();
        there.len() >= 2
    });
    there
}

/// Waits until no signal is pending in any spare: each has heard of what came, and forgotten it.
fn all_forgotten() {
    let nothing = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status
            .lines()
            .filter(|line| line.starts_with("ShdPnd:"))
            .all(|line| line.ends_with("\t0000000000000000"))
    };
    eventually("a signal is pending", || spares().iter().all(nothing));
}

/// Leaves spares behind, tells their pids and its zygote's, and dies.
#[derive(Serialize, Deserialize)]
struct Parent {
    stops_them: bool,
    leaves_a_copy: bool,
}

impl Subprocess for Parent {
    type Output = ();

    fn run(self) {
        double(1);
        let there = some_spares();
        if self.stops_them {
            for pid in &there {
                harness::kill(*pid, libc::SIGSTOP);
                eventually("it does not stop", || harness::state(*pid) == Some('T'));
            }
        }
        // SAFETY: the copy only sleeps.
        if self.leaves_a_copy && unsafe { libc::fork() } == 0 {
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        let all: Vec<String> = there.iter().chain(&zygotes()).map(u32::to_string).collect();
        println!("{}", all.join(" "));
        harness::kill(std::process::id(), libc::SIGKILL);
    }
}

behaviour! { through ["auto"];
    fn each_is_given_one_unit() {
        let mut seen = BTreeSet::new();
        for _ in 0..50 {
            let pid = spawn((), |()| std::process::id()).unwrap().wait().unwrap();
            assert!(seen.insert(pid), "{pid} was given two units");
        }
    }

    fn those_that_die_are_not_missed() {
        double(1);
        for n in 0..20 {
            let there = some_spares();
            there.iter().for_each(|pid| harness::kill(*pid, libc::SIGKILL));
            eventually("one does not die", || there.iter().all(|pid| !is_alive(*pid)));
            (0..5).for_each(|m| double(10 * n + m));
        }
    }

    fn those_that_are_stopped_hold_up_nobody_but_those_who_get_them() {
        double(1);
        let stopped = some_spares();
        stopped.iter().for_each(|pid| harness::kill(*pid, libc::SIGSTOP));
        let units: Vec<_> = (0..stopped.len() + 4).map(|n| spawn(n, |n: usize| n).unwrap()).collect();
        for (n, unit) in units.into_iter().enumerate() {
            let process = unit.process().unwrap().clone();
            if stopped.contains(&process.id()) {
                process.send_signal(libc::SIGCONT).unwrap();
            }
            assert_eq!(unit.wait().unwrap(), n);
        }
        stopped.iter().for_each(|pid| assert!(!is_alive(*pid) || spares().contains(pid)));
    }

    fn signals_that_came_before_the_unit_are_not_the_units() {
        double(1);
        for signal in ["HUP", "INT", "QUIT", "TERM", "USR1", "TSTP", "ALRM"] {
            // Sent by another process than the parent, as a terminal's are.
            let there: Vec<String> = some_spares().iter().map(u32::to_string).collect();
            let mut kill = std::process::Command::new("sh");
            assert!(kill.args(["-c", &format!("kill -{signal} {}", there.join(" "))]).status().unwrap().success());
            all_forgotten();
            (0..6).for_each(double);
        }
        // Nor is what the parent sent to its whole group.
        // SAFETY: ignores a signal, and sends it to the group that this process makes its own.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            offspring::shutdown();
            libc::setpgid(0, 0);
            double(1);
            some_spares();
            libc::kill(0, libc::SIGHUP);
        }
        all_forgotten();
        (0..6).for_each(double);
        // But what the parent sends as soon as it can is, also if others sent it before.
        let there: Vec<String> = some_spares().iter().map(u32::to_string).collect();
        let mut kill = std::process::Command::new("sh");
        assert!(kill.args(["-c", &format!("kill -TERM {}", there.join(" "))]).status().unwrap().success());
        all_forgotten();
        let unit = spawn((), |()| loop { std::thread::park() }).unwrap();
        let unit: Offspring<()> = unit;
        unit.process().unwrap().terminate().unwrap();
        let error = unit.wait().unwrap_err();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&error.death().unwrap().status()), Some(libc::SIGTERM));
    }

    fn a_burst_is_served_and_what_it_brought_is_given_back() {
        double(1);
        for _ in 0..3 {
            let units: Vec<_> = (0..40).map(|n| spawn(n, |n: u32| n).unwrap()).collect();
            units.into_iter().enumerate().for_each(|(n, unit)| assert_eq!(unit.wait().unwrap(), n as u32));
        }
        assert!(spares().len() <= 16);
        // Nothing is started any more: first they go, and then the zygote.
        eventually("the spares stay", || spares().is_empty());
        assert_eq!(zygotes().len(), 1);
        let began = Instant::now();
        while zygote().is_some() {
            assert!(began.elapsed() < Duration::from_secs(30), "the zygote stays");
            std::thread::yield_now();
        }
        double(2);
    }

    fn a_zygote_that_has_children_to_see_to_is_kept() {
        let mut unit = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
        some_spares();
        eventually("the spares stay", || spares().is_empty());
        // Longer than it takes for one that nobody needs: what is tried is that nothing happens.
        std::thread::sleep(Duration::from_secs(11));
        assert_eq!(zygotes().len(), 1);
        drop(unit.take_stdin());
        assert_eq!(unit.wait().unwrap(), 0);
    }

    fn none_outlives_a_parent_that_is_killed() {
        for (stops_them, leaves_a_copy) in [(false, false), (true, false), (false, true), (true, true)] {
            let parent = Parent { stops_them, leaves_a_copy };
            let mut parent = Offspring::builder(parent).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(parent.take_stdout().unwrap()).read_line(&mut line).unwrap();
            assert!(parent.wait().is_err());
            assert!(line.split_whitespace().count() >= 3, "{line}");
            for pid in line.split_whitespace() {
                eventually("one is left", || !is_alive(pid.parse().unwrap()));
            }
            harness::tagged(&harness::tag()).into_iter().for_each(|pid| harness::kill(pid, libc::SIGKILL));
            eventually("the copy is left", || harness::tagged(&harness::tag()).is_empty());
        }
    }

    fn what_is_given_back_costs_nothing_while_a_copy_of_the_parent_lives() {
        double(1);
        some_spares();
        // SAFETY: the copy only sleeps.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        eventually("the spares stay", || spares().is_empty());
        let before = harness::processor_time();
        std::thread::sleep(Duration::from_secs(1));
        let spent = harness::processor_time() - before;
        harness::kill(copy as u32, libc::SIGKILL);
        // SAFETY: reaps the copy.
        unsafe { libc::waitpid(copy, std::ptr::null_mut(), 0) };
        // A reaper that spins takes all of it.
        assert!(spent < Duration::from_millis(500), "{spent:?}");
    }

    fn after_a_shutdown_there_are_none() {
        double(1);
        let there = some_spares();
        offspring::shutdown();
        assert!(there.iter().all(|pid| !is_alive(*pid)));
        assert_eq!(spares(), []);
    }
}

/// Ends when its input does; gives its length.
#[derive(Serialize, Deserialize)]
struct Asked;

impl Subprocess for Asked {
    type Output = usize;

    fn run(self) -> usize {
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap()
    }
}
