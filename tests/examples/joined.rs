//! Those whose units share something: a socket, channels, memory.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Lines, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Directory, code, complaints, example, run};

/// So long at most for what takes a moment.
const LONG: Duration = Duration::from_secs(60);

/// Looks again and again until there is something.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    while begin.elapsed() < LONG {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("{what}: not within {LONG:?}");
}

/// A program of ours, which does not outlive its test.
struct Running(Child);

impl Running {
    /// Its exit code, when it has ended.
    fn ended(&mut self) -> Option<i32> {
        eventually("its end", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `echo`, in a process group of its own; where it listens; what else it says.
fn echo(args: &[&str]) -> (Running, SocketAddr, Lines<BufReader<ChildStdout>>) {
    let mut command = Command::new(example("echo"));
    command.args(["--port", "0"]).args(args).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let address = first.strip_prefix("listening on ").unwrap().parse().unwrap();
    (server, address, lines)
}

struct Client(TcpStream);

impl Client {
    fn new(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    /// How the server calls it.
    fn name(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    fn is_echoed(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        self.0.read_exact(&mut back).unwrap();
        assert_eq!(back, text.as_bytes());
    }

    /// Waits until the server has closed the connection.
    fn is_closed(&mut self) {
        match self.0.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn echo_serves_the_others_on_when_a_connection_crashes() {
    let (mut server, address, mut said) = echo(&["--connections", "3"]);
    let mut first = Client::new(address);
    first.is_echoed("to be\n");
    let mut second = Client::new(address);
    second.is_echoed("or not\n");
    second.0.write_all(b"crash\n").unwrap();
    second.is_closed();
    // It is told while the others go on.
    let line = said.next().unwrap().unwrap();
    let (name, unit) = (second.name(), format!("unit echo::Serve 'echo {}'", second.name()));
    assert!(line.starts_with(&format!("{name}: {unit}")) && line.contains("SIGABRT"), "{line}");
    first.is_echoed("to be, again\n");
    let mut third = Client::new(address);
    // Longer than the longest piece.
    third.is_echoed(&format!("{}\n", "long".repeat(50_000)));

    let names = [first.name(), third.name()];
    drop(first);
    assert_eq!(said.next().unwrap().unwrap(), format!("{}: done, 19 bytes", names[0]));
    drop(third);
    assert_eq!(said.next().unwrap().unwrap(), format!("{}: done, 200001 bytes", names[1]));
    // That were three.
    assert_eq!(said.map(Result::unwrap).collect::<Vec<_>>(), ["closed"]);
    assert_eq!(server.ended(), Some(0));
}

fn interrupted_echo(interrupt: impl FnOnce(Pid)) {
    let (mut server, address, said) = echo(&[]);
    let mut client = Client::new(address);
    client.is_echoed("whole\n");
    interrupt(Pid::from_child(&server.0));
    client.is_closed();
    assert_eq!(server.ended(), Some(0));
    let said: Vec<_> = said.map(Result::unwrap).collect();
    let done = format!("{}: done, 6 bytes", client.name());
    // From a terminal the child may have heard of it first.
    let (open, expected) = match said.iter().position(|line| *line == done) {
        Some(0) => (0, [&*done, "interrupted", "closed"]),
        _ => (1, ["interrupted", &*done, "closed"]),
    };
    let interrupted = format!("interrupted; {open} connections are open");
    assert_eq!(said, expected.map(|line| if line == "interrupted" { &*interrupted } else { line }));
}

#[test]
fn echo_is_ended_in_good_order_by_an_interrupt() {
    interrupted_echo(|server| kill_process(server, Signal::INT).unwrap());
}

#[test]
fn echo_is_ended_in_good_order_by_an_interrupt_to_all_as_from_a_terminal() {
    interrupted_echo(|server| kill_process_group(server, Signal::INT).unwrap());
}

/// The source files of this crate, and their text.
fn sources() -> (Vec<PathBuf>, String) {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let (mut files, mut text) = (Vec::new(), String::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                text += &fs::read_to_string(&path).unwrap();
                files.push(path);
            }
        }
    }
    assert!(files.len() > 10);
    (files, text)
}

/// What `pipeline` is to say of this text.
fn frequencies(text: &str, top: usize) -> Vec<String> {
    let mut counts = HashMap::<String, u32>::new();
    let mut word = String::new();
    for letter in text.chars().chain([' ']) {
        if letter.is_alphanumeric() {
            word.extend(letter.to_lowercase());
        } else if !word.is_empty() {
            *counts.entry(std::mem::take(&mut word)).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().map(|(word, count)| (u32::MAX - count, word)).collect();
    counts.sort();
    counts.iter().take(top).map(|(less, word)| format!("{:>7} {word}", u32::MAX - less)).collect()
}

#[test]
fn pipeline_counts_the_words_of_files() {
    let (files, text) = sources();
    let output = run(Command::new(example("pipeline")).args(["--top", "1000000"]).args(&files));
    assert_eq!(complaints(&output), [""; 0]);
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let expected = frequencies(&text, usize::MAX);
    assert!(expected.len() > 1000);
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    assert_eq!(code(&output), Some(0));
}

#[test]
fn pipeline_counts_the_words_of_its_standard_input() {
    let directory = Directory::new("pipeline");
    let (_, text) = sources();
    let file = directory.file("text", &text);
    let mut command = Command::new(example("pipeline"));
    let output = command.stdin(fs::File::open(file).unwrap()).output().unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(said.lines().collect::<Vec<_>>(), frequencies(&text, 10));
    assert_eq!((complaints(&output), code(&output)), (vec![], Some(0)));
}

#[test]
fn pipeline_names_the_stage_that_died() {
    let (files, _) = sources();
    let stages = [
        ("read", "pipeline: unit pipeline::Read 'read' (pid ", ": panicked at examples/pipeline.rs:"),
        ("parse", "pipeline: unit pipeline::Parse 'parse' (pid ", "SIGABRT"),
        ("count", "pipeline: unit pipeline::Count 'count' (pid ", "exit status: 3"),
    ];
    for (stage, start, what) in stages {
        let output = run(Command::new(example("pipeline")).args(["--crash", stage]).args(&files));
        let complaints = complaints(&output);
        // A panic speaks for itself before that.
        let last = complaints.last().unwrap();
        assert!(last.starts_with(start) && last.contains(what), "{stage}: {complaints:?}");
        assert_eq!(complaints.iter().filter(|line| line.starts_with("pipeline: ")).count(), 1);
        assert_eq!((output.stdout.len(), code(&output)), (0, Some(1)), "{stage}");
    }
    let output = run(Command::new(example("pipeline")).arg("missing"));
    assert_eq!(complaints(&output), [r#"pipeline: "missing": No such file or directory (os error 2)"#]);
    assert_eq!((output.stdout.len(), code(&output)), (0, Some(1)));
}

/// The child of that process that has this name.
fn child(parent: u32, name: &str) -> Option<Pid> {
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let (start, rest) = stat.rsplit_once(") ")?;
        let (pid, comm) = start.split_once(" (")?;
        let is_it = comm == name && rest.split(' ').nth(1) == Some(&parent.to_string());
        if is_it { Pid::from_raw(pid.parse().unwrap()) } else { None }
    })
}

#[test]
fn pipeline_is_over_when_a_stage_is_killed_whatever_the_others_wait_for() {
    for (stage, name) in [("read", "Read"), ("parse", "Parse"), ("count", "Count")] {
        let mut command = Command::new(example("pipeline"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut pipeline = Running(command.spawn().unwrap());
        // There is more to come: a reader waits for it.
        let mut input = pipeline.0.stdin.take().unwrap();
        input.write_all(b"some words\n").unwrap();
        let unit = eventually("the stage", || child(pipeline.0.id(), stage));
        kill_process(unit, Signal::KILL).unwrap();
        assert_eq!(pipeline.ended(), Some(1), "{stage}");
        let mut complaint = String::new();
        pipeline.0.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        let start = format!("pipeline: unit pipeline::{name} '{stage}' (pid ");
        assert!(complaint.starts_with(&start) && complaint.contains("SIGKILL"), "{complaint}");
        drop(input);
    }
}

fn search(directory: &Directory, args: &[&str]) -> std::process::Output {
    run(Command::new(example("search")).args(args).current_dir(&directory.0))
}

/// At how many places the text stands.
fn places(text: &str, file: &str) -> usize {
    (0..file.len()).filter(|place| file[*place..].starts_with(text)).count()
}

#[test]
fn search_finds_each_place_once_wherever_the_borders_are() {
    let directory = Directory::new("search");
    // Places overlap, and there are some on each border; in parts that are smaller than the text, too.
    let file = "abababab abaab".repeat(3);
    directory.file("file", &file);
    for text in ["abab", "a", "ab aba", &file] {
        let expected = format!("{}\n", places(text, &file));
        for units in ["1", "2", "3", "5", "14", "100"] {
            let output = search(&directory, &["--units", units, text, "file"]);
            assert_eq!(str::from_utf8(&output.stdout), Ok(&*expected), "{text:?} by {units}");
            assert_eq!((complaints(&output), code(&output)), (vec![], Some(0)));
        }
    }
}

#[test]
fn search_finds_as_many_as_there_are_in_a_large_file() {
    let directory = Directory::new("large");
    let (_, text) = sources();
    let text: String = (0..10).map(|_| &*text).collect();
    directory.file("file", &text);
    let expected = text.matches("self").count();
    assert!(expected > 10_000);
    let output = search(&directory, &["self", "file"]);
    assert_eq!(String::from_utf8(output.stdout.clone()).unwrap(), format!("{expected}\n"));
    assert_eq!((complaints(&output), code(&output)), (vec![], Some(0)));
}

#[test]
fn search_says_what_it_cannot_do() {
    let directory = Directory::new("nothing");
    directory.file("empty", "");
    assert_eq!(search(&directory, &["text", "empty"]).stdout, b"0\n");
    let output = search(&directory, &["text", "missing"]);
    assert_eq!(complaints(&output), [r#"search: "missing": No such file or directory (os error 2)"#]);
    assert_eq!((output.stdout.len(), code(&output)), (0, Some(1)));
    assert_eq!(code(&search(&directory, &["", "empty"])), Some(2));
}
