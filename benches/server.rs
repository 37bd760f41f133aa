//! One way's process: does what it is told on its standard input, and says how long it took. All ways have one each and take
//! turns, so that the machine's noise meets them alike.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_bytes::ByteBuf;

use crate::ways::{Payload, Rest, Way, now, way};

/// The switch that forces a launcher of ours.
const LAUNCHER: &str = "OFFSPRING_LAUNCHER";

/// What a server has been told to keep, to see whether a start gets slower by it.
#[derive(Default)]
struct Ballast {
    memory: Vec<Vec<u8>>,
    files: Vec<File>,
    threads: Vec<std::sync::mpsc::Sender<()>>,
    alive: Vec<offspring::Offspring<()>>,
}

impl Ballast {
    fn add(&mut self, what: &str, count: usize) {
        match what {
            "memory" => self.memory.push(vec![1; count]),
            "files" => self.files.extend((0..count).map(|_| File::open("/dev/null").unwrap())),
            "threads" => self.threads.extend((0..count).map(|_| {
                let (keep, kept) = std::sync::mpsc::channel();
                std::thread::spawn(move || kept.recv());
                keep
            })),
            "alive" => {
                let sleep: fn(()) = |()| std::thread::sleep(Duration::from_secs(3600));
                self.alive.extend((0..count).map(|_| offspring::spawn((), sleep).unwrap()));
            }
            "environment" => (0..count).for_each(|n| {
                // SAFETY: other threads of this process, if there are any, do not touch the environment now.
                unsafe { std::env::set_var(format!("BALLAST_{n}"), "of some length, as variables are") }
            }),
            _ => panic!("no such ballast: {what}"),
        }
    }
}

/// So many, with so many under way at any time; units per second, until the last has ended.
fn rate(way: &dyn Way, count: usize, under_way: usize) -> f64 {
    let mut open: VecDeque<Rest> = VecDeque::new();
    // Whose results are home, and who have not been reaped yet: to be waited for as well, but with no other start held up.
    let mut ending: VecDeque<offspring::Process> = VecDeque::new();
    let began = now();
    for _ in 0..count {
        if open.len() == under_way {
            ending.extend(open.pop_front().and_then(|rest| rest()));
        }
        open.push_back(way.begin());
        while ending.pop_front_if(|process| !process.is_alive()).is_some() {}
    }
    ending.extend(open.into_iter().filter_map(|rest| rest()));
    while ending.iter().any(offspring::Process::is_alive) {
        std::thread::sleep(Duration::from_micros(20));
    }
    count as f64 * 1e9 / (now() - began) as f64
}

fn payload(kind: &str, size: usize) -> Payload {
    match kind {
        "text" => Payload::Text("x".repeat(size)),
        "bytes" => Payload::Bytes(ByteBuf::from(vec![200; size])),
        _ => Payload::Numbers(vec![200; size]),
    }
}

/// The server's life.
pub fn serve(name: &str) {
    // SAFETY: this process has one thread. It starts as many files as it is told to open.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    let (way, mut ballast) = (way(name), Ballast::default());
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        match words[0] {
            "start" => {
                let began = now();
                let times = way.start();
                println!("{}", times.map(|time| time.saturating_sub(began).to_string()).join(" "));
            }
            "rate" => println!("{}", rate(&*way, number(1), number(2))),
            "carry" => {
                let payload = payload(words[1], number(2));
                let given = payload.clone();
                let began = now();
                let back = way.carry(given);
                let took = now() - began;
                assert!(back == payload);
                println!("{took}");
            }
            "add" => {
                ballast.add(words[1], number(2));
                println!("done");
            }
            _ => panic!("no such command: {line}"),
        }
    }
    drop(std::hint::black_box(ballast.memory));
    std::process::exit(0);
}

/// A server, from the side of whoever tells it what to do. One that has ended answers nothing any more.
pub struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// A way of this program's.
    pub fn new(name: &str) -> Option<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--serve", name]).env_remove(LAUNCHER);
        if ["exec", "zygote"].contains(&name) {
            command.env(LAUNCHER, name);
        }
        Self::of(command)
    }

    /// Whatever speaks as [`serve`] does; `None` if it cannot be started.
    pub fn of(mut command: Command) -> Option<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take()?));
        Some(Self { child, input, output })
    }

    /// Tells it something; its answer. `None` if it has ended: it cannot do that.
    fn told(&mut self, what: &str) -> Option<String> {
        self.input.as_mut()?.write_all(format!("{what}\n").as_bytes()).ok()?;
        let mut line = String::new();
        self.output.read_line(&mut line).ok().filter(|count| *count > 0)?;
        Some(line)
    }

    /// Asks it for a number.
    pub fn ask(&mut self, what: &str) -> Option<f64> {
        self.told(what)?.trim().parse().ok()
    }

    /// Gives it so much of that to keep.
    pub fn add(&mut self, what: &str, count: usize) -> Option<()> {
        self.told(&format!("add {what} {count}")).map(drop)
    }

    /// One start: microseconds.
    pub fn start(&mut self) -> Option<[f64; 4]> {
        let line = self.told("start")?;
        let times: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        Some(<[f64; 4]>::try_from(times).ok()?.map(|time| time / 1000.0))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        self.input = None;
        let _ = self.child.wait();
    }
}
