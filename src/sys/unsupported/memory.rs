//! Memory that crosses: there is none.

use std::io::{Error, Result};
use std::ops::Deref;

use super::io::OwnedFd;

#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) file: OwnedFd,
    pub(crate) length: usize,
}

impl Sealed {
    pub(crate) fn new(_: &[u8]) -> Result<Self> {
        super::none()
    }

    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        super::none()
    }
}

pub(crate) struct Draft;

impl Draft {
    pub(crate) fn new() -> Result<Self> {
        super::none()
    }

    pub(crate) fn length(&self) -> usize {
        0
    }

    pub(crate) fn append(&mut self, _: &[&[u8]]) -> Result<()> {
        super::none()
    }

    pub(crate) fn change(&self, _: usize, _: &[u8]) -> Result<()> {
        super::none()
    }

    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        super::none()
    }

    pub(crate) fn seal(self) -> std::result::Result<Sealed, (Self, Error)> {
        super::none().map_err(|error| (self, error))
    }
}

pub(crate) fn sealed_by(_: usize, _: impl FnOnce(&mut [u8])) -> Result<OwnedFd> {
    super::none()
}

pub(crate) fn shared(_: u64) -> Result<OwnedFd> {
    super::none()
}

pub(crate) fn shared_length(_: &OwnedFd) -> Result<u64> {
    super::none()
}

pub(crate) fn reopen(_: &OwnedFd) -> Result<OwnedFd> {
    super::none()
}

pub(crate) fn read_at(_: &OwnedFd, _: u64, _: &mut [u8]) -> Result<()> {
    super::none()
}

pub(crate) fn write_at(_: &OwnedFd, _: u64, _: &[u8]) -> Result<()> {
    super::none()
}

pub(crate) fn lock(_: &OwnedFd) -> Result<()> {
    super::none()
}

pub(crate) fn unlock(_: &OwnedFd) {}

#[derive(Debug)]
pub(crate) struct Words;

impl Words {
    pub(crate) fn of(_: &OwnedFd, _: usize) -> Result<Self> {
        super::none().map(|()| Self)
    }

    pub(crate) fn wide(&self) -> &[std::sync::atomic::AtomicU64] {
        &[]
    }
}

impl Deref for Words {
    type Target = [std::sync::atomic::AtomicU32];

    fn deref(&self) -> &Self::Target {
        &[]
    }
}

pub(crate) const HUGE: usize = 1 << 60;

pub(crate) fn reserve(bytes: &mut Vec<u8>, additional: usize) {
    bytes.reserve(additional);
}

#[derive(Debug)]
pub(crate) struct Mapping;

impl Mapping {
    pub(crate) fn of(_: &OwnedFd, _: usize, _: bool) -> Result<Self> {
        super::none().map(|()| Self)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &[]
    }
}
