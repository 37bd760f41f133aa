//! The word by which a process knows that it is a child: single-use, hard to say by accident, and not heard by programs
//! with raised privileges.

#[path = "harness/mod.rs"]
mod harness;

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use offspring::{ErrorKind, spawn};

const MARKER: &str = "OFFSPRING_CHILD_OF";

/// This test binary, told to run one test for itself.
fn myself(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture"]);
    command
}

behaviour! {
    fn what_is_no_marker_changes_nothing() {
        for value in ["", "1", "offspring-1:1:2:3", "offspring-1:0:0:0"] {
            let output = myself("a_start_or_its_refusal").env(MARKER, value).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("started"), "{value}: {text}");
        }
    }

    fn a_marker_that_was_used_starts_nothing_and_never_reaches_main() {
        let unit = spawn((), |()| {
            let block = std::fs::read("/proc/self/environ").unwrap();
            let entries = block.split(|byte| *byte == 0);
            let mut found = entries.filter_map(|entry| entry.strip_prefix(format!("{MARKER}=").as_bytes()));
            found.next().unwrap().to_vec()
        });
        let marker = std::ffi::OsString::from_vec(unit.unwrap().wait().unwrap());
        let output = myself("a_start_or_its_refusal").env(MARKER, marker).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{output:?}");
    }

    fn a_program_with_raised_privileges_starts_nothing() {
        let copy = std::env::temp_dir().join(harness::tag());
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o4755)).unwrap();
        let mut command = Command::new(&copy);
        command.args(["a_start_or_its_refusal", "--exact", "--nocapture"]);
        let output = command.env(MARKER, "offspring-1:1:2:3").current_dir("/").uid(65534).output();
        std::fs::remove_file(&copy).unwrap();
        match output {
            Err(error) => println!("skipped: another user cannot be taken here: {error}"),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(text.contains("Unsupported") && text.contains("privileges"), "{output:?}");
            }
        }
    }
}

/// A test like any other; run by those above in surroundings of their making.
#[test]
fn a_start_or_its_refusal() {
    match spawn(1, |n: u32| n + 1).and_then(offspring::Offspring::wait) {
        Ok(value) => println!("started {value}"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            println!("Unsupported: {error}");
        }
    }
}
