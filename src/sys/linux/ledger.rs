//! One page that the user's process shares with its zygote: which request is being carried out, and what child came of
//! it. The kernel writes the pid itself, so that a child is known even if the zygote dies as soon as it is made.
//!
//! Children do not inherit the page: it is left out of every copy of the zygote.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

const SIZE: usize = 4096;

#[repr(C)]
struct Page {
    request: AtomicU64,
    pid: AtomicI32,
}

/// One process's end of it.
pub(crate) struct Ledger(*mut Page);

// SAFETY: the page holds atomics alone.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl Ledger {
    /// A new one, and the descriptor by which another process finds it.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        // SAFETY: a constant name; the kernel gives a new descriptor, which nobody else knows of.
        let memory = unsafe {
            match libc::memfd_create(c"offspring".as_ptr(), libc::MFD_CLOEXEC) {
                -1 => return Err(io::Error::last_os_error()),
                descriptor => super::io::above_stdio(OwnedFd::from_raw_fd(descriptor))?,
            }
        };
        rustix::fs::ftruncate(&memory, SIZE as u64)?;
        Ok((Self::open(&memory)?, memory))
    }

    /// The one that the descriptor stands for.
    pub(crate) fn open(memory: &OwnedFd) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice, of a file of that size; zero bytes are a valid Page.
        let page = unsafe { libc::mmap(null_mut(), SIZE, access, libc::MAP_SHARED, memory.as_raw_fd(), 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping made above.
        unsafe { libc::madvise(page, SIZE, libc::MADV_DONTFORK) };
        Ok(Self(page.cast()))
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped by `open` until the drop, aligned, and made of atomics, which others may write.
        unsafe { &*self.0 }
    }

    /// In the zygote: a request is about to be carried out.
    pub(crate) fn begin(&self, request: u64) {
        self.page().pid.store(0, Ordering::SeqCst);
        self.page().request.store(request, Ordering::SeqCst);
    }

    /// Where the kernel is to write the pid.
    pub(super) fn pid(&self) -> *mut i32 {
        self.page().pid.as_ptr()
    }

    /// In the user's process, after the zygote's end: the child that was made for that request, if it was the last.
    pub(crate) fn child_of(&self, request: u64) -> Option<u32> {
        let page = self.page();
        let pid = page.pid.load(Ordering::SeqCst);
        (page.request.load(Ordering::SeqCst) == request && pid > 0).then_some(pid as u32)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.0.cast(), SIZE) };
    }
}
