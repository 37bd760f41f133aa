//! Children that are there before they are asked for: never in the way, never missed, and gone when nobody needs them.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use harness::marks::Asked;
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
