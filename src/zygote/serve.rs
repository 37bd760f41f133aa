//! The zygote's work: receive a request, clone, report; and, when the parent is gone, see to the children that it leaves.
//!
//! No code of the program runs here but its constructors, once, at the beginning. What the children inherit is what those
//! have set up: this file opens nothing that stays open, starts no thread, and draws no random numbers (a `HashMap` made
//! here would give every child the same seeds).

use std::io;
use std::time::Duration;

use super::boot::Claim;
use super::wards::{Told, Wards};
use crate::child::{self, Spare};
use crate::hook::{self, step};
use crate::sys;
use crate::sys::cgroup::Cgroup;
use crate::sys::clone::Alone;
use crate::sys::environment::Installed;
use crate::sys::image::Exit;
use crate::sys::io::{AsFd, OwnedFd};
use crate::sys::ledger::{Care, Ledger};
use crate::sys::memory::Mapping;
use crate::wire::codec;
use crate::wire::message::{Guard, Hello, Reply, Request, Welcome};

/// Larger than any message that comes here.
const BUFFER: usize = 4096;

/// Between two tries of what the kernel has refused.
const PAUSE: Duration = Duration::from_millis(1);

/// More packets than a line holds: the kernel counts hundreds of bytes for each against a buffer of some hundred KiB.
const MOST_QUEUED: usize = 1 << 16;

/// Whether nobody has the line's other end any more.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// The whole life of the zygote, after the constructors.
pub(crate) fn main(claim: Claim) -> ! {
    step("zygote", "boot");
    // 1. What each child would have to do otherwise, and what constructors have left to be printed.
    child::prepare(&claim);
    sys::lifecycle::flush_streams();
    // 2. No signal from here on, also not the terminal's: the children's masks are opened in the children.
    sys::signals::block_all();
    sys::lifecycle::set_name("offspring");
    sys::lifecycle::go_to_root();
    // 3. The line, and on it whose zygote we are.
    let line = sys::io::take_line();
    let Some((parent, ledger)) = welcomed(&line, &claim) else { sys::lifecycle::exit_now(0) };
    step("zygote", "welcomed");
    // 4. Whether we can be one.
    let alone = Alone::prove();
    let hello = Hello { unfit: alone.as_ref().err().cloned(), rights: sys::rights::of_this_thread() };
    let mut zygote =
        Zygote { claim, line, parent, ledger, wards: Wards::default(), environment: Installed::default() };
    zygote.say(&codec::encode(&hello).unwrap_or_default(), None);
    step("zygote", "ready");
    match alone {
        Ok(alone) => zygote.serve(&alone),
        Err(_) => sys::lifecycle::exit_now(0),
    }
}

/// The first message: a pidfd of the parent, and the ledger.
fn welcomed(line: &OwnedFd, claim: &Claim) -> Option<(OwnedFd, Ledger)> {
    let mut buffer = [0; BUFFER];
    // Its parent may be gone without the line having ended, for it may have left a copy of itself.
    while !sys::io::is_readable(line, 1) {
        if sys::signals::orphaned(claim.parent as i32) {
            return None;
        }
    }
    let received = sys::io::receive_with(line, &mut buffer).ok()?;
    let welcome: Welcome = codec::decode(&buffer[..received.count]).ok()?;
    let [Some(parent), Some(ledger), ..] = received.descriptors else { return None };
    (welcome.nonce == claim.nonce).then_some((parent, Ledger::open(&ledger).ok()?))
}

/// What came of a clone, in each of the two.
struct Made {
    /// `None` in the copy.
    child: Option<(u32, Option<OwnedFd>)>,
    /// Whether it was made in the cgroup in question.
    is_there: bool,
}

/// A copy of this process, made in that cgroup if that can be done.
fn made(alone: &Alone, ledger: &Ledger, cgroup: Option<&Cgroup>) -> io::Result<Made> {
    if let Some(place) = cgroup.and_then(|cgroup| cgroup.open().ok())
        && let Ok(child) = alone.clone_into(ledger, &place)
    {
        return Ok(Made { child, is_there: true });
    }
    Ok(Made { child: alone.clone(ledger)?, is_there: false })
}

struct Zygote {
    claim: Claim,
    line: OwnedFd,
    /// A pidfd: readable when the parent is dead. The line ends with it, but for a copy that the parent has forked, which
    /// holds the other end.
    parent: OwnedFd,
    ledger: Ledger,
    wards: Wards,
    /// What it has been given in place of its own.
    environment: Installed,
}

impl Zygote {
    fn serve(mut self, alone: &Alone) -> ! {
        let mut buffer = [0; BUFFER];
        let exit = Exit::find();
        let steps_back = sys::lifecycle::may_step_back();
        loop {
            self.wait(false);
            let received = match sys::io::receive_with(&self.line, &mut buffer) {
                Ok(received) if received.count > 0 => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                // The parent lives, and has no more use for us.
                Ok(_) if sys::signals::given_up() => sys::lifecycle::exit_now(0),
                // It has gone, or has executed another program.
                Ok(_) => self.mourn(),
                Err(error) if is_end(&error) => self.mourn(),
                // The kernel is short of something. It is to be hoped that it will not be for long.
                Err(_) => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            step("zygote", "asked");
            let request = match codec::decode(&buffer[..received.count]) {
                Ok(Request::Child(request)) => request,
                Ok(Request::Environment(length)) => {
                    self.adopt(length, &received.descriptors);
                    continue;
                }
                Ok(other) => {
                    self.on_other(other, received.descriptors);
                    continue;
                }
                Err(_) => continue,
            };
            let [line, directory, ..] = received.descriptors;
            let (Some(line), true) = (line, request.directory == directory.is_some()) else {
                const TOO_MANY_OPEN_FILES: i32 = 24;
                self.reply(request.id, Err(TOO_MANY_OPEN_FILES), None);
                continue;
            };
            self.ledger.begin(request.id);
            step("zygote", "begun");
            let cgroup = request.cgroup.as_ref();
            match made(alone, &self.ledger, cgroup) {
                Ok(Made { child: None, is_there }) => {
                    if let (Some(cgroup), false) = (cgroup, is_there) {
                        let _ = cgroup.join();
                    }
                    let Self { claim, line: own, parent, ledger, wards, .. } = self;
                    wards.forget();
                    // Its place is taken by the child's line, which closes it; and the ledger is not here.
                    std::mem::forget((own, ledger));
                    hook::adopt(request.wish);
                    sys::io::put_line(line);
                    let spare = request.slot.map(|_| Spare {
                        directory,
                        entry: request.entry,
                        exit: &exit,
                        steps_back,
                    });
                    child::cloned(claim, parent, spare)
                }
                Ok(Made { child: Some((pid, pidfd)), .. }) => {
                    // First, so that whoever knows of the child can tell by the line whether it lives.
                    drop((line, directory));
                    step("zygote", "cloned");
                    self.reply(request.id, Ok(pid), pidfd.as_ref());
                    step("zygote", "told");
                    match (pidfd, request.slot, request.guard) {
                        (Some(pidfd), Some(slot), _) => self.wards.add(pid, &pidfd, Told::In(slot)),
                        (Some(pidfd), None, Some(guard)) => self.add_ward(pid, &guard, pidfd, request.cgroup),
                        _ => {}
                    }
                }
                Err(error) => self.reply(request.id, Err(error.raw_os_error().unwrap_or_default()), None),
            }
        }
    }

    /// Takes another environment. The parent believes that this is done: if it cannot be, another zygote is to be made.
    fn adopt(&mut self, length: usize, descriptors: &[Option<OwnedFd>]) {
        if length == 0 {
            return self.environment.replace(Vec::new());
        }
        let memory = descriptors.first().and_then(|memory| Mapping::of(memory.as_ref()?, length, true).ok());
        let Some(block) = memory else { sys::lifecycle::exit_now(0) };
        self.environment.replace(block.to_vec());
    }

    fn add_ward(&mut self, pid: u32, guard: &Guard, pidfd: OwnedFd, cgroup: Option<Cgroup>) {
        if guard.leads {
            self.wards.add_group(pid, pidfd, guard.grace, cgroup);
        } else {
            self.wards.add(pid, &pidfd, Told::Now(Care::End(guard.grace)));
        }
    }

    /// What is asked of it but children.
    fn on_other(&mut self, request: Request, descriptors: [Option<OwnedFd>; sys::io::MOST]) {
        match request {
            Request::Ward { pid, guard, cgroup } => {
                if let Some(pidfd) = descriptors.into_iter().next().flatten() {
                    self.add_ward(pid, &guard, pidfd, cgroup);
                }
            }
            Request::Release(identity) => self.wards.release(identity),
            Request::Child(_) | Request::Environment(_) => {}
        }
    }

    /// The parent is gone. What it has entrusted to us with its last words may not have been heard yet: of its end we learn
    /// before, by its pidfd, or because it has not read all that we have said (ECONNRESET, given once).
    fn mourn(&mut self) -> ! {
        step("zygote", "mourning");
        let mut buffer = [0; BUFFER];
        // Bounded, for a copy of the parent may send what it likes; more than this the line does not hold.
        for _ in 0..MOST_QUEUED {
            match sys::io::receive_with(&self.line, &mut buffer) {
                Ok(received) if received.count > 0 => {
                    if let Ok(request) = codec::decode(&buffer[..received.count]) {
                        self.on_other(request, received.descriptors);
                    }
                }
                Err(error) if is_end(&error) => {}
                _ => break,
            }
        }
        self.wards.mourn(&self.ledger)
    }

    fn reply(&mut self, id: u64, made: Result<u32, i32>, pidfd: Option<&OwnedFd>) {
        self.say(&Reply { id, made }.to_bytes(), pidfd);
    }

    fn say(&mut self, bytes: &[u8], descriptor: Option<&OwnedFd>) {
        let mut descriptor = descriptor.map(AsFd::as_fd);
        while let Err(error) = sys::io::send_with(&self.line, &[bytes], descriptor.as_slice()) {
            match error.kind() {
                io::ErrorKind::WouldBlock => self.wait(true),
                _ if is_end(&error) => self.mourn(),
                // Too many descriptors are on their way (ETOOMANYREFS), say. The parent finds the child by its pid.
                _ => {
                    descriptor = None;
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Until the line can be read or written; does not come back once the parent is gone.
    fn wait(&mut self, writes: bool) {
        let ready = sys::io::wait_any(&[self.line.as_fd(), self.parent.as_fd()], writes, None);
        if ready[1] {
            self.mourn();
        }
    }
}
