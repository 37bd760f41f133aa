//! The test harness: each behaviour runs in a process of its own, once through every launcher, within a bounded time,
//! and ends with the check that nothing is left: no zombie, no descriptor, no thread, no process.
//!
//! A test runs its own binary again, for itself alone, with `OFFSPRING_TEST` in the environment. Everything that the
//! body starts inherits that variable, so that a process which outlived its parents is found by it.
#![allow(dead_code, unsafe_code, unreachable_pub, unused_imports)]

pub mod descendant;
pub mod marks;
mod surroundings;
pub mod told;
pub mod ways;

pub mod words;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub use surroundings::{
    Double, as_first_process, become_user, double, doubles, good, is_again, library, limit, mount, myself,
    own_mounts, place, remove, take_all_descriptors,
};

/// As `OFFSPRING_LAUNCHER` forces them.
pub const LAUNCHERS: &[&str] = &["exec", "zygote", "spare"];
/// Behind a launcher's name: units are to have no cgroups, though they could.
const WITHOUT: &str = " without cgroups";
const TAG: &str = "OFFSPRING_TEST";
const CASE: &str = "OFFSPRING_TEST_CASE";

/// Declares tests that run through the harness: through every launcher, or, with `through [..];`, through those alone (`auto`
/// leaves the choice to the library).
#[macro_export]
macro_rules! behaviour {
    (through $launchers:expr; $($(#[$meta:meta])* fn $name:ident() $body:block)*) => {$(
        #[test]
        $(#[$meta])*
        fn $name() {
            $crate::harness::run(&$launchers, concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    )*};
    ($($(#[$meta:meta])* fn $name:ident() $body:block)*) => {
        behaviour! { through *$crate::harness::LAUNCHERS; $($(#[$meta])* fn $name() $body)* }
    };
}

/// Runs `body` in a process of its own through each launcher; in that process, runs it.
pub fn run(launchers: &[&'static str], path: &str, body: impl FnOnce()) {
    let all: Vec<Case> = launchers.iter().map(|launcher| (*launcher, String::new())).collect();
    run_cases(&all, path, 1, Duration::from_secs(120), |_| body());
}

/// A launcher, and what the test's body is told.
pub type Case = (&'static str, String);

/// Runs `body` for each case in a process of its own, so many `at_once`, each within `limit`; in such a process, runs it for
/// that case.
pub fn run_cases(cases: &[Case], path: &str, at_once: usize, limit: Duration, body: impl FnOnce(&str)) {
    if std::env::var_os(TAG).is_some() {
        let case = std::env::var(CASE).unwrap();
        return checked(|| body(&case));
    }
    // The test binary's own name for the test is without the crate's.
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    let left = Mutex::new(cases.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(case) = next(&left) {
                    if let Err(how) = run_case(case, name, limit) {
                        failed.lock().unwrap().push(how);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

fn next<'a>(left: &Mutex<std::slice::Iter<'a, Case>>) -> Option<&'a Case> {
    left.lock().unwrap().next()
}

fn run_case((launcher, case): &Case, name: &str, limit: Duration) -> Result<(), String> {
    let tag = format!("{name}-{launcher}-{case}-{}", std::process::id());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    let forced = launcher.strip_suffix(WITHOUT);
    command.env(TAG, &tag).env(CASE, case).stdin(Stdio::null());
    command.env("OFFSPRING_LAUNCHER", forced.unwrap_or(launcher));
    if forced.is_some() {
        command.env("OFFSPRING_CGROUPS", "no");
    }
    let output = finish(command, limit);
    let orphans = tagged(&tag);
    orphans.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
    let what = match () {
        () if !output.0 => "failed".to_owned(),
        () if !output.1.contains("1 passed") => "did not run".to_owned(),
        () if !orphans.is_empty() => format!("left processes: {orphans:?}"),
        () => return Ok(()),
    };
    Err(format!("{name} {case} through {launcher} {what}:\n{}", output.1))
}

/// Runs a command to its end, or kills it when the time is over; whether it succeeded, and what it printed.
pub fn finish(mut command: Command, limit: Duration) -> (bool, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
    drop(command);
    let pid = child.id();
    let (done, over) = std::sync::mpsc::channel::<()>();
    let killer = std::thread::spawn(move || {
        // Its own child, not reaped before this thread has been joined.
        if over.recv_timeout(limit).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout) {
            kill(pid, libc::SIGKILL);
        }
    });
    let mut text = String::new();
    let collector = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = reader.read_to_end(&mut bytes);
        text.push_str(&String::from_utf8_lossy(&bytes));
        text
    });
    wait_without_reaping(pid);
    let _ = done.send(());
    killer.join().unwrap();
    let status = child.wait().unwrap();
    let text = collector.join().unwrap();
    (status.success(), format!("{text}\n{status}"))
}

fn wait_without_reaping(pid: u32) {
    // SAFETY: a zeroed record is a valid one for waitid(2) to write into.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_PID, pid, &raw mut info, libc::WEXITED | libc::WNOWAIT);
    }
}

/// Sends a signal to a process that this test started.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: kill(2) has no conditions.
    unsafe { libc::kill(pid as i32, signal) };
}

/// The body, and then the check that it left nothing.
fn checked(body: impl FnOnce()) {
    // What the first use opens for good is not ours: std's and libc's own.
    let _ = std::io::stdout();
    let (descriptors, threads) = (entries("fd"), entries("task"));
    body();
    offspring::shutdown();
    if std::process::id() == 1 {
        // The first process of a namespace has the orphans as well.
        eventually("a child is left", || reaped() == -1);
    }
    let children = reaped();
    assert_eq!(children, -1, "a child is left: {children}");
    // At once, but where the reaper itself was the one to shut down: then it lets go a moment later.
    eventually("descriptors are left", || entries("fd") == descriptors);
    // A thread that was joined is in the list until the kernel has done away with it.
    eventually("threads are left", || entries("task").is_subset(&threads));
}

/// A child that has ended, whoever's; 0 if none has, -1 if there is none.
fn reaped() -> i32 {
    // SAFETY: null asks for no status.
    unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) }
}

/// The names in a directory of /proc/self.
pub fn entries(directory: &str) -> BTreeSet<String> {
    let list = std::fs::read_dir(format!("/proc/self/{directory}")).unwrap();
    // Without the descriptor that reads this very list: it is closed again by now.
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let names: Vec<String> = list.map(name).collect();
    names
        .into_iter()
        .filter(|name| std::fs::symlink_metadata(format!("/proc/self/{directory}/{name}")).is_ok())
        .collect()
}

/// Waits for something that nothing tells of, for ten seconds at most.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// This test's tag.
pub fn tag() -> String {
    std::env::var(TAG).unwrap()
}

/// Whether the machine lets this process do so; says that the test is skipped if not.
pub fn can(what: &str, is_so: bool) -> bool {
    if !is_so {
        println!("skipped: {what} cannot be had here");
    }
    is_so
}

/// This process's zygote, if there is one.
pub fn zygote() -> Option<u32> {
    zygotes().into_iter().next()
}

/// All of this process's zygotes: one at the most, it is to be hoped.
pub fn zygotes() -> Vec<u32> {
    makers_and_made().0
}

/// This process's spares.
pub fn spares() -> Vec<u32> {
    makers_and_made().1
}

/// The live children of this process that are no units: zygotes, and what they have made and nobody has asked for.
fn makers_and_made() -> (Vec<u32>, Vec<u32>) {
    let is_named = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("offspring"))
    };
    // One that is about to be executed has the name and the memory of our reaper still.
    let marker = format!("OFFSPRING_CHILD_OF=offspring-1:zygote:{}:", std::process::id());
    let is_executed = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|block| block.windows(marker.len()).any(|part| part == marker.as_bytes()))
    };
    // A clone has its maker's name until it has one of its own, but not the page that the maker shares with us.
    let shares = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/maps"))
            .is_ok_and(|maps| maps.contains("/memfd:offspring"))
    };
    children().into_iter().filter(|pid| is_alive(*pid)).filter(is_named).filter(is_executed).partition(shares)
}

/// All children of this process, whoever made them, also those that have ended and are not reaped.
pub fn children() -> Vec<u32> {
    let lists = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    let lists: Vec<String> = lists.collect();
    lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

/// Every live process with that tag in its environment, but this one, its zygote and its spares.
pub fn tagged(tag: &str) -> Vec<u32> {
    let entry = format!("{TAG}={tag}\0");
    let (zygotes, spares) = makers_and_made();
    let own = [zygotes, spares].concat();
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes
        .filter(|pid| *pid != std::process::id() && !own.contains(pid) && is_alive(*pid))
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(entry.len()).any(|window| window == entry.as_bytes())
        })
        .collect()
}

/// Whether a process of that pid exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !['Z', 'X'].contains(&state))
}

/// The letter that stands for a process's state in /proc: `T` for stopped.
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Sets this process's limit of open files; gives the one before.
pub fn limit_files(files: u64) -> u64 {
    // SAFETY: a record that is filled in full.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let before = limit.rlim_cur;
        limit.rlim_cur = files;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        before
    }
}

/// For what is started from now on: ends at a step of the protocol. No other thread may read the environment here.
pub fn wish(step: &str) {
    // SAFETY: see above.
    unsafe { std::env::set_var("OFFSPRING_STEP", step) };
}

/// What this process has used of the processors so far.
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid record.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The name of a process, as `ps` shows it.
pub fn name(pid: u32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// Whether the kernel is that version, or newer.
pub fn is_kernel(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Whether this process may do what root may.
pub fn is_root() -> bool {
    // SAFETY: geteuid(2) has no conditions.
    unsafe { libc::geteuid() == 0 }
}

/// Makes the calling thread, or the whole process, and what it starts, get an error from one system call.
pub fn filter(call: libc::c_long, errno: i32, everywhere: bool) -> bool {
    install(&[jump_unless(call as u32, 1), answer(errno)], everywhere)
}

/// The same of the whole process, but only if that argument of the call (from 0) is this one.
pub fn filter_argument(call: libc::c_long, place: usize, argument: u32, errno: i32) -> bool {
    let load = load(std::mem::offset_of!(libc::seccomp_data, args) + place * size_of::<u64>());
    install(&[jump_unless(call as u32, 3), load, jump_unless(argument, 1), answer(errno)], true)
}

/// Makes one system call the end of whoever makes it in this process (SIGSYS).
pub fn forbid(call: libc::c_long) -> bool {
    let end = libc::sock_filter { k: libc::SECCOMP_RET_KILL_PROCESS, ..answer(0) };
    install(&[jump_unless(call as u32, 1), end], true)
}

fn load(offset: usize) -> libc::sock_filter {
    let code = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    libc::sock_filter { code, jt: 0, jf: 0, k: offset as u32 }
}

/// Goes on if what was loaded is this, else skips so many steps.
fn jump_unless(value: u32, skip: u8) -> libc::sock_filter {
    let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    libc::sock_filter { code, jt: 0, jf: skip, k: value }
}

fn answer(errno: i32) -> libc::sock_filter {
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    let k = if errno == 0 { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_ERRNO | errno as u32 };
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn install(steps: &[libc::sock_filter], everywhere: bool) -> bool {
    let mut steps = [&[load(std::mem::offset_of!(libc::seccomp_data, nr))], steps, &[answer(0)]].concat();
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    let flags = if everywhere { libc::SECCOMP_FILTER_FLAG_TSYNC } else { 0 };
    // SAFETY: the kernel copies the program; the flag is this thread's own.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) == 0
    }
}
