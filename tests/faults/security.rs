//! What others on the machine could make of us: names to connect to, the marker, addresses, memory, a child's words.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use offspring::{ErrorKind, spawn};

use crate::behaviour;
use crate::harness::{self, double, eventually, zygote};

const MARKER: &str = "OFFSPRING_CHILD_OF";

/// A program like this one, told to start a unit or to say why it cannot.
fn refusing(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["security::case_85_a_start_or_its_refusal", "--exact", "--nocapture"]);
    command
}

behaviour! { through ["zygote", "spare"];
    fn case_84_nothing_listens_on_a_name() {
        double(1).unwrap();
        eventually("there is no zygote", || zygote().is_some());
        let own = |pid: u32| {
            let list = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            list.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
                .filter_map(|file| Some(file.display().to_string().strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
                .collect::<Vec<_>>()
        };
        let ours = [own(std::process::id()), own(zygote().unwrap())].concat();
        assert!(!ours.is_empty());
        for line in std::fs::read_to_string("/proc/net/unix").unwrap().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(6).is_some_and(|inode| ours.iter().any(|own| own == inode)) {
                assert_eq!(fields.len(), 7, "a socket with a name: {line}");
            }
        }
    }
}

behaviour! {
    fn case_85_what_is_no_marker_changes_nothing() {
        for value in ["", "1", "offspring-1:1:2:3", "offspring-1:0:0:0"] {
            let output = refusing(&std::env::current_exe().unwrap()).env(MARKER, value).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("started"), "{value}: {text}");
        }
    }

    fn case_85_a_marker_that_was_used_starts_nothing_and_never_reaches_main() {
        let unit = spawn((), |()| {
            let block = std::fs::read("/proc/self/environ").unwrap();
            let entries = block.split(|byte| *byte == 0);
            let mut found = entries.filter_map(|entry| entry.strip_prefix(format!("{MARKER}=").as_bytes()));
            found.next().unwrap().to_vec()
        });
        let marker = std::ffi::OsString::from_vec(unit.unwrap().wait().unwrap());
        let output = refusing(&std::env::current_exe().unwrap()).env(MARKER, marker).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{output:?}");
    }

    fn case_85_a_program_with_raised_privileges_starts_nothing() {
        let copy = std::env::temp_dir().join(harness::tag());
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o4755)).unwrap();
        let mut command = refusing(&copy);
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
fn case_85_a_start_or_its_refusal() {
    match spawn(1, |n: u32| n + 1).and_then(offspring::Offspring::wait) {
        Ok(value) => println!("started {value}"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            println!("Unsupported: {error}");
        }
    }
}
