//! A library with a constructor, as a C++ static has one: it has run by the time that a unit runs, or its value is null.

use std::sync::atomic::{AtomicU32, Ordering};

static BUILT: AtomicU32 = AtomicU32::new(0);

#[used]
// SAFETY: the loader calls what stands in this section, before `main`, with arguments that a function may leave alone.
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = build;

extern "C" fn build() {
    // Ours takes the marker away before it calls those that stand after it.
    let early = std::env::var_os("OFFSPRING_CHILD_OF").is_some();
    BUILT.store(if early { 1 } else { 2 }, Ordering::Relaxed);
}

/// 0: the constructor has not run; 1: it ran before offspring's; 2: after it, or in no child.
pub fn built() -> u32 {
    BUILT.load(Ordering::Relaxed)
}
