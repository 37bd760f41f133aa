//! Surroundings that are not as usual: filters, limits, libraries with constructors, namespaces, tools.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::{can, eventually, zygote};
use offspring::{ErrorKind, Offspring, spawn};

fn double(n: u32) -> Result<u32, offspring::Error> {
    spawn(n, |n: u32| 2 * n).and_then(Offspring::wait)
}

/// This test binary once more, told to run one of the tests for itself.
fn myself(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env("AGAIN", "1");
    command
}

fn is_again() -> bool {
    std::env::var_os("AGAIN").is_some()
}

/// Compiles a shared library to be loaded ahead of the program.
fn library(name: &str, source: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("{}-{name}", harness::tag().replace(':', "-")));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("it.c"), source).unwrap();
    let library = directory.join("it.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-pthread", "-o"]).arg(&library).arg(directory.join("it.c"));
    assert!(cc.status().unwrap().success());
    library
}

fn remove(library: &Path) {
    std::fs::remove_dir_all(library.parent().unwrap()).unwrap();
}

fn good(command: Command) -> String {
    let (good, text) = harness::finish(command, Duration::from_secs(60));
    assert!(good, "{text}");
    text
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

    fn a_constructor_that_crashes_in_a_zygote_is_an_error_after_three() {
        if is_again() {
            let error = double(1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start);
            assert!(error.to_string().contains("3 in a row") && error.to_string().contains("signal: 11"), "{error}");
            return;
        }
        let library = library("crashes", r#"
            #include <stdlib.h>
            #include <signal.h>
            __attribute__((constructor)) static void it(void) { if (getenv("OFFSPRING_CHILD_OF")) raise(SIGSEGV); }
        "#);
        let mut command = myself("a_constructor_that_crashes_in_a_zygote_is_an_error_after_three");
        command.env("LD_PRELOAD", &library);
        good(command);
        remove(&library);
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
        let mut command = myself("constructors_run_once_in_the_zygote_and_what_they_made_is_there");
        command.env("LD_PRELOAD", &library);
        good(command);
        remove(&library);
    }

    fn the_first_process_of_a_pid_namespace() {
        if is_again() {
            assert_eq!(std::process::id(), 1);
            (0..5).for_each(|n| assert_eq!(double(n).unwrap(), 2 * n));
            let error = spawn((), |()| -> () { std::process::abort() }).unwrap().wait().unwrap_err();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&error.death().unwrap().status()), Some(6));
            assert!(zygote().is_some());
            return;
        }
        let inner = myself("the_first_process_of_a_pid_namespace");
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(inner.get_program()).args(inner.get_args());
        command.env("AGAIN", "1");
        let (good, text) = harness::finish(command, Duration::from_secs(60));
        if can("a pid namespace", !text.contains("unshare failed")) {
            assert!(good, "{text}");
        }
    }
}

mod fallback {
    use super::*;

    behaviour! { through ["auto"];
        fn a_library_that_starts_a_thread_leaves_the_slow_way() {
            if is_again() {
                use super::told::Told;
                let told = Told::listen();
                for n in 0..3 {
                    assert_eq!(double(n).unwrap(), 2 * n);
                    eventually("the zygote is left", || harness::zygotes().is_empty());
                }
                let warnings = told.warnings();
                assert_eq!(warnings.len(), 1, "{warnings:?}");
                assert!(warnings[0].contains("thread"), "{warnings:?}");
                return;
            }
            let library = library("threads", r"
                #include <pthread.h>
                #include <unistd.h>
                static void *work(void *nothing) { for (;;) pause(); }
                __attribute__((constructor)) static void it(void) { pthread_t thread; pthread_create(&thread, 0, work, 0); }
            ");
            let mut command = myself("fallback::a_library_that_starts_a_thread_leaves_the_slow_way");
            command.env("LD_PRELOAD", &library);
            good(command);
            remove(&library);
        }

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

        fn a_directory_that_one_may_stay_in_but_not_go_to() {
            let directory = std::env::temp_dir().join(harness::tag());
            std::fs::create_dir(&directory).unwrap();
            std::env::set_current_dir(&directory).unwrap();
            std::fs::remove_dir(&directory).unwrap();
            let unit = spawn((), |()| std::fs::read_link("/proc/self/cwd").unwrap());
            assert!(unit.unwrap().wait().unwrap().to_str().unwrap().ends_with("(deleted)"));
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
        let inner = myself("fallback::valgrind_is_a_clear_refusal");
        let mut command = Command::new("valgrind");
        command
            .args(["-q", "--error-exitcode=7"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .env("AGAIN", "1");
        match command.output() {
            Err(_) => println!("skipped: there is no valgrind here"),
            Ok(output) => assert!(output.status.success(), "{output:?}"),
        }
    }
}

/// A listener to the library's events.
mod told {
    use std::fmt::Write;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::{Event, Level, Metadata, Subscriber, span};

    #[derive(Clone, Default)]
    pub(crate) struct Told(Arc<Mutex<Vec<(Level, String)>>>);

    impl Told {
        pub(crate) fn listen() -> Self {
            let told = Self::default();
            tracing::subscriber::set_global_default(told.clone()).unwrap();
            told
        }

        pub(crate) fn warnings(&self) -> Vec<String> {
            let all = self.0.lock().unwrap();
            all.iter().filter(|(level, _)| *level == Level::WARN).map(|(_, text)| text.clone()).collect()
        }
    }

    struct Text(String);

    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            write!(self.0, "{field}={value:?} ").unwrap();
        }
    }

    impl Subscriber for Told {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push((*event.metadata().level(), text.0));
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }
}
