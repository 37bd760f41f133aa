//! The risks of the mechanism itself, where a start is concerned: code that runs before `main`, and clones that libc does not
//! know of.

// Named before any other is, so that it is linked behind the library.
extern crate late;

use std::io::Read;
use std::process::Command;

use offspring::{ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, can, double, eventually, is_again, zygote};

/// Every launcher, and the library's own choice.
const EVERY: [&str; 4] = ["auto", "zygote", "spare", "exec"];

fn twice(n: u32) {
    assert_eq!(double(n).unwrap(), 2 * n);
}

/// What it was called by, in its own words.
#[derive(Serialize, Deserialize)]
struct Prints;

impl Subprocess for Prints {
    type Output = Option<String>;

    fn run(self) -> Option<String> {
        print!("a unit");
        std::thread::current().name().map(str::to_owned)
    }
}

behaviour! { through EVERY;
    fn risk_1_constructors_that_stand_behind_ours_have_run_before_the_unit() {
        assert_eq!(late::built(), 2);
        for _ in 0..2 {
            // 2 as it is linked here; another linker may put it before ours, and then it has run anyway.
            assert_ne!(spawn((), |()| late::built()).unwrap().wait().unwrap(), 0);
        }
    }

    fn risk_4_main_is_never_run_in_a_child() {
        for _ in 0..3 {
            let mut unit = Offspring::builder(Prints).stdout(Stdio::piped()).spawn().unwrap();
            let mut text = String::new();
            unit.take_stdout().unwrap().read_to_string(&mut text).unwrap();
            // This program's `main` would say how many tests it runs.
            assert_eq!(text, "a unit");
            // std names the first thread on its way to `main`.
            assert_eq!(unit.wait().unwrap(), None);
        }
    }

    fn risk_9_a_program_that_a_loader_was_told_to_run_is_not_executed_again() {
        if is_again() {
            // /proc/self/exe is the loader.
            assert!(!std::env::current_exe().unwrap().ends_with(std::env::args().next().unwrap()));
            for _ in 0..2 {
                let error = double(1).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.to_string().contains("shared library"), "{error}");
            }
            println!("refused");
            return;
        }
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let loader = maps.split_whitespace().find(|word| word.rsplit('/').next().unwrap().starts_with("ld-"));
        if can("a loader", loader.is_some()) {
            let inner = harness::myself();
            let mut command = Command::new(loader.unwrap());
            command.arg(inner.get_program()).args(inner.get_args()).env("AGAIN", "1");
            let text = harness::good(command);
            assert_eq!((text.matches("running 1 test").count(), text.matches("refused").count()), (1, 1), "{text}");
        }
    }
}

behaviour! { through ["zygote"];
    fn risk_2_constructors_run_once_in_the_zygote_and_what_they_made_is_there() {
        if is_again() {
            let symbol = |_: ()| {
                // SAFETY: the library that was loaded ahead has such variables.
                let number = |name: &std::ffi::CStr| unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()).cast::<i32>().read() };
                (number(c"made_by_constructor"), std::fs::read_link(format!("/proc/self/fd/{}", number(c"opened"))).ok())
            };
            for _ in 0..3 {
                let made = spawn((), symbol).unwrap().wait().unwrap();
                assert_eq!(made, (zygote().unwrap() as i32, Some("/dev/full".into())));
            }
            return;
        }
        let library = harness::library("makes", r#"
            #include <fcntl.h>
            #include <unistd.h>
            int made_by_constructor, opened;
            __attribute__((constructor)) static void it(void) { made_by_constructor = getpid(); opened = open("/dev/full", O_WRONLY); }
        "#);
        let mut command = harness::myself();
        command.env("LD_PRELOAD", &library);
        harness::good(command);
        harness::remove(&library);
    }

    fn risk_5_a_units_thread_id_and_locks_are_its_own() {
        twice(1);
        let affinity = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
            .lines().find_map(|line| line.strip_prefix("Cpus_allowed:\t").map(str::to_owned)).unwrap();
        let before = affinity(zygote().unwrap());
        let own = spawn((), |()| {
            // SAFETY: a zeroed set is a valid one; the calls are for the calling thread.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(0, &mut set);
                assert_eq!(libc::pthread_setaffinity_np(libc::pthread_self(), size_of_val(&set), &raw const set), 0);
            }
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
                .lines().find_map(|line| line.strip_prefix("Cpus_allowed:\t").map(str::to_owned)).unwrap()
        });
        let own = own.unwrap().wait().unwrap();
        assert_eq!(u64::from_str_radix(&own.replace(',', ""), 16).unwrap(), 1);
        assert_eq!(affinity(zygote().unwrap()), before);
        let mut unit = Offspring::builder(Owner).stdout(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        unit.take_stdout().unwrap().read_to_string(&mut text).unwrap();
        let _ = unit.wait();
        assert_eq!(text.trim(), "true");
    }
}

behaviour! { through ["auto"];
    fn risk_5_a_kernel_that_does_not_tell_where_a_threads_id_is_leaves_the_slow_way() {
        const PR_GET_TID_ADDRESS: u32 = 40;
        if can("a filter", harness::filter_argument(libc::SYS_prctl, 0, PR_GET_TID_ADDRESS, libc::EINVAL)) {
            for n in 0..3 {
                twice(n);
                eventually("the zygote is left", || harness::zygotes().is_empty());
            }
            assert_eq!(harness::spares(), []);
        }
    }
}

/// Ends as the owner of a lock that it shares with a copy of itself, which says whether it was told.
#[derive(Serialize, Deserialize)]
struct Owner;

impl Subprocess for Owner {
    type Output = ();

    fn run(self) {
        // SAFETY: the mutex lives in shared memory that both processes map, and is set up before the fork.
        unsafe {
            let size = size_of::<libc::pthread_mutex_t>();
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let memory =
                libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0);
            let mutex: *mut libc::pthread_mutex_t = memory.cast();
            let mut kind: libc::pthread_mutexattr_t = std::mem::zeroed();
            libc::pthread_mutexattr_init(&raw mut kind);
            libc::pthread_mutexattr_setpshared(&raw mut kind, libc::PTHREAD_PROCESS_SHARED);
            libc::pthread_mutexattr_setrobust(&raw mut kind, libc::PTHREAD_MUTEX_ROBUST);
            libc::pthread_mutex_init(mutex, &raw const kind);
            libc::pthread_mutex_lock(mutex);
            if libc::fork() == 0 {
                // The owner ends without unlocking it: only its list of robust locks tells.
                let mut limit: libc::timespec = std::mem::zeroed();
                libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut limit);
                limit.tv_sec += 10;
                let told = libc::pthread_mutex_timedlock(mutex, &raw const limit) == libc::EOWNERDEAD;
                println!("{told}");
                libc::fflush(std::ptr::null_mut());
                libc::_exit(0);
            }
            libc::_exit(0)
        }
    }
}
