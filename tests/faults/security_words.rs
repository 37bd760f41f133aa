//! What a child says that is under somebody else's control.

use std::io::Read;

use offspring::{ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness;

/// Where a unit has its line.
const LINE: i32 = 3;

/// A frame, as our children write them.
fn frame(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u64).to_le_bytes();
    [&0x4f66_7331_u32.to_le_bytes()[..], &kind.to_le_bytes()[..], &length[..], body].concat()
}

const READY: u32 = 16;
const VALUE: u32 = 18;

/// Sends some bytes with so many descriptors; whether that was possible.
fn send(bytes: &[u8], descriptors: &[i32]) -> bool {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the records are filled in full, and outlive the call.
    unsafe {
        let size = size_of_val(descriptors) as u32;
        let mut control = [0_u64; 16];
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size) as usize;
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(size) as usize;
        std::ptr::copy_nonoverlapping(
            descriptors.as_ptr().cast::<u8>(),
            libc::CMSG_DATA(first),
            size as usize,
        );
        libc::sendmsg(LINE, &raw const message, 0) == bytes.len() as isize
    }
}

/// Sends more descriptors than its parent may have open, says so, and goes on until its input ends.
#[derive(Serialize, Deserialize)]
struct Floods;

impl Subprocess for Floods {
    type Output = usize;

    fn run(self) -> usize {
        // More than a line holds: by the end most have been taken off it. Some, for there may be too many on their way.
        let sent = (0..4000).filter(|_| send(&frame(READY, &[]), &[0; 9])).count();
        println!("sent");
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        sent
    }
}

/// Says these bytes, and ends without a word of the library's.
#[derive(Serialize, Deserialize)]
struct Says(Vec<u8>);

impl Subprocess for Says {
    type Output = Vec<Option<String>>;

    fn run(self) -> Self::Output {
        // SAFETY: the buffer is as long as is said; ends the process.
        unsafe {
            libc::write(LINE, self.0.as_ptr().cast(), self.0.len());
            libc::_exit(0)
        }
    }
}

/// The same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

behaviour! {
    fn case_88_descriptors_that_nobody_has_asked_for_are_not_kept() {
        spawn((), |()| ()).unwrap().wait().unwrap();
        let before = harness::entries("fd").len();
        let mut unit = Offspring::builder(Floods).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        unit.take_stdout().unwrap().read_exact(&mut [0; 5]).unwrap();
        // Those of the unit, of spares, and a message's.
        let after = harness::entries("fd").len();
        assert!(after <= before + 40, "{before} {after}");
        for n in 0..3 {
            assert_eq!(spawn(n, |n: u32| n + 1).unwrap().wait().unwrap(), n + 1);
        }
        drop(unit.take_stdin());
        assert!(unit.wait().unwrap() > 20);
    }

    fn case_88_words_that_are_almost_right_are_an_error_or_a_value() {
        // ["four", nil, "and more"], as the format has it.
        let good = frame(VALUE, b"\x93\xa4four\xc0\xa8and more");
        let expected = [Some("four".to_owned()), None, Some("and more".to_owned())];
        assert_eq!(Says(good.clone()).spawn().unwrap().wait().unwrap(), expected);
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let mut refused = 0;
        for _ in 0..150 {
            let mut words = [frame(READY, &[]), good.clone(), frame(17, b"\x80")].concat();
            for _ in 0..=numbers.next(3) {
                let at = numbers.next(words.len());
                match numbers.next(4) {
                    0 => words[at] = numbers.next(256) as u8,
                    1 => words[at] ^= 1 << numbers.next(8),
                    2 => words.truncate(at.max(1)),
                    _ => words.insert(at, numbers.next(256) as u8),
                }
            }
            match Says(words.clone()).spawn().and_then(Offspring::wait) {
                Ok(_) => {}
                Err(error) => {
                    assert!([ErrorKind::Died, ErrorKind::Decode, ErrorKind::Panicked].contains(&error.kind()), "{words:x?}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 50, "{refused}");
        assert_eq!(spawn(1, |n: u32| n + 1).unwrap().wait().unwrap(), 2);
    }
}
