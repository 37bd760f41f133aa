//! What has been written so far, and the headers that are written here.

use rmp_serde::{Serializer, encode::Error};
use serde::ser::{self, Error as _};

use crate::sys::memory;

// The markers of MessagePack that are written here.
pub(super) const NIL: u8 = 0xc0;
pub(super) const EXT_32: u8 = 0xc9;
pub(super) const FIXEXT_1: u8 = 0xd4;
pub(super) const FIXEXT_16: u8 = 0xd8;

/// Marker, length, type of an extension value with a 32-bit length.
pub(super) const EXT_HEADER: usize = 6;

/// What has been written so far.
pub(super) struct Output {
    pub(super) ser: Serializer<Vec<u8>>,
}

impl Output {
    #[inline]
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        self.ser.get_mut()
    }

    /// For a string of so many bytes, which is about to be written.
    pub(super) fn make_room(&mut self, bytes: usize) {
        if bytes >= memory::HUGE {
            memory::reserve(self.bytes(), bytes + EXT_HEADER);
        }
    }

    pub(super) fn header(&mut self, kind: Kind, count: usize) -> Result<(), Error> {
        let (header, len) = kind.header(count)?;
        self.bytes().extend_from_slice(&header[..len]);
        Ok(())
    }

    /// Opens an extension value whose length is not known yet; returns where it starts.
    pub(super) fn open(&mut self) -> usize {
        let start = self.bytes().len();
        self.bytes().extend([0; EXT_HEADER]);
        start
    }

    /// Closes the extension value that starts at `start`.
    pub(super) fn close(&mut self, start: usize, tag: i8) -> Result<(), Error> {
        let bytes = self.bytes();
        let [a, b, c, d] = length(bytes.len() - start - EXT_HEADER)?.to_be_bytes();
        bytes[start..start + EXT_HEADER].copy_from_slice(&[EXT_32, a, b, c, d, tag.to_be_bytes()[0]]);
        Ok(())
    }

    /// The sequence that was being gathered as raw bytes becomes an ordinary array.
    #[cold]
    pub(super) fn scatter(&mut self, start: usize, announced: usize) -> Result<(), Error> {
        let raw = self.bytes().split_off(start + EXT_HEADER);
        self.bytes().truncate(start);
        self.header(Kind::Array, announced)?;
        raw.into_iter().try_for_each(|byte| ser::Serializer::serialize_u8(&mut self.ser, byte))
    }
}

/// No length in MessagePack has more than 32 bits; `rmp-serde` would cut it off without a word.
pub(super) fn length(len: usize) -> Result<u32, Error> {
    u32::try_from(len)
        .map_err(|_| Error::custom(format_args!("a length of {len} is more than the format holds")))
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Array,
    Map,
}

impl Kind {
    /// The first bytes of an array or a map, and how many they are.
    pub(super) fn header(self, count: usize) -> Result<([u8; 5], usize), Error> {
        let (fix, marker_16, marker_32) = match self {
            Kind::Array => (0x90, 0xdc, 0xdd),
            Kind::Map => (0x80, 0xde, 0xdf),
        };
        let [a, b, c, d] = length(count)?.to_be_bytes();
        Ok(match count {
            0..=0xf => ([fix | d, 0, 0, 0, 0], 1),
            0x10..=0xffff => ([marker_16, c, d, 0, 0], 3),
            _ => ([marker_32, a, b, c, d], 5),
        })
    }
}
