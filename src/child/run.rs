//! One unit: decode, run, encode, deliver. And the line on which the child speaks.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::panic;
use crate::fd::Leaving;
use crate::hook::step;
use crate::subprocess::Subprocess;
use crate::sys;
use crate::sys::image::Entry;
use crate::sys::io::{AsFd, BorrowedFd, OwnedFd};
use crate::wire::codec::{self, Encoded};
use crate::wire::crossing::{self, Packed};
use crate::wire::frame::{HEADER, Kind};
use crate::wire::message::{Failed, Panicked, Step};
use crate::wire::parcel::{Bytes, Parcel};

/// What a running unit needs from the process around it.
pub(crate) trait Host {
    /// The unit's own code is about to be called for the first time: lets signals through, a loop's to its handlers.
    fn open(&mut self, is_loop: bool);
    /// The unit is about to run.
    fn ready(&mut self);
    fn value(&mut self, value: Packed);
    fn panicked(&mut self, panic: Panicked);
    fn failed(&mut self, step: Step, why: String);
}

/// The entry of a unit's type: what a parent names, and a child runs.
pub(crate) const fn entry<T: Subprocess>() -> &'static Entry {
    const { &Entry::new(std::any::type_name::<T>, run::<T>) }
}

fn run<T: Subprocess>(mut bytes: Bytes, host: &mut dyn Host) {
    host.open(T::LOOPS);
    let bag = bytes.bag.take();
    let unit = match panic::caught(|| crossing::unpack::<T>(&bytes, bag)) {
        Ok(Ok(unit)) => unit,
        Ok(Err(error)) => return host.failed(Step::Decode, error.to_string()),
        Err(panic) => return host.panicked(panic),
    };
    drop(bytes);
    step("child", "decoded");
    host.ready();
    step("child", "ready");
    let output = match panic::caught(|| unit.run()) {
        Ok(output) => output,
        Err(panic) => return host.panicked(panic),
    };
    step("child", "ran");
    match panic::caught(|| crossing::pack(&output)) {
        Ok(Ok(value)) => host.value(value),
        Ok(Err(error)) => host.failed(Step::Encode, error.to_string()),
        Err(panic) => host.panicked(panic),
    }
    // The result is home: what its destructor does from here on, it does to this process alone.
    let _ = panic::caught(|| drop(output));
}

/// The child's end of the line.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) fd: Arc<OwnedFd>,
    /// Held while a frame is sent, for panics are told by any thread; true once the last word has begun.
    last: Arc<Mutex<bool>>,
    /// The process that may speak here. A copy that the unit forks never does.
    pub(super) owner: u32,
    /// Whether the parent waits until the unit is about to run.
    pub(crate) awaited: bool,
    /// What the process exits with.
    code: i32,
}

/// What a Rust program exits with whose `main` has panicked.
const PANICKED: i32 = 101;
/// Or has returned an error.
const FAILED: i32 = 1;

impl Line {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), last: Arc::default(), owner: std::process::id(), awaited: false, code: 0 }
    }

    fn is_mine(&self) -> bool {
        self.owner == std::process::id()
    }

    /// The line may have had its last word, or be another process's: then nothing is sent.
    fn send(&self, kind: Kind, body: &Encoded, bag: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if self.is_mine() {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if *last {
                return Ok(());
            }
            *last = kind.is_last();
            // It fails if the parent is gone; then the guard sees to us.
            let send = |parcel: &Parcel<'_>| {
                let descriptors: Vec<BorrowedFd<'_>> = parcel.descriptors().collect();
                sys::io::send_all_with(&*self.fd, [&parcel.header, &parcel.body], &descriptors)
            };
            let parcel = Parcel::pack(kind, body, bag);
            let mut sent = send(&parcel);
            // Too many descriptors are on their way (ETOOMANYREFS), say. Of that message nothing has been sent.
            if sent.is_err() && parcel.is_elsewhere() {
                sent = Parcel::plain(kind, body, bag).and_then(|parcel| send(&parcel));
            }
            if let (Err(error), Some(_), true) = (&sent, bag, *last) {
                let why = format!("its descriptors cannot be sent: {error}");
                let body = codec::encode(&Failed { step: Step::Encode, why }).unwrap_or_default().into();
                let _ = send(&Parcel::pack(Kind::Failed, &body, None));
            }
            return sent.map(drop);
        }
        Ok(())
    }

    fn send_message(&self, kind: Kind, message: &impl Serialize) {
        if let Ok(body) = codec::encode(message) {
            let _ = self.send(kind, &body.into(), None);
        }
    }

    /// Tells that a panic has begun. Whether it is the end, nobody knows yet; if the process aborts, this is why.
    pub(crate) fn note(&self, panic: &Panicked) {
        self.send_message(Kind::Note, panic);
    }

    /// Tells the parent where the unit reports how far it has got.
    pub(crate) fn board(&self, memory: &OwnedFd) -> io::Result<()> {
        let Packed { body, bag } = crossing::pack(&Leaving(memory.as_fd())).map_err(io::Error::other)?;
        self.send(Kind::Board, &body, bag.as_ref().map(AsFd::as_fd))
    }

    /// The end of the process: exit handlers, streams, libc's exit. A forked copy ends without any of it.
    pub(crate) fn end(self) -> ! {
        if !self.is_mine() {
            sys::lifecycle::flush_streams();
            sys::lifecycle::exit_now(0);
        }
        step("child", "end");
        sys::lifecycle::exit(self.code)
    }

    fn finish(&self, kind: Kind, body: &Encoded, bag: Option<BorrowedFd<'_>>) {
        // Streams are flushed by the exit that follows. Not here: a thread of the unit may hold one for ever.
        step("child", "result");
        let _ = self.send(kind, body, bag);
        step("child", "sent");
    }
}

impl Host for Line {
    fn open(&mut self, is_loop: bool) {
        if is_loop {
            sys::signals::install_stop();
        }
        sys::signals::unblock_all();
    }

    fn ready(&mut self) {
        // What tells a parent that does not wait: it has only to be there, or not, when the parent looks.
        let mut go = [0; HEADER];
        let mut left = &mut go[..];
        while !left.is_empty() {
            match sys::io::receive(&*self.fd, left) {
                Ok(count) if count > 0 => left = &mut left[count..],
                // The parent has gone; the guard sees to us.
                _ => break,
            }
        }
        step("child", "go");
        if self.awaited {
            let _ = self.send(Kind::Ready, &Vec::new().into(), None);
        }
    }

    fn value(&mut self, value: Packed) {
        self.finish(Kind::Value, &value.body, value.bag.as_ref().map(AsFd::as_fd));
    }

    fn panicked(&mut self, panic: Panicked) {
        self.code = PANICKED;
        let body = codec::encode(&panic).unwrap_or_default();
        self.finish(Kind::Panicked, &body.into(), None);
    }

    fn failed(&mut self, step: Step, why: String) {
        self.code = FAILED;
        let body = codec::encode(&Failed { step, why }).unwrap_or_default();
        self.finish(Kind::Failed, &body.into(), None);
    }
}
