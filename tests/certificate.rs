//! The certificate of a unit that ended without a result.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::eventually;
use offspring::{Death, EndedBy, Error, ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

const MEGABYTE: usize = 1 << 20;

/// What is to happen in a unit.
#[derive(Serialize, Deserialize, Clone)]
enum Act {
    /// So much of either, and then an abort.
    Use(Duration, usize),
    Exit(i32),
    Panic(String),
    /// Writes that to its standard error.
    Say(String),
    Sleep,
}

impl Subprocess for Act {
    type Output = ();

    fn run(self) {
        match self {
            Self::Use(time, memory) => {
                let bytes = vec![1_u8; memory];
                let began = used();
                while used() - began < time {
                    std::hint::black_box(&bytes);
                }
                std::process::abort();
            }
            Self::Exit(code) => std::process::exit(code),
            Self::Panic(text) => panic!("{text}"),
            Self::Say(text) => {
                eprint!("{text}");
                std::process::exit(1);
            }
            Self::Sleep => std::thread::sleep(Duration::from_secs(3600)),
        }
    }
}

/// This process's processor time.
fn used() -> Duration {
    // SAFETY: a zeroed record is a valid one for getrusage(2) to write into.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

fn error(act: Act) -> Error {
    Offspring::new(act).unwrap().wait().unwrap_err()
}

fn death(act: Act) -> Death {
    error(act).death().unwrap().clone()
}

behaviour! {
    fn who_it_was_and_what_it_used() {
        let began = Instant::now();
        let unit = Offspring::builder(Act::Use(Duration::from_millis(60), 64 * MEGABYTE)).name("hungry").spawn().unwrap();
        let id = unit.process().unwrap().id();
        let error = unit.wait().unwrap_err();
        let (waited, death) = (began.elapsed(), error.death().unwrap());
        assert_eq!((death.name(), death.id(), death.ended_by()), ("hungry", id, EndedBy::Itself));
        assert!(death.type_name().ends_with("Act"), "{death:?}");
        assert_eq!(death.status().signal(), Some(libc::SIGABRT));
        assert_eq!(death.core_dumped(), death.status().core_dumped());
        assert!(death.ran() <= waited, "{death:?}");
        let (time, memory) = (death.cpu_time().unwrap(), death.peak_memory().unwrap());
        assert!(time >= Duration::from_millis(60) && time <= death.ran() + Duration::from_millis(20), "{death:?}");
        assert!(memory >= 64 * MEGABYTE as u64 && memory < 4096 * MEGABYTE as u64, "{death:?}");
        assert_eq!((death.panic(), death.stderr()), (None, None));
    }

    fn one_that_did_little_used_little() {
        let little = death(Act::Exit(7));
        assert_eq!((little.status().code(), little.ended_by()), (Some(7), EndedBy::Itself));
        // One that is executed is said to have had what we have: the test's program is small.
        assert!(little.peak_memory().unwrap() < 64 * MEGABYTE as u64, "{little:?}");
        assert!(little.cpu_time().unwrap() < Duration::from_secs(1), "{little:?}");
    }

    fn who_has_no_result_to_give_does_not_exit_with_success() {
        let code = |error: offspring::Error| error.death().unwrap().status().code();
        assert_eq!(code(error(Act::Panic("out of luck".into()))), Some(101));
        let refused = Offspring::builder(Act::Exit(0)).limit_memory(1 << 20).spawn().and_then(Offspring::wait).unwrap_err();
        assert_eq!((refused.kind(), code(refused.clone())), (ErrorKind::Start, Some(1)), "{refused}");
        assert_eq!(code(error(Act::Exit(0))), Some(0));
    }

    fn a_panic_is_in_it() {
        let error = error(Act::Panic("out of luck\nand of words".into()));
        let death = error.death().unwrap();
        assert_eq!(death.panic(), error.panic());
        assert_eq!(death.panic().unwrap().message(), "out of luck\nand of words");
        assert_eq!(death.ended_by(), EndedBy::Itself);
        let text = death.to_string();
        assert!(text.lines().count() == 2 && text.contains("out of luck / and of words"), "{text}");
    }

    fn who_ended_it() {
        let unit = Offspring::builder(Act::Sleep).timeout(Duration::from_millis(1)).spawn().unwrap();
        let timed_out = unit.wait().unwrap_err();
        assert_eq!(timed_out.death().unwrap().ended_by(), EndedBy::Timeout);

        let unit = Offspring::new(Act::Sleep).unwrap();
        unit.process().unwrap().begin_shutdown();
        assert_eq!(unit.wait().unwrap_err().death().unwrap().ended_by(), EndedBy::Shutdown);

        let unit = Offspring::new(Act::Sleep).unwrap();
        unit.process().unwrap().send_signal(libc::SIGHUP).unwrap();
        assert_eq!(unit.wait().unwrap_err().death().unwrap().ended_by(), EndedBy::Other);

        let unit = Offspring::builder(Act::Sleep).env("OFFSPRING_STEP", "child:received:stop");
        let late = unit.start_timeout(Duration::from_millis(300)).spawn().unwrap().wait().unwrap_err();
        assert_eq!((late.kind(), late.death().unwrap().ended_by()), (ErrorKind::Start, EndedBy::StartTimeout));

        let unit = Offspring::new(Act::Sleep).unwrap();
        offspring::shutdown();
        assert_eq!(unit.wait().unwrap_err().death().unwrap().ended_by(), EndedBy::ParentExit);
    }

    fn its_last_lines_if_nobody_else_has_them() {
        let many: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        let last: Vec<String> = (19_990..20_000).map(|n| format!("line {n}")).collect();
        let say = || Offspring::builder(Act::Say(many.clone())).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let error = say().wait().unwrap_err();
        assert_eq!(error.death().unwrap().stderr(), Some(&*last.join("\n")));
        assert!(error.death().unwrap().to_string().ends_with("its last line: line 19999"), "{error}");

        // Somebody else has them.
        let mut unit = say();
        let mut theirs = unit.take_stderr().unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, many);
        assert_eq!(unit.wait().unwrap_err().death().unwrap().stderr(), None);
    }

    fn its_last_lines_if_it_ended_before_anybody_asked() {
        let few = || Offspring::builder(Act::Say("one\ntwo".into())).stderr(Stdio::piped()).spawn().unwrap();
        // In the moment in which it is reaped, by another thread, as well.
        for round in 0..100 {
            let unit = few();
            let process = unit.process().unwrap().clone();
            std::thread::scope(|scope| {
                scope.spawn(|| eventually("its end", || !process.is_alive()));
                while process.is_alive() {}
                assert_eq!(unit.wait().unwrap_err().death().unwrap().stderr(), Some("one\ntwo"), "{round}");
            });
        }

        // Whoever keeps the handle can read them himself as well.
        let mut unit = few();
        let error = loop {
            match unit.wait_timeout(Duration::from_secs(60)) {
                Ok(None) => {}
                other => break other.unwrap_err(),
            }
        };
        assert_eq!(error.death().unwrap().stderr(), Some("one\ntwo"));
        let mut text = String::new();
        unit.take_stderr().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo");
    }

    fn its_last_lines_where_new_pipes_are_small() {
        let unit = spawn((), |()| {
            if !harness::become_user(65530) {
                return;
            }
            harness::limit(0, libc::RLIMIT_NOFILE, 4000);
            let text: String = (0..3000).map(|n| format!("line {n}\n")).collect();
            let unit = Offspring::builder(Act::Say(text)).stderr(Stdio::piped()).spawn().unwrap();
            let process = unit.process().unwrap().clone();
            eventually("its end", || !process.is_alive());
            let _held: Vec<_> = (0..1100).map(|_| std::io::pipe().unwrap()).collect();
            let error = unit.wait().unwrap_err();
            // All of it, or nothing; but not something from the middle.
            let last = error.death().unwrap().stderr().map(|text| text.lines().last().unwrap().to_owned());
            assert!(last.as_deref().is_none_or(|last| last == "line 2999"), "{last:?}");
        });
        unit.unwrap().wait().unwrap();
    }

    fn want_of_memory() {
        let Some(group) = Group::new(&harness::tag(), 64 * MEGABYTE) else { return };
        let greedy = || {
            let unit = spawn(group.0.clone(), |group: PathBuf| {
                std::fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
                let all: Vec<Vec<u8>> = (0..1000).map(|n| std::hint::black_box(vec![n as u8; MEGABYTE])).collect();
                all.iter().map(Vec::len).sum::<usize>()
            });
            unit.unwrap()
        };
        // Also two in the same moment.
        for units in [vec![greedy()], vec![greedy(), greedy()]] {
            for unit in units {
                let error = unit.wait().unwrap_err();
                let death = error.death().unwrap();
                assert_eq!((death.status().signal(), death.ended_by()), (Some(libc::SIGKILL), EndedBy::OutOfMemory));
                assert!(error.to_string().contains("for want of memory"), "{error}");
            }
        }
        // The next kill is not taken for one of those.
        let unit = Offspring::new(Act::Sleep).unwrap();
        unit.process().unwrap().kill().unwrap();
        assert_eq!(unit.wait().unwrap_err().death().unwrap().ended_by(), EndedBy::Other);
    }
}

/// A control group with so much memory, below that of this process.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, memory: usize) -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let made = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, own) = rest.split_once(':')?;
            let (root, limit) = match controllers {
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                "" => ("/sys/fs/cgroup", "memory.max"),
                _ => return None,
            };
            let place = Path::new(root).join(own.trim_start_matches('/')).join(name.replace("::", "-"));
            std::fs::create_dir(&place).ok()?;
            let group = Self(place);
            std::fs::write(group.0.join(limit), memory.to_string()).ok().map(|()| group)
        });
        harness::can("a control group with a limit of memory", made.is_some()).then_some(made?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        eventually("the group is empty", || std::fs::remove_dir(&self.0).is_ok());
    }
}
