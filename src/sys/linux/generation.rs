//! Whether this process is a forked copy of the one that did something.

use std::ptr::null_mut;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU64};

/// A page that the kernel gives to a forked copy as zeros (MADV_WIPEONFORK, Linux 4.14), or [`NONE`]; null before the first call.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());

/// In the place of a page where there is none.
static NONE: AtomicU64 = AtomicU64::new(0);

/// The last number that was given, to this process or to those of which it is a copy.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A number that stays while the process does, and is another in a forked copy: what one has taken for itself, a copy has not. To be asked often:
/// a load, and no system call (but where the kernel has no such pages).
pub(crate) fn generation() -> u64 {
    let mut page = PAGE.load(Acquire);
    if page.is_null() {
        page = first();
    }
    if std::ptr::eq(page, &raw const NONE) {
        return u64::from(std::process::id());
    }
    // SAFETY: what `first` has put there: mapped, aligned, and never given back.
    let word = unsafe { &*page };
    match word.load(Relaxed) {
        0 => {
            let next = LAST.fetch_add(1, Relaxed) + 1;
            // Another thread may have been faster.
            word.compare_exchange(0, next, Relaxed, Relaxed).map_or_else(|winner| winner, |_| next)
        }
        number => number,
    }
}

#[cold]
fn first() -> *mut AtomicU64 {
    // Rounded up to a page by the kernel, here and below.
    let length = size_of::<AtomicU64>();
    // SAFETY: a new mapping of ours, at a place of the kernel's choice; advice on it alone; given back where nobody knows of it.
    let page = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let page = libc::mmap(null_mut(), length, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        if page == libc::MAP_FAILED {
            (&raw const NONE).cast_mut()
        } else if libc::madvise(page, length, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, length);
            (&raw const NONE).cast_mut()
        } else {
            page.cast()
        }
    };
    match PAGE.compare_exchange(null_mut(), page, Release, Acquire) {
        Ok(_) => page,
        Err(winner) => {
            if !std::ptr::eq(page, &raw const NONE) {
                // SAFETY: mapped above, and nobody has seen it.
                unsafe { libc::munmap(page.cast(), length) };
            }
            winner
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_copy_has_another_and_keeps_it() {
        let ours = generation();
        assert_eq!(generation(), ours);
        // SAFETY: the copy makes loads and stores, and ends.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            let theirs = generation();
            let is_so = theirs != ours && generation() == theirs;
            // SAFETY: no conditions.
            unsafe { libc::_exit(if is_so { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(copy, &raw mut status, 0) }, copy);
        assert_eq!(status, 0);
        assert_eq!(generation(), ours);
    }
}
