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

behaviour! { through ["zygote"];
    fn what_a_constructor_left_to_be_printed_is_printed_once() {
        if is_again() {
            (0..10).for_each(|n| assert_eq!(double(n).unwrap(), 2 * n));
            return;
        }
        let library = library("prints", r#"
            #include <stdio.h>
            __attribute__((constructor)) static void it(void) { printf("<from a constructor>"); }
        "#);
        let mut command = myself("what_a_constructor_left_to_be_printed_is_printed_once");
        command.env("LD_PRELOAD", &library);
        let text = good(command);
        remove(&library);
        // The program's own, and the zygote's.
        assert_eq!(text.matches("<from a constructor>").count(), 2, "{text}");
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
