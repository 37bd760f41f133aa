//! The test-only switches: lets any process end, stop or say rubbish at any step of the protocol, and forces a launcher.
//!
//! `OFFSPRING_STEP=process:step:fault`, with the feature `testing` alone, and `OFFSPRING_LAUNCHER=exec`, `zygote` or `spare`,
//! with the feature `launchers`, as has `OFFSPRING_CGROUPS=no`: CONTRIBUTING.md has the steps and faults. Without them every call here is empty.

use crate::parent::launcher::Launcher;

#[cfg(feature = "testing")]
mod armed {
    use std::sync::OnceLock;

    use crate::builder::Environment;
    use crate::sys::io::{self, BorrowedFd};
    use crate::sys::{lifecycle, signals};

    const VARIABLE: &str = "OFFSPRING_STEP";
    const CHILD: &str = "child:";
    const SPARE: &str = "spare:";
    static ADOPTED: OnceLock<String> = OnceLock::new();

    /// Neither a frame nor a message to or from a zygote, by its first bytes and by its length.
    const RUBBISH: &[u8] = b"rubbish, and no message";

    /// A step of a child or of a zygote: their line is where each of them finds it.
    pub(crate) fn step(process: &str, name: &str) {
        perform(process, name, || Some(io::own_line()));
    }

    /// A step of the parent, where it has a line to somebody.
    pub(crate) fn step_on(line: BorrowedFd<'_>, name: &str) {
        perform("parent", name, || Some(line));
    }

    /// A step of the parent where it has none.
    pub(crate) fn step_alone(name: &str) {
        perform("parent", name, || None);
    }

    fn perform<'a>(process: &str, name: &str, line: impl FnOnce() -> Option<BorrowedFd<'a>>) {
        let adopted = ADOPTED.get().filter(|_| process == "child").cloned();
        let is_adopted = adopted.is_some();
        let Some(wish) = adopted.or_else(|| std::env::var(VARIABLE).ok()) else { return };
        let mut parts = wish.split(':');
        let is_meant = |who| who == process || who == "spare" && is_adopted;
        if !parts.next().is_some_and(is_meant) || parts.next() != Some(name) {
            return;
        }
        match (parts.next(), line()) {
            (Some("kill"), _) => lifecycle::raise(signals::KILL),
            (Some("stop"), _) => lifecycle::raise(signals::STOP_SIGNAL),
            (Some("exit"), _) => lifecycle::exit_now(9),
            (Some("abort"), _) => std::process::abort(),
            (Some("garbage"), Some(line)) => drop(io::send_now(line, RUBBISH)),
            _ => {}
        }
    }

    /// What a unit's own environment wishes, for a child that gets that environment later than its first step.
    pub(crate) fn wish(environment: &Environment) -> Option<String> {
        let value = environment.value(VARIABLE.as_ref())?;
        value.into_string().ok().filter(|wish| wish.starts_with(CHILD))
    }

    /// What is wished of the spares that are made from now on.
    pub(crate) fn wish_of_spares() -> Option<String> {
        std::env::var(VARIABLE).ok().filter(|wish| wish.starts_with(SPARE))
    }

    pub(crate) fn adopt(wish: Option<String>) {
        let _ = ADOPTED.set(wish.unwrap_or_default());
    }
}

#[cfg(not(feature = "testing"))]
mod armed {
    use crate::builder::Environment;
    use crate::sys::io::BorrowedFd;

    pub(crate) fn step(_: &str, _: &str) {}

    pub(crate) fn step_on(_: BorrowedFd<'_>, _: &str) {}

    pub(crate) fn step_alone(_: &str) {}

    pub(crate) fn wish(_: &Environment) -> Option<String> {
        None
    }

    pub(crate) fn wish_of_spares() -> Option<String> {
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

/// Whether units may have cgroups, should they be at hand.
pub(crate) fn may_have_cgroups() -> bool {
    !cfg!(feature = "launchers") || std::env::var_os("OFFSPRING_CGROUPS").is_none_or(|wish| wish != "no")
}

pub(crate) use armed::{adopt, step, step_alone, step_on, wish, wish_of_spares};
