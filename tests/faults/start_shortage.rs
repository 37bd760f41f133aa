//! A start for which something is short: processes, memory, descriptors.

use offspring::{Error, ErrorKind, Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::behaviour;
use crate::harness::marks::{self, Mark};
use crate::harness::{self, become_user, can, double, eventually, limit, take_all_descriptors, zygote};

/// Every launcher, and the library's own choice.
const EVERY: [&str; 4] = ["auto", "zygote", "spare", "exec"];

/// For what may be, with its spares, but not without end.
fn refused() -> Error {
    let one = |n| {
        Offspring::builder(Double(n)).start_timeout(Duration::from_secs(2)).spawn().and_then(Offspring::wait)
    };
    (0..100).find_map(|n| one(n).err()).expect("nothing was refused")
}

#[derive(Serialize, Deserialize)]
struct Double(u32);

impl Subprocess for Double {
    type Output = u32;

    fn run(self) -> u32 {
        2 * self.0
    }
}

/// A zygote that is ready, if this launcher has one.
fn warm_up() -> Option<u32> {
    if std::env::var("OFFSPRING_LAUNCHER").unwrap() == "exec" {
        assert_eq!(double(1).unwrap(), 2);
        return None;
    }
    eventually("there is no zygote", || {
        assert_eq!(double(1).unwrap(), 2);
        zygote().is_some()
    });
    zygote()
}

/// For who has got such a filter. (Until the zygote that has none is seen to be dead, its refusal is another.)
fn no_memory() {
    eventually("the error is another", || {
        let error = double(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start);
        error.to_string().contains("clone") && error.to_string().contains("os error 12")
    });
}

fn nobody_is_left() {
    eventually("a child is left", || harness::tagged(&harness::tag()).is_empty());
}

behaviour! { through EVERY;
    fn case_9_a_user_who_may_have_no_more_processes() {
        let unit = spawn((), |()| {
            if !become_user(65533) {
                return;
            }
            let maker = warm_up();
            let all: Vec<u32> = maker.into_iter().chain([0]).collect();
            let old: Vec<u64> = all.iter().map(|pid| limit(*pid, libc::RLIMIT_NPROC, 1)).collect();
            let error = refused();
            assert_eq!(error.kind(), ErrorKind::Start);
            let text = error.to_string();
            assert!(text.contains("os error 11") && text.contains("RLIMIT_NPROC") || is_late(&error), "{text}");
            all.iter().zip(old).for_each(|(pid, old)| assert_eq!(limit(*pid, libc::RLIMIT_NPROC, old), 1));
            assert_eq!(double(2).unwrap(), 4);
            assert_eq!(zygote(), maker);
        });
        unit.unwrap().wait().unwrap();
    }

    fn case_9_a_cgroup_that_may_have_no_more_processes() {
        let name = harness::place("group").file_name().unwrap().to_owned();
        let groups = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(|root| Path::new(root).join(&name));
        let made: Vec<_> = groups.into_iter().filter(|group| std::fs::create_dir(group).is_ok()).collect();
        let group = made.iter().find(|group| group.join("pids.max").exists());
        let done = can("a cgroup", group.is_some()).then(|| {
            let unit = spawn(group.unwrap().clone(), |group: PathBuf| {
                std::fs::write(group.join("cgroup.procs"), "0").unwrap();
                let maker = warm_up();
                std::fs::write(group.join("pids.max"), "1").unwrap();
                let error = refused();
                assert_eq!(error.kind(), ErrorKind::Start);
                let text = error.to_string();
                assert!(text.contains("os error 11") && text.contains("pids.max") || is_late(&error), "{text}");
                std::fs::write(group.join("pids.max"), "max").unwrap();
                assert_eq!(double(2).unwrap(), 4);
                assert_eq!(zygote(), maker);
            });
            unit.and_then(Offspring::wait)
        });
        for group in &made {
            eventually("the cgroup is not empty", || std::fs::remove_dir(group).is_ok());
        }
        done.unwrap_or(Ok(())).unwrap();
    }

    fn case_10_no_memory_for_a_clone() {
        let unit = spawn((), |()| {
            warm_up();
            // glibc starts threads by the one, and the library executes the program by the other.
            let filtered = harness::filter(libc::SYS_clone3, libc::ENOMEM, true);
            if !can("a filter", filtered && harness::filter(libc::SYS_clone, libc::ENOMEM, true)) {
                return;
            }
            // The next has the filter as well, if there can be one.
            if let Some(pid) = zygote() {
                harness::kill(pid, libc::SIGKILL);
            }
            no_memory();
        });
        unit.unwrap().wait().unwrap();
    }
}

/// A spare was waited for, and there was none. (As the library chooses, nobody waits for one.)
fn is_late(error: &Error) -> bool {
    std::env::var("OFFSPRING_LAUNCHER").unwrap() == "spare" && error.to_string().contains("in time")
}

behaviour! { through ["zygote"];
    fn case_10_a_zygote_that_cannot_clone_for_want_of_memory_stays() {
        let unit = spawn((), |()| {
            let first = warm_up().unwrap();
            if !can("a filter", harness::filter(libc::SYS_clone3, libc::ENOMEM, true)) {
                return;
            }
            harness::kill(first, libc::SIGKILL);
            no_memory();
            let second = zygote();
            assert!(second.is_some_and(|pid| pid != first));
            no_memory();
            assert_eq!(zygote(), second);
        });
        unit.unwrap().wait().unwrap();
    }

    fn case_10_no_memory_in_a_child() {
        let maker = warm_up().unwrap();
        let large = || spawn("x".repeat(32 << 20), |text: String| text.len()).and_then(Offspring::wait);
        assert_eq!(large().unwrap(), 32 << 20);
        let statm = std::fs::read_to_string(format!("/proc/{maker}/statm")).unwrap();
        let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
        // What it has, and a little more: its children have as much.
        let old = limit(maker, libc::RLIMIT_AS, (pages << 12) + (4 << 20));
        let error = large().unwrap_err();
        assert!([ErrorKind::Start, ErrorKind::Died].contains(&error.kind()), "{error}");
        assert!(error.death().is_some());
        limit(maker, libc::RLIMIT_AS, old);
        assert_eq!(large().unwrap(), 32 << 20);
        assert_eq!(zygote(), Some(maker));
    }

    fn case_11_a_zygote_without_descriptors_is_an_error_and_no_child_stays() {
        let maker = warm_up().unwrap();
        // Its streams, its line, the pidfd of its parent; then a unit's line, then the child's pidfd.
        for most in [4, 5, 6] {
            let old = limit(maker, libc::RLIMIT_NOFILE, most);
            let error = double(1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start);
            assert!(error.to_string().contains("zygote") && error.to_string().contains("os error 24"), "{error}");
            limit(maker, libc::RLIMIT_NOFILE, old);
            nobody_is_left();
            assert_eq!(double(2).unwrap(), 4);
        }
        assert_eq!(zygote(), Some(maker));
    }

    fn case_12_a_parent_without_descriptors_gets_an_error_and_no_child_stays() {
        assert_eq!(double(1).unwrap(), 2);
        let old = limit(0, libc::RLIMIT_NOFILE, 64);
        let mut all = take_all_descriptors();
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
        limit(0, libc::RLIMIT_NOFILE, old);
        drop(all);
        nobody_is_left();
        assert_eq!(double(5).unwrap(), 10);
    }

    fn case_12_a_childs_pidfd_that_is_lost_on_the_way_leaves_no_child() {
        // SAFETY: no other thread reads the environment here.
        unsafe { std::env::set_var("OFFSPRING_STEP", "zygote:cloned:stop") };
        std::thread::scope(|scope| {
            // The child is made, and its pidfd is sent once there is no room for it.
            let (tell, told) = std::sync::mpsc::channel();
            let start = scope.spawn(move || {
                // SAFETY: asks for a number.
                tell.send(unsafe { libc::gettid() }).unwrap();
                double(1)
            });
            let thread = told.recv().unwrap() as u32;
            let mut pid = None;
            eventually("the zygote does not stop", || {
                pid = zygote().filter(|pid| harness::state(*pid) == Some('T'));
                pid.is_some()
            });
            // It waits for the answer, and so has closed what it has sent.
            eventually("the start does not wait", || harness::state(thread) == Some('S'));
            let old = limit(0, libc::RLIMIT_NOFILE, 64);
            let all = take_all_descriptors();
            harness::kill(pid.unwrap(), libc::SIGCONT);
            let error = start.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start);
            assert!(error.to_string().contains("pidfd") && error.to_string().contains("os error 24"), "{error}");
            limit(0, libc::RLIMIT_NOFILE, old);
            drop(all);
        });
        nobody_is_left();
        // SAFETY: as above.
        unsafe { std::env::remove_var("OFFSPRING_STEP") };
        offspring::shutdown();
        assert_eq!(double(2).unwrap(), 4);
    }

    fn case_13_a_zygote_that_cannot_send_a_descriptor_harms_nobody() {
        let unit = spawn(marks::file(), |file: PathBuf| {
            if !become_user(65532) {
                return;
            }
            let mut running = Offspring::new(Forever).unwrap();
            // Descriptors on their way count for the user who sent them, and for the limit of who sends the next.
            let (socket, _other) = UnixStream::pair().unwrap();
            (0..30).for_each(|_| assert!(send_descriptor(&socket)));
            let pid = zygote().unwrap();
            let low = libc::rlimit { rlim_cur: 20, rlim_max: 20 };
            // SAFETY: a valid record.
            unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, &raw const low, std::ptr::null_mut()) };
            let started = Offspring::new(Mark { file: file.clone(), number: 3 }).and_then(Offspring::wait);
            assert!(started.is_ok_and(|value| value == 3));
            assert_eq!(marks::runs(&file), BTreeMap::from([(3, 1)]));
            assert!(running.wait_timeout(Duration::from_millis(300)).unwrap().is_none());
            running.process().unwrap().kill().unwrap();
        });
        unit.unwrap().wait().unwrap();
    }
}

behaviour! { through ["auto"];
    fn case_11_a_zygote_without_descriptors_leaves_the_slow_way() {
        // The very first is executed, while the zygote is being made.
        let maker = warm_up().unwrap();
        let old = limit(maker, libc::RLIMIT_NOFILE, 5);
        (0..20).for_each(|n| assert_eq!(double(n).unwrap(), 2 * n));
        limit(maker, libc::RLIMIT_NOFILE, old);
    }

    fn case_12_a_unit_is_run_once_or_not_at_all_when_descriptors_are_short() {
        let file = marks::file();
        warm_up();
        let old = limit(0, libc::RLIMIT_NOFILE, 64);
        let mut held = take_all_descriptors();
        held.truncate(held.len() - 9);
        // Spares that are being made may have what there is for a while; then each start fails at once.
        let (any, end) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(10));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (file, any) = (&file, &any);
                scope.spawn(move || {
                    let goes_on = |number: &u32| *number < 100 || !any.load(Ordering::SeqCst) && Instant::now() < end;
                    for number in (0..1_000_000).take_while(goes_on) {
                        let number = 1_000_000 * thread + number;
                        match Offspring::new(Mark { file: file.clone(), number }).and_then(Offspring::wait) {
                            Ok(value) => {
                                assert_eq!(value, number);
                                any.store(true, Ordering::SeqCst);
                            }
                            Err(error) => assert!([ErrorKind::Start, ErrorKind::Panicked].contains(&error.kind()), "{error}"),
                        }
                    }
                });
            }
        });
        drop(held);
        limit(0, libc::RLIMIT_NOFILE, old);
        let runs = marks::runs(&file);
        assert!(runs.values().all(|count| *count == 1), "{runs:?}");
        assert!(!runs.is_empty());
    }

    fn case_13_a_parent_that_may_send_no_descriptors_starts_units_all_the_same() {
        let unit = spawn((), |()| {
            if !become_user(65530) {
                return;
            }
            warm_up();
            let (socket, _other) = UnixStream::pair().unwrap();
            // As many as the limit allows.
            limit(0, libc::RLIMIT_NOFILE, 64);
            let sent = (0..200).take_while(|_| send_descriptor(&socket)).count();
            assert!(sent < 200, "{sent} were sent");
            for n in 0..20 {
                assert_eq!(double(n).unwrap(), 2 * n);
                let text = "x".repeat(1 << 20);
                assert!(spawn(text.clone(), |text: String| text).and_then(Offspring::wait).unwrap() == text);
            }
        });
        unit.unwrap().wait().unwrap();
    }
}

behaviour! {
    fn case_11_a_system_without_descriptors_is_an_error_that_says_so() {
        assert_eq!(double(1).unwrap(), 2);
        if can("a filter", harness::filter(libc::SYS_socketpair, libc::ENFILE, true)) {
            offspring::shutdown();
            let error = double(1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Start);
            assert!(error.to_string().contains("os error 23") && error.to_string().contains("fs.file-max"), "{error}");
        }
    }

    fn case_13_thousands_of_starts_with_few_descriptors() {
        let unit = spawn((), |()| {
            if !become_user(65529) {
                return;
            }
            limit(0, libc::RLIMIT_NOFILE, 64);
            let next = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= 2000 {
                            break;
                        }
                        // Each start sends descriptors: of its directory, of its streams.
                        let unit = Offspring::builder(Double(n)).current_dir("/").stderr(offspring::Stdio::null());
                        assert_eq!(unit.spawn().and_then(Offspring::wait).unwrap(), 2 * n);
                    });
                }
            });
        });
        unit.unwrap().wait().unwrap();
    }
}

behaviour! { through ["zygote", "exec"];
    fn case_12_want_of_descriptors_names_the_limit_and_passes() {
        assert_eq!(double(1).unwrap(), 2);
        let old = limit(0, libc::RLIMIT_NOFILE, 64);
        let mut all = take_all_descriptors();
        let mut refused = 0;
        for free in 0..6 {
            if let Err(error) = double(1) {
                assert_eq!(error.kind(), ErrorKind::Start, "{free}: {error}");
                assert!(error.to_string().contains("the limit is 64 (RLIMIT_NOFILE"), "{free}: {error}");
                refused += 1;
            }
            all.pop();
        }
        assert!(refused > 0);
        drop(all);
        assert_eq!(double(1).unwrap(), 2);
        limit(0, libc::RLIMIT_NOFILE, old);
    }
}

/// Has little time after TERM.
#[derive(Serialize, Deserialize)]
struct Forever;

impl Subprocess for Forever {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) {
        loop {
            std::thread::park();
        }
    }
}

/// Sends one that nobody takes; whether it could.
fn send_descriptor(socket: &UnixStream) -> bool {
    // SAFETY: a message of one byte with one descriptor, built as cmsg(3) says, in memory that lives through the call.
    unsafe {
        let mut byte = 0_u8;
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut control = [0_u64; 8];
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(0);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) == 1
    }
}
