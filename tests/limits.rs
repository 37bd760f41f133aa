//! Limits of a unit: set before any of its code runs, named when they end it, and no trouble for what the library does itself.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::hint::black_box;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use offspring::{Builder, EndedBy, Error, ErrorKind, Limit, Offspring, Stdio, Subprocess, SubprocessLoop};
use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;

/// What a unit has, in the order of [`SEEN`].
type Seen = Vec<(u64, u64)>;

const SEEN: [libc::__rlimit_resource_t; 6] = [
    libc::RLIMIT_AS,
    libc::RLIMIT_CPU,
    libc::RLIMIT_NOFILE,
    libc::RLIMIT_NPROC,
    libc::RLIMIT_CORE,
    libc::RLIMIT_FSIZE,
];

fn seen() -> Seen {
    let limit = |resource| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid record for getrlimit(2) to write into.
        assert_eq!(unsafe { libc::getrlimit(resource, &raw mut limit) }, 0);
        (limit.rlim_cur, limit.rlim_max)
    };
    SEEN.into_iter().map(limit).collect()
}

fn niceness() -> i32 {
    // SAFETY: getpriority(2) has no conditions.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// What a unit that is decoded has then, and its niceness.
#[derive(Serialize)]
struct Early(Seen, i32);

impl<'de> Deserialize<'de> for Early {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <(Seen, i32)>::deserialize(deserializer).map(|_| Self(seen(), niceness()))
    }
}

impl Subprocess for Early {
    type Output = (Seen, i32);

    fn run(self) -> (Seen, i32) {
        (self.0, self.1)
    }
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
enum Stunt {
    /// Takes memory that is not to be had.
    Hoard,
    Spin,
    /// The same, and ignores XCPU.
    SpinOn,
    /// Writes a file of that many bytes.
    Write(usize),
    /// Opens a file; gives the error's number.
    Open,
    /// As another user than the superuser, starts a thread; gives the error's number.
    Thread,
    /// Gives a result of that many bytes.
    Give(usize),
    Abort,
    Panic,
    KillMyself,
}

impl Subprocess for Stunt {
    type Output = Vec<u8>;

    fn run(self) -> Vec<u8> {
        match self {
            Self::Hoard => vec![1; black_box(4 << 30)],
            Self::Spin | Self::SpinOn => {
                if matches!(self, Self::SpinOn) {
                    // SAFETY: sets a disposition.
                    unsafe { libc::signal(libc::SIGXCPU, libc::SIG_IGN) };
                }
                loop {
                    black_box(());
                }
            }
            Self::Write(size) => {
                let path = std::env::temp_dir().join(format!("{}-file", harness::tag()));
                let written = std::fs::File::create(&path).map(|file| (file, std::fs::remove_file(&path)));
                std::io::Write::write_all(&mut written.unwrap().0, &vec![1; size]).unwrap();
                Vec::new()
            }
            Self::Open => number(std::fs::File::open("/dev/null").map(drop)),
            Self::Thread => {
                // SAFETY: sets the user of this process, which has one thread.
                unsafe { libc::syscall(libc::SYS_setuid, 65534) };
                number(std::thread::Builder::new().spawn(|| ()).map(drop))
            }
            Self::Give(size) => vec![7; size],
            Self::Abort => std::process::abort(),
            Self::Panic => panic!("of its own"),
            Self::KillMyself => {
                harness::kill(std::process::id(), libc::SIGKILL);
                Vec::new()
            }
        }
    }
}

/// The number of an error that is expected.
fn number(done: std::io::Result<()>) -> Vec<u8> {
    vec![done.map_or_else(|error| error.raw_os_error().unwrap() as u8, |()| 0)]
}

fn stunt(stunt: Stunt) -> Builder<Vec<u8>> {
    // No core dumps into this directory, no words about what is expected.
    Offspring::builder(stunt).limit_core_size(0).stderr(Stdio::null())
}

fn error(builder: Builder<Vec<u8>>) -> Error {
    builder.spawn().unwrap().wait().unwrap_err()
}

fn signal(error: &Error) -> Option<i32> {
    error.death().unwrap().status().signal()
}

#[derive(Serialize, Deserialize)]
struct Spinner;

impl SubprocessLoop for Spinner {
    type Output = ();

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        ControlFlow::Continue(Duration::ZERO)
    }

    fn end(self) {}
}

behaviour! {
    fn limits_are_set_before_any_code_of_the_unit_runs() {
        let builder = Offspring::builder(Early(Vec::new(), 0))
            .limit_memory(4096 * MIB)
            .limit_cpu_time(Duration::from_millis(1500))
            .limit_open_files(17)
            .limit_processes(10_000)
            .limit_core_size(5)
            .limit_file_size(3 * MIB)
            .nice(3)
            .nice(2);
        let (seen, nice) = builder.spawn().unwrap().wait().unwrap();
        let expected = [(4096 * MIB, 4096 * MIB), (2, 3), (17, 17), (10_000, 10_000), (5, 5), (3 * MIB, 3 * MIB)];
        assert_eq!((seen, nice), (expected.to_vec(), niceness() + 2));
    }

    fn without_limits_a_unit_has_its_parents() {
        let of_it = Early(Vec::new(), 0).spawn().unwrap().wait().unwrap();
        assert_eq!(of_it, (seen(), niceness()));
    }

    fn cpu_time_that_is_used_up_is_named() {
        let found = error(stunt(Stunt::Spin).limit_cpu_time(Duration::from_millis(1)));
        assert_eq!((found.kind(), signal(&found)), (ErrorKind::Died, Some(libc::SIGXCPU)));
        assert_eq!(found.limit(), Some(Limit::CpuTime(Duration::from_secs(1))));
        assert!(found.to_string().ends_with("; it ran into its limit of CPU time (1 s)"), "{found}");
    }

    fn a_loop_is_limited_as_well() {
        let unit = Offspring::builder(Spinner).limit_cpu_time(Duration::from_secs(1)).limit_core_size(0).spawn();
        assert_eq!(unit.unwrap().wait().unwrap_err().limit(), Some(Limit::CpuTime(Duration::from_secs(1))));
    }

    fn cpu_time_that_is_used_up_by_one_that_goes_on_is_named_too() {
        let found = error(stunt(Stunt::SpinOn).limit_cpu_time(Duration::from_secs(1)));
        assert_eq!((found.kind(), signal(&found)), (ErrorKind::Died, Some(libc::SIGKILL)));
        assert_eq!(found.limit(), Some(Limit::CpuTime(Duration::from_secs(1))));
        // Of a KILL nobody knows whose it was.
        assert_eq!(found.death().unwrap().ended_by(), EndedBy::Other);
        assert!(found.to_string().ends_with("; it may have run into its limit of CPU time (1 s)"), "{found}");
    }

    fn a_kill_of_somebody_elses_is_not_the_limits() {
        let found = error(stunt(Stunt::KillMyself).limit_cpu_time(Duration::from_secs(1)).limit_memory(8192 * MIB));
        assert_eq!((signal(&found), found.limit()), (Some(libc::SIGKILL), None));
        assert!(!found.to_string().contains("limit of"), "{found}");
    }

    fn a_unit_that_we_have_ended_has_not_run_into_a_limit() {
        let found = error(stunt(Stunt::Spin).limit_cpu_time(Duration::from_secs(60)).timeout(Duration::from_millis(50)));
        assert_eq!((found.kind(), found.limit()), (ErrorKind::TimedOut, None));
    }

    fn memory_that_is_not_to_be_had_may_have_been_the_cause() {
        let limit = Limit::Memory(1024 * MIB);
        let found = error(stunt(Stunt::Hoard).limit_memory(1024 * MIB));
        assert_eq!((found.kind(), signal(&found), found.limit()), (ErrorKind::Died, Some(libc::SIGABRT), Some(limit)));
        let words = "; it may have run into its limit of memory (1073741824 bytes)";
        assert!(found.to_string().ends_with(words), "{found}");
        // An abort for another reason looks the same; one that has no such limit does not.
        assert_eq!(error(stunt(Stunt::Abort).limit_memory(1024 * MIB)).limit(), Some(limit));
        assert_eq!(error(stunt(Stunt::Abort)).limit(), None);
        let panic = error(stunt(Stunt::Panic).limit_memory(1024 * MIB));
        assert_eq!((panic.kind(), panic.limit()), (ErrorKind::Panicked, None));
    }

    fn less_memory_than_a_child_takes_is_an_error_of_its_start() {
        for bytes in [0, 4096, MIB] {
            let found = error(stunt(Stunt::Give(1)).limit_memory(bytes));
            assert_eq!(found.kind(), ErrorKind::Start);
            assert!(found.to_string().contains(&format!("its limit of memory ({bytes} bytes): ")), "{found}");
        }
    }

    fn memory_that_is_short_at_every_place_is_a_clear_error_and_no_hang() {
        let there = Offspring::builder(Early(Vec::new(), 0)).limit_memory(MIB).spawn().unwrap().wait().unwrap_err();
        // "... the process takes N bytes before it begins"
        let text = there.to_string();
        let there: u64 = text.split(' ').find_map(|word| word.parse().ok().filter(|n| *n > 2 * MIB)).expect(&text);
        let mut given = 0;
        for more in [1, 4096, 65_536, 131_072, 262_144, 524_288, MIB, 2 * MIB, 4 * MIB, 16 * MIB, 64 * MIB] {
            let unit = stunt(Stunt::Give(MIB as usize)).limit_memory(there + more).spawn().unwrap();
            match unit.wait() {
                Ok(value) => given += usize::from(value.len() == MIB as usize),
                Err(error) => assert!(error.to_string().contains("limit of memory"), "{more}: {error}"),
            }
        }
        assert!(given > 0, "also with 64 MiB more there was no result");
    }

    fn a_file_that_is_too_large_is_named() {
        assert!(stunt(Stunt::Write(4096)).limit_file_size(4096).spawn().unwrap().wait().is_ok());
        let found = error(stunt(Stunt::Write(4097)).limit_file_size(4096));
        assert_eq!((found.kind(), signal(&found)), (ErrorKind::Died, Some(libc::SIGXFSZ)));
        assert_eq!(found.limit(), Some(Limit::FileSize(4096)));
        assert_eq!(found.death().unwrap().ended_by(), EndedBy::Limit(Limit::FileSize(4096)));
        assert!(found.to_string().ends_with("; it ran into its limit of a file's size (4096 bytes)"), "{found}");
    }

    fn open_files_and_threads_are_refused_beyond_their_limit() {
        let refused = |builder: Builder<Vec<u8>>| builder.spawn().unwrap().wait().unwrap()[0] as i32;
        assert_eq!(refused(stunt(Stunt::Open)), 0);
        assert_eq!(refused(stunt(Stunt::Open).limit_open_files(4)), libc::EMFILE);
        assert_eq!(refused(stunt(Stunt::Open).limit_open_files(5)), 0);
        assert_eq!(refused(stunt(Stunt::Thread).limit_processes(0)), libc::EAGAIN);
    }

    fn a_large_result_comes_home_whatever_the_limits() {
        let builder = stunt(Stunt::Give(4 << 20)).limit_open_files(0).limit_file_size(0).limit_processes(0);
        let value = builder.limit_memory(2048 * MIB).limit_cpu_time(Duration::from_secs(60)).spawn().unwrap().wait();
        assert_eq!(value.unwrap(), vec![7; 4 << 20]);
    }

    fn a_limit_that_may_not_be_raised_is_an_error_of_the_start() {
        // More than the system lets anybody have.
        let found = error(stunt(Stunt::Give(1)).limit_open_files(1 << 40));
        assert_eq!(found.kind(), ErrorKind::Start);
        assert!(found.to_string().contains("its limit of open files (1099511627776): "), "{found}");
        // The next is not harmed.
        assert_eq!(stunt(Stunt::Give(1)).spawn().unwrap().wait().unwrap(), [7]);
    }

    fn a_niceness_that_is_refused_is_an_error_of_the_start() {
        if !harness::can("a filter", harness::filter(libc::SYS_setpriority, libc::EPERM, true)) {
            return;
        }
        let found = error(stunt(Stunt::Give(1)).nice(-5));
        assert_eq!(found.kind(), ErrorKind::Start);
        assert!(found.to_string().contains("its niceness (-5): "), "{found}");
    }
}
