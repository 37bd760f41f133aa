//! What a ring does, in whatever state.

use super::*;
use crate::channel::end::testing::{self, words};
use proptest::prelude::*;

fn ring(words: &Arc<Words>) -> Ring {
    Ring::new(words.clone(), testing::CAPACITY)
}

fn push(ring: &Ring, message: &[u8]) -> Pushed {
    ring.push(message, 1000, || false)
}

/// As if so many had been put in and taken out.
fn put(words: &Words, place: Place) {
    for word in [EMPTIED, FILLED] {
        words.wide()[word].store(place.to_word(), SeqCst);
    }
}

fn pop(ring: &Ring) -> Result<Vec<u8>, Popped> {
    let mut buffer = vec![0; ring.most()];
    match ring.pop(&mut buffer) {
        Popped::Message(length) => Ok(buffer[..length].to_vec()),
        other => Err(other),
    }
}

#[test]
fn what_is_put_in_comes_out_in_its_order_in_whatever_process() {
    let words = words();
    let (ours, theirs, others) = (ring(&words), ring(&words), ring(&words));
    let message = |n: usize| vec![n as u8; 1 + n * 61 % ours.most()];
    let (mut pushed, mut popped) = (0, 0);
    while popped < 2000 {
        while pushed < 2000 && push(&ours, &message(pushed)) == Pushed::Done {
            pushed += 1;
        }
        for ring in [&theirs, &others, &theirs] {
            match pop(ring) {
                Ok(bytes) => assert_eq!(bytes, message(popped)),
                Err(other) => assert_eq!((other, popped), (Popped::Empty, pushed)),
            }
            popped = (popped + 1).min(pushed);
        }
    }
    assert_eq!((pop(&theirs), theirs.count()), (Err(Popped::Empty), 0));
}

#[test]
fn the_bound_is_exact_and_so_is_the_room() {
    let words = words();
    let ring = ring(&words);
    for bound in [1, 2, 100] {
        (0..bound).for_each(|_| assert_eq!(ring.push(b"small", bound, || false), Pushed::Done));
        assert_eq!(ring.push(b"small", bound, || false), Pushed::Full);
        (0..bound).for_each(|_| assert!(pop(&ring).is_ok()));
    }
    let large = vec![1; ring.most()];
    // Each has a word for its length.
    (0..3).for_each(|_| assert_eq!(push(&ring, &large), Pushed::Done));
    assert_eq!(push(&ring, &large), Pushed::Full);
    assert_eq!(ring.count(), 3);
}

#[test]
fn one_fills_it_until_he_lets_go_of_it_and_a_second_closes_it() {
    let words = words();
    let (first, second, third) = (ring(&words), ring(&words), ring(&words));
    assert_eq!(push(&first, b"first"), Pushed::Done);
    drop(first);
    assert_eq!(push(&second, b"second"), Pushed::Done);
    assert!(!third.is_closed());
    assert_eq!(push(&third, b"third"), Pushed::Closed);
    assert_eq!(push(&second, b"fourth"), Pushed::Closed);
    assert_eq!((pop(&third).unwrap(), pop(&second).unwrap()), (b"first".to_vec(), b"second".to_vec()));
    assert_eq!((pop(&third), pop(&second)), (Err(Popped::Closed), Err(Popped::Closed)));
}

#[test]
fn it_is_asked_whether_anybody_receives_when_an_end_has_gone() {
    let words = words();
    let (ours, theirs) = (ring(&words), ring(&words));
    assert_eq!(ours.push(b"first", 9, || true), Pushed::Over);
    assert_eq!(push(&ours, b"first"), Pushed::Done);
    drop(theirs);
    assert_eq!(ours.push(b"second", 9, || true), Pushed::Over);
    assert_eq!(ours.count(), 1);
}

#[test]
fn many_threads_take_each_message_once() {
    const COUNT: u32 = 20_000;
    let words = words();
    let rings: Vec<Ring> = (0..3).map(|_| ring(&words)).collect();
    let received: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let take = |ring: &Ring| {
            let mut all = Vec::new();
            loop {
                match pop(ring) {
                    Ok(bytes) => all.push(u32::from_le_bytes(bytes[..4].try_into().unwrap())),
                    Err(Popped::Closed) => return all,
                    Err(_) => std::thread::yield_now(),
                }
            }
        };
        let takers: Vec<_> =
            rings.iter().chain([&rings[0]]).map(|ring| scope.spawn(move || take(ring))).collect();
        let filler = ring(&words);
        for n in 0..COUNT {
            // Of many lengths, so that what is old is no length.
            let message = [&n.to_le_bytes()[..], &[0xff; 40][..n as usize % 41]].concat();
            while filler.push(&message, 8, || false) != Pushed::Done {
                std::thread::yield_now();
            }
        }
        filler.close();
        takers.into_iter().map(|taker| taker.join().unwrap()).collect()
    });
    assert!(received.iter().all(|list| list.is_sorted()));
    let mut all: Vec<u32> = received.into_iter().flatten().collect();
    all.sort_unstable();
    assert_eq!(all, (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn an_end_that_has_gone_is_looked_at_however_short_ago_that_was_done() {
    let words = words();
    let (ours, theirs) = (ring(&words), ring(&words));
    assert_eq!(push(&ours, b"first"), Pushed::Done);
    let later = Instant::now() + Duration::from_secs(3600);
    ours.filling.lock().unwrap().looked = Some((later, words[GONE].load(SeqCst)));
    assert_eq!(ours.push(b"second", 9, || true), Pushed::Done);
    drop(theirs);
    assert_eq!(ours.push(b"third", 9, || true), Pushed::Over);
}

#[test]
fn a_forked_copy_fills_nothing_waits_for_no_lock_and_lets_go_of_nothing() {
    let words = words();
    let mut copy = ring(&words);
    assert_eq!(push(&copy, b"first"), Pushed::Done);
    copy.generation += 1;
    let filling = std::mem::take(&mut copy.filling);
    let held = filling.lock().unwrap();
    assert_eq!(push(&copy, b"second"), Pushed::Closed);
    drop(held);
    copy.filling = filling;
    drop(copy);
    assert_eq!(words[FILLER].load(SeqCst), 1);
}

#[test]
fn what_was_seen_long_ago_is_behind() {
    let words = words();
    let (ours, theirs) = (ring(&words), ring(&words));
    // A message here and there; then others go round and round, until 32 bits are full, or nearly so.
    assert_eq!(push(&ours, b"first"), Pushed::Done);
    assert!(pop(&theirs).is_ok());
    for (messages, count) in [(1 << 16, 1 << 32), ((1_u64 << 31) - 2000, (1_u64 << 32) - 4000)] {
        let place = Place { message: messages as u16, word: count };
        put(&words, place);
        assert_eq!(pop(&theirs), Err(Popped::Empty), "{place:?}");
    }
}

#[test]
fn it_goes_on_where_the_numbers_begin_again() {
    let words = words();
    let place = Place { message: u16::MAX - 10, word: WORDS - 100 };
    put(&words, place);
    let (ours, theirs) = (ring(&words), ring(&words));
    for n in 0..100_u8 {
        (0..3).for_each(|k| assert_eq!(push(&ours, &[n, k, 0, 0, 0, 0, 0, 0, 0]), Pushed::Done));
        (0..3).for_each(|k| assert_eq!(pop(&theirs).unwrap()[..2], [n, k]));
    }
    assert!(!ours.is_closed() && ours.is_empty());
}

proptest! {
    /// Whatever stands in the memory, each step ends, and after some of them all goes by the socket or the ring works.
    #[test]
    fn rubbish_ends_in_a_ring_that_works_or_is_closed(rubbish in proptest::collection::vec((0..2_usize, any::<u64>(), 0..64_u32), 1..20)) {
        let words = words();
        let (ours, theirs) = (ring(&words), ring(&words));
        for (place, value, shift) in rubbish {
            let _ = push(&ours, b"message");
            // Often near to what is there.
            let word = &words.wide()[[EMPTIED, FILLED][place]];
            word.fetch_xor(value >> shift & !CLOSED, SeqCst);
            words.wide()[ROOM].store(value.rotate_left(shift), SeqCst);
            let _ = push(&ours, b"message");
            let _ = pop(&theirs);
        }
        let mut left = 0;
        while pop(&theirs).is_ok() {
            left += 1;
            prop_assert!(left <= testing::CAPACITY);
        }
        match push(&ours, b"at last") {
            Pushed::Done => prop_assert_eq!(pop(&theirs).unwrap(), b"at last".to_vec()),
            other => prop_assert_eq!(other, Pushed::Closed),
        }
    }
}
