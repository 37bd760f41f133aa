//! Memory that several processes share.

use std::fmt;
use std::io::{self, Read};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fd::{Arrived, Leaving};
use crate::sys::io::{AsFd, OwnedFd};
use crate::sys::memory::{self, Mapping};
use crate::wire::crossing;

/// Bytes that nobody can change any more, and that cross to another process without a copy.
///
/// Cheap to clone. Serialised as a part of a unit, of a result or of a message through a [`channel`](crate::channel()), what
/// crosses is a descriptor; elsewhere it is an error. The memory goes when the last process that has it lets go of it.
///
/// ```
/// use offspring::{SharedBytes, spawn};
///
/// let frame = SharedBytes::new(&vec![1; 1_000_000])?;
/// let units: Vec<_> = (0..3).map(|_| {
///     spawn(frame.clone(), |frame: SharedBytes| frame.iter().map(|byte| u64::from(*byte)).sum::<u64>())
/// }).collect::<Result<_, _>>()?;
/// for unit in units {
///     assert_eq!(unit.wait()?, 1_000_000);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What is promised
/// The kernel keeps the seals of the memory (memfd_create(2), fcntl(2) `F_ADD_SEALS`): nobody can write to it, shorten or lengthen it, and a seal is
/// never taken off. A receiver looks for the seals, the size and that there are no holes before it maps anything, so that also a hostile process cannot
/// change what was looked at, nor make an access fail. It takes address space of its whole size in each process that has it, which
/// [`Builder::limit_memory`](crate::Builder::limit_memory) counts.
#[derive(Clone)]
pub struct SharedBytes(Option<Arc<Sealed>>);

struct Sealed {
    file: OwnedFd,
    mapping: Mapping,
}

impl SharedBytes {
    /// A copy of these bytes.
    ///
    /// # Errors
    /// Those of memfd_create(2) and write(2): too many open files, no memory; more than `RLIMIT_FSIZE`. `Unsupported` elsewhere than on Linux.
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        Self::open(memory::Sealed::new(bytes)?.file, bytes.len())
    }

    /// All that a reader gives.
    ///
    /// ```
    /// let bytes = offspring::SharedBytes::from_reader(&b"as it comes"[..])?;
    /// assert_eq!(&*bytes, b"as it comes");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// The reader's; and as [`new`](Self::new).
    pub fn from_reader(mut reader: impl Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        Self::new(&bytes)
    }

    /// So many bytes, written where they are to be: `write` gets them as zeros.
    ///
    /// ```
    /// let squares = offspring::SharedBytes::with(10, |bytes| {
    ///     bytes.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n * n);
    /// })?;
    /// assert_eq!(squares[9], 81);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(length: usize, write: impl FnOnce(&mut [u8])) -> io::Result<Self> {
        if length == 0 {
            write(&mut []);
            return Ok(Self(None));
        }
        Self::open(memory::sealed_by(length, write)?, length)
    }

    fn open(file: OwnedFd, length: usize) -> io::Result<Self> {
        let mapping = Mapping::of(&file, length, false)?;
        Ok(Self(Some(Arc::new(Sealed { file, mapping }))))
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |sealed| &sealed.mapping)
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for SharedBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for SharedBytes {}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytes").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Serialize for SharedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Of none there is no descriptor that would be refused.
        crossing::check().map_err(S::Error::custom)?;
        let sealed = self.0.as_ref();
        (sealed.map(|sealed| Leaving(sealed.file.as_fd())), self.len()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match <(Option<Arrived>, usize)>::deserialize(deserializer)? {
            (None, 0) => Ok(Self(None)),
            (None, _) => Err(D::Error::custom("shared bytes without their memory")),
            (Some(Arrived(file)), length) => Self::open(file, length).map_err(D::Error::custom),
        }
    }
}

/// Memory of a fixed size, of which one process at a time may write.
///
/// It is read and written by copies, like a file: [`read_at`](Self::read_at), and [`SharedWriter::write_at`] while it is [locked](Self::lock). Cheap to
/// clone; it crosses as [`SharedBytes`] does.
///
/// ```
/// use offspring::{SharedMemory, spawn};
///
/// let memory = SharedMemory::new(8)?;
/// let unit = spawn(memory.clone(), |memory: SharedMemory| {
///     memory.lock().unwrap().write_at(0, b"written").unwrap();
/// })?;
/// unit.wait()?;
/// let mut bytes = [0; 7];
/// memory.read_at(0, &mut bytes)?;
/// assert_eq!(&bytes, b"written");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What is promised
/// Its size is sealed, so that no access fails because another process has made it shorter. What is in it may be anything that any process which
/// has it has written, also beside the lock, if it means no good; a read that meets a write may see some of it. But it is never more than
/// bytes: there are no references into it, and nothing of this process depends on them. The lock is the kernel's (flock(2)): with the death of who holds it
/// it is free, and what it was writing is written in part. A copy that a process forks has its lock as well: whoever forks does not lock there.
#[derive(Clone)]
pub struct SharedMemory(Arc<Written>);

struct Written {
    file: OwnedFd,
    length: u64,
    /// Threads of this process; the file's lock is for others.
    writing: Mutex<()>,
}

impl SharedMemory {
    /// So many bytes, zeros.
    ///
    /// # Errors
    /// As [`SharedBytes::new`]; and if `/proc` is not there, through which it is opened once more: the lock belongs to an open file.
    pub fn new(length: u64) -> io::Result<Self> {
        Self::open(&memory::shared(length)?)
    }

    fn open(file: &OwnedFd) -> io::Result<Self> {
        let length = memory::shared_length(file)?;
        // What has come from another process is that one's open file as well, and so would its lock be.
        let file = memory::reopen(file)?;
        Ok(Self(Arc::new(Written { file, length, writing: Mutex::new(()) })))
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.0.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies what stands there. Needs no lock; a write meanwhile may be seen in part.
    ///
    /// # Errors
    /// `UnexpectedEof` if there are not so many bytes from there on; `InvalidInput` from an offset that no file can have.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        memory::read_at(&self.0.file, offset, bytes)
    }

    /// Waits until nobody else writes, in this process or another, and then may. (A thread that has it already waits for itself, for ever, or
    /// panics, as with a [`Mutex`].)
    ///
    /// # Errors
    /// Those of flock(2), of which only a want of memory is known to happen.
    pub fn lock(&self) -> io::Result<SharedWriter<'_>> {
        let thread = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        memory::lock(&self.0.file)?;
        Ok(SharedWriter { memory: self, owner: std::process::id(), _thread: thread })
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Another open file, for the lock belongs to this one, and would be held as long as it is on its way.
        let other = memory::reopen(&self.0.file).map_err(serde::ser::Error::custom)?;
        Leaving(other.as_fd()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Arrived(file) = Arrived::deserialize(deserializer)?;
        Self::open(&file).map_err(D::Error::custom)
    }
}

/// Who may write to a [`SharedMemory`]. On drop, the next may.
///
/// ```
/// let memory = offspring::SharedMemory::new(4)?;
/// let writer = memory.lock()?;
/// writer.write_at(1, &[7, 7])?;
/// drop(writer);
/// let mut all = [1; 4];
/// memory.read_at(0, &mut all)?;
/// assert_eq!(all, [0, 7, 7, 0]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "it may write until it is dropped"]
pub struct SharedWriter<'a> {
    memory: &'a SharedMemory,
    owner: u32,
    _thread: MutexGuard<'a, ()>,
}

impl SharedWriter<'_> {
    /// Writes that there.
    ///
    /// # Errors
    /// `InvalidInput` if there is no room for all of it; then nothing is written.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.memory.len()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the shared memory"));
        }
        memory::write_at(&self.memory.0.file, offset, bytes)
    }

    /// As [`SharedMemory::read_at`]; and nobody writes meanwhile who keeps to the lock.
    ///
    /// # Errors
    /// As there.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read_at(offset, bytes)
    }
}

impl Drop for SharedWriter<'_> {
    fn drop(&mut self) {
        // A forked copy has the same open file: it is not its lock to give back.
        if self.owner == std::process::id() {
            memory::unlock(&self.memory.0.file);
        }
    }
}

impl fmt::Debug for SharedWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedWriter").field(&self.memory).finish()
    }
}
