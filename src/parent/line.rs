//! The parent's end of a child's line: what is left to be sent, and what has been heard of a frame so far.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::hook;
use crate::sys::io::{self as sysio, AsFd, BorrowedFd, MOST, OwnedFd, Poller, Received};
use crate::wire::frame::Decoder;

pub(crate) struct Line {
    /// `None` after the end.
    pub(crate) fd: Option<Arc<OwnedFd>>,
    pub(crate) decoder: Decoder,
    /// What has come along and belongs to no frame yet.
    pub(crate) descriptors: VecDeque<OwnedFd>,
    /// What has not been sent yet, and how much of it has.
    unsent: Vec<Vec<u8>>,
    sent: usize,
    /// Whether the reaper watches it; within, whether for room to send as well.
    watched: Option<bool>,
    /// The child has been sent all that there is for it, or the rest is in `unsent`.
    told: bool,
    /// The other end was closed before all had been received there.
    reset: bool,
}

/// What was heard.
pub(crate) enum Piece {
    Nothing,
    /// So many bytes.
    Some(usize),
    End,
}

impl Line {
    pub(crate) fn new(fd: Arc<OwnedFd>) -> Self {
        Self {
            fd: Some(fd),
            decoder: Decoder::default(),
            descriptors: VecDeque::new(),
            unsent: Vec::new(),
            sent: 0,
            watched: None,
            told: false,
            reset: false,
        }
    }

    /// Sends what fits; whether that was all. What is left is kept.
    pub(crate) fn tell(&mut self, parts: &[&[u8]], descriptors: &[BorrowedFd<'_>]) -> io::Result<bool> {
        // The reaper may have heard its end already.
        let Some(fd) = &self.fd else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let mut sent = sysio::send_with(fd, parts, descriptors)?;
        for part in parts {
            let rest = &part[sent.min(part.len())..];
            sent -= part.len() - rest.len();
            if !rest.is_empty() {
                self.unsent.push(rest.to_owned());
            }
        }
        self.told = true;
        Ok(self.unsent.is_empty())
    }

    /// Sends what fits of what is left.
    pub(crate) fn send_left(&mut self) {
        while let (Some(fd), Some(bytes)) = (&self.fd, self.unsent.first()) {
            match sysio::send_now(fd, &bytes[self.sent..]) {
                Ok(count) if self.sent + count == bytes.len() => {
                    self.unsent.remove(0);
                    self.sent = 0;
                }
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It has closed its end, or died: what it said before is still to be heard.
                Err(_) => self.unsent.clear(),
            }
        }
    }

    /// Whether the child has taken the last thing that it was sent: its unit has begun, or was about to.
    pub(crate) fn has_begun(&self) -> bool {
        self.told
            && !self.reset
            && self.unsent.is_empty()
            && self.fd.as_ref().is_none_or(sysio::is_all_received)
    }

    /// A step of the test-only hook.
    pub(crate) fn hook(&self, step: &str) {
        if let Some(fd) = &self.fd {
            hook::step_on(fd.as_fd(), step);
        }
    }

    /// Whether there is something left to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Has the reaper watch it from now on for what there is to do.
    pub(crate) fn watch(&mut self, poller: &Poller, token: u64) -> io::Result<()> {
        let writes = self.has_unsent();
        match (&self.fd, self.watched) {
            (Some(fd), None) => poller.add(fd, token, writes)?,
            (Some(fd), Some(before)) if before != writes => poller.modify(fd, token, writes),
            _ => return Ok(()),
        }
        self.watched = Some(writes);
        Ok(())
    }

    /// Whether the reaper watches it.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    /// Closes it.
    pub(crate) fn close(&mut self, poller: Option<&Poller>) {
        if let (Some(fd), Some(poller), true) = (self.fd.take(), poller, self.is_watched()) {
            poller.remove(&fd);
        }
        self.descriptors.clear();
    }

    /// Receives a piece of what is there.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Piece {
        let Some(fd) = &self.fd else { return Piece::Nothing };
        match sysio::receive_with(fd, buffer) {
            Ok(Received { count, descriptors }) if count > 0 => {
                // More than one at a time no child of ours sends.
                self.descriptors.extend(descriptors.into_iter().flatten());
                self.descriptors.truncate(MOST);
                Piece::Some(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Piece::Nothing,
            other => {
                // It died with something of ours unread. All it said has been heard.
                self.reset |= other.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
                Piece::End
            }
        }
    }
}
