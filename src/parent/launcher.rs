//! Starting a child: what is sent along, by which way, and what is told when it fails.
//!
//! There is one way so far, the exec launcher: the program is executed again for each unit. Directory, environment,
//! streams and arguments are the caller's at that moment because the kernel hands them over.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::reaper;
use super::runtime::{self, Starting};
use super::table::{Life, Terms};
use super::unit::Unit;
use crate::builder::{Settings, Stream};
use crate::error::{Error, ErrorKind, Subject};
use crate::hook;
use crate::sys::image::{self, Entry};
use crate::sys::io::{AsFd, OwnedFd};
use crate::sys::{constructor, io as sysio, pidfd, signals, spawn};
use crate::wire::codec;
use crate::wire::frame::{Kind, encode};
use crate::wire::message::{Guard, Start};
use crate::zygote::boot::{self, Claim};

/// A unit, encoded, and what its type and its builder say of it.
pub(crate) struct Order {
    pub(crate) entry: &'static Entry,
    pub(crate) type_name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) wait_for_child: bool,
    pub(crate) terminate: bool,
    pub(crate) settings: Settings,
}

impl Order {
    pub(crate) fn subject(&self) -> Subject {
        Subject { type_name: self.type_name, name: self.settings.name.clone(), pid: None }
    }
}

/// A child that is on its way.
pub(crate) struct Started {
    pub(crate) unit: Arc<Unit>,
    /// The parent's ends of the streams that were asked for as pipes.
    pub(crate) pipes: [Option<OwnedFd>; 3],
}

/// Starts the unit. With `wait_for_child`, returns when it is about to run; the caller looks whether it got there.
pub(crate) fn start(order: Order) -> Result<Started, Error> {
    let subject = order.subject();
    let failed = |step: &str, error: io::Error| Error::start(&subject, step, error);
    hook::step("parent", "launch");
    constructor::is_in_place().map_err(|error| failed("this program", error))?;
    let entry = order.entry.offset().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            &subject,
            "its code lies in a shared library, not in the program itself",
        )
    })?;
    let starting = runtime::enter().map_err(|error| failed("starting the thread that watches", error))?;
    let Ok(starting) = starting else {
        return Err(Error::new(
            ErrorKind::ShuttingDown,
            &subject,
            "cannot be started: the process is exiting",
        ));
    };
    let claim = Claim { parent: std::process::id(), nonce: RandomState::new().hash_one(entry) };
    let terms = Terms {
        terminate: order.terminate,
        grace: order.settings.shutdown_timeout,
        start_timeout: order.settings.start_timeout,
        timeout: order.settings.timeout,
    };
    if order.wait_for_child && reaper::is_this_thread() {
        let what = "cannot be started from a waker: its start waits for the thread that calls wakers";
        return Err(Error::new(ErrorKind::Unsupported, &subject, what));
    }
    let message = Start {
        nonce: claim.nonce,
        parent: claim.parent,
        entry,
        type_name: order.type_name.to_owned(),
        name: order.settings.name.clone().unwrap_or_else(|| order.type_name.to_owned()),
        guard: order.terminate.then_some(Guard { grace: order.settings.shutdown_timeout }),
    };
    let name = message.name.clone();
    let message = codec::encode(&message).map_err(|error| failed("its terms", io::Error::other(error)))?;
    let (ours, theirs) = sysio::line().map_err(|error| failed("socketpair", error))?;
    let (child, pipes) = execute(&order, &claim, theirs).map_err(|(step, error)| failed(step, error))?;
    hook::step("parent", "launched");
    let frames = vec![encode(Kind::Start, &message), encode(Kind::Unit, &order.bytes)];
    let unit = watch(&starting, name, child, ours, frames, Life::new(terms, Instant::now()));
    let unit = unit.map_err(|error| failed("epoll", error))?;
    hook::step("parent", "queued");
    if order.wait_for_child {
        unit.wait_ready();
    }
    unit.on_started();
    Ok(Started { unit, pipes })
}

fn watch(
    starting: &Starting,
    name: String,
    child: (u32, OwnedFd),
    line: OwnedFd,
    frames: Vec<Vec<u8>>,
    life: Life,
) -> io::Result<Arc<Unit>> {
    let runtime = &starting.runtime;
    let id = runtime.next_id();
    let unit = Unit::new(id, name, child, line, frames, life, Arc::downgrade(runtime));
    let unit = Arc::new(unit);
    if let Err(error) = runtime.watch(&unit) {
        // A child that nobody watches must not be.
        let _ = pidfd::send_signal(&unit.pidfd, signals::KILL);
        pidfd::reap_blocking(&unit.pidfd);
        return Err(error);
    }
    // Notes its first deadline.
    unit.on_time();
    Ok(unit)
}

type Executed = ((u32, OwnedFd), [Option<OwnedFd>; 3]);

fn execute(order: &Order, claim: &Claim, line: OwnedFd) -> Result<Executed, (&'static str, io::Error)> {
    let settings = &order.settings;
    let mut environment: Vec<(OsString, OsString)> = settings.environment.apply(std::env::vars_os());
    environment.retain(|(name, _)| name != boot::MARKER);
    environment.push((boot::MARKER.into(), boot::marker(claim, image::anchor()).into()));
    let pair = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        name
    };

    let (mut theirs, mut ours) = ([const { None }; 3], [const { None }; 3]);
    for (stream, wanted) in settings.streams.iter().enumerate() {
        let (their, our) = open(wanted, stream == 0).map_err(|error| ("standard streams", error))?;
        (theirs[stream], ours[stream]) = (their, our);
    }
    let child = spawn::spawn(spawn::Image {
        arguments: std::env::args_os().collect(),
        environment: environment.into_iter().map(pair).collect(),
        directory: settings.current_dir.as_deref(),
        umask: settings.umask,
        streams: [0, 1, 2].map(|stream: usize| theirs[stream].as_ref().map(|fd: &OwnedFd| fd.as_fd())),
        line: line.as_fd(),
        guarded: order.terminate,
    })?;
    Ok((child, ours))
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
