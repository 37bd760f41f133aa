//! What is told to whoever listens, with the feature `tracing`. Without it, nothing is.

#[cfg(feature = "tracing")]
mod told {
    use std::fmt::Display;
    use std::process::ExitStatus;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    /// Units are started the slow way, and why; said once in a process's life.
    pub(crate) fn fallback(step: &str, why: &dyn Display) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            tracing::warn!(target: "offspring", step, %why, "no zygote can be used; the program is executed for each unit");
        }
    }

    pub(crate) fn zygote_ready(after: Duration) {
        tracing::debug!(target: "offspring", ?after, "zygote ready");
    }

    pub(crate) fn zygote_ended(status: &ExitStatus) {
        tracing::debug!(target: "offspring", %status, "zygote ended");
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
