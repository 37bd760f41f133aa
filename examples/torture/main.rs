//! The proof, by one command: twelve figures of what is promised, measured, and each with its verdict.
//!
//! `cargo run --release --example torture`
//!
//! Kills, starves, stops and crowds whatever can be, and counts what goes wrong. Exit code 1: a figure is not as promised. Each
//! figure runs in a process of its own, which is killed if it takes too long.
#![allow(unsafe_code)]

mod copies;
mod figure;
mod hostile;
mod hostility;
mod isolation;
mod matrix;
mod orphans;
mod peers;
mod processes;
mod starts;
mod starvation;
mod steps;
mod stopping;
mod values;
mod zygote;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use figure::{Figure, Job, LONG, Message, Report, Tally, number};
use indicatif::{ProgressBar, ProgressStyle};

const FIGURES: [Figure; 12] = [
    Figure {
        number: 1,
        count: 200_000,
        least: 2000,
        promise: "Starts: every result right, nothing stays in parent and zygote, not a MiB of growth",
        measure: starts::many,
    },
    Figure {
        number: 2,
        count: 1000,
        least: 50,
        promise: "Parents killed within 10 ms of their first use: no orphan; units that obey are gone within 50 ms",
        measure: orphans::at_any_moment,
    },
    Figure {
        number: 3,
        count: 500,
        least: 20,
        promise: "Parents killed together with their zygote, units deaf to TERM: no orphan 50 ms after the grace",
        measure: orphans::with_the_zygote,
    },
    Figure {
        number: 4,
        count: 20,
        least: 1,
        promise: "Each fault at each step of the protocol, so many times: an error that says so, no hang, and the next start works",
        measure: steps::all,
    },
    Figure {
        number: 5,
        count: 100,
        least: 2,
        promise: "Values and units that refuse, panic, exit or crash, each so many times: the right error, and the next start works",
        measure: matrix::all,
    },
    Figure {
        number: 6,
        count: 100_000,
        least: 1000,
        promise: "Results sent just before the end, whatever that is: none lost, none doubled",
        measure: starts::last_words,
    },
    Figure {
        number: 7,
        count: 50,
        least: 4,
        promise: "64 MiB there and back at once, beside 32 units that run: nothing waits for more than a second",
        measure: values::both_ways,
    },
    Figure {
        number: 8,
        count: 1000,
        least: 40,
        promise: "Shutdowns, each of three kinds: TERM is obeyed within 5 ms (p99); deaf or stopped units are gone 20 ms after the grace",
        measure: stopping::all,
    },
    Figure {
        number: 9,
        count: 10_000,
        least: 300,
        promise: "Starts in each of five hostile parents (SIGCHLD ignored, no zombies wanted, a thief of statuses, a storm of forks, \
                  interrupted all the time): every value and status right",
        measure: hostile::all,
    },
    Figure {
        number: 10,
        count: 20_000,
        least: 2000,
        promise: "Starts by 8 threads while the zygote is killed every 50 ms: none fails, what runs is not harmed, recovered within \
                  30 ms (p99)",
        measure: zygote::killed,
    },
    Figure {
        number: 11,
        count: 500,
        least: 20,
        promise: "Starts that lack descriptors, processes or memory, so many times each: an error that says so, nothing stays, the next \
                  start works",
        measure: starvation::all,
    },
    Figure {
        number: 12,
        count: 1000,
        least: 100,
        promise: "Units that look around: 4 descriptors, default signals, randomness, environment, directory and umask of their own",
        measure: isolation::all,
    },
];

/// Measures what the library promises, and says of each figure whether it is so.
#[derive(Parser)]
#[command(name = "torture")]
struct Args {
    /// So much of the usual counts: 0.05 takes about a minute.
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    fraction: f64,
    /// The nightly counts: a million starts, and so on.
    #[arg(long)]
    long: bool,
    /// These figures alone.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    only: Vec<u32>,
    /// Says times, but fails nothing for them: for a machine that does other things.
    #[arg(long)]
    no_times: bool,
    /// The same of somebody else, as far as it makes sense.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(peers::NAMES))]
    peer: Option<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((word, role)) = arguments.split_first()
        && word == copies::ROLE
    {
        play(&role.iter().map(String::as_str).collect::<Vec<_>>());
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    if let Some(Err(why)) = args.peer.as_deref().map(peers::prepare) {
        println!("{} is left out: {why}", args.peer.unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let mut is_good = true;
    println!("{}", environment(args.peer.as_deref()));
    println!("\n|  # | promise | how often | found | |\n|---|---|---|---|---|");
    for figure in &FIGURES {
        let is_asked = args.only.is_empty() || args.only.contains(&figure.number);
        if is_asked && (args.peer.is_none() || peers::FIGURES.contains(&figure.number)) {
            is_good &= one(figure, &args);
        }
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What measured, and on what.
fn environment(peer: Option<&str>) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{}: {} build, panic = {}; Linux {}, {processors} processors, load {} at the beginning",
        peer.unwrap_or("offspring"),
        if cfg!(debug_assertions) { "unoptimised" } else { "optimised" },
        if cfg!(panic = "abort") { "abort" } else { "unwind" },
        release.trim(),
        load.split(' ').next().unwrap_or("?"),
    )
}

/// Measures one figure, prints its row, and says whether it is as promised.
fn one(figure: &Figure, args: &Args) -> bool {
    let factor = args.fraction * if args.long { LONG as f64 } else { 1.0 };
    let count = (figure.count as f64 * factor).ceil() as u64;
    let count = peers::bearable(args.peer.as_deref(), figure.number, count.max(figure.least));
    // Several times what it takes on a machine of two processors that does other things as well.
    let limit = Duration::from_secs(120) + Duration::from_secs(300).mul_f64(factor);
    let (tag, figure_number) =
        (format!("{}.{}", std::process::id(), figure.number), figure.number.to_string());
    let count_text = count.to_string();
    let mut role = vec!["figure", &figure_number, &count_text];
    role.extend(args.peer.as_deref());
    let bar = bar(figure);
    let began = Instant::now();
    let report = copies::run(copies::copy(&role, &tag), &tag, limit, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    let is_good = report.failed == 0 && (args.no_times || report.late.is_empty());
    let verdict = match (is_good, report.late.is_empty()) {
        (true, true) => "pass",
        (true, false) => "pass (late)",
        (false, _) => "FAIL",
    };
    println!(
        "| {:>2} | {} | {} | {} | {verdict} |",
        figure.number,
        figure.promise,
        number(count),
        report.figure
    );
    details(&report, began.elapsed());
    is_good
}

/// What goes to standard error: how long it took, and the first of what went wrong.
fn details(report: &Report, took: Duration) {
    eprintln!("     ({:.0} s)", took.as_secs_f64());
    if report.failed > 0 {
        eprintln!("     not as promised: {}, of which the first:", number(report.failed));
    }
    report.failures.iter().for_each(|failure| eprintln!("     - {failure}"));
    report.late.iter().for_each(|late| eprintln!("     late: {late}"));
}

/// How far it is, if somebody looks.
fn bar(figure: &Figure) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(format!("figure {}", figure.number));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}: {human_pos} done in {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// What a copy of this program is to do.
fn play(role: &[&str]) {
    match *role {
        ["figure", wanted, count, ref peer @ ..] => {
            let figure = FIGURES.iter().find(|figure| figure.number.to_string() == wanted);
            report(count, peer.first().copied(), figure.expect("there is such a figure").measure);
        }
        ["parent"] => orphans::parent(),
        ["deaf"] => orphans::deaf_parent(),
        ["hostile", hostility, count] => hostile::role(hostility, count.parse().expect("a count")),
        ["starved", want, count] => report(count, None, starvation::role(want)),
        ["step", count] => report(count, None, steps::case),
        ["step-parent"] => steps::parent(),
        _ => panic!("no such role: {role:?}"),
    }
}

fn report(count: &str, peer: Option<&str>, measure: figure::Measure) {
    let count = count.parse().expect("a count");
    let job = Job { count, peer: peer.map(str::to_owned), tally: Tally::new() };
    let figure = measure(&job);
    Message::Report(job.tally.into_report(figure)).say();
}
