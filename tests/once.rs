//! A unit begins once or not at all, whatever becomes of those who were to bring it about.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{can, eventually, zygote};
use offspring::{ErrorKind, Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

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

/// Leaves a line in a file when it is run.
#[derive(Serialize, Deserialize)]
struct Mark {
    file: PathBuf,
    number: u32,
}

impl Subprocess for Mark {
    type Output = u32;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(100));

    fn run(self) -> u32 {
        let mut file = std::fs::File::options().append(true).create(true).open(&self.file).unwrap();
        // One call: lines of many do not mix.
        file.write_all(format!("{}\n", self.number).as_bytes()).unwrap();
        self.number
    }
}

fn file() -> PathBuf {
    std::env::temp_dir().join(harness::tag().replace(':', "-"))
}

/// How often each was run.
fn runs(file: &Path) -> BTreeMap<u32, usize> {
    let mut runs = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        *runs.entry(line.parse().unwrap()).or_default() += 1;
    }
    let _ = std::fs::remove_file(file);
    runs
}

/// A zygote that is ready. (A spare may be of one that is dead already.)
fn warm_up() -> u32 {
    let mut found = None;
    eventually("there is no zygote", || {
        spawn((), |()| ()).unwrap().wait().unwrap();
        found = zygote();
        found.is_some()
    });
    found.unwrap()
}

behaviour! { through ["zygote", "spare"];
    fn when_the_zygote_is_killed_while_many_are_asked_for() {
        let file = file();
        for round in 0..60_u64 {
            let victim = warm_up();
            std::thread::scope(|scope| {
                for number in 0..24 {
                    let file = &file;
                    scope.spawn(move || {
                        let unit = Mark { file: file.clone(), number };
                        assert_eq!(Offspring::new(unit).and_then(Offspring::wait).unwrap(), number);
                    });
                }
                // A different moment each time is what is tried.
                std::thread::sleep(Duration::from_micros(round * 97 % 5000));
                harness::kill(victim, libc::SIGKILL);
            });
            assert_eq!(runs(&file), (0..24).map(|number| (number, 1)).collect(), "round {round}");
        }
    }
}

behaviour! { through ["auto"];
    fn when_descriptors_are_short() {
        let file = file();
        warm_up();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid record.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
        let low = libc::rlimit { rlim_cur: 64, ..limit };
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const low) };
        let mut held = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            held.push(file);
        }
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
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        let runs = runs(&file);
        assert!(runs.values().all(|count| *count == 1), "{runs:?}");
        assert!(!runs.is_empty());
    }

    fn when_the_old_call_makes_a_child_and_there_is_no_descriptor_for_it() {
        let file = file();
        if !can("a filter", harness::filter(libc::SYS_clone3, libc::ENOSYS, true)) {
            return;
        }
        let pid = warm_up();
        eventually("the spares stay", || harness::spares().is_empty());
        let low = libc::rlimit { rlim_cur: 6, rlim_max: 4096 };
        // SAFETY: a valid record.
        unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, &raw const low, std::ptr::null_mut()) };
        let unit = Offspring::new(Mark { file: file.clone(), number: 1 });
        assert_eq!(unit.and_then(Offspring::wait).unwrap(), 1);
        assert_eq!(runs(&file), BTreeMap::from([(1, 1)]));
    }

    fn when_a_thread_with_other_rights_starts_while_a_zygote_dies() {
        let file = file();
        for round in 0..20_u64 {
            let victim = warm_up();
            std::thread::scope(|scope| {
                for number in 0..8 {
                    let file = &file;
                    scope.spawn(move || {
                        // SAFETY: sets a flag of this thread.
                        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                        let unit = Mark { file: file.clone(), number };
                        assert_eq!(Offspring::new(unit).and_then(Offspring::wait).unwrap(), number);
                    });
                }
                std::thread::sleep(Duration::from_micros(round * 397 % 5000));
                harness::kill(victim, libc::SIGKILL);
            });
            assert_eq!(runs(&file), (0..8).map(|number| (number, 1)).collect(), "round {round}");
        }
    }
}

behaviour! { through ["zygote"];
    fn not_when_its_start_has_failed() {
        let file = file();
        let slow = warm_up();
        for number in 0..20 {
            harness::kill(slow, libc::SIGSTOP);
            let unit = Offspring::builder(Mark { file: file.clone(), number }).start_timeout(Duration::from_millis(20));
            assert_eq!(unit.spawn().unwrap_err().kind(), ErrorKind::Start);
            harness::kill(slow, libc::SIGCONT);
            // Whoever comes later is made later.
            warm_up();
            eventually("its child is left", || harness::tagged(&harness::tag()).is_empty());
        }
        assert_eq!(runs(&file), BTreeMap::new());
    }

    fn and_a_zygote_that_cannot_send_a_descriptor_harms_nobody() {
        let unit = spawn(file(), |file: PathBuf| {
            // SAFETY: changes this process's user; records that are valid, and filled in where they are read.
            unsafe {
                if !can("another user", libc::setresgid(65532, 65532, 65532) == 0 && libc::setresuid(65532, 65532, 65532) == 0) {
                    return;
                }
                let mut running = Offspring::new(Forever).unwrap();
                // Descriptors on their way count for the user who sent them, and for the limit of who sends the next.
                let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
                for _ in 0..30 {
                    send_descriptor(&socket);
                }
                let low = libc::rlimit { rlim_cur: 20, rlim_max: 20 };
                libc::prlimit(zygote().unwrap() as i32, libc::RLIMIT_NOFILE, &raw const low, std::ptr::null_mut());
                let started = Offspring::new(Mark { file: file.clone(), number: 3 }).and_then(Offspring::wait);
                assert!(started.is_ok_and(|value| value == 3));
                assert!(running.wait_timeout(Duration::from_millis(300)).unwrap().is_none());
                running.process().unwrap().kill().unwrap();
            }
            let _ = std::fs::remove_file(file);
        });
        unit.unwrap().wait().unwrap();
    }
}

fn send_descriptor(socket: &std::os::unix::net::UnixStream) {
    use std::os::fd::AsRawFd;
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
        assert_eq!(libc::sendmsg(socket.as_raw_fd(), &raw const message, 0), 1);
    }
}
