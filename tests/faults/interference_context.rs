//! What changes in the parent after the zygote was made, and streams that it has closed: what a unit sees of that.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsRawFd;

use offspring::{Offspring, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, double, limit, zygote};

#[derive(Serialize, Deserialize, Debug)]
struct View {
    directory: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    descriptors: Vec<String>,
    files: Vec<String>,
    parent: u32,
}

/// A look at its own process.
fn look(_: ()) -> View {
    let file =
        |stream: &u32| std::fs::read_link(format!("/proc/self/fd/{stream}")).unwrap().display().to_string();
    View {
        directory: std::env::current_dir().unwrap().display().to_string(),
        arguments: std::env::args().collect(),
        environment: std::env::vars().collect(),
        descriptors: harness::entries("fd").into_iter().collect(),
        files: [0, 1, 2].iter().map(file).collect(),
        parent: std::os::unix::process::parent_id(),
    }
}

fn look_and_speak(_: ()) -> View {
    // Not to come where the library speaks.
    print!(" ");
    eprint!(" ");
    look(())
}

/// What the kernel keeps for a process and its children inherit: mode mask, niceness, limit of open files.
fn inherited(_: ()) -> (u32, i32, u64) {
    // SAFETY: these read, or set and put back, what belongs to this process; a valid record.
    unsafe {
        let mask = libc::umask(0);
        libc::umask(mask);
        let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files);
        (mask, libc::getpriority(libc::PRIO_PROCESS, 0), files.rlim_cur)
    }
}

/// Sets all of these to something else; what they are then.
fn change() -> (u32, i32, u64) {
    let (mask, nice, files) = inherited(());
    // SAFETY: sets what belongs to this process.
    unsafe {
        libc::umask(mask ^ 0o20);
        assert_eq!(libc::setpriority(libc::PRIO_PROCESS, 0, nice + 1), 0);
    }
    limit(0, libc::RLIMIT_NOFILE, files - 1);
    inherited(())
}

behaviour! {
    fn case_75_what_is_the_callers_at_each_start() {
        std::env::set_current_dir("/").unwrap();
        // SAFETY: no other thread reads the environment here.
        unsafe { std::env::set_var("SET_LATE", "yes") };
        let view = spawn((), look).unwrap().wait().unwrap();
        assert_eq!(view.directory, "/");
        assert_eq!(view.arguments, std::env::args().collect::<Vec<_>>());
        assert_eq!(view.environment, std::env::vars().collect());
        assert_eq!(view.parent, std::process::id());
        std::env::set_current_dir("/proc").unwrap();
        // SAFETY: as above.
        unsafe { std::env::remove_var("SET_LATE") };
        let view = spawn((), look).unwrap().wait().unwrap();
        assert_eq!(view.directory, "/proc");
        assert!(!view.environment.contains_key("SET_LATE"));
    }

    fn case_75_the_time_zone_is_the_callers_at_each_start() {
        /// Seconds east of Greenwich, as C has it.
        fn east(_: ()) -> i64 {
            // SAFETY: a zeroed record is a valid one.
            unsafe {
                let mut time: libc::tm = std::mem::zeroed();
                libc::localtime_r(&raw const NOW, &raw mut time);
                time.tm_gmtoff
            }
        }
        static NOW: libc::time_t = 1_000_000_000;
        for hours in [1, -3, 5] {
            // SAFETY: no other thread reads the environment here.
            unsafe { std::env::set_var("TZ", format!("HERE{}", -hours)) };
            assert_eq!(spawn((), east).unwrap().wait().unwrap(), hours * 3600);
        }
    }

    fn case_77_what_is_at_the_place_of_a_closed_stream_and_is_not_for_others_is_not_taken_for_it() {
        // As a descriptor that another thread has made this very moment.
        let other = std::fs::File::open("/dev/zero").unwrap();
        // SAFETY: the copy keeps the file; what is put back is what was there.
        unsafe {
            let kept = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 10);
            for _ in 0..3 {
                libc::dup3(std::os::fd::AsRawFd::as_raw_fd(&other), 0, libc::O_CLOEXEC);
                let view = spawn((), look_and_speak).and_then(Offspring::wait);
                libc::dup2(kept, 0);
                assert_eq!(view.unwrap().files[0], "/dev/null");
                let view = spawn((), look_and_speak).and_then(Offspring::wait).unwrap();
                assert_eq!(view.files[0], std::fs::read_link("/proc/self/fd/0").unwrap().display().to_string());
            }
            libc::close(kept);
        }
    }

    fn case_77_streams_that_are_closed_in_the_parent_are_null_in_the_child() {
        // SAFETY: the copies keep the files; what is put back is what was there.
        unsafe {
            let kept = [0, 1, 2].map(|stream| libc::fcntl(stream, libc::F_DUPFD_CLOEXEC, 10));
            for closed in 1..8 {
                for stream in (0..3).filter(|stream| closed & 1 << stream != 0) {
                    libc::close(stream);
                }
                // Before anything is read or written here: what is closed stays closed until it is put back.
                let view = spawn((), look_and_speak).and_then(Offspring::wait);
                offspring::shutdown();
                for (stream, copy) in (0..).zip(kept) {
                    libc::dup2(copy, stream);
                }
                let view = view.unwrap();
                assert_eq!(view.descriptors, ["0", "1", "2", "3"], "{closed:b}");
                for stream in 0..3 {
                    let own = std::fs::read_link(format!("/proc/self/fd/{stream}")).unwrap();
                    let expected = if closed & 1 << stream == 0 { own.display().to_string() } else { "/dev/null".into() };
                    assert_eq!(view.files[stream], expected, "{closed:b}: {stream}");
                }
            }
            for copy in kept {
                libc::close(copy);
            }
        }
    }
}

behaviour! { through ["exec"];
    fn case_75_what_else_is_the_callers_if_each_unit_is_executed() {
        double(1).unwrap();
        let changed = change();
        assert_eq!(spawn((), inherited).unwrap().wait().unwrap(), changed);
    }
}

behaviour! { through ["zygote", "spare"];
    fn case_75_what_else_is_the_callers_after_a_shutdown() {
        let before = inherited(());
        assert_eq!(spawn((), inherited).unwrap().wait().unwrap(), before);
        let changed = change();
        assert_ne!(changed, before);
        assert_eq!(spawn((), inherited).unwrap().wait().unwrap(), before);
        offspring::shutdown();
        assert_eq!(spawn((), inherited).unwrap().wait().unwrap(), changed);
    }

    fn case_75_a_stream_that_was_exchanged_since_is_what_a_unit_writes_to() {
        fn shout(_: ()) {
            println!("loud");
        }
        double(1).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        // SAFETY: the copy keeps the file that is put back.
        unsafe {
            let kept = libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 10);
            libc::dup2(writer.as_raw_fd(), 1);
            drop(writer);
            let done = spawn((), shout).and_then(Offspring::wait);
            libc::dup2(kept, 1);
            libc::close(kept);
            done.unwrap();
        }
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "loud\n");
        assert!(zygote().is_some());
    }
}

behaviour! { through ["auto"];
    fn case_75_a_directory_that_one_may_stay_in_but_not_go_to() {
        let directory = std::env::temp_dir().join(harness::tag());
        std::fs::create_dir(&directory).unwrap();
        std::env::set_current_dir(&directory).unwrap();
        std::fs::remove_dir(&directory).unwrap();
        let unit = spawn((), |()| std::fs::read_link("/proc/self/cwd").unwrap());
        assert!(unit.unwrap().wait().unwrap().to_str().unwrap().ends_with("(deleted)"));
    }
}
