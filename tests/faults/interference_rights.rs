//! A unit is never less confined than the thread that starts it, although its zygote may be.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use offspring::{ErrorKind, Offspring, Stdio, Subprocess, SubprocessLoop, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, can};

type Status = BTreeMap<String, String>;

/// What the kernel says of the calling thread.
fn status(_: ()) -> Status {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    text.lines()
        .filter_map(|line| line.split_once(":\t"))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn unit() -> Status {
    spawn((), status).and_then(Offspring::wait).unwrap()
}

/// In a thread of its own: confines it, and starts a unit there. What the two have, and the zygote.
fn compare(fields: &[&str], confine: impl FnOnce() -> bool + Send + 'static) {
    // The very first is executed, while the zygote is being made.
    unit();
    let free = unit();
    let zygote = harness::zygote();
    let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
    let thread = std::thread::spawn(move || {
        if !can("what is to be tried", confine()) {
            return;
        }
        let (own, unit) = (status(()), unit());
        for field in fields {
            assert_eq!(unit[&field], own[&field], "{field}");
            assert_ne!(unit[&field], free[&field], "{field}: nothing was confined");
        }
    });
    thread.join().unwrap();
    assert_eq!(unit()["Uid"], status(())["Uid"]);
    assert_eq!(harness::zygote(), zygote, "the zygote did not stay");
}

/// The system calls themselves, for libc's apply to all threads.
fn call(number: libc::c_long, arguments: [usize; 3]) -> bool {
    // SAFETY: those used below take numbers, or a null pointer with the length 0.
    unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) == 0 }
}

behaviour! { through ["auto"];
    fn case_76_confined_by_its_user() {
        compare(&["Uid"], || call(libc::SYS_setresuid, [65534; 3]));
    }

    fn case_76_confined_by_its_group() {
        compare(&["Gid"], || call(libc::SYS_setresgid, [65534; 3]));
    }

    fn case_76_confined_by_its_other_groups() {
        let groups = [7_u32, 65534];
        compare(&["Groups"], move || call(libc::SYS_setgroups, [2, groups.as_ptr() as usize, 0]));
    }

    fn case_76_confined_by_no_new_privileges() {
        compare(&["NoNewPrivs"], || {
            // SAFETY: sets a flag of this thread.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 }
        });
    }

    fn case_76_confined_by_a_filter_of_system_calls() {
        compare(&["Seccomp"], || harness::filter(libc::SYS_acct, libc::EPERM, false));
    }

    fn case_76_confined_by_its_capabilities() {
        // What is taken from the bounding set as well, an execve(2) of root's does not give back.
        compare(&["CapEff"], || {
            // SAFETY: drops one capability (CAP_SYS_TIME) from the bounding set, then from the other sets, of this thread.
            unsafe {
                let dropped = libc::prctl(libc::PR_CAPBSET_DROP, 25, 0, 0, 0) == 0;
                let (mut header, mut data) = ([0x2008_0522_u32, 0], [0_u32; 6]);
                libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr());
                (0..3).for_each(|set| data[set] &= !(1 << 25));
                dropped && libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) == 0
            }
        });
    }

    fn case_76_a_new_process_group_is_the_units_as_well() {
        unit();
        let group = |_: ()| {
            // SAFETY: getpgid(2) has no conditions.
            unsafe { libc::getpgid(0) }
        };
        assert!(call(libc::SYS_setpgid, [0, 0, 0]));
        assert_eq!(spawn((), group).unwrap().wait().unwrap(), std::process::id() as i32);
    }

    fn case_76_a_parent_that_gives_up_its_user_still_ends_what_it_has() {
        #[derive(Serialize, Deserialize)]
        struct Count(u32);
        impl SubprocessLoop for Count {
            type Output = u32;
            fn tick(&mut self) -> std::ops::ControlFlow<(), Duration> {
                std::ops::ControlFlow::Continue(Duration::from_secs(3600))
            }
            fn end(self) -> u32 {
                self.0
            }
        }
        #[derive(Serialize, Deserialize)]
        struct Deaf;
        impl Subprocess for Deaf {
            type Output = ();
            const WAIT_FOR_CHILD: bool = true;
            const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));
            fn run(self) {
                // SAFETY: sets a disposition.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                println!("deaf");
                loop {
                    std::thread::park();
                }
            }
        }
        // A parent that must not be root any more has to be another process: a unit.
        let parent = spawn((), |()| {
            let (counts, timed) = (Offspring::new(Count(7)).unwrap(), Offspring::builder(Deaf).timeout(Duration::from_millis(100)));
            let timed = timed.stdout(Stdio::null()).spawn().unwrap();
            let mut deaf = Offspring::builder(Deaf).stdout(Stdio::piped()).spawn().unwrap();
            deaf.take_stdout().unwrap().read_exact(&mut [0; 5]).unwrap();
            let left = Offspring::new(Count(8)).unwrap();
            // libc's call, for which it needs every thread, ours too.
            // SAFETY: changes this process's user.
            if !can("another user", unsafe { libc::setgid(65531) == 0 && libc::setuid(65531) == 0 }) {
                offspring::shutdown();
                return;
            }
            assert_eq!(counts.shutdown().unwrap(), Some(7));
            assert_eq!(deaf.shutdown().unwrap(), None);
            assert_eq!(timed.wait().unwrap_err().kind(), ErrorKind::TimedOut);
            offspring::shutdown();
            assert_eq!(left.wait().unwrap(), 8);
            // Afresh, with the rights that are left.
            for _ in 0..2 {
                assert_eq!(unit()["Uid"], "65531\t65531\t65531\t65531");
            }
            assert!(harness::zygote().is_some());
        });
        parent.unwrap().wait().unwrap();
    }

    fn case_76_a_user_without_rights_starts_units_through_a_zygote() {
        let nobody = spawn((), |()| {
            if !can("another user", call(libc::SYS_setresgid, [65534; 3]) && call(libc::SYS_setresuid, [65534; 3])) {
                return;
            }
            for n in 0..5 {
                assert_eq!(spawn(n, |n: u32| n + 1).unwrap().wait().unwrap(), n + 1);
                // The very first is executed, while it is being made.
                assert!(n == 0 || harness::zygotes().len() == 1);
            }
        });
        nobody.unwrap().wait().unwrap();
    }
}

/// The name of the machine in this thread's namespace.
fn machine(_: ()) -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

behaviour! { through ["zygote", "spare"];
    fn case_76_a_new_namespace_is_the_units_after_a_shutdown() {
        // The file tells whose namespace the reader is in.
        let old = spawn((), machine).unwrap().wait().unwrap();
        // SAFETY: a new namespace for this thread, and a name in it.
        let renamed = unsafe { libc::unshare(libc::CLONE_NEWUTS) == 0 && libc::sethostname(c"elsewhere".as_ptr(), 9) == 0 };
        if can("a namespace", renamed) {
            assert_eq!(machine(()), "elsewhere");
            assert_eq!(spawn((), machine).unwrap().wait().unwrap(), old);
            offspring::shutdown();
            // The very first is executed, while the zygote is being made.
            for _ in 0..2 {
                assert_eq!(spawn((), machine).unwrap().wait().unwrap(), "elsewhere");
            }
        }
    }
}
