//! Pids that come again at once, and a parent that is the first process of its pid namespace.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use offspring::{ErrorKind, Offspring, Process, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, as_first_process, can, double, eventually, is_again, is_alive, myself, zygote};

/// Has this pid namespace give each pid again after some hundred others.
fn make_pids_scarce() {
    assert_eq!(std::process::id(), 1);
    std::fs::write("/proc/sys/kernel/pid_max", "400").unwrap();
    // Those below 300 are given once.
    let last = (0..400).find(|_| {
        let stranger = stranger().unwrap();
        let pid = stranger.id();
        end(stranger);
        pid >= 300
    });
    assert!(last.is_some());
}

/// Before Linux 6.14 that would be a limit of the whole machine.
fn may_make_pids_scarce() -> bool {
    can("a limit of pids for a namespace", harness::is_kernel(6, 14))
}

/// A process that is none of the library's business.
fn stranger() -> std::io::Result<Child> {
    Command::new("sleep").arg("3600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

fn end(mut stranger: Child) {
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger was ended");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

fn park(_: ()) {
    loop {
        std::thread::park();
    }
}

fn third_stays(n: u32) -> u32 {
    if n.is_multiple_of(3) {
        park(());
    }
    n
}

/// The signal that a unit died of, before or after it began.
fn signal<R>(unit: Offspring<R>) -> i32 {
    let error = unit.wait().map(|_| ()).unwrap_err();
    error.death().and_then(|death| death.status().signal()).unwrap_or_else(|| panic!("{error}"))
}

/// Starts units, tells its zygote's pid and theirs, and waits to be killed.
#[derive(Serialize, Deserialize)]
struct Parent(u32);

impl Subprocess for Parent {
    type Output = ();

    fn run(self) {
        let pids: Vec<_> =
            (0..self.0).map(|_| spawn((), |()| std::process::id()).unwrap().wait().unwrap()).collect();
        let all: Vec<_> = zygote().into_iter().chain(pids).map(|pid| pid.to_string()).collect();
        println!("{}", all.join(" "));
        park(());
    }
}

behaviour! {
    fn case_74_one_that_has_a_units_pid_is_not_taken_for_it() {
        if !is_again() {
            if may_make_pids_scarce() {
                as_first_process(&myself());
            }
            return;
        }
        make_pids_scarce();
        let (mut gone, mut strangers) = (VecDeque::<Process>::new(), VecDeque::new());
        let mut met = 0;
        for n in 0..300 {
            let unit = spawn(n, third_stays).unwrap();
            let process = unit.process().unwrap().clone();
            if n.is_multiple_of(3) {
                process.kill().unwrap();
                assert_eq!(signal(unit), libc::SIGKILL);
            } else {
                assert_eq!(unit.wait().unwrap(), n);
            }
            gone.push_back(process);
            strangers.push_back(stranger().unwrap());
            // An odd number of pids a round, for a round's pids are a fixed way apart.
            end(stranger().unwrap());
            // All that were units, also those whose pid is a stranger's by now.
            met += gone.iter().filter(|gone| strangers.iter().any(|stranger| stranger.id() == gone.id())).count();
            for gone in &gone {
                assert!(!gone.is_alive());
                gone.send_signal(libc::SIGKILL).unwrap();
                gone.terminate().unwrap();
                gone.begin_shutdown();
            }
            if n >= 40 {
                end(strangers.pop_front().unwrap());
            }
            if n >= 120 {
                gone.pop_front();
            }
        }
        strangers.into_iter().for_each(end);
        assert!(met > 0, "no pid came again");
    }
}

behaviour! { through ["auto"];
    fn case_74_one_that_has_a_units_pid_is_not_ended_with_its_parent() {
        if !is_again() {
            if may_make_pids_scarce() {
                as_first_process(&myself());
            }
            return;
        }
        make_pids_scarce();
        let mut parent = Offspring::builder(Parent(30)).stdout(offspring::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(parent.take_stdout().unwrap()).read_line(&mut line).unwrap();
        let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        // All pids that are left, but for a few.
        let mut strangers: Vec<_> = (0..400).map_while(|_| stranger().ok()).collect();
        strangers.drain(..4).for_each(end);
        let met = strangers.iter().filter(|stranger| pids[1..].contains(&stranger.id())).count();
        assert!(met > 5, "only {met} pids came again");
        parent.process().unwrap().kill().unwrap();
        assert_eq!(parent.wait().unwrap_err().kind(), ErrorKind::Died);
        // It has seen to all that it knows of.
        eventually("the zygote is left", || !is_alive(pids[0]));
        strangers.into_iter().for_each(end);
        // The orphans are ours, as the first process's.
        offspring::shutdown();
        // SAFETY: null asks for no status.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
    }
}

behaviour! {
    fn case_81_the_first_process_of_a_pid_namespace() {
        if !is_again() {
            as_first_process(&myself());
            return;
        }
        assert_eq!(std::process::id(), 1);
        (0..5).for_each(|n| assert_eq!(double(n).unwrap(), 2 * n));
        assert_eq!(signal(spawn((), |()| -> () { std::process::abort() }).unwrap()), libc::SIGABRT);
        let unit = spawn((), park).unwrap();
        unit.process().unwrap().terminate().unwrap();
        assert_eq!(signal(unit), libc::SIGTERM);
    }
}

/// Other tests of this binary, which are to hold for a first process as well.
const WITH_ANY_LAUNCHER: [&str; 13] = [
    "parent::case_53_a_parent_that_exits",
    "parent::case_54_a_parent_that_crashes",
    "parent::case_55_a_parent_that_is_killed",
    "parent::case_57_a_parent_that_executes_another_program",
    "parent_units::case_55_a_unit_that_is_not_to_be_terminated_outlives_its_parent_and_ends",
    "parent_units::case_58_a_daemon_that_was_forked_after_the_first_start_begins_afresh",
    "parent_units::case_59_the_first_thread_of_a_parent_ends_and_the_others_go_on",
    "parent_units::case_60_units_go_on_while_their_parent_stands_still",
    "parent_units::case_64_offspring_of_offspring_four_deep",
    "interference::case_70_one_that_ignores_sigchld",
    "interference::case_71_one_with_a_thread_that_reaps_everybodys_children",
    "interference::case_79_a_copy_of_this_process_neither_reaps_nor_kills_and_starts_afresh",
    "zygote_image::case_68_a_unit_has_the_streams_and_its_line",
];
const WITH_A_ZYGOTE: [&str; 7] = [
    "parent::case_55_a_parent_that_is_killed_and_units_that_cannot_hear_of_it",
    "parent::case_56_parent_and_zygote_that_are_killed_together",
    "parent::case_58_a_parent_that_leaves_a_copy_of_itself",
    "parent_units::case_64_a_tree_of_units_whose_root_is_killed",
    "zygote::case_65_a_killed_one_is_replaced_and_what_runs_is_not_harmed",
    "zygote::case_65_one_that_is_killed_again_and_again_fails_no_start",
    "zygote::case_65_a_child_whose_maker_died_without_a_word_is_found_and_runs_once",
];

fn hold_for_a_first_process(tests: &[&str]) {
    for name in tests {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
        let Some(text) = as_first_process(&command) else { return };
        assert!(text.contains("1 passed"), "{name} did not run:\n{text}");
    }
}

behaviour! {
    fn case_81_what_holds_for_any_parent_holds_for_a_first_process() {
        hold_for_a_first_process(&WITH_ANY_LAUNCHER);
    }
}

behaviour! { through ["zygote"];
    fn case_81_what_holds_with_a_zygote_holds_for_a_first_process() {
        hold_for_a_first_process(&WITH_A_ZYGOTE);
    }
}
