//! Our place in `.init_array`: the loader calls us before `main`, in every process of every program that links the
//! crate. In all but our own children this returns at once.
//!
//! In a child it never returns, so nothing of the user's `main` runs. Constructors that stand after ours (C++ statics,
//! other crates) are called first, as the loader would have done.

use std::ffi::{c_char, c_int};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{environment, image};

static RAN: AtomicBool = AtomicBool::new(false);

// (Miri calls what stands there without arguments.)
#[used]
#[cfg_attr(not(miri), unsafe(link_section = ".init_array"))]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = constructor;

extern "C" fn constructor(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    RAN.store(true, Ordering::Relaxed);
    if is_privileged() {
        return;
    }
    let Some(marker) = environment::find_marker() else { return };
    let Some(claim) = crate::zygote::boot::claim(marker) else { return };
    // A shared library with this crate in it, loaded by the program that the marker is meant for: its constructors run
    // before the program's. (If that cannot be told, the marker is ours: never a second `main`.)
    if image::is_the_executable().is_err_and(|error| error.kind() == io::ErrorKind::Unsupported) {
        return;
    }
    environment::forget_marker();
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
    if image::is_in_valgrind() {
        return refuse("the program runs in valgrind, which cannot execute it anew");
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
