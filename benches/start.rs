//! What a unit costs from the call until its child is reaped, beside fork, `std::process::Command` and a thread.
//!
//! `cargo bench --bench start`, or `-- ROUNDS`. Each way has a process of its own, this program again, and all take turns in
//! one run, so that the machine's noise meets them alike; read the ratios. The library's test switches are on in a
//! benchmark; what they cost is in the figures.
#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use offspring::spawn;

/// Nanoseconds on a clock that all processes share.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid record.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// When the call returned, when the first line ran, when the child had been reaped (or the thread joined).
type Times = [u64; 3];

fn thread() -> Times {
    let thread = std::thread::spawn(now);
    let called = now();
    [called, thread.join().unwrap(), now()]
}

fn fork() -> Times {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: the copy makes three system calls; the parent waits for it by its pid.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let _ = writer.write_all(&now().to_ne_bytes());
            libc::_exit(0);
        }
        let called = now();
        libc::waitpid(pid, std::ptr::null_mut(), 0);
        [called, read(&mut reader), now()]
    }
}

fn read(from: &mut impl Read) -> u64 {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

/// Executes this program again, which tells the time and ends.
fn command() -> Times {
    let mut child = Command::new("/proc/self/exe").arg("--tell-time").stdout(Stdio::piped()).spawn().unwrap();
    let called = now();
    let first = read(child.stdout.as_mut().unwrap());
    child.wait().unwrap();
    [called, first, now()]
}

fn unit() -> Times {
    let unit = spawn((), |()| now()).unwrap();
    let called = now();
    [called, unit.wait().unwrap(), now()]
}

type Way = (&'static str, fn() -> Times);

const WAYS: [Way; 6] = [
    ("thread", thread),
    ("fork", fork),
    ("Command", command),
    ("exec", unit),
    ("zygote", unit),
    ("spare", unit),
];

/// One way's process: touches so much memory, then starts one when it is told to, and tells how long it took.
fn serve(way: &str, touched: usize) {
    let (_, start) = WAYS.iter().find(|(name, _)| *name == way).unwrap();
    let memory = vec![1_u8; touched];
    for line in std::io::stdin().lines() {
        line.unwrap();
        let began = now();
        let times = start();
        println!("{}", times.map(|time| (time - began).to_string()).join(" "));
    }
    drop(std::hint::black_box(memory));
}

struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    times: [Vec<u64>; 3],
}

impl Server {
    fn new(way: &str, touched: usize) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--serve", way, &touched.to_string()]).env("OFFSPRING_LAUNCHER", way);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output, times: Default::default() }
    }

    fn turn(&mut self) -> [u64; 3] {
        self.input.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let mut times = line.split_whitespace().map(|time| time.parse().unwrap());
        [(); 3].map(|()| times.next().unwrap())
    }
}

fn median(times: &mut [u64]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64 / 1000.0
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", way, touched] => return serve(way, touched.parse().unwrap()),
        ["--tell-time"] => return std::io::stdout().write_all(&now().to_ne_bytes()).unwrap(),
        _ => {}
    }
    let rounds = arguments.iter().filter_map(|argument| argument.parse().ok()).next().unwrap_or(500);
    for touched in [0, 1 << 30] {
        let mut servers = WAYS.map(|(way, _)| Server::new(way, touched));
        // The first of all is told by itself; the next few are warming up.
        let firsts: Vec<f64> = servers.iter_mut().map(|server| server.turn()[2] as f64 / 1000.0).collect();
        for round in 0..rounds + 3 {
            for server in &mut servers {
                let times = server.turn();
                if round >= 3 {
                    server.times.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
                }
                // As a program would: it does not start one after the other for ever.
                std::thread::sleep(Duration::from_micros(250));
            }
        }
        let medians: Vec<[f64; 3]> =
            servers.iter_mut().map(|server| server.times.each_mut().map(|times| median(times))).collect();
        for mut server in servers {
            drop(server.input);
            server.child.wait().unwrap();
        }
        println!(
            "\n{} MiB touched, {rounds} rounds: medians in µs from the call, and the ratio to fork's",
            touched >> 20
        );
        let ways = ["thread", "fork", "Command", "offspring: exec", "offspring: zygote", "offspring: spare"];
        println!(
            "{:<18} {:>18} {:>18} {:>18} {:>10} {:>10}",
            "", "call returns", "first line", "reaped", "/ Command", "the first"
        );
        for ((way, times), first) in ways.iter().zip(&medians).zip(&firsts) {
            let cell = |n: usize| format!("{:.1} ({:.3})", times[n], times[n] / medians[1][n]);
            let command = times[2] / medians[2][2];
            println!(
                "{way:<18} {:>18} {:>18} {:>18} {command:>10.2} {first:>10.0}",
                cell(0),
                cell(1),
                cell(2)
            );
        }
    }
}
