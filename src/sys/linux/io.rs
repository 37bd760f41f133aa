//! Descriptors: the line between parent and child, pipes, and the reaper's one place to wait.
//!
//! All are close-on-exec from birth and stand above 2, also where the program has closed its standard streams.

use std::io;
use std::mem::MaybeUninit;
pub(crate) use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

/// The same file at a descriptor above the standard streams.
pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if fd.as_raw_fd() > 2 { Ok(fd) } else { Ok(rustix::io::fcntl_dupfd_cloexec(&fd, 3)?) }
}

/// A line: two connected ends.
pub(crate) fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    Ok((above_stdio(a)?, above_stdio(b)?))
}

/// A pipe: the end to read from, the end to write to.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((above_stdio(read)?, above_stdio(write)?))
}

/// `/dev/null`, for reading and writing.
pub(crate) fn null() -> io::Result<OwnedFd> {
    above_stdio(std::fs::File::options().read(true).write(true).open("/dev/null")?.into())
}

/// Opens `/dev/null` wherever one of the standard streams is closed, so that no other file can take its place.
pub(crate) fn open_missing_streams() {
    for stream in 0..3 {
        // SAFETY: the borrow ends within the call, which fails on a descriptor that is not open.
        let open = unsafe { libc::fcntl(stream, libc::F_GETFD) } >= 0;
        if !open {
            // The lowest free descriptor is this very one, since those below are open.
            // SAFETY: open(2) of a constant path. The descriptor is meant to stay open for good.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

/// The child's end of its line, at the place where its parent put it.
pub(crate) fn take_line() -> OwnedFd {
    // SAFETY: called once, by the constructor of a process that was told by its marker that the parent put the line
    // here; nothing else in it knows of the descriptor.
    let line = unsafe { OwnedFd::from_raw_fd(super::spawn::LINE) };
    let _ = rustix::io::fcntl_setfd(&line, rustix::io::FdFlags::CLOEXEC);
    line
}

/// Sends what fits. `WouldBlock` if nothing does.
pub(crate) fn send_now(line: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::net::send(&line, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    })?)
}

/// Sends all, waiting as long as it takes.
pub(crate) fn send_all(line: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&line, bytes, SendFlags::NOSIGNAL))?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Receives what is there: 0 at the end. `WouldBlock` if nothing is.
pub(crate) fn receive_now(line: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::net::recv(&line, &mut *buffer, RecvFlags::DONTWAIT))?.0)
}

/// Whether a receive would give something, be it the end, at once or within so many seconds.
pub(crate) fn is_readable(fd: impl AsFd, seconds: i64) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let time = rustix::time::Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&time)).is_ok_and(|ready| ready > 0)
}

/// Receives something, waiting as long as it takes: 0 at the end.
pub(crate) fn receive(line: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::net::recv(&line, &mut *buffer, RecvFlags::empty()))?.0)
}

/// Reads and throws away some of what is in a pipe; `false` once it has ended. Needs the pipe to be non-blocking.
pub(crate) fn discard(pipe: impl AsFd) -> bool {
    let mut buffer = [0; 4096];
    // As much as a pipe holds, and no more, for a writer that keeps up would hold us for ever.
    for _ in 0..16 {
        match rustix::io::read(&pipe, &mut buffer) {
            Ok(0) => return false,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return error == rustix::io::Errno::AGAIN,
        }
    }
    true
}

/// Makes reads of this end return at once.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// Where one thread waits for many descriptors, a time and a word from others.
pub(crate) struct Poller {
    epoll: OwnedFd,
    bell: OwnedFd,
}

/// How many events one wait gives at most.
pub(crate) const BATCH: usize = 64;

/// The token under which the bell is reported.
pub(crate) const BELL: u64 = u64::MAX;

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = above_stdio(epoll::create(epoll::CreateFlags::CLOEXEC)?)?;
        let bell = above_stdio(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)?;
        let poller = Self { epoll, bell };
        poller.add(&poller.bell, BELL, false)?;
        Ok(poller)
    }

    /// Reports `token` from now on while `fd` can be read, and, if asked, while it can be written.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64, writes: bool) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags(writes))?)
    }

    pub(crate) fn modify(&self, fd: impl AsFd, token: u64, writes: bool) {
        let _ = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), flags(writes));
    }

    /// To be called before `fd` is closed: a copy of it in a forked process would keep it in the kernel's list.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Ends the wait in progress, or the next.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Waits until something is ready or the time is over; gives the tokens. No time: without limit.
    pub(crate) fn wait(&self, time: Option<Duration>) -> Vec<u64> {
        let mut events = [MaybeUninit::uninit(); BATCH];
        // Rounded up, for a wait that ends too early would spin; bounded by what the kernel takes.
        let time = time.map(|time| time.as_nanos().div_ceil(1_000_000).min(3_600_000) as i64);
        let time = time
            .map(|ms| rustix::time::Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000 * 1_000_000) as _ });
        let Ok((ready, _)) = epoll::wait(&self.epoll, &mut events, time.as_ref()) else { return Vec::new() };
        let tokens: Vec<u64> = ready.iter().map(|event| event.data.u64()).collect();
        if tokens.contains(&BELL) {
            let _ = rustix::io::read(&self.bell, &mut [0_u8; 8]);
        }
        tokens
    }
}

fn flags(writes: bool) -> epoll::EventFlags {
    if writes { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN }
}
