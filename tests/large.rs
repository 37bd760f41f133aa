//! Values that are too large for the line: they go by memory, and what comes that way is looked at before it is believed.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

/// What the library sends on the line at most.
const LARGE: usize = 64 << 10;

/// A value's header, and its length, on the line, as our children write them.
fn header(is_elsewhere: bool, length: u64) -> Vec<u8> {
    let kind = 18_u32 | u32::from(is_elsewhere) << 31;
    [&0x4f66_7331_u32.to_le_bytes()[..], &kind.to_le_bytes()[..], &length.to_le_bytes()[..]].concat()
}

/// Says a header on the line, with a descriptor, and ends without a word of the library's.
fn say(header: &[u8], with: Option<&OwnedFd>) -> ! {
    let mut part = libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() };
    // SAFETY: the records are filled in full, and outlive the call; the line is at descriptor 3.
    unsafe {
        let mut control = [0_u64; 4];
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if let Some(with) = with {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as usize;
            let first = libc::CMSG_FIRSTHDR(&raw const message);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(first).cast::<i32>().write_unaligned(with.as_raw_fd());
        }
        assert!(libc::sendmsg(3, &raw const message, 0) > 0);
        libc::_exit(0)
    }
}

fn memory(bytes: &[u8], seals: i32) -> OwnedFd {
    // SAFETY: a new descriptor, which nobody else knows of; the buffer is as long as is said.
    unsafe {
        let file = OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_ALLOW_SEALING));
        assert_eq!(libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()), bytes.len() as isize);
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        file
    }
}

const ALL: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
enum Lie {
    Nothing,
    Pipe,
    Unsealed,
    HalfSealed,
    Shorter,
    Longer,
    Endless,
    Garbage,
}

#[derive(Serialize, Deserialize)]
struct Liar(Lie);

impl Subprocess for Liar {
    type Output = String;

    fn run(self) -> String {
        let file = memory(b"\xa4four", ALL);
        match self.0 {
            Lie::Nothing => say(&header(true, 5), None),
            Lie::Pipe => say(&header(true, 5), Some(&std::io::pipe().unwrap().0.into())),
            Lie::Unsealed => say(&header(true, 5), Some(&memory(b"\xa4four", 0))),
            Lie::HalfSealed => say(&header(true, 5), Some(&memory(b"\xa4four", libc::F_SEAL_WRITE))),
            Lie::Shorter => say(&header(true, 4), Some(&file)),
            Lie::Longer => say(&header(true, 4096), Some(&file)),
            Lie::Endless => say(&header(true, 1 << 62), Some(&file)),
            Lie::Garbage => say(&header(true, 5), Some(&memory(b"\xc1\xc1\xc1\xc1\xc1", ALL))),
        }
    }
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

    fn a_panic_with_a_long_message_goes_the_same_way() {
        let unit = Offspring::builder(Verbose).stderr(Stdio::null()).spawn();
        let error = unit.unwrap().wait().unwrap_err();
        assert_eq!(error.panic().unwrap().message().len(), 300_000);
    }

    fn what_does_not_hold_what_it_claims_is_an_error() {
        use Lie::{Endless, Garbage, HalfSealed, Longer, Nothing, Pipe, Shorter, Unsealed};
        for lie in [Nothing, Pipe, Unsealed, HalfSealed, Shorter, Longer, Endless, Garbage] {
            let error: Error = Liar(lie).spawn().unwrap().wait().unwrap_err();
            let kind = if matches!(lie, Nothing | Garbage) { ErrorKind::Decode } else { ErrorKind::Died };
            assert_eq!(error.kind(), kind, "{lie:?}: {error}");
            assert!(error.to_string().contains("message") || kind == ErrorKind::Decode, "{lie:?}: {error}");
        }
    }
}

behaviour! { through ["auto"];
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
