//! A unit on its way to its child, and its result on its way home.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::behaviour;
use crate::harness::{self, eventually, is_alive};

const LONG: Duration = Duration::from_secs(3600);

/// From now on this process writes no file larger than that; and so a large value of its goes by the line, not by memory.
fn limit_files(most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: a valid record.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
}

/// Gives back what it got.
#[derive(Serialize, Deserialize)]
struct Echo {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    by_line: bool,
}

impl Subprocess for Echo {
    type Output = serde_bytes::ByteBuf;

    fn run(self) -> serde_bytes::ByteBuf {
        if self.by_line {
            limit_files(0);
        }
        serde_bytes::ByteBuf::from(self.bytes)
    }
}

/// So many at once, each there and back, before anybody waits for one.
fn echo_at_once(count: u8, size: usize, by_line: bool) {
    let echo = |n| Offspring::new(Echo { bytes: vec![n; size], by_line }).unwrap();
    let units: Vec<_> = (0..count).map(|n| (n, echo(n))).collect();
    for (n, unit) in units.into_iter().rev() {
        let back = unit.wait().unwrap();
        assert!(back.len() == size && back.iter().all(|byte| *byte == n));
    }
}

/// Does something on its way: where it is encoded, decoded or run.
#[derive(Clone, Debug)]
struct Touchy {
    place: String,
    deed: String,
    parent: u32,
}

impl Touchy {
    fn at(&self, place: &str) -> Result<(), String> {
        let here = if std::process::id() == self.parent { "parent" } else { "child" };
        if self.place != format!("{place} in {here}") {
            return Ok(());
        }
        match self.deed.as_str() {
            "error" => Err("refused".into()),
            "panic" => panic!("touched"),
            "exit" => std::process::exit(3),
            // SAFETY: ends the process, which is what is wanted.
            "crash" => unsafe {
                libc::raise(libc::SIGSEGV);
                unreachable!()
            },
            other => unreachable!("{other}"),
        }
    }
}

impl Serialize for Touchy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.at("serialize").map_err(serde::ser::Error::custom)?;
        (&self.place, &self.deed, self.parent).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, deed, parent) = Deserialize::deserialize(deserializer)?;
        let this = Self { place, deed, parent };
        this.at("deserialize").map_err(serde::de::Error::custom)?;
        Ok(this)
    }
}

#[derive(Serialize, Deserialize)]
struct Touched(Touchy);

impl Subprocess for Touched {
    type Output = Result<Touchy, String>;

    fn run(self) -> Result<Touchy, String> {
        self.0.at("run").map(|()| self.0)
    }
}

/// Starts one that does so there, and waits for its end or for its result alone.
fn touch(place: &str, deed: &str, alone: bool) -> Result<Result<Touchy, String>, Error> {
    let touchy = Touchy { place: place.into(), deed: deed.into(), parent: std::process::id() };
    let unit = Offspring::builder(Touched(touchy)).stderr(Stdio::null()).spawn()?;
    if alone { unit.result() } else { unit.wait() }
}

/// Says these bytes on the line in the library's place, and is killed.
#[derive(Serialize, Deserialize)]
struct Cut(#[serde(with = "serde_bytes")] Vec<u8>);

impl Subprocess for Cut {
    type Output = String;

    fn run(self) -> String {
        let mut left = &self.0[..];
        while !left.is_empty() {
            // SAFETY: the line is at descriptor 3; the buffers and the record are valid.
            let count = unsafe {
                let mut line = libc::pollfd { fd: 3, events: libc::POLLOUT, revents: 0 };
                assert!(libc::poll(&raw mut line, 1, -1) == 1);
                libc::send(3, left.as_ptr().cast(), left.len(), libc::MSG_DONTWAIT)
            };
            left = &left[usize::try_from(count).unwrap_or(0)..];
        }
        // SAFETY: ends the process.
        unsafe { libc::raise(libc::SIGKILL) };
        unreachable!()
    }
}

/// A text as a child gives it, header and all.
fn frame(text: &str) -> Vec<u8> {
    let length = (text.len() as u32).to_be_bytes();
    let body = [&[0xdb][..], &length, text.as_bytes()].concat();
    let header = [
        &0x4f66_7331_u32.to_le_bytes()[..],
        &18_u32.to_le_bytes()[..],
        &(body.len() as u64).to_le_bytes()[..],
    ];
    [&header.concat()[..], &body].concat()
}

/// Leaves something to be printed, in every process of this program that is asked to by its environment.
extern "C" fn print_early() {
    // SAFETY: constant strings, in a process that has one thread as yet.
    unsafe {
        if !libc::getenv(c"PRINTS_EARLY".as_ptr()).is_null() {
            libc::printf(c"<from a constructor>".as_ptr());
        }
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static PRINT_EARLY: extern "C" fn() = print_early;

behaviour! {
    fn case_23_large_values_both_ways_at_once() {
        echo_at_once(4, 64 << 20, false);
        let text = "x".repeat(8 << 20);
        assert!(spawn(text.clone(), |text: String| text).unwrap().wait().unwrap() == text);
    }

    fn case_23_large_values_both_ways_at_once_by_the_line_alone() {
        // The zygote is there first: it keeps a file with its parent.
        spawn((), |()| ()).unwrap().wait().unwrap();
        limit_files(60_000);
        echo_at_once(4, 16 << 20, true);
    }

    fn case_23_large_values_of_which_a_part_is_written_when_no_file_may_be_longer() {
        spawn((), |()| ()).unwrap().wait().unwrap();
        let text = |letter: &str| letter.repeat(200_000);
        let value = (1_u8, text("a"), Some(Some(text("b"))), vec![Ok(text("c")), Err(text("d"))], vec![7_u8; 100_000], 2_u8);
        for most in [u64::MAX, 900_000, 700_000, 500_000, 300_000, 100_000, 0] {
            limit_files(most);
            let back = spawn((value.clone(), most), |(value, most)| {
                limit_files(most);
                value
            });
            assert!(back.unwrap().wait().unwrap() == value, "{most}");
        }
    }

    fn case_24_every_step_that_fails_in_every_way_is_told_and_the_next_start_works() {
        use ErrorKind::{Decode, Died, Encode, Panicked, Start};
        let cells = [
            ("serialize in parent", "error", Encode),
            ("serialize in parent", "panic", Encode),
            ("deserialize in child", "error", Decode),
            ("deserialize in child", "panic", Panicked),
            ("deserialize in child", "exit", Start),
            ("deserialize in child", "crash", Start),
            ("run in child", "panic", Panicked),
            ("run in child", "exit", Died),
            ("run in child", "crash", Died),
            ("serialize in child", "error", Encode),
            ("serialize in child", "panic", Panicked),
            ("serialize in child", "exit", Died),
            ("serialize in child", "crash", Died),
            ("deserialize in parent", "error", Decode),
            ("deserialize in parent", "panic", Decode),
        ];
        for ((place, deed, kind), alone) in cells.into_iter().flat_map(|cell| [(cell, false), (cell, true)]) {
            let error = touch(place, deed, alone).unwrap_err();
            assert_eq!(error.kind(), kind, "{place}, {deed}: {error}");
            let text = error.to_string();
            assert!(text.contains("Touched") && (deed != "error" || text.contains("refused")), "{text}");
            assert_eq!(text.contains("(pid "), place != "serialize in parent", "{text}");
            let panic = error.panic().map(|panic| panic.message().to_owned());
            assert_eq!(panic.as_deref(), (kind == Panicked).then_some("touched"), "{place}: {text}");
            let status = error.death().map(|death| death.status());
            match deed {
                "exit" => assert_eq!(status.unwrap().code(), Some(3), "{text}"),
                "crash" => assert_eq!(status.unwrap().signal(), Some(libc::SIGSEGV), "{text}"),
                _ if place.ends_with("parent") => assert!(status.is_none_or(|status| status.success()), "{text}"),
                _ => assert_eq!(status.unwrap().code(), Some(if deed == "panic" { 101 } else { 1 }), "{text}"),
            }
            assert_eq!(spawn(1, |n: u32| n).unwrap().wait().unwrap(), 1);
        }
        // What is an error to the unit is a value to us.
        assert_eq!(touch("run in child", "error", false).unwrap().unwrap_err(), "refused");
        assert_eq!(touch("nowhere", "error", true).unwrap().unwrap().deed, "error");
    }

    fn case_25_a_child_that_dies_at_any_byte_of_its_result() {
        let whole = frame("four");
        for count in 0..whole.len() {
            let error = Offspring::new(Cut(whole[..count].to_vec())).unwrap().wait().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Died, "{count}: {error}");
            assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGKILL), "{count}: {error}");
        }
        assert_eq!(Offspring::new(Cut(whole.clone())).unwrap().wait().unwrap(), "four");
        // More than the line holds, so that some of it has been heard before.
        let whole = frame(&"y".repeat(3 << 20));
        for count in [1 << 20, whole.len() - 1] {
            let unit = Offspring::new(Cut(whole[..count].to_vec())).unwrap();
            assert_eq!(unit.wait().unwrap_err().kind(), ErrorKind::Died, "{count}");
        }
        assert_eq!(Offspring::new(Cut(whole)).unwrap().result().unwrap().len(), 3 << 20);
    }

    fn case_25_a_child_that_is_killed_at_any_time_gives_all_of_its_result_or_none() {
        for round in 0..40_u64 {
            let unit = spawn((), |()| {
                limit_files(0);
                "x".repeat(4 << 20)
            });
            let unit = unit.unwrap();
            let process = unit.process().unwrap().clone();
            // A different moment each time is what is tried.
            std::thread::sleep(Duration::from_micros(round * 250));
            process.kill().unwrap();
            match unit.wait() {
                Ok(text) => assert!(text.len() == 4 << 20 && text.bytes().all(|byte| byte == b'x')),
                Err(error) => {
                    assert!([ErrorKind::Died, ErrorKind::Start].contains(&error.kind()), "{error}");
                    assert_eq!(error.death().unwrap().status().signal(), Some(libc::SIGKILL), "{error}");
                }
            }
        }
    }

    fn case_26_a_value_wins_over_what_its_destructor_does() {
        #[derive(Serialize, Deserialize)]
        struct Last(u32);
        impl Drop for Last {
            fn drop(&mut self) {
                if self.0 != std::process::id() {
                    std::process::abort();
                }
            }
        }
        let unit = spawn(std::process::id(), Last).unwrap();
        let process = unit.process().unwrap().clone();
        assert_eq!(unit.wait().unwrap().0, std::process::id());
        assert_eq!(process.exit_status().unwrap().signal(), Some(libc::SIGABRT));
    }

    fn case_27_results_whose_child_is_gone_the_moment_they_are_sent() {
        #[derive(Serialize, Deserialize)]
        struct Number(u32);
        impl Subprocess for Number {
            type Output = u32;
            fn run(self) -> u32 {
                self.0
            }
        }
        let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for n in 0..240 {
            let fault = if n % 8 < 4 { "exit" } else { "kill" };
            let builder = Offspring::builder(Number(n)).env("OFFSPRING_STEP", format!("child:sent:{fault}"));
            let unit = builder.spawn().unwrap();
            let process = unit.process().unwrap().clone();
            let value = match n % 4 {
                0 => unit.wait(),
                1 => unit.result(),
                2 => executor.block_on(unit),
                _ => {
                    // The reaper sees it.
                    eventually("it does not end", || !process.is_alive());
                    unit.wait()
                }
            };
            assert_eq!(value.unwrap(), n);
            eventually("it does not end", || !process.is_alive());
            let status = process.exit_status().unwrap();
            assert_eq!((status.code(), status.signal()), if fault == "exit" { (Some(9), None) } else { (None, Some(9)) });
        }
    }

    fn case_29_a_grandchild_that_holds_the_line_delays_nothing() {
        let unit = spawn((), |()| {
            // SAFETY: the child process has one thread.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                std::thread::sleep(LONG);
            }
            pid
        });
        let pid = unit.unwrap().wait().unwrap();
        assert!(is_alive(pid as u32));
        harness::kill(pid as u32, libc::SIGKILL);
        eventually("it stays", || !is_alive(pid as u32));
    }

    fn case_29_a_program_that_a_unit_left_behind_delays_nothing_and_has_no_line() {
        #[derive(Serialize, Deserialize)]
        struct Leaves;
        impl Subprocess for Leaves {
            type Output = (u32, PathBuf);
            fn run(self) -> (u32, PathBuf) {
                let line = std::fs::read_link("/proc/self/fd/3").unwrap();
                (std::process::Command::new("sleep").arg("3600").spawn().unwrap().id(), line)
            }
        }
        // It holds the pipe, which is drained by nobody's wish.
        let unit = Offspring::builder(Leaves).stdout(Stdio::piped()).spawn().unwrap();
        let (pid, line) = unit.wait().unwrap();
        assert!(is_alive(pid));
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let has_line = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).any(|file| file == line);
        harness::kill(pid, libc::SIGKILL);
        assert!(!has_line, "{line:?}");
        eventually("it stays", || !is_alive(pid));
    }

    fn case_30_a_limit_of_the_size_of_files_is_none_of_results() {
        let unit = spawn((), |()| {
            limit_files(0);
            "x".repeat(3 << 20)
        });
        assert_eq!(unit.unwrap().wait().unwrap().len(), 3 << 20);
        limit_files(10_000);
        assert_eq!(spawn("x".repeat(3 << 20), |text: String| text.len()).unwrap().wait().unwrap(), 3 << 20);
    }

    fn case_30_a_unit_without_descriptors_gives_its_large_result_all_the_same() {
        let unit = spawn((), |()| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: a valid record.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) }, 0);
            "x".repeat(3 << 20)
        });
        assert_eq!(unit.unwrap().wait().unwrap().len(), 3 << 20);
    }

    fn case_32_what_it_prints_is_out_when_its_result_is_home() {
        #[derive(Serialize, Deserialize)]
        struct Prints;
        impl Subprocess for Prints {
            type Output = ();
            fn run(self) {
                print!("no newline");
                // SAFETY: a constant string.
                unsafe { libc::printf(c" and C's".as_ptr()) };
            }
        }
        let mut unit = Offspring::builder(Prints).stdout(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        unit.take_stdout().unwrap().read_to_string(&mut text).unwrap();
        unit.wait().unwrap();
        assert_eq!(text, "no newline and C's");
        let (mut reader, writer) = std::io::pipe().unwrap();
        Offspring::builder(Prints).stdout(std::os::fd::OwnedFd::from(writer)).stdin(Stdio::null()).spawn().unwrap().wait().unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "no newline and C's");
    }

    fn case_32_a_thread_that_holds_a_stream_for_ever_keeps_no_result() {
        #[derive(Serialize, Deserialize)]
        struct Holds(bool);
        impl Subprocess for Holds {
            type Output = u32;
            const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));
            fn run(self) -> u32 {
                let (sender, receiver) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    let _lock = std::io::stdout().lock();
                    if self.0 {
                        unsafe extern "C" {
                            static stdout: *mut libc::FILE;
                            fn flockfile(stream: *mut libc::FILE);
                        }
                        // SAFETY: libc's own stream; something in it, and then the lock that its exit takes.
                        unsafe {
                            libc::printf(c"held".as_ptr());
                            flockfile(stdout);
                        }
                    }
                    sender.send(()).unwrap();
                    std::thread::sleep(LONG);
                });
                receiver.recv().unwrap();
                8
            }
        }
        for of_libc in [false, true] {
            assert_eq!(Holds(of_libc).spawn().unwrap().wait().unwrap(), 8);
        }
    }

    fn case_33_what_a_constructor_left_to_be_printed_is_printed_once() {
        #[derive(Serialize, Deserialize)]
        struct Parent;
        impl Subprocess for Parent {
            type Output = ();
            fn run(self) {
                for n in 0..10 {
                    assert_eq!(spawn(n, |n: u32| n).unwrap().wait().unwrap(), n);
                }
            }
        }
        let mut parent = Offspring::builder(Parent).env("PRINTS_EARLY", "1").stdout(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        parent.take_stdout().unwrap().read_to_string(&mut text).unwrap();
        parent.wait().unwrap();
        // By the zygote of the ten; or, without one, by each process that is executed, and the parent is one.
        let wanted = if std::env::var("OFFSPRING_LAUNCHER").unwrap() == "exec" { 11 } else { 1 };
        assert_eq!(text.matches("<from a constructor>").count(), wanted, "{text}");
    }
}

behaviour! { through ["auto"];
    fn case_30_a_parent_that_may_write_no_files_starts_units() {
        limit_files(0);
        for n in 0..3 {
            assert_eq!(spawn(n, |n: u32| n + 1).unwrap().wait().unwrap(), n + 1);
        }
    }
}

/// What is no value. It does not compile if one of these can be carried: then there are two ways to read `refused`.
#[test]
fn case_34_an_open_file_cannot_be_a_result() {
    trait Refused<Way> {
        fn refused() {}
    }
    impl<T: ?Sized> Refused<()> for T {}
    impl<T: Serialize + DeserializeOwned> Refused<u8> for T {}
    <std::fs::File as Refused<_>>::refused();
    <std::os::fd::OwnedFd as Refused<_>>::refused();
    <std::net::TcpStream as Refused<_>>::refused();
    <std::io::PipeReader as Refused<_>>::refused();
    // And this is a value, by that same measure.
    <String as Refused<u8>>::refused();
}
