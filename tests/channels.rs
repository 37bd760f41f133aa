//! Channels between processes.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use harness::eventually;
use harness::ways::{WAYS, by_way};
use offspring::{
    Offspring, Receiver, RecvError, RecvTimeoutError, SendError, SendTimeoutError, Sender, SharedBytes,
    TryRecvError, TrySendError, channel, spawn,
};
use serde::{Deserialize, Serialize};

/// Who sent it, the how-manieth of his it is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
struct Numbered(u32, u32);

/// Sends so many.
fn produce((who, count, sender): (u32, u32, Sender<Numbered>)) {
    for n in 0..count {
        sender.send(Numbered(who, n)).unwrap();
    }
}

/// What has come, until the end.
fn consume(receiver: Receiver<Numbered>) -> Vec<Numbered> {
    receiver.into_iter().collect()
}

type Producer = Offspring<()>;
type Consumer = Offspring<Vec<Numbered>>;

fn between(producers: u32, consumers: u32, count: u32, bound: usize) -> (Vec<Producer>, Vec<Consumer>) {
    let (sender, receiver) = channel(bound).unwrap();
    let consumers = (0..consumers).map(|_| spawn(receiver.clone(), consume).unwrap()).collect();
    let producers = (0..producers).map(|who| spawn((who, count, sender.clone()), produce).unwrap()).collect();
    (producers, consumers)
}

/// That of each producer all have arrived once, and at each consumer in their order.
fn check(received: &[Vec<Numbered>], producers: u32, count: u32) {
    let mut seen = BTreeMap::new();
    for list in received {
        let mut last = BTreeMap::new();
        for Numbered(who, n) in list {
            assert!(last.insert(who, n).is_none_or(|before| before < n), "{who} sent {n} out of order");
            *seen.entry((*who, *n)).or_insert(0) += 1;
        }
    }
    assert!(seen.values().all(|times| *times == 1), "doubled: {seen:?}");
    assert_eq!(seen.len(), (producers * count) as usize);
}

behaviour! {
    fn from_a_unit_and_to_it() {
        for way in WAYS {
            let (to, of_to) = by_way::<u32>(way, 4);
            let (back, of_back) = by_way::<u32>(way, 4);
            let unit = spawn((of_to, back), |(numbers, back): (Receiver<u32>, Sender<u32>)| {
                for number in numbers {
                    back.send(2 * number).unwrap();
                }
            });
            for n in 0..100 {
                to.send(n).unwrap();
                assert_eq!(of_back.recv().unwrap(), 2 * n);
            }
            drop(to);
            assert!(matches!(of_back.recv(), Err(RecvError::Disconnected)));
            unit.unwrap().wait().unwrap();
        }
    }

    fn many_producers_and_many_consumers() {
        let (producers, consumers) = between(4, 4, 2000, 16);
        producers.into_iter().for_each(|producer| producer.wait().unwrap());
        let received: Vec<_> = consumers.into_iter().map(|consumer| consumer.wait().unwrap()).collect();
        check(&received, 4, 2000);
    }

    fn an_end_comes_home_with_a_result_and_through_another_channel() {
        let (sender, receiver) = spawn((), |()| channel::<String>(2).unwrap()).unwrap().wait().unwrap();
        let (channels, of_channels) = channel::<Sender<String>>(1).unwrap();
        let unit = spawn(of_channels, |channels: Receiver<Sender<String>>| {
            channels.recv().unwrap().send("through two".into()).unwrap();
        });
        channels.send(sender).unwrap();
        assert_eq!(receiver.recv().unwrap(), "through two");
        assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
        unit.unwrap().wait().unwrap();
    }

    fn messages_of_any_size_and_what_they_carry() {
        type Parts = (Vec<u8>, SharedBytes, Carried);
        #[derive(Serialize, Deserialize)]
        struct Carried(#[serde(with = "offspring::fd")] std::os::unix::net::UnixStream);
        let (sender, receiver) = channel::<Parts>(2).unwrap();
        let unit = spawn(receiver, |receiver: Receiver<Parts>| {
            let mut sums = Vec::new();
            for (bytes, shared, Carried(mut stream)) in receiver {
                sums.push((bytes.len(), shared.len()));
                std::io::Write::write_all(&mut stream, b"carried").unwrap();
            }
            sums
        });
        let sizes = [0, 1, 1000, 32 << 10, (32 << 10) + 1, 300_000, 3 << 20];
        for size in sizes {
            let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            sender.send((vec![1; size], SharedBytes::new(&vec![2; size]).unwrap(), Carried(theirs))).unwrap();
            let mut text = String::new();
            ours.read_to_string(&mut text).unwrap();
            assert_eq!(text, "carried");
        }
        drop(sender);
        assert_eq!(unit.unwrap().wait().unwrap(), sizes.map(|size| (size, size)));
    }

    fn whoever_waits_is_told_when_the_last_other_end_dies() {
        for way in WAYS {
            // A receiver whose sender is killed.
            let (sender, receiver) = by_way::<u32>(way, 1);
            let unit = spawn(sender, |sender: Sender<u32>| {
                sender.send(7).unwrap();
                std::thread::sleep(Duration::from_secs(3600));
                drop(sender);
            });
            let unit = unit.unwrap();
            assert_eq!(receiver.recv().unwrap(), 7);
            let process = unit.process().unwrap().clone();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| receiver.recv());
                process.kill().unwrap();
                assert!(matches!(waiting.join().unwrap(), Err(RecvError::Disconnected)));
            });
            assert!(unit.wait().is_err());
            // A sender that waits for room, whose receiver is killed.
            let (sender, receiver) = by_way::<u32>(way, 1);
            let (ready, is_ready) = channel::<()>(1).unwrap();
            let unit = spawn((receiver, ready), |(receiver, ready): (Receiver<u32>, Sender<()>)| {
                ready.send(()).unwrap();
                std::thread::sleep(Duration::from_secs(3600));
                drop(receiver);
            });
            let unit = unit.unwrap();
            is_ready.recv().unwrap();
            sender.send(1).unwrap();
            let process = unit.process().unwrap().clone();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| sender.send(2));
                process.kill().unwrap();
                assert!(matches!(waiting.join().unwrap(), Err(SendError::Disconnected(2))));
            });
            assert!(unit.wait().is_err());
        }
    }

    fn producers_that_are_killed_lose_their_own_and_keep_nobody_waiting() {
        let (sender, receiver) = channel::<Numbered>(3).unwrap();
        let consumer = spawn(receiver, consume).unwrap();
        let mut whole = Vec::new();
        for round in 0..20_u32 {
            let victim = spawn((1000 + round, u32::MAX, sender.clone()), produce).unwrap();
            let producer = spawn((round, 50, sender.clone()), produce).unwrap();
            // Somewhere in the middle of a send, most likely: it does nothing else.
            std::thread::sleep(Duration::from_micros(u64::from(round) * 97));
            victim.process().unwrap().kill().unwrap();
            assert!(victim.wait().is_err());
            whole.push(producer);
        }
        whole.into_iter().for_each(|producer| producer.wait().unwrap());
        drop(sender);
        let received = consumer.wait().unwrap();
        let whole: Vec<Numbered> = received.iter().filter(|message| message.0 < 1000).copied().collect();
        check(&[whole], 20, 50);
        // Of the others what came is a beginning, without a gap.
        let mut next = BTreeMap::new();
        for Numbered(who, n) in received.iter().filter(|message| message.0 >= 1000) {
            assert_eq!(*n, std::mem::replace(next.entry(*who).or_insert(0), n + 1));
        }
    }

    fn consumers_that_are_killed_lose_one_message_each_at_most() {
        for way in WAYS {
            let (sender, receiver) = by_way::<Numbered>(way, 3);
            let (told, heard) = by_way::<Numbered>(way, 100_000);
            const COUNT: u32 = 3000;
            let pass = |(receiver, told): (Receiver<Numbered>, Sender<Numbered>)| {
                for message in receiver {
                    told.send(message).unwrap();
                }
            };
            let producer = spawn((0, COUNT, sender), produce).unwrap();
            let reader = std::thread::spawn(move || heard.iter().count());
            let mut killed = 0;
            for round in 0..10_u64 {
                let victim = spawn((receiver.clone(), told.clone()), pass).unwrap();
                std::thread::sleep(Duration::from_micros(500 + round * 97));
                victim.process().unwrap().kill().unwrap();
                killed += usize::from(victim.wait().is_err());
            }
            let last = spawn((receiver, told), pass).unwrap();
            producer.wait().unwrap();
            last.wait().unwrap();
            let came = reader.join().unwrap();
            assert!(came <= COUNT as usize && came + killed >= COUNT as usize, "{came} of {COUNT}, {killed} killed");
        }
    }
}

behaviour! { through ["auto"];
    fn the_bound_is_exact_while_nobody_dies() {
        for way in WAYS {
            for bound in [1, 2, 3, 100] {
                let (sender, receiver) = by_way::<usize>(way, bound);
                for round in 0..3 {
                    (0..bound).for_each(|n| sender.try_send(n).unwrap());
                    assert!(matches!(sender.try_send(9), Err(TrySendError::Full(9))), "{bound}, {round}");
                    let error = sender.clone().send_timeout(9, Duration::from_millis(1)).unwrap_err();
                    assert!(matches!(error, SendTimeoutError::Timeout(9)));
                    assert_eq!(receiver.recv().unwrap(), 0);
                    sender.try_send(bound).unwrap();
                    assert!(sender.try_send(9).is_err());
                    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), (1..=bound).collect::<Vec<_>>());
                }
                assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
                let began = Instant::now();
                assert!(matches!(receiver.recv_timeout(Duration::from_millis(20)), Err(RecvTimeoutError::Timeout)));
                assert!(began.elapsed() >= Duration::from_millis(20));
            }
            assert_eq!(channel::<u8>(0).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        }
    }

    fn many_threads_of_one_process_share_the_ends() {
        for way in WAYS {
            let (sender, receiver) = by_way::<Numbered>(way, 2);
            let received: Vec<Vec<Numbered>> = std::thread::scope(|scope| {
                let consumers: Vec<_> = (0..4).map(|_| {
                    let receiver = receiver.clone();
                    scope.spawn(move || consume(receiver))
                }).collect();
                for who in 0..4 {
                    let sender = sender.clone();
                    scope.spawn(move || produce((who, 500, sender)));
                }
                drop((sender, receiver));
                consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect()
            });
            check(&received, 4, 500);
        }
    }

    fn what_was_sent_before_the_end_is_received() {
        for way in WAYS {
            let (sender, receiver) = by_way(way, 3);
            sender.send("one".to_owned()).unwrap();
            sender.send("two".to_owned()).unwrap();
            drop(sender);
            assert_eq!(receiver.recv().unwrap(), "one");
            assert_eq!(receiver.try_recv().unwrap(), "two");
            assert!(matches!(receiver.try_recv(), Err(TryRecvError::Disconnected)));
            assert!(matches!(receiver.recv_timeout(Duration::MAX), Err(RecvTimeoutError::Disconnected)));
        }
    }

    fn a_message_that_cannot_be_is_an_error_and_the_next_goes_on() {
        #[derive(Debug)]
        struct Picky(bool);
        impl Serialize for Picky {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if self.0 { serializer.serialize_bool(true) } else { Err(serde::ser::Error::custom("not this one")) }
            }
        }
        impl<'de> Deserialize<'de> for Picky {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                bool::deserialize(deserializer)?;
                static FIRST: std::sync::Once = std::sync::Once::new();
                let mut is_first = false;
                FIRST.call_once(|| is_first = true);
                if is_first { Err(serde::de::Error::custom("nor this")) } else { Ok(Self(true)) }
            }
        }
        let (sender, receiver) = channel(2).unwrap();
        let error = sender.send(Picky(false)).unwrap_err();
        assert!(error.to_string().contains("not this one"), "{error}");
        assert!(!error.into_inner().0);
        sender.send(Picky(true)).unwrap();
        sender.send(Picky(true)).unwrap();
        let Err(error @ RecvError::Failed(_)) = receiver.recv() else { panic!("it was received") };
        assert!(error.to_string().contains("nor this"), "{error}");
        receiver.recv().unwrap();
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
    }

    fn rubbish_in_the_shared_memory_hurts_nobody() {
        let (sender, receiver) = channel::<u32>(2).unwrap();
        // A unit finds the memory and writes there.
        let unit = spawn(sender.clone(), |sender: Sender<u32>| {
            for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
                let path = entry.unwrap().path();
                if std::fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().contains("memfd:offspring-value")) {
                    let file = std::fs::File::options().write(true).open(&path).unwrap();
                    assert!(file.set_len(0).is_err(), "it can be made shorter");
                    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 4096], 0).unwrap();
                }
            }
            drop(sender);
        });
        unit.unwrap().wait().unwrap();
        // The count says full; the queue is empty, which is found out.
        sender.send(1).unwrap();
        assert_eq!(receiver.recv().unwrap(), 1);
        for n in 0..10 {
            sender.send(n).unwrap();
            assert_eq!(receiver.recv().unwrap(), n);
        }
    }

    fn awaited_on_an_executor() {
        let (to, of_to) = channel::<u32>(2).unwrap();
        let (back, of_back) = channel::<u32>(2).unwrap();
        let unit = spawn((of_to, back), |(numbers, back): (Receiver<u32>, Sender<u32>)| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                while let Ok(number) = numbers.recv_async().await {
                    back.send_async(2 * number).await.unwrap();
                }
            });
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        runtime.block_on(async {
            let sending = tokio::spawn(async move {
                for n in 0..1000 {
                    to.send_async(n).await.unwrap();
                }
            });
            for n in 0..1000 {
                assert_eq!(of_back.recv_async().await.unwrap(), 2 * n);
            }
            sending.await.unwrap();
            assert!(matches!(of_back.recv_async().await, Err(RecvError::Disconnected)));
            // One that is given up has taken nothing.
            let (sender, receiver) = channel::<u32>(1).unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(5), receiver.recv_async()).await.is_err());
            sender.send_async(1).await.unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(5), sender.send_async(2)).await.is_err());
            assert_eq!(receiver.recv_async().await.unwrap(), 1);
            assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
            // Its other end goes while it waits.
            sender.send_async(1).await.unwrap();
            let waits = tokio::spawn(async move { sender.send_async(2).await.is_err() });
            tokio::task::yield_now().await;
            drop(receiver);
            assert!(waits.await.unwrap());
        });
        drop(runtime);
        unit.unwrap().wait().unwrap();
    }

    fn a_channel_that_nobody_has_any_more_leaves_nothing() {
        let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = count();
        for _ in 0..100 {
            let (sender, receiver) = channel::<Receiver<u8>>(3).unwrap();
            // In itself: nobody can ever receive it.
            let (_other, inner) = channel::<u8>(1).unwrap();
            sender.send(inner).unwrap();
            drop((sender, receiver));
        }
        eventually("descriptors are left", || count() == before);
    }
}
