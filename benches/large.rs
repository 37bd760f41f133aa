//! Large values: as memory that is not copied, and through a channel.

use std::hint::black_box;

use offspring::{Receiver, Sender, SharedBytes, channel, spawn};
use serde_bytes::ByteBuf;

use crate::report::Report;
use crate::{figure, median, now, verdict, verdict_most};

const SIZE: usize = 64 << 20;

/// How long something takes: microseconds.
fn timed<R>(act: impl FnOnce() -> R) -> f64 {
    let began = now();
    let result = act();
    let took = now() - began;
    drop(result);
    took as f64 / 1000.0
}

type Unit = offspring::Offspring<usize>;

/// A unit that asks for the length of its argument and looks at nothing of it, by how long the argument is.
pub fn shared(report: &mut Report, rounds: usize) {
    let length: fn(SharedBytes) -> usize = |bytes| bytes.len();
    let arguments = [0, 1, SIZE].map(|size| SharedBytes::new(&vec![1; size]).unwrap());
    let ways: [fn(Unit) -> usize; 2] = [|unit| unit.result().unwrap(), |unit| unit.wait().unwrap()];
    let mut times: [[Vec<f64>; 2]; 3] = Default::default();
    for round in 0..rounds * 5 + 3 {
        for (n, way) in ways.into_iter().enumerate() {
            for (argument, times) in arguments.iter().zip(&mut times) {
                let time = timed(|| way(spawn(argument.clone(), length).unwrap()));
                // The first few are warming up.
                if round >= 3 {
                    times[n].push(time);
                }
                // What the last one leaves behind (its end, a spare that is made) is not in the next one's time.
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        }
    }
    let [empty, byte, full] = &times;
    let row = |name: &str, cells: [String; 2]| (name.to_owned(), cells.to_vec());
    let ratio = |way: usize| {
        let pairs = full[way].iter().zip(&empty[way]);
        verdict_most(median(&pairs.map(|(full, empty)| full / empty).collect::<Vec<_>>()), 2.0)
    };
    report.table(
        "A unit with `SharedBytes`, of which it asks the length: microseconds",
        &["until its result is home", "until it is reaped"],
        &[
            row("empty", empty.each_ref().map(|times| figure(median(times)))),
            row("one byte", byte.each_ref().map(|times| figure(median(times)))),
            row("64 MiB", full.each_ref().map(|times| figure(median(times)))),
            row("64 MiB over empty, of each two", [0, 1].map(ratio)),
        ],
    );
}

/// How many copies of its bytes a value's way through a channel makes.
const COPIES: f64 = 2.0;

/// 64 MiB through a channel, beside as many copies within a process.
pub fn values(report: &mut Report, rounds: usize) {
    let (to, of_to) = channel::<ByteBuf>(1).unwrap();
    let (back, of_back) = channel::<u64>(1).unwrap();
    type Ends = (Receiver<ByteBuf>, Sender<u64>);
    let unit = spawn((of_to, back), |(values, times): Ends| {
        while let Ok(value) = values.recv() {
            let arrived = now();
            assert!(value.len() == SIZE && value[SIZE - 1] == 200);
            times.send(arrived).unwrap();
        }
    });
    let value = ByteBuf::from(vec![200; SIZE]);
    let mut warm = vec![1; SIZE];
    let mut times: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds.min(20) + 1 {
        let given = value.clone();
        let began = now();
        to.send(given).unwrap();
        let through = (of_back.recv().unwrap() - began) as f64 / 1000.0;
        let copies = timed(|| {
            warm.copy_from_slice(black_box(&value));
            black_box(&mut warm)[0]
        });
        let fresh = timed(|| black_box(&value).to_vec());
        if round > 0 {
            times.iter_mut().zip([through, copies, fresh]).for_each(|(times, time)| times.push(time));
        }
    }
    drop(to);
    unit.unwrap().wait().unwrap();
    let [through, warm, fresh] = times.map(|times| median(&times) / 1000.0);
    let row = |name: &str, time: f64, speed: Option<f64>| {
        let rate = SIZE as f64 * COPIES / time / 1e6;
        let cells = [figure(time), figure(rate), speed.map_or("-".into(), |speed| verdict(speed, 0.5))];
        (name.to_owned(), cells.to_vec())
    };
    report.table(
        "64 MiB, as `serde_bytes::ByteBuf`, through a channel: two copies",
        &["milliseconds", "GB a second, for each copy", "the channel's speed, in parts of that"],
        &[
            row("channel, until it has been received", through, None),
            row("two copies into memory that is there", COPIES * warm, Some(COPIES * warm / through)),
            row("two copies into fresh memory", COPIES * fresh, Some(COPIES * fresh / through)),
        ],
    );
    report.say(
        "The two that it must make: from where the value is to a memory file, and from there to where it is received. Fresh memory is had from \
         the kernel and given back, as each of these two has it.",
    );
}
