//! Prints the SHA-256 of every regular file below the given paths, as `sha256sum` does: one child process a file.
//!
//! Shows a unit that runs once, many of them at a time, that the end of one child costs one file, not the run, and how a unit reports
//! how far it has got: on a terminal, all that has been hashed is told, and each file that takes its time has a bar of its own.
//!
//! `cargo run --release --example digest -- PATH...`
//!
//! Exit code 1: a file could not be read, and was named on standard error. 2: a bad option, or no such path.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use clap::Parser;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use offspring::Subprocess;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The unit of work: one file.
#[derive(Serialize, Deserialize)]
struct DigestFile {
    /// No `PathBuf`: serde carries that as text, and the name of a file need not be text.
    path: OsString,
}

impl Subprocess for DigestFile {
    type Output = Result<String, String>;

    /// In the child.
    fn run(self) -> Self::Output {
        sha256(&self.path).map_err(|error| error.to_string())
    }
}

fn sha256(path: &OsStr) -> io::Result<String> {
    let mut file = File::open(path)?;
    let unit = offspring::current().expect("this is a unit's process");
    let (mut done, total) = (0, file.metadata()?.len());
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => {
                hash.update(&chunk[..count]);
                done += count as u64;
                // Into memory that the parent sees: no system call, nobody is woken.
                unit.progress(done, Some(total), "");
            }
        }
    }
}

/// In the parent: starts the child, and waits for what it has to say. Meanwhile looks how far it has got.
fn digest(path: &OsStr, bars: &Bars) -> Result<String, Box<dyn Error>> {
    let mut unit = DigestFile { path: path.to_owned() }.spawn()?;
    // A bar for this file, if it is not done by the first look.
    let mut bar = None;
    let mut before = 0;
    let result = loop {
        let result = unit.wait_timeout(Duration::from_millis(100));
        // Also of one that has ended, or died.
        if let Some(progress) = unit.progress() {
            bars.add(progress.done - before);
            before = progress.done;
            if let Ok(None) = result {
                let bar = bar.get_or_insert_with(|| bars.of_file(path));
                bar.set_length(progress.total.unwrap_or_default());
                bar.set_position(progress.done);
            }
        }
        if let Some(result) = result.transpose() {
            break result;
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(result??)
}

/// What is drawn on standard error, if that is a terminal.
struct Bars {
    all: MultiProgress,
    files: ProgressBar,
    hashed: AtomicU64,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} files, {msg}");
        let files = ProgressBar::new(0).with_style(style.expect("a template"));
        Self { files: all.add(files), all, hashed: AtomicU64::new(0) }
    }

    /// So many more bytes have been hashed.
    fn add(&self, bytes: u64) {
        let hashed = self.hashed.fetch_add(bytes, Relaxed) + bytes;
        self.files.set_message(HumanBytes(hashed).to_string());
    }

    fn of_file(&self, path: &OsStr) -> ProgressBar {
        let style = ProgressStyle::with_template("{bytes:>12} of {total_bytes:12} {wide_msg}");
        let bar = ProgressBar::new(0).with_style(style.expect("a template"));
        self.all.add(bar.with_message(format!("{path:?}")))
    }
}

/// Prints the SHA-256 of every regular file below the given paths, sorted by path.
#[derive(Parser)]
struct Options {
    /// Files, and directories to search for files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How many files at once (at most 256) [default: one a core]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            // Its first paragraph says what is wrong.
            let text = error.to_string();
            let words = text.split("\n\n").next().unwrap_or(&text).split_whitespace();
            return refuse(words.collect::<Vec<_>>().join(" ").trim_start_matches("error: "));
        }
        Err(help) => help.exit(),
    };

    let bars = Bars::new();
    let failed = AtomicBool::new(false);
    let complain = |path: &OsStr, why: &dyn Display| {
        failed.store(true, Relaxed);
        bars.all.suspend(|| say(&format!("{path:?}: {why}")));
    };
    let files = match find(options.paths, &complain) {
        Ok(files) => files,
        Err(what) => return refuse(&what),
    };
    bars.files.set_length(files.len() as u64);

    // One thread for each child that runs at a time: it takes a file, waits for its digest, takes the next.
    let next = AtomicUsize::new(0);
    let work = || {
        let mut digests = Vec::new();
        while let Some(path) = files.get(next.fetch_add(1, Relaxed)) {
            match digest(path, &bars) {
                Ok(hex) => digests.push((path, hex)),
                Err(why) => complain(path, &why),
            }
            bars.files.inc(1);
        }
        digests
    };
    let jobs = options.jobs.or(thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let mut digests: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.min(files.len()).min(256)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect()
    });
    bars.files.finish_and_clear();

    // `OsString`s compare by their bytes.
    digests.sort();
    if let Err(error) = print(&digests) {
        failed.store(true, Relaxed);
        // Whoever reads no further knows that.
        if error.kind() != io::ErrorKind::BrokenPipe {
            say(&format!("standard output: {error}"));
        }
    }
    ExitCode::from(u8::from(failed.into_inner()))
}

/// The regular files at and below the paths. Links are followed where they were given as a path, and not below.
fn find(paths: Vec<PathBuf>, complain: &dyn Fn(&OsStr, &dyn Display)) -> Result<Vec<OsString>, String> {
    use io::ErrorKind::{NotADirectory, NotFound};

    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for path in paths {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => directories.push(path),
            Ok(metadata) if metadata.is_file() => files.push(path.into_os_string()),
            Ok(_) => return Err(format!("{path:?}: neither a regular file nor a directory")),
            Err(error) if [NotFound, NotADirectory].contains(&error.kind()) => {
                return Err(format!("{path:?}: {error}"));
            }
            Err(error) => complain(path.as_os_str(), &error),
        }
    }
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                complain(directory.as_os_str(), &error);
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
                Ok((path, kind)) if kind.is_dir() => directories.push(path),
                Ok((path, kind)) if kind.is_file() => files.push(path.into_os_string()),
                Ok(_) => {}
                Err(error) => complain(directory.as_os_str(), &error),
            }
        }
    }
    Ok(files)
}

/// A line each, to the byte as `sha256sum` has it.
fn print(digests: &[(&OsString, String)]) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for (path, hex) in digests {
        let mut name = Vec::new();
        for byte in path.as_encoded_bytes() {
            match byte {
                b'\\' => name.extend(br"\\"),
                b'\n' => name.extend(br"\n"),
                b'\r' => name.extend(br"\r"),
                byte => name.push(*byte),
            }
        }
        // A line that begins with a backslash has escapes in its name.
        let mark = if name.len() > path.len() { "\\" } else { "" };
        write!(out, "{mark}{hex}  ")?;
        out.write_all(&name)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn refuse(what: &str) -> ExitCode {
    say(what);
    ExitCode::from(2)
}

/// As `eprintln`, but does not mind if nobody reads it.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "digest: {what}");
}
