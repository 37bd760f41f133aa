//! A little memory that the user's process shares with its zygote: which request is being carried out, and what child came of
//! it. The kernel writes the pid itself, so that a child is known even if the zygote dies as soon as it is made.
//!
//! Children do not inherit it: it is left out of every copy of the zygote.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

const SIZE: usize = 16384;

/// How many spares can be told of.
pub(crate) const SLOTS: usize = 2000;

#[repr(C)]
struct Page {
    request: AtomicU64,
    pid: AtomicI32,
    /// For each spare the terms of the unit that it was given.
    terms: [AtomicU64; SLOTS],
}

const _: () = assert!(size_of::<Page>() <= SIZE);

/// What is to become of a child when the parent is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    /// It has no unit yet, and needs no grace.
    Parked,
    /// It runs to its end.
    LetBe,
    /// It is ended, with that much grace; `None`: it is never killed.
    End(Option<Duration>),
}

impl Care {
    fn to_word(self) -> u64 {
        match self {
            Self::Parked => 0,
            Self::LetBe => 1,
            Self::End(None) => 2,
            Self::End(Some(grace)) => {
                u64::try_from(grace.as_millis()).ok().and_then(|grace| grace.checked_add(3)).unwrap_or(2)
            }
        }
    }

    fn from_word(word: u64) -> Self {
        match word {
            0 => Self::Parked,
            1 => Self::LetBe,
            2 => Self::End(None),
            grace => Self::End(Some(Duration::from_millis(grace - 3))),
        }
    }
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

    /// Notes what is to become of the child in that slot.
    pub(crate) fn note(&self, slot: usize, care: Care) {
        if let Some(terms) = self.page().terms.get(slot) {
            terms.store(care.to_word(), Ordering::SeqCst);
        }
    }

    /// What was noted for that slot.
    pub(crate) fn care(&self, slot: usize) -> Care {
        self.page().terms.get(slot).map_or(Care::LetBe, |terms| Care::from_word(terms.load(Ordering::SeqCst)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_at_one_end_is_read_at_the_other() {
        let (ours, memory) = Ledger::new().unwrap();
        let theirs = Ledger::open(&memory).unwrap();
        let all = [
            Care::Parked,
            Care::LetBe,
            Care::End(None),
            Care::End(Some(Duration::ZERO)),
            Care::End(Some(Duration::from_secs(10))),
        ];
        for (slot, care) in all.into_iter().enumerate() {
            ours.note(slot, care);
            assert_eq!(theirs.care(slot), care);
        }
        ours.note(SLOTS, Care::Parked);
        assert_eq!(theirs.care(SLOTS), Care::LetBe);
        theirs.begin(7);
        assert_eq!(ours.child_of(7), None);
        // SAFETY: the page is mapped; this is what the kernel does.
        unsafe { theirs.pid().write(99) };
        assert_eq!((ours.child_of(7), ours.child_of(8)), (Some(99), None));
    }
}
