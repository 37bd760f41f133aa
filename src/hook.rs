//! The test-only step hook: lets any process end, stop or hang at any step of the protocol.
//!
//! `OFFSPRING_STEP=process:step:fault`, with the feature `testing` alone; without it every call here is empty.
//! Processes and steps: `parent`: `launch`, `launched`, `queued`; `child`: `boot`, `received`, `setup`, `ready`, `ran`,
//! `result`, `sent`, `end`. Faults: `kill`, `stop`, `exit`, `abort`.

#[cfg(feature = "testing")]
mod armed {
    use crate::sys::{lifecycle, signals};

    pub(crate) fn step(process: &str, name: &str) {
        let Ok(wish) = std::env::var("OFFSPRING_STEP") else { return };
        let mut parts = wish.split(':');
        if parts.next() != Some(process) || parts.next() != Some(name) {
            return;
        }
        match parts.next() {
            Some("kill") => lifecycle::raise(signals::KILL),
            Some("stop") => lifecycle::raise(signals::STOP_SIGNAL),
            Some("exit") => lifecycle::exit_now(9),
            Some("abort") => std::process::abort(),
            _ => {}
        }
    }
}

#[cfg(not(feature = "testing"))]
mod armed {
    pub(crate) fn step(_: &str, _: &str) {}
}

pub(crate) use armed::step;
