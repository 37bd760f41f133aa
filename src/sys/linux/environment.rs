//! A child's environment: the marker in it, and another in its place.

use std::ffi::{CStr, OsString, c_char};
use std::io;
use std::os::unix::ffi::OsStrExt;

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

fn is_marker(entry: *const c_char) -> bool {
    let name = crate::zygote::boot::MARKER.as_bytes();
    // SAFETY: `entry` is a NUL-terminated string of the environment; strncmp stops at its end.
    unsafe {
        libc::strncmp(entry, name.as_ptr().cast(), name.len()) == 0
            && *entry.add(name.len()) == b'=' as c_char
    }
}

/// The marker's value, if there is one.
pub(super) fn find_marker() -> Option<&'static [u8]> {
    // SAFETY: before `main` nothing writes to the environment; it is a null-terminated array of strings, or null. The
    // strings stand in the block that the process was given, which is never unmapped.
    unsafe {
        let mut slot = environ;
        while !slot.is_null() && !(*slot).is_null() {
            if is_marker(*slot) {
                return Some(CStr::from_ptr((*slot).add(crate::zygote::boot::MARKER.len() + 1)).to_bytes());
            }
            slot = slot.add(1);
        }
    }
    None
}

/// Takes every marker out of the environment, so that neither the unit nor what it starts ever sees one.
pub(super) fn forget_marker() {
    // SAFETY: as in find_marker; the array is compacted in place and stays null-terminated.
    unsafe {
        let (mut from, mut to) = (environ, environ);
        loop {
            *to = *from;
            if (*from).is_null() {
                return;
            }
            if !is_marker(*from) {
                to = to.add(1);
            }
            from = from.add(1);
        }
    }
}

/// Makes a block the process's environment, for good: it may be read at any time.
pub(crate) fn set(block: Vec<u8>) {
    std::mem::forget(Installed::new(block));
}

/// An environment that can be taken back by another.
#[derive(Default)]
pub(crate) struct Installed {
    block: Vec<u8>,
    pointers: Vec<*mut c_char>,
}

impl Installed {
    /// Makes a block the process's environment, and lets go of the one before.
    pub(crate) fn replace(&mut self, block: Vec<u8>) {
        *self = Self::new(block);
    }

    fn new(block: Vec<u8>) -> Self {
        let mut installed = Self { block, pointers: Vec::with_capacity(64) };
        let Self { block, pointers } = &mut installed;
        // Closes what is not closed: each of the pointers below is to be one to a string.
        block.push(0);
        let mut rest = block.as_mut_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == 0) {
            let (entry, more) = rest.split_at_mut(end + 1);
            if entry.len() > 1 {
                pointers.push(entry.as_mut_ptr().cast::<c_char>());
            }
            rest = more;
        }
        pointers.push(std::ptr::null_mut());
        // SAFETY: called while the process has one thread and no code of a unit has run: nobody reads or writes the environment
        // now. The array is null-terminated, its entries are NUL-terminated, and both live until another environment has taken
        // their place, or for good (setenv(3) copies an array that it has not made itself).
        unsafe { environ = pointers.as_mut_ptr() };
        installed
    }
}

/// So many bytes are carried at most; what goes with them fits into a frame as well. (An execve(2) carries less.)
const MOST: usize = 15 << 20;

/// An environment as it goes over the line: `NAME=value` each, with a NUL between them.
pub(crate) fn block(environment: &[(OsString, OsString)]) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(4096);
    for (name, value) in environment {
        if !block.is_empty() {
            block.push(0);
        }
        let start = block.len();
        block.extend_from_slice(name.as_bytes());
        block.push(b'=');
        block.extend_from_slice(value.as_bytes());
        if block[start..].contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name or a value with a NUL in it"));
        }
    }
    if block.len() > MOST {
        let what = format!("it takes {} bytes; the limit is {MOST}", block.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(block)
}
