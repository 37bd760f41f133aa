//! The zygote dies, or cannot be made: running units are not harmed, starts go on, or are told why they cannot.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use offspring::{ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{
    self, Double, doubles, eventually, good, is_again, is_alive, library, myself, remove, wish, zygote,
};

#[derive(Serialize, Deserialize)]
struct Echo;

impl Subprocess for Echo {
    type Output = usize;

    fn run(self) -> usize {
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap()
    }
}

behaviour! { through ["zygote"];
    fn case_65_a_killed_one_is_replaced_and_what_runs_is_not_harmed() {
        let mut running = Offspring::builder(Echo).stdin(Stdio::piped()).spawn().unwrap();
        for n in 0..20 {
            let old = zygote().unwrap();
            harness::kill(old, libc::SIGKILL);
            doubles(n);
            eventually("the old one is left", || !is_alive(old));
        }
        drop(running.take_stdin());
        assert_eq!(running.wait().unwrap(), 0);
    }

    fn case_65_one_that_is_killed_again_and_again_fails_no_start() {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut killed = 0;
                while !done.load(Ordering::SeqCst) {
                    if let Some(pid) = zygote() {
                        harness::kill(pid, libc::SIGKILL);
                        killed += 1;
                        // Until it is dead, so that each counts once; and a few starts.
                        eventually("it does not die", || !is_alive(pid));
                        (0..5).for_each(doubles);
                    }
                }
                killed
            });
            let starters: Vec<_> = (0..8).map(|thread| scope.spawn(move || {
                for n in 0..60 {
                    doubles(1000 * thread + n);
                }
            })).collect();
            starters.into_iter().for_each(|starter| starter.join().unwrap());
            done.store(true, Ordering::SeqCst);
            assert!(killer.join().unwrap() > 3);
        });
    }

    fn case_65_a_child_whose_maker_died_without_a_word_is_found_and_runs_once() {
        // Each zygote dies right after it has made its first child.
        for fault in ["kill", "exit", "abort"] {
            wish(&format!("zygote:cloned:{fault}"));
            (0..20).for_each(doubles);
            let error = spawn((), |()| -> () { std::process::exit(3) }).unwrap().wait().unwrap_err();
            assert_eq!(error.death().unwrap().status().code(), Some(3));
            offspring::shutdown();
            wish(&format!("zygote:told:{fault}"));
            (0..20).for_each(doubles);
            offspring::shutdown();
        }
    }

    fn case_66_one_that_dies_of_each_request_fails_the_start_in_time() {
        wish("zygote:asked:kill");
        let error = Offspring::builder(Double(1)).start_timeout(Duration::from_millis(300)).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start, "{error}");
        wish("");
        doubles(1);
    }

    fn case_66_one_that_never_gets_ready_is_an_error_that_says_how_it_ended() {
        for (fault, how) in [("kill", "signal: 9"), ("exit", "exit status: 9"), ("abort", "signal: 6")] {
            wish(&format!("zygote:boot:{fault}"));
            let error = Double(1).spawn().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start);
            assert!(error.to_string().contains("zygote") && error.to_string().contains(how), "{error}");
            wish("");
            doubles(1);
            offspring::shutdown();
        }
    }

    fn case_66_a_constructor_that_crashes_in_a_zygote_is_an_error_after_three() {
        if is_again() {
            let error = spawn(1, |n: u32| n).and_then(Offspring::wait).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start);
            assert!(error.to_string().contains("3 in a row") && error.to_string().contains("signal: 11"), "{error}");
            return;
        }
        let library = library("crashes", r#"
            #include <stdlib.h>
            #include <signal.h>
            __attribute__((constructor)) static void it(void) { if (getenv("OFFSPRING_CHILD_OF")) raise(SIGSEGV); }
        "#);
        let mut command = myself();
        command.env("LD_PRELOAD", &library);
        good(command);
        remove(&library);
    }
}
