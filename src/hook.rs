//! The test-only step hook: lets any process end, stop or hang at any step of the protocol.
//!
//! `OFFSPRING_STEP=process:step:fault`, with the feature `testing` alone; without it every call here is empty.
//! Processes and steps: `parent`: `launch`, `launched`, `queued`; `child`: `boot`, `received`, `setup`, `ready`, `ran`,
//! `result`, `sent`, `end`. Faults: `kill`, `stop`, `exit`, `abort`.

#[cfg(feature = "testing")]
mod armed {
    use std::sync::OnceLock;

    use crate::sys::{lifecycle, signals};

    static WHO: OnceLock<&'static str> = OnceLock::new();

    pub(crate) fn arm(process: &'static str) {
        let _ = WHO.set(process);
    }

    pub(crate) fn step(name: &str) {
        let Ok(wish) = std::env::var("OFFSPRING_STEP") else { return };
        let who = WHO.get().copied().unwrap_or("parent");
        let mut parts = wish.split(':');
        if parts.next() != Some(who) || parts.next() != Some(name) {
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
    pub(crate) fn arm(_: &'static str) {}
    pub(crate) fn step(_: &str) {}
}

pub(crate) use armed::{arm, step};
