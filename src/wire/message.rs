//! The bodies of the small frames.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What to run, and on what terms.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The number from the marker: this line is the one that the marker spoke of.
    pub(crate) nonce: u64,
    pub(crate) parent: u32,
    /// The place of the unit's entry in the image.
    pub(crate) entry: u64,
    /// The unit's type, to be compared with what stands at that place.
    pub(crate) type_name: String,
    /// The unit's name.
    pub(crate) name: String,
    /// Whether the unit is ended when its parent dies, and how long after TERM.
    pub(crate) guard: Option<Guard>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Guard {
    pub(crate) grace: Option<Duration>,
}

/// A panic, as it comes home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Panicked {
    pub(crate) message: String,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) column: Option<u32>,
    pub(crate) thread: Option<String>,
    pub(crate) backtrace: Option<String>,
}

/// A step of the child that failed before or after the unit ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) step: Step,
    pub(crate) why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// The child is not what its parent took it for.
    Setup,
    /// The unit could not be decoded.
    Decode,
    /// The result could not be encoded.
    Encode,
}
