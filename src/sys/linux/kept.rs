//! Many descriptors that are kept for the sake of others, and that a copy of this process does away with at once.
//!
//! Each clone inherits them, and one close(2) for each would make starts dearer the more there are. Their numbers lie close together, for
//! the kernel gives the lowest that is free, so a close_range(2) or a few do for all. Nothing is written meanwhile: the pages are shared with the
//! original, and each that is written to would have to be copied.

use std::collections::BTreeMap;
use std::ffi::c_uint;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};

/// By some number, a descriptor and what belongs to it.
pub(crate) struct Kept<T>(BTreeMap<u64, (OwnedFd, T)>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Kept<T> {
    pub(crate) fn insert(&mut self, number: u64, descriptor: OwnedFd, with: T) {
        self.0.insert(number, (descriptor, with));
    }

    pub(crate) fn remove(&mut self, number: u64) {
        self.0.remove(&number);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(OwnedFd, T)> {
        self.0.values()
    }

    /// In a copy of the process that has put them here: closes all, and leaves the rest as it is.
    pub(crate) fn close(self) {
        let mut last: Option<RangeInclusive<c_uint>> = None;
        for (descriptor, _) in self.0.values() {
            let number = descriptor.as_raw_fd() as c_uint;
            last = match last {
                Some(range) if *range.end() + 1 == number => Some(*range.start()..=number),
                before => {
                    before.into_iter().for_each(close_all);
                    Some(number..=number)
                }
            };
        }
        last.into_iter().for_each(close_all);
        // They are closed, and nobody can ask for them any more.
        std::mem::forget(self);
    }
}

fn close_all(range: RangeInclusive<c_uint>) {
    let (first, last) = range.into_inner();
    // SAFETY: each of them is one of the descriptors that `close` has been handed, and is about to forget.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, last, 0) != 0 {
            // Before Linux 5.9, or a filter that has not heard of it.
            (first..=last).for_each(|number| {
                libc::close(number as i32);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::io;

    #[test]
    fn all_are_closed_and_no_other() {
        let mut kept = Kept::default();
        let (mut numbers, mut others) = (Vec::new(), Vec::new());
        for n in 0..20 {
            let descriptor = io::null().unwrap();
            // In runs of several, of one, and of one that goes back in number.
            if [3, 4, 9, 15].contains(&n) {
                others.push(descriptor);
            } else {
                numbers.push(descriptor.as_raw_fd());
                kept.insert(if n == 7 { 100 } else { n }, descriptor, ());
            }
        }
        kept.remove(0);
        numbers.remove(0);
        // Nobody else is to open any of these numbers meanwhile: in a copy, which has one thread.
        // SAFETY: the copy makes system calls alone (and frees nothing), and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            kept.close();
            // SAFETY: asks of a number whether it is open.
            let is_open = |number: i32| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
            let is_right = !numbers.iter().any(|number| is_open(*number))
                && others.iter().all(|descriptor| is_open(descriptor.as_raw_fd()));
            // SAFETY: ends the copy.
            unsafe { libc::_exit(if is_right { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
