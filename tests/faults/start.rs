//! A start that goes wrong by what happens meanwhile: to the child, to the spares, to the zygote.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use offspring::{ErrorKind, Offspring, Stdio, Subprocess, SubprocessLoop, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::marks::{self, Asked, Mark};
use crate::harness::{self, double, eventually, is_alive, spares, zygote};

const LONG: Duration = Duration::from_secs(3600);

#[derive(Serialize, Deserialize)]
struct Unit;

impl Subprocess for Unit {
    type Output = u32;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) -> u32 {
        7
    }
}

behaviour! {
    fn case_1_a_child_that_is_killed_at_any_moment() {
        for round in 0..100_u64 {
            let unit = Offspring::new(Unit).unwrap();
            // A different moment each time is what is tried.
            std::thread::sleep(Duration::from_micros(round * 37 % 2000));
            unit.process().unwrap().kill().unwrap();
            match unit.wait() {
                Ok(value) => assert_eq!(value, 7),
                Err(error) => {
                    assert!([ErrorKind::Start, ErrorKind::Died].contains(&error.kind()), "{error}");
                    assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGKILL), "{error}");
                }
            }
        }
        assert_eq!(Unit.spawn().unwrap().wait().unwrap(), 7);
    }

    // What a child that dies or stops at a step brings about is in tests/walk.rs.
    fn case_1_a_child_that_got_as_far_as_its_unit_is_let_be_when_its_start_would_be_over() {
        let builder = Offspring::builder(Asked).stdin(Stdio::piped()).start_timeout(Duration::from_secs(1));
        let mut unit = builder.spawn().unwrap();
        // The time itself is what is tried: it is longer than a start may take.
        assert!(unit.wait_timeout(Duration::from_millis(1500)).unwrap().is_none());
        drop(unit.take_stdin());
        assert_eq!(unit.wait().unwrap(), 0);
    }
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

fn twice(n: u32) {
    assert_eq!(double(n).unwrap(), 2 * n);
}

behaviour! { through ["auto"];
    fn case_2_spares_that_die_are_not_missed() {
        twice(1);
        for n in 0..20 {
            let there = some_spares();
            there.iter().for_each(|pid| harness::kill(*pid, libc::SIGKILL));
            eventually("one does not die", || there.iter().all(|pid| !is_alive(*pid)));
            (0..5).for_each(|m| twice(10 * n + m));
        }
    }

    fn case_2_spares_that_are_killed_while_they_are_taken() {
        twice(1);
        let (file, done) = (marks::file(), AtomicBool::new(false));
        let mut died = Vec::new();
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut killed = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    // Each may have got its unit meanwhile.
                    let there = spares();
                    there.iter().for_each(|pid| harness::kill(*pid, libc::SIGKILL));
                    killed.extend(there);
                }
                killed
            });
            for number in 0..300 {
                match Offspring::new(Mark { file: file.clone(), number }).and_then(Offspring::wait) {
                    Ok(value) => assert_eq!(value, number),
                    Err(error) => {
                        assert!([ErrorKind::Start, ErrorKind::Died].contains(&error.kind()), "{error}");
                        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGKILL), "{error}");
                        died.push(number);
                    }
                }
            }
            done.store(true, Ordering::SeqCst);
            let killed = killer.join().unwrap();
            assert!(killed.len() > 3);
            eventually("one does not die", || killed.iter().all(|pid| !is_alive(*pid)));
        });
        let runs = marks::runs(&file);
        for number in 0..300 {
            let count = runs.get(&number).copied().unwrap_or_default();
            assert!(count == 1 || count == 0 && died.contains(&number), "{number} was run {count} times");
        }
        (0..20).for_each(twice);
    }

    fn case_2_spares_that_are_stopped_hold_up_nobody_but_those_who_get_them() {
        twice(1);
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

    fn case_3_signals_that_came_before_the_unit_are_not_the_units() {
        twice(1);
        for signal in ["HUP", "INT", "QUIT", "TERM", "USR1", "TSTP", "ALRM"] {
            // Sent by another process than the parent, as a terminal's are.
            let there: Vec<String> = some_spares().iter().map(u32::to_string).collect();
            let mut kill = std::process::Command::new("sh");
            assert!(kill.args(["-c", &format!("kill -{signal} {}", there.join(" "))]).status().unwrap().success());
            all_forgotten();
            (0..6).for_each(twice);
        }
        // Nor is what the parent sent to its whole group.
        // SAFETY: ignores a signal, and sends it to the group that this process makes its own.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            offspring::shutdown();
            libc::setpgid(0, 0);
            twice(1);
            some_spares();
            libc::kill(0, libc::SIGHUP);
        }
        all_forgotten();
        (0..6).for_each(twice);
        // But what the parent sends as soon as it can is, also if others sent it before.
        let there: Vec<String> = some_spares().iter().map(u32::to_string).collect();
        let mut kill = std::process::Command::new("sh");
        assert!(kill.args(["-c", &format!("kill -TERM {}", there.join(" "))]).status().unwrap().success());
        all_forgotten();
        let unit = spawn((), |()| loop { std::thread::park() }).unwrap();
        let unit: Offspring<()> = unit;
        unit.process().unwrap().terminate().unwrap();
        let error = unit.wait().unwrap_err();
        assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGTERM));
    }

    fn case_3_a_signal_that_came_to_a_stopped_spare_is_not_its_units() {
        twice(1);
        let stopped = some_spares();
        for pid in &stopped {
            harness::kill(*pid, libc::SIGSTOP);
            eventually("it does not stop", || harness::state(*pid) == Some('T'));
        }
        let there: Vec<String> = stopped.iter().map(u32::to_string).collect();
        let mut kill = std::process::Command::new("sh");
        assert!(kill.args(["-c", &format!("kill -TERM {}", there.join(" "))]).status().unwrap().success());
        // It hears of both at once: of the signal, and of its unit.
        let units: Vec<_> = (0..stopped.len()).map(|n| spawn(n, |n: usize| n).unwrap()).collect();
        assert!(units.iter().any(|unit| stopped.contains(&unit.process().unwrap().id())));
        stopped.iter().for_each(|pid| harness::kill(*pid, libc::SIGCONT));
        units.into_iter().enumerate().for_each(|(n, unit)| assert_eq!(unit.wait().unwrap(), n));
    }
}

/// Whether it has begun. Ends by TERM alone.
#[derive(Serialize, Deserialize)]
struct Endless(bool);

impl SubprocessLoop for Endless {
    type Output = bool;

    fn begin(&mut self) {
        self.0 = true;
    }

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        ControlFlow::Continue(LONG)
    }

    fn end(self) -> bool {
        self.0
    }
}

behaviour! {
    fn case_3_term_as_the_next_thing_after_the_start_still_begins_and_ends() {
        for _ in 0..100 {
            let unit = Offspring::new(Endless(false)).unwrap();
            unit.process().unwrap().terminate().unwrap();
            assert!(unit.wait().unwrap());
        }
    }

    fn case_3_term_from_the_moment_that_the_child_is_there() {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // All that this process makes, from its first instant to its last, the zygote and the spares as well.
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    harness::children().into_iter().for_each(|pid| harness::kill(pid, libc::SIGTERM));
                    std::thread::yield_now();
                }
            });
            let flooded = || {
                for _ in 0..100 {
                    let unit = Offspring::new(Endless(false)).map_err(|error| error.to_string())?;
                    let process = unit.process().unwrap().clone();
                    let begun = unit.wait().map_err(|error| error.to_string())?;
                    let status = process.exit_status().unwrap();
                    if !begun || !status.success() {
                        return Err(format!("begun: {begun}, {status}"));
                    }
                    // One that is no loop has the default action, which is told as what it is.
                    let plain: fn(()) = |()| loop { std::thread::park() };
                    let error = spawn((), plain).and_then(Offspring::wait).unwrap_err();
                    if error.death().is_none_or(|death| death.status().signal() != Some(libc::SIGTERM)) {
                        return Err(error.to_string());
                    }
                }
                Ok(())
            };
            let result = flooded();
            done.store(true, Ordering::SeqCst);
            assert_eq!(result, Ok(()));
        });
    }
}

#[derive(Serialize, Deserialize)]
struct Sleep;

impl Subprocess for Sleep {
    type Output = ();

    fn run(self) {
        std::thread::sleep(LONG);
    }
}

/// For the zygotes that are made from now on, as no other thread reads the environment here.
fn wish(step: &str) {
    // SAFETY: see above.
    unsafe { std::env::set_var("OFFSPRING_STEP", step) };
}

behaviour! { through ["zygote"];
    fn case_4_a_stopped_zygote_keeps_no_start_waiting_longer_than_it_may() {
        twice(1);
        let stopped = zygote().unwrap();
        harness::kill(stopped, libc::SIGSTOP);
        let began = Instant::now();
        let error = Offspring::builder(Sleep).start_timeout(Duration::from_millis(200)).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start);
        assert!(error.to_string().contains("zygote") && error.to_string().contains("in time"), "{error}");
        assert!(began.elapsed() >= Duration::from_millis(200));
        harness::kill(stopped, libc::SIGCONT);
        twice(2);
        assert_eq!(zygote(), Some(stopped));
        // The child of the start that was given up was made after all, and is gone.
        eventually("a child is left", || harness::tagged(&harness::tag()).is_empty());
    }

    fn case_4_a_stopped_zygote_is_replaced_by_a_start_that_has_the_time() {
        twice(1);
        let stopped = zygote().unwrap();
        harness::kill(stopped, libc::SIGSTOP);
        twice(2);
        assert_ne!(zygote(), Some(stopped));
        assert!(!is_alive(stopped));
    }

    fn case_4_a_zygote_that_stops_before_it_is_ready_fails_the_start_in_time() {
        wish("zygote:boot:stop");
        let error = Offspring::builder(Sleep).start_timeout(Duration::from_millis(100)).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start, "{error}");
        wish("");
        let mut children = harness::tagged(&harness::tag()).into_iter();
        harness::kill(children.find(|pid| harness::state(*pid) == Some('T')).unwrap(), libc::SIGCONT);
        twice(1);
    }

    fn case_4_a_unit_whose_start_took_too_long_is_never_run() {
        let file = marks::file();
        twice(1);
        let slow = zygote().unwrap();
        for number in 0..20 {
            harness::kill(slow, libc::SIGSTOP);
            let unit = Offspring::builder(Mark { file: file.clone(), number }).start_timeout(Duration::from_millis(20));
            assert_eq!(unit.spawn().unwrap_err().kind(), ErrorKind::Start);
            harness::kill(slow, libc::SIGCONT);
            // Whoever comes later is made later.
            twice(number);
            eventually("its child is left", || harness::tagged(&harness::tag()).is_empty());
        }
        assert_eq!(marks::runs(&file), BTreeMap::new());
    }
}
