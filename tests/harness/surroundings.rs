//! Surroundings of a test's making: the test binary once more, libraries that are loaded ahead of it, limits.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use offspring::{Error, Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

/// Gives twice as much; one that is deaf to TERM is killed soon.
#[derive(Serialize, Deserialize)]
pub struct Double(pub u64);

impl Subprocess for Double {
    type Output = u64;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(100));

    fn run(self) -> u64 {
        2 * self.0
    }
}

/// A start works.
pub fn doubles(n: u64) {
    assert_eq!(Offspring::new(Double(n)).and_then(Offspring::wait).unwrap(), 2 * n);
}

/// A unit like any other.
pub fn double(n: u32) -> Result<u32, Error> {
    spawn(n, |n: u32| 2 * n).and_then(Offspring::wait)
}

/// This test binary once more, told to run the same test; there [`is_again`] is true.
pub fn myself() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let tag = super::tag();
    let name = tag.split('-').next().unwrap();
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env("AGAIN", "1");
    command
}

/// The same as the first process of a pid namespace; what it printed. `None` if there can be no such namespace here.
pub fn as_first_process(command: &Command) -> Option<String> {
    let mut first = Command::new("unshare");
    first.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(command.get_program());
    first.args(command.get_args());
    for (name, value) in command.get_envs() {
        first.env(name, value.unwrap_or_default());
    }
    let (good, text) = super::finish(first, Duration::from_secs(100));
    if !super::can("a pid namespace", !text.contains("unshare failed")) {
        return None;
    }
    assert!(good, "{text}");
    Some(text)
}

pub fn is_again() -> bool {
    std::env::var_os("AGAIN").is_some()
}

/// Runs it; what it printed. It has to succeed.
pub fn good(command: Command) -> String {
    let (good, text) = super::finish(command, Duration::from_secs(60));
    assert!(good, "{text}");
    text
}

/// A path that belongs to this test alone. Nothing is there yet.
pub fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{}-{name}", super::tag().replace(':', "-")))
}

/// A file system on a directory, with flags; or other flags for what is there already.
pub fn mount(kind: &std::ffi::CStr, directory: &Path, flags: libc::c_ulong) -> bool {
    let directory = CString::new(directory.as_os_str().as_bytes()).unwrap();
    // SAFETY: strings that end with NUL, and no data.
    unsafe { libc::mount(kind.as_ptr(), directory.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) == 0 }
}

/// A view of the file systems of this process's own.
pub fn own_mounts() -> bool {
    // SAFETY: changes this process alone.
    super::can("a mount namespace", unsafe { libc::unshare(libc::CLONE_NEWNS) == 0 })
        && mount(c"none", Path::new("/"), libc::MS_REC | libc::MS_PRIVATE)
}

/// Compiles a shared library, in a directory of its own.
pub fn library(name: &str, source: &str) -> PathBuf {
    let directory = place(name);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("it.c"), source).unwrap();
    let library = directory.join("it.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-pthread", "-o"]).arg(&library).arg(directory.join("it.c"));
    assert!(cc.status().unwrap().success());
    library
}

/// Removes a library and its directory.
pub fn remove(library: &Path) {
    std::fs::remove_dir_all(library.parent().unwrap()).unwrap();
}

/// Sets the soft limit of a process (0: this one); what it was.
pub fn limit(pid: u32, resource: libc::__rlimit_resource_t, most: u64) -> u64 {
    // SAFETY: valid records.
    unsafe {
        let mut old: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::prlimit(pid as i32, resource, std::ptr::null(), &raw mut old), 0);
        let new = libc::rlimit { rlim_cur: most, ..old };
        assert_eq!(libc::prlimit(pid as i32, resource, &raw const new, std::ptr::null_mut()), 0);
        old.rlim_cur
    }
}

/// Gives up root, so that limits hold: this process is another user's from now on. Nobody else is to use that number.
pub fn become_user(id: u32) -> bool {
    // SAFETY: changes this process's user.
    super::can("another user", unsafe {
        libc::setresgid(id, id, id) == 0 && libc::setresuid(id, id, id) == 0
    })
}

/// Opens files until there is no descriptor left.
pub fn take_all_descriptors() -> Vec<std::fs::File> {
    let all: Vec<_> = (0..1 << 16).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
    assert!(all.len() < 1 << 16);
    all
}
