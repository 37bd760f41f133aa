//! Encoding. `rmp-serde` writes the scalars and strings; what has a length, or needs a mark, is written here:
//! its own compounds trust the announced length and count no depth.

use super::output::{BIN_32, DIRECT, FIXEXT_1, FIXEXT_16, File, Kind, NIL, Output, STR_32};
use super::{DEPTH, I128, SOME, U8S, U128};
use rmp_serde::{MSGPACK_EXT_STRUCT_NAME, Serializer, encode::Error};
use serde::ser::{self, Error as _, Serialize};

/// Shorter sequences of `u8` gain nothing from being kept as raw bytes.
const SHORT: usize = 8;

pub(super) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Output) -> Result<(), Error> {
    value.serialize(Encoder::new(out))?;
    Ok(())
}

/// Whether a value is an element of a sequence that has been nothing but `u8` until now, kept as raw bytes.
#[derive(Clone, Copy)]
enum Gather {
    No,
    /// Yes: the sequence starts here, was announced as this long, and becomes an ordinary array for anything
    /// else.
    At(usize, usize),
    /// Yes, but anything else is to be written as it is, into an output of its own.
    Aside,
}

/// What an [`Encoder`] did: it wrote the value; or the value is a `u8` that may join those before it, and was
/// not written. (It is the result, not a flag in [`Output`], so that the loop over a `Vec<u8>` compiles to
/// little.)
pub(super) type Written = Option<u8>;
const WRITTEN: Written = None;

/// Encodes one value.
pub(super) struct Encoder<'a> {
    out: &'a mut Output,
    /// How many levels may still be opened.
    depth: usize,
    /// The value is the content of a `Some`, which is marked if the value turns out to be nil or a `Some`.
    in_some: bool,
    gather: Gather,
}

impl<'a> Encoder<'a> {
    #[inline]
    fn new(out: &'a mut Output) -> Self {
        Encoder { out, depth: DEPTH, in_some: false, gather: Gather::No }
    }

    fn deeper(&self) -> Result<usize, Error> {
        self.depth
            .checked_sub(1)
            .ok_or_else(|| Error::custom(format_args!("nested deeper than {DEPTH} levels")))
    }

    /// The output, for anything but a `u8` to gather.
    #[inline]
    fn plain(self) -> Result<&'a mut Output, Error> {
        if let Gather::At(start, announced) = self.gather {
            self.out.scatter(start, announced)?;
        }
        Ok(self.out)
    }

    fn nil(self) -> Result<Written, Error> {
        if self.in_some {
            self.deeper()?;
            return self.fixed(FIXEXT_1, SOME, &[NIL]);
        }
        self.plain()?.bytes().push(NIL);
        Ok(WRITTEN)
    }

    /// An extension value of 1 or 16 bytes.
    fn fixed(self, marker: u8, tag: i8, payload: &[u8]) -> Result<Written, Error> {
        let bytes = self.plain()?.bytes();
        bytes.extend([marker, tag.to_be_bytes()[0]]);
        bytes.extend_from_slice(payload);
        Ok(WRITTEN)
    }

    fn compound(self, kind: Kind, announced: usize) -> Result<Compound<'a>, Error> {
        let depth = self.deeper()?;
        let out = self.plain()?;
        let start = out.position();
        out.header(kind, announced)?;
        Ok(Compound { out, depth, kind, start, announced, count: 0, gather: false })
    }

    /// An array that is kept as raw bytes for as long as all its elements are `u8`.
    fn sequence(self, len: Option<usize>) -> Result<Compound<'a>, Error> {
        let announced = len.unwrap_or(0);
        if len.is_some_and(|len| len < SHORT) {
            return self.compound(Kind::Array, announced);
        }
        let depth = self.deeper()?;
        let out = self.plain()?;
        let start = out.open();
        Ok(Compound { out, depth, kind: Kind::Array, start, announced, count: 0, gather: true })
    }

    /// A map of one entry, from the name of the variant to its content.
    fn variant(self, name: &str) -> Result<Encoder<'a>, Error> {
        let depth = self.deeper()?;
        let out = self.plain()?;
        out.header(Kind::Map, 1)?;
        ser::Serializer::serialize_str(&mut out.ser, name)?;
        Ok(Encoder { depth, ..Encoder::new(out) })
    }
}

macro_rules! scalars {
    ($($method:ident: $ty:ty,)*) => {$(
        #[inline]
        fn $method(self, v: $ty) -> Result<Written, Error> {
            self.plain()?.ser.$method(v)?;
            Ok(WRITTEN)
        }
    )*};
}

impl<'a> ser::Serializer for Encoder<'a> {
    type Ok = Written;
    type Error = Error;
    type SerializeSeq = Compound<'a>;
    type SerializeTuple = Compound<'a>;
    type SerializeTupleStruct = Compound<'a>;
    type SerializeTupleVariant = Compound<'a>;
    type SerializeMap = Compound<'a>;
    type SerializeStruct = Compound<'a>;
    type SerializeStructVariant = Compound<'a>;

    fn is_human_readable(&self) -> bool {
        true
    }

    scalars! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_f32: f32, serialize_f64: f64,
        serialize_char: char,
    }

    #[inline]
    fn serialize_u8(self, v: u8) -> Result<Written, Error> {
        if !matches!(self.gather, Gather::No) {
            return Ok(Some(v));
        }
        self.out.ser.serialize_u8(v)?;
        Ok(WRITTEN)
    }

    fn serialize_u128(self, v: u128) -> Result<Written, Error> {
        self.fixed(FIXEXT_16, U128, &v.to_be_bytes())
    }

    fn serialize_i128(self, v: i128) -> Result<Written, Error> {
        self.fixed(FIXEXT_16, I128, &v.to_be_bytes())
    }

    fn serialize_str(self, v: &str) -> Result<Written, Error> {
        let out = self.plain()?;
        if v.len() < DIRECT {
            out.ser.serialize_str(v)?
        } else {
            out.large(STR_32, v.as_bytes())?
        }
        Ok(WRITTEN)
    }

    fn serialize_bytes(self, v: &[u8]) -> Result<Written, Error> {
        let out = self.plain()?;
        if v.len() < DIRECT {
            out.ser.serialize_bytes(v)?
        } else {
            out.large(BIN_32, v)?
        }
        Ok(WRITTEN)
    }

    fn serialize_none(self) -> Result<Written, Error> {
        self.nil()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Written, Error> {
        if !self.in_some {
            let depth = self.depth;
            return value.serialize(Encoder { depth, in_some: true, ..Encoder::new(self.plain()?) });
        }
        let depth = self.deeper()?;
        let out = self.plain()?;
        let start = out.open();
        value.serialize(Encoder { depth, in_some: true, ..Encoder::new(out) })?;
        out.close(start, SOME)?;
        Ok(WRITTEN)
    }

    fn serialize_unit(self) -> Result<Written, Error> {
        self.nil()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Written, Error> {
        self.nil()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Written, Error> {
        if name == MSGPACK_EXT_STRUCT_NAME {
            return Err(Error::custom("extension values of MessagePack itself are not carried"));
        }
        value.serialize(self)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<Written, Error> {
        self.plain()?.ser.serialize_str(variant)?;
        Ok(WRITTEN)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Written, Error> {
        value.serialize(self.variant(variant)?)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Compound<'a>, Error> {
        self.sequence(len)
    }

    fn collect_seq<I>(self, elements: I) -> Result<Written, Error>
    where
        I: IntoIterator,
        I::Item: Serialize,
    {
        let mut elements = elements.into_iter();
        let len = match elements.size_hint() {
            (least, Some(most)) if least == most => Some(least),
            _ => None,
        };
        let mut sequence = self.sequence(len)?;
        if let Some(first) = elements.next() {
            sequence.element(&first)?;
        }
        if sequence.gather {
            sequence.numbers(elements)?;
        } else {
            elements.try_for_each(|element| sequence.element(&element))?;
        }
        sequence.finish()
    }

    fn serialize_tuple(self, len: usize) -> Result<Compound<'a>, Error> {
        self.sequence(Some(len))
    }

    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Compound<'a>, Error> {
        self.compound(Kind::Array, len)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Compound<'a>, Error> {
        self.variant(variant)?.compound(Kind::Array, len)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Compound<'a>, Error> {
        self.compound(Kind::Map, len.unwrap_or(0))
    }

    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Compound<'a>, Error> {
        self.compound(Kind::Map, len)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Compound<'a>, Error> {
        self.variant(variant)?.compound(Kind::Map, len)
    }
}

/// Encodes the parts of a sequence, tuple, map or struct.
pub(super) struct Compound<'a> {
    out: &'a mut Output,
    depth: usize,
    kind: Kind,
    /// Where its header starts, which was written for `announced` elements or entries.
    start: usize,
    announced: usize,
    count: usize,
    /// There is no header yet, but room for one, and raw bytes after it: all elements so far were `u8`.
    gather: bool,
}

impl Compound<'_> {
    #[inline]
    fn part<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(Encoder { depth: self.depth, ..Encoder::new(self.out) })?;
        Ok(())
    }

    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.count += 1;
        if !self.gather {
            return self.part(value);
        }
        let gather = Gather::At(self.start, self.announced);
        match value.serialize(Encoder { depth: self.depth, gather, ..Encoder::new(self.out) })? {
            Some(byte) => self.out.bytes().push(byte),
            WRITTEN => self.gather = false,
        }
        Ok(())
    }

    /// The elements of a sequence that may well be nothing but `u8`: [`Compound::element`] for each, but
    /// faster, as the loop touches nothing beyond the elements and the chunk.
    #[inline(never)]
    fn numbers<T: Serialize>(&mut self, mut elements: impl Iterator<Item = T>) -> Result<(), Error> {
        let mut aside = Output { ser: Serializer::new(Vec::new()), file: File::Never };
        let mut chunk = [0; 1024];
        let mut filled = 0;
        while let Some(value) = elements.next() {
            let encoder = Encoder { depth: self.depth, gather: Gather::Aside, ..Encoder::new(&mut aside) };
            let Some(byte) = value.serialize(encoder)? else {
                self.flush(&chunk[..filled]);
                self.count += 1;
                self.gather = false;
                self.out.scatter(self.start, self.announced)?;
                self.out.bytes().append(aside.bytes());
                return elements.try_for_each(|element| self.element(&element));
            };
            chunk[filled] = byte;
            filled += 1;
            if filled == chunk.len() {
                self.flush(&chunk);
                filled = 0;
            }
        }
        self.flush(&chunk[..filled]);
        Ok(())
    }

    fn flush(&mut self, chunk: &[u8]) {
        self.out.bytes().extend_from_slice(chunk);
        self.count += chunk.len();
    }

    fn entry<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
        self.count += 1;
        ser::Serializer::serialize_str(&mut self.out.ser, key)?;
        self.part(value)
    }

    /// The announced length may have been unknown or wrong: the header tells what came.
    fn finish(self) -> Result<Written, Error> {
        if self.gather {
            self.out.close(self.start, U8S)?;
        } else if self.count != self.announced {
            let (_, written) = self.kind.header(self.announced)?;
            let (header, len) = self.kind.header(self.count)?;
            self.out.replace(self.start, written, &header[..len])?;
        }
        Ok(WRITTEN)
    }
}

macro_rules! compounds {
    ($($trait:ident::$method:ident($($key:ident)?) => $write:ident,)*) => {$(
        impl ser::$trait for Compound<'_> {
            type Ok = Written;
            type Error = Error;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, $($key: &'static str,)? value: &T) -> Result<(), Error> {
                self.$write($($key,)? value)
            }

            fn end(self) -> Result<Written, Error> {
                self.finish()
            }
        }
    )*};
}

compounds! {
    SerializeSeq::serialize_element() => element,
    SerializeTuple::serialize_element() => element,
    SerializeTupleStruct::serialize_field() => element,
    SerializeTupleVariant::serialize_field() => element,
    SerializeStruct::serialize_field(key) => entry,
    SerializeStructVariant::serialize_field(key) => entry,
}

impl ser::SerializeMap for Compound<'_> {
    type Ok = Written;
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.element(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.part(value)
    }

    fn end(self) -> Result<Written, Error> {
        self.finish()
    }
}
