//! Descriptors as parts of units and results.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use offspring::{ErrorKind, Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

/// A result with one.
#[derive(Serialize, Deserialize)]
struct With<T: offspring::fd::Crossing<M>, M>(
    #[serde(with = "offspring::fd")] T,
    #[serde(skip)] std::marker::PhantomData<M>,
);

fn with<T: offspring::fd::Crossing<M>, M>(value: T) -> With<T, M> {
    With(value, std::marker::PhantomData)
}

/// Writes into each of its pipes what its place is.
#[derive(Serialize, Deserialize)]
struct Number {
    #[serde(with = "offspring::fd")]
    first: Option<File>,
    #[serde(with = "offspring::fd")]
    none: Option<File>,
    #[serde(with = "offspring::fd")]
    others: Vec<File>,
    /// Makes the thing large, so that it goes by memory.
    ballast: Vec<u8>,
}

impl Subprocess for Number {
    type Output = (usize, Option<i32>);

    fn run(mut self) -> Self::Output {
        assert!(self.none.is_none());
        let flags = self.first.as_ref().map(|file| {
            // SAFETY: fcntl(2) on an open descriptor.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFD) }
        });
        for (place, file) in self.first.iter_mut().chain(&mut self.others).enumerate() {
            file.write_all(&(place as u32).to_le_bytes()).unwrap();
        }
        (self.others.len() + self.ballast.len(), flags)
    }
}

fn pipes(count: usize) -> (Vec<File>, Vec<File>) {
    let pipe = |_| {
        let (reader, writer) = std::io::pipe().unwrap();
        (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
    };
    (0..count).map(pipe).unzip()
}

/// As many open files as the system allows.
fn raise_limit() {
    // SAFETY: a record that is filled in full.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max.min(65536);
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}

behaviour! {
    fn files_cross_to_a_unit_in_their_places() {
        for (count, ballast) in [(0, 0), (1, 100_000), (10, 0)] {
            let (readers, mut writers) = pipes(count + 1);
            let others = writers.split_off(1);
            let unit = Number { first: writers.pop(), none: None, others, ballast: vec![1; ballast] };
            let (sum, flags) = Offspring::new(unit).unwrap().wait().unwrap();
            assert_eq!((sum, flags), (count + ballast, Some(libc::FD_CLOEXEC)));
            for (place, mut reader) in readers.into_iter().enumerate() {
                let mut text = Vec::new();
                // To its end: nobody holds the other end any more.
                reader.read_to_end(&mut text).unwrap();
                assert_eq!(text, (place as u32).to_le_bytes());
            }
        }
    }

    fn more_than_one_message_can_take() {
        raise_limit();
        let (readers, others) = pipes(600);
        let unit = Number { first: None, none: None, others, ballast: Vec::new() };
        assert_eq!(Offspring::new(unit).unwrap().wait().unwrap(), (600, None));
        for (place, mut reader) in readers.into_iter().enumerate() {
            let mut bytes = [0; 4];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), place as u32);
        }
    }

    fn a_connection_comes_home() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let unit = spawn(port, |port: u16| with::<TcpStream, _>(TcpStream::connect(("127.0.0.1", port)).unwrap()));
        let (mut accepted, _) = listener.accept().unwrap();
        let With(mut connected, _) = unit.unwrap().wait().unwrap();
        connected.write_all(b"from the parent").unwrap();
        drop(connected);
        let mut text = String::new();
        accepted.read_to_string(&mut text).unwrap();
        assert_eq!(text, "from the parent");
    }

    fn results_with_many_and_by_result_as_well() {
        raise_limit();
        let unit = spawn(300_usize, |count: usize| {
            let (readers, writers) = pipes(count);
            for (place, mut writer) in writers.into_iter().enumerate() {
                writer.write_all(&(place as u32).to_le_bytes()).unwrap();
            }
            (with::<Vec<File>, _>(readers), vec![7_u8; 100_000])
        });
        let (With(readers, _), ballast) = unit.unwrap().result().unwrap();
        assert_eq!((readers.len(), ballast.len()), (300, 100_000));
        for (place, mut reader) in readers.into_iter().enumerate() {
            let mut bytes = [0; 4];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), place as u32);
        }
    }

    fn nothing_is_left_of_what_nobody_takes() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        // The unit is never started, its result is thrown away, it dies before.
        let unit = spawn(with::<UnixStream, _>(theirs.try_clone().unwrap()), |unit: With<UnixStream, _>| unit).unwrap();
        unit.wait().unwrap();
        drop(spawn(with::<UnixStream, _>(theirs.try_clone().unwrap()), |unit: With<UnixStream, _>| unit).unwrap());
        let error = spawn(with::<UnixStream, _>(theirs), |_: With<UnixStream, _>| -> With<UnixStream, _> { std::process::abort() });
        assert_eq!(error.unwrap().wait().err().unwrap().kind(), ErrorKind::Died);
        // The end comes when nobody has the other end.
        ours.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }

    fn a_value_that_asks_for_what_is_not_there() {
        #[derive(Serialize, Deserialize)]
        struct Liar(u32);
        let unit = spawn((), |()| Liar(0)).unwrap();
        assert_eq!(unit.wait().unwrap().0, 0);
        // What is a number there is a descriptor here.
        let error = spawn(with::<UnixStream, _>(UnixStream::pair().unwrap().0), |_: With<UnixStream, _>| 7_u32).unwrap();
        assert_eq!(error.wait().unwrap(), 7);
    }

    fn where_serde_has_to_guess() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (sender, receiver) = offspring::channel(1).unwrap();
        let writer = File::from(OwnedFd::from(writer));
        let unit = spawn(vec![Either::Second { file: writer, text: "file".into() }], |mut all: Vec<Either>| {
            let Some(Either::Second { mut file, text }) = all.pop() else { panic!("it is another") };
            file.write_all(text.as_bytes()).unwrap();
        });
        unit.unwrap().wait().unwrap();
        let mut said = String::new();
        // Nobody has a copy of it any more.
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "file");
        let unit = spawn(Either::Fourth { sender, text: "channel".into() }, |either: Either| {
            let Either::Fourth { sender, text } = either else { panic!("it is another") };
            sender.send(text).unwrap();
        });
        assert_eq!(receiver.recv().unwrap(), "channel");
        unit.unwrap().wait().unwrap();
        assert!(receiver.recv().is_err());
    }

    fn too_many_for_the_receiver() {
        raise_limit();
        let (readers, others) = pipes(100);
        let unit = Offspring::builder(Number { first: None, none: None, others, ballast: Vec::new() });
        let error = unit.env("LIMIT", "1").spawn().unwrap().wait();
        // (It has room enough here; what has not is the next one.)
        assert_eq!(error.unwrap().0, 100);
        drop(readers);
        let unit = spawn(200_usize, |count: usize| with::<Vec<File>, _>(pipes(count).0)).unwrap();
        let process = unit.process().unwrap().clone();
        harness::eventually("its end", || !process.is_alive());
        let limit = harness::limit_files(64);
        let error = unit.wait().err().unwrap();
        harness::limit_files(limit);
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert!(error.to_string().contains("too many open files; the limit is "), "{error}");
    }

    fn too_many_for_the_sender() {
        let (_readers, others) = pipes(2);
        let limit = harness::limit_files(4);
        let error = Number { first: None, none: None, others, ballast: Vec::new() }.spawn().err().unwrap();
        harness::limit_files(limit);
        assert_eq!(error.kind(), ErrorKind::Encode);
        assert!(error.to_string().contains("the limit is 4 (RLIMIT_NOFILE)"), "{error}");
    }

    fn elsewhere_it_is_an_error() {
        let value = with::<UnixStream, _>(UnixStream::pair().unwrap().0);
        let error = serde_json::to_string(&value).unwrap_err();
        assert!(error.to_string().contains("crosses to a unit"), "{error}");
        let error = serde_json::from_str::<With<UnixStream, _>>("[0]").err().unwrap();
        assert!(error.to_string().contains("crosses to a unit"), "{error}");
    }

    fn they_are_not_inherited_by_what_a_unit_executes() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut unit = Offspring::builder(Executes { stream: theirs }).stdin(offspring::Stdio::piped()).spawn().unwrap();
        // While `cat` runs.
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        drop(unit.take_stdin());
        assert!(unit.wait().unwrap());
    }
}

/// The first and the third are tried with the descriptors of what comes after them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Either {
    First {
        #[serde(with = "offspring::fd")]
        file: File,
        text: u32,
    },
    Second {
        #[serde(with = "offspring::fd")]
        file: File,
        text: String,
    },
    Third {
        sender: offspring::Sender<String>,
        text: u32,
    },
    Fourth {
        sender: offspring::Sender<String>,
        text: String,
    },
}

/// Executes `cat`, which runs as long as there is something to read.
#[derive(Serialize, Deserialize)]
struct Executes {
    #[serde(with = "offspring::fd")]
    stream: UnixStream,
}

impl Subprocess for Executes {
    type Output = bool;

    fn run(self) -> bool {
        let mut cat = Command::new("cat").stdout(Stdio::null()).spawn().unwrap();
        drop(self.stream);
        cat.wait().unwrap().success()
    }
}
