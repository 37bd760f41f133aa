//! What a unit costs beside its peers: `cargo bench --bench peers`, or `-- ROUNDS` for fewer than 500. Writes a report and
//! charts into `results/`.
//!
//! Each way has a process of its own, and all take turns in one run, so that the machine's noise meets them alike; read the
//! ratios.

mod charts;
mod measure;
mod report;
mod server;
mod turns;
mod ways;

/// What can be measured alone, and is then printed and not written: `-- 20 rate`.
const PARTS: [&str; 5] = ["start", "growth", "rate", "carry", "memory"];

fn main() {
    procspawn::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", way] => return server::serve(way),
        [argument @ ("--tell-time" | "--echo")] => return ways::executed(argument),
        _ => {}
    }
    let rounds = arguments.iter().filter_map(|argument| argument.parse().ok()).next().unwrap_or(500);
    let only = arguments.iter().find(|argument| PARTS.contains(&argument.as_str()));
    let wanted = |what: &str| only.is_none_or(|only| only == what);
    let mut report = report::Report::new("peers", rounds);
    report.say("Channels, and memory that is not copied: [channels.md](channels.md). The codec: [codec.md](codec.md).");
    let mut without = Vec::new();
    if wanted("start") || wanted("memory") {
        without = measure::starts(&mut report, rounds);
    }
    if wanted("growth") {
        measure::growth(&mut report, rounds);
    }
    if wanted("rate") {
        measure::rates(&mut report, rounds, 0);
    }
    if wanted("carry") {
        measure::payloads(&mut report, rounds);
    }
    // Last: machines that are virtual take back what has been freed, and that is felt for a minute.
    if wanted("memory") {
        measure::memory(&mut report, rounds, &without);
        measure::rates(&mut report, rounds, 1);
    }
    println!("{}", report.text);
    if only.is_none() {
        report.write("README.md");
    }
}
