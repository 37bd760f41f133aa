//! Signals: masks, and the three handlers that a child installs (stop, guard, stack overflow).
//!
//! The handlers touch atomics and make system calls, nothing else.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use libc::{c_int, c_void};

use super::spawn::LINE;

/// The parent-death signal of our children: a real-time signal, so that it cannot be taken for one of the program's.
pub(crate) const GUARD: c_int = 61;

pub(crate) const TERM: i32 = libc::SIGTERM;
pub(crate) const KILL: i32 = libc::SIGKILL;
pub(crate) const CONT: i32 = libc::SIGCONT;
#[cfg(feature = "testing")]
pub(crate) const STOP_SIGNAL: i32 = libc::SIGSTOP;
pub(crate) const ABRT: i32 = libc::SIGABRT;
pub(crate) const SEGV: i32 = libc::SIGSEGV;
pub(crate) const BUS: i32 = libc::SIGBUS;
pub(crate) const XCPU: i32 = libc::SIGXCPU;
pub(crate) const XFSZ: i32 = libc::SIGXFSZ;
pub(crate) const SYS: i32 = libc::SIGSYS;

/// Whether a process that ends of this signal has brought it upon itself, as far as anybody can tell.
pub(crate) fn is_own_doing(signal: i32) -> bool {
    use libc::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGPIPE, SIGSEGV, SIGSYS, SIGTRAP, SIGXCPU, SIGXFSZ};
    [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGPIPE, SIGSEGV, SIGSYS, SIGTRAP, SIGXCPU, SIGXFSZ].contains(&signal)
}

/// The kernel's signal mask, with libc's own two signals in it, which sigprocmask(3) would leave out.
#[derive(Clone, Copy)]
pub(crate) struct Mask(u64);

fn set_mask(mask: Mask) -> Mask {
    let mut old = Mask(0);
    // SAFETY: rt_sigprocmask(2) reads and writes eight bytes each; the mask is the thread's own.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask.0,
            &raw mut old.0,
            size_of::<u64>(),
        )
    };
    old
}

/// Blocks every signal in the calling thread; gives what was blocked before.
pub(crate) fn block_all() -> Mask {
    set_mask(Mask(u64::MAX))
}

/// Blocks in the calling thread, for good, every signal that the program may handle; gives what was blocked before. Not
/// libc's own two: by them it asks every thread to take part in setuid(3), and waits until each has.
pub(crate) fn block_handled() -> Mask {
    set_mask(HANDLED)
}

const HANDLED: Mask = Mask(!(0b11 << (32 - 1)));

/// Puts back what [`block_all`] gave.
pub(crate) fn restore(mask: Mask) {
    set_mask(mask);
}

/// Lets every signal through to the calling thread.
pub(crate) fn unblock_all() {
    set_mask(Mask(0));
}

/// Blocks in a new child, until its unit is called, what is to find its handlers in place, or the unit itself: the guard,
/// TERM and INT. No other, for the mask is inherited by threads that a library's constructor may start.
pub(super) fn block_until_open() {
    set_mask(Mask(
        [GUARD, libc::SIGTERM, libc::SIGINT].iter().fold(0, |mask, signal| mask | 1 << (signal - 1)),
    ));
}

/// Where a spare hears of signals while it waits, to forget them: it is in the program's process group, where a terminal's
/// signals come as well, and these are not for its unit.
pub(crate) struct Forgetting(OwnedFd);

impl Forgetting {
    /// All but the guard's. They stay blocked.
    pub(crate) fn new() -> Option<Self> {
        let all = Mask(!(1_u64 << (GUARD - 1)));
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: signalfd(2) reads eight bytes; what it gives is a new descriptor, which nobody else knows of.
        unsafe {
            let made = libc::syscall(libc::SYS_signalfd4, -1, &raw const all.0, size_of::<u64>(), flags);
            (made >= 0).then(|| Self(OwnedFd::from_raw_fd(made as c_int)))
        }
    }

    pub(crate) fn forget(&self) {
        // Bounded, for they may come faster than they go.
        for _ in 0..64 {
            if rustix::io::read(&self.0, &mut [0_u8; 1024]).is_err() {
                return;
            }
        }
    }
}

impl AsFd for Forgetting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// In a spare that has got its unit, all signals still blocked: forgets what others than the parent have sent in the last
/// moment.
pub(crate) fn forget_what_came_before(parent: u32) {
    let all = Mask(!(1_u64 << (GUARD - 1)));
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut kept = 0_u64;
    // Bounded, for real-time signals come as often as they are sent.
    for _ in 0..4096 {
        // SAFETY: rt_sigtimedwait(2) reads eight bytes and a time, and writes a record, which is read only if it did. What
        // is taken is pending in this process, which has one thread.
        let (signal, code, sender) = unsafe {
            let mut info: libc::siginfo_t = zeroed();
            let signal = libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const all.0,
                &raw mut info,
                &raw const at_once,
                size_of::<u64>(),
            );
            (signal, info.si_code, info.si_pid())
        };
        if signal <= 0 {
            break;
        }
        if code <= 0 && sender == parent as i32 {
            kept |= 1 << (signal - 1);
        }
    }
    for signal in (1..=64).filter(|signal| kept & 1 << (signal - 1) != 0) {
        // SAFETY: to ourselves; it is blocked, and so pending again.
        unsafe { libc::kill(libc::getpid(), signal) };
    }
}

/// Every signal back to its default action. Safe to call between `clone` and `exec`.
pub(super) fn default_all() {
    for signal in 1..=64 {
        // The system call itself, for sigaction(3) leaves out libc's own two signals, which may be ignored as well.
        // SAFETY: a zeroed record (the kernel's has four words at most) means SIG_DFL, no flags, empty mask; KILL and
        // STOP are refused, which is as well.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                [0_u64; 4].as_ptr(),
                null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
}

/// SIGPIPE ignored, as Rust's runtime has it from `main` on.
pub(crate) fn ignore_pipe() {
    // SAFETY: sets a disposition, no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

fn install(signal: c_int, handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void), flags: c_int) {
    // SAFETY: the record is filled in full; the handlers below are async-signal-safe and live as long as the program.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags | libc::SA_SIGINFO;
        libc::sigaction(signal, &raw const action, null_mut());
    }
}

/// 1 once the loop was told to stop; what a loop's sleep waits on.
static STOP: AtomicU32 = AtomicU32::new(0);

/// From now on TERM and INT no longer kill: they make [`stopped`] true and end [`sleep_until_stopped`].
pub(crate) fn install_stop() {
    extern "C" fn stop(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: errno is this thread's own; a handler must leave it as it was.
        let errno = unsafe { *libc::__errno_location() };
        STOP.store(1, Ordering::SeqCst);
        tell_stop();
        let _ = rustix::thread::futex::wake(&STOP, rustix::thread::futex::Flags::PRIVATE, i32::MAX as u32);
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
    }
    install(libc::SIGTERM, stop, libc::SA_RESTART);
    install(libc::SIGINT, stop, libc::SA_RESTART);
}

/// A descriptor that is readable once the process was told to stop, and in the upper half the process whose it is; 0 as long as nobody wants
/// one. (A copy that the unit forks is told for itself alone.)
static STOP_SIGN: AtomicU64 = AtomicU64::new(0);

fn tell_stop() {
    let sign = STOP_SIGN.load(Ordering::SeqCst);
    // SAFETY: getpid(2) has no conditions.
    if sign >> 32 == unsafe { libc::getpid() } as u64 {
        // SAFETY: write(2) from a word of our own, to a descriptor that is never closed.
        unsafe { libc::write(sign as c_int, (&raw const ONE).cast(), size_of::<u64>()) };
    }
}

static ONE: u64 = 1;

/// As [`install_stop`]; gives a descriptor that is readable once the process was told to stop.
pub(crate) fn catch_stop() -> io::Result<BorrowedFd<'static>> {
    let own = u64::from(std::process::id()) << 32;
    let before = STOP_SIGN.load(Ordering::SeqCst);
    let mut sign = before;
    if before & !u64::from(u32::MAX) != own {
        let new = super::io::counter()?.into_raw_fd();
        let ours = own | new as u64;
        sign = match STOP_SIGN.compare_exchange(before, ours, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => ours,
            Err(other) => {
                // SAFETY: ours, and nobody else knows of it.
                drop(unsafe { OwnedFd::from_raw_fd(new) });
                other
            }
        };
    }
    install_stop();
    if stopped() {
        // It has come before there was a sign.
        tell_stop();
    }
    // SAFETY: once there, it stays open for good.
    Ok(unsafe { BorrowedFd::borrow_raw(sign as c_int) })
}

pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::SeqCst) != 0
}

/// Sleeps so long, or until the loop is told to stop, whichever is first.
pub(crate) fn sleep_until_stopped(pause: Duration) {
    use rustix::thread::futex;
    let end = std::time::Instant::now().checked_add(pause);
    while !stopped() {
        let left = end.map(|end| end.saturating_duration_since(std::time::Instant::now()));
        if left == Some(Duration::ZERO) {
            return;
        }
        // Bounded, because the kernel's time does not reach as far as Duration's.
        let left = left.unwrap_or(Duration::MAX).min(Duration::from_secs(3600));
        let left =
            rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as _ };
        let _ = futex::wait(&STOP, futex::Flags::PRIVATE, 0, Some(&left));
    }
}

static PARENT: AtomicI32 = AtomicI32::new(0);
/// Milliseconds; `u64::MAX`: never.
static GRACE: AtomicU64 = AtomicU64::new(u64::MAX);
/// Whether this process leads a group that is to end with it.
static LEADS: AtomicBool = AtomicBool::new(false);

/// The guard's handler: when `parent` is gone, TERM to ourselves, and KILL by a timer of the kernel after the grace.
///
/// The kernel sends the death signal when the *thread* that started us ends (prctl(2), PR_SET_PDEATHSIG), so the
/// handler first looks whether the process is gone.
pub(crate) fn install_guard(parent: u32) {
    extern "C" fn guard(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: errno is this thread's own.
        let errno = unsafe { *libc::__errno_location() };
        if orphaned(PARENT.load(Ordering::Relaxed)) {
            end_myself();
        }
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
    }
    PARENT.store(parent as i32, Ordering::Relaxed);
    install(GUARD, guard, libc::SA_RESTART);
}

/// Asks for the guard's signal: from now on it comes when `parent` is gone. Until [`arm_guard`] it stays blocked.
pub(crate) fn prepare_guard() {
    // One that was executed has asked for it already, before it was; one that was cloned has not.
    // SAFETY: prctl(2) sets what belongs to this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, GUARD) };
    // The death signal says nothing when the very thread that started us executes another program. The line does: its
    // other end closes with that, and the kernel tells by the signal asked for here (fcntl(2), F_SETSIG).
    // SAFETY: fcntl(2) on our own line.
    unsafe {
        libc::fcntl(LINE, libc::F_SETOWN, libc::getpid());
        libc::fcntl(LINE, F_SETSIG, GUARD);
    }
}

/// After [`prepare_guard`], in a child that is to end with its parent. Not earlier, for from now on the line tells of all that
/// comes on it. `leads`: whether TERM goes to the whole of its own process group.
pub(crate) fn arm_guard(grace: Option<Duration>, leads: bool) {
    LEADS.store(leads, Ordering::Relaxed);
    let grace = grace.map_or(u64::MAX, |grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    GRACE.store(grace, Ordering::Relaxed);
    // SAFETY: fcntl(2) on our own line.
    unsafe { libc::fcntl(LINE, libc::F_SETFL, libc::O_ASYNC) };
}

/// After [`prepare_guard`], in a child that is not to end with its parent: takes it back, and forgets what has come of it.
pub(crate) fn dismiss_guard() {
    // SAFETY: prctl(2) and signal(2) set what belongs to this process. A signal that is ignored is forgotten where it waits.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, 0);
        libc::signal(GUARD, libc::SIG_IGN);
        libc::signal(GUARD, libc::SIG_DFL);
    }
}

const F_SETSIG: c_int = 10;

/// Whether the parent of that pid is gone: we have another one, or nobody has the other end of our line. (A parent that
/// executed another program keeps its pid; one outside of our pid namespace shows as 0.)
pub(crate) fn orphaned(parent: i32) -> bool {
    // A parent that may not signal us any more, because it has changed its user, ends its half of the line.
    has_another_parent(parent) || line() & (libc::POLLHUP | libc::POLLRDHUP) != 0
}

/// Whether the parent has ended its half of our line, and no more than that: it lives, and wants no more of us. To a child that
/// says that its start has failed, and what it was for is not to be run. (If the parent has died, or executes another program, both halves have ended.)
pub(crate) fn given_up() -> bool {
    line() & (libc::POLLHUP | libc::POLLRDHUP) == libc::POLLRDHUP
}

fn has_another_parent(parent: i32) -> bool {
    // SAFETY: getppid(2) has no conditions.
    let now = unsafe { libc::getppid() };
    now != 0 && now != parent
}

/// Which ends of our line have come.
fn line() -> i16 {
    let mut line = libc::pollfd { fd: LINE, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid record; poll(2) is async-signal-safe.
    unsafe { libc::poll(&raw mut line, 1, 0) };
    line.revents
}

fn end_myself() {
    // Told by the kernel, by the line and by the zygote; heard once.
    static ONCE: AtomicBool = AtomicBool::new(false);
    if ONCE.swap(true, Ordering::SeqCst) {
        return;
    }
    let grace = GRACE.load(Ordering::Relaxed);
    // SAFETY: system calls on valid records. The raw ones, for glibc's timer_create(3) may allocate, which a signal
    // handler must not.
    unsafe {
        if grace != u64::MAX {
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = libc::SIGKILL;
            let mut timer: c_int = 0;
            let mut when: libc::itimerspec = zeroed();
            when.it_value.tv_sec = (grace / 1000) as _;
            // Zero would disarm it.
            when.it_value.tv_nsec = (grace % 1000 * 1_000_000 + 1) as _;
            libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
            libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const when, null::<c_void>());
        }
        let own = libc::getpid();
        // Its number is ours as long as we live, so that the group cannot be a stranger's. If the unit has left it, there may
        // be others.
        let in_group = LEADS.load(Ordering::Relaxed) && libc::getpgrp() == own;
        if LEADS.load(Ordering::Relaxed) {
            // First, for what comes after TERM may not come to be done.
            libc::kill(-own, libc::SIGCONT);
            libc::kill(-own, libc::SIGTERM);
        }
        if !in_group {
            libc::kill(own, libc::SIGTERM);
        }
    }
}

static STACK_LOW: AtomicUsize = AtomicUsize::new(0);
static STACK_HIGH: AtomicUsize = AtomicUsize::new(0);

/// Gives the calling thread, the child's first, a stack for signals and a handler which tells an overflow of its own
/// stack from any other bad address: it says so and aborts, as Rust's runtime does from `main` on.
pub(crate) fn install_overflow() {
    extern "C" fn overflow(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: the kernel passes a valid record, and si_addr is set for both signals.
        let address = unsafe { (*info).si_addr() } as usize;
        if (STACK_LOW.load(Ordering::Relaxed)..STACK_HIGH.load(Ordering::Relaxed)).contains(&address) {
            let words =
                b"\nthread 'main' has overflowed its stack\nfatal runtime error: stack overflow, aborting\n";
            // SAFETY: write(2) of a constant; abort(3) is async-signal-safe.
            unsafe {
                libc::write(2, words.as_ptr().cast(), words.len());
                libc::abort();
            }
        }
        // Not ours: the default action, by running the faulting instruction once more; or, if it was no fault but sent by
        // somebody, by sending it again (it stays pending until we return).
        // SAFETY: sets a disposition; raise(3) is async-signal-safe; the record is valid.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
    }
    const SIZE: usize = 64 * 1024;
    const GUARD_PAGES: usize = 1 << 20;
    // SAFETY: a new private mapping, given to the kernel as this thread's signal stack for the rest of its life; the
    // attributes are initialised by pthread_getattr_np(3) before they are read, and destroyed after.
    unsafe {
        let mut attributes = MaybeUninit::uninit();
        let (mut low, mut size) = (null_mut(), 0);
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return;
        }
        libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let stack = libc::mmap(null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if stack == libc::MAP_FAILED {
            return;
        }
        let stack = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: SIZE };
        libc::sigaltstack(&raw const stack, null_mut());
        // The kernel keeps a gap of 256 pages (1 MiB) below a stack that grows.
        STACK_LOW.store((low as usize).saturating_sub(GUARD_PAGES), Ordering::Relaxed);
        STACK_HIGH.store(low as usize + (64 << 10), Ordering::Relaxed);
    }
    install(libc::SIGSEGV, overflow, libc::SA_ONSTACK);
    install(libc::SIGBUS, overflow, libc::SA_ONSTACK);
}
