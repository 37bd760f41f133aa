//! No orphan, whatever a unit or its parent has made of itself; and no harm to a unit whose parent only stands still.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use offspring::{ErrorKind, Offspring, Stdio, Subprocess, SubprocessLoop, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::marks::Asked;
use crate::harness::{self, eventually, is_alive};
use crate::parent::Death;

#[derive(Serialize, Deserialize)]
struct Large(serde_bytes::ByteBuf);

impl Subprocess for Large {
    type Output = ();

    fn run(self) {}
}

/// Returns once it is about to run.
#[derive(Serialize, Deserialize)]
struct Awaited;

impl Subprocess for Awaited {
    type Output = u32;
    const WAIT_FOR_CHILD: bool = true;

    fn run(self) -> u32 {
        7
    }
}

/// Waits until a file is there, then leaves a mark.
#[derive(Serialize, Deserialize)]
struct Promised(PathBuf);

impl Subprocess for Promised {
    type Output = ();
    const TERMINATE_ON_SHUTDOWN: bool = false;

    fn run(self) {
        println!("here");
        eventually("no word", || self.0.join("go").exists());
        std::fs::write(self.0.join("done"), "").unwrap();
    }
}

fn park(_: ()) {
    loop {
        std::thread::park();
    }
}

behaviour! { through ["zygote"];
    fn case_55_a_stopped_loop_comes_to_its_end() {
        #[derive(Serialize, Deserialize)]
        struct Marks(PathBuf);
        impl SubprocessLoop for Marks {
            type Output = ();
            fn tick(&mut self) -> std::ops::ControlFlow<(), Duration> {
                std::ops::ControlFlow::Continue(Duration::from_secs(3600))
            }
            fn end(self) {
                std::fs::write(self.0, "").unwrap();
            }
        }
        let mark = std::env::temp_dir().join(harness::tag());
        let parent = offspring::spawn(mark.clone(), |mark: PathBuf| {
            let unit = Offspring::new(Marks(mark)).unwrap();
            let pid = unit.process().unwrap().id();
            harness::kill(pid, libc::SIGSTOP);
            eventually("it does not stop", || harness::state(pid) == Some('T'));
            harness::kill(std::process::id(), libc::SIGKILL);
        });
        assert!(parent.unwrap().wait().is_err());
        eventually("its end was not run", || mark.exists());
        eventually("it did not end", || harness::tagged(&harness::tag()).is_empty());
        std::fs::remove_file(mark).unwrap();
    }

    fn case_64_a_tree_of_units_whose_root_is_killed() {
        fn grow(depth: u32) {
            if depth > 0 {
                drop(offspring::spawn(depth - 1, grow).unwrap());
            } else {
                println!("here");
            }
            loop {
                std::thread::park();
            }
        }
        #[derive(Serialize, Deserialize)]
        struct Tree;
        impl Subprocess for Tree {
            type Output = ();
            fn run(self) {
                grow(4);
            }
        }
        let mut root = Offspring::builder(Tree).stdout(Stdio::piped()).spawn().unwrap();
        root.take_stdout().unwrap().read_exact(&mut [0; 5]).unwrap();
        root.process().unwrap().kill().unwrap();
        assert!(root.wait().is_err());
        eventually("part of the tree is left", || harness::tagged(&harness::tag()).is_empty());
    }
}

behaviour! {
    fn case_55_a_unit_that_is_not_to_be_terminated_runs_if_its_parent_is_gone_before_it_begins() {
        for how in [Death::Kill, Death::Exit, Death::Execve] {
            let directory = std::env::temp_dir().join(harness::tag());
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("go"), "").unwrap();
            let parent = offspring::spawn((how, directory.clone()), |(how, directory): (Death, PathBuf)| {
                // Stopped before it looks for its parent, and going on when that is gone.
                let builder = Offspring::builder(Promised(directory)).env("OFFSPRING_STEP", "child:received:stop");
                let unit = builder.stdout(Stdio::null()).spawn().unwrap();
                let child = unit.process().unwrap().id();
                eventually("the child does not stop", || harness::state(child) == Some('T'));
                std::mem::forget(unit);
                match how {
                    // SAFETY: these end the process.
                    Death::Exit => unsafe { libc::_exit(0) },
                    Death::Execve => {
                        use std::os::unix::process::CommandExt;
                        panic!("{}", std::process::Command::new("/bin/sleep").arg("3600").exec());
                    }
                    _ => harness::kill(std::process::id(), libc::SIGKILL),
                }
            });
            let mut parent = parent.unwrap();
            let process = parent.process().unwrap().clone();
            let mut stopped = None;
            eventually("the child does not stop", || {
                let all = harness::tagged(&harness::tag());
                stopped = all.iter().copied().find(|pid| harness::state(*pid) == Some('T'));
                let name = std::fs::read_to_string(format!("/proc/{}/comm", process.id())).unwrap_or_default();
                stopped.is_some() && (name.trim() == "sleep" || !is_alive(process.id()))
            });
            harness::kill(stopped.unwrap(), libc::SIGCONT);
            eventually("it did not run", || directory.join("done").exists());
            if how == Death::Execve {
                process.kill().unwrap();
            }
            let _ = parent.wait_timeout(Duration::from_secs(10));
            eventually("it did not end", || harness::tagged(&harness::tag()).is_empty());
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }

    fn case_55_a_unit_that_is_not_to_be_terminated_outlives_its_parent_and_ends() {
        let directory = std::env::temp_dir().join(harness::tag());
        std::fs::create_dir(&directory).unwrap();
        let parent = offspring::spawn(directory.clone(), |directory: PathBuf| {
            let mut unit = Offspring::builder(Promised(directory)).stdout(Stdio::piped()).spawn().unwrap();
            unit.take_stdout().unwrap().read_exact(&mut [0; 5]).unwrap();
            harness::kill(std::process::id(), libc::SIGKILL);
        });
        assert!(parent.unwrap().wait().is_err());
        // Its zygote ends a moment after it.
        eventually("it did not outlive its parent alone", || harness::tagged(&harness::tag()).len() == 1);
        std::fs::write(directory.join("go"), "").unwrap();
        eventually("it did not run to its end", || directory.join("done").exists());
        eventually("it did not end", || harness::tagged(&harness::tag()).is_empty());
        std::fs::remove_dir_all(directory).unwrap();
    }

    fn case_58_a_parent_that_dies_before_its_unit_is_sent_and_leaves_a_copy_of_itself() {
        #[derive(Serialize, Deserialize)]
        struct Copied;
        impl Subprocess for Copied {
            type Output = ();
            fn run(self) {
                // Too large for the line, and the child stops before it reads: the unit stays half sent.
                let large = serde_bytes::ByteBuf::from(vec![1; 8 << 20]);
                let unit = Offspring::builder(Large(large)).env("OFFSPRING_STEP", "child:boot:stop").spawn().unwrap();
                let child = unit.process().unwrap().id();
                eventually("the child does not stop", || harness::state(child) == Some('T'));
                // SAFETY: the copy calls nothing but sleep.
                let copy = unsafe { libc::fork() };
                if copy == 0 {
                    std::thread::sleep(Duration::from_secs(3600));
                }
                println!("{copy}");
                harness::kill(std::process::id(), libc::SIGKILL);
            }
        }
        let mut parent = Offspring::builder(Copied).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(parent.take_stdout().unwrap()).read_line(&mut line).unwrap();
        let copy: u32 = line.trim().parse().unwrap();
        assert!(parent.wait().is_err());
        // Whoever was executed by its parent is stopped for good; whoever was cloned, the zygote lets go on.
        harness::tagged(&harness::tag()).into_iter().filter(|pid| *pid != copy).for_each(|pid| harness::kill(pid, libc::SIGCONT));
        let left = || harness::tagged(&harness::tag());
        let mut gone = false;
        for _ in 0..10_000 {
            gone = left() == [copy];
            if gone {
                break;
            }
            std::thread::yield_now();
        }
        harness::kill(copy, libc::SIGKILL);
        assert!(gone, "the child is left");
        eventually("the copy is left", || !is_alive(copy));
    }

    fn case_58_a_daemon_that_was_forked_after_the_first_start_begins_afresh() {
        #[derive(Serialize, Deserialize)]
        struct Daemonises;
        impl Subprocess for Daemonises {
            type Output = ();
            fn run(self) {
                let unit = spawn((), park).unwrap();
                println!("{}", unit.process().unwrap().id());
                // SAFETY: as daemon(3) does it; the copy calls this library, which is made for it.
                if unsafe { libc::fork() } != 0 {
                    // SAFETY: ends the original without a word.
                    unsafe { libc::_exit(0) };
                }
                // SAFETY: a session of its own.
                unsafe { libc::setsid() };
                // The very first is executed, while the zygote is being made.
                for _ in 0..3 {
                    let (value, parent) = spawn(20, |n: u32| (n + 1, std::os::unix::process::parent_id())).unwrap().wait().unwrap();
                    println!("{value} {}", parent == std::process::id());
                }
                std::process::exit(0);
            }
        }
        let mut parent = Offspring::builder(Daemonises).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(parent.take_stdout().unwrap()).lines().map(Result::unwrap);
        let pid = lines.next().unwrap().parse().unwrap();
        assert!(parent.wait().is_err());
        eventually("an orphan is left", || !is_alive(pid));
        // Until nobody has the other end any more.
        assert_eq!(lines.collect::<Vec<_>>(), ["21 true"; 3]);
        eventually("the daemon is left", || harness::tagged(&harness::tag()).is_empty());
    }

    fn case_59_the_thread_that_started_a_unit_ends() {
        let thread = std::thread::spawn(|| {
            let unit = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
            (unit, std::fs::read_link("/proc/thread-self").unwrap())
        });
        let (mut unit, thread) = thread.join().unwrap();
        eventually("the thread is still there", || !std::path::Path::new("/proc").join(&thread).exists());
        drop(unit.take_stdin());
        assert_eq!(unit.wait().unwrap(), 0);
    }

    fn case_59_the_thread_ends_and_its_unit_has_executed_another_program() {
        #[derive(Serialize, Deserialize)]
        struct Another;
        impl Subprocess for Another {
            type Output = ();
            fn run(self) {
                use std::os::unix::process::CommandExt;
                panic!("{}", std::process::Command::new("/bin/cat").exec());
            }
        }
        let thread = std::thread::spawn(|| {
            let builder = Offspring::builder(Another).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut unit = builder.spawn().unwrap();
            let (mut stdin, mut stdout) = (unit.take_stdin().unwrap(), unit.take_stdout().unwrap());
            stdin.write_all(b"!").unwrap();
            stdout.read_exact(&mut [0]).unwrap();
            (unit, stdin, stdout, std::fs::read_link("/proc/thread-self").unwrap())
        });
        let (unit, mut stdin, mut stdout, thread) = thread.join().unwrap();
        eventually("the thread is still there", || !std::path::Path::new("/proc").join(&thread).exists());
        let pid = unit.process().unwrap().id();
        if std::env::var("OFFSPRING_LAUNCHER").unwrap() == "exec" {
            // As the guide has it.
            eventually("it goes on", || !is_alive(pid));
        } else {
            stdin.write_all(b"!").unwrap();
            stdout.read_exact(&mut [0]).unwrap();
        }
        drop(stdin);
        unit.wait().unwrap_err();
    }

    fn case_59_the_first_thread_of_a_parent_ends_and_the_others_go_on() {
        #[derive(Serialize, Deserialize)]
        struct Headless;
        impl Subprocess for Headless {
            type Output = ();
            fn run(self) {
                let mut earlier = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
                std::thread::spawn(move || {
                    let own = std::process::id();
                    eventually("the first thread does not end", || harness::state(own) == Some('Z'));
                    drop(earlier.take_stdin());
                    println!("{}", earlier.wait().unwrap());
                    println!("{}", spawn(20, |n: u32| n + 1).unwrap().wait().unwrap());
                    // The zygote as well is made by one that has lost its first thread.
                    offspring::shutdown();
                    (0..2).for_each(|n| println!("{}", spawn(n, |n: u32| n + 1).unwrap().wait().unwrap()));
                    let last = spawn((), park).unwrap();
                    println!("{}", last.process().unwrap().id());
                    harness::kill(own, libc::SIGKILL);
                });
                // SAFETY: ends this thread alone, as pthread_exit(3) does, and leaves its frames as they are.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            }
        }
        let limit = Duration::from_secs(60);
        let mut parent = Offspring::builder(Headless).stdout(Stdio::piped()).timeout(limit).spawn().unwrap();
        let lines = BufReader::new(parent.take_stdout().unwrap()).lines().map(Result::unwrap);
        let told: Vec<u32> = lines.map(|line| line.parse().unwrap()).collect();
        assert_eq!(told[..4], [0, 21, 1, 2], "{told:?}");
        assert_eq!(parent.wait().unwrap_err().kind(), ErrorKind::Died);
        eventually("an orphan is left", || !is_alive(told[4]));
        eventually("the zygote is left", || harness::tagged(&harness::tag()).is_empty());
    }

    fn case_60_units_go_on_while_their_parent_stands_still() {
        /// Leaves a mark when it is through, and more than fits where nobody reads.
        fn work((directory, n): (PathBuf, usize)) -> (usize, Vec<u32>) {
            eventually("no word", || directory.join("go").exists());
            std::fs::write(directory.join(n.to_string()), "").unwrap();
            (n, vec![1 << 30; 100_000])
        }
        #[derive(Serialize, Deserialize)]
        struct Starts(PathBuf);
        impl Subprocess for Starts {
            type Output = Vec<(usize, usize)>;
            fn run(self) -> Vec<(usize, usize)> {
                let units: Vec<_> = (0..8).map(|n| spawn((self.0.clone(), n), work).unwrap()).collect();
                println!("here");
                units.into_iter().map(|unit| unit.wait().unwrap()).map(|(n, large)| (n, large.len())).collect()
            }
        }
        let directory = std::env::temp_dir().join(harness::tag());
        std::fs::create_dir(&directory).unwrap();
        let mut parent = Offspring::builder(Starts(directory.clone())).stdout(Stdio::piped()).spawn().unwrap();
        parent.take_stdout().unwrap().read_exact(&mut [0; 5]).unwrap();
        let process = parent.process().unwrap().clone();
        process.send_signal(libc::SIGSTOP).unwrap();
        eventually("it does not stop", || harness::state(process.id()) == Some('T'));
        std::fs::write(directory.join("go"), "").unwrap();
        eventually("a unit stands still", || (0..8).all(|n| directory.join(n.to_string()).exists()));
        assert!(parent.try_wait().unwrap().is_none());
        process.send_signal(libc::SIGCONT).unwrap();
        assert_eq!(parent.wait().unwrap(), (0..8).map(|n| (n, 100_000)).collect::<Vec<_>>());
        std::fs::remove_dir_all(directory).unwrap();
    }

    fn case_60_a_unit_that_ended_in_time_is_not_too_late_because_its_parent_stood_still() {
        const TIMEOUT: Duration = Duration::from_millis(400);
        #[derive(Serialize, Deserialize)]
        struct Quick;
        impl Subprocess for Quick {
            type Output = ();
            fn run(self) {
                std::thread::sleep(TIMEOUT / 8);
                std::process::exit(3);
            }
        }
        #[derive(Serialize, Deserialize)]
        struct Parent;
        impl Subprocess for Parent {
            type Output = Option<i32>;
            fn run(self) -> Option<i32> {
                let unit = Offspring::builder(Quick).timeout(TIMEOUT).spawn().unwrap();
                println!("here");
                let error = unit.wait().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Died, "{error}");
                error.death()?.status().code()
            }
        }
        for _ in 0..3 {
            let mut parent = Offspring::builder(Parent).stdout(Stdio::piped()).spawn().unwrap();
            std::io::Read::read_exact(&mut parent.take_stdout().unwrap(), &mut [0; 5]).unwrap();
            let process = parent.process().unwrap().clone();
            process.send_signal(libc::SIGSTOP).unwrap();
            // The stop itself is what is tried: it is longer than its unit may take.
            assert!(parent.wait_timeout(2 * TIMEOUT).unwrap().is_none());
            process.send_signal(libc::SIGCONT).unwrap();
            assert_eq!(parent.wait().unwrap(), Some(3));
        }
    }

    fn case_60_a_start_survives_a_stop_of_parent_and_child_that_is_longer_than_its_timeout() {
        const START: Duration = Duration::from_secs(2);
        let mut parent = offspring::spawn((), |()| {
            let builder = Offspring::builder(Awaited).env("OFFSPRING_STEP", "child:boot:stop").start_timeout(START);
            builder.spawn().and_then(Offspring::wait).map_err(|error| error.to_string())
        })
        .unwrap();
        let process = parent.process().unwrap().clone();
        let stopped = |pid: &u32| harness::state(*pid) == Some('T');
        let children = || harness::tagged(&harness::tag()).into_iter().filter(|pid| *pid != process.id());
        let mut child = None;
        harness::eventually("the child does not stop", || {
            child = children().find(stopped);
            child.is_some()
        });
        process.send_signal(libc::SIGSTOP).unwrap();
        // The stop itself is what is tried: it has to be longer than the start may take, and than a late waking is.
        assert!(parent.wait_timeout(START + Duration::from_millis(1500)).unwrap().is_none());
        process.send_signal(libc::SIGCONT).unwrap();
        harness::kill(child.unwrap(), libc::SIGCONT);
        assert_eq!(parent.wait().unwrap(), Ok(7));
    }

    fn case_64_offspring_of_offspring_four_deep() {
        fn nest(depth: u32) -> u32 {
            if depth == 0 { 1 } else { 1 + spawn(depth - 1, nest).unwrap().wait().unwrap() }
        }
        assert_eq!(spawn(3, nest).unwrap().wait().unwrap(), 4);
    }
}
