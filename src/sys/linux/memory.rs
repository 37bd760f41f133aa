//! Memory that crosses as a descriptor: written once, sealed, and read where it is.
//!
//! What comes from a child is hostile. A seal is the kernel's word that nobody can write, shrink or grow the file any more, so
//! bytes that were looked at are still the same when they are used, and no access faults.

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

const SEALS: libc::c_int = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

/// A file in memory with these bytes, which nobody can change any more.
pub(crate) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    /// Linux 6.3; said to those that want to know whether the file is ever to be executed.
    const MFD_NOEXEC_SEAL: u32 = 8;
    // Beyond that limit a write is not refused, it is the end of the process (SIGXFSZ).
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    if limit.is_some_and(|limit| limit < bytes.len() as u64) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
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
    let file = create(flags | MFD_NOEXEC_SEAL).or_else(|_| create(flags))?;
    let mut left = bytes;
    while !left.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::write(&file, left))?;
        left = &left[count..];
    }
    // SAFETY: fcntl(2) on our own descriptor.
    let added = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) };
    if added == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
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

/// The bytes of a sealed file.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *const u8,
    length: usize,
}

// SAFETY: the memory is read-only for all, for good.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Those of that file, if it is sealed and so long. At least one byte.
    pub(crate) fn of(file: &OwnedFd, length: usize) -> io::Result<Self> {
        // SAFETY: fcntl(2) on a descriptor that the borrow keeps open.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & SEALS != SEALS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory that is not sealed"));
        }
        let told = rustix::fs::fstat(file)?;
        if length == 0 || u64::try_from(told.st_size).ok() != Some(length as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory of another size than was said"));
        }
        // Whoever has sent a hole would have us take the memory for it. (Pages that were swapped out count.)
        if u64::try_from(told.st_blocks).unwrap_or(0).saturating_mul(512) < length as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory with holes"));
        }
        // All that there is will be read: one call in the place of a fault for each few pages.
        let flags = libc::MAP_PRIVATE | libc::MAP_POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice, of a file of that size.
        let start = unsafe { libc::mmap(null_mut(), length, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), length })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped readable until the drop, so long; the file's seals, which cannot be taken off, say that nobody writes to
        // it and that it does not shrink.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, into which nobody has a reference any more.
        unsafe { libc::munmap(self.start.cast_mut().cast::<c_void>(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_read_as_it_was_written() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let mapping = Mapping::of(&sealed(&bytes).unwrap(), bytes.len()).unwrap();
        assert_eq!(*mapping, bytes);
    }

    #[test]
    fn nothing_else_is_read() {
        let file = sealed(b"four").unwrap();
        for length in [0, 3, 5, usize::MAX] {
            assert_eq!(Mapping::of(&file, length).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let plain: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
        assert!(Mapping::of(&plain, 4).is_err());
        // SAFETY: as in `sealed`.
        let open = unsafe {
            OwnedFd::from_raw_fd(libc::memfd_create(
                c"open".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            ))
        };
        rustix::io::write(&open, b"four").unwrap();
        assert!(Mapping::of(&open, 4).is_err());
        // It could still grow.
        // SAFETY: fcntl(2) on our own descriptor.
        assert_eq!(unsafe { libc::fcntl(open.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }, 0);
        assert!(Mapping::of(&open, 4).is_err());
    }

    #[test]
    fn what_is_not_there_is_not_mapped() {
        // SAFETY: as in `sealed`.
        let hollow = unsafe {
            OwnedFd::from_raw_fd(libc::memfd_create(
                c"hollow".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            ))
        };
        rustix::fs::ftruncate(&hollow, 1 << 40).unwrap();
        // SAFETY: fcntl(2) on our own descriptor.
        assert_eq!(unsafe { libc::fcntl(hollow.as_raw_fd(), libc::F_ADD_SEALS, SEALS) }, 0);
        assert_eq!(Mapping::of(&hollow, 1 << 40).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_sealed_file_cannot_be_written() {
        let file = sealed(b"four").unwrap();
        assert!(rustix::io::pwrite(&file, b"five", 0).is_err());
        assert!(rustix::fs::ftruncate(&file, 2).is_err());
    }
}
