//! Descriptors, where there are none of ours.

use std::io::Result;
use std::time::Duration;

#[cfg(unix)]
pub(crate) use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[cfg(windows)]
pub(crate) use std::os::windows::io::{
    AsHandle as AsFd, BorrowedHandle as BorrowedFd, OwnedHandle as OwnedFd,
};

use super::none;

pub(crate) fn above_stdio(fd: OwnedFd) -> Result<OwnedFd> {
    Ok(fd)
}

pub(crate) fn line() -> Result<(OwnedFd, OwnedFd)> {
    none()
}

pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    none()
}

pub(crate) fn null() -> Result<OwnedFd> {
    none()
}

pub(crate) fn open_missing_streams() {}

pub(crate) fn take_line() -> OwnedFd {
    unreachable!("there is no child here")
}

pub(crate) fn send_now(_: impl AsFd, _: &[u8]) -> Result<usize> {
    none()
}

#[cfg(feature = "testing")]
pub(crate) fn own_line() -> BorrowedFd<'static> {
    std::process::abort()
}

pub(crate) fn send_all_with(_: impl AsFd, _: [&[u8]; 2], _: &[BorrowedFd<'_>]) -> Result<()> {
    none()
}

pub(crate) fn receive(_: impl AsFd, _: &mut [u8]) -> Result<usize> {
    none()
}

pub(crate) fn queued(_: impl AsFd) -> usize {
    0
}

pub(crate) fn is_all_received(_: impl AsFd) -> bool {
    false
}

pub(crate) fn end_sending(_: impl AsFd) {}

pub(crate) fn is_readable(_: impl AsFd, _: i64) -> bool {
    false
}

pub(crate) const MOST: usize = 6;

pub(crate) struct Received {
    pub(crate) count: usize,
    pub(crate) descriptors: [Option<OwnedFd>; MOST],
}

pub(crate) fn packet_line() -> Result<(OwnedFd, OwnedFd)> {
    none()
}

pub(crate) fn put_line(_: OwnedFd) {}

pub(crate) fn send_with(_: impl AsFd, _: &[&[u8]], _: &[BorrowedFd<'_>]) -> Result<usize> {
    none()
}

pub(crate) fn await_with(_: impl AsFd, _: &mut [u8]) -> Result<Received> {
    none().map(|()| Received { count: 0, descriptors: [const { None }; MOST] })
}

pub(crate) fn receive_with(_: impl AsFd, _: &mut [u8]) -> Result<Received> {
    none().map(|()| Received { count: 0, descriptors: [const { None }; MOST] })
}

pub(crate) fn wait_any(all: &[BorrowedFd<'_>], _: bool, _: Option<Duration>) -> Vec<bool> {
    vec![true; all.len()]
}

pub(crate) fn standard(_: i32) -> Option<BorrowedFd<'static>> {
    None
}

pub(crate) fn set_standard(_: i32, _: &OwnedFd) -> Result<()> {
    none()
}

pub(crate) fn duplicate(_: impl AsFd) -> Result<OwnedFd> {
    none()
}

pub(crate) fn is_stream(_: i32, _: &OwnedFd) -> bool {
    false
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place;

pub(crate) fn tells_places(_: &OwnedFd) -> bool {
    false
}

pub(crate) fn place(_: Option<&OwnedFd>) -> Option<Place> {
    None
}

pub(crate) fn directory(_: Option<&std::path::Path>) -> Result<OwnedFd> {
    none()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Readable,
    Writable,
    End,
}

pub(crate) fn is_too_many_on_their_way(_: &std::io::Error) -> bool {
    false
}

pub(crate) fn wait_for(_: &[(BorrowedFd<'_>, Sign)], _: Option<Duration>) -> bool {
    true
}

pub(crate) fn counter() -> Result<OwnedFd> {
    none()
}

pub(crate) fn semaphore() -> Result<OwnedFd> {
    super::none()
}

pub(crate) fn add(_: &OwnedFd) {}

pub(crate) fn add_unasked(_: &OwnedFd) {}

pub(crate) fn look_at(_: &OwnedFd, _: &OwnedFd) -> (bool, bool) {
    (false, false)
}

pub(crate) fn take(_: &OwnedFd) -> bool {
    false
}

pub(crate) fn make_room(_: &OwnedFd, _: u64) {}

pub(crate) const MANY: usize = 1;

pub(crate) fn send_many(_: impl AsFd, _: &[u8], _: &[BorrowedFd<'_>]) -> Result<usize> {
    none()
}

pub(crate) fn receive_many(_: impl AsFd, _: &mut [u8], _: &mut Vec<OwnedFd>) -> Result<usize> {
    none()
}

pub(crate) fn drain(_: impl AsFd, _: impl FnMut(&[u8])) -> bool {
    false
}

pub(crate) fn peek(_: impl AsFd) -> Result<Vec<u8>> {
    none()
}

pub(crate) fn set_nonblocking(_: impl AsFd) -> Result<()> {
    none()
}

pub(crate) fn any_of(_: &[&OwnedFd]) -> Result<OwnedFd> {
    none()
}

pub(crate) const BATCH: usize = 64;
pub(crate) const BELL: u64 = u64::MAX;

pub(crate) struct Poller;

impl Poller {
    pub(crate) fn add_for(&self, _: impl AsFd, _: u64, _: Sign) -> Result<()> {
        none()
    }

    pub(crate) fn new() -> Result<Self> {
        none()
    }

    pub(crate) fn add(&self, _: impl AsFd, _: u64, _: bool) -> Result<()> {
        none()
    }

    pub(crate) fn modify(&self, _: impl AsFd, _: u64, _: bool) {}

    pub(crate) fn mute(&self, _: impl AsFd, _: u64) {}

    pub(crate) fn remove(&self, _: impl AsFd) {}

    pub(crate) fn ring(&self) {}

    pub(crate) fn wait(&self, _: Option<Duration>) -> Vec<u64> {
        Vec::new()
    }
}
