//! What the codec costs beside the format that it stands on, and beside the fastest: `cargo run --release --bin codec`, which writes
//! `results/codec.md`.
#![allow(dead_code)] // The codec's sources, and not all of them are called here.

#[path = "../src/wire/codec/mod.rs"]
mod codec;

/// What the codec asks of the system, as where there is nothing of it.
#[path = "../src/sys/unsupported"]
mod sys {
    pub mod memory;

    pub mod io {
        pub use std::os::fd::OwnedFd;
    }

    fn none<T>() -> std::io::Result<T> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

use std::hint::black_box;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// A small unit, as units are.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Small {
    name: String,
    count: u32,
    ratio: f64,
    parts: Vec<u16>,
    note: Option<String>,
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Nanoseconds for one call, of the median of many rounds; the ways take turns.
fn turns<const N: usize>(calls: usize, mut ways: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..41 {
        for (times, way) in times.iter_mut().zip(&mut ways) {
            let began = Instant::now();
            (0..calls).for_each(|_| way());
            times.push(began.elapsed().as_nanos() as f64 / calls as f64);
        }
    }
    times.map(median)
}

fn main() {
    let small = Small {
        name: "a unit of work".into(),
        count: 70_000,
        ratio: 0.25,
        parts: vec![1, 300, 70],
        note: Some("as it comes".into()),
    };
    let [ours, rmp] = turns(
        2000,
        [
            &mut || {
                let bytes = codec::encode(black_box(&small)).unwrap();
                black_box(codec::decode::<Small>(black_box(&bytes)).unwrap());
            },
            &mut || {
                let bytes = rmp_serde::to_vec_named(black_box(&small)).unwrap();
                black_box(rmp_serde::from_slice::<Small>(black_box(&bytes)).unwrap());
            },
        ],
    );
    let small = format!(
        "A small struct, there and back: {ours:.0} ns, rmp-serde {rmp:.0} ns: {:.2} of it.",
        ours / rmp
    );

    let bytes: Vec<u8> = (0..16 << 20).map(|n: u32| n as u8).collect();
    let (encoded, peer) = (codec::encode(&bytes).unwrap(), postcard::to_allocvec(&bytes).unwrap());
    assert_eq!(codec::decode::<Vec<u8>>(&encoded).unwrap(), bytes);
    let rates = turns(
        1,
        [
            &mut || drop(black_box(codec::encode(black_box(&bytes)).unwrap())),
            &mut || drop(black_box(postcard::to_allocvec(black_box(&bytes)).unwrap())),
            &mut || drop(black_box(codec::decode::<Vec<u8>>(black_box(&encoded)).unwrap())),
            &mut || drop(black_box(postcard::from_bytes::<Vec<u8>>(black_box(&peer)).unwrap())),
        ],
    );
    let [encode, encode_peer, decode, decode_peer] = rates.map(|ns| bytes.len() as f64 * 1000.0 / ns);
    let large = format!(
        "`Vec<u8>` of 16 MiB: encoded at {encode:.0} MB/s (postcard: {encode_peer:.0}), decoded at {decode:.0} ({decode_peer:.0})."
    );
    println!("{small}\n{large}");
    let text =
        format!("# The codec\n\nWritten by `cargo run --release --bin codec`.\n\n- {small}\n- {large}\n");
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/results/codec.md"), text).unwrap();
}
