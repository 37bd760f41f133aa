//! Eight units of work, seven of which end badly. The parent reports each in a line, and goes on.
//!
//! Shows that whatever becomes of a child, its parent learns how it ended, and lives.
//!
//! `cargo run --release --example crashproof`

// To crash for real.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::hint::black_box;
use std::time::Duration;

use offspring::{Offspring, Stdio, Subprocess};
use serde::{Deserialize, Serialize};

/// The unit of work, and what will become of it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Stunt {
    Segfault,
    Overflow,
    Hang,
    Spin,
    Hoard,
    Panic,
    Exit,
    Succeed,
}

impl Subprocess for Stunt {
    type Output = usize;

    /// In the child.
    fn run(self) -> usize {
        match self {
            Stunt::Segfault => length(black_box(std::ptr::null())),
            Stunt::Overflow => depth(0),
            Stunt::Hang => loop {
                std::thread::park();
            },
            Stunt::Spin => loop {
                black_box(());
            },
            Stunt::Hoard => black_box(vec![1_u8; 2 << 30]).len(),
            Stunt::Panic => panic!("what a pity"),
            Stunt::Exit => std::process::exit(3),
            Stunt::Succeed => 42,
        }
    }
}

/// As somebody's binding to a C library might have it.
fn length(text: *const c_char) -> usize {
    // SAFETY: none, which is the point. The pointer is null, the C library reads what it points to, and the kernel
    // ends the process (nothing is mapped at address 0) before anything can be made of the result.
    unsafe { CStr::from_ptr(text) }.count_bytes()
}

/// Calls itself until the stack is full.
fn depth(above: usize) -> usize {
    let frame = black_box([above; 64]);
    if frame[0] == usize::MAX { 0 } else { depth(above + 1) + frame[1] }
}

fn main() {
    let stunts = [
        Stunt::Segfault,
        Stunt::Overflow,
        Stunt::Hang,
        Stunt::Spin,
        Stunt::Hoard,
        Stunt::Panic,
        Stunt::Exit,
        Stunt::Succeed,
    ];
    // All at once, each with its limit. What they say themselves is of no interest here.
    let start = |stunt| {
        let builder = Offspring::builder(stunt).name(format!("{stunt:?}")).stderr(Stdio::null());
        match stunt {
            Stunt::Spin => builder.limit_cpu_time(Duration::from_secs(1)).spawn(),
            Stunt::Hoard => builder.limit_memory(1 << 30).spawn(),
            _ => builder.timeout(Duration::from_secs(3)).spawn(),
        }
    };
    let units: Vec<_> = stunts.into_iter().map(start).collect();
    for (stunt, unit) in stunts.into_iter().zip(units) {
        print!("{:<9} ", format!("{stunt:?}"));
        match unit.and_then(Offspring::wait) {
            Ok(value) => println!("gave {value}"),
            // Which unit, its pid, and what became of it; `kind`, `panic` and `death` tell a program the same.
            Err(error) => println!("{error}"),
        }
    }
    println!("The parent lives.");
}
