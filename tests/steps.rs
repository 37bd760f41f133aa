//! Every step of the protocol, every fault: a typed error within a bounded time, and the next start works.

#[path = "harness/mod.rs"]
mod harness;

use std::time::Duration;

use offspring::{ErrorKind, Offspring, Subprocess};
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

const BETWEEN: [&str; 3] = ["ready", "ran", "result"];
const AFTER: [&str; 2] = ["sent", "end"];

behaviour! {
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
