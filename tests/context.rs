//! What a unit sees of the process around it, and what it does not.
#![allow(unsafe_code)]

// Named first, so that it is linked behind the library.
extern crate late;

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;

use offspring::{Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

/// A look at its own process.
#[derive(Serialize, Deserialize)]
struct Look;

#[derive(Serialize, Deserialize, Debug)]
struct View {
    directory: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    descriptors: Vec<String>,
    status: BTreeMap<String, String>,
    name: String,
    parent: u32,
    umask: u32,
    random: u64,
}

impl Subprocess for Look {
    type Output = View;

    fn run(self) -> View {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let field =
            |line: &str| line.split_once(":\t").map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
        let list = std::fs::read_dir("/proc/self/fd").unwrap();
        let mut descriptors: Vec<String> =
            list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        descriptors.retain(|name| std::fs::read_link(format!("/proc/self/fd/{name}")).is_ok());
        descriptors.sort();
        View {
            directory: std::env::current_dir().unwrap().display().to_string(),
            arguments: std::env::args().collect(),
            environment: std::env::vars().collect(),
            descriptors,
            status: status.lines().filter_map(field).collect(),
            name: std::fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned(),
            parent: std::os::unix::process::parent_id(),
            // SAFETY: umask(2) has no conditions.
            umask: unsafe { libc::umask(0) },
            random: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 1),
        }
    }
}

fn look() -> View {
    Offspring::new(Look).unwrap().wait().unwrap()
}

behaviour! {
    fn what_is_the_callers_at_each_start() {
        std::env::set_current_dir("/").unwrap();
        // SAFETY: no other thread reads the environment here.
        unsafe { std::env::set_var("SET_LATE", "yes") };
        let view = look();
        assert_eq!(view.directory, "/");
        assert_eq!(view.arguments, std::env::args().collect::<Vec<_>>());
        assert_eq!(view.environment, std::env::vars().collect());
        assert_eq!(view.parent, std::process::id());
        std::env::set_current_dir("/proc").unwrap();
        // SAFETY: as above.
        unsafe { std::env::remove_var("SET_LATE") };
        let view = look();
        assert_eq!(view.directory, "/proc");
        assert!(!view.environment.contains_key("SET_LATE"));
    }

    fn no_marker_is_left() {
        let view = look();
        assert!(!view.environment.keys().any(|name| name.starts_with("OFFSPRING_CHILD")), "{view:?}");
    }

    fn its_descriptors_are_the_streams_and_the_line() {
        use std::os::fd::AsRawFd;
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: takes close-on-exec off a descriptor of ours.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
        assert_eq!(look().descriptors, ["0", "1", "2", "3"]);
    }

    fn signals_are_as_main_would_find_them() {
        // SAFETY: dispositions and the mask of this thread.
        let mask = unsafe {
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut old);
            old
        };
        let view = look();
        // SAFETY: puts the mask back.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut()) };
        assert_eq!(view.status["SigBlk"], "0000000000000000");
        assert_eq!(view.status["SigPnd"], "0000000000000000");
        let ignored = 1_u64 << (libc::SIGPIPE - 1);
        assert_eq!(view.status["SigIgn"], format!("{ignored:016x}"));
        let caught = [libc::SIGSEGV, libc::SIGBUS, 61].iter().fold(0_u64, |mask, signal| mask | 1 << (signal - 1));
        assert_eq!(view.status["SigCgt"], format!("{caught:016x}"));
        assert_eq!(view.status["Threads"], "1");
    }

    fn constructors_that_stand_behind_ours_have_run_before_the_unit() {
        assert_eq!(late::built(), 2);
        let built = spawn((), |()| late::built()).unwrap().wait().unwrap();
        // 2 as it is linked here; another linker may put it before ours, and then it has run anyway.
        assert_ne!(built, 0);
    }

    fn random_seeds_are_its_own() {
        assert_ne!(look().random, look().random);
    }

    fn what_the_builder_sets() {
        let unit = Offspring::builder(Look)
            .name("path::to::worker")
            .env("A", "1")
            .env_remove("PATH")
            .current_dir("/tmp")
            .umask(0o27)
            .spawn()
            .unwrap();
        assert_eq!(unit.process().unwrap().name(), "path::to::worker");
        let view = unit.wait().unwrap();
        assert_eq!(view.environment["A"], "1");
        assert!(!view.environment.contains_key("PATH"));
        assert_eq!((view.directory.as_str(), view.umask, view.name.as_str()), ("/tmp", 0o27, "worker"));
        let view = Offspring::builder(Look).env("B", "2").env_clear().env("A", "1").spawn().unwrap().wait().unwrap();
        assert_eq!(view.environment.into_iter().collect::<Vec<_>>(), [("A".to_owned(), "1".to_owned())]);
    }

    fn streams_that_are_closed_in_the_parent_are_null_in_the_child() {
        // SAFETY: the copies keep the files; what is put back is what was there.
        unsafe {
            let kept = [0, 1, 2].map(|stream| libc::fcntl(stream, libc::F_DUPFD_CLOEXEC, 10));
            for closed in 1..8 {
                for stream in (0..3).filter(|stream| closed & 1 << stream != 0) {
                    libc::close(stream);
                }
                let view = Offspring::new(Look).and_then(Offspring::wait);
                offspring::shutdown();
                for (stream, copy) in (0..).zip(kept) {
                    libc::dup2(copy, stream);
                }
                assert_eq!(view.unwrap().descriptors, ["0", "1", "2", "3"], "{closed:b}");
            }
            for copy in kept {
                libc::close(copy);
            }
        }
    }

    fn threads_of_the_unit_work() {
        let unit = spawn((), |()| {
            let threads: Vec<_> = (0..4_u32).map(|n| std::thread::spawn(move || n)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
        });
        assert_eq!(unit.unwrap().wait().unwrap(), 6);
    }

    fn a_deleted_executable_is_still_the_program() {
        if std::env::var_os("MOVED").is_some() {
            std::fs::remove_file(std::env::current_exe().unwrap()).unwrap();
            assert_eq!(look().parent, std::process::id());
            return;
        }
        let copy = std::env::temp_dir().join(harness::tag());
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let mut command = std::process::Command::new(&copy);
        command.args(["a_deleted_executable_is_still_the_program", "--exact", "--nocapture"]).env("MOVED", "1");
        let (good, text) = harness::finish(command, std::time::Duration::from_secs(60));
        assert!(good, "{text}");
    }
}
