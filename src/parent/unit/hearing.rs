//! What parent and child say to each other on the line.

use std::io;
use std::sync::Arc;

use super::Unit;
use crate::fd::Arrived;
use crate::log::News;
use crate::parent::exec::is_gone;
use crate::parent::line::{Line, Piece};
use crate::parent::reaper;
use crate::parent::table::Outcome;
use crate::parent::unit::lock;
use crate::progress::{Board, Progress};
use crate::sys::io::{AsFd, BorrowedFd};
use crate::wire::codec::{self, Encoded};
use crate::wire::crossing::{self, Packed};
use crate::wire::frame::{self, Frame, Kind};
use crate::wire::message::{Failed, Step};
use crate::wire::parcel::{Bytes, Parcel, Unpacked};

impl Unit {
    /// Sends what fits of what the child is to be told; what is left, the reaper will send.
    pub(crate) fn tell(
        &self,
        start: &Encoded,
        unit: &Packed,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut line = lock(&self.line);
        line.hook("launched");
        let kinds = [Kind::Start, Kind::Unit];
        let mut send = |messages: [Parcel<'_>; 2]| {
            let [start, unit] = &messages;
            let go = frame::header(Kind::Go, 0);
            let parts = [&start.header[..], &start.body, &unit.header, &unit.body, &go];
            let own = messages.iter().flat_map(Parcel::descriptors);
            let all: Vec<BorrowedFd<'_>> = own.chain(descriptors.iter().copied()).collect();
            (line.tell(&parts, &all), messages.iter().any(Parcel::is_elsewhere))
        };
        let bag = unit.bag.as_ref().map(AsFd::as_fd);
        let unit = &unit.body;
        let is_all = match send([Parcel::pack(kinds[0], start, None), Parcel::pack(kinds[1], unit, bag)]) {
            // Too many descriptors are on their way (ETOOMANYREFS), say. Of that message nothing has been sent.
            (Err(error), true) if !is_gone(&error) => {
                send([Parcel::plain(kinds[0], start, None)?, Parcel::plain(kinds[1], unit, bag)?]).0?
            }
            (sent, _) => sent?,
        };
        line.hook("told");
        // Else it will be when it is born.
        match () {
            () if !self.is_born() => {}
            () if !is_all => self.listen(&mut line)?,
            // It may run by now, so this is no failure any more; it is tried again.
            () if self.awaited => drop(self.listen(&mut line)),
            () => {}
        }
        Ok(())
    }

    /// From now on the reaper hears what it says, and sends what is left to be sent.
    pub(super) fn listen(&self, line: &mut Line) -> io::Result<()> {
        let Some(runtime) = self.runtime.upgrade() else { return Ok(()) };
        line.watch(&runtime.poller, reaper::token(self.id, reaper::LINE))
    }

    /// A unit that nobody waits for does not say that it is about to run.
    pub(super) fn look_whether_begun(self: &Arc<Self>) {
        if lock(&self.line).has_begun() {
            self.change(|life, _| {
                life.on_ready();
                None
            });
        }
    }

    /// The latest that it has reported of how far it has got.
    pub(crate) fn progress(self: &Arc<Self>) -> Option<Progress> {
        if lock(&self.state).board.is_none() {
            // It may have told where to look.
            self.on_line(&mut [0; 8 << 10]);
        }
        lock(&self.state).board.as_ref()?.read()
    }

    /// The line is ready: sends what is left to be sent, hears what there is to hear.
    pub(crate) fn on_line(self: &Arc<Self>, buffer: &mut [u8]) {
        let mut line = lock(&self.line);
        line.send_left();
        // Bounded, so that a chatterer does not keep the reaper from the others.
        self.hear(&mut line, 16, buffer);
        if line.is_watched() {
            let _ = self.listen(&mut line);
        }
        drop(line);
        self.log.tell();
    }

    /// Hears what is there, in at most so many pieces; whether there may be more.
    pub(super) fn hear(self: &Arc<Self>, line: &mut Line, pieces: usize, buffer: &mut [u8]) -> bool {
        for _ in 0..pieces {
            let count = match line.receive(buffer) {
                Piece::Nothing => return false,
                Piece::Some(count) => count,
                Piece::End => {
                    self.close(line);
                    return false;
                }
            };
            let mut input = &buffer[..count];
            while !input.is_empty() {
                match line.decoder.next(&mut input) {
                    Ok(Some(frame @ Frame { kind, .. })) => match frame.unpack(&mut line.descriptors) {
                        Ok(body) => self.on_frame(kind, body),
                        Err(Unpacked::Bad(error)) => {
                            self.change(|life, now| life.on_breach(format!("a message in {error}"), now));
                        }
                        // What it said before its end, and can do without.
                        Err(_) if matches!(kind, Kind::Note | Kind::Board) => {}
                        Err(error) => {
                            let failed = Failed { step: Step::Receive, why: error.to_string() };
                            self.outcome(Outcome::Failed(failed));
                        }
                    },
                    Ok(None) => {}
                    Err(breach) => {
                        self.change(|life, now| life.on_breach(breach.to_string(), now));
                        self.close(line);
                        return false;
                    }
                }
            }
            // Less than there is room for was all there was, most likely.
            if count < buffer.len() {
                return true;
            }
        }
        true
    }

    pub(super) fn close(&self, line: &mut Line) {
        line.close(self.runtime.upgrade().as_ref().map(|runtime| &runtime.poller));
    }

    fn on_frame(self: &Arc<Self>, kind: Kind, body: Bytes) {
        let garbled = || Some("a message that cannot be read".to_owned());
        let breach = match kind {
            Kind::Ready => {
                self.log.note(News::Ready);
                self.change(|life, _| {
                    life.on_ready();
                    None
                });
                self.tell_sleepers();
                None
            }
            Kind::Value => self.outcome(Outcome::Value(body)),
            Kind::Note => match codec::decode(&body) {
                Ok(panic) => {
                    self.change(|life, _| {
                        life.on_note(panic);
                        None
                    });
                    None
                }
                Err(_) => garbled(),
            },
            Kind::Board if body.bag.is_none() => garbled(),
            Kind::Board => {
                let mut body = body;
                let bag = body.bag.take();
                // If there is no room for it, nothing is told of how far it has got.
                let memory = crossing::unpack(&body, bag).ok();
                if let Some(board) = memory.and_then(|Arrived(memory)| Board::of(&memory).ok()) {
                    lock(&self.state).board.get_or_insert(board);
                }
                None
            }
            Kind::Panicked => {
                codec::decode(&body).map_or_else(|_| garbled(), |p| self.outcome(Outcome::Panicked(p)))
            }
            Kind::Failed => {
                codec::decode(&body).map_or_else(|_| garbled(), |f| self.outcome(Outcome::Failed(f)))
            }
            Kind::Start | Kind::Unit | Kind::Go => Some("a message that only parents send".to_owned()),
        };
        if let Some(breach) = breach {
            self.change(|life, now| life.on_breach(breach, now));
        }
    }

    fn outcome(self: &Arc<Self>, outcome: Outcome) -> Option<String> {
        let what = match &outcome {
            Outcome::Value(_) => "value",
            Outcome::Panicked(_) => "panic",
            Outcome::Failed(_) => "failure",
        };
        // The first last word counts.
        if !lock(&self.state).life.has_outcome() {
            self.log.note(News::Result { what });
        }
        self.change(|life, now| {
            life.on_outcome(outcome, now);
            None
        });
        self.tell_sleepers();
        None
    }
}
