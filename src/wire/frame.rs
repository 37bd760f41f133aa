//! Frames: how messages are told apart in a stream of bytes. Decides only; no system call.
//!
//! A frame is a header of 16 bytes (magic number, kind, length; little-endian) and its body. A large body is elsewhere: in memory
//! whose descriptor comes along with the header. What comes from a child is hostile: nothing is believed before it is checked,
//! and memory is taken only for bytes that have arrived.

use std::fmt;

const MAGIC: u32 = 0x4f66_7331;
/// The length of a header.
pub(crate) const HEADER: usize = 16;

/// Bodies of all kinds but [`Kind::Unit`] and [`Kind::Value`] are small; a larger one is a breach.
const SMALL: u64 = 16 << 20;

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// To the child: what to run and how ([`super::message::Start`]).
    Start = 1,
    /// To the child: the unit, encoded.
    Unit = 2,
    /// To the child, behind the unit: is taken off the line when the unit is about to run, and so tells the parent, without
    /// a word, that it got that far. Empty.
    Go = 3,
    /// From the child, if its parent waits for it: about to run the unit. Empty.
    Ready = 16,
    /// From the child: a panic has begun in one of its threads ([`super::message::Panicked`]).
    Note = 17,
    /// From the child, final: the result, encoded.
    Value = 18,
    /// From the child: where it reports how far it has got, a descriptor ([`crate::progress`]).
    Board = 21,
    /// From the child, final: the unit panicked ([`super::message::Panicked`]).
    Panicked = 19,
    /// From the child, final: a step of ours failed ([`super::message::Failed`]).
    Failed = 20,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Start,
        Self::Unit,
        Self::Go,
        Self::Ready,
        Self::Note,
        Self::Board,
        Self::Value,
        Self::Panicked,
        Self::Failed,
    ];

    /// Whether nothing comes after it.
    pub(crate) fn is_last(self) -> bool {
        matches!(self, Self::Value | Self::Panicked | Self::Failed)
    }

    /// The one of that number.
    pub(crate) fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// In a header's word of the kind: the body is elsewhere.
const ELSEWHERE: u32 = 1 << 31;

/// In the same word: a bag of descriptors comes along ([`super::crossing`]).
const BAG: u32 = 1 << 30;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) body: Body,
    /// Whether descriptors came along.
    pub(crate) bag: bool,
}

/// Where a body is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Here(Vec<u8>),
    /// In memory that came along, so many bytes.
    Elsewhere(usize),
}

/// The bytes of a frame, to be sent.
pub(crate) fn encode(kind: Kind, body: &[u8]) -> Vec<u8> {
    [&header(kind, body.len()), body].concat()
}

/// The header of a frame, for a body that is sent by itself.
pub(crate) fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    header_of(kind, length, false, false)
}

/// The header of a frame whose body may be elsewhere, and with which descriptors may go.
pub(crate) fn header_of(kind: Kind, length: usize, elsewhere: bool, bag: bool) -> [u8; HEADER] {
    let mark = |is_so, mark| if is_so { mark } else { 0 };
    let kind = kind as u32 | mark(elsewhere, ELSEWHERE) | mark(bag, BAG);
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..8].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&(length as u64).to_le_bytes());
    header
}

/// Bytes that are no frame of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    Magic(u32),
    Kind(u32),
    Length(u64),
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(word) => {
                write!(f, "the line carries something else than messages (it began {word:#010x})")
            }
            Self::Kind(kind) => write!(f, "a message of the unknown kind {kind}"),
            Self::Length(length) => write!(f, "a message that claims to be {length} bytes long"),
        }
    }
}

/// Cuts a stream into frames, whatever the pieces in which it arrives.
#[derive(Default)]
pub(crate) struct Decoder {
    header: Vec<u8>,
    body: Option<(Kind, bool, usize, Vec<u8>)>,
}

impl Decoder {
    /// How many bytes make the next header or body whole.
    pub(crate) fn wanted(&self) -> usize {
        match &self.body {
            Some((_, _, length, body)) => length - body.len(),
            None => HEADER - self.header.len(),
        }
    }

    /// Takes bytes off the front of `input`; gives a frame as soon as one is whole. Call again until `input` is empty
    /// and no frame came.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, Breach> {
        if self.body.is_none() {
            let wanted = HEADER - self.header.len();
            self.header.extend_from_slice(take(input, wanted));
            if self.header.len() < HEADER {
                return Ok(None);
            }
            let (kind, length, is_elsewhere, bag) = parse(&self.header)?;
            self.header.clear();
            if is_elsewhere {
                return Ok(Some(Frame { kind, body: Body::Elsewhere(length), bag }));
            }
            self.body = Some((kind, bag, length, Vec::new()));
        }
        let Some((kind, bag, length, mut body)) = self.body.take() else { return Ok(None) };
        body.extend_from_slice(take(input, length - body.len()));
        if body.len() == length {
            return Ok(Some(Frame { kind, body: Body::Here(body), bag }));
        }
        self.body = Some((kind, bag, length, body));
        Ok(None)
    }
}

fn take<'a>(input: &mut &'a [u8], wanted: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(wanted.min(input.len()));
    *input = rest;
    taken
}

fn parse(header: &[u8]) -> Result<(Kind, usize, bool, bool), Breach> {
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != MAGIC {
        return Err(Breach::Magic(word(0)));
    }
    let number = word(4) & !(ELSEWHERE | BAG);
    let (is_elsewhere, bag) = (word(4) & ELSEWHERE != 0, word(4) & BAG != 0);
    let kind = Kind::of(number).ok_or(Breach::Kind(word(4)))?;
    let length = u64::from(word(8)) | u64::from(word(12)) << 32;
    let limit = if matches!(kind, Kind::Unit | Kind::Value) { isize::MAX as u64 } else { SMALL };
    match usize::try_from(length) {
        Ok(bytes) if length <= limit => Ok((kind, bytes, is_elsewhere, bag)),
        _ => Err(Breach::Length(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(decoder: &mut Decoder, mut input: &[u8]) -> Result<Vec<Frame>, Breach> {
        let mut frames = Vec::new();
        loop {
            match decoder.next(&mut input)? {
                Some(frame) => frames.push(frame),
                None if input.is_empty() => return Ok(frames),
                None => {}
            }
        }
    }

    fn is_between_frames(decoder: &Decoder) -> bool {
        decoder.header.is_empty() && decoder.body.is_none()
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6),
                                    cut in 1_usize..64) {
            let kinds = [Kind::Value, Kind::Note, Kind::Unit];
            let frame = |(i, body): (usize, Vec<u8>)| {
                let body = if i % 4 == 3 { Body::Elsewhere(body.len()) } else { Body::Here(body) };
                Frame { kind: kinds[i % 3], body, bag: i % 3 == 1 }
            };
            let sent: Vec<Frame> = bodies.into_iter().enumerate().map(frame).collect();
            let bytes = |frame: &Frame| match &frame.body {
                Body::Here(body) => [&header_of(frame.kind, body.len(), false, frame.bag)[..], body].concat(),
                Body::Elsewhere(length) => header_of(frame.kind, *length, true, frame.bag).to_vec(),
            };
            let stream: Vec<u8> = sent.iter().flat_map(bytes).collect();
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in stream.chunks(cut) {
                got.extend(all(&mut decoder, piece).unwrap());
            }
            prop_assert_eq!(got, sent);
            prop_assert!(is_between_frames(&decoder));
        }

        #[test]
        fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = all(&mut Decoder::default(), &bytes);
        }

        #[test]
        fn a_truncated_stream_is_noticed(body in prop::collection::vec(any::<u8>(), 0..100), keep: prop::sample::Index) {
            let stream = encode(Kind::Value, &body);
            let keep = 1 + keep.index(stream.len() - 1);
            let mut decoder = Decoder::default();
            prop_assert_eq!(all(&mut decoder, &stream[..keep]).unwrap(), Vec::new());
            prop_assert!(!is_between_frames(&decoder));
        }
    }

    #[test]
    fn hostile_headers_are_breaches() {
        let mut stream = encode(Kind::Note, b"");
        stream[8..16].copy_from_slice(&(1_u64 << 63).to_le_bytes());
        assert_eq!(all(&mut Decoder::default(), &stream), Err(Breach::Length(1 << 63)));
        stream[4] = 99;
        assert_eq!(all(&mut Decoder::default(), &stream), Err(Breach::Kind(99)));
        stream[0] ^= 1;
        assert!(matches!(all(&mut Decoder::default(), &stream), Err(Breach::Magic(_))));
    }

    #[test]
    fn a_claimed_length_takes_no_memory() {
        let mut stream = encode(Kind::Value, b"");
        stream[8..16].copy_from_slice(&(1_u64 << 62).to_le_bytes());
        let mut decoder = Decoder::default();
        assert_eq!(all(&mut decoder, &stream).unwrap(), Vec::new());
        assert!(decoder.body.unwrap().3.capacity() < 1024);
    }
}
