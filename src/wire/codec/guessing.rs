//! What must not depend on how a type asks: bytes beside text and numbers, and strings that are borrowed.

use super::tests::{BytesOrNumber, carried, carried_buffered};
use super::{decode, encode};
use crate::sys::memory::HUGE;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

#[test]
fn bytes_are_not_taken_for_text_where_serde_has_to_guess() {
    for bytes in [&b""[..], b"hello", b"hello, wide world", b"\xff", "\u{e9}".as_bytes()] {
        let bytes = ByteBuf::from(bytes);
        carried_buffered(bytes.clone());
        carried(vec![BytesOrNumber::Bytes(bytes), BytesOrNumber::Text("hello".into())]);
    }
}

/// Whatever there is, told apart as the format has it.
#[derive(PartialEq, Debug)]
enum Dynamic {
    Bytes(Vec<u8>),
    List(Vec<u8>),
}

impl Serialize for Dynamic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Self::List(list) => list.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Dynamic {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> serde::de::Visitor<'de> for Any {
            type Value = Dynamic;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Dynamic, E> {
                Ok(Dynamic::Bytes(bytes.to_vec()))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Dynamic, A::Error> {
                let mut list = Vec::new();
                while let Some(number) = seq.next_element()? {
                    list.push(number);
                }
                Ok(Dynamic::List(list))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[test]
fn who_tells_bytes_from_numbers_himself_is_told_them_apart() {
    for bytes in [&b""[..], b"hello", b"hello, wide world", b"\xff"] {
        carried(vec![Dynamic::Bytes(bytes.to_vec()), Dynamic::List(bytes.to_vec())]);
    }
}

/// Borrows while it is decoded, and keeps a copy.
#[derive(Serialize, PartialEq, Debug)]
struct Copied(String, ByteBuf);

impl<'de> Deserialize<'de> for Copied {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (text, bytes) = <(&str, &serde_bytes::Bytes)>::deserialize(deserializer)?;
        Ok(Self(text.to_owned(), ByteBuf::from(bytes.to_vec())))
    }
}

#[test]
fn large_strings_can_be_borrowed_while_they_are_decoded() {
    for length in [1, HUGE - 1, HUGE, HUGE + 1] {
        let value = Copied("x".repeat(length), ByteBuf::from(vec![3; length]));
        assert!(decode::<Copied>(&encode(&value).unwrap()).unwrap() == value, "{length}");
    }
}
