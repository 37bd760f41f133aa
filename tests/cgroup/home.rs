//! A cgroup for a test, which others are made in.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::harness::{self, can};

/// A cgroup that this process is in alone, and may make others in.
pub(crate) struct Home {
    /// Where the hierarchy is mounted, in a view of this process's own.
    pub(crate) root: PathBuf,
    pub(crate) path: PathBuf,
}

impl Home {
    /// For a process with one thread. `None` if there can be none here.
    pub(crate) fn new(root: &Path) -> Option<Self> {
        std::fs::create_dir_all(root).unwrap();
        let there = harness::own_mounts() && {
            hide_all();
            harness::mount(c"cgroup2", root, 0)
        };
        let home = Self { root: root.to_owned(), path: root.join(root.file_name().unwrap()) };
        let there = there && std::fs::create_dir(&home.path).is_ok();
        let there = there && home.delegate(true) && enter(&home.path);
        if !can("a cgroup of version 2", there) {
            std::mem::forget(home);
            let _ = std::fs::remove_dir(root);
            return None;
        }
        Some(home)
    }

    /// Says that it is ours to divide, as systemd does, or takes it back.
    pub(crate) fn delegate(&self, is_so: bool) -> bool {
        let path = CString::new(self.path.as_os_str().as_bytes()).unwrap();
        let (mark, name) = (if is_so { c"1" } else { c"0" }, c"user.delegate");
        // SAFETY: strings that end with NUL, of which the value has one byte.
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), mark.as_ptr().cast(), 1, 0) == 0 }
    }

    /// Those of units.
    pub(crate) fn below(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.path).unwrap().flatten();
        entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        offspring::shutdown();
        if !std::thread::panicking() {
            assert_eq!(self.below(), Vec::<PathBuf>::new());
        }
        enter(&self.root);
        let _ = std::fs::remove_dir(&self.path);
        let root = CString::new(self.root.as_os_str().as_bytes()).unwrap();
        // SAFETY: a string that ends with NUL.
        unsafe { libc::umount2(root.as_ptr(), libc::MNT_DETACH) };
        let _ = std::fs::remove_dir(&self.root);
    }
}

/// Lets all hierarchies of version 2 be out of sight.
pub(crate) fn hide_all() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    for mount in mounts.lines().filter(|line| line.contains(" - cgroup2 ")) {
        let point = CString::new(mount.split(' ').nth(4).unwrap()).unwrap();
        // SAFETY: a string that ends with NUL.
        unsafe { libc::umount2(point.as_ptr(), libc::MNT_DETACH) };
    }
}

pub(crate) fn enter(cgroup: &Path) -> bool {
    std::fs::write(cgroup.join("cgroup.procs"), "0").is_ok()
}
