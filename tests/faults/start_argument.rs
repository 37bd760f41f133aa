//! What a unit is made of, on its way to the child: too large for the line, or refused when it comes there.

use std::os::unix::process::ExitStatusExt;

use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Deserializer, Serialize};

use crate::behaviour;
use crate::harness::{self, double, eventually};

/// What the library sends on the line at most.
const LARGE: usize = 64 << 10;

#[derive(Serialize, Deserialize)]
struct Bytes(#[serde(with = "serde_bytes")] Vec<u8>);

impl Subprocess for Bytes {
    type Output = (usize, bool);

    fn run(self) -> (usize, bool) {
        let pattern = pattern();
        (self.0.len(), self.0.chunks(pattern.len()).all(|piece| *piece == pattern[..piece.len()]))
    }
}

/// So long that no border of a page or a buffer is one of its own.
fn pattern() -> Vec<u8> {
    (0..65_521_u32).map(|n| (n % 251) as u8).collect()
}

/// The descriptors that this process has.
fn descriptors() -> Vec<String> {
    let list = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut names: Vec<String> = list
        .filter_map(|entry| {
            Some((entry.as_ref().ok()?.file_name(), std::fs::read_link(entry.ok()?.path()).ok()?))
        })
        // Not the one that reads this list.
        .filter(|(_, target)| !target.ends_with("fd"))
        .map(|(name, _)| name.into_string().unwrap())
        .collect();
    names.sort();
    names
}

behaviour! {
    fn case_16_arguments_of_any_size() {
        let borders = [LARGE - 17, LARGE - 16, LARGE - 8, LARGE - 5, LARGE - 1, LARGE, LARGE + 1, 2 * LARGE];
        // What a line holds, by default; and far more.
        let sizes = [0, 1, 180_224, 212_992, 262_144, 1 << 20, 5 << 20, 256 << 20];
        let pattern = pattern();
        for size in borders.into_iter().chain(sizes) {
            let mut bytes = pattern.repeat(size / pattern.len() + 1);
            bytes.truncate(size);
            assert_eq!(Offspring::new(Bytes(bytes)).and_then(Offspring::wait).unwrap(), (size, true));
        }
    }

    fn case_16_arguments_of_any_size_there_and_back() {
        for size in [0, 1, LARGE - 8, LARGE - 5, LARGE, LARGE + 1, 2 * LARGE, 180_224, 262_144, 5 << 20] {
            let text: String = (0..size).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
            let back = spawn(text.clone(), |text: String| text).unwrap().wait().unwrap();
            assert!(back == text, "{size}");
            let bytes = serde_bytes::ByteBuf::from(text.into_bytes());
            let back = spawn(bytes.clone(), |bytes: serde_bytes::ByteBuf| bytes).unwrap().wait().unwrap();
            assert!(back == bytes, "{size}");
        }
    }

    fn case_16_nothing_of_it_stays_open_in_the_unit() {
        let text = "x".repeat(1 << 20);
        let unit = spawn(text, |text: String| (text.len(), descriptors()));
        assert_eq!(unit.unwrap().wait().unwrap(), (1 << 20, ["0", "1", "2", "3"].map(str::to_owned).to_vec()));
    }
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Deed {
    Error,
    Panic,
    Exit,
    Crash,
    Overflow,
}

/// Does it when it is decoded.
#[derive(Serialize)]
struct Touchy(Deed);

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Deed::deserialize(deserializer)? {
            Deed::Error => Err(serde::de::Error::custom("refused")),
            Deed::Panic => panic!("touched"),
            Deed::Exit => std::process::exit(3),
            // SAFETY: ends the process, which is what is wanted.
            Deed::Crash => unsafe {
                libc::raise(libc::SIGSEGV);
                unreachable!()
            },
            Deed::Overflow => Ok(Self(if deep(1) == 0 { Deed::Exit } else { Deed::Crash })),
        }
    }
}

fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 64]);
    if n == u64::MAX { 0 } else { block[1] + deep(n + 1) }
}

/// Once as a unit for whose readiness the start waits, and once as one for which it does not.
#[derive(Serialize, Deserialize)]
struct Unit<const AWAITED: bool>(Touchy);

impl<const AWAITED: bool> Subprocess for Unit<AWAITED> {
    type Output = ();
    const WAIT_FOR_CHILD: bool = AWAITED;

    fn run(self) {}
}

/// The error of the start, or of the wait.
fn start<const AWAITED: bool>(deed: Deed) -> (bool, Error) {
    let unit = Offspring::builder(Unit::<AWAITED>(Touchy(deed))).stderr(Stdio::null()).spawn();
    match unit {
        Ok(unit) => (false, unit.wait().unwrap_err()),
        Err(error) => (true, error),
    }
}

behaviour! {
    fn case_17_an_argument_that_cannot_be_decoded() {
        let cases = [
            (Deed::Error, ErrorKind::Decode, None),
            (Deed::Panic, ErrorKind::Panicked, None),
            (Deed::Exit, ErrorKind::Start, None),
            (Deed::Crash, ErrorKind::Start, Some(libc::SIGSEGV)),
            (Deed::Overflow, ErrorKind::Start, Some(libc::SIGABRT)),
        ];
        for (deed, kind, signal) in cases {
            for (awaited, (by_start, error)) in [(true, start::<true>(deed)), (false, start::<false>(deed))] {
                assert_eq!((by_start, error.kind()), (awaited, kind), "{deed:?}: {error}");
                let death = error.death().expect("there was a child");
                assert_eq!(death.status().signal(), signal, "{deed:?}: {error}");
                assert!(deed != Deed::Exit || death.status().code() == Some(3), "{error}");
                assert!(deed != Deed::Error || error.to_string().contains("refused"), "{error}");
                assert!(deed != Deed::Panic || error.panic().unwrap().message() == "touched", "{error}");
                assert!(error.to_string().contains(&format!("pid {}", death.id())), "{error}");
                eventually("the child is left", || !harness::is_alive(death.id()));
                assert_eq!(double(1).unwrap(), 2);
            }
        }
    }
}
