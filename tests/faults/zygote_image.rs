//! What stands in the zygote, all its children have: so it has no threads, no descriptors but its own, and does not grow.

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use offspring::{Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, eventually, good, is_again, is_alive, library, myself, remove, zygote};
use crate::told::Told;

fn double(n: u64) {
    assert_eq!(spawn(n, |n: u64| 2 * n).and_then(Offspring::wait).unwrap(), 2 * n);
}

/// The descriptors of this process.
fn descriptors(_: ()) -> Vec<String> {
    harness::entries("fd").into_iter().collect()
}

/// The zygote's memory that is no file's, in KiB.
fn memory(zygote: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{zygote}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Says that it is there, waits for the others, and looks at its descriptors.
#[derive(Serialize, Deserialize)]
struct Look(PathBuf, usize);

impl Subprocess for Look {
    type Output = Vec<String>;

    fn run(self) -> Vec<String> {
        std::fs::write(self.0.join(self.1.to_string()), "").unwrap();
        eventually("no word", || self.0.join("go").exists());
        descriptors(())
    }
}

behaviour! {
    fn case_68_a_unit_has_the_streams_and_its_line() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: takes close-on-exec off a descriptor of ours.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
        assert_eq!(spawn((), descriptors).unwrap().wait().unwrap(), ["0", "1", "2", "3"]);
    }

    fn case_68_units_that_run_at_once_have_nothing_of_each_other() {
        const MANY: usize = 100;
        let directory = std::env::temp_dir().join(harness::tag());
        std::fs::create_dir(&directory).unwrap();
        let start = |n| Offspring::builder(Look(directory.clone(), n)).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let units: Vec<_> = (0..MANY).map(|n| start(n).unwrap()).collect();
        eventually("one is not there", || std::fs::read_dir(&directory).unwrap().count() == MANY);
        std::fs::write(directory.join("go"), "").unwrap();
        for unit in units {
            assert_eq!(unit.wait().unwrap(), ["0", "1", "2", "3"]);
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}

behaviour! { through ["zygote"];
    fn case_68_it_keeps_streams_its_line_and_nothing_else() {
        double(1);
        let directory = PathBuf::from(format!("/proc/{}", zygote().unwrap()));
        let list = std::fs::read_dir(directory.join("fd")).unwrap();
        let mut files: Vec<String> = list.map(|entry| {
            std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string()
        }).collect();
        files.retain(|file| !file.contains("pidfd"));
        assert_eq!(files.iter().filter(|file| file.starts_with("socket:")).count(), 1, "{files:?}");
        assert!(files.len() <= 4, "{files:?}");
        assert_eq!(std::fs::read_link(directory.join("cwd")).unwrap().display().to_string(), "/");
        assert_eq!(std::fs::read_dir(directory.join("task")).unwrap().count(), 1);
    }

    fn case_69_it_does_not_grow() {
        (0..300).for_each(double);
        let pid = zygote().unwrap();
        let files = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let before = memory(pid);
        (0..4000).for_each(double);
        assert_eq!(zygote(), Some(pid));
        let after = memory(pid);
        // A few bytes for each start would be more.
        assert!(after <= before + 32, "{before} {after}");
        // Streams, line, the parent's pidfd; and some more while it makes a spare.
        eventually("descriptors are left", || files() == 5);
    }
}

behaviour! { through ["auto"];
    fn case_67_a_library_that_starts_a_thread_leaves_the_slow_way() {
        if is_again() {
            let told = Told::listen();
            for n in 0..3 {
                double(n);
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
        let mut command = myself();
        command.env("LD_PRELOAD", &library);
        good(command);
        remove(&library);
    }

    fn case_68_spares_keep_streams_line_a_pidfd_of_the_parent_and_an_ear_for_signals() {
        double(1);
        eventually("there are no spares", || harness::spares().len() >= 2);
        for pid in harness::spares() {
            let count = || std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            eventually("a descriptor too many", || count() == 6 || !is_alive(pid));
        }
    }
}
