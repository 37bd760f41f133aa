//! Tracers, exit handlers, and what measures a program and writes at its exit.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use offspring::{Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{self, can, double, eventually, good, is_again, library, myself, place, remove};

/// Ends when its input does; gives its length.
#[derive(Serialize, Deserialize)]
struct Asked;

impl Subprocess for Asked {
    type Output = usize;

    fn run(self) -> usize {
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap()
    }
}

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

/// A copy of this process that attaches to one whose pid it is told, says whether it could, and lets go of it when told once
/// more, after its death. It ends by itself if nobody is left to tell.
fn tracer() -> (i32, std::os::unix::net::UnixStream) {
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
        (copy, ours)
    }
}

behaviour! {
    fn case_80_a_unit_that_a_debugger_holds_has_ended_when_the_debugger_lets_go() {
        // Made first, so that it holds nothing of the unit's.
        let (tracer, mut line) = tracer();
        let mut unit = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
        let pid = unit.process().unwrap().id();
        line.write_all(&pid.to_ne_bytes()).unwrap();
        let mut attached = [0];
        line.read_exact(&mut attached).unwrap();
        drop(unit.take_stdin());
        if can("a tracer", attached == [1]) {
            eventually("the unit does not end", || harness::state(pid) == Some('Z'));
            assert!(unit.try_wait().unwrap().is_none());
            assert!(unit.wait_timeout(Duration::from_millis(50)).unwrap().is_none());
        }
        line.write_all(&[1]).unwrap();
        assert_eq!(unit.wait().unwrap(), 0);
        // SAFETY: reaps the tracer, which is ours.
        unsafe { libc::waitpid(tracer, std::ptr::null_mut(), 0) };
    }

    fn case_80_a_dead_unit_that_a_debugger_holds_costs_nothing_and_is_reaped() {
        let (tracer, mut line) = tracer();
        let mut unit = Offspring::builder(Asked).stdin(Stdio::piped()).spawn().unwrap();
        let process = unit.process().unwrap().clone();
        line.write_all(&process.id().to_ne_bytes()).unwrap();
        let mut attached = [0];
        line.read_exact(&mut attached).unwrap();
        let stdin = unit.take_stdin();
        // Nobody waits for it.
        drop(unit);
        drop(stdin);
        if can("a tracer", attached == [1]) {
            eventually("the unit does not end", || harness::state(process.id()) == Some('Z'));
            let before = harness::processor_time();
            std::thread::sleep(Duration::from_secs(1));
            let spent = harness::processor_time() - before;
            // A reaper that spins takes all of it.
            assert!(spent < Duration::from_millis(200), "{spent:?}");
        }
        line.write_all(&[1]).unwrap();
        eventually("it is not reaped", || harness::state(process.id()).is_none());
        assert!(process.exit_status().unwrap().success());
        // SAFETY: reaps the tracer, which is ours.
        unsafe { libc::waitpid(tracer, std::ptr::null_mut(), 0) };
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
