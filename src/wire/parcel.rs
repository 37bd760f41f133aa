//! A frame as it crosses: its body on the line, or, if it is large, in sealed memory that is sent along.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Deref;

use super::codec::Encoded;
use super::frame::{self, Body, Frame, HEADER, Kind};
use crate::sys::io::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::limit;
use crate::sys::memory::{Mapping, Sealed};

/// Bodies of more bytes go by memory. Measured: from about here on a mapping costs less than two more copies and the wake-ups
/// of a line that is full.
pub(crate) const LARGE: usize = 64 << 10;

/// A frame to be sent.
pub(crate) struct Parcel<'a> {
    pub(crate) header: [u8; HEADER],
    /// What is to be sent behind the header.
    pub(crate) body: Cow<'a, [u8]>,
    memory: Option<Memory<'a>>,
    bag: Option<BorrowedFd<'a>>,
}

enum Memory<'a> {
    Made(Sealed),
    /// It was there.
    Given(&'a Sealed),
}

impl Deref for Memory<'_> {
    type Target = Sealed;

    fn deref(&self) -> &Sealed {
        match self {
            Self::Made(sealed) => sealed,
            Self::Given(sealed) => sealed,
        }
    }
}

impl<'a> Parcel<'a> {
    /// `bag`: what goes along whatever the body is.
    pub(crate) fn pack(kind: Kind, body: &'a Encoded, bag: Option<BorrowedFd<'a>>) -> Self {
        let memory = match body {
            Encoded::Elsewhere(sealed) => Some(Memory::Given(sealed)),
            // Where there is no memory of that kind to be had, the line will do.
            Encoded::Here(bytes) if bytes.len() > LARGE => Sealed::new(bytes).ok().map(Memory::Made),
            Encoded::Here(_) => None,
        };
        match (memory, body) {
            (None, Encoded::Here(bytes)) => Self::on_line(kind, bytes.into(), bag),
            (memory, _) => {
                let length = memory.as_deref().map_or(0, |sealed| sealed.length);
                let header = frame::header_of(kind, length, true, bag.is_some());
                Self { header, body: Cow::default(), memory, bag }
            }
        }
    }

    /// The same, all of it on the line.
    pub(crate) fn plain(kind: Kind, body: &'a Encoded, bag: Option<BorrowedFd<'a>>) -> io::Result<Self> {
        Ok(Self::on_line(kind, body.bytes()?, bag))
    }

    fn on_line(kind: Kind, body: Cow<'a, [u8]>, bag: Option<BorrowedFd<'a>>) -> Self {
        let header = frame::header_of(kind, body.len(), false, bag.is_some());
        Self { header, body, memory: None, bag }
    }

    /// Whether its body goes by memory.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.memory.is_some()
    }

    /// The descriptors to be sent along.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.memory.as_deref().map(|sealed| sealed.file.as_fd()).into_iter().chain(self.bag)
    }
}

/// A body that has arrived, and the descriptors with it.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    place: Place,
    pub(crate) bag: Option<OwnedFd>,
}

#[derive(Debug)]
enum Place {
    Received(Vec<u8>),
    Mapped(Mapping),
}

impl Default for Place {
    fn default() -> Self {
        Self::Received(Vec::new())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { place: Place::Received(bytes), bag: None }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.place {
            Place::Received(bytes) => bytes,
            Place::Mapped(mapping) => mapping,
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
            Self::Lost => write!(f, "its descriptor was lost: {}", limit::no_room()),
            Self::Bad(error) | Self::Refused(error) => write!(f, "{error}"),
        }
    }
}

impl Frame {
    /// Its body; `descriptors`: those that have come along so far and belong to no frame yet.
    pub(crate) fn unpack(self, descriptors: &mut VecDeque<OwnedFd>) -> Result<Bytes, Unpacked> {
        let place = match self.body {
            Body::Here(bytes) => Place::Received(bytes),
            Body::Elsewhere(length) => {
                let file = descriptors.pop_front().ok_or(Unpacked::Lost)?;
                Place::Mapped(Mapping::of(&file, length, true).map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => Unpacked::Bad(error),
                    _ => Unpacked::Refused(error),
                })?)
            }
        };
        let bag = if self.bag { Some(descriptors.pop_front().ok_or(Unpacked::Lost)?) } else { None };
        Ok(Bytes { place, bag })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crosses(body: &Encoded) -> Bytes {
        let parcel = Parcel::pack(Kind::Value, body, None);
        assert_eq!(&*Parcel::plain(Kind::Value, body, None).unwrap().body, &*body.bytes().unwrap());
        let mut descriptors: VecDeque<OwnedFd> =
            parcel.descriptors().map(|memory| memory.try_clone_to_owned().unwrap()).collect();
        let stream = [&parcel.header[..], &parcel.body].concat();
        let frame = frame::Decoder::default().next(&mut &stream[..]).unwrap().unwrap();
        assert_eq!(frame.kind, Kind::Value);
        frame.unpack(&mut descriptors).unwrap()
    }

    #[test]
    fn a_body_of_any_size_crosses() {
        for size in [0, 1, LARGE, LARGE + 1, 1 << 20] {
            let body = vec![7; size];
            let bytes = crosses(&body.clone().into());
            assert_eq!(*bytes, *body);
            assert_eq!(matches!(bytes.place, Place::Mapped(_)), size > LARGE);
        }
        // What is in memory already stays there.
        let bytes = crosses(&Encoded::Elsewhere(Sealed::new(b"four").unwrap()));
        assert!(*bytes == *b"four" && matches!(bytes.place, Place::Mapped(_)));
    }

    #[test]
    fn a_body_whose_memory_did_not_come_is_lost() {
        for (body, bag) in [(Body::Elsewhere(9), false), (Body::Here(vec![1]), true)] {
            let frame = Frame { kind: Kind::Value, body, bag };
            assert!(matches!(frame.unpack(&mut VecDeque::new()), Err(Unpacked::Lost)));
        }
    }
}
