//! What happens between two steps of the ends, which no test from outside can time.

use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::end::End;
use super::receiver::Look;
use super::ring::{AT_GONE, Pushed};
use super::{Receiver, SMALL, Sender, Stop, channel};
use crate::sys::io as sysio;
use crate::wire::codec;

const LONG: Duration = Duration::from_secs(60);

/// Puts a message in, and tells nobody, as somebody does who is killed then.
fn push(end: &End, number: u8) -> Pushed {
    end.ring.push(&codec::encode(&number).unwrap(), end.gate.bound, || false)
}

/// The same end once more, as it is in another process.
fn another(sender: &Sender<u8>) -> Sender<u8> {
    Sender::new(Arc::new(sender.end.other(sysio::duplicate(&sender.end.socket).unwrap()).unwrap()))
}

/// All that comes, by a thread that waits for it now.
fn receives(sender: &Sender<u8>, receiver: Receiver<u8>) -> JoinHandle<Vec<u8>> {
    let thread = std::thread::spawn(move || receiver.into_iter().collect());
    while !sender.end.bell.has_waiting() {
        std::thread::yield_now();
    }
    thread
}

#[test]
fn a_message_that_its_sender_could_not_tell_of_keeps_nobody_waiting() {
    for bound in [1, 2] {
        let (dead, receiver) = channel::<u8>(bound).unwrap();
        let sender = another(&dead);
        let receives = receives(&dead, receiver);
        assert_eq!(push(&dead.end, 1), Pushed::Done);
        sender.send_timeout(2, LONG).unwrap();
        sender.send_timeout(3, LONG).unwrap();
        drop((dead, sender));
        assert_eq!(receives.join().unwrap(), [1, 2, 3]);
    }
}

#[test]
fn who_waits_looks_once_more_after_his_wish() {
    let (sender, receiver) = channel::<u8>(4).unwrap();
    assert_eq!(push(&sender.end, 7), Pushed::Done);
    assert!(receiver.end.wait_for_message(Some(LONG)) == Look::Ring);
    assert_eq!(receiver.recv().unwrap(), 7);
}

#[test]
fn what_is_left_in_a_ring_that_was_closed_is_looked_for() {
    let (sender, receiver) = channel::<u8>(1).unwrap();
    assert_eq!(push(&sender.end, 7), Pushed::Done);
    // By a third.
    receiver.end.ring.close();
    let began = Instant::now();
    assert!(receiver.end.wait_for_message(Some(LONG)) == Look::Now && began.elapsed() < LONG);
    assert_eq!(receiver.recv().unwrap(), 7);
}

#[test]
fn who_awaits_looks_once_more_after_his_wish() {
    // What is put in and not told of between the two is found, or nothing is, if that came too late.
    let is_found = || {
        let (sender, receiver) = channel::<u8>(1).unwrap();
        let is_there = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                is_there.store(true, Relaxed);
                while !receiver.end.bell.has_waiting() {
                    std::hint::spin_loop();
                }
                push(&sender.end, 7)
            });
            while !is_there.load(Relaxed) {
                std::thread::yield_now();
            }
            let mut waits = pin!(receiver.recv_async());
            matches!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(7)))
        })
    };
    assert!((0..1000).any(|_| is_found()));
}

#[test]
fn what_was_put_in_before_the_end_is_seen_before_the_end() {
    let (sender, receiver) = channel::<u8>(4).unwrap();
    sender.send(7).unwrap();
    drop(sender);
    // Who has found the ring empty before that.
    let mut buffer = vec![0; receiver.end.ring.most().max(SMALL + 2)];
    assert!(matches!(receiver.end.hear::<u8>(&mut buffer, Look::Now), Ok(7)));
}

#[test]
fn the_socket_is_not_looked_into_before_the_ring_is_closed() {
    let (sender, receiver) = channel::<u8>(4).unwrap();
    sysio::send_now(&sender.end.socket, &[0, 7]).unwrap();
    for look in [Look::Ring, Look::Told] {
        assert!(matches!(receiver.end.receive::<u8>(look), Err(Stop::Wait(_))));
    }
    sender.end.ring.close();
    assert!(matches!(receiver.end.receive::<u8>(Look::Ring), Ok(7)));
}

#[test]
fn the_bound_is_that_of_both_ways_together() {
    let (sender, receiver) = channel::<u8>(3).unwrap();
    sender.send(1).unwrap();
    sender.send(2).unwrap();
    receiver.end.ring.close();
    sender.try_send(3).unwrap();
    assert!(sender.try_send(4).is_err());
    assert_eq!(receiver.try_iter().collect::<Vec<u8>>(), [1, 2, 3]);
}

#[test]
fn who_waits_and_is_counted_no_more_is_told_by_who_finds_no_room() {
    let send = |sender: &Sender<u8>| sender.send_timeout(2, LONG).is_ok();
    let send_async = |sender: &Sender<u8>| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(sender.send_async(2)).is_ok()
    };
    for send in [&send as &dyn Fn(&Sender<u8>) -> bool, &send_async] {
        let (sender, receiver) = channel::<u8>(1).unwrap();
        let receives = receives(&sender, receiver);
        // By somebody who means no good, say.
        sender.end.bell.forget_all();
        sender.send(1).unwrap();
        assert!(send(&sender));
        drop(sender);
        assert_eq!(receives.join().unwrap(), [1, 2]);
    }
}

#[test]
fn wishes_of_those_who_have_died_are_not_answered_for_ever() {
    let (sender, receiver) = channel::<u8>(2).unwrap();
    (0..100).for_each(|_| std::mem::forget(receiver.end.bell.wait()));
    let receives = std::thread::spawn(move || receiver.into_iter().count());
    let mut count = 0;
    // Each is answered once it has been received and the next is waited for.
    while !sender.end.ring.is_closed() {
        sender.send_timeout(1, LONG).unwrap();
        count += 1;
        assert!(count < 1000);
        while !(sender.end.ring.is_closed()
            || sender.end.ring.is_empty() && !sysio::is_readable(&sender.end.bell.tokens, 0))
        {
            std::thread::yield_now();
        }
    }
    drop(sender);
    assert_eq!(receives.join().unwrap(), count);
}

#[test]
fn who_sees_that_an_end_has_gone_finds_it_so() {
    let (sender, receiver) = channel::<u8>(1).unwrap();
    // Not whether it is over, for a process that another test is about to execute may have a copy for a moment; but whether we have it still.
    let name = format!("/proc/self/fd/{}", receiver.end.socket.as_raw_fd());
    let socket = std::fs::read_link(&name).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    AT_GONE.set(Some(Box::new(move || tell.send(std::fs::read_link(&name).ok() != Some(socket)).unwrap())));
    drop(receiver);
    assert!(told.try_recv().unwrap());
    let until = Instant::now() + LONG;
    while !sender.end.is_over() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
}

#[test]
fn a_quarter_of_the_memory_is_for_one_message_and_32_kib_at_most() {
    for (bound, most) in [(1, 8 << 10), (1024, 16 << 10), (usize::MAX, 32 << 10)] {
        let (sender, receiver) = channel::<serde_bytes::ByteBuf>(bound).unwrap();
        // The codec has three bytes in front, or five.
        for (size, is_closed) in [(most - 5, false), (most, true)] {
            sender.send(serde_bytes::ByteBuf::from(vec![1; size])).unwrap();
            assert_eq!(sender.end.ring.is_closed(), is_closed, "{bound}: {size}");
            assert_eq!(receiver.recv().unwrap().len(), size);
        }
    }
}

#[test]
fn tokens_for_those_who_have_died_are_not_taken_for_ever() {
    let (sender, receiver) = channel::<u8>(2).unwrap();
    (0..200).for_each(|_| sysio::add(&sender.end.bell.tokens));
    assert!(receiver.recv_timeout(Duration::from_millis(1)).is_err());
    assert!(sender.end.ring.is_closed());
    sender.send(1).unwrap();
    assert_eq!(receiver.recv().unwrap(), 1);
}

/// Has a receiver look, in some way that is in vain; 200 times, with a message between two.
fn looks(look: impl Fn(&Receiver<u8>) -> Option<u8>) {
    let (sender, receiver) = channel::<u8>(8).unwrap();
    for n in 0..200 {
        assert_eq!(look(&receiver), None);
        sender.send(n).unwrap();
        assert_eq!(look(&receiver), Some(n));
        assert!(!sender.end.ring.is_closed(), "closed after {n}");
    }
}

#[test]
fn a_receiver_that_looks_in_vain_in_between_goes_on_by_memory() {
    looks(|receiver| receiver.recv_timeout(Duration::ZERO).ok());
    looks(|receiver| receiver.recv_timeout(Duration::from_micros(1)).ok());
    looks(|receiver| receiver.try_recv().ok());
    // As where others are awaited at the same time, and are faster.
    looks(|receiver| {
        let mut context = Context::from_waker(Waker::noop());
        let mut waits = pin!(receiver.recv_async());
        for _ in 0..2 {
            if let Poll::Ready(got) = waits.as_mut().poll(&mut context) {
                return got.ok();
            }
        }
        None
    });
}
