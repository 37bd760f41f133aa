//! Where one thread waits for many descriptors.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::io::{Sign, above_stdio};

/// Where one thread waits for many descriptors, a time and a word from others.
pub(crate) struct Poller {
    epoll: OwnedFd,
    bell: OwnedFd,
}

/// A descriptor that is readable while one of these is, or has ended.
pub(crate) fn any_of(all: &[&OwnedFd]) -> io::Result<OwnedFd> {
    let epoll = above_stdio(epoll::create(epoll::CreateFlags::CLOEXEC)?)?;
    for one in all {
        epoll::add(&epoll, one, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    }
    Ok(epoll)
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

    /// Reports `token` while that sign is there.
    pub(crate) fn add_for(&self, fd: impl AsFd, token: u64, sign: Sign) -> io::Result<()> {
        let flags = match sign {
            Sign::Readable => epoll::EventFlags::IN,
            Sign::Writable => epoll::EventFlags::OUT,
            Sign::End => epoll::EventFlags::empty(),
        };
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    pub(crate) fn modify(&self, fd: impl AsFd, token: u64, writes: bool) {
        let _ = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), flags(writes));
    }

    /// Does not report it any more until [`Poller::modify`] asks for that again, which never fails for want of memory.
    pub(crate) fn mute(&self, fd: impl AsFd, token: u64) {
        // The kernel adds the end of a file to this; a pidfd has that once it has been reaped.
        let _ = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::empty());
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
        let ready = match epoll::wait(&self.epoll, &mut events, time.as_ref()) {
            Ok((ready, _)) => ready,
            Err(rustix::io::Errno::INTR) => return Vec::new(),
            Err(_) => {
                // The program has closed what is not its own. It shall not cost it a processor as well.
                std::thread::sleep(Duration::from_millis(10));
                return Vec::new();
            }
        };
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
