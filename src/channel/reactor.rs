//! Whoever awaits a channel leaves a waker here: one thread, which is there while anybody does, waits for all of them.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::AtomicPtr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Stop;
use crate::sys::io::{self as sysio, OwnedFd, Poller, Sign};
use crate::sys::{lifecycle, signals};

/// So long the thread stays when nobody waits any more: most that await do so again.
const IDLE: Duration = Duration::from_secs(1);

/// This process's. A forked copy finds its original's, with locks that may be held for ever, and makes its own.
struct Process {
    pid: u32,
    running: Mutex<Option<(Arc<Reactor>, JoinHandle<()>)>>,
}

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(null_mut());

fn process() -> &'static Process {
    lifecycle::per_process(
        &PROCESS,
        |process| process.pid == std::process::id(),
        || Process { pid: std::process::id(), running: Mutex::new(None) },
    )
}

struct Reactor {
    poller: Poller,
    waits: Mutex<Waits>,
}

#[derive(Default)]
struct Waits {
    next: u64,
    /// The thread ends as soon as nobody waits.
    ending: bool,
    /// It has ended, or is about to: nobody is to come any more.
    closed: bool,
    all: HashMap<u64, Wait>,
}

struct Wait {
    /// Of its own, for many may wait for one file.
    descriptor: OwnedFd,
    until: Option<Instant>,
    waker: Waker,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody who waits. Dropped, he does so no more.
pub(super) struct Registration {
    /// The process whose it is: a forked copy must not touch it, for what it does to the poller it does to the original's.
    owner: u32,
    reactor: Option<Arc<Reactor>>,
    id: u64,
}

impl Registration {
    /// The waker is called once: when the sign is there, or after so long.
    pub(super) fn new(
        descriptor: &OwnedFd,
        sign: Sign,
        time: Option<Duration>,
        waker: &Waker,
    ) -> Result<Self, Stop> {
        let until = time.and_then(|time| Instant::now().checked_add(time));
        let descriptor = sysio::duplicate(descriptor).map_err(Stop::Failed)?;
        // Foreign code, before anything is locked.
        let mut wait = Wait { descriptor, until, waker: waker.clone() };
        let mut running = lock(&process().running);
        loop {
            if let Some((reactor, _)) = &*running {
                wait = match reactor.add(wait, sign).map_err(Stop::Failed)? {
                    Ok(id) => {
                        return Ok(Self { owner: std::process::id(), reactor: Some(reactor.clone()), id });
                    }
                    Err(wait) => wait,
                };
            }
            *running = Some(Reactor::begin().map_err(Stop::Failed)?);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(reactor) = self.reactor.take() else { return };
        if self.owner != std::process::id() {
            return std::mem::forget(reactor);
        }
        let wait = {
            let mut waits = lock(&reactor.waits);
            let wait = waits.all.remove(&self.id);
            if let Some(wait) = &wait {
                reactor.poller.remove(&wait.descriptor);
            }
            wait
        };
        // Its waker is foreign code: nothing is locked.
        drop(wait);
    }
}

impl Reactor {
    fn begin() -> io::Result<(Arc<Self>, JoinHandle<()>)> {
        let reactor = Arc::new(Self { poller: Poller::new()?, waits: Mutex::default() });
        // The program's signal handlers are not to run on our thread.
        let mask = signals::block_handled();
        let own = reactor.clone();
        let thread = std::thread::Builder::new().name("offspring-await".into()).spawn(move || own.work());
        signals::restore(mask);
        Ok((reactor, thread?))
    }

    /// Enters somebody; gives him back if nobody is to come any more.
    fn add(&self, wait: Wait, sign: Sign) -> io::Result<Result<u64, Wait>> {
        let mut waits = lock(&self.waits);
        if waits.closed {
            return Ok(Err(wait));
        }
        waits.next += 1;
        let id = waits.next;
        self.poller.add_for(&wait.descriptor, id, sign)?;
        let is_timed = wait.until.is_some();
        waits.all.insert(id, wait);
        drop(waits);
        if is_timed {
            self.poller.ring();
        }
        Ok(Ok(id))
    }

    fn work(&self) {
        let mut idle_since = None;
        loop {
            let first = lock(&self.waits).all.values().filter_map(|wait| wait.until).min();
            let pause = first.map_or(IDLE, |first| first.saturating_duration_since(Instant::now()).min(IDLE));
            let tokens = self.poller.wait(Some(pause));
            let now = Instant::now();
            let ready: Vec<Wait> = {
                let mut waits = lock(&self.waits);
                let over = waits.all.iter().filter(|(_, wait)| wait.until.is_some_and(|until| until <= now));
                let due: Vec<u64> = over.map(|(id, _)| *id).chain(tokens).collect();
                let ready: Vec<Wait> = due.iter().filter_map(|id| waits.all.remove(id)).collect();
                ready.iter().for_each(|wait| self.poller.remove(&wait.descriptor));
                ready
            };
            for Wait { waker, .. } in ready {
                // The executor's code: it may panic, and nothing of ours is locked.
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
                    // Its destructor is foreign code as well.
                    std::mem::forget(payload);
                }
            }
            let mut waits = lock(&self.waits);
            if !waits.all.is_empty() {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert(now);
            if waits.ending || now.duration_since(since) >= IDLE {
                waits.closed = true;
                return;
            }
        }
    }
}

/// Ends the thread if nobody awaits anything.
pub(crate) fn shutdown() {
    let thread = {
        let mut running = lock(&process().running);
        let Some((reactor, _)) = &*running else { return };
        if !lock(&reactor.waits).all.is_empty() {
            return;
        }
        lock(&reactor.waits).ending = true;
        reactor.poller.ring();
        running.take()
    };
    if let Some((_, thread)) = thread
        && thread.thread().id() != std::thread::current().id()
    {
        let _ = thread.join();
    }
}
