//! A unit begins once or not at all, whatever becomes of those who were to bring it about.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::time::Duration;

use harness::marks::{Mark, file, runs};
use harness::{eventually, zygote};
use offspring::{Offspring, spawn};

/// A zygote that is ready. (A spare may be of one that is dead already.)
fn warm_up() -> u32 {
    let mut found = None;
    eventually("there is no zygote", || {
        spawn((), |()| ()).unwrap().wait().unwrap();
        found = zygote();
        found.is_some()
    });
    found.unwrap()
}

behaviour! { through ["zygote", "spare"];
    fn when_the_zygote_is_killed_while_many_are_asked_for() {
        let file = file();
        for round in 0..60_u64 {
            let victim = warm_up();
            std::thread::scope(|scope| {
                for number in 0..24 {
                    let file = &file;
                    scope.spawn(move || {
                        let unit = Mark { file: file.clone(), number };
                        assert_eq!(Offspring::new(unit).and_then(Offspring::wait).unwrap(), number);
                    });
                }
                // A different moment each time is what is tried.
                std::thread::sleep(Duration::from_micros(round * 97 % 5000));
                harness::kill(victim, libc::SIGKILL);
            });
            assert_eq!(runs(&file), (0..24).map(|number| (number, 1)).collect(), "round {round}");
        }
    }
}

behaviour! { through ["auto"];
    fn when_a_thread_with_other_rights_starts_while_a_zygote_dies() {
        let file = file();
        for round in 0..20_u64 {
            let victim = warm_up();
            std::thread::scope(|scope| {
                for number in 0..8 {
                    let file = &file;
                    scope.spawn(move || {
                        // SAFETY: sets a flag of this thread.
                        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                        let unit = Mark { file: file.clone(), number };
                        assert_eq!(Offspring::new(unit).and_then(Offspring::wait).unwrap(), number);
                    });
                }
                std::thread::sleep(Duration::from_micros(round * 397 % 5000));
                harness::kill(victim, libc::SIGKILL);
            });
            assert_eq!(runs(&file), (0..8).map(|number| (number, 1)).collect(), "round {round}");
        }
    }
}
