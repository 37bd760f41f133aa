//! The ways to have something done elsewhere: each starts one, and tells when what happened.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Nanoseconds on a clock that all processes share.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid record.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// When the call returned, the first line ran, the result was there, and all was over (reaped, or joined); 0: does not apply.
pub type Times = [u64; 4];

/// What is called for the result of one under way. It waits for the end as well, or else gives whose end is still to come.
pub type Rest = Box<dyn FnOnce() -> Option<offspring::Process>>;

/// What a way can do. In all of them the result is home when it is said to be.
pub trait Way {
    /// Starts one, and says when what happened.
    fn start(&self) -> Times;
    /// Starts one, and leaves it under way.
    fn begin(&self) -> Rest;
    /// There and back, until it is over; `call`: until it is back.
    fn carry(&self, payload: Payload) -> Payload;
}

/// What is carried.
#[derive(Serialize, Deserialize, Clone, PartialEq)]
pub enum Payload {
    Text(String),
    /// As one piece.
    Bytes(ByteBuf),
    /// Which serde takes for a sequence of numbers.
    Numbers(Vec<u8>),
}

/// The way of that name; all that are not named here are ours.
pub fn way(name: &str) -> Box<dyn Way> {
    match name {
        "thread" => Box::new(Thread),
        "fork" => Box::new(Fork),
        "by hand" => Box::new(ByHand),
        "Command" => Box::new(Executed),
        "procspawn" => Box::new(Procspawn),
        "call" => Box::new(Call),
        _ => Box::new(Unit),
    }
}

struct Thread;

impl Way for Thread {
    fn start(&self) -> Times {
        let thread = std::thread::spawn(now);
        let called = now();
        let first = thread.join().unwrap();
        let end = now();
        [called, first, end, end]
    }

    fn begin(&self) -> Rest {
        let thread = std::thread::spawn(now);
        Box::new(|| {
            thread.join().unwrap();
            None
        })
    }

    fn carry(&self, payload: Payload) -> Payload {
        // A thread shares the memory: what it costs to have a copy is all there is.
        std::thread::spawn(move || payload.clone()).join().unwrap()
    }
}

struct Fork;

impl Fork {
    /// A copy that does `work` and ends.
    fn copy(work: impl FnOnce()) -> i32 {
        // SAFETY: the copy makes system calls on what it has, and leaves without the exit handlers; nothing of this program
        // holds a lock meanwhile, for it has one thread.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                work();
                libc::_exit(0);
            }
            pid
        }
    }

    fn wait(pid: i32) {
        // SAFETY: null asks for no status; our own child, by its pid.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
}

fn read(from: &mut impl Read) -> u64 {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

impl Way for Fork {
    fn start(&self) -> Times {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let pid = Self::copy(|| drop(writer.write_all(&now().to_ne_bytes())));
        let called = now();
        let first = read(&mut reader);
        let result = now();
        Self::wait(pid);
        [called, first, result, now()]
    }

    fn begin(&self) -> Rest {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let pid = Self::copy(|| drop(writer.write_all(&now().to_ne_bytes())));
        Box::new(move || {
            read(&mut reader);
            Self::wait(pid);
            None
        })
    }

    fn carry(&self, payload: Payload) -> Payload {
        let bytes = rmp_serde::to_vec(&payload).unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        // There it is, for it is a copy; back it comes through a pipe.
        let pid = Self::copy(|| writer.write_all(&bytes).unwrap());
        drop(writer);
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        Self::wait(pid);
        rmp_serde::from_slice(&back).unwrap()
    }
}

/// As [`Fork`], with what has to be written by hand until it does what a unit does: a socket, a unit that is decoded, a panic that
/// would be caught, a result that is encoded, and an exit with its handlers.
struct ByHand;

impl ByHand {
    fn begin<A, R>(argument: &A, work: fn(A) -> R) -> (i32, UnixStream)
    where
        A: Serialize + DeserializeOwned,
        R: Serialize,
    {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let pid = Fork::copy(|| {
            let argument = rmp_serde::from_read(BufReader::new(&theirs)).unwrap();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(argument))).unwrap();
            (&theirs).write_all(&rmp_serde::to_vec_named(&result).unwrap()).unwrap();
            std::process::exit(0);
        });
        drop(theirs);
        ours.write_all(&rmp_serde::to_vec_named(argument).unwrap()).unwrap();
        (pid, ours)
    }

    fn end<R: DeserializeOwned>((pid, mut line): (i32, UnixStream)) -> (R, u64) {
        let mut bytes = Vec::new();
        line.read_to_end(&mut bytes).unwrap();
        let result = rmp_serde::from_slice(&bytes).unwrap();
        let home = now();
        Fork::wait(pid);
        (result, home)
    }
}

impl Way for ByHand {
    fn start(&self) -> Times {
        let begun = Self::begin(&(), |()| now());
        let called = now();
        let (first, result) = Self::end(begun);
        [called, first, result, now()]
    }

    fn begin(&self) -> Rest {
        let begun = Self::begin(&(), |()| now());
        Box::new(move || {
            Self::end::<u64>(begun);
            None
        })
    }

    fn carry(&self, payload: Payload) -> Payload {
        Self::end(Self::begin(&payload, |payload: Payload| payload)).0
    }
}

/// This program again, by `std::process::Command`, with what has to be written by hand.
struct Executed;

impl Executed {
    fn spawn(argument: &str) -> std::process::Child {
        let mut command = Command::new("/proc/self/exe");
        command.arg(argument).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

impl Way for Executed {
    fn start(&self) -> Times {
        let mut child = Self::spawn("--tell-time");
        let called = now();
        let first = read(child.stdout.as_mut().unwrap());
        let result = now();
        child.wait().unwrap();
        [called, first, result, now()]
    }

    fn begin(&self) -> Rest {
        let mut child = Self::spawn("--tell-time");
        Box::new(move || {
            read(child.stdout.as_mut().unwrap());
            child.wait().unwrap();
            None
        })
    }

    fn carry(&self, payload: Payload) -> Payload {
        let bytes = rmp_serde::to_vec(&payload).unwrap();
        let mut child = Self::spawn("--echo");
        let mut input = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
        let mut back = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
        writer.join().unwrap();
        child.wait().unwrap();
        rmp_serde::from_slice(&back).unwrap()
    }
}

/// What the other end of [`Executed`] does.
pub fn executed(argument: &str) {
    match argument {
        "--tell-time" => std::io::stdout().write_all(&now().to_ne_bytes()).unwrap(),
        _ => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).unwrap();
            let payload: Payload = rmp_serde::from_slice(&bytes).unwrap();
            std::io::stdout().write_all(&rmp_serde::to_vec(&payload).unwrap()).unwrap();
        }
    }
}

struct Procspawn;

impl Way for Procspawn {
    fn start(&self) -> Times {
        let unit = procspawn::spawn((), |()| now());
        let called = now();
        let first = unit.join().unwrap();
        // It has the result when it has reaped.
        let end = now();
        [called, first, end, end]
    }

    fn begin(&self) -> Rest {
        let unit = procspawn::spawn((), |()| now());
        Box::new(|| {
            unit.join().unwrap();
            None
        })
    }

    fn carry(&self, payload: Payload) -> Payload {
        procspawn::spawn(payload, |payload| payload).join().unwrap()
    }
}

/// Ours; the launcher is forced from outside.
struct Unit;

impl Way for Unit {
    fn start(&self) -> Times {
        let unit = offspring::spawn((), |()| now()).unwrap();
        let called = now();
        let first = unit.wait().unwrap();
        // The result is another call's: see there.
        [called, first, 0, now()]
    }

    fn begin(&self) -> Rest {
        let unit = offspring::spawn((), |()| now()).unwrap();
        Box::new(|| {
            unit.wait().unwrap();
            None
        })
    }

    fn carry(&self, payload: Payload) -> Payload {
        offspring::spawn(payload, |payload| payload).unwrap().wait().unwrap()
    }
}

/// Ours, where the result is all that is waited for.
struct Call;

impl Way for Call {
    fn start(&self) -> Times {
        let unit = offspring::spawn((), |()| now()).unwrap();
        let called = now();
        let first = unit.result().unwrap();
        [called, first, now(), 0]
    }

    fn begin(&self) -> Rest {
        let unit = offspring::spawn((), |()| now()).unwrap();
        let process = unit.process().cloned();
        Box::new(|| {
            unit.result().unwrap();
            process
        })
    }

    fn carry(&self, payload: Payload) -> Payload {
        offspring::spawn(payload, |payload| payload).unwrap().result().unwrap()
    }
}
