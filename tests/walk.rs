//! Every step of the protocol, every fault: a typed error within a bounded time, and the next start works.

#[path = "harness/mod.rs"]
mod harness;

use std::time::Duration;

use offspring::{ErrorKind, Offspring, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Unit;

impl Subprocess for Unit {
    type Output = u32;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) -> u32 {
        7
    }
}

#[derive(Serialize, Deserialize)]
struct Awaited;

impl Subprocess for Awaited {
    type Output = u32;
    const WAIT_FOR_CHILD: bool = true;

    fn run(self) -> u32 {
        7
    }
}

const BEFORE: [&str; 3] = ["boot", "received", "setup"];
const BETWEEN: [&str; 3] = ["ready", "ran", "result"];
const AFTER: [&str; 2] = ["sent", "end"];

behaviour! {
    fn a_child_that_dies_at_any_step() {
        let steps = BEFORE.iter().chain(&BETWEEN).chain(&AFTER);
        for (step, fault) in steps.flat_map(|step| ["kill", "exit", "abort"].map(|fault| (*step, fault))) {
            let wish = format!("child:{step}:{fault}");
            let start = |wish: &str| Offspring::builder(Unit).env("OFFSPRING_STEP", wish).stderr(Stdio::null()).spawn();
            let result = start(&wish).unwrap().wait();
            if AFTER.contains(&step) {
                assert_eq!(result.unwrap(), 7, "{wish}");
            } else {
                let kind = if BEFORE.contains(&step) { ErrorKind::Start } else { ErrorKind::Died };
                let error = result.unwrap_err();
                assert_eq!(error.kind(), kind, "{wish}: {error}");
                assert!(error.death().is_some());
            }
            assert_eq!(start("").unwrap().wait().unwrap(), 7);
        }
    }

    fn a_start_that_waits_hears_of_it_at_once() {
        for step in BEFORE {
            let builder = Offspring::builder(Awaited).env("OFFSPRING_STEP", format!("child:{step}:kill"));
            assert_eq!(builder.spawn().unwrap_err().kind(), ErrorKind::Start, "{step}");
        }
        assert_eq!(Awaited.spawn().unwrap().wait().unwrap(), 7);
    }

    fn a_child_that_stops_before_its_unit_is_killed_when_its_start_takes_too_long() {
        for step in BEFORE {
            let builder = Offspring::builder(Awaited).env("OFFSPRING_STEP", format!("child:{step}:stop"));
            let error = builder.start_timeout(Duration::from_millis(50)).spawn().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start, "{step}");
            assert!(error.to_string().contains("in time"), "{error}");
        }
    }

    fn so_is_one_that_nobody_waits_for_and_one_that_got_as_far_is_let_be() {
        for step in BEFORE {
            let builder = Offspring::builder(Unit).env("OFFSPRING_STEP", format!("child:{step}:stop"));
            let error = builder.start_timeout(Duration::from_millis(50)).spawn().and_then(Offspring::wait).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start, "{step}");
            assert!(error.to_string().contains("in time"), "{error}");
        }
        #[derive(Serialize, Deserialize)]
        struct Asked;
        impl Subprocess for Asked {
            type Output = usize;
            fn run(self) -> usize {
                std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()).unwrap()
            }
        }
        let builder = Offspring::builder(Asked).stdin(Stdio::piped()).start_timeout(Duration::from_millis(50));
        let mut unit = builder.spawn().unwrap();
        // The time itself is what is tried: it is longer than a start may take.
        assert!(unit.wait_timeout(Duration::from_millis(300)).unwrap().is_none());
        drop(unit.take_stdin());
        assert_eq!(unit.wait().unwrap(), 0);
    }

    fn a_child_that_stops_later_ends_by_timeout_shutdown_or_its_lingering() {
        for step in BETWEEN {
            let stopped = || Offspring::builder(Unit).env("OFFSPRING_STEP", format!("child:{step}:stop"));
            let unit = stopped().timeout(Duration::from_millis(50)).spawn().unwrap();
            assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::TimedOut, "{step}");
            // It may be asked before it has stopped, and end at the step or before it; or go on after CONT.
            assert!(matches!(stopped().spawn().unwrap().shutdown(), Ok(None | Some(7))), "{step}");
        }
        for step in AFTER {
            let unit = Offspring::builder(Unit).env("OFFSPRING_STEP", format!("child:{step}:stop")).spawn().unwrap();
            assert_eq!(unit.wait().unwrap(), 7, "{step}");
        }
    }

    fn a_start_survives_a_stop_of_parent_and_child_that_is_longer_than_its_timeout() {
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

    fn a_child_that_says_what_is_no_message_is_killed() {
        #[derive(Serialize, Deserialize)]
        struct Rude(Vec<u8>);
        impl Subprocess for Rude {
            type Output = ();
            #[allow(unsafe_code)]
            fn run(self) {
                // SAFETY: the line is at descriptor 3; the buffer is valid.
                unsafe { libc::write(3, self.0.as_ptr().cast(), self.0.len()) };
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        let header = |kind: u32, length: u64| {
            [&0x4f66_7331_u32.to_le_bytes()[..], &kind.to_le_bytes()[..], &length.to_le_bytes()[..]].concat()
        };
        let garbled = [header(19, 4), vec![0xc1; 4]].concat();
        for words in [b"hello, this is no frame".to_vec(), header(18, 1 << 63), header(99, 0), header(1, 0), garbled] {
            let error = Offspring::new(Rude(words)).unwrap().wait().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Died, "{error}");
            assert!(error.to_string().contains("message"), "{error}");
        }
    }

    fn a_parent_that_dies_at_any_step_leaves_nobody() {
        for (step, fault) in ["launch", "launched", "queued"].into_iter().flat_map(|s| ["kill", "exit", "abort"].map(|f| (s, f))) {
            // A unit is the parent here, and takes the wish upon itself for its own start.
            let unit = offspring::spawn(format!("parent:{step}:{fault}"), |wish: String| {
                #[allow(unsafe_code)]
                // SAFETY: the child process has one thread.
                unsafe { std::env::set_var("OFFSPRING_STEP", wish) };
                drop(offspring::spawn((), |()| std::thread::sleep(Duration::from_secs(3600))));
            });
            assert!(unit.unwrap().wait().is_err(), "{step} {fault}");
            harness::eventually("an orphan is left", || harness::tagged(&harness::tag()).is_empty());
        }
    }
}
