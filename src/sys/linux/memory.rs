//! Memory that crosses as a descriptor: written once, sealed, and read where it is.
//!
//! What comes from a child is hostile. A seal is the kernel's word that nobody can write, shrink or grow the file any more, so
//! bytes that were looked at are still the same when they are used, and no access faults.

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, AtomicU64};

const SEALS: libc::c_int = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

/// A file in memory, of so many bytes, which nobody can change any more.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) file: OwnedFd,
    pub(crate) length: usize,
}

impl Sealed {
    /// With these bytes.
    pub(crate) fn new(bytes: &[u8]) -> io::Result<Self> {
        let mut draft = Draft::new()?;
        draft.append(&[bytes])?;
        draft.seal().map_err(|(_, error)| error)
    }

    /// A copy of the bytes.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length];
        read_at(&self.file, 0, &mut bytes)?;
        Ok(bytes)
    }
}

/// What is to be [`Sealed`], and is still being written.
pub(crate) struct Draft(Sealed);

impl Draft {
    /// Nothing yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Sealed { file: new(0)?, length: 0 }))
    }

    pub(crate) fn length(&self) -> usize {
        self.0.length
    }

    /// Writes these behind what there is; all of them, or an error, and then it is as it was.
    pub(crate) fn append(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut length = self.0.length;
        for part in parts {
            allowed((length + part.len()) as u64)?;
            write_at(&self.0.file, length as u64, part)?;
            length += part.len();
        }
        self.0.length = length;
        Ok(())
    }

    /// Writes these over what is there.
    pub(crate) fn change(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        // The limit may be another than when this was written.
        allowed((offset + bytes.len()) as u64)?;
        write_at(&self.0.file, offset as u64, bytes)
    }

    /// A copy of what there is.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        self.0.read()
    }

    pub(crate) fn seal(self) -> Result<Sealed, (Self, io::Error)> {
        match seal(&self.0.file, SEALS) {
            Ok(()) => Ok(self.0),
            Err(error) => Err((self, error)),
        }
    }
}

/// A sealed file of so many bytes (at least one), which are written where they are to be.
pub(crate) fn sealed_by(length: usize, write: impl FnOnce(&mut [u8])) -> io::Result<OwnedFd> {
    let file = new(length as u64)?;
    // All of it, or an error, and not a signal later.
    rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length as u64)
    })?;
    seal(&file, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // All pages are made zeros now: one that nobody writes to would be taken for a hole.
    let region = Region::new(&file, length, access, libc::MAP_SHARED | libc::MAP_POPULATE)?;
    // SAFETY: mapped for reading and writing until the drop, so long; nobody else knows of the file.
    write(unsafe { std::slice::from_raw_parts_mut(region.start.cast(), length) });
    drop(region);
    match seal(&file, SEALS) {
        // A copy that was forked meanwhile has it mapped as well, for as long as it likes, and can write to it.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => copied(&file, length as u64),
        sealed => sealed.map(|()| file),
    }
}

/// The same bytes in a file of their own.
fn copied(file: &OwnedFd, length: u64) -> io::Result<OwnedFd> {
    let copy = new(length)?;
    let mut buffer = vec![0; length.min(1 << 20) as usize];
    for offset in (0..length).step_by(buffer.len()) {
        let part = (length - offset).min(buffer.len() as u64) as usize;
        read_at(file, offset, &mut buffer[..part])?;
        write_at(&copy, offset, &buffer[..part])?;
    }
    seal(&copy, SEALS)?;
    Ok(copy)
}

/// Memory that others may write as well, for as long as it is: so many bytes, zeros.
pub(crate) fn shared(length: u64) -> io::Result<OwnedFd> {
    let file = new(length)?;
    if length > 0 {
        rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)
        })?;
    }
    seal(&file, KEEPS_SIZE)?;
    Ok(file)
}

/// Nobody can make it longer or shorter, nor seal it against writes.
const KEEPS_SIZE: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// The same memory as an open file of its own.
pub(crate) fn reopen(file: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    super::io::above_stdio(std::fs::File::options().read(true).write(true).open(path)?.into())
}

/// Reads all of that from there, or fails.
pub(crate) fn read_at(file: &OwnedFd, offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
    let mut offset = offset;
    while !bytes.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *bytes, offset))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}

/// Writes all of that there, or fails.
pub(crate) fn write_at(file: &OwnedFd, offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    let mut offset = offset;
    while !bytes.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, offset))?;
        bytes = &bytes[count..];
        offset += count as u64;
    }
    Ok(())
}

/// Waits for the lock that belongs to this open file.
pub(crate) fn lock(file: &OwnedFd) -> io::Result<()> {
    use rustix::fs::{FlockOperation, flock};
    Ok(rustix::io::retry_on_intr(|| flock(file, FlockOperation::LockExclusive))?)
}

pub(crate) fn unlock(file: &OwnedFd) {
    let _ = rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock);
}

/// The length of such memory, which has come from elsewhere.
pub(crate) fn shared_length(file: &OwnedFd) -> io::Result<u64> {
    if !has_seals(file, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "memory whose size is not sealed"));
    }
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

fn new(length: u64) -> io::Result<OwnedFd> {
    /// Linux 6.3; said to those that want to know whether the file is ever to be executed.
    const MFD_NOEXEC_SEAL: u32 = 8;
    allowed(length)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags| {
        // SAFETY: a constant name; the kernel gives a new descriptor, which nobody else knows of.
        unsafe {
            match libc::memfd_create(c"offspring-value".as_ptr(), flags) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => super::io::above_stdio(OwnedFd::from_raw_fd(descriptor)),
            }
        }
    };
    create(flags | MFD_NOEXEC_SEAL).or_else(|_| create(flags))
}

/// Whether a file may be so long: beyond its limit a write is not refused, it is the end of the process (SIGXFSZ).
fn allowed(length: u64) -> io::Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    let is_beyond = limit.is_some_and(|limit| limit < length);
    if is_beyond { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
}

fn seal(file: &OwnedFd, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: fcntl(2) on our own descriptor.
    let added = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if added == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn has_seals(file: &OwnedFd, seals: libc::c_int) -> bool {
    // SAFETY: fcntl(2) on a descriptor that the borrow keeps open.
    let told = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    told >= 0 && told & seals == seals
}

/// Whether a sealed file of so many bytes has all of them. (Pages that were swapped out are there.)
fn has_no_holes(file: &OwnedFd, length: u64) -> io::Result<bool> {
    // What lies behind the end goes by this, and by the seals nothing comes there any more; then the blocks tell, if there are just those of the
    // pages up to the end.
    if rustix::fs::ftruncate(file, length).is_ok() {
        let told = rustix::fs::fstat(file)?;
        let page = u64::try_from(told.st_blksize).unwrap_or(0);
        let blocks = u64::try_from(told.st_blocks).unwrap_or(0);
        if page > 0 && length.checked_next_multiple_of(page) == blocks.checked_mul(512) {
            return Ok(true);
        }
    }
    // This looks at each page: half a millisecond for 64 MiB.
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(0))? == length)
}

/// From so many bytes on a buffer is worth pages of 2 MiB.
pub(crate) const HUGE: usize = 4 << 20;

/// Makes room for so many more bytes, which are about to be written: where they are many, in huge pages if there are any, for the
/// fault at each small page costs four times as much as the copy.
pub(crate) fn reserve(bytes: &mut Vec<u8>, additional: usize) {
    const PAGE: usize = 2 << 20;
    bytes.reserve(additional);
    if additional >= HUGE {
        let range = bytes.spare_capacity_mut().as_mut_ptr_range();
        let first = (range.start as usize).next_multiple_of(PAGE);
        let size = (range.end as usize).saturating_sub(first) & !(PAGE - 1);
        // SAFETY: advice on memory that is ours; it changes the pages it will be made of, not what is in it.
        unsafe { libc::madvise(first as *mut c_void, size, libc::MADV_HUGEPAGE) };
    }
}

/// Mapped memory.
#[derive(Debug)]
struct Region {
    start: *mut c_void,
    length: usize,
}

impl Region {
    fn new(file: &OwnedFd, length: usize, access: libc::c_int, flags: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(null_mut(), length, access, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start, length }) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: our own mapping, into which nobody has a reference any more.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// The bytes of a sealed file.
#[derive(Debug)]
pub(crate) struct Mapping(Region);

// SAFETY: the memory is read-only for all, for good.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Those of that file, if it is sealed and so long. At least one byte. `at_once`: all of it is about to be read.
    pub(crate) fn of(file: &OwnedFd, length: usize, at_once: bool) -> io::Result<Self> {
        if !has_seals(file, SEALS) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory that is not sealed"));
        }
        let told = rustix::fs::fstat(file)?;
        if length == 0 || u64::try_from(told.st_size).ok() != Some(length as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory of another size than was said"));
        }
        // Whoever has sent a hole would have us take the memory for it.
        if !has_no_holes(file, length as u64)? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory with holes"));
        }
        // One call in the place of a fault for each few pages.
        let flags = libc::MAP_PRIVATE | if at_once { libc::MAP_POPULATE } else { 0 };
        Region::new(file, length, libc::PROT_READ, flags).map(Self)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped readable until the drop, so long; the file's seals, which cannot be taken off, say that nobody writes to
        // it and that it does not shrink.
        unsafe { std::slice::from_raw_parts(self.0.start.cast(), self.0.length) }
    }
}

/// Words that several processes share, and any of them may change at any time.
#[derive(Debug)]
pub(crate) struct Words(Region);

// SAFETY: the memory holds atomics alone.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Those in that memory, which is [`shared`] and has so many bytes.
    pub(crate) fn of(file: &OwnedFd, bytes: usize) -> io::Result<Self> {
        if bytes == 0 || shared_length(file)? != bytes as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory of another size"));
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        Region::new(file, bytes, access, libc::MAP_SHARED).map(Self)
    }

    /// The same memory in words of twice the width. Whatever is kept there is to be used in one width.
    pub(crate) fn wide(&self) -> &[AtomicU64] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts(self.0.start.cast(), self.0.length / size_of::<AtomicU64>()) }
    }
}

impl Deref for Words {
    type Target = [AtomicU32];

    fn deref(&self) -> &Self::Target {
        // SAFETY: mapped until the drop, aligned to a page, so long, and of a size that is sealed; any bytes are valid atomics,
        // which others may change.
        unsafe { std::slice::from_raw_parts(self.0.start.cast(), self.0.length / size_of::<AtomicU32>()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_read_as_it_was_written() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let mapping = Mapping::of(&Sealed::new(&bytes).unwrap().file, bytes.len(), true).unwrap();
        assert_eq!(*mapping, bytes);
    }

    #[test]
    fn nothing_else_is_read() {
        let file = Sealed::new(b"four").unwrap().file;
        for length in [0, 3, 5, usize::MAX] {
            assert_eq!(Mapping::of(&file, length, true).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let plain: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
        assert!(Mapping::of(&plain, 4, true).is_err());
        // SAFETY: as in `new`.
        let open = unsafe {
            OwnedFd::from_raw_fd(libc::memfd_create(
                c"open".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            ))
        };
        rustix::io::write(&open, b"four").unwrap();
        assert!(Mapping::of(&open, 4, true).is_err());
        // It could still grow.
        // SAFETY: fcntl(2) on our own descriptor.
        assert_eq!(unsafe { libc::fcntl(open.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }, 0);
        assert!(Mapping::of(&open, 4, true).is_err());
    }

    #[test]
    fn what_is_not_there_is_not_mapped() {
        // SAFETY: as in `new`.
        let hollow = unsafe {
            OwnedFd::from_raw_fd(libc::memfd_create(
                c"hollow".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            ))
        };
        rustix::fs::ftruncate(&hollow, 1 << 40).unwrap();
        // SAFETY: fcntl(2) on our own descriptor.
        assert_eq!(unsafe { libc::fcntl(hollow.as_raw_fd(), libc::F_ADD_SEALS, SEALS) }, 0);
        assert_eq!(Mapping::of(&hollow, 1 << 40, true).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // A hole, and as many blocks behind the end.
        let file = new(1 << 20).unwrap();
        rustix::fs::ftruncate(&file, 1 << 20).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).unwrap();
        seal(&file, SEALS).unwrap();
        assert_eq!(Mapping::of(&file, 1 << 20, true).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_sealed_file_cannot_be_written() {
        let file = Sealed::new(b"four").unwrap().file;
        assert!(rustix::io::pwrite(&file, b"five", 0).is_err());
        assert!(rustix::fs::ftruncate(&file, 2).is_err());
    }
}
