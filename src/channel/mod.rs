//! Channels between processes.

mod bell;
mod end;
mod errors;
mod gate;
mod reactor;
mod receiver;
mod ring;
mod sender;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

pub use errors::{RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError};
pub use receiver::{IntoIter, Iter, Receiver, TryIter};
pub use sender::Sender;

pub(crate) use reactor::shutdown;

use crate::sys::io as sysio;
use end::End;

/// A channel whose ends may be in different processes.
///
/// Both ends can be cloned, and cross to units, in their results, and through other channels: many may send and many receive, in any mix of
/// processes. A message is received once. Those of one sender arrive in their order. `bound` is how many wait at most (at
/// least one); then [`send`](Sender::send) waits for room. Fewer do if they fill the memory that they wait in.
///
/// Messages may be of any size, and carry whatever else crosses: [descriptors](crate::fd), [`SharedBytes`](crate::SharedBytes), other channels.
///
/// ```
/// use offspring::{Receiver, Sender, channel, spawn};
///
/// let (numbers, of_numbers) = channel::<u32>(8)?;
/// let (squares, of_squares) = channel::<u32>(8)?;
/// let workers: Vec<_> = (0..2).map(|_| {
///     spawn((of_numbers.clone(), squares.clone()), |(numbers, squares): (Receiver<u32>, Sender<u32>)| {
///         for number in numbers {
///             squares.send(number * number).unwrap();
///         }
///     })
/// }).collect::<Result<_, _>>()?;
/// drop((of_numbers, squares));
///
/// for number in 1..=4 {
///     numbers.send(number)?;
/// }
/// drop(numbers);
/// let mut all: Vec<u32> = of_squares.iter().collect();
/// all.sort();
/// assert_eq!(all, [1, 4, 9, 16]);
/// for worker in workers {
///     worker.wait()?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # The end
/// A channel is disconnected when the last end of the other kind is gone, in whatever process, dropped or dead with its process:
/// whoever waits is told at once. What was sent before is received. An end that is on its way (in a unit that was not started, in
/// a message that nobody has received) is there. So is one in a process that was forked off by code that knows nothing of this.
///
/// # How messages go
/// Small ones go by memory that all ends have in common, mostly without a system call (every two microseconds at most, a sender asks whether anybody
/// receives; who sleeps is woken): 32 KiB of it, up to 256 KiB for a large bound, a quarter of it, and 32 KiB at most, for one message. That ends for
/// good when a second process sends while the first that has done so keeps its end (or is dead), when a message is larger or has descriptors, or when
/// a [`Receiver`] is asked for its descriptor. From then on all go by a socket, which costs a system call for each at either end, and by default has
/// room for some 500 small ones (`net.core.wmem_max`). The order stays.
///
/// # Death
/// A process that dies in the middle of a send or a receive loses that one message, and keeps nobody waiting: a message is there
/// as a whole or not at all. In the socket it may leave the count of those that wait wrong, by one: then there is room for one less, until the queue
/// has been empty, and nobody has sent or received, for a tenth of a second in which somebody has tried to.
///
/// A process that means no good and has an end takes what it likes, can leave others waiting, and can keep who waits for a message busy. By
/// its flags alone it keeps nobody waiting who does not want to; but whoever has the same end can hold it up in the kernel, by receiving into memory
/// that never comes, say.
///
/// # Errors
/// `InvalidInput` for a bound of 0; too many open files: an end takes four; no memory, or a limit of a file's size (RLIMIT_FSIZE) that is less than it. `Unsupported` elsewhere than on Linux.
pub fn channel<T>(bound: usize) -> io::Result<(Sender<T>, Receiver<T>)> {
    let bound = u32::try_from(bound).unwrap_or(u32::MAX);
    if bound == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a channel that has room for nothing"));
    }
    let (sending, receiving) = sysio::packet_line()?;
    sysio::make_room(&sending, u64::from(bound).saturating_mul(MESSAGE));
    let end = End::new(sending, bound)?;
    let other = end.other(receiving)?;
    Ok((Sender::new(Arc::new(end)), Receiver::new(Arc::new(other))))
}

/// What the kernel's buffer counts for a small message, generously.
const MESSAGE: u64 = 1024;

/// Messages of more bytes go by memory.
const SMALL: usize = 32 << 10;

/// In the first byte of a message: its bytes are in memory that comes along, and what follows is their number.
const ELSEWHERE: u8 = 1;

/// In the same byte: a bag of descriptors comes along.
const BAG: u8 = 2;

/// Why a step was not done.
enum Stop {
    /// There is no room in the queue, or no message.
    Wait(Wanted),
    Disconnected,
    Failed(io::Error),
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Room, as the bound has it.
    Place,
    /// Room in the kernel's buffer.
    Buffer,
    /// That others receive what this user has sent.
    Pause,
    Message,
}

/// Of something that is tried: it fails, or goes on waiting.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(100);
