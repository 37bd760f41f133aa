//! A child that says what it likes on its line, with what descriptors it likes: its parent gives an error of the right kind, or the
//! result that came before, at once; the child is gone, nothing is left, and the next start works.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use harness::words::{
    ALL, ELSEWHERE, NOTE, READY, Random, Thing, VALUE, frame, header, open, own_socket, send,
};
use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Then {
    Exit,
    Sleep,
    Return,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
enum Act {
    Say(Vec<u8>, Vec<Thing>),
    HangUp,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
struct Rude(Vec<Act>, Then);

impl Subprocess for Rude {
    type Output = String;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) -> String {
        let line = own_socket(libc::SOCK_STREAM).unwrap();
        for act in self.0 {
            match act {
                Act::Say(words, things) => say(line, &words, &things),
                // SAFETY: the library's end of the line, which is what is tried.
                Act::HangUp => drop(unsafe { libc::close(line) }),
            }
        }
        match self.1 {
            // SAFETY: _exit(2) has no conditions.
            Then::Exit => unsafe { libc::_exit(0) },
            Then::Sleep => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            Then::Return => "own".to_owned(),
        }
    }
}

/// Says it all in one piece, with descriptors of these things. It may not be heard.
fn say(line: RawFd, words: &[u8], things: &[Thing]) {
    let files: Vec<OwnedFd> = things.iter().map(|thing| open(thing, line)).collect();
    let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    send(line, words, &numbers);
    for (thing, file) in things.iter().zip(&files) {
        if let Thing::Memory(_, _, true) = thing {
            // SAFETY: our own descriptor. It fails where it has been sealed against it.
            unsafe { libc::ftruncate(file.as_raw_fd(), 0) };
        }
    }
}

fn four() -> Vec<u8> {
    frame(VALUE, b"\xa4four")
}

fn words(words: Vec<u8>) -> Vec<Act> {
    vec![Act::Say(words, vec![])]
}

/// What comes of it, and that the child is gone then.
fn result(unit: Rude) -> Result<String, Error> {
    result_within(Duration::from_secs(30), unit)
}

fn result_within(time: Duration, unit: Rude) -> Result<String, Error> {
    let began = Instant::now();
    let what = format!("{unit:?}");
    let builder = Offspring::builder(unit).stderr(Stdio::null()).timeout(time);
    let unit = builder.spawn().unwrap();
    let process = unit.process().unwrap().clone();
    let result = unit.wait();
    assert!(!process.is_alive() && !harness::is_alive(process.id()));
    assert!(began.elapsed() < Duration::from_secs(12), "{:?} for {what}", began.elapsed());
    result
}

/// The mappings of this process that another may have as well, or that are of a file in memory.
fn shared() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let is_shared = |line: &&str| line.split(' ').nth(1).is_some_and(|access| access.ends_with('s'));
    maps.lines().filter(|line| is_shared(line) || line.contains("memfd")).map(str::to_owned).collect()
}

/// It says this, and nothing more: its time will be over.
fn is_late(acts: Vec<Act>) {
    let error = result_within(Duration::from_millis(200), Rude(acts, Then::Sleep)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

fn works() {
    assert_eq!(spawn(3, |n: u32| n + 1).unwrap().wait().unwrap(), 4);
}

/// It is an error of that kind and with that word in it, whatever the child does then.
fn is_refused(acts: &[Act], kind: ErrorKind, word: &str) {
    for then in [Then::Exit, Then::Sleep, Then::Return] {
        let error = result(Rude(acts.to_vec(), then)).unwrap_err();
        assert_eq!(error.kind(), kind, "{acts:?} {then:?}: {error}");
        assert!(error.to_string().contains(word), "{acts:?} {then:?}: {error}");
        works();
    }
}

/// It is no error: that is the result, whatever the child does then.
fn is_result(acts: &[Act], text: &str) {
    for then in [Then::Exit, Then::Sleep, Then::Return] {
        assert_eq!(result(Rude(acts.to_vec(), then)).unwrap(), text, "{acts:?} {then:?}");
        works();
    }
}

behaviour! {
    fn what_is_no_frame_kills_the_child() {
        let mut magic = four();
        magic[3] ^= 1;
        for (said, word) in [
            (b"hello, this is no frame".to_vec(), "something else than messages"),
            (magic, "something else than messages"),
            (vec![0; 16], "something else than messages"),
            (header(VALUE, 1 << 63), "claims to be"),
            (header(VALUE | ELSEWHERE, u64::MAX), "claims to be"),
            (header(NOTE, (16 << 20) + 1), "claims to be"),
            (header(0, 0), "unknown kind"),
            (header(4, 0), "unknown kind"),
            (header(22, 0), "unknown kind"),
            (header(u32::MAX, 0), "unknown kind"),
            (frame(1, b"\xc0"), "only parents send"),
            (frame(2, b"\xc0"), "only parents send"),
            (frame(3, b""), "only parents send"),
            (frame(NOTE, b"\xc1\xc1"), "cannot be read"),
            (frame(19, b"\xc1\xc1"), "cannot be read"),
            (frame(20, b""), "cannot be read"),
            (frame(21, b"\x00"), "cannot be read"),
            ([frame(READY, b""), b"and then rubbish".to_vec()].concat(), "something else than messages"),
        ] {
            is_refused(&words(said), ErrorKind::Died, word);
        }
    }

    fn a_value_that_is_none_is_an_error_of_decoding() {
        for body in [&b""[..], b"\xa4fou", b"\xa4four\0", b"\xc1", b"\x07", b"\xdb\xff\xff\xff\xff", b"\xa4\xff\xff\xff\xff"] {
            is_refused(&words(frame(VALUE, body)), ErrorKind::Decode, "result");
        }
    }

    fn the_first_last_word_counts() {
        is_result(&words(four()), "four");
        is_result(&words([four(), frame(VALUE, b"\xa4five")].concat()), "four");
        is_result(&words([four(), b"hello, this is no frame".to_vec()].concat()), "four");
        is_result(&[Act::Say(four(), vec![]), Act::HangUp], "four");
        // A byte at a time.
        let bytes: Vec<Act> = four().into_iter().map(|byte| Act::Say(vec![byte], vec![])).collect();
        is_result(&bytes, "four");
    }

    fn half_a_frame_is_no_result() {
        for keep in [1, 15, 16, 20] {
            let half = words(four()[..keep].to_vec());
            assert_eq!(result(Rude(half.clone(), Then::Exit)).unwrap_err().kind(), ErrorKind::Died);
            // The rest is still to come.
            is_late(half);
        }
        // It claims more than there will ever be, and takes as little memory as it says.
        let half = words([header(VALUE, 1 << 62), vec![0; 1000]].concat());
        assert_eq!(result(Rude(half, Then::Exit)).unwrap_err().kind(), ErrorKind::Died);
        works();
    }

    fn one_that_hangs_up_has_no_result() {
        assert_eq!(result(Rude(vec![Act::HangUp], Then::Exit)).unwrap_err().kind(), ErrorKind::Died);
        assert_eq!(result(Rude(vec![Act::HangUp], Then::Return)).unwrap_err().kind(), ErrorKind::Died);
        is_late(vec![Act::HangUp]);
        works();
    }

    fn memory_that_does_not_hold_what_it_claims_is_an_error() {
        let good = || b"\xa4four".to_vec();
        let elsewhere = |length, thing| vec![Act::Say(header(VALUE | ELSEWHERE, length), vec![thing])];
        for lie in [
            elsewhere(5, Thing::Memory(good(), 0, false)),
            elsewhere(5, Thing::Memory(good(), libc::F_SEAL_WRITE, false)),
            // It is shorter by the time that it is looked at, or a moment later.
            elsewhere(5, Thing::Memory(good(), libc::F_SEAL_GROW | libc::F_SEAL_WRITE, true)),
            elsewhere(5, Thing::Memory(good(), 0, true)),
            elsewhere(5, Thing::Writable),
            elsewhere(4, Thing::Memory(good(), ALL, false)),
            elsewhere(6, Thing::Memory(good(), ALL, false)),
            elsewhere(4096, Thing::Memory(good(), ALL, false)),
            elsewhere(1 << 62, Thing::Memory(good(), ALL, false)),
            elsewhere(0, Thing::Memory(vec![], ALL, false)),
            elsewhere(5, Thing::Pipe),
            elsewhere(5, Thing::Directory),
            elsewhere(5, Thing::Zero),
            elsewhere(5, Thing::Process),
            elsewhere(5, Thing::Line),
        ] {
            is_refused(&lie, ErrorKind::Died, "a message in memory");
        }
        let garbage = elsewhere(5, Thing::Memory(vec![0xc1; 5], ALL, false));
        is_refused(&garbage, ErrorKind::Decode, "result");
        is_refused(&words(header(VALUE | ELSEWHERE, 5)), ErrorKind::Decode, "descriptor was lost");
        // Sealed, it stays as it is, whatever its maker tries.
        is_result(&elsewhere(5, Thing::Memory(good(), ALL, true)), "four");
    }

    fn descriptors_that_nobody_asked_for_are_thrown_away() {
        for count in [1, 7, 200] {
            let many = vec![Thing::Pipe; count];
            is_result(&[Act::Say(four(), many.clone())], "four");
            let all: Vec<Act> = (0..20).map(|_| Act::Say(frame(READY, b""), many.clone())).collect();
            is_result(&[all, words(four())].concat(), "four");
        }
        let own = [Thing::Line, Thing::Process, Thing::Directory];
        is_result(&[Act::Say(four(), own.to_vec())], "four");
    }

    fn one_that_never_stops_talking_keeps_nobody_else_waiting() {
        let chatter = spawn((), |()| -> () {
            let all = frame(READY, b"").repeat(1000);
            loop {
                send(3, &all, &[]);
            }
        });
        let chatter = chatter.unwrap();
        let began = Instant::now();
        (0..20).for_each(|_| works());
        assert!(began.elapsed() < Duration::from_secs(20));
        chatter.process().unwrap().kill().unwrap();
        assert_eq!(chatter.wait().unwrap_err().kind(), ErrorKind::Died);
    }

    fn a_child_shares_no_memory_with_anybody() {
        // It is there in this process: the ledger, which the zygote has as well.
        works();
        assert_eq!(!shared().is_empty(), harness::zygote().is_some());
        let unit = spawn((), |()| shared());
        assert_eq!(unit.unwrap().wait().unwrap(), Vec::<String>::new());
    }

    fn whatever_it_says_there_is_an_answer() {
        let mut random = Random::new();
        for round in 0..150 {
            let unit = any_rude(&mut random);
            let what = format!("round {round} of seed {}: {unit:?}", random.seed);
            // Any value, any error, but that of a start that never was.
            if let Err(error) = result(unit) {
                assert_ne!(error.kind(), ErrorKind::NotStarted, "{what}");
                assert!(error.to_string().starts_with("unit "), "{what}: {error}");
            }
            if round % 10 == 0 {
                works();
            }
        }
    }
}

fn any_thing(random: &mut Random) -> Thing {
    match random.below(8) {
        0 => Thing::Pipe,
        1 => Thing::Directory,
        2 => Thing::Zero,
        3 => Thing::Process,
        4 => Thing::Line,
        5 => Thing::Writable,
        _ => Thing::Memory(b"\xa4four".to_vec(), (random.below(8) as i32 * 2) & ALL, random.below(2) == 0),
    }
}

/// A few frames, most of them damaged, some with descriptors.
fn any_rude(random: &mut Random) -> Rude {
    let mut acts = Vec::new();
    for _ in 0..=random.below(6) {
        let kind = [1, 3, READY, NOTE, VALUE, VALUE, 19, 20, random.next() as u32][random.below(9) as usize];
        let body = if random.below(2) == 0 { b"\xa4four".to_vec() } else { random.bytes(40) };
        let mut words = match random.below(4) {
            0 => header(kind | ELSEWHERE, [0, 4, 5, random.next()][random.below(4) as usize]),
            1 => [header(kind, random.below(60)), body].concat(),
            _ => frame(kind, &body),
        };
        if random.below(3) == 0 {
            let at = random.below(words.len() as u64) as usize;
            words[at] ^= 1 << random.below(8);
        }
        if random.below(4) == 0 {
            words.truncate(random.below(words.len() as u64) as usize);
        }
        let things = (0..random.below(9).saturating_sub(5)).map(|_| any_thing(random)).collect();
        acts.push(if random.below(20) == 0 { Act::HangUp } else { Act::Say(words, things) });
    }
    Rude(acts, if random.below(3) == 0 { Then::Return } else { Then::Exit })
}
