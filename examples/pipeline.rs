//! Prints the most frequent words of some files, or of standard input: one child process reads, one cuts into words, one counts.
//!
//! Shows units that are joined by channels. A channel has a bound, so that no stage runs away from the next: it waits. When
//! one dies, those beside it find their channels closed and come to their end, and its error says which it was.
//!
//! `cargo run --release --example pipeline -- [FILE...]`
//!
//! Exit code 1: there is no count, and standard error says why.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use offspring::{Offspring, Receiver, Sender, Subprocess, channel};
use serde::{Deserialize, Serialize};

/// How many messages wait between two stages at most.
const BOUND: usize = 64;

/// The first unit of work: from files to lines.
#[derive(Serialize, Deserialize)]
struct Read {
    files: Vec<PathBuf>,
    lines: Sender<String>,
    crash: bool,
}

impl Subprocess for Read {
    type Output = Result<(), String>;

    fn run(self) -> Self::Output {
        if self.files.is_empty() {
            // A unit has its parent's standard streams.
            return self.read(io::stdin().lock()).map_err(|error| format!("standard input: {error}"));
        }
        for path in &self.files {
            let file = File::open(path).and_then(|file| self.read(BufReader::new(file)));
            file.map_err(|error| format!("{path:?}: {error}"))?;
        }
        Ok(())
    }
}

impl Read {
    fn read(&self, mut input: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        while input.read_until(b'\n', &mut line)? > 0 {
            assert!(!self.crash, "asked to");
            // Waits while the next stage has enough to do. If that is gone, there is nothing left to do, and its own error is
            // what counts.
            if self.lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
            line.clear();
        }
        Ok(())
    }
}

/// The second: from lines to words, in small letters.
#[derive(Serialize, Deserialize)]
struct Parse {
    lines: Receiver<String>,
    words: Sender<Vec<String>>,
    crash: bool,
}

impl Subprocess for Parse {
    type Output = Result<(), String>;

    fn run(self) -> Self::Output {
        for line in self.lines {
            if self.crash {
                std::process::abort();
            }
            let words = line.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
            // One message for the words of a line: each is a visit to the kernel.
            if self.words.send(words.map(str::to_lowercase).collect()).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// The third: from words to counts, the most frequent first.
#[derive(Serialize, Deserialize)]
struct Count {
    words: Receiver<Vec<String>>,
    top: usize,
    crash: bool,
}

impl Subprocess for Count {
    type Output = Result<Vec<(u64, String)>, String>;

    fn run(self) -> Self::Output {
        let mut counts = HashMap::new();
        for word in self.words.into_iter().flatten() {
            if self.crash {
                std::process::exit(3);
            }
            *counts.entry(word).or_insert(0) += 1;
        }
        let mut counts: Vec<(u64, String)> = counts.into_iter().map(|(word, count)| (count, word)).collect();
        counts.sort_by(|(a, left), (b, right)| b.cmp(a).then(left.cmp(right)));
        counts.truncate(self.top);
        Ok(counts)
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Stage {
    Read,
    Parse,
    Count,
}

/// Prints the most frequent words, with how often they stand there.
#[derive(Parser)]
struct Options {
    /// What to read; nothing is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How many words
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// To see what the others make of it: this stage dies at the first that it gets
    #[arg(long, value_name = "STAGE")]
    crash: Option<Stage>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match count(Options::parse()).await.and_then(|counts| print(&counts)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "pipeline: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn count(options: Options) -> Result<Vec<(u64, String)>, String> {
    let Options { files, top, crash } = options;
    let to_say = |error: io::Error| format!("no channel: {error}");
    let (to_parse, lines) = channel(BOUND).map_err(to_say)?;
    let (to_count, words) = channel(BOUND).map_err(to_say)?;
    // The ends of the channels go with the units: the parent keeps none, and so a stage is told of its neighbour's end.
    let read = stage("read", Read { files, lines: to_parse, crash: crash == Some(Stage::Read) });
    let parse = stage("parse", Parse { lines, words: to_count, crash: crash == Some(Stage::Parse) });
    let count = stage("count", Count { words, top, crash: crash == Some(Stage::Count) });
    // All three, or the first that fails. (The others are ended with the parent then, whatever they wait for.)
    let ((), (), counts) = tokio::try_join!(read, parse, count)?;
    Ok(counts)
}

/// Starts a stage, now; what is awaited is its result.
fn stage<T>(
    name: &str,
    unit: impl Subprocess<Output = Result<T, String>>,
) -> impl Future<Output = Result<T, String>> {
    let unit = Offspring::builder(unit).name(name).limit_core_size(0).spawn();
    async { unit.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())? }
}

/// As `uniq -c` has it.
fn print(counts: &[(u64, String)]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let mut each = counts.iter().map(|(count, word)| writeln!(out, "{count:>7} {word}"));
    each.try_for_each(|line| line).map_err(|error| format!("standard output: {error}"))
}
