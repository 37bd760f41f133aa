//! What a unit costs from the call until its child is reaped, beside fork, `std::process::Command` and a thread.
//!
//! `cargo bench --bench start`, or `-- ROUNDS`. All are measured turn by turn in one run, so that the machine's noise
//! meets them alike; read the ratios.
#![allow(unsafe_code)]

use std::process::Command;
use std::time::{Duration, Instant};

use offspring::spawn;

/// Does nothing in a child that `fork` made, and reaps it.
fn fork() {
    // SAFETY: the copy calls _exit at once; the parent waits for it by its pid.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            pid => libc::waitpid(pid, std::ptr::null_mut(), 0),
        };
    }
}

/// Executes this program again, which ends at once.
fn command() {
    let mut command = Command::new("/proc/self/exe");
    assert!(command.env("BENCH_NOTHING", "1").status().unwrap().success());
}

fn thread() {
    std::thread::spawn(|| {}).join().unwrap();
}

fn unit() {
    spawn((), |()| ()).unwrap().wait().unwrap();
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn main() {
    if std::env::var_os("BENCH_NOTHING").is_some() {
        return;
    }
    let rounds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(500);
    let ways: [(&str, fn()); 4] =
        [("thread", thread), ("fork", fork), ("Command", command), ("offspring, exec", unit)];
    for touched in [0, 1 << 30] {
        let memory = vec![1_u8; touched];
        let mut times = ways.map(|_| Vec::new());
        // The first round is warming up.
        for round in 0..=rounds {
            for ((_, way), times) in ways.iter().zip(&mut times) {
                let start = Instant::now();
                way();
                if round > 0 {
                    times.push(start.elapsed());
                }
            }
        }
        drop(std::hint::black_box(memory));
        let medians = times.map(|mut times| median(&mut times));
        println!(
            "{} MiB touched, {rounds} rounds: median from call to reaped, and its ratios",
            touched >> 20
        );
        println!("{:<16} {:>10} {:>9} {:>9} {:>9}", "", "µs", "/ thread", "/ fork", "/ Command");
        for ((name, _), time) in ways.iter().zip(&medians) {
            let ratio = |other: usize| time.as_secs_f64() / medians[other].as_secs_f64();
            println!(
                "{name:<16} {:>10.1} {:>9.2} {:>9.3} {:>9.2}",
                time.as_secs_f64() * 1e6,
                ratio(0),
                ratio(1),
                ratio(2)
            );
        }
    }
}
