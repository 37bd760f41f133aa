//! For tests alone: everything that decodes what another process has said, as functions of bytes that may be anything. Each checks
//! what must hold whatever they are. The property tests below call them, and so do the targets of `fuzz/`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned, de::IgnoredAny};

use crate::sys::io::OwnedFd;
use crate::sys::{io, memory};
use crate::wire::codec;
use crate::wire::crossing;
use crate::wire::frame::{Body, Breach, Decoder, Frame, header_of};
use crate::wire::message::{Failed, Hello, Panicked, Reply, Request, Start, Welcome};
use crate::zygote::boot;

/// A stream of frames: it says the same in whatever pieces it comes, and what was understood is what was said.
pub fn frames(bytes: &[u8]) {
    let (whole, end) = decoded(bytes, bytes.len());
    for size in [1, 7, 16] {
        assert_eq!(decoded(bytes, size), (whole.clone(), end.clone()));
    }
    let said: Vec<u8> = whole.iter().flat_map(said).collect();
    assert!(bytes.starts_with(&said));
}

/// A frame, its body where it is here, and whether descriptors go with it.
type Heard = (u32, Result<Vec<u8>, usize>, bool);

fn decoded(bytes: &[u8], size: usize) -> (Vec<Heard>, Option<Breach>) {
    let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
    for mut piece in bytes.chunks(size.max(1)) {
        while !piece.is_empty() {
            match decoder.next(&mut piece) {
                Ok(Some(Frame { kind, body, bag })) => {
                    let body = match body {
                        Body::Here(body) => Ok(body),
                        Body::Elsewhere(length) => Err(length),
                    };
                    heard.push((kind as u32, body, bag));
                }
                Ok(None) => {}
                Err(breach) => return (heard, Some(breach)),
            }
        }
    }
    (heard, None)
}

fn said((kind, body, bag): &Heard) -> Vec<u8> {
    let kind = crate::wire::frame::Kind::of(*kind);
    match (kind, body) {
        (Some(kind), Ok(body)) => [&header_of(kind, body.len(), false, *bag)[..], body].concat(),
        (Some(kind), Err(length)) => header_of(kind, *length, true, *bag).to_vec(),
        (None, _) => Vec::new(),
    }
}

/// The bodies of the small frames, the words to and from a zygote, the marker: what is understood is said again in the same way.
pub fn messages(bytes: &[u8]) {
    stays::<Start>(bytes);
    stays::<Panicked>(bytes);
    stays::<Failed>(bytes);
    stays::<Welcome>(bytes);
    stays::<Hello>(bytes);
    stays::<Request>(bytes);
    if let Some(reply) = Reply::from_bytes(bytes) {
        assert_eq!(Reply::from_bytes(&reply.to_bytes()), Some(reply));
    }
    // The place of this image in memory is asked for by what looks like a marker alone; Miri has none.
    let _ = boot::claim(bytes);
}

/// Bytes that may be an encoded value, of whatever type.
pub fn values(bytes: &[u8]) {
    stays::<Nested>(bytes);
    stays::<Either>(bytes);
    stays::<Tagged>(bytes);
    stays::<Vec<Option<Option<()>>>>(bytes);
    stays::<(i128, char, Duration, String)>(bytes);
    stays::<BTreeMap<Option<u8>, IpAddr>>(bytes);
    stays::<Vec<u8>>(bytes);
    let _ = codec::decode::<f64>(bytes);
    let _ = codec::decode::<IgnoredAny>(bytes);
}

/// A stream of frames with descriptors: files in memory, sealed, and others that are none.
pub fn parcels(bytes: &[u8]) {
    let (Some(first), rest) = (bytes.first(), bytes.get(1..).unwrap_or_default()) else { return };
    let mut descriptors: VecDeque<OwnedFd> = VecDeque::new();
    if first & 1 != 0 {
        descriptors.extend(io::null());
    }
    let sealed = memory::Sealed::new(&rest[..rest.len().min(usize::from(first >> 2))]);
    descriptors.extend(sealed.map(|sealed| sealed.file));
    if first & 2 != 0 {
        descriptors.extend(io::pipe().map(|(read, _)| read));
    }
    let (mut decoder, mut rest) = (Decoder::default(), rest);
    while let (false, Ok(frame)) = (rest.is_empty(), decoder.next(&mut rest)) {
        let Some(frame) = frame else { continue };
        let length = match &frame.body {
            Body::Here(body) => body.len(),
            Body::Elsewhere(length) => *length,
        };
        if let Ok(mut bytes) = frame.unpack(&mut descriptors) {
            assert_eq!(bytes.len(), length);
            values(&bytes);
            // What goes as a bag may be anything.
            let bag = bytes.bag.take();
            let _ = crossing::unpack::<IgnoredAny>(&bytes, bag);
        }
    }
}

/// What is decoded is encoded again, and then decodes to the same.
fn stays<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) {
    let Ok(value) = codec::decode::<T>(bytes) else { return };
    let again = codec::encode(&value).map(|bytes| codec::decode::<T>(&bytes));
    let Ok(Ok(again)) = again else { panic!("{value:?} is not carried") };
    assert_eq!(format!("{again:?}"), format!("{value:?}"));
}

#[derive(Debug, Serialize, Deserialize)]
struct Nested {
    name: String,
    bytes: Vec<u8>,
    number: u128,
    maybe: Option<Option<u16>>,
    inner: Vec<Self>,
    map: BTreeMap<String, i64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Either {
    Number(u8),
    Text(String),
    Deeper { next: Option<Box<Self>> },
    Many(Vec<Self>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    End,
    Unit { value: Option<()> },
    Deeper { next: Box<Self>, tail: Vec<u8> },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{HEADER, Kind};
    use crate::wire::message::Guard;
    use proptest::prelude::*;

    /// How much of it there is at most. (Miri would take a minute for a hundred entries of a map.)
    const MOST: usize = if cfg!(miri) { 6 } else { 100 };

    /// Any text. (`any::<String>()` draws it from a regular expression, and Miri takes a second for each.)
    fn text() -> impl Strategy<Value = String> {
        prop::collection::vec(any::<char>(), 0..MOST).prop_map(String::from_iter)
    }

    /// Encoded values and messages of the kinds above.
    fn encoded() -> impl Strategy<Value = Vec<u8>> {
        let nested = (text(), any::<(Vec<u8>, u128, Option<Option<u16>>)>()).prop_map(
            |(name, (bytes, number, maybe))| {
                let leaf = || Nested {
                    name: name.clone(),
                    bytes: bytes.clone(),
                    number,
                    maybe,
                    inner: vec![],
                    map: BTreeMap::new(),
                };
                codec::encode(&Nested { inner: vec![leaf(), leaf()], ..leaf() }).unwrap()
            },
        );
        let panicked =
            (text(), prop::option::of(text()), any::<Option<u32>>()).prop_map(|(message, file, line)| {
                codec::encode(&Panicked { message, file, line, column: None, thread: None, backtrace: None })
                    .unwrap()
            });
        let request = any::<(u32, Option<Duration>, bool)>().prop_map(|(pid, grace, leads)| {
            codec::encode(&Request::Ward { pid, guard: Guard { grace, leads }, cgroup: None }).unwrap()
        });
        let maps = prop::collection::btree_map(any::<Option<u8>>(), any::<IpAddr>(), 0..MOST)
            .prop_map(|map| codec::encode(&map).unwrap());
        prop_oneof![nested, panicked, request, maps]
    }

    /// Frames around such bytes, or around nothing but their length.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop::sample::select(vec![Kind::Start, Kind::Go, Kind::Note, Kind::Value, Kind::Failed]);
        let frame = (kind, encoded(), any::<bool>()).prop_map(|(kind, body, is_here)| {
            let bag = body.len() % 5 == 0;
            match is_here {
                true => [&header_of(kind, body.len(), false, bag)[..], &body].concat(),
                false => header_of(kind, body.len() % 64, true, bag).to_vec(),
            }
        });
        prop::collection::vec(frame, 1..5).prop_map(|frames| frames.concat())
    }

    /// As it is, or with a byte exchanged, or cut off, or with something behind it.
    fn damaged(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        let damage = (any::<prop::sample::Index>(), any::<u8>(), 0..4);
        (bytes, damage, any::<[u8; 3]>()).prop_map(|(mut bytes, (at, byte, how), tail)| {
            let at = at.index(bytes.len());
            match how {
                1 => bytes[at] = byte,
                2 => bytes.truncate(at),
                3 => bytes.extend(tail),
                _ => {}
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_stream_of_frames(bytes in prop_oneof![any::<Vec<u8>>(), damaged(stream())]) {
            frames(&bytes);
        }

        #[test]
        fn any_message(bytes in prop_oneof![any::<Vec<u8>>(), damaged(encoded())]) {
            messages(&bytes);
        }

        #[test]
        fn any_value(bytes in prop_oneof![any::<Vec<u8>>(), damaged(encoded())]) {
            values(&bytes);
        }

        #[test]
        #[cfg_attr(miri, ignore = "Miri has no files in memory")]
        fn any_parcel(first: u8, bytes in prop_oneof![any::<Vec<u8>>(), damaged(stream())]) {
            parcels(&[&[first][..], &bytes].concat());
        }
    }

    #[test]
    fn what_is_tried_is_what_is_said() {
        // The generators give frames that are understood, or this file tests nothing.
        let elsewhere = header_of(Kind::Note, 9, true, true);
        let bytes = [crate::wire::frame::encode(Kind::Value, b"\xa4four"), elsewhere.to_vec()].concat();
        let (heard, breach) = decoded(&bytes, 3);
        assert_eq!((heard.len(), breach), (2, None));
        assert_eq!(heard[0], (Kind::Value as u32, Ok(b"\xa4four".to_vec()), false));
        assert_eq!(said(&heard[1]).len(), HEADER);
    }
}
