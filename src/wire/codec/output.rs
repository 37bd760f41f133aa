//! What has been written so far, and the headers that are written here.
//!
//! One thing is written behind the other into a buffer. Where the value goes to another process, a large string is not: all that is in
//! the buffer goes to a memory file, which is what will cross, and the string behind it, from where it is. So the file ends
//! between two things and never within one; nor within a sequence that is gathered, for before anything but a `u8` is
//! written it is gathered no longer.

use std::borrow::Cow;
use std::io;

use rmp_serde::{Serializer, encode::Error};
use serde::ser::{self, Error as _};

use crate::sys::memory::{self, Draft, Sealed};

// The markers of MessagePack that are written here.
pub(super) const NIL: u8 = 0xc0;
pub(super) const BIN_32: u8 = 0xc6;
pub(super) const EXT_32: u8 = 0xc9;
pub(super) const FIXEXT_1: u8 = 0xd4;
pub(super) const FIXEXT_16: u8 = 0xd8;
pub(super) const STR_32: u8 = 0xdb;

/// Marker, length, type of an extension value with a 32-bit length.
pub(super) const EXT_HEADER: usize = 6;

/// From so many bytes on a string goes by [`Output::large`]. Measured: here the file costs less than the buffer that is saved, which is
/// fresh pages each time. (Shorter ones would have headers of another kind, too.)
pub(super) const DIRECT: usize = 128 << 10;
const _: () = assert!(DIRECT > u16::MAX as usize);

/// A value as bytes: here, or in memory that is ready to cross.
#[derive(Debug)]
pub(crate) enum Encoded {
    Here(Vec<u8>),
    Elsewhere(Sealed),
}

impl Encoded {
    /// The bytes; a copy, if they are elsewhere.
    pub(crate) fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        Ok(match self {
            Self::Here(bytes) => bytes.into(),
            Self::Elsewhere(sealed) => sealed.read()?.into(),
        })
    }
}

impl From<Vec<u8>> for Encoded {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Here(bytes)
    }
}

/// What has been written so far.
pub(super) struct Output {
    /// What is not in the file.
    pub(super) ser: Serializer<Vec<u8>>,
    pub(super) file: File,
}

/// What comes before the rest.
pub(super) enum File {
    /// There is none, and none is wanted or can be had.
    Never,
    /// There is none yet.
    Wanted,
    Begun(Draft),
}

impl Output {
    pub(super) fn new(file: File) -> Self {
        Self { ser: Serializer::new(Vec::with_capacity(128)), file }
    }

    /// What of it is not in a file.
    #[inline]
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        self.ser.get_mut()
    }

    /// How much is in the file.
    #[inline]
    fn filed(&self) -> usize {
        if let File::Begun(draft) = &self.file { draft.length() } else { 0 }
    }

    /// Where the next byte goes.
    #[inline]
    pub(super) fn position(&self) -> usize {
        self.filed() + self.ser.get_ref().len()
    }

    /// What is in the buffer: all of it, if no file was wanted.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.ser.into_inner()
    }

    /// All of it.
    pub(super) fn end(mut self) -> Result<Encoded, Error> {
        if matches!(self.file, File::Begun(_))
            && self.spill(&[])?
            && let File::Begun(draft) = std::mem::replace(&mut self.file, File::Never)
        {
            match draft.seal() {
                Ok(sealed) => return Ok(Encoded::Elsewhere(sealed)),
                Err((draft, _)) => self.file = File::Begun(draft),
            }
            self.recall()?;
        }
        Ok(Encoded::Here(self.into_bytes()))
    }

    /// A string that is not short, and the marker of its kind.
    #[cold]
    pub(super) fn large(&mut self, marker: u8, string: &[u8]) -> Result<(), Error> {
        let [a, b, c, d] = length(string.len())?.to_be_bytes();
        self.bytes().extend([marker, a, b, c, d]);
        if !self.spill(string)? {
            memory::reserve(self.bytes(), string.len());
            self.bytes().extend_from_slice(string);
        }
        Ok(())
    }

    /// Writes all that is in the buffer to the file, and these behind it. Or it is not done, and there is no file from then on.
    fn spill(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        if let File::Wanted = self.file {
            self.file = Draft::new().map_or(File::Never, File::Begun);
        }
        let File::Begun(draft) = &mut self.file else { return Ok(false) };
        let buffer = self.ser.get_mut();
        if draft.append(&[buffer, bytes]).is_ok() {
            buffer.clear();
            return Ok(true);
        }
        self.recall()?;
        Ok(false)
    }

    /// What is in the file is in the buffer again, for good.
    fn recall(&mut self) -> Result<(), Error> {
        if let File::Begun(draft) = std::mem::replace(&mut self.file, File::Never) {
            let mut all = draft.read().map_err(Error::custom)?;
            all.append(self.bytes());
            *self.bytes() = all;
        }
        Ok(())
    }

    /// Writes these in the place of so many that start there, and were written in one piece.
    pub(super) fn replace(&mut self, start: usize, count: usize, with: &[u8]) -> Result<(), Error> {
        if let File::Begun(draft) = &self.file
            && start < draft.length()
        {
            if count == with.len() && draft.change(start, with).is_ok() {
                return Ok(());
            }
            self.recall()?;
        }
        let start = start - self.filed();
        self.bytes().splice(start..start + count, with.iter().copied());
        Ok(())
    }

    pub(super) fn header(&mut self, kind: Kind, count: usize) -> Result<(), Error> {
        let (header, len) = kind.header(count)?;
        self.bytes().extend_from_slice(&header[..len]);
        Ok(())
    }

    /// Opens an extension value whose length is not known yet; returns where it starts.
    pub(super) fn open(&mut self) -> usize {
        let start = self.position();
        self.bytes().extend([0; EXT_HEADER]);
        start
    }

    /// Closes the extension value that starts at `start`.
    pub(super) fn close(&mut self, start: usize, tag: i8) -> Result<(), Error> {
        let [a, b, c, d] = length(self.position() - start - EXT_HEADER)?.to_be_bytes();
        self.replace(start, EXT_HEADER, &[EXT_32, a, b, c, d, tag.to_be_bytes()[0]])
    }

    /// The sequence that was being gathered as raw bytes becomes an ordinary array.
    #[cold]
    pub(super) fn scatter(&mut self, start: usize, announced: usize) -> Result<(), Error> {
        // While it was gathered nothing went to the file.
        let start = start - self.filed();
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
