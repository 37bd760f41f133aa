//! Who is measured, and how they take turns.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::server::Server;

/// The ways, as their servers and the report call them, in the order of the report.
const OWN: [(&str, &str); 9] = [
    ("thread", "thread"),
    ("fork", "fork"),
    ("by hand", "fork, by hand"),
    ("Command", "Command"),
    ("spare", "offspring"),
    ("call", "offspring: result"),
    ("zygote", "offspring: zygote"),
    ("exec", "offspring: exec"),
    // The only peer in Rust, but for CROSSMIST.
    ("procspawn", "procspawn"),
];
/// Why one is not here.
const CROSSMIST: &str =
    "crossmist 1.1.2: it panics (`unreachable`) on the current compiler before it starts anything";
/// Peers in Python. Its pools are left out: a pool's worker is not started for each unit; `futures` is the same with less to it.
const PYTHON: [(&str, &str); 6] = [
    ("offspring", "python: offspring"),
    ("fork", "python: fork"),
    ("spawn", "python: spawn"),
    ("forkserver", "python: forkserver"),
    ("futures", "python: futures"),
    ("loky", "python: loky"),
];

/// Who takes more microseconds than this takes fewer turns.
pub const SLOW: f64 = 20_000.0;

/// A way, and the process that has it to itself.
pub struct Contender {
    pub name: &'static str,
    pub server: Server,
    /// How long its very first start took until all was over, and its second one: microseconds.
    pub first: f64,
    pub usual: f64,
}

/// When a start was over: what is not waited for is 0.
pub fn whole(times: [f64; 4]) -> f64 {
    times[2].max(times[3])
}

/// Those that are wanted, in the order of the report. Who cannot start anything is left out: there may be no Python here, or not
/// that module.
pub fn contenders(wanted: impl Fn(&str) -> bool) -> Vec<Contender> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers.py");
    let python = |way: &str| {
        let mut command = Command::new("python3");
        command.arg(&script).arg(way);
        Server::of(command)
    };
    let own = OWN.iter().filter(|(_, name)| wanted(name)).map(|(way, name)| (*name, Server::new(way)));
    let theirs = PYTHON.iter().filter(|(_, name)| wanted(name)).map(|(way, name)| (*name, python(way)));
    let tried = own.chain(theirs).filter_map(|(name, server)| {
        let mut server = server?;
        let first = whole(server.start()?);
        let usual = whole(server.start()?);
        Some(Contender { name, server, first, usual })
    });
    tried.collect()
}

/// Who is not among them, and why.
pub fn left_out(contenders: &[Contender]) -> String {
    let is_here = |name: &str| contenders.iter().any(|contender| contender.name == name);
    let absent = OWN.iter().chain(&PYTHON).filter(|(_, name)| !is_here(name));
    let absent =
        absent.map(|(_, name)| format!("; {name}: it starts nothing on this machine, or is not installed"));
    format!("Left out: {CROSSMIST}{}.", absent.collect::<String>())
}

/// The place of that name in the order of the report.
pub fn place(name: &str) -> usize {
    let mut names = OWN.iter().chain(&PYTHON).map(|(_, name)| *name);
    names.position(|other| other == name).unwrap_or(usize::MAX)
}

/// Long enough for what one leaves behind (a spare that is made, an end that nobody waits for) not to be in the next one's time.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(3));
}

/// In how many rounds one is the turn of who is slow: he has 25 turns in 500 rounds, and not fewer than 10.
pub fn every(rounds: usize) -> usize {
    (rounds / (rounds / 20).clamp(10, 25)).max(1)
}

/// Of each start the four times, in microseconds.
pub type Samples = [Vec<f64>; 4];

/// Starts of all in turns. Each has not been started for a while when it is its turn.
pub fn turns(contenders: &mut [Contender], rounds: usize) -> Vec<Samples> {
    // The first few are warming up, and show who is slow.
    let mut slow = vec![true; contenders.len()];
    for _ in 0..3 {
        for (slow, contender) in slow.iter_mut().zip(contenders.iter_mut()) {
            *slow &= contender.server.start().is_none_or(|times| whole(times) > SLOW);
            pause();
        }
    }
    let mut all = vec![Samples::default(); contenders.len()];
    for round in 0..rounds {
        for (n, contender) in contenders.iter_mut().enumerate() {
            // Not all of them in the same round: the others would be left alone for long.
            if slow[n] && (round + n) % every(rounds) != 0 {
                continue;
            }
            let Some(times) = contender.server.start() else { continue };
            all[n].iter_mut().zip(times).for_each(|(values, time)| values.push(time));
            pause();
        }
    }
    all
}

/// The same where each turn is a burst of starts, a quarter of a millisecond apart, of which the first does not count.
pub fn bursts(contenders: &mut [Contender], rounds: usize) -> Vec<Samples> {
    let mut all = vec![Samples::default(); contenders.len()];
    for _ in 0..(rounds / 20).max(1) {
        for (contender, values) in contenders.iter_mut().zip(&mut all) {
            for n in 0..=if contender.usual > SLOW { 4 } else { 20 } {
                let Some(times) = contender.server.start() else { break };
                if n > 0 {
                    values.iter_mut().zip(times).for_each(|(values, time)| values.push(time));
                }
                std::thread::sleep(Duration::from_micros(250));
            }
            pause();
        }
    }
    all
}

/// The value in the middle; 0 if there is none.
pub fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that such a part of them is below.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get((values.len() as f64 * part) as usize).copied().unwrap_or(0.0)
}

/// How many GiB of memory the machine can give now.
pub fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kib >> 20
}
