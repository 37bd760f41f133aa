//! The test-only switches: lets any process end, stop or abort at any step of the protocol, and forces a launcher.
//!
//! `OFFSPRING_STEP=process:step:fault`, with the feature `testing` alone, and `OFFSPRING_LAUNCHER=exec`, `zygote` or `spare`,
//! with the feature `launchers`: CONTRIBUTING.md has the steps and faults. Without them every call here is empty.

use crate::parent::launcher::Launcher;

#[cfg(feature = "testing")]
mod armed {
    use std::sync::OnceLock;

    use crate::builder::Environment;
    use crate::sys::{lifecycle, signals};

    const VARIABLE: &str = "OFFSPRING_STEP";
    static ADOPTED: OnceLock<String> = OnceLock::new();

    pub(crate) fn step(process: &str, name: &str) {
        let adopted = ADOPTED.get().filter(|_| process == "child").cloned();
        let Some(wish) = adopted.or_else(|| std::env::var(VARIABLE).ok()) else { return };
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

    /// What a unit's own environment wishes, for a child that gets that environment later than its first step.
    pub(crate) fn wish(environment: &Environment) -> Option<String> {
        let value = environment.value(VARIABLE.as_ref())?;
        value.into_string().ok()
    }

    pub(crate) fn adopt(wish: Option<String>) {
        let _ = ADOPTED.set(wish.unwrap_or_default());
    }
}

#[cfg(not(feature = "testing"))]
mod armed {
    use crate::builder::Environment;

    pub(crate) fn step(_: &str, _: &str) {}

    pub(crate) fn wish(_: &Environment) -> Option<String> {
        None
    }

    pub(crate) fn adopt(_: Option<String>) {}
}

/// The launcher that is to be taken, if one is forced.
pub(crate) fn forced() -> Option<Launcher> {
    #[cfg(feature = "launchers")]
    {
        static FORCED: std::sync::OnceLock<Option<Launcher>> = std::sync::OnceLock::new();
        *FORCED.get_or_init(|| match std::env::var("OFFSPRING_LAUNCHER").as_deref() {
            Ok("exec") => Some(Launcher::Exec),
            Ok("spare") => Some(Launcher::Spare),
            Ok("zygote") => Some(Launcher::Zygote),
            _ => None,
        })
    }
    #[cfg(not(feature = "launchers"))]
    None
}

pub(crate) use armed::{adopt, step, wish};
