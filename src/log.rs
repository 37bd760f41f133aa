//! What is told to whoever listens, with the feature `tracing`. Without it, nothing is.

#[cfg(feature = "tracing")]
mod told {
    use std::fmt::Display;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::process::ExitStatus;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    /// The subscriber is the program's own code: it may panic, and the thread that tells must not end of that.
    fn tell(event: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(event)) {
            // Its destructor is foreign code as well.
            std::mem::forget(payload);
        }
    }

    /// Units are started the slow way, and why; said once in a process's life.
    pub(crate) fn fallback(step: &str, why: &dyn Display) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            tell(|| {
                tracing::warn!(target: "offspring", step, %why, "no zygote can be used; the program is executed for each unit");
            });
        }
    }

    pub(crate) fn zygote_ready(after: Duration) {
        tell(|| tracing::debug!(target: "offspring", ?after, "zygote ready"));
    }

    pub(crate) fn zygote_ended(status: &ExitStatus) {
        tell(|| tracing::debug!(target: "offspring", %status, "zygote ended"));
    }
}

#[cfg(not(feature = "tracing"))]
mod told {
    use std::fmt::Display;
    use std::process::ExitStatus;
    use std::time::Duration;

    pub(crate) fn fallback(_: &str, _: &dyn Display) {}

    pub(crate) fn zygote_ready(_: Duration) {}

    pub(crate) fn zygote_ended(_: &ExitStatus) {}
}

pub(crate) use told::{fallback, zygote_ended, zygote_ready};
