//! The exec launcher: the program is executed again for one unit.
//!
//! Directory, environment, streams and arguments are the caller's at that moment because the kernel hands them over, and so
//! are the calling thread's rights, of which the unit never has more than an execve(2) leaves.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

use super::launcher::{Failure, Launch};
use super::unit::Unit;
use crate::sys::io::{AsFd, OwnedFd};
use crate::sys::{image, io as sysio, pidfd, signals, spawn};
use crate::zygote::boot::{self, Claim, Role};

/// The step that fails when there is a child already that has been sent its unit.
pub(super) const MAY_HAVE_RUN: &str = "epoll";

/// The line has no other end any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

pub(super) fn launch(launch: &Launch<'_>) -> Result<Arc<Unit>, Failure> {
    let failed = |step: &'static str| move |error| (step.to_owned(), error);
    let (ours, theirs) = sysio::line().map_err(failed("socketpair"))?;
    let claim = claim(Role::Child);
    let child = spawn::spawn(spawn::Image {
        arguments: std::env::args_os().collect(),
        environment: marked(&launch.environment(), &claim),
        directory: launch.order.settings.current_dir.as_deref(),
        umask: launch.order.settings.umask,
        streams: launch.streams.each_ref().map(|stream: &Option<OwnedFd>| stream.as_ref().map(AsFd::as_fd)),
        line: theirs.as_fd(),
        death_signal: launch.terms.terminate.then_some(signals::GUARD),
    })
    .map_err(|(step, error)| (step.to_owned(), error))?;
    drop(theirs);
    let end = |error| {
        // A child that nobody watches must not be.
        let _ = pidfd::send_signal(&child.1, signals::KILL);
        pidfd::reap_blocking(&child.1);
        error
    };
    let unit = Unit::executed(launch, ours);
    let start = launch.start_message(&unit, claim.nonce, None);
    let start = start.map_err(|error| end(("its terms".to_owned(), error)))?;
    match unit.tell(&start, &launch.order.unit, &[]) {
        // It is dead already, which its pidfd tells.
        Err(error) if !is_gone(&error) => return Err(end(("sending its unit".to_owned(), error))),
        _ => {}
    }
    launch.starting.runtime.expect(&unit, || true);
    unit.on_birth(child).map_err(|error| (MAY_HAVE_RUN.to_owned(), error))?;
    if let Some(zygote) = launch.starting.runtime.zygotes.current() {
        zygote.entrust(&unit);
    }
    Ok(unit)
}

/// A new claim of this process's.
pub(super) fn claim(role: Role) -> Claim {
    Claim { role, parent: std::process::id(), nonce: RandomState::new().hash_one(0) }
}

/// An environment with the marker in it, as execve(2) takes it.
pub(super) fn marked(environment: &[(OsString, OsString)], claim: &Claim) -> Vec<OsString> {
    let own = environment.iter().filter(|(name, _)| name != boot::MARKER).cloned();
    let marker = (boot::MARKER.into(), boot::marker(claim, image::anchor()).into());
    let pair = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        name
    };
    own.chain([marker]).map(pair).collect()
}
