//! What may happen to the zygote, and what it leaves where: starts go on, running units are not harmed, nothing stays.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{eventually, is_alive, zygote, zygotes};
use offspring::{ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Double(u64);

impl Subprocess for Double {
    type Output = u64;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(100));

    fn run(self) -> u64 {
        2 * self.0
    }
}

fn double(n: u64) {
    assert_eq!(Offspring::new(Double(n)).and_then(Offspring::wait).unwrap(), 2 * n);
}

/// For the zygotes that are made from now on, as no other thread reads the environment here.
fn wish(step: &str) {
    // SAFETY: see above.
    unsafe { std::env::set_var("OFFSPRING_STEP", step) };
}

behaviour! { through ["zygote"];
    fn many_threads_that_start_at_once_share_one() {
        let barrier = std::sync::Barrier::new(64);
        std::thread::scope(|scope| {
            for thread in 0..64 {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    (0..10).for_each(|n| double(100 * thread + n));
                });
            }
        });
        assert_eq!(zygotes().len(), 1);
    }

    fn a_killed_one_is_replaced_and_what_runs_is_not_harmed() {
        let mut running = Offspring::builder(Echo).stdin(Stdio::piped()).spawn().unwrap();
        for n in 0..20 {
            let old = zygote().unwrap();
            harness::kill(old, libc::SIGKILL);
            double(n);
            eventually("the old one is left", || !is_alive(old));
        }
        drop(running.take_stdin());
        assert_eq!(running.wait().unwrap(), 0);
    }

    fn one_that_is_killed_again_and_again_fails_no_start() {
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
                        (0..5).for_each(double);
                    }
                }
                killed
            });
            let starters: Vec<_> = (0..8).map(|thread| scope.spawn(move || {
                for n in 0..60 {
                    double(1000 * thread + n);
                }
            })).collect();
            starters.into_iter().for_each(|starter| starter.join().unwrap());
            done.store(true, Ordering::SeqCst);
            assert!(killer.join().unwrap() > 3);
        });
    }

    fn a_stopped_one_keeps_no_start_waiting_longer_than_it_may() {
        double(1);
        let stopped = zygote().unwrap();
        harness::kill(stopped, libc::SIGSTOP);
        let began = Instant::now();
        let error = Offspring::builder(Sleep).start_timeout(Duration::from_millis(200)).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start);
        assert!(error.to_string().contains("zygote") && error.to_string().contains("in time"), "{error}");
        assert!(began.elapsed() >= Duration::from_millis(200));
        harness::kill(stopped, libc::SIGCONT);
        double(2);
        assert_eq!(zygote(), Some(stopped));
        // The child of the start that was given up was made after all, and is gone.
        eventually("a child is left", || harness::tagged(&harness::tag()).is_empty());
    }

    fn a_stopped_one_is_replaced_by_a_start_that_has_the_time() {
        double(1);
        let stopped = zygote().unwrap();
        harness::kill(stopped, libc::SIGSTOP);
        double(2);
        assert_ne!(zygote(), Some(stopped));
        assert!(!is_alive(stopped));
    }

    fn a_child_whose_maker_died_without_a_word_is_found_and_runs_once() {
        // Each zygote dies right after it has made its first child.
        for fault in ["kill", "exit", "abort"] {
            wish(&format!("zygote:cloned:{fault}"));
            (0..20).for_each(double);
            let error = spawn((), |()| -> () { std::process::exit(3) }).unwrap().wait().unwrap_err();
            assert_eq!(error.death().unwrap().status().code(), Some(3));
            offspring::shutdown();
            wish(&format!("zygote:told:{fault}"));
            (0..20).for_each(double);
            offspring::shutdown();
        }
    }

    fn one_that_stops_before_it_is_ready_fails_the_start_in_time() {
        wish("zygote:boot:stop");
        let error = Offspring::builder(Double(1)).start_timeout(Duration::from_millis(100)).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start, "{error}");
        wish("");
        harness::kill(zygote_in_boot(), libc::SIGCONT);
        double(1);
    }

    fn it_keeps_streams_its_line_and_nothing_else() {
        double(1);
        let directory = std::path::PathBuf::from(format!("/proc/{}", zygote().unwrap()));
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

    fn after_a_shutdown_there_is_none_and_the_next_start_makes_another() {
        double(1);
        let first = zygote().unwrap();
        offspring::shutdown();
        assert!(!is_alive(first));
        assert_eq!(zygotes(), []);
        double(2);
        assert_ne!(zygote(), Some(first));
    }

    fn nothing_listens_on_a_name() {
        double(1);
        let own = |pid: u32| {
            let list = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            list.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
                .filter_map(|file| Some(file.display().to_string().strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
                .collect::<Vec<_>>()
        };
        let ours = [own(std::process::id()), own(zygote().unwrap())].concat();
        assert!(!ours.is_empty());
        for line in std::fs::read_to_string("/proc/net/unix").unwrap().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(6).is_some_and(|inode| ours.iter().any(|own| own == inode)) {
                assert_eq!(fields.len(), 7, "a socket with a name: {line}");
            }
        }
    }

    fn it_ends_with_its_parent() {
        for signal in [libc::SIGKILL, libc::SIGABRT, libc::SIGTERM] {
            let pid = told_by(Parent(signal));
            eventually("the zygote outlives its parent", || !is_alive(pid));
        }
    }

    fn a_stopped_one_ends_with_its_parent_as_well() {
        let pid = told_by(StoppingParent);
        eventually("the zygote outlives its parent", || !is_alive(pid));
    }

    fn a_units_thread_id_and_locks_are_its_own() {
        double(1);
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

    fn a_stream_that_was_exchanged_since_is_what_a_unit_writes_to() {
        fn shout(_: ()) {
            println!("loud");
        }
        double(1);
        let (mut reader, writer) = std::io::pipe().unwrap();
        // SAFETY: the copy keeps the file that is put back.
        unsafe {
            use std::os::fd::AsRawFd;
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

#[derive(Serialize, Deserialize)]
struct Sleep;

impl Subprocess for Sleep {
    type Output = ();

    fn run(self) {
        loop {
            std::thread::park();
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Echo;

impl Subprocess for Echo {
    type Output = usize;

    fn run(self) -> usize {
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap()
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

/// The pid that such a parent tells before it dies.
fn told_by(parent: impl Subprocess<Output = ()>) -> u32 {
    let mut parent = Offspring::builder(parent).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    let mut output = parent.take_stdout().unwrap();
    assert!(parent.wait().is_err());
    output.read_to_string(&mut text).unwrap();
    text.trim().parse().unwrap()
}

/// Starts a unit of its own, tells its zygote's pid, and ends itself.
#[derive(Serialize, Deserialize)]
struct Parent(i32);

impl Subprocess for Parent {
    type Output = ();

    fn run(self) {
        double(1);
        println!("{}", zygote().unwrap());
        // SAFETY: ends this process.
        unsafe { libc::raise(self.0) };
        loop {
            std::thread::park();
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoppingParent;

impl Subprocess for StoppingParent {
    type Output = ();

    fn run(self) {
        double(1);
        let pid = zygote().unwrap();
        harness::kill(pid, libc::SIGSTOP);
        eventually("it does not stop", || harness::state(pid) == Some('T'));
        println!("{pid}");
        harness::kill(std::process::id(), libc::SIGKILL);
    }
}

/// A process of this test that has stopped and is no unit: there is but the zygote.
fn zygote_in_boot() -> u32 {
    let mut children = harness::tagged(&harness::tag()).into_iter();
    children.find(|pid| harness::state(*pid) == Some('T')).unwrap()
}
