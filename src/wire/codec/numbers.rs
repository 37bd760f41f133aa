//! A sequence of `u8` that is there as raw bytes, handed over like any other sequence of numbers.

use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use std::{cell::Cell, fmt, marker::PhantomData, slice};

/// Hands them over; all of them are to be asked for.
pub(super) fn numbers<'de, V: Visitor<'de>, E: de::Error>(
    bytes: &'de [u8],
    visitor: V,
) -> Result<V::Value, E> {
    let over = Cell::new(0);
    let value = visitor.visit_seq(Numbers { left: bytes.iter(), over: &over, error: PhantomData })?;
    match over.get() {
        0 => Ok(value),
        left => Err(E::invalid_length(bytes.len(), &Fewer(bytes.len() - left))),
    }
}

/// For the words of an error.
struct Fewer(usize);

impl de::Expected for Fewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a sequence of {}", self.0)
    }
}

/// A sequence of `u8` that was kept as raw bytes.
struct Numbers<'a, 'de, E> {
    left: slice::Iter<'de, u8>,
    /// Is told at the end how many were not asked for. (Handed over by value, a `Vec<u8>` decodes a fifth
    /// faster.)
    over: &'a Cell<usize>,
    error: PhantomData<E>,
}

impl<E> Drop for Numbers<'_, '_, E> {
    fn drop(&mut self) {
        self.over.set(self.left.len());
    }
}

impl<'de, E: de::Error> SeqAccess<'de> for Numbers<'_, 'de, E> {
    type Error = E;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, E> {
        match self.left.next() {
            Some(&number) => seed.deserialize(Number { number, error: self.error }).map(Some),
            None => Ok(None),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.len())
    }
}

/// One of them. (serde's own deserializer of a `u8` would not serve a newtype or an `Option`.)
struct Number<E> {
    number: u8,
    error: PhantomData<E>,
}

impl<'de, E: de::Error> Deserializer<'de> for Number<E> {
    type Error = E;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        visitor.visit_u8(self.number)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, E> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
