//! Who waits for an end sees to it itself: whatever else happens in its thread meanwhile, nothing hangs.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use harness::eventually;
use offspring::{Subprocess, spawn};
use serde::{Deserialize, Serialize};

const LONG: Duration = Duration::from_secs(3600);

/// What a parent does when its unit ends, or in the middle of its wait. The parents are units themselves.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Leave {
    Exit,
    Shutdown,
}

struct Leaver(Leave);

impl Wake for Leaver {
    fn wake(self: Arc<Self>) {
        match self.0 {
            Leave::Exit => std::process::exit(7),
            Leave::Shutdown => offspring::shutdown(),
        }
    }
}

/// Leaves a waker with a unit, and then waits for its end, or lets the reaper see it.
fn leave_in_a_waker((leave, waits): (Leave, bool)) -> bool {
    let mut unit = spawn((), |()| std::thread::sleep(Duration::from_millis(20))).unwrap();
    let waker: Waker = Arc::new(Leaver(leave)).into();
    assert!(Pin::new(&mut unit).poll(&mut Context::from_waker(&waker)).is_pending());
    if waits {
        return unit.wait().is_ok();
    }
    let process = unit.process().unwrap().clone();
    eventually("the unit does not end", || !process.is_alive());
    if leave == Leave::Exit {
        // It is another thread that leaves.
        std::thread::sleep(LONG);
    }
    unit.wait().is_ok()
}

extern "C" fn leave(_: i32) {
    // As programs do, though signal-safety(7) does not have it on its list.
    std::process::exit(7);
}

/// Is interrupted in its wait, for good.
fn leave_in_a_handler(waits_for_result: bool) {
    #[derive(Serialize, Deserialize)]
    struct Sleeps;
    impl Subprocess for Sleeps {
        type Output = ();
        fn run(self) {
            std::thread::sleep(LONG);
        }
    }
    let unit = Sleeps.spawn().unwrap();
    // SAFETY: a handler of ours, and a valid record.
    unsafe {
        libc::signal(libc::SIGALRM, leave as extern "C" fn(i32) as usize);
        let mut timer: libc::itimerval = std::mem::zeroed();
        timer.it_value.tv_usec = 50_000;
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
    let _ = if waits_for_result { unit.result() } else { unit.wait() };
}

behaviour! {
    fn a_waker_may_leave_the_process_and_shut_all_down() {
        for waits in [false, true] {
            let unit = spawn((Leave::Shutdown, waits), leave_in_a_waker).unwrap();
            assert!(unit.wait().unwrap());
            let error = spawn((Leave::Exit, waits), leave_in_a_waker).unwrap().wait().unwrap_err();
            assert_eq!(error.death().unwrap().status().code(), Some(7), "{error}");
        }
    }

    fn a_signal_handler_may_leave_in_the_middle_of_a_wait() {
        for waits_for_result in [false, true] {
            let error = spawn(waits_for_result, leave_in_a_handler).unwrap().wait().unwrap_err();
            assert_eq!(error.death().unwrap().status().code(), Some(7), "{error}");
        }
    }

}
