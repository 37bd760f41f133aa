//! Values that are too large for the line: they go by memory, and what comes that way is looked at before it is believed.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

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

behaviour! {

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

#[derive(Serialize, Deserialize)]
struct Verbose;

impl Subprocess for Verbose {
    type Output = ();

    fn run(self) {
        std::panic::panic_any("y".repeat(300_000));
    }
}
