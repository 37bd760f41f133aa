//! The report: tables as Markdown, and where it was measured.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::charts::{self, Chart};

/// What becomes of the measurements.
pub struct Report {
    pub text: String,
    charts: Vec<Chart>,
}

/// What follows that start of a line in a file.
fn line(path: &str, start: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    line.trim_start_matches(start).trim_matches([':', ' ', '\t']).to_owned()
}

impl Report {
    /// Of the bench of that name, with where it was measured.
    pub fn new(bench: &str, rounds: usize) -> Self {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = line("/proc/sys/kernel/osrelease", "");
        let python = Command::new("python3").arg("--version").output();
        let python =
            python.map_or("no Python".into(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
        let text = format!(
            "# Results\n\nWritten by `cargo bench --bench {bench}` ({rounds} rounds). {cpus} processors ({}), Linux {kernel}, {} of memory, \
             huge pages: {}; {}; a load of {} before it began. Absolute times differ from machine to machine; read the ratios.\n",
            line("/proc/cpuinfo", "model name"),
            line("/proc/meminfo", "MemTotal"),
            line("/sys/kernel/mm/transparent_hugepage/enabled", ""),
            python.trim(),
            line("/proc/loadavg", "").split(' ').next().unwrap_or_default(),
        );
        Self { text, charts: Vec::new() }
    }

    /// A paragraph.
    pub fn say(&mut self, text: &str) {
        self.text += &format!("\n{text}\n");
    }

    /// A table: its title, its columns, and rows of a name and cells.
    pub fn table(&mut self, title: &str, columns: &[&str], rows: &[(String, Vec<String>)]) {
        self.text += &format!(
            "\n## {title}\n\n| | {} |\n|---|{}\n",
            columns.join(" | "),
            "--:|".repeat(columns.len())
        );
        for (name, cells) in rows {
            self.text += &format!("| {name} | {} |\n", cells.join(" | "));
        }
    }

    /// A chart, here.
    pub fn chart(&mut self, chart: Chart) {
        self.text += &format!("\n![{}]({}.svg)\n", chart.title, chart.file);
        self.charts.push(chart);
    }

    /// Writes all of it into `results/`, the text under that name.
    pub fn write(&self, name: &str) {
        let results = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("results");
        fs::create_dir_all(&results).unwrap();
        fs::write(results.join(name), &self.text).unwrap();
        for chart in &self.charts {
            charts::draw(chart, &results.join(format!("{}.svg", chart.file))).unwrap();
        }
    }
}
