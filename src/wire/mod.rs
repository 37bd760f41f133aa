//! What parent and child say to each other. No process in particular: both ends use it.

pub(crate) mod codec;
pub(crate) mod crossing;
pub(crate) mod frame;
pub(crate) mod message;
pub(crate) mod parcel;
