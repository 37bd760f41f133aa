//! Counts the places at which a text stands in a file: several child processes, each of which searches a part of it.
//!
//! Shows memory that units share. The file is read once, by the parent; it crosses to every child as a descriptor, without a copy,
//! however large it is.
//!
//! `cargo run --release --example search -- TEXT FILE`
//!
//! Exit code 1: there is no count, and standard error says why.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use offspring::{Offspring, SharedBytes, Subprocess};
use serde::{Deserialize, Serialize};

/// The unit of work: one part.
#[derive(Serialize, Deserialize)]
struct Search {
    /// All of the file, in memory that nobody can change.
    file: SharedBytes,
    /// Where the part begins and where it ends.
    part: (usize, usize),
    text: String,
}

impl Subprocess for Search {
    type Output = usize;

    /// In the child.
    fn run(self) -> usize {
        let ((begin, end), text) = (self.part, self.text.as_bytes());
        // A place belongs to the part in which it begins, and may end in the next: so none is missed, and none counted twice.
        let end = (end + text.len() - 1).min(self.file.len());
        self.file[begin..end].windows(text.len()).filter(|window| *window == text).count()
    }
}

/// Counts the places at which a text stands in a file. Places may overlap.
#[derive(Parser)]
struct Options {
    /// What to search for
    #[arg(value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    text: String,
    /// Where
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How many units [default: one a core]
    #[arg(long, value_name = "N")]
    units: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    let Options { text, file, units } = Options::parse();
    let units = units.or(thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    match search(&text, &file, units).and_then(|count| Ok(writeln!(io::stdout(), "{count}")?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "search: {why}");
            ExitCode::FAILURE
        }
    }
}

fn search(text: &str, path: &Path, units: usize) -> Result<usize, Box<dyn Error>> {
    let file = File::open(path).and_then(SharedBytes::from_reader);
    let file = file.map_err(|error| format!("{path:?}: {error}"))?;
    let size = file.len().div_ceil(units).max(1);
    let parts = (0..file.len()).step_by(size).map(|begin| (begin, file.len().min(begin + size)));
    // All of them run, before any is waited for.
    let searches: Vec<Offspring<usize>> = parts
        .map(|part| Search { file: file.clone(), part, text: text.to_owned() }.spawn())
        .collect::<Result<_, _>>()?;
    let counts = searches.into_iter().map(Offspring::wait);
    Ok(counts.sum::<Result<usize, _>>()?)
}
