//! Our place in `.init_array`: the loader calls us before `main`, in every process of every program that links the
//! crate. In all but our own children this returns at once.
//!
//! In a child it never returns, so nothing of the user's `main` runs. Constructors that stand after ours (C++ statics,
//! other crates) are called first, as the loader would have done.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::image;

static RAN: AtomicBool = AtomicBool::new(false);

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = constructor;

extern "C" fn constructor(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    RAN.store(true, Ordering::Relaxed);
    if is_privileged() {
        return;
    }
    let Some(value) = find_marker() else { return };
    // SAFETY: what find_marker gives stands in this process's environment block, which is never unmapped.
    let marker = unsafe { CStr::from_ptr(value) }.to_bytes();
    let Some(claim) = crate::zygote::boot::claim(marker) else { return };
    // A shared library with this crate in it, loaded by the program that the marker is meant for: its constructors run
    // before the program's. (If that cannot be told, the marker is ours: never a second `main`.)
    if image::is_the_executable().is_err_and(|error| error.kind() == io::ErrorKind::Unsupported) {
        return;
    }
    forget_marker();
    for later in image::constructors_after(&raw const CONSTRUCTOR).unwrap_or_default() {
        later(argc, argv, envp);
    }
    crate::zygote::boot::main(claim)
}

/// Whether a re-executed copy of this program would come to us before `main`, or why not.
pub(crate) fn is_in_place() -> io::Result<()> {
    static PROVED: AtomicBool = AtomicBool::new(false);
    if PROVED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let refuse = |why| Err(io::Error::new(io::ErrorKind::Unsupported, why));
    if is_privileged() {
        return refuse(
            "the program runs with raised privileges (set-user-id, set-group-id or file capabilities)",
        );
    }
    image::is_the_executable()?;
    if !RAN.load(Ordering::Relaxed) || image::constructors_after(&raw const CONSTRUCTOR).is_none() {
        return refuse("the crate's constructor is missing from the program");
    }
    PROVED.store(true, Ordering::Relaxed);
    Ok(())
}

fn is_privileged() -> bool {
    // SAFETY: getauxval(3) only reads.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

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

fn find_marker() -> Option<*const c_char> {
    // SAFETY: before `main` nothing writes to the environment; it is a null-terminated array of strings, or null.
    unsafe {
        let mut slot = environ;
        while !slot.is_null() && !(*slot).is_null() {
            if is_marker(*slot) {
                return Some((*slot).add(crate::zygote::boot::MARKER.len() + 1));
            }
            slot = slot.add(1);
        }
    }
    None
}

/// Takes every marker out of the environment, so that neither the unit nor what it starts ever sees one.
fn forget_marker() {
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
