//! Starting a child: what is sent along, by which launcher, and what is told when it fails.
//!
//! The *spare* launcher gives the unit to a child that is there already. The *zygote* launcher asks a small process of the same program for a clone of itself. The *exec* launcher executes the
//! program again for the one unit: slower, and always right. It is taken where the zygote cannot be, or must not.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::runtime::{self, Starting};
use super::table::Terms;
use super::unit::Unit;
use super::{clone, exec, reaper};
use crate::builder::{Settings, Stream};
use crate::error::{Error, ErrorKind, Subject};
use crate::hook;
use crate::sys::image::Entry;
use crate::sys::io::OwnedFd;
use crate::sys::variables::{self, Variables};
use crate::sys::{constructor, io as sysio};
use crate::wire::codec::{self, Encoded};
use crate::wire::crossing::Packed;
use crate::wire::message::{Context, Guard, Start};

/// A unit, encoded, and what its type and its builder say of it.
pub(crate) struct Order {
    pub(crate) entry: &'static Entry,
    pub(crate) type_name: &'static str,
    pub(crate) unit: Packed,
    pub(crate) wait_for_child: bool,
    pub(crate) terminate: bool,
    pub(crate) settings: Settings,
}

impl Order {
    pub(crate) fn subject(&self) -> Subject {
        Subject { type_name: self.type_name, name: self.settings.name.clone(), pid: None }
    }
}

/// The ways to start a child.
#[cfg_attr(not(feature = "launchers"), allow(dead_code))] // Named by the test-only switch alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Launcher {
    Spare,
    Zygote,
    Exec,
}

/// What every launcher needs.
pub(crate) struct Launch<'a> {
    pub(crate) starting: &'a Starting,
    pub(crate) order: &'a Order,
    pub(crate) name: &'a str,
    pub(crate) entry: u64,
    pub(crate) terms: Terms,
    /// The child's ends of the streams that are not to be the caller's.
    pub(crate) streams: [Option<OwnedFd>; 3],
    pub(crate) began: Instant,
}

/// The step that failed, and why.
pub(crate) type Failure = (String, io::Error);

/// A child that is on its way.
pub(crate) struct Started {
    pub(crate) unit: Arc<Unit>,
    /// The parent's ends of the streams that were asked for as pipes.
    pub(crate) pipes: [Option<OwnedFd>; 3],
}

/// Starts the unit. With `wait_for_child`, returns when it is about to run; the caller looks whether it got there.
pub(crate) fn start(order: &Order) -> Result<Started, Error> {
    let subject = order.subject();
    let refused = |kind, what| Err(Error::new(kind, &subject, what));
    let failed = |step: &str, error: io::Error| Error::start(&subject, step, error);
    hook::step_alone("launch");
    constructor::is_in_place().map_err(|error| failed("this program", error))?;
    let Some(entry) = order.entry.offset() else {
        return refused(
            ErrorKind::Unsupported,
            "its code lies in a shared library, not in the program itself",
        );
    };
    let starting = runtime::enter().map_err(|error| failed("starting the thread that watches", error))?;
    hook::step_alone("entered");
    let Ok(starting) = starting else {
        return refused(ErrorKind::ShuttingDown, "cannot be started: the process is exiting");
    };
    if order.wait_for_child && reaper::is_this_thread() {
        let what = "cannot be started from a waker: its start waits for the thread that calls wakers";
        return refused(ErrorKind::Unsupported, what);
    }
    let settings = &order.settings;
    let (mut streams, mut pipes) = ([const { None }; 3], [const { None }; 3]);
    for (stream, wanted) in settings.streams.iter().enumerate() {
        let ends = open(wanted, stream == 0).map_err(|error| failed("standard streams", error))?;
        (streams[stream], pipes[stream]) = ends;
    }
    let terms = Terms {
        terminate: order.terminate,
        grace: settings.shutdown_timeout,
        start_timeout: settings.start_timeout,
        timeout: settings.timeout,
    };
    let name = settings.name.as_deref().unwrap_or(order.type_name);
    let began = Instant::now();
    let launch = Launch { starting: &starting, order, name, entry, terms, streams, began };
    let unit = launch.go().map_err(|(step, error)| failed(&step, error))?;
    // Ours hold the other ends: a reader waits for the end of all copies.
    drop(launch);
    hook::step_alone("queued");
    if order.wait_for_child {
        unit.wait_ready(began.checked_add(settings.start_timeout));
    }
    unit.on_started();
    Ok(Started { unit, pipes })
}

impl Launch<'_> {
    fn go(&self) -> Result<Arc<Unit>, Failure> {
        match hook::forced() {
            Some(Launcher::Exec) => return exec::launch(self),
            // A waker's thread is the one that hears what the zygote says.
            _ if reaper::is_this_thread() => return exec::launch(self),
            // The zygote would take as long to be ready as the program takes to be executed once more. Both at the same time.
            None if self.starting.runtime.zygotes.is_first(&self.starting.runtime) => {
                self.starting.runtime.parking.on_first(self.entry);
                match exec::launch(self) {
                    // There was no child that ran, and a clone may be possible: it needs no environment that fits execve(2).
                    Err((step, _)) if step != exec::MAY_HAVE_RUN => {}
                    done => return done,
                }
            }
            _ => {}
        }
        match clone::launch(self)? {
            Ok(unit) => Ok(unit),
            Err(why) if hook::forced().is_some() => Err(why),
            // If there is something in the way of both, the error is that of the simpler.
            Err(_) => exec::launch(self),
        }
    }

    /// The first message to the child, to be sent: what to run.
    pub(crate) fn start_message(
        &self,
        unit: &Unit,
        nonce: u64,
        context: Option<Context>,
    ) -> io::Result<Encoded> {
        let message = Start {
            nonce,
            parent: std::process::id(),
            entry: self.entry,
            type_name: self.order.type_name.to_owned(),
            name: self.name.to_owned(),
            guard: self.guard(),
            awaited: self.order.wait_for_child,
            group: self.order.settings.process_group,
            // A zygote that is asked for it makes it there.
            cgroup: unit.cgroup().filter(|_| unit.is_made()).cloned(),
            limits: Some(&self.order.settings.limits).filter(|limits| !limits.is_empty()).cloned(),
            context,
        };
        codec::encode(&message).map(Encoded::from).map_err(io::Error::other)
    }

    /// The unit's environment: this process's as it is now, with the builder's changes.
    pub(crate) fn environment(&self) -> Variables {
        self.order.settings.environment.apply(variables::own())
    }

    pub(crate) fn guard(&self) -> Option<Guard> {
        let leads = self.order.settings.process_group;
        self.terms.terminate.then_some(Guard { grace: self.terms.grace, leads })
    }
}

/// The child's end of a stream, if it is not to be the caller's; and the parent's, if there is one.
fn open(wanted: &Stream, reads: bool) -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    Ok(match wanted {
        Stream::Inherit => (None, None),
        Stream::Null => (Some(sysio::null()?), None),
        Stream::Piped => {
            let (read, write) = sysio::pipe()?;
            if reads { (Some(read), Some(write)) } else { (Some(write), Some(read)) }
        }
        Stream::File(file) => (Some(sysio::above_stdio(file.try_clone()?)?), None),
    })
}
