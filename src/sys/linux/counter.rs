//! A counter that is readable while it is not zero: news for whoever polls it.
//!
//! Its open file may be shared with processes that mean no good and take O_NONBLOCK off it. Nobody here is to wait all the same.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags};

use super::io::above_stdio;

/// A new one, of zero, which is taken as a whole.
pub(crate) fn counter() -> io::Result<OwnedFd> {
    above_stdio(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// A new one, of zero, of which one is taken at a time.
pub(crate) fn semaphore() -> io::Result<OwnedFd> {
    above_stdio(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE)?)
}

fn is_ready(counter: &OwnedFd, what: PollFlags) -> bool {
    let time = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(counter, what)], Some(&time)).is_ok_and(|ready| ready > 0)
}

/// Adds one, if there is room. (Else it is readable already.)
///
/// The kernel has no write to it that never waits, so it is asked first. Who fills it to the brim between the two, which is 2^64, and has
/// made it one that waits, keeps the caller until somebody reads it.
pub(crate) fn add(counter: &OwnedFd) {
    if is_ready(counter, PollFlags::OUT) {
        add_unasked(counter);
    }
}

/// The same, of one that has just been seen to have room.
pub(crate) fn add_unasked(counter: &OwnedFd) {
    let _ = rustix::io::write(counter, &1_u64.to_ne_bytes());
}

/// Takes what there is, of a semaphore one; whether there was any.
pub(crate) fn take(counter: &OwnedFd) -> bool {
    let mut bytes = [0; 8];
    // No place in it: as read(2).
    let read =
        rustix::io::preadv2(counter, &mut [IoSliceMut::new(&mut bytes)], u64::MAX, ReadWriteFlags::NOWAIT);
    // Before Linux 5.8. There another's read between the two keeps the caller, if it is one that waits, until somebody adds.
    if matches!(read, Err(Errno::OPNOTSUPP | Errno::NOSYS)) && is_ready(counter, PollFlags::IN) {
        return rustix::io::read(counter, &mut bytes).is_ok();
    }
    read.is_ok()
}
