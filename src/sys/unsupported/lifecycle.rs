//! A process as a whole.

use std::sync::atomic::{AtomicPtr, Ordering};

pub(crate) fn at_exit(_: extern "C" fn()) -> std::io::Result<()> {
    super::none()
}

pub(crate) fn exit(code: i32) -> ! {
    std::process::exit(code)
}

pub(crate) fn exit_now(code: i32) -> ! {
    std::process::exit(code)
}

#[cfg(feature = "testing")]
pub(crate) fn raise(_: i32) {}

pub(crate) fn flush_streams() {}

pub(crate) fn set_name(_: &str) {}

pub(crate) fn may_step_back() -> bool {
    false
}

pub(crate) fn step_back() -> bool {
    false
}

pub(crate) fn step_forward() {}

pub(crate) fn go_to(_: &super::io::OwnedFd) -> std::io::Result<()> {
    super::none()
}

pub(crate) fn go_to_root() {}

pub(crate) fn set_umask(_: u32) {}

pub(crate) fn thread_id() -> u32 {
    0
}

pub(crate) fn generation() -> u64 {
    0
}

pub(crate) fn per_process<T: Sync>(
    slot: &'static AtomicPtr<T>,
    _: impl Fn(&T) -> bool,
    make: impl FnOnce() -> T,
) -> &'static T {
    let _ = slot.load(Ordering::Relaxed);
    Box::leak(Box::new(make()))
}
