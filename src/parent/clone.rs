//! The launchers that clone: takes a spare or asks the zygote for a child, and sends it what it is to run, and what it is to
//! have otherwise than the zygote.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::exec::is_gone;
use super::launcher::{Failure, Launch, Launcher};
use super::parking::{There, care};
use super::unit::{Birth, Unit};
use super::zygote::{Absent, Zygote};
use crate::hook;
use crate::sys::io::{self as sysio, AsFd, BorrowedFd, OwnedFd};
use crate::sys::{environment, rights};
use crate::wire::message::{Context, Wanted};

/// Starts the unit; within, why another launcher is to do it.
pub(super) fn launch(launch: &Launch<'_>) -> Result<Result<Arc<Unit>, Failure>, Failure> {
    let runtime = &launch.starting.runtime;
    let deadline = launch.began.checked_add(launch.terms.start_timeout);
    let seen = runtime.zygotes.crashes();
    loop {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(late());
        }
        let zygote = match runtime.zygotes.get(runtime, deadline, seen) {
            Ok(zygote) => zygote,
            Err(Absent::Refused(step, error)) => return Ok(Err((step, error))),
            Err(Absent::Failed(what)) => return Err(("the zygote".into(), io::Error::other(what))),
            Err(Absent::Late) => return Err(late()),
        };
        if !zygote.has_rights(&rights::of_this_thread()) {
            let what = "the calling thread has other rights than the process had at its first start";
            return Ok(Err(("zygote".into(), io::Error::other(what))));
        }
        if let Some(unit) = give(launch, &zygote, deadline)? {
            return Ok(Ok(unit));
        }
        match ask(launch, &zygote, deadline)? {
            Asked::Unit(unit) => return Ok(Ok(unit)),
            Asked::Refused(step, error) => return Ok(Err((step, error))),
            // It died, and this child was not made: once more.
            Asked::Gone => {}
        }
    }
}

/// Gives the unit to a spare, if there is one.
fn give(
    launch: &Launch<'_>,
    zygote: &Arc<Zygote>,
    deadline: Option<Instant>,
) -> Result<Option<Arc<Unit>>, Failure> {
    let runtime = &launch.starting.runtime;
    // One that lives may not see the wish at its first step any more.
    if hook::forced() == Some(Launcher::Zygote) || hook::wish(&launch.order.settings.environment).is_some() {
        return Ok(None);
    }
    // One that is there already would have to be moved into its cgroup, for which the kernel takes milliseconds.
    if launch.order.settings.process_group && hook::forced().is_none() && runtime.cgroups.are_at_hand() {
        runtime.parking.on_other_start();
        return Ok(None);
    }
    loop {
        let spare = match hook::forced() {
            Some(Launcher::Spare) => runtime.parking.wait(runtime, zygote, launch.entry, deadline),
            _ => runtime.parking.take(runtime, zygote, launch.entry),
        };
        let Some(spare) = spare else { return Ok(None) };
        zygote.note(spare.slot.number, care(launch.terms.terminate, launch.terms.grace));
        let there = spare.there.clone();
        let unit = Unit::of_spare(launch, spare);
        runtime.expect(&unit, || true);
        if launch.order.settings.process_group {
            // Before it begins, for what it starts may be there when it is gone itself.
            zygote.entrust(&unit);
        }
        match tell(launch, zygote, &unit, &there) {
            Ok(()) => {
                unit.on_taken();
                // It may have been replaced meanwhile, and the next not have been told of this one.
                if let (false, Some(next)) = (zygote.is_alive(), runtime.zygotes.current()) {
                    next.entrust(&unit);
                }
                return Ok(Some(unit));
            }
            // It has died while it was parked, and will be reaped. The next, please.
            Err(Untold::Refused(_, error)) if is_gone(&error) => {}
            Err(Untold::Failed(step, error)) => {
                unit.give_up();
                return Err((step.into(), error));
            }
            // The zygote launcher will say the same, and see to it.
            Err(Untold::Refused(..)) => {
                unit.give_up();
                return Ok(None);
            }
        }
    }
}

enum Asked {
    Unit(Arc<Unit>),
    Refused(String, io::Error),
    Gone,
}

fn ask(launch: &Launch<'_>, zygote: &Arc<Zygote>, deadline: Option<Instant>) -> Result<Asked, Failure> {
    let runtime = &launch.starting.runtime;
    let (ours, theirs) = sysio::line().map_err(|error| ("socketpair".to_owned(), error))?;
    let unit = Unit::asked_for(launch, ours);
    // From here on it is the reaper that says what becomes of it.
    if !runtime.expect(&unit, || zygote.is_alive()) {
        runtime.zygotes.wait_for_end(zygote, deadline);
        return Ok(Asked::Gone);
    }
    let wanted = Wanted {
        id: unit.id,
        guard: launch.guard(),
        cgroup: unit.cgroup().cloned(),
        slot: None,
        directory: false,
        entry: launch.entry,
        wish: hook::wish(&launch.order.settings.environment),
    };
    hook::step_on(zygote.line().as_fd(), "asked");
    let asked = Instant::now();
    let sent = zygote.child(&wanted, &theirs, deadline);
    drop(theirs);
    let environment = match sent {
        Ok(environment) => environment,
        // Not asked, so not made. If the zygote is dead, the reaper is to find that out before the next is asked for.
        Err(error) => {
            runtime.strike(&unit);
            if !is_gone(&error) {
                return Ok(Asked::Refused("asking the zygote".into(), error));
            }
            runtime.zygotes.wait_for_end(zygote, deadline);
            return Ok(Asked::Gone);
        }
    };
    // While it is being made: what it is to run, and in what surroundings.
    match tell(launch, zygote, &unit, &There { place: None, environment }) {
        Ok(()) => {}
        // Nobody has its end of the line any more: the reaper will say why.
        Err(Untold::Refused(_, error)) if is_gone(&error) => {}
        // It has nothing to do, and must not be.
        Err(Untold::Failed(step, error)) => {
            unit.give_up();
            return Err((step.into(), error));
        }
        Err(Untold::Refused(step, error)) => {
            unit.give_up();
            return Ok(Asked::Refused(step.into(), error));
        }
    }
    loop {
        let patience = Instant::now().checked_add(super::zygote::PATIENCE);
        match unit.wait_born([deadline, patience].into_iter().flatten().min()) {
            Some(Birth::Born) => return Ok(Asked::Unit(unit)),
            Some(Birth::Gone) => return Ok(Asked::Gone),
            Some(Birth::Refused(step, error)) => return Ok(Asked::Refused(step, error)),
            // It may have run, and so it must not run again.
            Some(Birth::Lost(step, error)) => return Err((step.into(), error)),
            // What comes of it all the same is killed.
            None if deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                unit.give_up();
                return Err(late());
            }
            None => zygote.replace_if_silent(asked),
        }
    }
}

/// Why a child could not be told what to run.
enum Untold {
    /// It never can.
    Failed(&'static str, io::Error),
    /// Another launcher may do better.
    Refused(&'static str, io::Error),
}

/// Sends the child its unit, and what it is to have otherwise than it has already.
fn tell(launch: &Launch<'_>, zygote: &Zygote, unit: &Arc<Unit>, there: &There) -> Result<(), Untold> {
    let settings = &launch.order.settings;
    let is_there =
        settings.current_dir.is_none() && there.place.is_some() && there.place == sysio::place(None);
    let open = || {
        sysio::directory(settings.current_dir.as_deref()).map_err(|error| {
            // The own directory may be one to stay in but not to go to.
            let untold = if settings.current_dir.is_some() { Untold::Failed } else { Untold::Refused };
            untold("current directory", error)
        })
    };
    let directory = if is_there { None } else { Some(open()?) };
    let environment = launch.environment();
    let block = (environment != there.environment).then(|| environment::block(&environment)).transpose();
    let block = block.map_err(|error| Untold::Failed("environment", error))?;
    if block.is_some() && !settings.environment.changes_any() {
        zygote.on_environment(&environment);
    }
    let streams = streams(launch, zygote);
    let Streams { files, differ } = streams.map_err(|error| Untold::Refused("standard streams", error))?;
    let context = Context {
        directory: directory.is_some(),
        environment: block,
        umask: settings.umask,
        streams: differ,
    };
    let start = launch.start_message(unit, zygote.nonce, Some(context));
    let start = start.map_err(|error| Untold::Failed("its terms", error))?;
    let descriptors: Vec<BorrowedFd<'_>> =
        directory.iter().map(AsFd::as_fd).chain(files.iter().flatten().map(File::as_fd)).collect();
    let told = unit.tell(&start, &launch.order.unit, &descriptors);
    told.map_err(|error| Untold::Refused("sending its context", error))
}

fn late() -> Failure {
    ("the zygote".into(), io::Error::new(io::ErrorKind::TimedOut, "did not make a child in time"))
}

/// A file for a standard stream: this process's own, or one of the launch's.
enum File<'a> {
    Borrowed(BorrowedFd<'a>),
    Null(OwnedFd),
}

impl File<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(file) => *file,
            Self::Null(file) => file.as_fd(),
        }
    }
}

struct Streams<'a> {
    files: [Option<File<'a>>; 3],
    differ: [bool; 3],
}

/// What is to be sent of the streams: those that the builder set, and those that are not what they were when the zygote
/// began.
fn streams<'a>(launch: &'a Launch<'_>, zygote: &Zygote) -> io::Result<Streams<'a>> {
    let mut files = [const { None }; 3];
    for ((number, file), wanted) in (0..).zip(&mut files).zip(&launch.streams) {
        let theirs = &zygote.streams[number as usize];
        *file = match wanted {
            Some(wanted) => Some(File::Borrowed(wanted.as_fd())),
            None if theirs.as_ref().is_some_and(|theirs| sysio::is_stream(number, theirs)) => None,
            None => match (sysio::standard(number), theirs) {
                (Some(own), _) => Some(File::Borrowed(own)),
                // Closed, and so it was: both have /dev/null there.
                (None, None) => None,
                (None, Some(_)) => Some(File::Null(sysio::null()?)),
            },
        };
    }
    let differ = files.each_ref().map(Option::is_some);
    Ok(Streams { files, differ })
}
