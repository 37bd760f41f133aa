//! What channels and shared memory cost beside their peers: `cargo bench --bench channels`, or `-- ROUNDS` for fewer than 40. Writes
//! `results/channels.md`. Ends with 1 if a message was lost, doubled or out of order, which is counted first.
//!
//! All take turns in one run, so that the machine's noise meets them alike; read the ratios.

mod carriers;
#[allow(dead_code)] // There are no lines in this one.
mod charts;
mod large;
mod places;
mod proof;
mod report;
mod small;

/// Nanoseconds on a clock that all processes share.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The value in the middle; 0 if there is none.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// In three digits, about.
fn figure(value: f64) -> String {
    match value {
        10.0..100.0 => format!("{value:.1}"),
        _ if value < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// Whether it is as it should be: at least so much.
fn verdict(value: f64, least: f64) -> String {
    format!("{} (at least {least}: {})", figure(value), if value >= least { "met" } else { "**missed**" })
}

/// The same: at most so much.
fn verdict_most(value: f64, most: f64) -> String {
    format!("{} (at most {most}: {})", figure(value), if value <= most { "met" } else { "**missed**" })
}

/// What can be done alone, and is then printed and not written: `-- 20 small`.
const PARTS: [&str; 3] = ["proof", "small", "large"];

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [carriers::IPC, name] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        carriers::answer_by_ipc_channel(name.to_owned());
        return std::process::ExitCode::SUCCESS;
    }
    let rounds = arguments.iter().filter_map(|argument| argument.parse().ok()).next().unwrap_or(40);
    let only = arguments.iter().find(|argument| PARTS.contains(&argument.as_str()));
    let wanted = |what: &str| only.is_none_or(|only| only == what);
    let mut report = report::Report::new("channels", rounds);
    let mut is_sound = true;
    if wanted("proof") {
        is_sound = proof::counted(&mut report, rounds);
    }
    if wanted("small") {
        small::messages(&mut report, rounds);
    }
    if wanted("large") {
        large::shared(&mut report, rounds);
        large::values(&mut report, rounds);
    }
    println!("{}", report.text);
    if only.is_none() {
        report.write("channels.md");
    }
    if is_sound { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}
