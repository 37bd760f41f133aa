//! A frame as it crosses: its body on the line, or, if it is large, in sealed memory that is sent along.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Deref;

use super::frame::{self, Body, HEADER, Kind};
use crate::sys::io::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::memory::{self, Mapping};

/// Bodies of more bytes go by memory. Measured: from about here on a mapping costs less than two more copies and the wake-ups
/// of a line that is full.
pub(crate) const LARGE: usize = 64 << 10;

/// A frame to be sent.
pub(crate) struct Parcel<'a> {
    pub(crate) header: [u8; HEADER],
    /// What is to be sent behind the header.
    pub(crate) body: &'a [u8],
    memory: Option<OwnedFd>,
}

impl<'a> Parcel<'a> {
    pub(crate) fn pack(kind: Kind, body: &'a [u8]) -> Self {
        // Where there is no memory of that kind to be had, the line will do.
        let memory = if body.len() > LARGE { memory::sealed(body).ok() } else { None };
        match memory {
            Some(_) => Self { header: frame::header_elsewhere(kind, body.len()), body: &[], memory },
            None => Self::plain(kind, body),
        }
    }

    /// The same, all of it on the line.
    pub(crate) fn plain(kind: Kind, body: &'a [u8]) -> Self {
        Self { header: frame::header(kind, body.len()), body, memory: None }
    }

    /// The descriptor to be sent along.
    pub(crate) fn memory(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(AsFd::as_fd)
    }
}

/// The bytes of a body that has arrived.
#[derive(Debug)]
pub(crate) enum Bytes {
    Received(Vec<u8>),
    Mapped(Mapping),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Received(bytes) => bytes,
            Self::Mapped(mapping) => mapping,
        }
    }
}

/// Why a body could not be had.
#[derive(Debug)]
pub(crate) enum Unpacked {
    /// Its descriptor did not arrive.
    Lost,
    /// It is not what we send.
    Bad(io::Error),
    /// This process cannot have it.
    Refused(io::Error),
}

impl fmt::Display for Unpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("its descriptor was lost: too many open files"),
            Self::Bad(error) | Self::Refused(error) => write!(f, "{error}"),
        }
    }
}

impl Body {
    /// Its bytes; `descriptors`: those that have come along so far and belong to no frame yet.
    pub(crate) fn unpack(self, descriptors: &mut VecDeque<OwnedFd>) -> Result<Bytes, Unpacked> {
        match self {
            Self::Here(bytes) => Ok(Bytes::Received(bytes)),
            Self::Elsewhere(length) => {
                let file = descriptors.pop_front().ok_or(Unpacked::Lost)?;
                Mapping::of(&file, length).map(Bytes::Mapped).map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => Unpacked::Bad(error),
                    _ => Unpacked::Refused(error),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crosses(body: &[u8]) -> Bytes {
        let parcel = Parcel::pack(Kind::Value, body);
        let mut descriptors: VecDeque<OwnedFd> =
            parcel.memory().map(|memory| memory.try_clone_to_owned().unwrap()).into_iter().collect();
        let stream = [&parcel.header[..], parcel.body].concat();
        let frame = frame::Decoder::default().next(&mut &stream[..]).unwrap().unwrap();
        assert_eq!(frame.kind, Kind::Value);
        frame.body.unpack(&mut descriptors).unwrap()
    }

    #[test]
    fn a_body_of_any_size_crosses() {
        for size in [0, 1, LARGE, LARGE + 1, 1 << 20] {
            let body = vec![7; size];
            let bytes = crosses(&body);
            assert_eq!(*bytes, *body);
            assert_eq!(matches!(bytes, Bytes::Mapped(_)), size > LARGE);
        }
    }

    #[test]
    fn a_body_whose_memory_did_not_come_is_lost() {
        assert!(matches!(Body::Elsewhere(9).unpack(&mut VecDeque::new()), Err(Unpacked::Lost)));
    }
}
