//! The child process: from its line to its end. Every line in this folder runs there, and never in the parent.

pub(crate) mod panic;
pub(crate) mod run;
pub(crate) mod tick;

use std::collections::VecDeque;
use std::io;

use crate::hook::step;
use crate::limits::Limits;
use crate::sys;
use crate::sys::image::{Entry, Exit};
use crate::sys::io::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::signals::Forgetting;
use crate::wire::codec;
use crate::wire::frame::{Body, Decoder, Frame, HEADER, Kind, encode};
use crate::wire::message::{Context, Guard, Start, Step};
use crate::wire::parcel::Bytes;
use crate::zygote::boot::Claim;
use run::{Host, Line};

/// Does what Rust's runtime would have done before `main` (open streams, SIGPIPE, the overflow handler), and installs the
/// guard's handler and the panic hook. Once for all in a zygote, for its children inherit it.
pub(crate) fn prepare(claim: &Claim) {
    sys::io::open_missing_streams();
    sys::signals::ignore_pipe();
    sys::signals::install_overflow();
    sys::signals::install_guard(claim.parent);
    panic::install();
}

/// A child that was executed: for one unit, with its caller's context.
pub(crate) fn executed(claim: Claim) -> ! {
    step("child", "boot");
    prepare(&claim);
    main(claim, None)
}

/// A child that was cloned: its context comes along its line, at once, or after a while if it is a spare. `parent`: a pidfd.
pub(crate) fn cloned(claim: Claim, parent: OwnedFd, spare: Option<Spare<'_>>) -> ! {
    step("child", "boot");
    let is_spare = spare.is_some();
    // Who gives it a unit is in the middle of its call, and is not to be pushed off the processor by its waking.
    let stepped_back = spare.is_some_and(|spare| {
        let steps_back = spare.steps_back;
        spare.set_up();
        steps_back && sys::lifecycle::step_back()
    });
    let ear = is_spare.then(Forgetting::new).flatten();
    if is_spare {
        step("child", "parked");
    }
    main(claim, Some(Maker { parent, spare: is_spare, stepped_back, ear }))
}

/// What a spare is told by its maker.
pub(crate) struct Spare<'a> {
    /// Where it is to wait, if not where it is.
    pub(crate) directory: Option<OwnedFd>,
    /// What it may have to run.
    pub(crate) entry: u64,
    pub(crate) exit: &'a Exit,
    /// Whether it may be scheduled otherwise while it waits.
    pub(crate) steps_back: bool,
}

impl Spare<'_> {
    fn set_up(self) {
        if self.directory.is_some_and(|directory| sys::lifecycle::go_to(&directory).is_err()) {
            // Our parent takes us to be there.
            sys::lifecycle::exit_now(0);
        }
        sys::lifecycle::set_name("offspring-spare");
        rehearse(self.entry);
        self.exit.rehearse();
    }
}

/// What a child that was cloned has from its maker.
struct Maker {
    /// A pidfd.
    parent: OwnedFd,
    /// It was made before there was a unit for it.
    spare: bool,
    /// It is scheduled otherwise until it has one.
    stepped_back: bool,
    /// Where it hears of signals meanwhile.
    ear: Option<Forgetting>,
}

/// Goes once through what lies between a unit's arrival and its first line, so that the pages which that takes are there
/// when it comes.
fn rehearse(entry: u64) {
    /// Of stack and of heap: what a small unit takes.
    const SOME: usize = 8 << 10;
    std::hint::black_box([1_u8; SOME]);
    std::hint::black_box(vec![1_u8; SOME]);
    let start = Start {
        nonce: 0,
        parent: 0,
        entry: 0,
        type_name: "rehearsal".into(),
        name: "rehearsal".into(),
        guard: Some(Guard { grace: Some(std::time::Duration::from_secs(10)), leads: false }),
        awaited: false,
        group: false,
        cgroup: None,
        limits: None,
        context: Some(Context::default()),
    };
    let sent =
        [encode(Kind::Start, &codec::encode(&start).unwrap_or_default()), encode(Kind::Unit, &[])].concat();
    let (mut decoder, mut input) = (Decoder::default(), &sent[..]);
    while let Ok(Some(frame)) = decoder.next(&mut input) {
        if let Body::Here(body) = frame.body {
            std::hint::black_box(codec::decode::<Start>(&body).is_ok());
        }
    }
    std::hint::black_box((start.name.rsplit("::").next(), std::time::Instant::now()));
    if let Some(entry) = Entry::at(entry) {
        entry.rehearse();
    }
}

/// Receives the unit, sets the process up as `main` would find it, runs the unit, ends.
fn main(claim: Claim, maker: Option<Maker>) -> ! {
    // 1. The line, and on it the terms.
    let mut line = Line::new(sys::io::take_line());
    sys::signals::prepare_guard();
    let Some(Received { start, unit, descriptors }) = receive(&line, &claim, maker.as_ref()) else {
        // The parent has gone, or this is not its line: there is nobody to tell.
        sys::lifecycle::exit_now(0)
    };
    if let Some(Maker { parent, spare, stepped_back, ear }) = maker {
        // A unit has none of them.
        drop((parent, ear));
        if stepped_back {
            sys::lifecycle::step_forward();
        }
        if spare {
            sys::signals::forget_what_came_before(start.parent);
        }
    }
    step("child", "received");
    // 2. What the caller has otherwise than our zygote.
    if let Some(cgroup) = &start.cgroup {
        // If it cannot, it is in none of its own.
        let _ = cgroup.join();
    }
    let group = || sys::group::lead().map_err(|error| ("process group", error));
    let set_up = if start.group { group() } else { Ok(()) };
    let set_up = set_up.and_then(|()| start.context.map_or(Ok(()), |context| enter(context, descriptors)));
    line.awaited = start.awaited;
    // 3. Our names: in `ps`, and in the words of a panic.
    sys::lifecycle::set_name(start.name.rsplit("::").next().unwrap_or(&start.name));
    panic::speak_for(&line, &start.name);
    crate::current::enter(&line, &start.name, start.parent);
    // 4. What happens when the parent dies.
    if let Some(guard) = &start.guard {
        sys::signals::arm_guard(guard.grace, guard.leads);
        if sys::signals::orphaned(start.parent as i32) {
            sys::lifecycle::exit_now(0);
        }
    } else {
        sys::signals::dismiss_guard();
        if sys::signals::given_up() {
            sys::lifecycle::exit_now(0);
        }
    }
    // 5. The unit, and what bounds it. What it does with signals is its own affair from here on; a loop sets its handlers first.
    step("child", "setup");
    if let Err((what, error)) = set_up {
        line.failed(Step::Setup, format!("{what}: {error}"));
        line.end()
    }
    match Entry::at(start.entry).filter(|entry| (entry.name)() == start.type_name) {
        Some(entry) => match start.limits.as_ref().map_or(Ok(()), bound) {
            Ok(()) => (entry.run)(unit, &mut line),
            Err(why) => line.failed(Step::Setup, why),
        },
        None => {
            line.failed(Step::Setup, "the unit's code was not found in the program that was executed".into())
        }
    }
    line.end()
}

/// Sets what bounds the unit; or says which of it could not be set, and why.
fn bound(limits: &Limits) -> Result<(), String> {
    if let Some(by) = limits.nice {
        sys::limit::be_nicer(by).map_err(|error| format!("its niceness ({by:+}): {error}"))?;
    }
    for limit in limits.in_order() {
        sys::limit::set(limit).map_err(|error| format!("its {limit}: {error}"))?;
    }
    Ok(())
}

/// What a parent sends.
struct Received {
    start: Start,
    unit: Bytes,
    descriptors: VecDeque<OwnedFd>,
}

/// The two frames that a parent sends; `None` if the line ends first or speaks another language.
fn receive(line: &Line, claim: &Claim, maker: Option<&Maker>) -> Option<Received> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 2 << 10];
    let mut start: Option<Start> = None;
    let mut descriptors = VecDeque::new();
    loop {
        // Not a byte more than the unit: what stands behind it is not to be taken yet.
        let there = sys::io::queued(&*line.fd).saturating_sub(HEADER);
        let piece = decoder.wanted().max(there).min(buffer.len());
        let received = match sys::io::receive_with(&*line.fd, &mut buffer[..piece]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A copy that the parent forked may hold the line's other end beyond the parent's death: then no end comes.
                match maker {
                    Some(Maker { parent, ear, .. }) => {
                        let sources: Vec<BorrowedFd<'_>> = [line.fd.as_fd(), parent.as_fd()]
                            .into_iter()
                            .chain(ear.iter().map(AsFd::as_fd))
                            .collect();
                        let ready = sys::io::wait_any(&sources, false, None);
                        match (ready[0], ready[1], ear) {
                            (true, ..) => {}
                            (false, true, _) => return None,
                            (false, false, Some(signals)) => signals.forget(),
                            (false, false, None) => {}
                        }
                    }
                    None => {
                        while !sys::io::is_readable(&*line.fd, 1) {
                            if sys::signals::orphaned(claim.parent as i32) {
                                return None;
                            }
                        }
                    }
                }
                continue;
            }
            received => received.ok().filter(|received| received.count > 0)?,
        };
        descriptors.extend(received.descriptors.into_iter().flatten());
        let mut input = &buffer[..received.count];
        // A large unit in large pieces.
        let full = received.count == buffer.len();
        while !input.is_empty() {
            match decoder.next(&mut input).ok()? {
                Some(frame @ Frame { kind: Kind::Start, .. }) => {
                    let body = unpacked(line, frame, &mut descriptors);
                    start = codec::decode(&body).ok().filter(|start: &Start| start.nonce == claim.nonce);
                    start.as_ref()?;
                }
                Some(frame @ Frame { kind: Kind::Unit, .. }) => {
                    let unit = unpacked(line, frame, &mut descriptors);
                    return Some(Received { start: start?, unit, descriptors });
                }
                Some(_) => return None,
                None => {}
            }
        }
        if full && buffer.len() < 256 << 10 {
            buffer = vec![0; 256 << 10];
        }
    }
}

/// A body's bytes; if they cannot be had, the parent is told, and that is the end.
fn unpacked(line: &Line, frame: Frame, descriptors: &mut VecDeque<OwnedFd>) -> Bytes {
    frame.unpack(descriptors).unwrap_or_else(|error| {
        let mut line = line.clone();
        line.failed(Step::Setup, error.to_string());
        line.end()
    })
}

/// Takes over the caller's context: streams, directory, umask, environment.
fn enter(context: Context, mut descriptors: VecDeque<OwnedFd>) -> Result<(), (&'static str, io::Error)> {
    let missing =
        |what| (what, io::Error::other(format!("its descriptor was lost: {}", sys::limit::no_room())));
    let directory = match context.directory {
        true => Some(descriptors.pop_front().ok_or(missing("current directory"))?),
        false => None,
    };
    for stream in (0..3).filter(|stream| context.streams[*stream as usize]) {
        let file = descriptors.pop_front().ok_or(missing("standard streams"))?;
        sys::io::set_standard(stream, &file).map_err(|error| ("standard streams", error))?;
    }
    if let Some(directory) = directory {
        sys::lifecycle::go_to(&directory).map_err(|error| ("current directory", error))?;
    }
    if let Some(mask) = context.umask {
        sys::lifecycle::set_umask(mask);
    }
    if let Some(environment) = context.environment {
        sys::environment::set(environment);
    }
    Ok(())
}
