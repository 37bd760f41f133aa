//! The user's process's view of its zygote: made at the first start, by the reaper's thread (children are tied to the thread
//! that made their maker, and that one lives as long as anything here does); heard by the reaper; asked by whoever starts.

use std::io;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::exec::{claim, marked};
use super::parking::{Slot, Slots};
use super::runtime::Runtime;
use super::unit::{Unit, lock};
use crate::hook;
use crate::log;
use crate::sys::clone::identity;
use crate::sys::io::{self as sysio, AsFd, BorrowedFd, OwnedFd};
use crate::sys::ledger::{Care, Ledger};
use crate::sys::rights::Rights;
use crate::sys::variables::{self, Variables};
use crate::sys::{environment, memory, pidfd, signals, spawn};
use crate::wire::codec;
use crate::wire::message::{Hello, Request, Wanted, Welcome};
use crate::zygote::boot::Role;

/// How long a zygote that has been asked may be silent. Then it is replaced: somebody has stopped it.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How long it has for its constructors before a start that has waited for it in vain ends it.
const BOOT: Duration = Duration::from_secs(5);

/// So many that die one after the other before they are ready are an error.
const CRASHES: u64 = 3;

/// So many that a filter of system calls ends one after the other, before they have made a child, are enough.
const FILTERED: u32 = 3;

/// One zygote.
pub(crate) struct Zygote {
    line: OwnedFd,
    pub(super) pidfd: OwnedFd,
    ledger: Ledger,
    pub(super) slots: Arc<Slots>,
    pub(super) nonce: u64,
    /// What it has from us: an environment, and standard streams (kept here to be compared with later ones).
    environment: Mutex<Environments>,
    pub(super) streams: [Option<OwnedFd>; 3],
    rights: OnceLock<Rights>,
    began: Instant,
    /// Milliseconds from `began` to its last word.
    heard: AtomicU64,
    dead: AtomicBool,
    has_made: AtomicBool,
    /// Leaders of groups, by their pidfds' identity, that it is still to be told to let go of.
    unreleased: Mutex<Vec<u64>>,
}

/// What a zygote's children have as their environment.
struct Environments {
    theirs: Variables,
    /// What one of them was to have instead. If that happens a second time, all are to have it.
    wanted: Option<Variables>,
}

/// Why there is no zygote to be asked.
pub(super) enum Absent {
    /// Another launcher is to be taken.
    Refused(String, io::Error),
    /// It dies again and again.
    Failed(String),
    /// It was not ready in time.
    Late,
}

/// At most one zygote.
#[derive(Default)]
pub(crate) struct Zygotes {
    now: Mutex<Now>,
    changed: Condvar,
    wanted: AtomicBool,
}

#[derive(Default)]
struct Now {
    zygote: Option<Arc<Zygote>>,
    /// Why none could be made the last time, until the next is wanted.
    refused: Option<(String, Option<i32>, String)>,
    /// For the one that is wanted: as whoever wants it has it.
    environment: Variables,
    /// Why none is to be made any more.
    unfit: Option<String>,
    /// How many died before they were ready, and how the last one did.
    crashes: u64,
    /// How many were ended in a row by a filter of system calls, ready, and before they had made a child.
    filtered: u32,
    /// Whether one has been ready before.
    had_one: bool,
    crash: Option<ExitStatus>,
}

impl Zygotes {
    pub(super) fn crashes(&self) -> u64 {
        lock(&self.now).crashes
    }

    /// Whether there is none, and nobody has asked for one yet: then it is made from now on, and the caller need not wait for it.
    pub(super) fn is_first(&self, runtime: &Runtime) -> bool {
        let mut now = lock(&self.now);
        let is_wanted = now.zygote.is_none() && now.unfit.is_none() && now.refused.is_none();
        let is_first = is_wanted && now.crashes == 0 && !self.wanted.swap(true, Ordering::SeqCst);
        if is_first {
            now.environment = variables::own();
            runtime.poller.ring();
        }
        is_first
    }

    /// The zygote, ready to be asked; it is made if there is none. `seen`: how many crashes are not to be counted.
    pub(super) fn get(
        &self,
        runtime: &Runtime,
        deadline: Option<Instant>,
        seen: u64,
    ) -> Result<Arc<Zygote>, Absent> {
        let mut now = lock(&self.now);
        let mut asked = false;
        loop {
            if let Some(zygote) = now.zygote.as_ref().filter(|zygote| zygote.rights.get().is_some()) {
                return Ok(zygote.clone());
            }
            if let Some(why) = &now.unfit {
                return Err(Absent::Refused("the zygote".into(), io::Error::other(why.clone())));
            }
            if let Some((step, errno, text)) = now.refused.as_ref().filter(|_| asked) {
                let error =
                    errno.map_or_else(|| io::Error::other(text.clone()), io::Error::from_raw_os_error);
                return Err(Absent::Refused(step.clone(), error));
            }
            if now.crashes >= seen + CRASHES {
                let how = now.crash.map_or_else(String::new, |status| format!("; the last: {status}"));
                return Err(Absent::Failed(format!("{CRASHES} in a row ended before they were ready{how}")));
            }
            if now.zygote.is_none() && !self.wanted.swap(true, Ordering::SeqCst) {
                now.refused = None;
                now.environment = variables::own();
                runtime.poller.ring();
            }
            asked = true;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            now = match left {
                None => self.changed.wait(now).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    if let Some(zygote) = now.zygote.as_ref().filter(|zygote| zygote.began.elapsed() > BOOT) {
                        zygote.kill();
                    }
                    return Err(Absent::Late);
                }
                Some(left) => self.changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Waits until that one has been seen to be dead.
    pub(super) fn wait_for_end(&self, zygote: &Arc<Zygote>, deadline: Option<Instant>) {
        let mut now = lock(&self.now);
        while now.zygote.as_ref().is_some_and(|current| Arc::ptr_eq(current, zygote)) {
            let left = deadline.map_or(PATIENCE, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            now = self.changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// For the reaper: makes one if one is wanted.
    pub(super) fn make_if_wanted(&self, runtime: &Runtime) {
        if !self.wanted.load(Ordering::SeqCst) {
            return;
        }
        let environment = std::mem::take(&mut lock(&self.now).environment);
        let made = Zygote::new(environment).and_then(|zygote| {
            let zygote = Arc::new(zygote);
            runtime.watch_zygote(&zygote).map_err(|error| {
                zygote.kill();
                pidfd::reap_blocking(&zygote.pidfd);
                ("epoll".into(), error)
            })?;
            Ok(zygote)
        });
        let mut fallback = None;
        let mut now = lock(&self.now);
        match made {
            Ok(zygote) => now.zygote = Some(zygote),
            Err((step, error)) => {
                fallback = Some((step.clone(), error.to_string()));
                now.refused = Some((step, error.raw_os_error(), error.to_string()));
            }
        }
        self.wanted.store(false, Ordering::SeqCst);
        drop(now);
        self.changed.notify_all();
        if let Some((step, why)) = fallback {
            log::fallback(&step, &why);
        }
    }

    /// The one that lives, or has not been reaped.
    pub(super) fn current(&self) -> Option<Arc<Zygote>> {
        lock(&self.now).zygote.clone()
    }

    /// One that leads a group has ended, and nothing of the group is to be ended any more.
    pub(super) fn release(&self, unit: &Unit) {
        if unit.guard.is_some()
            && let Some(zygote) = self.current().filter(|zygote| zygote.has_spoken())
            && let Some(identity) = identity(unit.pidfd())
        {
            lock(&zygote.unreleased).push(identity);
            zygote.release();
        }
    }

    /// For the reaper: it has said its first word.
    pub(super) fn on_hello(&self, zygote: &Zygote, hello: Hello) {
        let unfit = hello.unfit.clone();
        let again;
        hook::step_on(zygote.line.as_fd(), "hello");
        {
            let mut now = lock(&self.now);
            again = std::mem::replace(&mut now.had_one, true);
            match hello.unfit {
                None => drop(zygote.rights.set(hello.rights)),
                Some(why) => now.unfit = Some(why),
            }
        }
        self.changed.notify_all();
        match unfit {
            None => log::zygote_ready(zygote.began.elapsed(), again),
            Some(why) => log::fallback("the zygote", &why),
        }
    }

    /// For the reaper: it has been reaped.
    pub(super) fn on_end(&self, zygote: &Zygote, status: ExitStatus) {
        log::zygote_ended(&status);
        let mut unfit = None;
        {
            let mut now = lock(&self.now);
            let was_ready = zygote.rights.get().is_some();
            if !was_ready && now.unfit.is_none() {
                now.crashes += 1;
                now.crash = Some(status);
            }
            let is_filtered = was_ready && pidfd::signal(status) == Some(signals::SYS);
            let is_next = is_filtered && !zygote.has_made.load(Ordering::Relaxed);
            now.filtered = if is_next { now.filtered + 1 } else { 0 };
            // The next would fare no better: what is filtered stays so.
            if now.filtered >= FILTERED && now.unfit.is_none() {
                let why = format!(
                    "{FILTERED} in a row were ended by a filter when they were to make a child ({status})"
                );
                now.unfit = Some(why.clone());
                unfit = Some(why);
            }
            now.zygote = None;
        }
        self.changed.notify_all();
        if let Some(why) = unfit {
            log::fallback("the zygote", &why);
        }
    }
}

impl Zygote {
    fn new(environment: Variables) -> Result<Self, (String, io::Error)> {
        let failed = |step: &'static str| move |error| (step.to_owned(), error);
        let (line, theirs) = sysio::packet_line().map_err(failed("socketpair"))?;
        let (ledger, memory) = Ledger::new().map_err(failed("memfd_create"))?;
        let own = pidfd::open(std::process::id()).map_err(failed("pidfd_open"))?;
        let mut streams = [const { None }; 3];
        for (number, kept) in (0..).zip(&mut streams) {
            let stream = sysio::standard(number);
            *kept = stream.map(sysio::duplicate).transpose().map_err(failed("standard streams"))?;
        }
        let claim = claim(Role::Zygote);
        let welcome = codec::encode(&Welcome { nonce: claim.nonce });
        let welcome = welcome.map_err(|error| ("its welcome".to_owned(), io::Error::other(error)))?;
        sysio::send_with(&line, &[&welcome], &[own.as_fd(), memory.as_fd()])
            .map_err(failed("its welcome"))?;
        let (_, pidfd) = spawn::spawn(spawn::Image {
            arguments: std::env::args_os().collect(),
            environment: marked(&environment, &claim),
            directory: None,
            umask: None,
            // What is noted here, also if the program exchanges its own at this very moment.
            streams: streams.each_ref().map(|stream: &Option<OwnedFd>| stream.as_ref().map(AsFd::as_fd)),
            line: theirs.as_fd(),
            // If it is stopped when we die, it goes on, and sees that.
            death_signal: Some(signals::CONT),
        })
        .map_err(|(step, error)| (step.to_owned(), error))?;
        hook::step_on(line.as_fd(), "made");
        Ok(Self {
            line,
            pidfd,
            ledger,
            slots: Arc::new(Slots::new()),
            nonce: claim.nonce,
            environment: Mutex::new(Environments { theirs: environment, wanted: None }),
            streams,
            rights: OnceLock::new(),
            began: Instant::now(),
            heard: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            has_made: AtomicBool::new(false),
            unreleased: Mutex::default(),
        })
    }

    pub(super) fn line(&self) -> &OwnedFd {
        &self.line
    }

    /// Whether it has said its first word.
    pub(super) fn has_spoken(&self) -> bool {
        self.rights.get().is_some()
    }

    pub(super) fn has_rights(&self, rights: &Rights) -> bool {
        self.rights.get() == Some(rights)
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.dead.load(Ordering::SeqCst)
    }

    /// For the reaper, under the table's lock: from now on no child of its is expected.
    pub(super) fn on_death(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// For the reaper, after its death: the child that it had made for that request without saying so.
    pub(super) fn child_of(&self, request: u64) -> Option<u32> {
        self.ledger.child_of(request)
    }

    /// For the reaper: it has made a child.
    pub(super) fn on_child(&self) {
        self.has_made.store(true, Ordering::Relaxed);
    }

    pub(super) fn on_word(&self) {
        self.heard.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// A place in the ledger for a spare, which is noted to have no unit yet.
    pub(super) fn take_slot(&self) -> Option<Slot> {
        self.slots.take().inspect(|slot| self.ledger.note(slot.number, Care::Parked))
    }

    /// Notes what is to become of a spare that has got its unit.
    pub(super) fn note(&self, slot: usize, care: Care) {
        self.ledger.note(slot, care);
    }

    /// Asks for something, if it can be asked at once; with it go descriptors.
    fn try_request(&self, request: &Request, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = codec::encode(request).map_err(io::Error::other)?;
        sysio::send_with(&self.line, &[&bytes], with).map(drop)
    }

    /// Asks for a child, if it can be asked at once. Gives the environment that it will have.
    pub(super) fn try_child(&self, wanted: &Wanted, with: &[BorrowedFd<'_>]) -> io::Result<Variables> {
        // Held while it is sent: what is said of the environment comes before or after.
        let environments = lock(&self.environment);
        self.try_request(&Request::Child(wanted.clone()), with)?;
        Ok(environments.theirs.clone())
    }

    /// A child was to have the program's environment, and had to be told. From the second time on, those that are made have it.
    pub(super) fn on_environment(&self, environment: &Variables) {
        let mut environments = lock(&self.environment);
        let is_again = environments.wanted.as_ref().is_some_and(|wanted| Arc::ptr_eq(wanted, environment));
        if !is_again {
            environments.wanted = Some(environment.clone());
        } else if !Arc::ptr_eq(&environments.theirs, environment)
            && self.send_environment(environment).is_ok()
        {
            environments.theirs = environment.clone();
        }
    }

    fn send_environment(&self, environment: &Variables) -> io::Result<()> {
        let block = environment::block(environment)?;
        let memory = memory::Sealed::new(&block)?.file;
        self.try_request(&Request::Environment(block.len()), &[memory.as_fd()])
    }

    /// Tells it of the groups that are not to be ended any more, as far as its line has room for that; the rest is told with the next
    /// request, or by the reaper.
    pub(super) fn release(&self) {
        let mut unreleased = lock(&self.unreleased);
        while let Some(identity) = unreleased.last() {
            match self.try_request(&Request::Release(*identity), &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => drop(unreleased.pop()),
            }
        }
    }

    /// Asks it to see to a child that it has not made, should we die; not after it was told to let go of it, or it would hold it for
    /// ever. If it cannot hear that now, the child has its own guard.
    pub(super) fn entrust(&self, unit: &Unit) {
        if let Some(guard) = unit.guard.clone()
            && self.has_spoken()
        {
            let ward = Request::Ward { pid: unit.pid(), guard, cgroup: unit.cgroup().cloned() };
            unit.before_release(|| drop(self.try_request(&ward, &[unit.pidfd().as_fd()])));
        }
    }

    /// As [`Zygote::try_child`], but waits until it can be asked.
    pub(super) fn child(
        &self,
        wanted: &Wanted,
        line: &OwnedFd,
        deadline: Option<Instant>,
    ) -> io::Result<Variables> {
        let asked = Instant::now();
        loop {
            match self.try_child(wanted, &[line.as_fd()]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Many have asked, and it has not answered.
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|left| left.is_zero()) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    let pause = left.unwrap_or(PATIENCE).min(PATIENCE);
                    if !sysio::wait_any(&[self.line.as_fd()], true, Some(pause))[0] {
                        self.replace_if_silent(asked);
                    }
                }
                sent => return sent,
            }
        }
    }

    /// Ends it if it was asked then, and has not said anything for long.
    pub(super) fn replace_if_silent(&self, asked: Instant) {
        let heard = self.began + Duration::from_millis(self.heard.load(Ordering::Relaxed));
        if asked.max(heard).elapsed() >= PATIENCE {
            self.kill();
        }
    }

    pub(super) fn kill(&self) {
        if pidfd::send_signal(&self.pidfd, signals::KILL).is_err() {
            // This process has changed its user. The zygote ends when it hears no more from us.
            sysio::end_sending(&self.line);
        }
    }
}
