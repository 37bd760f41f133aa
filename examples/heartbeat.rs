//! A loop in a child process: it beats until Ctrl-C, and its `end` runs however it ended.
//!
//! Shows a `SubprocessLoop`, that a handle can be awaited beside something else, and `shutdown`.
//!
//! `cargo run --release --example heartbeat`, then Ctrl-C; or `-- --beats 3` to let it end by itself.

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Duration;

use clap::Parser;
use offspring::{Offspring, SubprocessLoop};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

/// The unit of work. All its methods run in the child.
#[derive(Serialize, Deserialize)]
struct Heart {
    beats: u64,
    limit: Option<u64>,
}

impl SubprocessLoop for Heart {
    type Output = u64;

    fn begin(&mut self) {
        println!("child {}: begin", std::process::id());
    }

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        if self.limit == Some(self.beats) {
            return ControlFlow::Break(());
        }
        self.beats += 1;
        println!("child {}: beat {}", std::process::id(), self.beats);
        // How long to sleep until the next. A shutdown cuts it short.
        ControlFlow::Continue(Duration::from_millis(500))
    }

    fn end(self) -> u64 {
        println!("child {}: end", std::process::id());
        self.beats
    }
}

/// Beats in a child process until Ctrl-C.
#[derive(Parser)]
struct Options {
    /// Ends by itself after so many beats
    #[arg(long, value_name = "N")]
    beats: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    // Before the start, so that no Ctrl-C is missed. A terminal sends it to the child as well, which ends the loop
    // there and then: `shutdown` gives the result all the same.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut heart = Offspring::new(Heart { beats: 0, limit: options.beats })?;
    let beats = tokio::select! {
        beats = &mut heart => Some(beats?),
        _ = interrupt.recv() => heart.shutdown()?,
    };
    match beats {
        Some(beats) => println!("parent {}: the child is gone; beats: {beats}", std::process::id()),
        None => println!("parent {}: the child is gone, without a result", std::process::id()),
    }
    Ok(())
}
