//! What a hostile process says on a line, and with what descriptors.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

pub const READY: u32 = 16;
pub const NOTE: u32 = 17;
pub const VALUE: u32 = 18;
pub const ELSEWHERE: u32 = 1 << 31;
pub const ALL: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

/// What goes along with words.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Thing {
    /// A file in memory, its seals, and whether it is made shorter once it is sent.
    Memory(Vec<u8>, i32, bool),
    /// One that can be written still by a mapping that was there before it was sealed.
    Writable,
    Pipe,
    Directory,
    Zero,
    Process,
    Line,
}

/// The unix socket of that type that this process has.
pub fn own_socket(wanted: i32) -> Option<RawFd> {
    (3..64).find(|fd| {
        let option = |name| {
            let (mut told, mut size) = (0_i32, 4);
            // SAFETY: writes one integer, and how long it is.
            let done = unsafe {
                libc::getsockopt(*fd, libc::SOL_SOCKET, name, (&raw mut told).cast(), &raw mut size)
            };
            (done == 0).then_some(told)
        };
        option(libc::SO_DOMAIN) == Some(libc::AF_UNIX) && option(libc::SO_TYPE) == Some(wanted)
    })
}

pub fn open(thing: &Thing, line: RawFd) -> OwnedFd {
    // SAFETY: each call gives a new descriptor, which nobody else knows of; the mapping is never taken away.
    unsafe {
        match thing {
            Thing::Memory(bytes, seals, _) => memory(bytes, *seals),
            Thing::Writable => {
                let file = memory(b"\xa4four", 0);
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let page = libc::mmap(std::ptr::null_mut(), 5, access, libc::MAP_SHARED, file.as_raw_fd(), 0);
                assert_ne!(page, libc::MAP_FAILED);
                // What stands in the way of the seal that is wanted.
                assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE), -1);
                let seals = libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
                assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
                file
            }
            Thing::Pipe => std::io::pipe().unwrap().0.into(),
            Thing::Directory => std::fs::File::open("/").unwrap().into(),
            Thing::Zero => std::fs::File::open("/dev/zero").unwrap().into(),
            Thing::Process => {
                OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, libc::getppid(), 0) as RawFd)
            }
            Thing::Line => BorrowedFd::borrow_raw(line).try_clone_to_owned().unwrap(),
        }
    }
}

pub fn memory(bytes: &[u8], seals: i32) -> OwnedFd {
    // SAFETY: a new descriptor, which nobody else knows of; the buffer is as long as is said.
    unsafe {
        let file = OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_ALLOW_SEALING));
        assert_eq!(libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()), bytes.len() as isize);
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        file
    }
}

pub fn send(line: RawFd, words: &[u8], descriptors: &[RawFd]) {
    let mut part = libc::iovec { iov_base: words.as_ptr().cast_mut().cast(), iov_len: words.len() };
    let size = size_of_val(descriptors) as u32;
    // SAFETY: the records are filled in full, and outlive the call; the room is for so many descriptors.
    unsafe {
        let mut control = vec![0_u64; libc::CMSG_SPACE(size) as usize / 8];
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !descriptors.is_empty() {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size) as usize;
            let first = libc::CMSG_FIRSTHDR(&raw const message);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size) as usize;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            descriptors.iter().enumerate().for_each(|(n, fd)| data.add(n).write_unaligned(*fd));
        }
        libc::sendmsg(line, &raw const message, libc::MSG_NOSIGNAL);
    }
}

pub fn header(kind: u32, length: u64) -> Vec<u8> {
    [&0x4f66_7331_u32.to_le_bytes()[..], &kind.to_le_bytes()[..], &length.to_le_bytes()[..]].concat()
}

pub fn frame(kind: u32, body: &[u8]) -> Vec<u8> {
    [&header(kind, body.len() as u64), body].concat()
}

/// The same in each run, unless `OFFSPRING_SEED` says otherwise.
pub struct Random {
    pub seed: u64,
    state: u64,
}

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("OFFSPRING_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(17);
        Self { seed, state: seed * 2 + 1 }
    }

    pub fn next(&mut self) -> u64 {
        // xorshift64*
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, limit: u64) -> Vec<u8> {
        (0..self.below(limit)).map(|_| self.next() as u8).collect()
    }
}
