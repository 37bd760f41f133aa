//! Tracers, exit handlers, and what measures a program and writes at its exit.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use offspring::{ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::marks::Asked;
use crate::harness::{self, can, double, eventually, good, is_again, library, myself, place, remove};

fn park(_: ()) {
    loop {
        std::thread::park();
    }
}

extern "C" fn of_the_parent() {
    println!("the parent's handler");
}

extern "C" fn of_the_unit() {
    println!("the unit's handler");
}

struct Local;

impl Drop for Local {
    fn drop(&mut self) {
        println!("the unit's thread-local value");
    }
}

thread_local! {
    static LOCAL: Local = const { Local };
}

/// Has something to be done at its exit, in each way.
#[derive(Serialize, Deserialize)]
struct Leaves;

impl Subprocess for Leaves {
    type Output = ();

    fn run(self) {
        LOCAL.with(|_| ());
        // SAFETY: a function that lives as long as the program.
        unsafe { libc::atexit(of_the_unit) };
    }
}

/// What a unit writes to its standard output.
fn output(unit: impl Subprocess<Output = ()>) -> String {
    let mut unit = Offspring::builder(unit).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    unit.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    unit.wait().unwrap();
    text
}

#[derive(Serialize, Deserialize)]
struct Silent;

impl Subprocess for Silent {
    type Output = ();

    fn run(self) {}
}

/// A copy of this process that attaches to another and has its death before its parent has. It ends by itself if nobody is
/// left to tell it anything.
struct Tracer(i32, std::os::unix::net::UnixStream);

impl Tracer {
    /// To be made first, so that it holds no descriptors of units.
    fn new() -> Self {
        let (ours, mut its) = std::os::unix::net::UnixStream::pair().unwrap();
        // SAFETY: the copy makes only the system calls below.
        unsafe {
            let copy = libc::fork();
            if copy == 0 {
                libc::close(ours.as_raw_fd());
                let mut pid = [0; 4];
                let _ = its.read_exact(&mut pid);
                let pid = i32::from_ne_bytes(pid);
                let attached = libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) == 0;
                let _ = its.write_all(&[u8::from(attached)]);
                if its.read(&mut [0]).is_ok_and(|count| count == 1) {
                    libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
                }
                libc::_exit(0);
            }
            let _ = ours.set_read_timeout(Some(Duration::from_secs(10)));
            Self(copy, ours)
        }
    }

    /// Whether it could.
    fn attach(&mut self, pid: u32) -> bool {
        self.1.write_all(&pid.to_ne_bytes()).unwrap();
        let mut attached = [0];
        self.1.read_exact(&mut attached).unwrap();
        can("a tracer", attached == [1])
    }

    /// After the death of what it is attached to.
    fn let_go(mut self) {
        self.1.write_all(&[1]).unwrap();
        // SAFETY: reaps the copy, which is ours.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// Says its pid and does not get beyond being decoded; its start waits for that.
#[derive(Serialize)]
struct Undecoded;

impl<'de> Deserialize<'de> for Undecoded {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        println!("{}", std::process::id());
        loop {
            std::thread::park();
        }
    }
}

impl Subprocess for Undecoded {
    type Output = ();
    const WAIT_FOR_CHILD: bool = true;

    fn run(self) {}
}

/// What this process uses of the processors in a second in which it has nothing to do.
fn spent_idle() -> Duration {
    let before = harness::processor_time();
    std::thread::sleep(Duration::from_secs(1));
    harness::processor_time() - before
}

/// A reaper that spins takes all of it.
const LITTLE: Duration = Duration::from_millis(120);

behaviour! {
    fn case_80_a_unit_that_a_debugger_holds_has_ended_when_the_debugger_lets_go() {
        let mut tracer = Tracer::new();
        let mut unit = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
        let pid = unit.process().unwrap().id();
        let attached = tracer.attach(pid);
        drop(unit.take_stdin());
        if attached {
            eventually("the unit does not end", || harness::state(pid) == Some('Z'));
            assert!(unit.try_wait().unwrap().is_none());
            assert!(unit.wait_timeout(Duration::from_millis(50)).unwrap().is_none());
        }
        tracer.let_go();
        assert_eq!(unit.wait().unwrap(), 0);
    }

    fn case_80_a_dead_unit_that_a_debugger_holds_costs_nothing_and_is_reaped() {
        let mut tracer = Tracer::new();
        let mut unit = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
        let process = unit.process().unwrap().clone();
        let attached = tracer.attach(process.id());
        let stdin = unit.take_stdin();
        // Nobody waits for it.
        drop(unit);
        drop(stdin);
        if attached {
            eventually("the unit does not end", || harness::state(process.id()) == Some('Z'));
            let spent = spent_idle();
            assert!(spent < LITTLE, "{spent:?}");
        }
        tracer.let_go();
        eventually("it is not reaped", || harness::state(process.id()).is_none());
        assert!(process.exit_status().unwrap().success());
    }

    fn case_80_a_start_that_waits_for_a_unit_which_a_debugger_holds_ends_when_its_time_is_over() {
        let mut tracer = Tracer::new();
        let (reader, writer) = std::io::pipe().unwrap();
        let (done, over) = std::sync::mpsc::channel();
        let builder = Offspring::builder(Undecoded).stdout(Stdio::from(OwnedFd::from(writer)));
        let builder = builder.start_timeout(Duration::from_secs(1));
        std::thread::spawn(move || done.send(builder.spawn().map(drop)));
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        let attached = tracer.attach(pid);
        // Long, should it wait for the end.
        let error = over.recv_timeout(Duration::from_secs(60)).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start, "{error}");
        assert!(error.to_string().contains("did not become ready in time; killed by us"), "{error}");
        assert!(!attached || harness::state(pid) == Some('Z'));
        tracer.let_go();
        eventually("it is not reaped", || harness::state(pid).is_none());
    }

    fn case_80_all_of_it_under_a_tracer() {
        if is_again() {
            (0..10).for_each(|n| assert_eq!(double(n).unwrap(), 2 * n));
            let error = spawn((), |()| -> () { std::process::exit(3) }).unwrap().wait().unwrap_err();
            assert_eq!(error.death().unwrap().status().code(), Some(3));
            assert_eq!(spawn((), park).unwrap().shutdown().unwrap(), None);
            return;
        }
        let trace = place("trace");
        let inner = myself();
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=execve", "-o"]).arg(&trace).arg(inner.get_program());
        command.args(inner.get_args()).env("AGAIN", "1");
        if can("strace", Command::new("strace").arg("-V").output().is_ok()) {
            good(command);
            assert!(std::fs::read_to_string(&trace).unwrap().contains("/proc/self/exe"));
            std::fs::remove_file(trace).unwrap();
        }
    }

    fn case_82_exit_handlers_of_the_unit_run_and_none_of_the_parents() {
        // SAFETY: a function that lives as long as the program.
        unsafe { libc::atexit(of_the_parent) };
        LOCAL.with(|_| ());
        let text = output(Leaves);
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["the unit's handler", "the unit's thread-local value"]);
        assert_eq!(output(Silent), "");
    }

    fn case_82_a_librarys_destructor_runs_once_in_each_unit() {
        if is_again() {
            for _ in 0..3 {
                assert_eq!(output(Silent), "<gone>");
            }
            return;
        }
        let library = library("destructs", r#"
            #include <unistd.h>
            __attribute__((destructor)) static void it(void) { (void) !write(1, "<gone>", 6); }
        "#);
        let mut command = myself();
        command.env("LD_PRELOAD", &library);
        let text = good(command);
        remove(&library);
        // The program's own. The zygote and the spares have none.
        assert_eq!(text.matches("<gone>").count(), 1, "{text}");
    }

    fn case_83_what_measures_coverage_counts_what_units_do() {
        if is_again() {
            let covered = |n: i32| {
                // SAFETY: the library that was loaded ahead has such a function.
                unsafe {
                    let function = libc::dlsym(libc::RTLD_DEFAULT, c"covered".as_ptr());
                    std::mem::transmute::<*mut libc::c_void, extern "C" fn(i32) -> i32>(function)(n)
                }
            };
            for n in 0..7 {
                assert_eq!(spawn(n, covered).unwrap().wait().unwrap(), n + 1);
            }
            return;
        }
        let directory = place("coverage");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("it.c"), "int covered(int n) { return n + 1; }\n").unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).current_dir(&directory).output();
            output.ok().filter(|output| output.status.success()).map(|output| String::from_utf8(output.stdout).unwrap())
        };
        let compiled = run("cc", &["--coverage", "-shared", "-fPIC", "-o", "it.so", "it.c"]);
        if can("coverage of C", compiled.is_some() && run("gcov", &["--version"]).is_some()) {
            let mut command = myself();
            command.env("LD_PRELOAD", directory.join("it.so"));
            good(command);
            let counted = run("gcov", &["-t", "it.so-it.gcda"]).unwrap();
            let line = counted.lines().find(|line| line.contains("int covered")).unwrap();
            assert_eq!(line.split(':').next().unwrap().trim(), "7", "{counted}");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}

behaviour! { through ["spare"];
    fn case_80_a_dead_zygote_or_spare_that_a_debugger_holds_costs_nothing() {
        for is_spare in [false, true] {
            let mut tracer = Tracer::new();
            double(1).unwrap();
            let mut pid = None;
            eventually("there is none", || {
                pid = if is_spare { harness::spares().first().copied() } else { harness::zygote() };
                pid.is_some()
            });
            let pid = pid.unwrap();
            if tracer.attach(pid) {
                harness::kill(pid, libc::SIGKILL);
                eventually("it does not end", || harness::state(pid) == Some('Z'));
                let spent = spent_idle();
                assert!(spent < LITTLE, "{spent:?}");
                let start = Offspring::builder(Silent).start_timeout(Duration::from_millis(200)).spawn();
                let ended = start.and_then(Offspring::wait).map_err(|error| error.kind());
                assert!(matches!(ended, Ok(()) | Err(ErrorKind::Start)), "{ended:?}");
            }
            tracer.let_go();
            eventually("it is not reaped", || harness::state(pid).is_none());
            (0..5).for_each(|n| assert_eq!(double(n).unwrap(), 2 * n));
        }
    }
}
