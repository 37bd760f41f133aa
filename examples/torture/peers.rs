//! Who else runs work in processes, in the roles of those figures in which they can be compared.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::copies::{self, tag_it};
use crate::figure::Tally;
use crate::processes::tag_below;

pub(crate) const NAMES: [&str; 4] = ["Command", "procspawn", "concurrent.futures", "loky"];

/// What the killing of parents, a hostile parent and an end right after the result can be tried in.
pub(crate) const FIGURES: [u32; 4] = [2, 3, 6, 9];

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Where the program is that plays those in Rust; told to the copies.
const PROGRAM: &str = "OFFSPRING_TORTURE_PEER";

fn is_python(name: &str) -> bool {
    !["Command", "procspawn"].contains(&name)
}

/// Builds what plays it; or why it cannot be had.
pub(crate) fn prepare(name: &str) -> Result<(), String> {
    if is_python(name) {
        let mut command = Command::new("python3");
        command.args(["-c", &format!("import {name}")]).stderr(Stdio::null());
        return match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err("python3 has no such module".into()),
            Err(error) => Err(format!("python3: {error}")),
        };
    }
    let manifest = Path::new(ROOT).join("benches/Cargo.toml");
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--bin", "torture_peer", "--message-format=json", "--manifest-path"]);
    let output =
        command.arg(manifest).stderr(Stdio::inherit()).output().map_err(|error| format!("cargo: {error}"))?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut program = messages.filter_map(|message| Some(message["executable"].as_str()?.to_owned()));
    let program = program.next_back().ok_or("its program could not be built")?;
    // SAFETY: there is one thread.
    unsafe { std::env::set_var(PROGRAM, program) };
    Ok(())
}

/// So often, at most: it is to be over in minutes.
pub(crate) fn bearable(name: Option<&str>, figure: u32, count: u64) -> u64 {
    let most = match (name, figure) {
        // An orphan is waited for.
        (Some(_), 2 | 3) => 50,
        (Some(name), 6) if is_python(name) => 500,
        (Some(name), 9) if is_python(name) => 200,
        (Some(_), 6) => 20_000,
        (Some(_), 9) => 2000,
        _ => count,
    };
    count.min(most)
}

/// The peer's program in a role.
pub(crate) fn command(name: &str, role: &[&str], tag: &str) -> Command {
    static PROGRAM_PATH: OnceLock<String> = OnceLock::new();
    let mut command = if is_python(name) {
        let mut command = Command::new("python3");
        command.arg(Path::new(ROOT).join("examples/torture/peers.py"));
        command
    } else {
        Command::new(PROGRAM_PATH.get_or_init(|| std::env::var(PROGRAM).unwrap_or_default()))
    };
    command.arg(name).args(role);
    tag_it(&mut command, tag);
    // Their children complain of what the figure does to them.
    command.stderr(Stdio::null());
    command
}

/// What the peer's program finds of itself.
pub(crate) fn measure(name: &str, role: &[&str], tally: &Tally) -> String {
    let tag = tag_below(role.join("-"));
    let report =
        copies::run(command(name, role, &tag), &tag, Duration::from_secs(300), &mut |_| tally.done());
    tally.adopt(role[role.len() - 2], report)
}
