//! Channels while their messages go by memory, and the change to the socket.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use harness::eventually;
use offspring::{Receiver, RecvError, SendError, Sender, TryRecvError, channel, spawn};

/// Who sent it, the how-manieth of his it is, and so many bytes more.
type Message = (u32, u32, Vec<u8>);

/// Too large for memory that is shared.
const LARGE: usize = 40_000;

/// Whether that is readable now.
fn is_readable(fd: &impl AsFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid record.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// That each list has what each sent in its order, and all together everything once.
fn check(received: &[Vec<(u32, u32)>], sent: &BTreeMap<u32, u32>) {
    let mut counts = BTreeMap::new();
    for list in received {
        let mut last = BTreeMap::new();
        for (who, n) in list {
            assert!(last.insert(who, n).is_none_or(|before| before < n), "{who} sent {n} out of order");
            *counts.entry((*who, *n)).or_insert(0) += 1;
        }
    }
    assert!(counts.values().all(|times| *times == 1), "doubled");
    let mut whole = BTreeMap::new();
    counts.keys().for_each(|(who, _)| *whole.entry(*who).or_insert(0) += 1);
    assert_eq!(whole, *sent);
}

behaviour! {
    fn what_is_in_memory_comes_before_what_goes_by_the_socket() {
        const COUNT: u32 = 400;
        for round in 0..6 {
            let (sender, receiver) = channel::<Message>(64).unwrap();
            let consumers: Vec<_> = (0..2).map(|_| spawn(receiver.clone(), |receiver: Receiver<Message>| {
                receiver.into_iter().map(|(who, n, _)| (who, n)).collect::<Vec<_>>()
            }).unwrap()).collect();
            drop(receiver);
            // Now and then a large one; in half of the rounds, another sender as well, who comes later.
            let send = |(who, large, sender): (u32, u32, Sender<Message>)| {
                for n in 0..COUNT {
                    let size = if n >= large && n % 50 == large % 50 { LARGE } else { (n % 90) as usize };
                    sender.send((who, n, vec![7; size])).unwrap();
                }
            };
            let mut units = vec![spawn((0, 31 * round, sender.clone()), send).unwrap()];
            if round % 2 == 1 {
                units.push(spawn((1, COUNT, sender.clone()), send).unwrap());
            }
            drop(sender);
            let sent = (0..units.len() as u32).map(|who| (who, COUNT)).collect();
            units.into_iter().for_each(|unit| unit.wait().unwrap());
            let received: Vec<_> = consumers.into_iter().map(|unit| unit.wait().unwrap()).collect();
            check(&received, &sent);
        }
    }

    fn of_a_producer_that_is_killed_a_beginning_without_a_gap_comes_and_then_the_others() {
        for round in 0..30_u64 {
            let (sender, receiver) = channel::<(u32, u32)>(16).unwrap();
            let victim = spawn(sender.clone(), |sender: Sender<(u32, u32)>| {
                (0..u32::MAX).for_each(|n| sender.send((0, n)).unwrap());
            }).unwrap();
            let mut next = 0;
            // It has begun.
            for _ in 0..round {
                assert_eq!(receiver.recv().unwrap(), (0, next));
                next += 1;
            }
            victim.process().unwrap().kill().unwrap();
            assert!(victim.wait().is_err());
            // What it had sent may fill the channel.
            let other = std::thread::spawn(move || (0..20).for_each(|n| sender.send((1, n)).unwrap()));
            let rest: Vec<(u32, u32)> = receiver.into_iter().collect();
            other.join().unwrap();
            let count = rest.iter().filter(|message| message.0 == 0).count() as u32;
            let expected: Vec<_> = (next..next + count).map(|n| (0, n)).chain((0..20).map(|n| (1, n))).collect();
            assert_eq!(rest, expected);
        }
    }

    fn who_sends_is_told_at_once_that_nobody_receives_any_more() {
        for round in 0..20 {
            let (sender, receiver) = channel::<u32>(64).unwrap();
            let (told, heard) = channel::<()>(1).unwrap();
            let unit = spawn((receiver, told), move |(receiver, told): (Receiver<u32>, Sender<()>)| {
                receiver.recv().unwrap();
                drop(receiver);
                told.send(()).unwrap();
                std::thread::sleep(Duration::from_secs(3600));
            }).unwrap();
            sender.send(round).unwrap();
            heard.recv().unwrap();
            assert!(matches!(sender.send(1), Err(SendError::Disconnected(1))), "it has let go of it");
            unit.process().unwrap().kill().unwrap();
            assert!(unit.wait().is_err());

            let (sender, receiver) = channel::<u32>(64).unwrap();
            let unit = spawn(receiver, |receiver: Receiver<u32>| receiver.into_iter().for_each(drop)).unwrap();
            sender.send(round).unwrap();
            unit.process().unwrap().kill().unwrap();
            // It sends all the while.
            while unit.process().unwrap().is_alive() {
                let _ = sender.try_send(1);
            }
            assert!(matches!(sender.send(1), Err(SendError::Disconnected(1))), "it is dead");
            assert!(unit.wait().is_err());
        }
    }
}

behaviour! { through ["auto"];
    fn messages_of_all_sizes_come_as_they_were_sent() {
        let (sender, receiver) = channel::<Vec<u8>>(1000).unwrap();
        let unit = spawn(receiver, |receiver: Receiver<Vec<u8>>| {
            let mut count = 0_usize;
            for (n, bytes) in receiver.into_iter().enumerate() {
                assert_eq!(bytes.len(), n * 37 % 16_300);
                assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (n + at) as u8), "{n}");
                count += 1;
            }
            count
        });
        for n in 0..3000 {
            sender.send((0..n * 37 % 16_300).map(|at| (n + at) as u8).collect()).unwrap();
        }
        drop(sender);
        assert_eq!(unit.unwrap().wait().unwrap(), 3000);
    }

    fn who_polls_it_is_told_of_what_was_there_before_and_of_what_comes() {
        let (sender, receiver) = channel::<u32>(8).unwrap();
        (0..3).for_each(|n| sender.send(n).unwrap());
        for n in 0..3 {
            assert!(is_readable(&receiver), "{n}");
            assert_eq!(receiver.try_recv().unwrap(), n);
        }
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        assert!(!is_readable(&receiver));
        for n in 3..6 {
            sender.send(n).unwrap();
            assert!(is_readable(&receiver));
            assert_eq!(receiver.recv().unwrap(), n);
            assert!(!is_readable(&receiver));
        }
        drop(sender);
        assert!(is_readable(&receiver));
        assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
        // One that was asked before anything was sent.
        let (sender, receiver) = channel::<u32>(8).unwrap();
        assert!(!is_readable(&receiver));
        sender.send(1).unwrap();
        assert!(is_readable(&receiver));
        assert_eq!(receiver.recv().unwrap(), 1);
    }

    fn an_end_takes_four_descriptors_and_none_for_what_goes_through() {
        let before = harness::entries("fd").len();
        let (sender, receiver) = channel::<u32>(4).unwrap();
        for n in 0..10 {
            assert_eq!(harness::entries("fd").len(), before + 8);
            sender.send(n).unwrap();
            receiver.recv().unwrap();
        }
        drop(sender);
        assert_eq!(harness::entries("fd").len(), before + 4);
    }

    fn a_forked_copy_that_polls_is_told_of_what_is_left_as_well() {
        let (sender, receiver) = channel::<u32>(4).unwrap();
        let unit = spawn((sender, receiver), |(sender, receiver): (Sender<u32>, Receiver<u32>)| {
            sender.send(1).unwrap();
            // SAFETY: the unit has one thread.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let is_so = is_readable(&receiver) && receiver.try_recv().is_ok() && receiver.try_recv().is_err() && !is_readable(&receiver);
                // SAFETY: no conditions.
                unsafe { libc::_exit(i32::from(!is_so)) };
            }
            let mut status = -1;
            // SAFETY: our own child.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            status
        });
        assert_eq!(unit.unwrap().wait().unwrap(), 0);
    }

    fn a_forked_copy_of_a_sender_sends_as_well() {
        for _ in 0..20 {
            let (sender, receiver) = channel::<(u32, u32)>(4).unwrap();
            let unit = spawn(sender, |sender: Sender<(u32, u32)>| {
                sender.send((0, 0)).unwrap();
                // SAFETY: the unit has one thread.
                let pid = unsafe { libc::fork() };
                let who = u32::from(pid == 0);
                (1..300).for_each(|n| sender.send((who, n)).unwrap());
                if pid == 0 {
                    // SAFETY: no conditions.
                    unsafe { libc::_exit(0) };
                }
                // SAFETY: our own child.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            });
            let received: Vec<_> = receiver.into_iter().collect();
            check(&[received], &BTreeMap::from([(0, 300), (1, 299)]));
            unit.unwrap().wait().unwrap();
        }
    }

    fn a_forked_copy_of_a_receiver_receives_as_well() {
        let (sender, receiver) = channel::<u32>(4).unwrap();
        let (back, of_back) = channel::<u32>(4).unwrap();
        let unit = spawn((receiver, back), |(receiver, back): (Receiver<u32>, Sender<u32>)| {
            back.send(receiver.recv().unwrap()).unwrap();
            // SAFETY: the unit has one thread.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                assert!(receiver.recv_timeout(Duration::from_millis(10)).is_err());
                back.send(std::process::id()).unwrap();
                back.send(receiver.recv().unwrap()).unwrap();
                assert!(receiver.recv().is_err());
                // SAFETY: no conditions.
                unsafe { libc::_exit(0) };
            }
            drop((receiver, back));
            let mut status = -1;
            // SAFETY: our own child.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            status
        });
        sender.send(1).unwrap();
        assert_eq!(of_back.recv().unwrap(), 1);
        let copy = of_back.recv().unwrap();
        for n in [2, 3] {
            eventually("it does not sleep", || harness::state(copy) == Some('S'));
            if n == 2 {
                sender.send(n).unwrap();
                assert_eq!(of_back.recv().unwrap(), n);
            }
        }
        drop(sender);
        assert_eq!(unit.unwrap().wait().unwrap(), 0);
    }

    fn whatever_is_written_into_its_memory_nobody_hangs_and_the_channel_goes_on() {
        for round in 0..10_u64 {
            let (sender, receiver) = channel::<u32>(8).unwrap();
            let unit = spawn((round, sender.clone()), |(round, _sender): (u64, Sender<u32>)| -> () {
                let paths = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
                let is_it = |path: &std::path::PathBuf| {
                    std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("memfd:offspring-value"))
                };
                let files: Vec<_> = paths.filter(is_it).map(|path| std::fs::File::options().write(true).open(path).unwrap()).collect();
                assert!(!files.is_empty());
                // Xorshift, for bytes that are the same each time.
                let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(round + 1);
                loop {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    // Mostly the words that decide.
                    let offset = if state.is_multiple_of(8) { state >> 8 & 0xffff } else { state >> 8 & 0xfff } & !3;
                    files.iter().for_each(|file| file.write_all_at(&state.to_le_bytes()[..4], offset).unwrap());
                }
            }).unwrap();
            let end = Instant::now() + Duration::from_millis(100);
            while Instant::now() < end {
                let _ = sender.try_send(1);
                let _ = sender.send_timeout(2, Duration::from_millis(1));
                let _ = receiver.try_recv();
                let _ = receiver.recv_timeout(Duration::from_millis(1));
            }
            unit.process().unwrap().kill().unwrap();
            assert!(unit.wait().is_err());
            // What is left of it comes or not.
            let mut sent = false;
            eventually("it has no room any more", || {
                while receiver.try_recv().is_ok() {}
                sent |= sender.try_send(77).is_ok();
                sent
            });
            let mut came = false;
            eventually("it does not come", || {
                came |= matches!(receiver.recv_timeout(Duration::from_millis(10)), Ok(77));
                let _ = sender.try_send(77);
                came
            });
        }
    }
}
