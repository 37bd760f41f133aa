//! The examples, run as a user runs them.
//!
//! `cargo test` and `cargo nextest run` build them beside this test. With `--test` or `--tests` they do not, and what is
//! run is what was built before: `cargo build --examples` first, in the same profile.
#![cfg(all(target_os = "linux", not(offspring_unsupported)))]

mod joined;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group};

fn example(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let path = this.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{path:?} is missing: `cargo build --examples`, in this profile");
    path
}

/// A directory of the test's own, gone after it.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let name = format!("{test}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: impl AsRef<OsStr>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name.as_ref());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Runs `digest` here.
    fn digest<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        run(Command::new(example("digest")).args(args).current_dir(&self.0))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// The lines on standard error.
fn complaints(output: &Output) -> Vec<&str> {
    str::from_utf8(&output.stderr).unwrap().lines().collect()
}

/// What `sha256sum` says to these paths, in this order.
fn sha256sum<S: AsRef<OsStr>>(directory: &Directory, paths: impl IntoIterator<Item = S>) -> Vec<u8> {
    let output = run(Command::new("sha256sum").arg("--").args(paths).current_dir(&directory.0));
    assert_eq!(complaints(&output), [""; 0]);
    output.stdout
}

/// A tree with every kind of name and file; and the paths of its regular files as seen from above `tree`, sorted.
fn tree(test: &str) -> (Directory, Vec<OsString>) {
    let directory = Directory::new(test);
    let long = vec![b'x'; 1_000_003];
    let files: [(&[u8], &[u8]); 16] = [
        (b"plain", b"plain"),
        (b"empty", b""),
        (b"long", &long),
        (b"with a space ", b"space"),
        (b"new\nline", b"newline"),
        (b"back\\slash", b"backslash"),
        (b"carriage\rreturn", b"return"),
        (b"all\\\r\n", b"all"),
        (b"\\n", b"looks escaped"),
        (b"tab\t\x01\x7f'\"", b"not escaped"),
        (b"not \xff\xfe text", b"no text"),
        (b"-", b"dash"),
        (b"--jobs", b"looks like an option"),
        (b"dir/below", b"below"),
        // After `dir/below` by components, before it by bytes.
        (b"dir-", b"beside"),
        (b"dir\\\n\xff/.hidden", b"hidden"),
    ];
    let mut paths: Vec<OsString> = Vec::new();
    for (name, content) in files {
        let path = OsString::from_vec([b"tree/", name].concat());
        directory.file(&path, content);
        paths.push(path);
    }
    paths.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    fs::create_dir(directory.0.join("tree/nothing in it")).unwrap();
    symlink("plain", directory.0.join("tree/link")).unwrap();
    symlink("dir", directory.0.join("tree/link to a directory")).unwrap();
    symlink("nowhere", directory.0.join("tree/dangling")).unwrap();
    // Opened, it would block.
    let made = Command::new("mkfifo").arg(directory.0.join("tree/fifo")).status().unwrap();
    assert!(made.success());
    (directory, paths)
}

#[test]
fn digest_says_to_the_byte_what_sha256sum_says() {
    let (directory, paths) = tree("sha256sum");
    let output = directory.digest(["tree"]);
    assert_eq!(complaints(&output), [""; 0], "no bar either: this is no terminal");
    assert_eq!(output.stdout, sha256sum(&directory, &paths));
    assert_eq!(code(&output), Some(0));
}

#[test]
fn digest_takes_files_and_directories_and_follows_links_given_as_a_path() {
    let (directory, _) = tree("links");
    // Unsorted, and one twice.
    let output = directory.digest(["tree/link", "tree/plain", "tree/link to a directory/", "tree/plain"]);
    let expected = ["tree/link", "tree/link to a directory/below", "tree/plain", "tree/plain"];
    assert_eq!(complaints(&output), [""; 0]);
    assert_eq!(output.stdout, sha256sum(&directory, expected));
    assert_eq!(code(&output), Some(0));

    let dot = run(Command::new(example("digest")).arg(".").current_dir(directory.0.join("tree/dir")));
    assert!(dot.stdout.ends_with(b"  ./below\n"), "as `find .` has it: {dot:?}");
}

#[test]
fn digest_says_the_same_with_any_number_of_jobs() {
    let (directory, paths) = tree("jobs");
    let expected = sha256sum(&directory, &paths);
    for jobs in ["1", "3", "100000"] {
        let output = directory.digest(["--jobs", jobs, "tree"]);
        assert_eq!(complaints(&output), [""; 0]);
        assert_eq!(output.stdout, expected, "--jobs {jobs}");
        assert_eq!(code(&output), Some(0));
    }
}

#[test]
fn digest_of_an_empty_directory_is_nothing() {
    let directory = Directory::new("empty");
    let output = directory.digest(["."]);
    assert_eq!((output.stdout.len(), output.stderr.len(), code(&output)), (0, 0, Some(0)));
}

#[test]
fn digest_names_a_file_that_cannot_be_read_and_goes_on() {
    let (directory, _) = tree("unreadable");
    // A regular file by its mode, which nobody can read at its beginning: not even root.
    let output = directory.digest(["tree/plain", "/proc/self/mem", "tree/empty"]);
    assert_eq!(complaints(&output), [r#"digest: "/proc/self/mem": Input/output error (os error 5)"#]);
    assert_eq!(output.stdout, sha256sum(&directory, ["tree/empty", "tree/plain"]));
    assert_eq!(code(&output), Some(1));
}

#[test]
fn digest_names_what_it_has_no_right_to_and_goes_on() {
    let directory = Directory::new("forbidden");
    directory.file("open", "open");
    let locked = [directory.file("locked\n", "locked"), directory.file("room/below", "below")];
    let room = directory.0.join("room");
    for path in [&locked[0], &room] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    // To root everything is open, unless it gives up that right.
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set=-dac_override,-dac_read_search").current_dir(&directory.0);
    if !geteuid().is_root() {
        command = Command::new("env");
    } else if !Command::new("setpriv")
        .args(command.get_args())
        .arg("true")
        .status()
        .is_ok_and(|s| s.success())
    {
        return println!("skipped: this is root, and there is no `setpriv` to make it less");
    }
    let output = run(command.arg(example("digest")).arg(".").current_dir(&directory.0));
    let mut complaints = complaints(&output);
    complaints.sort_unstable();
    assert_eq!(
        complaints,
        [
            r#"digest: "./locked\n": Permission denied (os error 13)"#,
            r#"digest: "./room": Permission denied (os error 13)"#,
        ]
    );
    assert_eq!(output.stdout, sha256sum(&directory, ["./open"]));
    assert_eq!(code(&output), Some(1));
    fs::set_permissions(&room, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn digest_names_the_file_whose_child_died_and_goes_on() {
    let directory = Directory::new("died");
    directory.file("small", "small");
    // More than can be read in a second of CPU time, after which the kernel ends the child; the parent needs none.
    let endless = fs::File::create(directory.0.join("endless")).unwrap();
    endless.set_len(1 << 40).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"ulimit -S -c 0; ulimit -S -t 1; exec "$0" endless small"#]).arg(example("digest"));
    let output = run(shell.current_dir(&directory.0));
    let complaints = complaints(&output);
    assert!(
        matches!(complaints[..], [one] if one.starts_with(r#"digest: "endless": unit "#) && one.contains("SIGXCPU")),
        "{complaints:?}"
    );
    assert_eq!(output.stdout, sha256sum(&directory, ["small"]));
    assert_eq!(code(&output), Some(1));
}

#[test]
fn digest_refuses_in_one_line_what_it_cannot_do() {
    let (directory, _) = tree("refused");
    let refused: [(&[&str], &str); 9] = [
        (&["missing"], r#"digest: "missing": No such file or directory (os error 2)"#),
        (&["tree/plain", "missing"], r#"digest: "missing": No such file or directory (os error 2)"#),
        (&["tree/plain/below"], r#"digest: "tree/plain/below": Not a directory (os error 20)"#),
        (&["tree/dangling"], r#"digest: "tree/dangling": No such file or directory (os error 2)"#),
        (&["tree/fifo"], r#"digest: "tree/fifo": neither a regular file nor a directory"#),
        (&[], "digest: the following required arguments were not provided: <PATH>..."),
        (&["--speed", "tree"], "digest: unexpected argument '--speed' found"),
        (&["--jobs", "0", "tree"], "digest: invalid value '0' for '--jobs <N>': number would be zero"),
        (&["--jobs", "many", "tree"], "digest: invalid value 'many' for '--jobs <N>': invalid digit"),
    ];
    for (args, complaint) in refused {
        let output = directory.digest(args);
        let complaints = complaints(&output);
        assert!(matches!(complaints[..], [one] if one.starts_with(complaint)), "{args:?}: {complaints:?}");
        assert_eq!((output.stdout.len(), code(&output)), (0, Some(2)), "{args:?}");
    }
}

#[test]
fn digest_does_not_mind_if_nobody_reads_on() {
    let (directory, _) = tree("pipe");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(example("digest"));
    let child = command.arg("tree").current_dir(&directory.0).stdout(writer).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    assert_eq!((complaints(&output), code(&output)), (vec![], Some(1)));
}

/// What is on the screen while this shell command runs, in which `$DIGEST` is ours; `None` if no terminal can be made.
fn on_a_terminal(directory: &Directory, command: &str) -> Option<String> {
    let mut script = Command::new("script");
    script.args(["-qec", command, "/dev/null"]).current_dir(&directory.0);
    script.env("DIGEST", example("digest")).env("TERM", "xterm").env("SHELL", "/bin/sh");
    match script.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: there is no `script` to make a terminal");
            None
        }
        output => Some(String::from_utf8(output.unwrap().stdout).unwrap()),
    }
}

#[test]
fn digest_draws_a_bar_on_a_terminal() {
    let (directory, paths) = tree("bar");
    let Some(screen) = on_a_terminal(&directory, r#""$DIGEST" tree >sums"#) else { return };
    assert!(screen.contains(&format!("/{}", paths.len())), "{screen:?}");
    assert_eq!(fs::read(directory.0.join("sums")).unwrap(), sha256sum(&directory, &paths));
}

#[test]
fn digest_shows_on_a_terminal_how_far_it_has_got() {
    let directory = Directory::new("progress");
    // It takes the child a second at least, in which it is looked at again and again; then the kernel ends it.
    let endless = fs::File::create(directory.0.join("endless")).unwrap();
    endless.set_len(1 << 40).unwrap();
    let command = r#"ulimit -S -c 0; ulimit -S -t 1; "$DIGEST" endless"#;
    let Some(screen) = on_a_terminal(&directory, command) else { return };
    // Each is drawn again and again: a number and its unit.
    let of_file = screen.match_indices(r#" of 1.00 TiB     "endless""#);
    let of_file: BTreeSet<_> =
        of_file.map(|(at, _)| screen[..at].rsplitn(3, ' ').take(2).collect::<Vec<_>>()).collect();
    let of_all = screen.match_indices("/1 files, ");
    let of_all: BTreeSet<_> = of_all
        .map(|(at, before)| screen[at + before.len()..].split_whitespace().take(2).collect::<Vec<_>>())
        .filter(|drawn| drawn[1].ends_with("iB"))
        .collect();
    assert!(of_file.len() > 2 && of_all.len() > 2, "{of_file:?}, {of_all:?}: {screen:?}");
}

/// Starts `heartbeat` in a process group of its own, waits for its first beat, interrupts it; gives what it said after.
fn interrupted_heartbeat(interrupt: impl FnOnce(Pid)) -> String {
    let mut command = Command::new(example("heartbeat"));
    let mut parent = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(parent.stdout.take().unwrap());
    let mut line = String::new();
    while !line.ends_with(": beat 1\n") {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "ended without a beat");
    }
    interrupt(Pid::from_child(&parent));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(parent.wait().unwrap().code(), Some(0), "{rest}");
    rest
}

#[test]
fn heartbeat_is_shut_down_by_an_interrupt_to_its_parent_and_its_end_runs() {
    let rest = interrupted_heartbeat(|parent| kill_process(parent, Signal::INT).unwrap());
    assert!(rest.contains(": end\n"), "{rest}");
    assert!(rest.lines().last().unwrap().contains("the child is gone; beats: "), "{rest}");
}

#[test]
fn heartbeat_is_shut_down_by_an_interrupt_to_both_as_from_a_terminal() {
    let rest = interrupted_heartbeat(|parent| kill_process_group(parent, Signal::INT).unwrap());
    assert_eq!(rest.matches(": end\n").count(), 1, "{rest}");
    assert!(rest.lines().last().unwrap().contains("the child is gone; beats: "), "{rest}");
}

#[test]
fn heartbeat_ends_by_itself_after_its_beats() {
    let output = run(Command::new(example("heartbeat")).args(["--beats", "2"]));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let said: Vec<_> = text.lines().map(|line| line.split_once(": ").unwrap().1).collect();
    assert_eq!(said, ["begin", "beat 1", "beat 2", "end", "the child is gone; beats: 2"]);
    assert_eq!((complaints(&output), code(&output)), (vec![], Some(0)));
}

#[test]
fn crashproof_reports_each_and_goes_on() {
    // For the core dumps, where these are on.
    let directory = Directory::new("crashproof");
    let output = run(Command::new(example("crashproof")).current_dir(&directory.0));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let expected = [
        (
            "Segfault  unit crashproof::Stunt 'Segfault' (pid ",
            ": died while it ran, without a result: signal: 11 (SIGSEGV)",
        ),
        (
            "Overflow  unit crashproof::Stunt 'Overflow' (pid ",
            ": died while it ran, without a result: signal: 6 (SIGABRT)",
        ),
        (
            "Hang      unit crashproof::Stunt 'Hang' (pid ",
            ": its time (3s) was over; terminated by us (signal: 15 (SIGTERM))",
        ),
        ("Spin      unit crashproof::Stunt 'Spin' (pid ", "; it ran into its limit of CPU time (1 s)"),
        (
            "Hoard     unit crashproof::Stunt 'Hoard' (pid ",
            "; it may have run into its limit of memory (1073741824 bytes)",
        ),
        ("Panic     unit crashproof::Stunt 'Panic' (pid ", ": panicked at examples/crashproof.rs:"),
        (
            "Exit      unit crashproof::Stunt 'Exit' (pid ",
            ": died while it ran, without a result: exit status: 3",
        ),
        ("Succeed   gave 42", ""),
        ("The parent lives.", ""),
    ];
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, (start, what)) in lines.iter().zip(expected) {
        assert!(line.starts_with(start) && line.contains(what), "{line:?} is not {start:?} ... {what:?}");
    }
    assert_eq!((complaints(&output), code(&output)), (vec![], Some(0)));
}
