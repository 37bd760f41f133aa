//! The parts that `examples/torture` gives to its peers in Rust: `torture_peer NAME ROLE...`. Does what a user of them would do.
#![allow(unsafe_code)]

#[allow(dead_code)]
#[path = "../examples/torture/figure.rs"]
mod figure;
#[allow(dead_code)]
#[path = "../examples/torture/hostility.rs"]
mod hostility;

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use figure::{Message, Tally};

const FOR_LONG: Duration = Duration::from_secs(600);
const THREADS: u64 = 4;

fn main() {
    // Its children end in here.
    procspawn::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, role) = (arguments[0], &arguments[1..]);
    if name == "unit" {
        return unit(role);
    }
    match *role {
        ["parent"] => {
            println!("first");
            let _units: Vec<_> = (0..200).map(|_| begin(name, "sleep")).collect();
            std::thread::sleep(FOR_LONG);
        }
        ["deaf"] => {
            let _units: Vec<_> = (0..4).map(|_| begin(name, "deaf")).collect();
            std::thread::sleep(FOR_LONG);
        }
        ["exits", count] => {
            let tally = Tally::new();
            let figure = exits(name, count.parse().unwrap(), &tally);
            Message::Report(tally.into_report(figure)).say();
        }
        ["hostile", hostility, count] => {
            let tally = Tally::new();
            let count = count.parse().unwrap();
            let text = hostility::under(hostility, &tally, || {
                all(count, |n| {
                    if let Err(what) = one(name, n) {
                        tally.fail(format!("start {n}: {what}"))
                    }
                });
                String::new()
            });
            let figure = format!("{} wrong{text}", tally.failed());
            Message::Report(tally.into_report(figure)).say();
        }
        _ => panic!("no such role: {arguments:?}"),
    }
}

/// Each number once, by some threads.
fn all(count: u64, what: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                std::iter::from_fn(|| Some(next.fetch_add(1, Relaxed)).filter(|n| *n < count)).for_each(&what)
            });
        }
    });
}

/// This program again, to do one thing.
fn command(work: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("unit").args(work);
    command
}

/// What the children of `Command` do; they have their arguments, and print their result.
fn unit(work: &[&str]) {
    match *work {
        ["sleep"] => sleep(()),
        ["deaf"] => deaf(()),
        ["echo", n] => {
            print!("{}", last_word(n.parse().unwrap()));
            std::io::stdout().flush().unwrap();
        }
        ["add", n] => print!("{}", n.parse::<u64>().unwrap() + 1),
        ["exit", code] => std::process::exit(code.parse().unwrap()),
        _ => std::process::abort(),
    }
}

fn sleep(_: ()) {
    std::thread::sleep(FOR_LONG);
}

fn deaf(_: ()) {
    // SAFETY: sets a disposition.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    println!("deaf");
    std::thread::sleep(FOR_LONG);
}

/// What keeps one that was begun.
type Held = (Option<std::process::Child>, Option<procspawn::JoinHandle<()>>);

fn begin(name: &str, work: &str) -> Held {
    if name == "Command" {
        return (Some(command(&[work]).spawn().unwrap()), None);
    }
    let unit = if work == "deaf" { procspawn::spawn((), deaf) } else { procspawn::spawn((), sleep) };
    (None, Some(unit))
}

extern "C" fn leave() {
    // SAFETY: ends the process, with another status than success.
    unsafe { libc::_exit(3) }
}

extern "C" fn die() {
    // SAFETY: raise(3) has no conditions.
    unsafe { libc::raise(libc::SIGKILL) };
}

/// As in the figure: the number, and the end at once by returning, by `_exit`, or by KILL.
fn last_word(n: u64) -> u64 {
    let at_exit = [None, Some(leave as extern "C" fn()), Some(die)][n as usize % 3];
    if let Some(at_exit) = at_exit {
        // SAFETY: a function that lives as long as the program.
        unsafe { libc::atexit(at_exit) };
    }
    n
}

fn exits(name: &str, count: u64, tally: &Tally) -> String {
    let heard = Mutex::new(vec![0_u8; count as usize]);
    all(count, |n| {
        let told = if name == "Command" {
            let output = command(&["echo", &n.to_string()]).output().map_err(|error| error.to_string());
            output.and_then(|output| {
                String::from_utf8_lossy(&output.stdout).parse::<u64>().map_err(|_| format!("{output:?}"))
            })
        } else {
            procspawn::spawn(n, last_word).join().map_err(|error| error.to_string())
        };
        match told {
            Ok(told) => heard.lock().unwrap()[told as usize] += 1,
            Err(error) => tally.fail(format!("unit {n}: {error}")),
        }
    });
    let heard = heard.into_inner().unwrap();
    let (lost, doubled) =
        (heard.iter().filter(|n| **n == 0).count(), heard.iter().filter(|n| **n > 1).count());
    format!("{lost} lost, {doubled} doubled")
}

/// As in the figure: a value, a code or an abort, in turns. procspawn tells no statuses: that there is an error is all it says.
fn one(name: &str, n: u64) -> Result<(), String> {
    let code = (n % 255 + 1) as i32;
    if name == "Command" {
        let work: [&str; 2] = match n % 3 {
            0 => ["add", &n.to_string()],
            1 => ["exit", &code.to_string()],
            _ => ["abort", ""],
        };
        let output = command(&work).output().map_err(|error| error.to_string())?;
        let is_right = match n % 3 {
            0 => output.status.success() && output.stdout == (n + 1).to_string().as_bytes(),
            1 => output.status.code() == Some(code),
            _ => output.status.signal() == Some(libc::SIGABRT),
        };
        return if is_right { Ok(()) } else { Err(format!("{output:?}")) };
    }
    match n % 3 {
        0 => match procspawn::spawn(n, |n: u64| n + 1).join() {
            Ok(value) if value == n + 1 => Ok(()),
            other => Err(format!("{other:?}")),
        },
        1 => procspawn::spawn(code, |code: i32| -> () { std::process::exit(code) })
            .join()
            .map_or(Ok(()), |()| Err("a value".into())),
        _ => procspawn::spawn((), |()| -> () { std::process::abort() })
            .join()
            .map_or(Ok(()), |()| Err("a value".into())),
    }
}
