//! Files, sockets, pipes and whatever else has a descriptor, as parts of a value that crosses to another process.
//!
//! Any type that is [`AsFd`] and `From<OwnedFd>` crosses with `#[serde(with = "offspring::fd")]`, also within `Option` and `Vec`: to a
//! unit, in its result, and through a [`channel`](crate::channel()). The other process gets a duplicate, which is close-on-exec; the original
//! stays what it is. There may be half as many as the sender may have open, and as many as the receiver may: each is duplicated when it is sent
//! (and again when it arrives in something that serde has to guess the type of, as an untagged enum).
//! Where none is, as in an empty `Vec`, there is nothing that could be refused elsewhere.
//!
//! ```
//! use std::fs::File;
//! use std::io::{Read, Seek, Write};
//!
//! use offspring::{Offspring, Subprocess};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Count {
//!     #[serde(with = "offspring::fd")]
//!     text: File,
//! }
//!
//! impl Subprocess for Count {
//!     type Output = usize;
//!     fn run(mut self) -> usize {
//!         let mut text = String::new();
//!         self.text.read_to_string(&mut text).unwrap();
//!         text.split_whitespace().count()
//!     }
//! }
//!
//! let path = std::env::temp_dir().join(format!("offspring-fd-{}", std::process::id()));
//! std::fs::write(&path, "three short words")?;
//! let text = File::open(&path)?;
//! std::fs::remove_file(&path)?;
//! assert_eq!(Offspring::new(Count { text })?.wait()?, 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Errors
//! Serialised or deserialised anywhere else, such a value is an error, which says so. If a descriptor cannot be duplicated or sent (the limits are
//! those of `RLIMIT_NOFILE`, for what is on its way as well), the value cannot be encoded; if the receiver has no room for
//! all, it cannot be decoded. Whatever goes wrong, none is left open.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::io::{AsFd, BorrowedFd, OwnedFd};
use crate::wire::crossing;

/// What crosses with `#[serde(with = "offspring::fd")]`: something with a descriptor, or an `Option` or a `Vec` of such. The parameter tells
/// the compiler which of these it is, and is never written.
///
/// ```
/// fn crosses<M, T: offspring::fd::Crossing<M>>() {}
/// crosses::<_, std::fs::File>();
/// crosses::<_, Option<Vec<std::net::TcpStream>>>();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no descriptor that could cross: neither `AsFd` and `From<OwnedFd>`, nor an `Option` or a `Vec` of such"
)]
pub trait Crossing<Marker>: Sized {
    #[doc(hidden)]
    fn leave<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    #[doc(hidden)]
    fn arrive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

/// For `#[serde(with = "offspring::fd")]`.
///
/// # Errors
/// See the [module](self).
pub fn serialize<M, T: Crossing<M>, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.leave(serializer)
}

/// For `#[serde(with = "offspring::fd")]`.
///
/// # Errors
/// See the [module](self).
pub fn deserialize<'de, M, T: Crossing<M>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::arrive(deserializer)
}

#[doc(hidden)]
#[derive(Debug)]
pub struct One;

impl<T: AsFd + From<OwnedFd>> Crossing<One> for T {
    fn leave<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Leaving(self.as_fd()).serialize(serializer)
    }

    fn arrive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Arrived::deserialize(deserializer).map(|Arrived(descriptor)| Self::from(descriptor))
    }
}

/// A descriptor of ours that crosses as it is, borrowed.
pub(crate) struct Leaving<'a>(pub(crate) BorrowedFd<'a>);

impl Serialize for Leaving<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = crossing::leave(self.0).map_err(serde::ser::Error::custom)?;
        serializer.serialize_u32(place)
    }
}

/// One that has crossed.
pub(crate) struct Arrived(pub(crate) OwnedFd);

impl<'de> Deserialize<'de> for Arrived {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let place = u32::deserialize(deserializer)?;
        crossing::take(place).map(Self).map_err(serde::de::Error::custom)
    }
}

/// One of several, as serde wants to have it.
struct Item<T, M>(T, PhantomData<M>);

impl<T: Crossing<M>, M> Serialize for Item<&T, M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.leave(serializer)
    }
}

impl<'de, T: Crossing<M>, M> Deserialize<'de> for Item<T, M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::arrive(deserializer).map(|value| Self(value, PhantomData))
    }
}

#[doc(hidden)]
#[derive(Debug)]
pub struct Maybe<M>(PhantomData<M>);

impl<T: Crossing<M>, M> Crossing<Maybe<M>> for Option<T> {
    fn leave<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_ref().map(|value| Item(value, PhantomData)).serialize(serializer)
    }

    fn arrive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<Item<T, M>>::deserialize(deserializer)?.map(|item| item.0))
    }
}

#[doc(hidden)]
#[derive(Debug)]
pub struct Many<M>(PhantomData<M>);

impl<T: Crossing<M>, M> Crossing<Many<M>> for Vec<T> {
    fn leave<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(self.len()))?;
        for value in self {
            sequence.serialize_element(&Item(value, PhantomData))?;
        }
        sequence.end()
    }

    fn arrive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<T, M>(PhantomData<(T, M)>);
        impl<'de, T: Crossing<M>, M> Visitor<'de> for All<T, M> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence of descriptors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(Item(value, _)) = sequence.next_element::<Item<T, M>>()? {
                    all.push(value);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_seq(All(PhantomData))
    }
}
