//! No orphan, whatever way the parent dies. The parents here are units themselves, which start units of their own.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use offspring::{Offspring, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, eventually, is_alive};

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub(crate) enum Death {
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
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Ear {
    Good,
    Deaf,
    Stopped,
    /// Blocks every signal that can be blocked.
    Shut,
    /// Has changed its user, by which the kernel takes the death signal off it.
    Stranger,
    DeafStranger,
    ShutStranger,
    /// Has executed another program.
    Another,
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
        if self.1 == Ear::Stopped {
            unit.process().unwrap().send_signal(libc::SIGSTOP).unwrap();
        }
        if self.1 == Ear::Another {
            eventually("it does not execute another", || harness::name(pid).as_deref() == Some("sleep"));
        }
        println!("{pid}");
        match self.0 {
            // SAFETY: these end the process, each in its way.
            Death::Kill | Death::Confined | Death::ConfinedUnheard => unsafe { libc::raise(libc::SIGKILL) },
            Death::Abort => std::process::abort(),
            // SAFETY: as above: no such page.
            Death::Segfault => unsafe { (8 as *const i32).read_volatile() },
            Death::Execve | Death::ExecveFromThread => {
                panic!("{}", Command::new("/bin/sleep").arg("3600").exec());
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
        if matches!(self.0, Ear::Stranger | Ear::DeafStranger | Ear::ShutStranger) {
            // SAFETY: changes this process's user.
            let changed =
                unsafe { libc::setresgid(65530, 65530, 65530) + libc::setresuid(65530, 65530, 65530) };
            assert_eq!(changed, 0);
        }
        if matches!(self.0, Ear::Deaf | Ear::DeafStranger) {
            // SAFETY: sets a disposition.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        }
        if matches!(self.0, Ear::Shut | Ear::ShutStranger) {
            // SAFETY: the mask of this thread, the only one.
            unsafe {
                let mut all: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            }
        }
        println!("here");
        if self.0 == Ear::Another {
            panic!("{}", Command::new("/bin/sleep").arg("3600").exec());
        }
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

/// Each of these deaths, and each of these ears.
fn each(deaths: &[Death], ears: &[Ear]) {
    for how in deaths {
        for ear in ears {
            die(*how, *ear);
            // It ends a moment after the last of its wards.
            eventually("the zygote is left", || harness::tagged(&harness::tag()).is_empty());
        }
    }
}

/// All that is left is the copy of a parent: ends it.
fn end_copy() {
    let mut left = Vec::new();
    eventually("the zygote is left", || {
        left = harness::tagged(&harness::tag());
        left.len() == 1
    });
    harness::kill(left[0], libc::SIGKILL);
    eventually("the copy is left", || !is_alive(left[0]));
}

const EXITS: [Death; 3] = [Death::Return, Death::Exit, Death::Panic];
const CRASHES: [Death; 2] = [Death::Abort, Death::Segfault];
const EXECUTIONS: [Death; 2] = [Death::Execve, Death::ExecveFromThread];
/// Those that hear of their parent's death, and take it in their ways.
const HEARING: [Ear; 2] = [Ear::Good, Ear::Deaf];
/// Those that cannot hear of it.
const UNHEARING: [Ear; 2] = [Ear::Stopped, Ear::Shut];

behaviour! {
    fn case_53_a_parent_that_exits() {
        each(&EXITS, &[Ear::Good, Ear::Deaf, Ear::Stopped]);
    }

    fn case_54_a_parent_that_crashes() {
        each(&CRASHES, &HEARING);
    }

    fn case_55_a_parent_that_is_killed() {
        each(&[Death::Kill], &HEARING);
    }

    fn case_57_a_parent_that_executes_another_program() {
        each(&EXECUTIONS, &HEARING);
    }

    fn case_62_a_unit_that_has_executed_another_program() {
        each(&[Death::Kill, Death::Exit, Death::Abort], &[Ear::Another]);
    }
}

behaviour! { through ["zygote"];
    fn case_53_a_parent_that_exits_and_units_that_cannot_hear_of_it() {
        each(&EXITS, &UNHEARING);
    }

    fn case_54_a_parent_that_crashes_and_units_that_cannot_hear_of_it() {
        each(&CRASHES, &UNHEARING);
    }

    fn case_55_a_parent_that_is_killed_and_units_that_cannot_hear_of_it() {
        each(&[Death::Kill, Death::Replaced, Death::Confined, Death::ConfinedUnheard], &UNHEARING);
    }

    fn case_56_parent_and_zygote_that_are_killed_together() {
        (0..10).for_each(|_| each(&[Death::Both], &HEARING));
    }

    fn case_57_a_parent_that_executes_another_program_and_units_that_cannot_hear_of_it() {
        each(&EXECUTIONS, &UNHEARING);
    }

    fn case_58_a_parent_that_leaves_a_copy_of_itself() {
        let ears = [Ear::Good, Ear::Deaf, Ear::Stopped, Ear::Shut].map(|ear| (Death::Copied, ear));
        for (how, ear) in ears.into_iter().chain(HEARING.map(|ear| (Death::BothCopied, ear))) {
            die(how, ear);
            end_copy();
        }
    }

    fn case_61_a_unit_that_has_changed_its_user() {
        if harness::can("another user", harness::is_root()) {
            each(&[Death::Kill, Death::Abort, Death::Execve, Death::Exit], &[Ear::Stranger, Ear::DeafStranger, Ear::ShutStranger]);
            each(&[Death::Both], &[Ear::Stranger, Ear::DeafStranger]);
        }
    }

    fn case_62_a_unit_that_has_executed_another_program_and_loses_more_than_its_parent() {
        each(&[Death::Both, Death::Execve], &[Ear::Another]);
        die(Death::Copied, Ear::Another);
        end_copy();
    }
}
