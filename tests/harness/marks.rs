//! A unit that leaves a mark when it is run: how often was it?

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offspring::Subprocess;
use serde::{Deserialize, Serialize};

/// Leaves a line in a file when it is run.
#[derive(Serialize, Deserialize)]
pub struct Mark {
    pub file: PathBuf,
    pub number: u32,
}

impl Subprocess for Mark {
    type Output = u32;
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(100));

    fn run(self) -> u32 {
        let mut file = std::fs::File::options().append(true).create(true).open(&self.file).unwrap();
        // One call: lines of many do not mix.
        file.write_all(format!("{}\n", self.number).as_bytes()).unwrap();
        self.number
    }
}

/// Where this test's units leave their marks.
pub fn file() -> PathBuf {
    super::place("marks")
}

/// How often each was run. The marks are gone then.
pub fn runs(file: &Path) -> BTreeMap<u32, usize> {
    let mut runs = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        *runs.entry(line.parse().unwrap()).or_default() += 1;
    }
    let _ = std::fs::remove_file(file);
    runs
}

/// Ends when its input does; gives its length.
#[derive(Serialize, Deserialize)]
pub struct Asked;

impl Subprocess for Asked {
    type Output = usize;

    fn run(self) -> usize {
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()).unwrap()
    }
}
