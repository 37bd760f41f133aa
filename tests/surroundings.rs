//! Surroundings that are not as usual: filters, limits, libraries with constructors, namespaces, tools.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::process::Command;

use harness::{can, eventually, good, is_again, library, myself, remove, zygote};
use offspring::{ErrorKind, Offspring, spawn};

fn double(n: u32) -> Result<u32, offspring::Error> {
    spawn(n, |n: u32| 2 * n).and_then(Offspring::wait)
}

/// The soft limit of open files.
fn limit_files(pid: i32, most: u64) -> u64 {
    // SAFETY: valid records.
    unsafe {
        let mut old: libc::rlimit = std::mem::zeroed();
        libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut old);
        let new = libc::rlimit { rlim_cur: most, ..old };
        assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const new, std::ptr::null_mut()), 0);
        old.rlim_cur
    }
}

behaviour! { through ["zygote"];
    fn a_filter_that_has_not_heard_of_clone3() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let unit = spawn(errno, |errno: i32| {
                // A unit is the parent here. glibc starts no thread behind such a filter, so ours are there before it.
                assert_eq!(double(1).unwrap(), 2);
                assert!(harness::filter(libc::SYS_clone3, errno, true));
                let first = zygote().unwrap();
                harness::kill(first, libc::SIGKILL);
                // Until it is seen to be dead, what is asked of it is refused, for it has no such filter.
                eventually("it does not die", || double(1).is_ok());
                for n in 0..5 {
                    assert_eq!(double(n).unwrap(), 2 * n);
                }
                assert_ne!(zygote(), Some(first));
                let error = spawn((), |()| -> () { std::process::exit(3) }).unwrap().wait().unwrap_err();
                assert_eq!(error.death().unwrap().status().code(), Some(3));
            });
            unit.unwrap().wait().unwrap();
        }
    }

    fn a_parent_without_descriptors_gets_an_error_and_no_child_stays() {
        assert_eq!(double(1).unwrap(), 2);
        let old = limit_files(0, 64);
        let mut all = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            all.push(file);
        }
        let (mut started, mut refused) = (0, 0);
        // With no descriptor left, with one, with two …: each step of a start is the first to lack one.
        for _ in 0..14 {
            match double(3) {
                Ok(value) => {
                    assert_eq!(value, 6);
                    started += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Start, "{error}");
                    let text = error.to_string();
                    assert!(text.contains("os error 24") || text.contains("open files"), "{text}");
                    refused += 1;
                }
            }
            all.pop();
        }
        assert!(started > 2 && refused > 0, "{started} {refused}");
        limit_files(0, old);
        drop(all);
        eventually("a child is left", || harness::tagged(&harness::tag()).is_empty());
        assert_eq!(double(5).unwrap(), 10);
    }

    fn a_childs_pidfd_that_is_lost_on_the_way_leaves_no_child() {
        // SAFETY: no other thread reads the environment here.
        unsafe { std::env::set_var("OFFSPRING_STEP", "zygote:cloned:stop") };
        std::thread::scope(|scope| {
            // The child is made, and its pidfd is sent once there is no room for it.
            let start = scope.spawn(|| double(1));
            let mut pid = None;
            eventually("the zygote does not stop", || {
                pid = zygote().filter(|pid| harness::state(*pid) == Some('T'));
                pid.is_some()
            });
            let old = limit_files(0, 64);
            let mut all = Vec::new();
            while let Ok(file) = std::fs::File::open("/dev/null") {
                all.push(file);
            }
            harness::kill(pid.unwrap(), libc::SIGCONT);
            let error = start.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start);
            assert!(error.to_string().contains("pidfd") && error.to_string().contains("os error 24"), "{error}");
            limit_files(0, old);
        });
        eventually("a child is left", || harness::tagged(&harness::tag()).is_empty());
        // SAFETY: as above.
        unsafe { std::env::remove_var("OFFSPRING_STEP") };
        offspring::shutdown();
        assert_eq!(double(2).unwrap(), 4);
    }

    fn a_zygote_without_descriptors_is_an_error_and_no_child_stays() {
        assert_eq!(double(1).unwrap(), 2);
        let pid = zygote().unwrap() as i32;
        // Its streams, its line, the pidfd of its parent; then a unit's line, then the child's pidfd.
        for most in [4, 5, 6] {
            let old = limit_files(pid, most);
            let error = double(1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start);
            assert!(error.to_string().contains("zygote") && error.to_string().contains("os error 24"), "{error}");
            limit_files(pid, old);
            assert_eq!(double(2).unwrap(), 4);
        }
        assert_eq!(zygote(), Some(pid as u32));
    }

    fn a_user_who_may_have_no_more_processes() {
        let unit = spawn((), |()| {
            // SAFETY: changes this process's user; valid records.
            unsafe {
                if !can("another user", libc::setresgid(65533, 65533, 65533) == 0 && libc::setresuid(65533, 65533, 65533) == 0) {
                    return;
                }
                assert_eq!(double(1).unwrap(), 2);
                let mut limit: libc::rlimit = std::mem::zeroed();
                libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit);
                let none = libc::rlimit { rlim_cur: 1, ..limit };
                let pid = zygote().unwrap() as i32;
                assert_eq!(libc::prlimit(pid, libc::RLIMIT_NPROC, &raw const none, std::ptr::null_mut()), 0);
                let error = double(1).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Start);
                assert!(error.to_string().contains("os error 11"), "{error}");
                assert_eq!(libc::prlimit(pid, libc::RLIMIT_NPROC, &raw const limit, std::ptr::null_mut()), 0);
            }
            assert_eq!(double(2).unwrap(), 4);
        });
        unit.unwrap().wait().unwrap();
    }

    fn what_a_constructor_left_to_be_printed_is_printed_once() {
        if is_again() {
            (0..10).for_each(|n| assert_eq!(double(n).unwrap(), 2 * n));
            return;
        }
        let library = library("prints", r#"
            #include <stdio.h>
            __attribute__((constructor)) static void it(void) { printf("<from a constructor>"); }
        "#);
        let mut command = myself();
        command.env("LD_PRELOAD", &library);
        let text = good(command);
        remove(&library);
        // The program's own, and the zygote's.
        assert_eq!(text.matches("<from a constructor>").count(), 2, "{text}");
    }

    fn constructors_run_once_in_the_zygote_and_what_they_made_is_there() {
        if is_again() {
            let symbol = |_: ()| {
                // SAFETY: the library that was loaded ahead has such a variable.
                unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"made_by_constructor".as_ptr()).cast::<i32>().read() }
            };
            let made: Vec<i32> = (0..3).map(|_| spawn((), symbol).unwrap().wait().unwrap()).collect();
            assert_eq!(made, [zygote().unwrap() as i32; 3]);
            return;
        }
        let library = library("makes", r"
            #include <unistd.h>
            int made_by_constructor;
            __attribute__((constructor)) static void it(void) { made_by_constructor = getpid(); }
        ");
        let mut command = myself();
        command.env("LD_PRELOAD", &library);
        good(command);
        remove(&library);
    }
}

mod fallback {
    use super::*;

    behaviour! { through ["auto"];
        fn a_kernel_that_does_not_tell_where_a_threads_id_is_leaves_the_slow_way() {
            const PR_GET_TID_ADDRESS: u32 = 40;
            if can("a filter", harness::filter_argument(libc::SYS_prctl, PR_GET_TID_ADDRESS, libc::EINVAL)) {
                for n in 0..3 {
                    assert_eq!(double(n).unwrap(), 2 * n);
                    eventually("the zygote is left", || harness::zygotes().is_empty());
                }
                assert_eq!(harness::spares(), []);
            }
        }

        fn a_zygote_without_descriptors_leaves_the_slow_way() {
            // The very first is executed, while the zygote is being made.
            assert_eq!((double(1).unwrap(), double(2).unwrap()), (2, 4));
            let pid = zygote().unwrap() as i32;
            let old = limit_files(pid, 5);
            assert_eq!(double(2).unwrap(), 4);
            limit_files(pid, old);
        }
    }

    /// A program under it must be told clearly; it can be run where there is one.
    #[test]
    fn valgrind_is_a_clear_refusal() {
        if is_again() {
            let error = double(1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("valgrind"), "{error}");
            return;
        }
        let mut command = Command::new("valgrind");
        command.args(["-q", "--error-exitcode=7"]).arg(std::env::current_exe().unwrap());
        command.args(["fallback::valgrind_is_a_clear_refusal", "--exact", "--nocapture"]).env("AGAIN", "1");
        match command.output() {
            Err(_) => println!("skipped: there is no valgrind here"),
            Ok(output) => assert!(output.status.success(), "{output:?}"),
        }
    }
}
