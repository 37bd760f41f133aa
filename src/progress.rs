//! How far a unit has got: written by the unit, read by its parent, in memory that both map.
//!
//! There are many places in it, and a number that says which of them counts. A report is written to the next one; then the number
//! is changed. So a report is there as a whole or not at all, also if the unit dies in the middle of one; and whoever reads one has
//! the time in which a unit that does nothing else writes to all others. The parent believes nothing of it:
//! whatever stands there is a number or text.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, fence};

use crate::sys::io::OwnedFd;
use crate::sys::memory::Words;

/// The latest that a unit has reported: see [`Offspring::progress`](crate::Offspring::progress).
///
/// ```
/// let unit = offspring::spawn((), |()| {
///     offspring::current().unwrap().progress(3, Some(10), "the third");
/// })?;
/// # let process = unit.process().unwrap().clone();
/// # while process.is_alive() {}
/// let progress = unit.progress().unwrap();
/// assert_eq!((progress.done, progress.total, progress.message.as_str()), (3, Some(10), "the third"));
/// # Ok::<(), offspring::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// How much is done, in whatever the unit counts.
    pub done: u64,
    /// Of how much, if that is known.
    pub total: Option<u64>,
    /// What it says; a thousand bytes at most.
    pub message: String,
}

/// How many bytes are mapped.
pub(crate) const BYTES: usize = 64 << 10;
/// Where the number is that says which place counts. It has the room of a place.
const TURN: usize = 0;
/// The words of a place.
const PLACE: usize = 256;
const PLACES: u32 = (BYTES / (4 * PLACE) - 1) as u32;
/// Turns are counted from 1 to this and again, so that the places are always taken one after the other. 0 is for none.
const TURNS: u32 = u32::MAX / PLACES * PLACES;
/// In a place: the numbers, each in two words; whether there is a total; how many bytes the message has; these.
const DONE: usize = 0;
const TOTAL: usize = 2;
const HAS_TOTAL: usize = 4;
const LENGTH: usize = 5;
const MESSAGE: usize = 6;
/// How many bytes of a message are kept.
const MOST: usize = 1000;

const _: () = assert!(MESSAGE + MOST / 4 <= PLACE);

/// One process's view of that memory.
#[derive(Debug)]
pub(crate) struct Board(Words);

impl Board {
    pub(crate) fn of(memory: &OwnedFd) -> std::io::Result<Self> {
        Words::of(memory, BYTES).map(Self)
    }

    /// For the unit, one report after the other.
    pub(crate) fn write(&self, done: u64, total: Option<u64>, message: &str) {
        let turn = self.0[TURN].load(Relaxed) % TURNS + 1;
        let place = place(&self.0, turn);
        // Whoever sees some of what follows sees that the turn before is there.
        fence(Release);
        let put = |at: usize, number: u64| {
            place[at].store(number as u32, Relaxed);
            place[at + 1].store((number >> 32) as u32, Relaxed);
        };
        put(DONE, done);
        put(TOTAL, total.unwrap_or_default());
        place[HAS_TOTAL].store(u32::from(total.is_some()), Relaxed);
        let message = &message.as_bytes()[..message.floor_char_boundary(MOST)];
        place[LENGTH].store(message.len() as u32, Relaxed);
        for (word, bytes) in place[MESSAGE..].iter().zip(message.chunks(4)) {
            let mut four = [0; 4];
            four[..bytes.len()].copy_from_slice(bytes);
            word.store(u32::from_le_bytes(four), Relaxed);
        }
        self.0[TURN].store(turn, Release);
    }

    /// For the parent: the latest, if there is one.
    pub(crate) fn read(&self) -> Option<Progress> {
        // It may be overwritten while it is read, if this thread is kept from it. That is not gone on with for ever.
        const TRIES: usize = 100;
        let mut latest = None;
        for _ in 0..TRIES {
            let turn = self.0[TURN].load(Acquire);
            if turn == 0 {
                return None;
            }
            latest = Some(parse(place(&self.0, turn)));
            fence(Acquire);
            let since = u64::from(self.0[TURN].load(Relaxed)) + u64::from(TURNS) - u64::from(turn.min(TURNS));
            if since % u64::from(TURNS) < u64::from(PLACES) - 1 {
                break;
            }
        }
        latest
    }
}

fn place(words: &Words, turn: u32) -> &[AtomicU32] {
    &words[(turn % PLACES + 1) as usize * PLACE..][..PLACE]
}

fn parse(place: &[AtomicU32]) -> Progress {
    let word = |at: usize| place[at].load(Relaxed);
    let number = |at: usize| u64::from(word(at)) | u64::from(word(at + 1)) << 32;
    let length = (word(LENGTH) as usize).min(MOST);
    let bytes: Vec<u8> = place[MESSAGE..]
        .iter()
        .take(length.div_ceil(4))
        .flat_map(|word| word.load(Relaxed).to_le_bytes())
        .take(length)
        .collect();
    Progress {
        done: number(DONE),
        total: (word(HAS_TOTAL) != 0).then(|| number(TOTAL)),
        message: String::from_utf8_lossy(&bytes).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_more_reports_than_turns() {
        let (unit, parent) = boards();
        unit.0[TURN].store(TURNS - 2, Relaxed);
        let mut places = Vec::new();
        for n in 0..4 {
            unit.write(n, None, "");
            assert_eq!(parent.read().unwrap().done, n);
            places.push(unit.0[TURN].load(Relaxed) % PLACES);
        }
        assert_eq!(places, [PLACES - 1, 0, 1, 2]);
        // Whatever stands there is some place.
        unit.0[TURN].store(u32::MAX, Relaxed);
        assert!(parent.read().is_some());
        unit.write(7, None, "");
        assert_eq!(parent.read().unwrap().done, 7);
    }

    fn boards() -> (Board, Board) {
        let memory = crate::sys::memory::shared(BYTES as u64).unwrap();
        (Board::of(&memory).unwrap(), Board::of(&memory).unwrap())
    }

    #[test]
    fn the_latest_is_read_as_it_was_written() {
        let (unit, parent) = boards();
        assert_eq!(parent.read(), None);
        for (done, total, message) in
            [(0, None, ""), (u64::MAX, Some(u64::MAX - 1), "ünï"), (1 << 40, Some(0), "x")]
        {
            unit.write(done, total, message);
            assert_eq!(parent.read(), Some(Progress { done, total, message: message.into() }));
        }
        unit.write(1, None, &"ü".repeat(5000));
        assert_eq!(parent.read().unwrap().message, "ü".repeat(500));
    }

    #[test]
    fn what_stands_there_may_be_anything() {
        let (unit, parent) = boards();
        unit.0.iter().for_each(|word| word.store(u32::MAX, Relaxed));
        let progress = parent.read().unwrap();
        assert_eq!((progress.done, progress.total), (u64::MAX, Some(u64::MAX)));
        assert_eq!(progress.message.chars().count(), 1000);
    }

    #[test]
    fn a_report_is_whole_while_others_are_written() {
        let (unit, parent) = boards();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 0..20_000 {
                    unit.write(n, Some(n), &n.to_string());
                }
            });
            while !writer.is_finished() {
                if let Some(Progress { done, total, message }) = parent.read() {
                    assert_eq!((total, message), (Some(done), done.to_string()));
                }
            }
        });
    }
}
