//! What the calling thread may do. Two threads with equal rights may let their units be started the same way.
//!
//! Asked for at each start, so system calls alone that take a fraction of a microsecond each. They do not tell namespaces,
//! root, security labels, Landlock, the bounding set of capabilities, or a second seccomp filter after a first.

use std::ffi::c_int;

use serde::{Deserialize, Serialize};

/// User, groups, capabilities, and the two locks that only ever close: no-new-privs and seccomp. And the process group, which
/// decides whom a terminal's signals reach. (Who begins a new session gets a group of its own as well: setsid(2).)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rights {
    /// Real, effective, saved.
    users: [u32; 3],
    groups: [u32; 3],
    more_groups: Vec<u32>,
    /// Effective, permitted, inheritable; low words, then high words.
    capabilities: [u32; 6],
    no_new_privs: c_int,
    seccomp: c_int,
    /// What an execve(2) of root's gives back, and whether these bits are locked.
    secure_bits: c_int,
    process_group: i32,
}

/// The calling thread's.
pub(crate) fn of_this_thread() -> Rights {
    let (mut users, mut groups) = ([0; 3], [0; 3]);
    let mut capabilities = [0_u32; 6];
    let mut header = [0x2008_0522_u32, 0];
    let mut buffer = [0_u32; 64];
    // SAFETY: each call writes into the records given to it, which are as large as it takes for large: three words each,
    // two records of three words for this version of capget(2), `buffer.len()` groups.
    let (more, no_new_privs, seccomp, secure_bits, process_group) = unsafe {
        let [real, effective, saved] = &mut users;
        libc::getresuid(real, effective, saved);
        let [real, effective, saved] = &mut groups;
        libc::getresgid(real, effective, saved);
        libc::syscall(libc::SYS_capget, header.as_mut_ptr(), capabilities.as_mut_ptr());
        (
            libc::getgroups(buffer.len() as c_int, buffer.as_mut_ptr()),
            libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0_usize, 0_usize, 0_usize, 0_usize),
            libc::prctl(libc::PR_GET_SECCOMP),
            libc::prctl(libc::PR_GET_SECUREBITS),
            libc::getpgid(0),
        )
    };
    let more_groups = usize::try_from(more).map_or_else(|_| many_groups(), |count| buffer[..count].to_vec());
    Rights { users, groups, more_groups, capabilities, no_new_privs, seccomp, secure_bits, process_group }
}

/// For who is in more groups than the buffer above holds.
#[cold]
fn many_groups() -> Vec<u32> {
    const MOST: usize = 65536;
    let mut groups = vec![0; MOST];
    // SAFETY: the kernel writes at most as many as it is told.
    let count = unsafe { libc::getgroups(MOST as c_int, groups.as_mut_ptr()) };
    groups.truncate(count.max(0) as usize);
    groups
}
