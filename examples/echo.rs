//! A server that says back what it is told, line by line: one child process a connection.
//!
//! Shows a socket that is handed to a unit as one of its fields, a child whose death hurts nobody else, and a unit that ends in good
//! order when it is asked to. Tell it `crash`, and see what becomes of the other connections.
//!
//! `cargo run --release --example echo`, then `nc 127.0.0.1 7007` as often as you like; Ctrl-C ends it.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use clap::Parser;
use offspring::{Offspring, Subprocess};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// The unit of work: one connection.
#[derive(Serialize, Deserialize)]
struct Serve {
    /// What crosses is a descriptor. The child has a duplicate of it; the parent's goes with the value.
    #[serde(with = "offspring::fd")]
    client: TcpStream,
}

impl Subprocess for Serve {
    /// How many bytes were said back.
    type Output = Result<u64, String>;

    /// In the child.
    fn run(self) -> Self::Output {
        self.serve().map_err(|error| error.to_string())
    }
}

impl Serve {
    fn serve(self) -> io::Result<u64> {
        // What has arrived is answered, also if TERM or INT comes now. (A terminal sends INT to the children as well.)
        let unit = offspring::current().expect("a unit is its process's");
        let (stop, client) = (unit.catch_stop()?, self.client.try_clone()?);
        thread::spawn(move || {
            stop.wait_timeout(Duration::MAX);
            // The reading below comes to an end.
            client.shutdown(Shutdown::Read)
        });

        /// A longer line is answered in pieces: no client can fill the memory.
        const MOST: u64 = 64 << 10;
        let mut client = BufReader::new(self.client);
        let (mut line, mut total) = (Vec::new(), 0);
        loop {
            line.clear();
            match client.by_ref().take(MOST).read_until(b'\n', &mut line)? {
                0 => return Ok(total),
                count => total += count as u64,
            }
            if line.trim_ascii() == b"crash" {
                std::process::abort();
            }
            client.get_mut().write_all(&line)?;
        }
    }
}

/// Says back what it is told, line by line. Whoever says `crash` makes his child abort.
#[derive(Parser)]
struct Options {
    /// Where to listen, on 127.0.0.1; 0 is any port that is free
    #[arg(long, value_name = "PORT", default_value_t = 7007)]
    port: u16,
    /// Ends by itself after so many connections
    #[arg(long, value_name = "N")]
    connections: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    // Before anything can be missed.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    println!("listening on {}", listener.local_addr()?);

    let mut left = options.connections.unwrap_or(u64::MAX);
    // Those that run. A handle is here for as long as its child is, and no longer.
    let mut units = JoinSet::new();
    while left > 0 || !units.is_empty() {
        tokio::select! {
            accepted = listener.accept(), if left > 0 => match accepted {
                Ok((client, peer)) => {
                    left -= 1;
                    // Blocks for the moment that a start takes.
                    match start(client, peer) {
                        Ok(unit) => drop(units.spawn(async move { (peer, unit.await) })),
                        Err(error) => println!("{peer}: {error}"),
                    }
                }
                Err(error) => {
                    println!("no connection: {error}");
                    // There may be too many files open, which passes.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = units.join_next() => report(ended?),
            _ = interrupt.recv() => {
                println!("interrupted; {} connections are open", units.len());
                break;
            }
        }
    }
    // No new ones. TERM to all children that are left, KILL to those that do not end of it; then each has its end.
    drop(listener);
    offspring::shutdown();
    while let Some(ended) = units.join_next().await {
        report(ended?);
    }
    println!("closed");
    Ok(())
}

fn start(
    client: tokio::net::TcpStream,
    peer: SocketAddr,
) -> Result<Offspring<Result<u64, String>>, Box<dyn Error>> {
    let client = client.into_std()?;
    // Whether it blocks is the socket's, not the descriptor's: so it is in the child.
    client.set_nonblocking(false)?;
    Ok(Offspring::builder(Serve { client }).name(format!("echo {peer}")).limit_core_size(0).spawn()?)
}

/// How a connection has ended, in a line.
fn report((peer, ended): (SocketAddr, Result<Result<u64, String>, offspring::Error>)) {
    match ended {
        Ok(Ok(bytes)) => println!("{peer}: done, {bytes} bytes"),
        Ok(Err(error)) => println!("{peer}: {error}"),
        Err(error) => println!("{peer}: {error}"),
    }
}
