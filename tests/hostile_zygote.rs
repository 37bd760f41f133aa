//! A zygote's line that carries rubbish, both ways: no unit is harmed, and starts go on.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use harness::words::{Random, Thing, open, own_socket, send};
use offspring::{Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

fn works() {
    assert_eq!(spawn(3, |n: u32| n + 1).unwrap().wait().unwrap(), 4);
}

behaviour! { through ["zygote", "auto"];
    fn rubbish_on_the_zygotes_line_harms_no_unit() {
        works();
        let mut running = Offspring::builder(Reads).stdin(Stdio::piped()).spawn().unwrap();
        let process = running.process().unwrap().clone();
        // It is to be ended with all others, at the end.
        drop(spawn((), |()| std::thread::sleep(Duration::from_secs(3600))).unwrap());
        works();
        // Of units that are made already, or never will be: of one that is asked for a zygote is believed.
        let ids = [1_u64, 2, 3, 4, 1 << 40];
        let pids = [0, 1, std::process::id(), process.id(), u32::MAX];
        let mut random = Random::new();
        for round in 0..200 {
            // It is replaced if it seems to have gone.
            harness::eventually("there is no zygote", || {
                harness::zygote().is_some() || {
                    works();
                    false
                }
            });
            let Some(theirs) = harness::zygote().and_then(|pid| taken(pid, 3)) else {
                assert!(harness::can("a descriptor of another process", round > 0));
                works();
                continue;
            };
            for _ in 0..4 {
                // A packet of that length says that a child was made.
                let reply = [&ids[random.below(5) as usize].to_le_bytes()[..], &pids[random.below(5) as usize].to_le_bytes(), &[0; 4]].concat();
                let packet = if random.below(2) == 0 { reply } else { random.bytes(64) };
                let things: Vec<OwnedFd> = (0..random.below(3)).map(|_| open(&Thing::Pipe, -1)).collect();
                let numbers: Vec<RawFd> = things.iter().map(AsRawFd::as_raw_fd).collect();
                // Once to the parent, once to the zygote.
                let to = if random.below(2) == 0 { Some(theirs.as_raw_fd()) } else { own_socket(libc::SOCK_SEQPACKET) };
                to.into_iter().for_each(|line| send(line, &packet, &numbers));
            }
            if round % 5 == 0 {
                works();
                let descriptors = spawn((), |()| std::fs::read_dir("/proc/self/fd").unwrap().count()).unwrap();
                // Streams, line, and the list itself.
                assert_eq!(descriptors.wait().unwrap(), 5, "seed {}", random.seed);
            }
        }
        assert!(process.is_alive() && harness::is_alive(process.id()), "seed {}", random.seed);
        drop(running.take_stdin());
        assert_eq!(running.wait().unwrap(), 5);
    }
}

#[derive(Serialize, Deserialize)]
struct Reads;

impl Subprocess for Reads {
    type Output = usize;

    fn run(self) -> usize {
        5 + std::io::stdin().read_to_end(&mut Vec::new()).unwrap()
    }
}

/// A descriptor of another process's, if we may have it.
fn taken(pid: u32, number: RawFd) -> Option<OwnedFd> {
    // SAFETY: each call gives a new descriptor, or -1.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as RawFd;
        let pidfd = (pidfd >= 0).then(|| OwnedFd::from_raw_fd(pidfd))?;
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) as RawFd;
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}
