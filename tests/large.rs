//! Values that are too large for the line: they go by memory. (What comes that way is looked at before it is believed:
//! `hostile_child.rs`.)
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use offspring::{Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

/// What the library sends on the line at most.
const LARGE: usize = 64 << 10;

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
    fn values_cross_whatever_their_size() {
        for size in [LARGE - 8, LARGE - 5, LARGE, LARGE + 1, 2 * LARGE, 5 << 20] {
            let text: String = (0..size).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
            let back = spawn(text.clone(), |text: String| text).unwrap().wait().unwrap();
            assert!(back == text, "{size}");
            let bytes = serde_bytes::ByteBuf::from(text.into_bytes());
            let back = spawn(bytes.clone(), |bytes: serde_bytes::ByteBuf| bytes).unwrap().wait().unwrap();
            assert!(back == bytes, "{size}");
        }
    }

    fn nothing_of_it_stays_open_in_the_unit() {
        let text = "x".repeat(1 << 20);
        let unit = spawn(text, |text: String| (text.len(), descriptors()));
        assert_eq!(unit.unwrap().wait().unwrap(), (1 << 20, ["0", "1", "2", "3"].map(str::to_owned).to_vec()));
    }

    fn a_unit_without_descriptors_gives_its_large_result_all_the_same() {
        let unit = spawn((), |()| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: a valid record.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) }, 0);
            "x".repeat(3 << 20)
        });
        assert_eq!(unit.unwrap().wait().unwrap().len(), 3 << 20);
    }

    fn a_limit_of_the_size_of_files_is_none_of_results() {
        let unit = spawn((), |()| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: a valid record.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const none) }, 0);
            "x".repeat(3 << 20)
        });
        assert_eq!(unit.unwrap().wait().unwrap().len(), 3 << 20);
        let limit = libc::rlimit { rlim_cur: 10_000, rlim_max: 10_000 };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
        assert_eq!(spawn("x".repeat(3 << 20), |text: String| text.len()).unwrap().wait().unwrap(), 3 << 20);
    }

    fn a_panic_with_a_long_message_goes_the_same_way() {
        let unit = Offspring::builder(Verbose).stderr(Stdio::null()).spawn();
        let error = unit.unwrap().wait().unwrap_err();
        assert_eq!(error.panic().unwrap().message().len(), 300_000);
    }
}

behaviour! { through ["auto"];
    fn a_parent_that_may_write_no_files_starts_units() {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid record.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const none) }, 0);
        for n in 0..3 {
            assert_eq!(spawn(n, |n: u32| n + 1).unwrap().wait().unwrap(), n + 1);
        }
    }

    fn an_environment_too_large_for_execve_is_no_hindrance_to_the_very_first() {
        for _ in 0..2 {
            let unit = Offspring::builder(Reads).env("BIG", "x".repeat(200_000)).spawn();
            assert_eq!(unit.unwrap().wait().unwrap(), 200_000);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Reads;

impl Subprocess for Reads {
    type Output = usize;

    fn run(self) -> usize {
        std::env::var("BIG").unwrap().len()
    }
}

#[derive(Serialize, Deserialize)]
struct Verbose;

impl Subprocess for Verbose {
    type Output = ();

    fn run(self) {
        std::panic::panic_any("y".repeat(300_000));
    }
}
