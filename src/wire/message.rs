//! The bodies of the small frames.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::sys::cgroup::Cgroup;
use crate::sys::rights::Rights;

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
    /// Whether the parent waits until the unit is about to run.
    pub(crate) awaited: bool,
    /// Whether it is to lead a process group of its own.
    pub(crate) group: bool,
    /// The cgroup that it is to join, if it was not made there.
    pub(crate) cgroup: Option<Cgroup>,
    /// What bounds it, if anything does.
    pub(crate) limits: Option<Limits>,
    /// For a child that was cloned; one that was executed has it from the kernel.
    pub(crate) context: Option<Context>,
}

/// What a child is to have of its caller's, in so far as its zygote has it otherwise.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Context {
    /// Whether a descriptor of its directory comes along. If not, it is there already.
    pub(crate) directory: bool,
    /// All of it: `NAME=value` each, with a NUL between them.
    pub(crate) environment: Option<Vec<u8>>,
    pub(crate) umask: Option<u32>,
    /// Which standard streams come along, as descriptors behind that of the directory.
    pub(crate) streams: [bool; 3],
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Guard {
    pub(crate) grace: Option<Duration>,
    /// Whether it leads a process group, which is to end with it.
    pub(crate) leads: bool,
}

/// To a zygote, first of all. With it go a pidfd of the parent and the ledger.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// As in [`Start`].
    pub(crate) nonce: u64,
}

/// From a zygote, first of all.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Why it cannot make children; then it has ended.
    pub(crate) unfit: Option<String>,
    pub(crate) rights: Rights,
}

/// To a zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// A child, please. With it goes the child's end of its line, and, for a spare, the directory to wait in.
    Child(Wanted),
    /// One that it has not made itself is to be seen to as well, or one that leads a group. With it goes the child's pidfd.
    Ward { pid: u32, guard: Guard, cgroup: Option<Cgroup> },
    /// One that leads a group has ended, and nothing of its group is to be ended any more. Its pidfd's identity.
    Release(u64),
    /// The environment that its children are to have from now on, as in [`Context`]: so many bytes, in memory that goes with it.
    Environment(usize),
}

/// A child that is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) id: u64,
    pub(crate) guard: Option<Guard>,
    /// Where it is to be made.
    pub(crate) cgroup: Option<Cgroup>,
    /// It is a spare: what is to become of it without its parent will stand there in the ledger.
    pub(crate) slot: Option<usize>,
    /// Whether the descriptor of a directory comes along, for a spare to wait in.
    pub(crate) directory: bool,
    /// For a spare: what it may have to run, as in [`Start`].
    pub(crate) entry: u64,
    /// For the test-only step hook: what the child is to do at which step.
    pub(crate) wish: Option<String>,
}

/// From a zygote: what came of a request. With it goes the child's pidfd.
///
/// Not a value for the codec: it is written right after a clone, when each page that the zygote touches has to be copied
/// first, and the child waits for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) id: u64,
    /// The child's pid, or the number of the error.
    pub(crate) made: Result<u32, i32>,
}

impl Reply {
    /// Its length in bytes.
    pub(crate) const SIZE: usize = 16;

    pub(crate) fn to_bytes(&self) -> [u8; Self::SIZE] {
        let (pid, errno) = self.made.map_or_else(|errno| (0, errno), |pid| (pid, 0));
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..12].copy_from_slice(&pid.to_le_bytes());
        bytes[12..].copy_from_slice(&errno.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        let (id, rest) = bytes.split_first_chunk()?;
        let (pid, rest) = rest.split_first_chunk()?;
        let (errno, _) = rest.split_first_chunk()?;
        let pid = u32::from_le_bytes(*pid);
        let made = if pid == 0 { Err(i32::from_le_bytes(*errno)) } else { Ok(pid) };
        Some(Self { id: u64::from_le_bytes(*id), made })
    }
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
    /// What the parent says of itself: the result came, and could not be taken.
    Receive,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_comes_back_as_it_was() {
        for made in [Ok(17), Ok(u32::MAX), Err(11), Err(0)] {
            let reply = Reply { id: u64::MAX - 1, made };
            assert_eq!(Reply::from_bytes(&reply.to_bytes()), Some(reply));
        }
        assert_eq!(Reply::from_bytes(&[0; 15]), None);
        assert_eq!(Reply::from_bytes(&[0; 17]), None);
    }
}
