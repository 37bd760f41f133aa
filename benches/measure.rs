//! What is measured, and how it is put together.

use crate::charts::{Chart, Kind};
use crate::report::Report;
use crate::server::Server;
use crate::turns::{
    Contender, SLOW, Samples, available, bursts, contenders, every, left_out, median, pause, place, quantile,
    turns, whole,
};
use crate::ways::now;

/// What a machine is to have left, in GiB.
const SPARE: u64 = 2;

/// In three digits, as far as they tell anything; `-` for what was not measured.
fn figure(value: f64) -> String {
    match value {
        _ if value <= 0.0 || !value.is_finite() => "-".into(),
        10.0..100.0 => format!("{value:.1}"),
        1.0..10.0 => format!("{value:.2}"),
        0.01..1.0 => format!("{value:.3}"),
        0.0..0.01 => format!("{value:.5}"),
        _ => format!("{value:.0}"),
    }
}

/// Names, and cells that are made of each one's values.
fn cells(rows: &[(String, Vec<f64>)]) -> Vec<(String, Vec<String>)> {
    rows.iter().map(|(name, values)| (name.clone(), values.iter().copied().map(figure).collect())).collect()
}

/// With fewer rounds it is a trial, which leaves out what takes minutes.
const TRIAL: usize = 50;

/// Who is measured together, with so many GiB touched in each: 20 GiB are to do for all of it.
fn groups(gib: usize, is_trial: bool) -> Vec<fn(&str) -> bool> {
    match gib {
        1 if is_trial => vec![|name| !name.starts_with("python")],
        1 => vec![|_| true],
        // One after the other, and each beside a fork of its own.
        4 => vec![|name| ["fork", "Command", "offspring"].contains(&name), |name| {
            ["fork", "thread", "offspring: result"].contains(&name)
        }],
        _ => vec![|name| ["fork", "offspring"].contains(&name)],
    }
}

/// Gives so much more of that to all of them, at once: a GiB can take a machine seconds.
fn add(contenders: &mut [Contender], what: &str, count: usize) {
    std::thread::scope(|scope| {
        for contender in contenders {
            scope.spawn(|| contender.server.add(what, count));
        }
    });
}

/// One way's row, and what it adds to the charts: when it was over, as far as it is waited for.
struct Row {
    name: &'static str,
    cells: Vec<String>,
    end: f64,
}

/// A group's rows, by their starts; those who have none are left out.
fn rows(group: &[Contender], mut all: Vec<Samples>) -> Vec<Row> {
    let medians: Vec<[f64; 4]> =
        all.iter_mut().map(|times| times.each_mut().map(|values| median(values))).collect();
    let of = |name: &str, column: usize| {
        group.iter().position(|contender| contender.name == name).map_or(0.0, |n| medians[n][column])
    };
    let measured = group.iter().zip(&mut all).zip(&medians).filter(|((_, times), _)| !times[0].is_empty());
    let row = measured.map(|((contender, times), medians)| {
        let four = [0, 1, 2, 3].map(|column| match medians[column] {
            0.0 => "-".to_owned(),
            time => {
                let late = quantile(&mut times[column], 0.99);
                format!("{time:.0} / {late:.0} ({})", figure(time / of("fork", column)))
            }
        });
        let mut cells = four.to_vec();
        cells.push(figure(medians[3] / of("Command", 3)));
        cells.push(figure(medians[2] / of("thread", 2)));
        cells.push(format!("{:.0}", contender.first));
        cells.push(times[0].len().to_string());
        Row { name: contender.name, cells, end: medians[3].max(medians[2]) }
    });
    row.collect()
}

/// Tells them under that title; gives when each was over.
fn tell(report: &mut Report, title: &str, mut rows: Vec<Row>) -> Vec<(&'static str, f64)> {
    rows.sort_by_key(|row| place(row.name));
    let ends = rows.iter().map(|row| (row.name, row.end)).collect();
    let columns = [
        "call returns",
        "first line",
        "result",
        "reaped",
        "reaped / Command's",
        "result / a thread's",
        "the very first, nothing touched",
        "turns",
    ];
    let rows: Vec<(String, Vec<String>)> =
        rows.into_iter().map(|row| (row.name.to_owned(), row.cells)).collect();
    report.table(
        &format!("{title}: microseconds from the call, median / p99 (ratio to fork's)"),
        &columns,
        &rows,
    );
    ends
}

/// The rows with so many GiB touched in each parent; or why there are none.
fn touched(gib: usize, rounds: usize) -> Result<Vec<Row>, String> {
    let mut table: Vec<Row> = Vec::new();
    for wanted in groups(gib, rounds < TRIAL) {
        let mut group = contenders(wanted);
        let (needed, there) = ((group.len() * gib) as u64 + SPARE, available());
        if there < needed {
            return Err(format!(
                "A start with {gib} GiB touched is left out: it takes {needed} GiB of memory, and {there} were free."
            ));
        }
        add(&mut group, "memory", gib << 30);
        let samples = turns(&mut group, (rounds / 5).max(10));
        for row in rows(&group, samples) {
            if table.iter().all(|other| other.name != row.name) {
                table.push(row);
            }
        }
    }
    Ok(table)
}

/// What a start takes; gives when each was over.
pub fn starts(report: &mut Report, rounds: usize) -> Vec<(&'static str, f64)> {
    report.say(
        "`offspring` is waited for until it is reaped, `offspring: result` until its result is home; what is not waited for \
         is `-`. The p99 of fewer than 100 turns is the longest.",
    );
    let mut contenders = contenders(|_| true);
    report.say(&left_out(&contenders));
    let samples = turns(&mut contenders, rounds);
    let ends = tell(report, "A start now and then", rows(&contenders, samples));
    report.say("All took turns, so each had been left alone for some hundredths of a second, and processors had come to rest.");
    report.chart(Chart {
        file: "start",
        title: "A start, until the child is reaped (offspring: result: until it is home)".into(),
        unit: "microseconds",
        kind: Kind::Bars(ends.iter().map(|(name, end)| ((*name).to_owned(), *end)).collect()),
    });
    let samples = bursts(&mut contenders, rounds);
    tell(report, "A start soon after another", rows(&contenders, samples));
    report.say("A quarter of a millisecond after the last one, in bursts that took turns.");
    ends
}

/// A start by the memory that the parent has touched, with what it takes where that is little.
pub fn memory(report: &mut Report, rounds: usize, without: &[(&'static str, f64)]) {
    let mut places = vec!["0".to_owned()];
    let mut lines: Vec<(String, Vec<f64>)> =
        without.iter().map(|(name, end)| ((*name).to_owned(), vec![*end])).collect();
    let gibs: &[usize] = if rounds < TRIAL { &[1] } else { &[1, 4, 8] };
    if rounds < TRIAL {
        report.say(&format!(
            "Fewer than {TRIAL} rounds: Python with 1 GiB touched, and all with more, are left out."
        ));
    }
    for gib in gibs {
        let rows = match touched(*gib, rounds) {
            Ok(rows) => rows,
            Err(why) => {
                report.say(&why);
                continue;
            }
        };
        let ends = tell(report, &format!("A start, {gib} GiB touched"), rows);
        if *gib == 4 {
            report.say("Two groups, measured one after the other, each beside a fork of its own.");
        }
        places.push(format!("{gib} GiB"));
        for (name, values) in &mut lines {
            values.extend(ends.iter().find(|(other, _)| other == name).map(|(_, end)| *end));
        }
    }
    // Who was there as far as all of ours were.
    let enough = places.len().min(3);
    lines.retain(|(_, values)| values.len() >= enough);
    report.chart(Chart {
        file: "memory",
        title: "A start, by the memory that the parent has touched".into(),
        unit: "microseconds",
        kind: Kind::Lines { places, lines },
    });
}

/// Units per second, with so many GiB touched in the parent; with any, of few.
pub fn rates(report: &mut Report, rounds: usize, gib: usize) {
    let few = ["fork", "Command", "offspring", "offspring: result"];
    let mut contenders = contenders(|name| gib == 0 || few.contains(&name));
    if gib > 0 {
        add(&mut contenders, "memory", gib << 30);
        for contender in &mut contenders {
            // The first one finds it new.
            let starts: Vec<_> = (0..2).filter_map(|_| contender.server.start()).collect();
            contender.usual = starts.last().map_or(contender.usual, |times| whole(*times));
        }
    }
    let mut all: Vec<[Vec<f64>; 2]> = vec![Default::default(); contenders.len()];
    // As many as take about half a second, or less where fewer rounds are wanted; enough to be under way for most of it.
    let time = rounds.clamp(100, 500) as f64 * 1000.0;
    for _ in 0..(rounds / 20).clamp(3, 5) {
        for (contender, rates) in contenders.iter_mut().zip(&mut all) {
            let count = (time / contender.usual).clamp(16.0, 1000.0) as usize;
            for (values, under_way) in rates.iter_mut().zip([1, 8]) {
                values.extend(contender.server.ask(&format!("rate {count} {under_way}")));
                pause();
            }
        }
    }
    let rates: Vec<[f64; 2]> =
        all.iter_mut().map(|rates| rates.each_mut().map(|values| median(values))).collect();
    let fork = contenders.iter().position(|contender| contender.name == "fork");
    let fork = fork.map_or([0.0; 2], |n| rates[n]);
    let measured = contenders.iter().zip(&rates).filter(|(_, rates)| rates[0] > 0.0);
    let rows: Vec<(String, Vec<String>)> = measured
        .clone()
        .map(|(contender, rates)| {
            let cell = |n: usize| format!("{} ({})", figure(rates[n]), figure(rates[n] / fork[n]));
            (contender.name.to_owned(), vec![cell(0), cell(1)])
        })
        .collect();
    let touched = if gib > 0 { format!(", {gib} GiB touched") } else { String::new() };
    report.table(
        &format!("Units per second, until the last is reaped{touched} (ratio to fork's)"),
        &["one after the other", "eight under way"],
        &rows,
    );
    if gib > 0 {
        return;
    }
    report.chart(Chart {
        file: "rate",
        title: "Units per second, eight under way".into(),
        unit: "units per second",
        kind: Kind::Bars(measured.map(|(contender, rates)| (contender.name.to_owned(), rates[1])).collect()),
    });
}

/// From so many bytes on each carries twice when it is his turn, and the first does not count. A machine that is virtual gives back memory
/// that is free for a few seconds, and who comes first after such a rest waits for it: 64 MiB took 307 to 369 ms in the place of 180,
/// whoever it was.
const LARGE: usize = 64 << 20;

/// What it costs to carry a value there and back.
pub fn payloads(report: &mut Report, rounds: usize) {
    let sizes = [
        ("1 KiB", 1 << 10, (rounds / 2).clamp(5, 100)),
        ("1 MiB", 1 << 20, (rounds / 10).clamp(5, 50)),
        ("64 MiB", LARGE, (rounds / 20).clamp(3, 9)),
    ];
    let mut contenders = contenders(|_| true);
    for (kind, title) in [("text", "String"), ("bytes", "serde_bytes::ByteBuf"), ("numbers", "Vec<u8>")] {
        let mut rows: Vec<(String, Vec<f64>)> =
            contenders.iter().map(|contender| (contender.name.to_owned(), Vec::new())).collect();
        let mut copies = Vec::new();
        for (_, size, rounds) in sizes {
            let mut all = vec![Vec::new(); contenders.len()];
            for round in 0..rounds {
                for (n, contender) in contenders.iter_mut().enumerate() {
                    // Python has no such thing.
                    let is_absent = kind == "numbers" && contender.name.starts_with("python");
                    let is_slow = contender.usual > SLOW && (round + n) % every(rounds) != 0;
                    if !is_absent && !is_slow {
                        let carry = format!("carry {kind} {size}");
                        if size >= LARGE {
                            contender.server.ask(&carry);
                        }
                        let time = contender.server.ask(&carry);
                        all[n].extend(time.map(|time| time / 1000.0));
                        pause();
                    }
                }
            }
            rows.iter_mut().zip(&mut all).for_each(|((_, values), times)| values.push(median(times)));
            copies.push(four_copies(size));
        }
        rows.retain(|(_, values)| values.iter().any(|time| *time > 0.0));
        rows.push(("four copies".into(), copies));
        report.table(
            &format!("There and back, as `{title}`: microseconds"),
            &sizes.map(|(name, ..)| name),
            &cells(&rows),
        );
        if kind == "text" {
            // How it was started makes little difference here; and copies of a KiB take next to nothing.
            rows.retain(|(name, _)| !["offspring: zygote", "offspring: exec"].contains(&name.as_str()));
            rows.iter_mut()
                .flat_map(|(_, values)| values)
                .for_each(|time| *time = if *time < 10.0 { 0.0 } else { *time });
            report.chart(Chart {
                file: "payload",
                title: "A String there and back".into(),
                unit: "microseconds",
                kind: Kind::Lines { places: sizes.map(|(name, ..)| name.to_owned()).to_vec(), lines: rows },
            });
        }
    }
}

/// How long four copies of so many bytes take, into memory that is there: microseconds.
fn four_copies(size: usize) -> f64 {
    let (from, mut to) = (vec![1_u8; size], vec![2_u8; size]);
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let began = now();
            for _ in 0..4 {
                to.copy_from_slice(std::hint::black_box(&from));
                std::hint::black_box(&mut to);
            }
            (now() - began) as f64 / 1000.0
        })
        .collect();
    median(&mut times)
}

/// What grows: its chart's file, its title, and by how much in each step.
const GROWTH: [(&str, &str, [usize; 3]); 4] = [
    ("files", "open files", [100, 900, 9000]),
    ("threads", "threads", [10, 90, 400]),
    ("environment", "variables", [10, 90, 900]),
    ("alive", "units alive", [10, 190, 1800]),
];

/// Whether a start gets slower by what its parent has; memory has a measurement of its own.
pub fn growth(report: &mut Report, rounds: usize) {
    for (what, title, steps) in GROWTH {
        let mut contenders =
            contenders(|name| ["fork", "Command", "offspring", "offspring: zygote"].contains(&name));
        let mut rows: Vec<(String, Vec<f64>)> =
            contenders.iter().map(|contender| (contender.name.to_owned(), Vec::new())).collect();
        let (mut places, mut sum) = (Vec::new(), 0);
        for step in [0].into_iter().chain(steps) {
            sum += step;
            places.push(sum.to_string());
            if step > 0 {
                add(&mut contenders, what, step);
            }
            let mut all = turns(&mut contenders, (rounds / 5).max(10));
            rows.iter_mut().zip(&mut all).for_each(|((_, values), times)| values.push(median(&mut times[3])));
        }
        let columns: Vec<&str> = places.iter().map(String::as_str).collect();
        report.table(
            &format!("Until it is reaped, by the number of {title}: microseconds"),
            &columns,
            &cells(&rows),
        );
        report.chart(Chart {
            file: what,
            title: format!("A start, until the child is reaped, by {title}"),
            unit: "microseconds",
            kind: Kind::Lines { places, lines: rows },
        });
    }
    report.say(&resting());
}

/// The private memory of the zygote and the idle spares together, in this program.
fn resting() -> String {
    let Some(mut server) = Server::new("spare") else { return String::new() };
    for _ in 0..20 {
        server.start();
    }
    // The spares that are being made.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    });
    let private = |pid: String| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let fields = text.lines().filter(|line| line.starts_with("Private_"));
        fields.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
    };
    let each: Vec<u64> = children.map(private).collect();
    format!(
        "Private memory of the zygote and {} idle spares: {} KiB.",
        each.len().saturating_sub(1),
        each.iter().sum::<u64>()
    )
}
