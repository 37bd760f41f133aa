//! No orphan, whatever way the parent dies. The parents here are units themselves, which start units of their own.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::time::Duration;

use harness::{eventually, is_alive};
use offspring::{Offspring, Stdio, Subprocess, SubprocessLoop};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Death {
    Kill,
    Abort,
    Segfault,
    Execve,
    ExecveFromThread,
    Return,
    Exit,
    Panic,
    /// Its zygote is killed in the same instant.
    Both,
    /// It leaves a copy of itself, which holds all its descriptors.
    Copied,
    /// Both of these.
    BothCopied,
    /// Its zygote was killed before, and there is another.
    Replaced,
    /// It has a zygote, but the unit was executed.
    Confined,
    /// As before, and its zygote was stopped, so that it hears of the unit after the end.
    ConfinedUnheard,
}

/// How the grandchild takes TERM.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
enum Ear {
    Good,
    Deaf,
    Stopped,
    /// Blocks every signal that can be blocked.
    Shut,
}

#[derive(Serialize, Deserialize)]
struct Parent(Death, Ear);

impl Subprocess for Parent {
    type Output = ();

    fn run(self) {
        if self.0 == Death::ExecveFromThread {
            std::thread::spawn(move || self.work()).join().unwrap();
        } else {
            self.work();
        }
    }
}

impl Parent {
    fn work(self) {
        if matches!(self.0, Death::Confined | Death::ConfinedUnheard) {
            // SAFETY: the unit's first thread; and takes the switch off that would not let it go another way.
            unsafe { std::env::remove_var("OFFSPRING_LAUNCHER") };
            // The very first is executed, while the zygote is being made.
            for _ in 0..2 {
                offspring::spawn((), |()| ()).unwrap().wait().unwrap();
            }
            // SAFETY: sets a flag of this thread.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        }
        if self.0 == Death::ConfinedUnheard {
            let zygote = harness::zygote().unwrap();
            harness::kill(zygote, libc::SIGSTOP);
            eventually("the zygote does not stop", || harness::state(zygote) == Some('T'));
        }
        let mut unit = Offspring::builder(Child(self.1)).stdout(Stdio::piped()).spawn().unwrap();
        unit.take_stdout().unwrap().read_exact(&mut [0; 5]).unwrap();
        let pid = unit.process().unwrap().id();
        if matches!(self.1, Ear::Stopped) {
            unit.process().unwrap().send_signal(libc::SIGSTOP).unwrap();
        }
        println!("{pid}");
        match self.0 {
            // SAFETY: these end the process, each in its way.
            Death::Kill | Death::Confined | Death::ConfinedUnheard => unsafe { libc::raise(libc::SIGKILL) },
            Death::Abort => std::process::abort(),
            // SAFETY: as above: no such page.
            Death::Segfault => unsafe { (8 as *const i32).read_volatile() },
            Death::Execve | Death::ExecveFromThread => {
                use std::os::unix::process::CommandExt;
                panic!("{}", std::process::Command::new("/bin/sleep").arg("3600").exec());
            }
            Death::Return => {
                drop(unit);
                0
            }
            Death::Exit => std::process::exit(4),
            Death::Panic => panic!("out"),
            Death::Replaced => {
                let first = harness::zygote().unwrap();
                harness::kill(first, libc::SIGKILL);
                eventually("there is no other", || {
                    offspring::spawn((), |()| ()).unwrap().wait().unwrap();
                    harness::zygote().is_some_and(|zygote| zygote != first)
                });
                // SAFETY: as above.
                unsafe { libc::raise(libc::SIGKILL) }
            }
            Death::Both => {
                harness::kill(harness::zygote().unwrap(), libc::SIGKILL);
                // SAFETY: as above.
                unsafe { libc::raise(libc::SIGKILL) }
            }
            Death::Copied | Death::BothCopied => {
                if self.0 == Death::BothCopied {
                    harness::kill(harness::zygote().unwrap(), libc::SIGKILL);
                }
                // SAFETY: as above; the copy only sleeps.
                unsafe {
                    if libc::fork() == 0 {
                        // Not to be waited for by whoever reads these to their end.
                        libc::close(1);
                        libc::close(2);
                        loop {
                            std::thread::sleep(Duration::from_secs(3600));
                        }
                    }
                    libc::raise(libc::SIGKILL)
                }
            }
        };
    }
}

#[derive(Serialize, Deserialize)]
struct Child(Ear);

impl Subprocess for Child {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) {
        if matches!(self.0, Ear::Deaf) {
            // SAFETY: sets a disposition.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        }
        if matches!(self.0, Ear::Shut) {
            // SAFETY: the mask of this thread, the only one.
            unsafe {
                let mut all: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            }
        }
        println!("here");
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

/// Lets a parent die; gives its grandchild's pid, once the parent has died or executed something else.
fn die(how: Death, ear: Ear) {
    let mut parent =
        Offspring::builder(Parent(how, ear)).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.take_stdout().unwrap()).read_line(&mut line).unwrap();
    let pid = line.trim().parse().unwrap();
    eventually("an orphan is left", || !is_alive(pid));
    match how {
        Death::Return => parent.wait().unwrap(),
        Death::Execve | Death::ExecveFromThread => drop(parent.shutdown().unwrap()),
        _ => drop(parent.wait().unwrap_err()),
    }
}

const DEATHS: [Death; 8] = [
    Death::Kill,
    Death::Abort,
    Death::Segfault,
    Death::Execve,
    Death::ExecveFromThread,
    Death::Return,
    Death::Exit,
    Death::Panic,
];

#[derive(Serialize, Deserialize)]
struct Large(serde_bytes::ByteBuf);

impl Subprocess for Large {
    type Output = ();

    fn run(self) {}
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

behaviour! { through ["zygote"];
    fn units_that_cannot_hear_of_it_end_with_their_parent() {
        for how in DEATHS.into_iter().chain([Death::Replaced]) {
            die(how, Ear::Stopped);
            die(how, Ear::Shut);
        }
    }

    fn a_stopped_loop_whose_parent_dies_comes_to_its_end() {
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
        std::fs::remove_file(mark).unwrap();
    }

    fn units_that_were_executed_and_cannot_hear_of_it_end_as_well() {
        for ear in [Ear::Stopped, Ear::Shut] {
            die(Death::Confined, ear);
            die(Death::ConfinedUnheard, ear);
        }
    }

    fn units_end_when_parent_and_zygote_are_killed_together() {
        for ear in [Ear::Good, Ear::Deaf] {
            (0..10).for_each(|_| die(Death::Both, ear));
        }
    }

    fn units_end_when_a_copy_of_their_parent_goes_on() {
        let deaths = [Ear::Good, Ear::Deaf, Ear::Stopped, Ear::Shut].map(|ear| (Death::Copied, ear));
        for (how, ear) in deaths.into_iter().chain([(Death::BothCopied, Ear::Good), (Death::BothCopied, Ear::Deaf)]) {
            die(how, ear);
            // All that is left is the copy.
            let mut left = Vec::new();
            eventually("the zygote is left", || {
                left = harness::tagged(&harness::tag());
                left.len() == 1
            });
            harness::kill(left[0], libc::SIGKILL);
            eventually("the copy is left", || !is_alive(left[0]));
        }
    }

    fn a_tree_of_units_ends_from_the_top_down() {
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
    fn units_that_obey_term_end_with_their_parent() {
        for how in DEATHS {
            die(how, Ear::Good);
        }
    }

    fn units_that_are_deaf_to_term_end_after_the_grace() {
        for how in DEATHS {
            die(how, Ear::Deaf);
        }
    }

    fn a_stopped_unit_ends_when_its_parent_exits() {
        for how in [Death::Return, Death::Exit, Death::Panic] {
            die(how, Ear::Stopped);
        }
    }

    fn a_unit_that_is_not_to_be_terminated_runs_if_its_parent_is_gone_before_it_begins() {
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

    fn a_unit_that_is_not_to_be_terminated_outlives_its_parent_and_ends() {
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

    fn a_parent_that_dies_before_its_unit_is_sent_and_leaves_a_copy_of_itself_leaves_no_child() {
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

    fn the_end_of_the_thread_that_started_a_unit_does_it_no_harm() {
        let thread = std::thread::spawn(|| {
            let unit = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
            (unit, std::fs::read_link("/proc/thread-self").unwrap())
        });
        let (mut unit, thread) = thread.join().unwrap();
        eventually("the thread is still there", || !std::path::Path::new("/proc").join(&thread).exists());
        drop(unit.take_stdin());
        assert_eq!(unit.wait().unwrap(), 0);
    }
}
