//! Descriptors: the line between parent and child, pipes, counters.
//!
//! All are close-on-exec from birth and stand above 2, also where the program has closed its standard streams.

use std::io::{self, Read};
use std::mem::MaybeUninit;
pub(crate) use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

pub(crate) use super::counter::{add, add_unasked, counter, semaphore, take};
pub(crate) use super::poller::{BATCH, BELL, Poller, any_of};

/// The same file at a descriptor above the standard streams.
pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { Ok(rustix::io::fcntl_dupfd_cloexec(&fd, 3)?) }
}

/// A line: two connected ends.
pub(crate) fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    Ok((above_stdio(a)?, above_stdio(b)?))
}

/// As [`line`], but what is sent in one piece arrives in one piece.
pub(crate) fn packet_line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
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

/// In a child that was cloned: puts the end of its line where [`take_line`] finds it, in the place of its maker's.
pub(crate) fn put_line(line: OwnedFd) {
    // SAFETY: dup3(2) on our own descriptors: what was there is the copy of the maker's line, which nobody in this
    // process uses any more.
    unsafe { libc::dup3(line.as_raw_fd(), super::spawn::LINE, libc::O_CLOEXEC) };
}

/// The line of this process, a child or a zygote: for the test-only step hook.
#[cfg(feature = "testing")]
pub(crate) fn own_line() -> BorrowedFd<'static> {
    // SAFETY: it is open from before `take_line` until the end of the process; if the unit has closed it, the calls that it is
    // handed to fail.
    unsafe { BorrowedFd::borrow_raw(super::spawn::LINE) }
}

/// How many descriptors go with one message at most.
pub(crate) const MOST: usize = 7;

/// Sends what fits, and the descriptors with it. `WouldBlock` if nothing does.
pub(crate) fn send_with(
    line: impl AsFd,
    parts: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    send(line, parts, descriptors, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

fn send(
    line: impl AsFd,
    parts: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<usize> {
    let mut all = [io::IoSlice::new(&[]); 5];
    for (slice, part) in all.iter_mut().zip(parts) {
        *slice = io::IoSlice::new(part);
    }
    let parts = &all[..parts.len().min(all.len())];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(rustix::net::SendAncillaryMessage::ScmRights(descriptors));
    }
    Ok(rustix::io::retry_on_intr(|| rustix::net::sendmsg(&line, parts, &mut control, flags))?)
}

/// What one call received.
pub(crate) struct Received {
    /// How many bytes; 0 at the end.
    pub(crate) count: usize,
    /// Fewer than were sent if this process has no room for them; those are lost.
    pub(crate) descriptors: [Option<OwnedFd>; MOST],
}

/// Receives what is there, and the descriptors that came with it. `WouldBlock` if nothing is.
pub(crate) fn receive_with(line: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive_by(line, buffer, RecvFlags::DONTWAIT)
}

/// The same, waiting as long as it takes. `WouldBlock` all the same if whoever has that descriptor has set it to that.
pub(crate) fn await_with(line: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive_by(line, buffer, RecvFlags::empty())
}

fn receive_by(line: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Received> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&line, &mut [io::IoSliceMut::new(buffer)], &mut control, flags)
    })?;
    let mut descriptors = [const { None }; MOST];
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            for (place, descriptor) in descriptors.iter_mut().zip(rights) {
                // One that took the place of a closed standard stream would be taken for it.
                *place = above_stdio(descriptor).ok();
            }
        }
    }
    Ok(Received { count: got.bytes, descriptors })
}

/// How many descriptors the kernel sends with one message at most: unix(7), `SCM_MAX_FD`.
pub(crate) const MANY: usize = 253;

/// Sends a packet, and that many descriptors with it. `WouldBlock` if there is no room.
pub(crate) fn send_many(line: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MANY))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    control.push(rustix::net::SendAncillaryMessage::ScmRights(descriptors));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&line, &[io::IoSlice::new(bytes)], &mut control, flags)
    })?)
}

/// Receives a packet, and the descriptors that came with it. `WouldBlock` if there is none.
pub(crate) fn receive_many(
    line: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MANY))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&line, &mut [io::IoSliceMut::new(buffer)], &mut control, flags)
    })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            // One that took the place of a closed standard stream would be taken for it.
            descriptors.extend(rights.filter_map(|descriptor| above_stdio(descriptor).ok()));
        }
    }
    Ok(got.bytes)
}

/// Waits until one of them can be read (or, of the first, written, if so asked) or has ended, or the time is over; which.
pub(crate) fn wait_any(descriptors: &[BorrowedFd<'_>], writes: bool, time: Option<Duration>) -> Vec<bool> {
    use rustix::event::{PollFd, PollFlags, poll};
    let flags = |first| if first && writes { PollFlags::OUT } else { PollFlags::IN };
    let mut all: Vec<PollFd<'_>> =
        descriptors.iter().enumerate().map(|(n, fd)| PollFd::new(fd, flags(n == 0))).collect();
    let time = time.map(|time| rustix::time::Timespec {
        tv_sec: time.as_secs().min(3600) as i64,
        tv_nsec: time.subsec_nanos() as _,
    });
    let _ = poll(&mut all, time.as_ref());
    all.iter().map(|fd| !fd.revents().is_empty()).collect()
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Readable,
    Writable,
    /// The other end is gone. (Which the others are as well.)
    End,
}

/// Whether more descriptors could not be sent because of those that nobody has received yet (unix(7), ETOOMANYREFS).
pub(crate) fn is_too_many_on_their_way(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}

/// Waits for any of these signs, or so long; whether one is there.
pub(crate) fn wait_for(signs: &[(BorrowedFd<'_>, Sign)], time: Option<Duration>) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let flags = |sign| match sign {
        Sign::Readable => PollFlags::IN,
        Sign::Writable => PollFlags::OUT,
        Sign::End => PollFlags::empty(),
    };
    let mut all: Vec<PollFd<'_>> = signs.iter().map(|(fd, sign)| PollFd::new(fd, flags(*sign))).collect();
    let time = time.map(|time| rustix::time::Timespec {
        tv_sec: time.as_secs().min(3600) as i64,
        tv_nsec: time.subsec_nanos() as _,
    });
    poll(&mut all, time.as_ref()).is_ok_and(|ready| ready > 0)
}

/// Whether the other end of a line is gone, and whether a counter has room for more: both in one call.
pub(crate) fn look_at(line: &OwnedFd, counter: &OwnedFd) -> (bool, bool) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut both = [PollFd::new(line, PollFlags::empty()), PollFd::new(counter, PollFlags::OUT)];
    let _ = poll(&mut both, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }));
    (!both[0].revents().is_empty(), both[1].revents().contains(PollFlags::OUT))
}

/// Has the kernel keep so many bytes of what is sent, if it may; more than its default, at any rate.
pub(crate) fn make_room(socket: &OwnedFd, bytes: u64) {
    const MOST: u64 = 64 << 20;
    let bytes = bytes.min(MOST) as usize;
    let before = rustix::net::sockopt::socket_send_buffer_size(socket).unwrap_or(0);
    // The kernel doubles what it is told, and tells the double.
    if bytes > before / 2 && rustix::net::sockopt::set_socket_send_buffer_size_force(socket, bytes).is_err() {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes);
    }
}

/// A standard stream of this process, if it is open, and would be in a program that is executed.
///
/// Where the program has closed one, any descriptor that is made now is at its place for a moment, in whatever thread. Those
/// of this crate and of std are close-on-exec from birth, and so they are not taken for the stream.
pub(crate) fn standard(stream: i32) -> Option<BorrowedFd<'static>> {
    // SAFETY: fcntl(2) fails on a descriptor that is not open; what is borrowed here is only ever handed to system calls,
    // which fail as well if the program closes the stream meanwhile.
    unsafe {
        let flags = libc::fcntl(stream, libc::F_GETFD);
        (flags >= 0 && flags & libc::FD_CLOEXEC == 0).then(|| BorrowedFd::borrow_raw(stream))
    }
}

/// Puts a file in the place of a standard stream.
pub(crate) fn set_standard(stream: i32, file: &OwnedFd) -> io::Result<()> {
    // SAFETY: dup2(2) of a descriptor of ours.
    let done = unsafe { libc::dup2(file.as_raw_fd(), stream) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Another descriptor of the same open file.
pub(crate) fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, 3)?)
}

/// Whether a standard stream of this process is that open file; `false` as well if the kernel does not tell.
pub(crate) fn is_stream(stream: i32, file: &OwnedFd) -> bool {
    /// Since Linux 6.10: include/uapi/linux/fcntl.h.
    const F_DUPFD_QUERY: i32 = 1024 + 3;
    const KCMP_FILE: i32 = 0;
    let file = file.as_raw_fd();
    // SAFETY: both calls only compare. (kcmp(2) says 0 for the same.)
    unsafe {
        match libc::fcntl(stream, F_DUPFD_QUERY, file) {
            -1 => {
                let (own, kind) = (libc::getpid(), KCMP_FILE);
                libc::syscall(libc::SYS_kcmp, own, own, kind, stream as libc::c_ulong, file as libc::c_ulong)
                    == 0
            }
            same => same == 1,
        }
    }
}

/// A directory, to be gone to by whoever gets the descriptor: the calling thread's own, or the one of that path. Fails as
/// going there would.
pub(crate) fn directory(path: Option<&std::path::Path>) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    // The dot at the end is looked up in the directory itself, which asks for the right to go there.
    let path = path.map_or_else(|| ".".into(), |path| path.join("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    above_stdio(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Which directory it is, as long as somebody stays in it, on a file system that [`tells_places`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    device: (u32, u32),
    inode: u64,
    mount: u64,
}

/// Whether its file system gives no two directories one number. Those of programs (FUSE) and other machines may.
pub(crate) fn tells_places(directory: &OwnedFd) -> bool {
    /// linux/magic.h: ext2 to ext4, XFS, Btrfs, F2FS, tmpfs, overlayfs, procfs.
    const LOCAL: [i64; 7] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630, 0x9fa0];
    rustix::fs::fstatfs(directory).is_ok_and(|told| LOCAL.contains(&told.f_type))
}

/// A directory's, or the calling thread's own; `None` if the kernel does not tell all of it (before Linux 5.8).
pub(crate) fn place(directory: Option<&OwnedFd>) -> Option<Place> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let directory = directory.map_or(CWD, AsFd::as_fd);
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let told = statx(directory, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    let is_all = StatxFlags::from_bits_retain(told.stx_mask).contains(wanted);
    let device = (told.stx_dev_major, told.stx_dev_minor);
    is_all.then_some(Place { device, inode: told.stx_ino, mount: told.stx_mnt_id })
}

/// Sends what fits. `WouldBlock` if nothing does.
pub(crate) fn send_now(line: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::net::send(&line, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    })?)
}

/// Sends all, and the descriptors with the first of it, waiting as long as it takes.
pub(crate) fn send_all_with(
    line: impl AsFd,
    parts: [&[u8]; 2],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut sent = send(&line, &parts, descriptors, SendFlags::NOSIGNAL)?;
    for part in parts {
        let mut rest = &part[sent.min(part.len())..];
        sent -= part.len() - rest.len();
        while !rest.is_empty() {
            let sent = rustix::io::retry_on_intr(|| rustix::net::send(&line, rest, SendFlags::NOSIGNAL))?;
            rest = &rest[sent..];
        }
    }
    Ok(())
}

/// From now on the other end hears the end of this one. What it says is still heard.
pub(crate) fn end_sending(line: impl AsFd) {
    let _ = rustix::net::shutdown(line, rustix::net::Shutdown::Write);
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

/// How many bytes are there to be received.
pub(crate) fn queued(line: impl AsFd) -> usize {
    rustix::io::ioctl_fionread(line).map_or(0, |count| count as usize)
}

/// Whether the other end has received all that was sent on this one.
pub(crate) fn is_all_received(line: impl AsFd) -> bool {
    let mut left: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (unix(7)) writes one integer.
    let told = unsafe { libc::ioctl(line.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
    told == 0 && left == 0
}

/// Reads what is in a pipe, as much as one holds; `false` once it has ended. Needs the pipe to be non-blocking.
pub(crate) fn drain(pipe: impl AsFd, mut take: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; 4096];
    // No more than that, for a writer that keeps up would hold us for ever.
    for _ in 0..16 {
        match rustix::io::read(&pipe, &mut buffer) {
            Ok(0) => return false,
            Ok(count) => take(&buffer[..count]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return error == rustix::io::Errno::AGAIN,
        }
    }
    true
}

/// What is in a pipe, which stays in it: as much as one holds by default.
pub(crate) fn peek(pipe: impl AsFd) -> io::Result<Vec<u8>> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // A user who has many may get a small one (pipe(7), pipe-user-pages-soft).
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, 64 << 10);
    let count = rustix::pipe::tee(&pipe, &writer, 64 << 10, rustix::pipe::SpliceFlags::NONBLOCK)?;
    if count < queued(&pipe) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    drop(writer);
    let mut bytes = Vec::with_capacity(count);
    std::fs::File::from(reader).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes reads of this end return at once.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
