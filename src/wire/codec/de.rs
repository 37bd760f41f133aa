//! Decoding. `rmp-serde` reads; the adapter around it takes the marks off, hands the rest through, and
//! counts.

use super::numbers::numbers;
use super::{DEPTH, I128, SOME, U8S, U128};
use crate::sys::memory;
use rmp_serde::decode::{Deserializer as Rmp, Error, ReadRefReader};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use std::{cell::Cell, fmt};

type Reader<'de> = Rmp<ReadRefReader<'de, [u8]>>;

thread_local! {
    static ASKED_FOR_ANY: Cell<bool> = const { Cell::new(false) };
}

/// Whether a type has asked for anything in the value that is being decoded: then one after the other may try to be its type.
pub(super) fn is_guessing() -> bool {
    ASKED_FOR_ANY.get()
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    // (It may be in the middle of another.)
    let before = ASKED_FOR_ANY.replace(false);
    let result = whole(bytes, Room { depth: DEPTH, bytes: bytes.len() }, |decoder| T::deserialize(decoder));
    ASKED_FOR_ANY.set(before);
    result
}

/// Reads one value, which must be all there is.
fn whole<'de, T>(
    bytes: &'de [u8],
    room: Room,
    read: impl FnOnce(Decoder<&mut Reader<'de>>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut reader = Rmp::from_read_ref(bytes);
    let value = read(Decoder { inner: &mut reader, room, in_some: false })?;
    // The reader does not tell where it stands; but at the end, and only there, it finds no further marker.
    match reader.deserialize_bool(IgnoredAny) {
        Err(Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(Error::custom("there are bytes left after the end of the value")),
    }
}

/// What a value may still take.
#[derive(Clone, Copy)]
struct Room {
    /// How many levels may still be opened.
    depth: usize,
    /// No fewer than the bytes that are left for it, and so for elements: each takes at least one.
    bytes: usize,
}

impl Room {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Room { depth, ..self }),
            None => Err(E::custom(format_args!("nested deeper than {DEPTH} levels"))),
        }
    }

    /// The room within a compound of so many parts. What its siblings take at the least is not there for a
    /// part: so the lengths that are believed, of all compounds open at a time, add up to the input's length
    /// at most.
    fn within<E: de::Error>(self, parts: Option<usize>) -> Result<Self, E> {
        let parts = parts.unwrap_or(0);
        let room = self.deeper()?;
        match room.bytes.checked_sub(parts) {
            Some(bytes) => Ok(Room { bytes, ..room }),
            None => {
                Err(E::custom(format_args!("{parts} parts are announced, but there are not as many bytes")))
            }
        }
    }
}

/// Decodes one value.
pub(super) struct Decoder<D> {
    inner: D,
    room: Room,
    /// The value is the content of a `Some`: if it is nil or a `Some`, the mark around it is that `Some`'s.
    in_some: bool,
}

impl<D> Decoder<D> {
    fn wrap<V>(visitor: V, room: Room, in_some: bool, wanted: Wanted) -> Wrapped<V> {
        Wrapped { visitor, room, in_some, wanted }
    }
}

/// What the type has asked for, where it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Whatever there is.
    Any,
    /// A string or bytes that it will keep.
    Owned,
    Other,
}

macro_rules! hand_through {
    ($($method:ident($($arg:ident: $ty:ty),*) => $inner:ident $($wanted:ident)?,)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($arg: $ty,)* visitor: V) -> Result<V::Value, D::Error> {
            let wanted = [Wanted::Other, $(Wanted::$wanted)?];
            self.inner.$inner($($arg,)* Self::wrap(visitor, self.room, self.in_some, wanted[wanted.len() - 1]))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Decoder<D> {
    type Error = D::Error;

    fn is_human_readable(&self) -> bool {
        true
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        ASKED_FOR_ANY.set(true);
        self.inner.deserialize_any(Self::wrap(visitor, self.room, self.in_some, Wanted::Any))
    }

    hand_through! {
        deserialize_bool() => deserialize_bool,
        deserialize_i8() => deserialize_i8,
        deserialize_i16() => deserialize_i16,
        deserialize_i32() => deserialize_i32,
        deserialize_i64() => deserialize_i64,
        deserialize_i128() => deserialize_any,
        deserialize_u8() => deserialize_u8,
        deserialize_u16() => deserialize_u16,
        deserialize_u32() => deserialize_u32,
        deserialize_u64() => deserialize_u64,
        deserialize_u128() => deserialize_any,
        deserialize_f32() => deserialize_f32,
        deserialize_f64() => deserialize_f64,
        deserialize_char() => deserialize_char,
        deserialize_str() => deserialize_str,
        deserialize_string() => deserialize_string Owned,
        deserialize_bytes() => deserialize_bytes,
        deserialize_byte_buf() => deserialize_byte_buf Owned,
        deserialize_unit() => deserialize_any,
        deserialize_seq() => deserialize_seq,
        deserialize_tuple(len: usize) => deserialize_tuple,
        deserialize_tuple_struct(name: &'static str, len: usize) => deserialize_tuple_struct,
        deserialize_map() => deserialize_map,
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) => deserialize_struct,
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) => deserialize_enum,
        deserialize_identifier() => deserialize_identifier,
        deserialize_ignored_any() => deserialize_ignored_any,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        if self.in_some {
            return self.inner.deserialize_any(Marked { visitor, room: self.room });
        }
        self.inner.deserialize_option(Self::wrap(visitor, self.room, false, Wanted::Other))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }
}

/// The visitor of a type, between it and the reader.
struct Wrapped<V> {
    visitor: V,
    room: Room,
    in_some: bool,
    wanted: Wanted,
}

macro_rules! visit_through {
    ($($method:ident: $ty:ty,)*) => {$(
        fn $method<E: de::Error>(self, v: $ty) -> Result<V::Value, E> {
            self.visitor.$method(v)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Wrapped<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    visit_through! {
        visit_bool: bool, visit_i8: i8, visit_i16: i16, visit_i32: i32, visit_i64: i64, visit_u8: u8,
        visit_u16: u16, visit_u32: u32, visit_u64: u64, visit_f32: f32, visit_f64: f64, visit_str: &str,
        visit_bytes: &[u8],
    }

    fn visit_borrowed_str<E: de::Error>(self, v: &'de str) -> Result<V::Value, E> {
        if v.len() < memory::HUGE || self.wanted != Wanted::Owned {
            return self.visitor.visit_borrowed_str(v);
        }
        // Whoever wants a copy of this gets one in better pages than his own.
        let mut copy = String::from_utf8(room(v.len())).unwrap_or_default();
        copy.push_str(v);
        self.visitor.visit_string(copy)
    }

    fn visit_borrowed_bytes<E: de::Error>(self, v: &'de [u8]) -> Result<V::Value, E> {
        if self.wanted == Wanted::Any && is_buffer::<V::Value>() && str::from_utf8(v).is_ok() {
            // A `String` would take them for text, before the type whose they are is asked: a changed value.
            return numbers(v, self.visitor);
        }
        if v.len() < memory::HUGE || self.wanted != Wanted::Owned {
            return self.visitor.visit_borrowed_bytes(v);
        }
        let mut copy = room(v.len());
        copy.extend_from_slice(v);
        self.visitor.visit_byte_buf(copy)
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Decoder { inner, room: self.room, in_some: true })
    }

    /// The reader's way to hand over an extension value.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let ext = inner.deserialize_any(ExtVisitor)?;
        match ext.tag {
            SOME if self.in_some => ext.content(self.room, |decoder| decoder.deserialize_any(self.visitor)),
            SOME => ext.content(self.room, |decoder| self.visitor.visit_some(decoder)),
            U8S => numbers(ext.payload, self.visitor),
            U128 => self.visitor.visit_u128(u128::from_be_bytes(ext.array()?)),
            I128 => self.visitor.visit_i128(i128::from_be_bytes(ext.array()?)),
            _ => Err(ext.unknown()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        let room = self.room.within(seq.size_hint())?;
        self.visitor.visit_seq(Parts { inner: seq, room })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let room = self.room.within(map.size_hint().map(|entries| entries.saturating_mul(2)))?;
        self.visitor.visit_map(Parts { inner: map, room })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(Parts { inner: data, room: self.room })
    }
}

/// Whether that is what serde reads a value into before it knows whose it is (`Content`, `TagOrContent`: private, hence by name).
fn is_buffer<T>() -> bool {
    let name = std::any::type_name::<T>();
    name.starts_with("serde") && name.contains("private") && name.contains("Content")
}

/// An empty buffer for so many bytes.
fn room(bytes: usize) -> Vec<u8> {
    let mut room = Vec::new();
    memory::reserve(&mut room, bytes);
    room
}

/// The visitor of an `Option` within a `Some`, which is marked without exception.
struct Marked<V> {
    visitor: V,
    room: Room,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Marked<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the mark of an option within an option")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let ext = inner.deserialize_any(ExtVisitor)?;
        match ext.tag {
            SOME => ext.content(self.room, |decoder| decoder.deserialize_option(self.visitor)),
            _ => Err(ext.unknown()),
        }
    }
}

/// An extension value.
struct Ext<'de> {
    tag: i8,
    payload: &'de [u8],
}

impl<'de> Ext<'de> {
    /// Decodes the content of a marked `Some`.
    fn content<T, E: de::Error>(
        &self,
        room: Room,
        read: impl FnOnce(Decoder<&mut Reader<'de>>) -> Result<T, Error>,
    ) -> Result<T, E> {
        let room = Room { bytes: self.payload.len().min(room.bytes), ..room.deeper()? };
        whole(self.payload, room, read).map_err(E::custom)
    }

    fn array<E: de::Error>(&self) -> Result<[u8; 16], E> {
        self.payload.try_into().map_err(|_| E::invalid_length(self.payload.len(), &"an integer of 16 bytes"))
    }

    fn unknown<E: de::Error>(&self) -> E {
        E::custom(format_args!("an extension value of type {} is not expected here", self.tag))
    }
}

struct ExtVisitor;

impl<'de> Visitor<'de> for ExtVisitor {
    type Value = Ext<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the type and the bytes of an extension value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ext<'de>, A::Error> {
        match (seq.next_element()?, seq.next_element()?) {
            (Some(tag), Some(payload)) => Ok(Ext { tag, payload }),
            _ => Err(A::Error::invalid_length(0, &self)),
        }
    }
}

/// The parts of a compound, and the seed of one of them: each gets its decoder.
struct Parts<A> {
    inner: A,
    room: Room,
}

impl<A> Parts<A> {
    fn part<S>(&self, seed: S) -> Parts<S> {
        Parts { inner: seed, room: self.room }
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Parts<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Decoder { inner, room: self.room, in_some: false })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Parts<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(Parts { inner: seed, room: self.room })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Parts<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(Parts { inner: seed, room: self.room })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(Parts { inner: seed, room: self.room })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Parts<A> {
    type Error = A::Error;
    type Variant = Parts<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let seed = self.part(seed);
        let (value, variant) = self.inner.variant_seed(seed)?;
        Ok((value, Parts { inner: variant, room: self.room }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Parts<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Parts { inner: seed, room: self.room.deeper()? })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = Wrapped { visitor, room: self.room.deeper()?, in_some: false, wanted: Wanted::Other };
        self.inner.tuple_variant(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = Wrapped { visitor, room: self.room.deeper()?, in_some: false, wanted: Wanted::Other };
        self.inner.struct_variant(fields, visitor)
    }
}
