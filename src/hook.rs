//! The test-only switches: lets any process end, stop or abort at any step of the protocol, and forces a launcher.
//!
//! With the feature `testing` alone; without it every call here is empty. `OFFSPRING_STEP=process:step:fault`, and
//! `OFFSPRING_LAUNCHER=exec`, `zygote` or `spare`: CONTRIBUTING.md has the steps and faults.

#[cfg(feature = "testing")]
mod armed {
    use std::sync::OnceLock;

    use crate::builder::Environment;
    use crate::parent::launcher::Launcher;
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

    pub(crate) fn forced() -> Option<Launcher> {
        static FORCED: OnceLock<Option<Launcher>> = OnceLock::new();
        *FORCED.get_or_init(|| match std::env::var("OFFSPRING_LAUNCHER").as_deref() {
            Ok("exec") => Some(Launcher::Exec),
            Ok("spare") => Some(Launcher::Spare),
            Ok("zygote") => Some(Launcher::Zygote),
            _ => None,
        })
    }
}

#[cfg(not(feature = "testing"))]
mod armed {
    use crate::builder::Environment;
    use crate::parent::launcher::Launcher;

    pub(crate) fn step(_: &str, _: &str) {}

    pub(crate) fn wish(_: &Environment) -> Option<String> {
        None
    }

    pub(crate) fn adopt(_: Option<String>) {}

    pub(crate) fn forced() -> Option<Launcher> {
        None
    }
}

pub(crate) use armed::{adopt, forced, step, wish};
