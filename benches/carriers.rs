//! What carries small messages between two processes: there and back, for whoever asks and for whoever answers.

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};
use offspring::{Offspring, Receiver, Sender};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::now;

/// So many bytes each, of which the first eight say how many messages are asked for; none: this one, back.
const SIZE: usize = 32;
type Message = ByteArray<SIZE>;

/// One end.
trait End {
    fn send(&mut self, message: &Message);
    /// `None` when the other end is gone.
    fn receive(&mut self) -> Option<Message>;
}

fn asking(count: u64) -> Message {
    let mut message = [200; SIZE];
    message[..8].copy_from_slice(&count.to_le_bytes());
    Message::new(message)
}

/// What the other process does, until nobody asks any more.
fn answer(end: &mut impl End) {
    while let Some(message) = end.receive() {
        let [a, b, c, d, e, f, g, h, ..] = *message;
        match u64::from_le_bytes([a, b, c, d, e, f, g, h]) {
            0 => end.send(&message),
            count => (0..count).for_each(|_| end.send(&message)),
        }
    }
}

/// Who is measured.
pub trait Carrier {
    /// Nanoseconds for so many messages from the other process, from the moment at which they are asked for.
    fn stream(&mut self, count: u64) -> u64;
    /// Nanoseconds for so many there and back, one after the other.
    fn rounds(&mut self, count: u64) -> u64;
}

/// Ours to ask with, and what keeps the other process.
struct Pair<E, K> {
    end: E,
    _other: K,
}

impl<E: End, K> Carrier for Pair<E, K> {
    fn stream(&mut self, count: u64) -> u64 {
        let began = now();
        self.end.send(&asking(count));
        (0..count).for_each(|_| assert!(self.end.receive().is_some()));
        now() - began
    }

    fn rounds(&mut self, count: u64) -> u64 {
        let began = now();
        for _ in 0..count {
            self.end.send(&asking(0));
            assert!(self.end.receive().is_some());
        }
        now() - began
    }
}

/// Two channels of ours, with that bound.
pub fn offspring(bound: usize) -> Box<dyn Carrier> {
    let (to, of_to) = offspring::channel(bound).unwrap();
    let (back, of_back) = offspring::channel(bound).unwrap();
    let other: Offspring<()> =
        offspring::spawn((back, of_to), |mut end: (Sender<Message>, Receiver<Message>)| answer(&mut end))
            .unwrap();
    Box::new(Pair { end: (to, of_back), _other: other })
}

impl End for (Sender<Message>, Receiver<Message>) {
    fn send(&mut self, message: &Message) {
        // Who has asked may be gone already.
        let _ = self.0.send(*message);
    }

    fn receive(&mut self) -> Option<Message> {
        self.1.recv().ok()
    }
}

/// One socket pair, of packets, with the bytes that a channel of ours sends: its tag, the codec's two, the message. Nothing is
/// encoded, and nothing but the kernel's buffer bounds it.
pub fn bare(buffer: Option<usize>) -> Box<dyn Carrier> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (ours, theirs) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    for socket in [&ours, &theirs] {
        // As far as this user may: a channel asks in the same way.
        buffer.map(|bytes| {
            use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
            set_socket_send_buffer_size_force(socket, bytes)
                .or_else(|_| set_socket_send_buffer_size(socket, bytes))
        });
    }
    let other = offspring::spawn(Bare(theirs), |mut end: Bare| answer(&mut end)).unwrap();
    Box::new(Pair { end: Bare(ours), _other: other })
}

#[derive(Serialize, Deserialize)]
struct Bare(#[serde(with = "offspring::fd")] OwnedFd);

/// In front of the message: a tag of ours, and what the codec says of bytes that are so many.
const FRONT: [u8; 3] = [0, 0xc4, SIZE as u8];

impl End for Bare {
    fn send(&mut self, message: &Message) {
        let mut body = [0; SIZE + 2];
        body[..2].copy_from_slice(&FRONT[1..]);
        body[2..].copy_from_slice(&**message);
        let parts = [IoSlice::new(&FRONT[..1]), IoSlice::new(&body)];
        let _ = rustix::net::sendmsg(&self.0, &parts, &mut Default::default(), SendFlags::NOSIGNAL);
    }

    fn receive(&mut self) -> Option<Message> {
        let mut packet = [0; 64];
        let (count, _) = rustix::net::recv(&self.0, &mut packet[..], RecvFlags::empty()).ok()?;
        let message = packet[..count].strip_prefix(&FRONT)?;
        Some(Message::new(message.try_into().ok()?))
    }
}

/// Two of ipc-channel's, between this program and the same once more.
pub fn ipc_channel() -> Box<dyn Carrier> {
    let (server, name) = IpcOneShotServer::new().unwrap();
    let other = Command::new("/proc/self/exe").args([IPC, &name]).spawn().unwrap();
    let (_, end): (_, IpcEnd) = server.accept().unwrap();
    Box::new(Pair { end, _other: Program(other) })
}

type IpcEnd = (IpcSender<Message>, IpcReceiver<Message>);

/// The argument by which the other one is known.
pub const IPC: &str = "--ipc-channel";

/// What the other one does.
pub fn answer_by_ipc_channel(name: String) {
    let (to, of_to) = ipc::channel::<Message>().unwrap();
    let (back, of_back) = ipc::channel::<Message>().unwrap();
    let asks: IpcSender<IpcEnd> = IpcSender::connect(name).unwrap();
    asks.send((to, of_back)).unwrap();
    answer(&mut (back, of_to));
}

impl End for IpcEnd {
    fn send(&mut self, message: &Message) {
        let _ = self.0.send(*message);
    }

    fn receive(&mut self) -> Option<Message> {
        self.1.recv().ok()
    }
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // Its channels end before this (they stand in front), and so does it.
        let _ = self.0.wait();
    }
}

/// `multiprocessing.Queue`, between two processes of Python; `None` if there is no Python.
pub fn python() -> Option<Box<dyn Carrier>> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("channels.py");
    let mut command = Command::new("python3");
    let mut child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let (input, output) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
    let mut python = Python { input, output, _other: Program(child) };
    python.told("rounds 1")?;
    Some(Box::new(python))
}

struct Python {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _other: Program,
}

impl Python {
    fn told(&mut self, what: &str) -> Option<u64> {
        self.input.write_all(format!("{what}\n").as_bytes()).ok()?;
        let mut line = String::new();
        self.output.read_line(&mut line).ok()?;
        line.trim().parse().ok()
    }
}

impl Carrier for Python {
    fn stream(&mut self, count: u64) -> u64 {
        self.told(&format!("stream {count}")).unwrap()
    }

    fn rounds(&mut self, count: u64) -> u64 {
        self.told(&format!("rounds {count}")).unwrap()
    }
}
