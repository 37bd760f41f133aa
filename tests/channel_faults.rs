//! Channels and shared memory when something goes wrong: deaths at the worst moment, buffers that fill, forks, rubbish.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use harness::eventually;
use harness::ways::{WAYS, by_way};
use offspring::{
    Receiver, RecvError, SendError, SendTimeoutError, Sender, SharedMemory, channel, current, spawn,
};

/// Waits for a child that was forked off by hand.
fn join(pid: i32) {
    // SAFETY: a child of ours.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

behaviour! { through ["auto"];
    fn a_message_for_which_there_is_no_memory_comes_back() {
        let (sender, receiver) = channel::<(u8, String, Option<Option<String>>, u8)>(2).unwrap();
        let message = (1, "x".repeat(200_000), Some(Some("y".repeat(300_000))), 2);
        sender.send(message.clone()).unwrap();
        assert!(receiver.recv().unwrap() == message);
        for most in [400_000, 100_000, 0] {
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            // SAFETY: a valid record.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
            let error = sender.send(message.clone()).unwrap_err();
            assert!(matches!(error, SendError::Failed(..)) && error.into_inner() == message);
            sender.send((1, String::new(), None, 2)).unwrap();
            assert_eq!(receiver.recv().unwrap().3, 2);
        }
    }

    fn a_limit_that_comes_in_the_middle_of_a_message_ends_nobody() {
        let (sender, _receiver) = channel::<Lowers>(2).unwrap();
        let error = sender.send(Lowers).unwrap_err();
        assert!(matches!(error, SendError::Failed(..)), "{error}");
    }
}

/// Announces three elements and has two; the second takes away what room there is for files, when the first is in one.
#[derive(Debug)]
struct Lowers;

impl serde::Serialize for Lowers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut sequence = serializer.serialize_seq(Some(3))?;
        sequence.serialize_element(&"x".repeat(200_000))?;
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid record.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const none) }, 0);
        sequence.serialize_element(&1)?;
        sequence.end()
    }
}

behaviour! { through ["auto"];
    fn whoever_does_not_wait_gets_room_again_after_consumers_have_died() {
        for way in WAYS {
            let (sender, receiver) = by_way::<u32>(way, 1);
            for round in 0..60_u64 {
                let unit = spawn(receiver.clone(), |receiver: Receiver<u32>| receiver.into_iter().for_each(drop)).unwrap();
                let end = std::time::Instant::now() + Duration::from_micros(1500 + round * 11);
                while std::time::Instant::now() < end {
                    let _ = sender.try_send(1);
                }
                unit.process().unwrap().kill().unwrap();
                assert!(unit.wait().is_err());
                while receiver.try_recv().is_ok() {}
                eventually("it is empty, and full for ever", || sender.try_send(1).is_ok());
                receiver.recv().unwrap();
            }
        }
    }

    fn whoever_waits_for_the_kernels_buffer_goes_on_when_there_is_room_for_his_message() {
        let (sender, receiver) = channel::<Vec<u8>>(1000).unwrap();
        let mut count = 0;
        while sender.try_send(vec![1; 8000]).is_ok() {
            count += 1;
        }
        let other = sender.clone();
        let waits = std::thread::spawn(move || other.send(vec![2; 8000]).is_ok());
        // Less than the kernel tells of.
        (0..count / 2).for_each(|_| drop(receiver.recv().unwrap()));
        eventually("it sleeps on", || waits.is_finished());
        assert!(waits.join().unwrap());
    }

    fn who_is_stopped_or_dies_while_he_waits_keeps_no_message_from_others() {
        for way in WAYS {
            let (sender, receiver) = by_way::<u32>(way, 64);
            let (back, of_back) = by_way::<u32>(way, 64);
            let units: Vec<_> = (0..3).map(|_| spawn((receiver.clone(), back.clone()), |(receiver, back): (Receiver<u32>, Sender<u32>)| {
                receiver.into_iter().for_each(|n| back.send(n).unwrap());
            }).unwrap()).collect();
            drop((receiver, back));
            let pids: Vec<u32> = units.iter().map(|unit| unit.process().unwrap().id()).collect();
            // All have begun, and wait: those who wait longest first.
            (0..30).for_each(|n| sender.send(n).unwrap());
            (0..30).for_each(|_| assert!(of_back.recv().unwrap() < 30));
            eventually("somebody does not wait", || pids.iter().all(|pid| harness::state(*pid) == Some('S')));
            for (n, signal) in [(0, libc::SIGSTOP), (1, libc::SIGKILL)] {
                harness::kill(pids[n], signal);
                eventually("it goes on", || matches!(harness::state(pids[n]), Some('T' | 'Z') | None));
            }
            (0..8).for_each(|n| sender.send(n).unwrap());
            for n in 0..8 {
                assert_eq!(of_back.recv_timeout(Duration::from_secs(60)).unwrap(), n);
            }
            drop(sender);
            harness::kill(pids[0], libc::SIGCONT);
            let ends: Vec<bool> = units.into_iter().map(|unit| unit.wait().is_ok()).collect();
            assert_eq!(ends, [true, false, true]);
        }
    }

    fn who_waits_does_so_also_if_somebody_has_set_its_socket_to_return_at_once() {
        let (sender, receiver) = channel::<u32>(1).unwrap();
        // SAFETY: flags of a descriptor that is open.
        unsafe { libc::fcntl(receiver.as_fd().as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let (tell, told) = std::sync::mpsc::channel();
        let waits = std::thread::spawn(move || {
            // SAFETY: gettid(2) has no conditions.
            tell.send(unsafe { libc::gettid() }).unwrap();
            receiver.recv().unwrap()
        });
        let thread = told.recv().unwrap() as u32;
        eventually("it does not wait", || harness::state(thread) == Some('S'));
        sender.send(7).unwrap();
        assert_eq!(waits.join().unwrap(), 7);
    }

    fn a_forked_copy_takes_nobodys_waker_away() {
        for way in WAYS {
            let (sender, receiver) = by_way::<u32>(way, 1);
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            let mut waits = Box::pin(receiver.recv_async());
            let waker = Waker::from(flag.clone());
            assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            // SAFETY: the copy lets go of what it has copied, and ends.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                drop(waits);
                // SAFETY: as above.
                unsafe { libc::_exit(0) };
            }
            join(pid);
            sender.send(7).unwrap();
            eventually("its waker is not called", || flag.0.load(Ordering::SeqCst));
            drop(waits);
            assert_eq!(receiver.recv().unwrap(), 7);
        }
    }

    fn a_lock_is_neither_on_its_way_nor_given_back_by_a_forked_copy() {
        let memory = SharedMemory::new(8).unwrap();
        let lockable = |memory: &SharedMemory| {
            let unit = spawn(memory.clone(), |memory: SharedMemory| drop(memory.lock().unwrap())).unwrap();
            let process = unit.process().unwrap().clone();
            let end = std::time::Instant::now() + Duration::from_millis(300);
            while process.is_alive() && std::time::Instant::now() < end {
                std::thread::yield_now();
            }
            let is_so = !process.is_alive();
            process.kill().unwrap();
            let _ = unit.wait();
            is_so
        };
        let (sender, receiver) = channel::<SharedMemory>(1).unwrap();
        let unit = spawn((memory.clone(), sender), |(memory, sender): (SharedMemory, Sender<SharedMemory>)| -> () {
            sender.send(memory.clone()).unwrap();
            let _writer = memory.lock().unwrap();
            std::process::abort();
        });
        assert!(unit.unwrap().wait().is_err());
        assert!(lockable(&memory), "its holder is dead, and a copy of it is on its way");
        drop(receiver);
        let writer = memory.lock().unwrap();
        // SAFETY: as above.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(writer);
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        join(pid);
        assert!(!lockable(&memory), "it was given back by who had not taken it");
    }

    fn a_user_who_may_send_no_more_descriptors_waits() {
        let unit = spawn((), |()| {
            if !harness::become_user(65530) {
                return;
            }
            harness::limit(0, libc::RLIMIT_NOFILE, 64);
            let (sender, receiver) = channel::<Vec<u8>>(1000).unwrap();
            let error = loop {
                if let Err(error) = sender.send_timeout(vec![1; 40_000], Duration::from_millis(100)) {
                    break error;
                }
            };
            assert!(matches!(error, SendTimeoutError::Timeout(_)), "{error:?}");
            receiver.recv().unwrap();
            sender.send_timeout(vec![1; 40_000], Duration::from_secs(60)).unwrap();
        });
        unit.unwrap().wait().unwrap();
    }

    fn an_empty_packet_is_not_the_end() {
        let (sender, receiver) = channel::<u32>(4).unwrap();
        let unit = spawn(sender.clone(), |sender: Sender<u32>| {
            for number in 4..64 {
                // SAFETY: to whatever socket there is.
                unsafe { libc::send(number, std::ptr::null(), 0, libc::MSG_DONTWAIT) };
            }
            drop(sender);
        });
        unit.unwrap().wait().unwrap();
        // By memory, which is looked at first.
        sender.send(1).unwrap();
        assert_eq!(receiver.recv().unwrap(), 1);
        assert!(matches!(receiver.recv(), Err(RecvError::Failed(_))));
        sender.send(2).unwrap();
        assert_eq!(receiver.recv().unwrap(), 2);
        drop(sender);
        assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
    }

    fn what_a_forked_copy_is_told_is_not_told_to_the_unit() {
        let unit = spawn((), |()| {
            let stop = current().unwrap().catch_stop().unwrap();
            // SAFETY: the copy waits until it is told, and ends.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                while !stop.wait_timeout(Duration::from_secs(1)) {}
                // SAFETY: as above.
                unsafe { libc::_exit(0) };
            }
            // SAFETY: our own child.
            unsafe { libc::kill(pid, libc::SIGTERM) };
            join(pid);
            let mut poll = libc::pollfd { fd: stop.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid record.
            unsafe { libc::poll(&raw mut poll, 1, 0) };
            (poll.revents, stop.is_requested())
        });
        assert_eq!(unit.unwrap().wait().unwrap(), (0, false));
    }

    fn whoever_does_not_wait_does_not_if_another_has_made_the_counter_one_that_waits() {
        let counters = || -> BTreeSet<i32> {
            let numbers = harness::entries("fd").into_iter().filter_map(|name| name.parse().ok());
            let is_one = |number: &i32| {
                std::fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|place| place.ends_with("anon_inode:[eventfd]"))
            };
            numbers.filter(is_one).collect()
        };
        let before = counters();
        let (sender, receiver) = channel::<u32>(1).unwrap();
        let (done, over) = std::sync::mpsc::channel();
        // As any process can that has an end.
        for counter in counters().difference(&before) {
            // SAFETY: a descriptor of the channel's.
            unsafe { libc::fcntl(*counter, libc::F_SETFL, 0) };
        }
        let tries = std::thread::spawn(move || {
            sender.send(1).unwrap();
            assert!(sender.try_send(2).is_err());
            let error = sender.send_timeout(2, Duration::from_millis(50)).unwrap_err();
            assert!(matches!(error, SendTimeoutError::Timeout(_)), "{error:?}");
            done.send(()).unwrap();
            sender
        });
        over.recv_timeout(Duration::from_secs(60)).unwrap();
        for counter in counters().difference(&before) {
            let full = u64::MAX - 1;
            // SAFETY: eight bytes, to one that has room for no more once it has taken them, or is not empty.
            unsafe { libc::fcntl(*counter, libc::F_SETFL, libc::O_NONBLOCK) };
            // SAFETY: as above.
            unsafe { libc::write(*counter, (&raw const full).cast(), 8) };
            // SAFETY: as above.
            unsafe { libc::fcntl(*counter, libc::F_SETFL, 0) };
        }
        let sender = tries.join().unwrap();
        let (done, over) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            assert_eq!(receiver.try_recv().unwrap(), 1);
            done.send(receiver).unwrap();
        });
        let receiver = over.recv_timeout(Duration::from_secs(60)).unwrap();
        sender.send_timeout(3, Duration::from_secs(60)).unwrap();
        assert_eq!(receiver.recv().unwrap(), 3);
    }
}
