//! Processes that a unit starts.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// One of them. Each prints a byte when it is set up.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub enum Descendant {
    Good,
    /// Ignores TERM.
    Deaf,
    /// Needs a while after TERM, and leaves a mark.
    Slow,
    /// Is always another, deaf to TERM, and the child of one that has ended.
    Runaway,
}

impl Descendant {
    pub const ALL: [Self; 3] = [Self::Good, Self::Deaf, Self::Slow];

    /// Starts it, in the unit's process group; gives its pid, or that of the first.
    pub fn start(self) -> u32 {
        if self == Self::Runaway { run_away() } else { started(&mut self.command()) }
    }

    /// The same, in a session of its own (but no runaway).
    pub fn start_apart(self) -> u32 {
        let mut command = self.command();
        // SAFETY: setsid(2) has no conditions.
        let apart =
            || if unsafe { libc::setsid() } > 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        // SAFETY: it makes a system call alone.
        started(unsafe { command.stderr(Stdio::null()).pre_exec(apart) })
    }

    fn command(self) -> Command {
        let script = match self {
            Self::Good => "echo; exec sleep 3600",
            Self::Deaf => "trap '' TERM; echo; exec sleep 3600",
            Self::Slow => "trap 'sleep 0.3; : >\"$MARK\"; exit' TERM; echo; while :; do sleep 0.01; done",
            Self::Runaway => unreachable!("it is no program"),
        };
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        command
    }
}

// Nobody waits for it, for its parent is to end first.
#[allow(clippy::zombie_processes)]
fn started(command: &mut Command) -> u32 {
    let mut child = command.spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    child.id()
}

fn run_away() -> u32 {
    // SAFETY: the unit has one thread, and its copies make system calls alone.
    unsafe {
        let pid = libc::fork();
        if pid != 0 {
            return pid as u32;
        }
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        // Bounded, should nobody end it.
        for _ in 0..60_000 {
            libc::usleep(1000);
            if libc::fork() > 0 {
                libc::_exit(0);
            }
        }
        libc::_exit(0)
    }
}
