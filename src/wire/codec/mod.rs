//! Values to bytes and back: the one place that names the format.
//!
//! The format is MessagePack (`rmp-serde`): self-describing, so that untagged, internally tagged and
//! flattened types work; structs are maps from field names. On its own it loses values without a word, so
//! both sides go through an adapter, [`ser::Encoder`] and [`de::Decoder`], which differs from it in this:
//!
//! * **`Some` around nothing.** MessagePack writes `None`, `Some(None)`, `Some(())` alike. Here a `Some`
//!   whose content would be written as nil, or is a `Some` itself, becomes an extension value ([`SOME`])
//!   around that content. As such a `Some` is *always* marked, the decoder never has to guess.
//! * **Unit structs** are nil like `()` (not an empty array), so that untagged types find them again.
//! * **Sequences of `u8`** come from serde element by element; eight or more are kept as raw bytes ([`U8S`]).
//!   Decoders still see a sequence of numbers, also in `deserialize_any`; real byte strings remain byte
//!   strings, but for those that could be text in serde's buffer: a `String` would take them there.
//! * **128-bit integers** are extension values ([`U128`], [`I128`]), not byte strings, which serde would take
//!   for text where it buffers. (There serde knows no such integers: a clear error, instead of a changed
//!   value.)
//! * **Human-readable** on both sides, because serde's buffer for untagged and flattened types always claims
//!   to be: an `IpAddr` is text everywhere, or else it would not come back from there.
//! * **Limits.** Values nest at most [`DEPTH`] levels, checked alike on both sides: an error, never a stack
//!   overflow. A length that the rest of the input could not hold is refused before anything is allocated for
//!   it. Bytes left over are an error.

mod de;
mod numbers;
mod output;
mod ser;
#[cfg(test)]
mod guessing;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

pub(crate) use output::Encoded;
use output::{File, Output};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// How deep sequences, maps, enum variants and marked `Some`s may nest. It must fit on the 2 MiB stack of a
/// Rust thread in an unoptimised build; the test `the_deepest_values_fit_on_a_small_stack` holds it to that.
const DEPTH: usize = 128;

/// The extension types of ours. Negative ones are MessagePack's to define; it has defined -1 alone.
const SOME: i8 = -101;
const U8S: i8 = -102;
const U128: i8 = -103;
const I128: i8 = -104;

/// `value` as bytes.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = Output::new(File::Never);
    ser::encode(value, &mut out).map_err(CodecError::new)?;
    Ok(out.into_bytes())
}

/// The same, for another process: large strings in it are not copied here.
pub(crate) fn encode_to_cross<T: Serialize + ?Sized>(value: &T) -> Result<Encoded, CodecError> {
    let mut out = Output::new(File::Wanted);
    ser::encode(value, &mut out).and_then(|()| out.end()).map_err(CodecError::new)
}

/// The value that [`encode`] made `bytes` of; or, as these may come from a broken peer, an error.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    de::decode(bytes).map_err(CodecError::new)
}

/// Whether what is being decoded may be tried as one type after the other, as serde does with what it buffers.
pub(crate) fn is_guessing() -> bool {
    de::is_guessing()
}

/// Why a value could not be encoded or decoded, in words.
#[derive(Clone, Debug)]
pub(crate) struct CodecError(Box<str>);

impl CodecError {
    pub(crate) fn new(cause: impl fmt::Display) -> Self {
        CodecError(cause.to_string().into())
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodecError {}
