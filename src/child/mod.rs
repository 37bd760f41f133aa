//! The child process: from its line to its end. Every line in this folder runs there, and never in the parent.

pub(crate) mod panic;
pub(crate) mod run;
pub(crate) mod tick;

use crate::hook::step;
use crate::sys;
use crate::sys::image::Entry;
use crate::wire::codec;
use crate::wire::frame::{Decoder, Frame, Kind};
use crate::wire::message::{Start, Step};
use crate::zygote::boot::Claim;
use run::{Host, Line};

/// Sets the process up as `main` would find it, receives the unit, runs it, ends.
pub(crate) fn main(claim: Claim) -> ! {
    step("child", "boot");
    // 1. What Rust's runtime would have done before `main`: open streams, SIGPIPE, the overflow handler.
    sys::io::open_missing_streams();
    sys::signals::ignore_pipe();
    sys::signals::install_overflow();
    // 2. The line, and on it the terms.
    let mut line = Line::new(sys::io::take_line());
    let (start, unit) = match receive(&line, &claim) {
        Some(both) => both,
        // The parent has gone, or this is not its line: there is nobody to tell.
        None => sys::lifecycle::exit_now(0),
    };
    step("child", "received");
    // 3. Our names: in `ps`, and in the words of a panic.
    sys::lifecycle::set_name(start.name.rsplit("::").next().unwrap_or(&start.name));
    panic::install(&line, &start.name);
    // 4. What happens when the parent dies. The signal itself was asked for before the exec.
    if let Some(guard) = &start.guard {
        sys::signals::install_guard(start.parent, guard.grace);
        if sys::signals::orphaned(start.parent as i32) {
            sys::lifecycle::exit_now(0);
        }
    }
    // 5. The unit. What it does with signals is its own affair from here on; a loop sets its handlers first.
    step("child", "setup");
    match Entry::at(start.entry).filter(|entry| (entry.name)() == start.type_name) {
        Some(entry) => (entry.run)(&unit, &mut line),
        None => {
            line.failed(Step::Setup, "the unit's code was not found in the program that was executed".into())
        }
    }
    drop(unit);
    line.end()
}

/// The two frames that a parent sends; `None` if the line ends first or speaks another language.
fn receive(line: &Line, claim: &Claim) -> Option<(Start, Vec<u8>)> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 256 << 10];
    let mut start: Option<Start> = None;
    loop {
        // A copy that the parent forked may hold the line's other end beyond the parent's death: then no end comes.
        while !sys::io::is_readable(&*line.fd, 1) {
            if sys::signals::orphaned(claim.parent as i32) {
                return None;
            }
        }
        let count = sys::io::receive(&line.fd, &mut buffer).ok().filter(|count| *count > 0)?;
        let mut input = &buffer[..count];
        while !input.is_empty() {
            match decoder.next(&mut input).ok()? {
                Some(Frame { kind: Kind::Start, body }) => {
                    start = codec::decode(&body).ok().filter(|start: &Start| start.nonce == claim.nonce);
                    start.as_ref()?;
                }
                Some(Frame { kind: Kind::Unit, body }) => return Some((start?, body)),
                Some(_) => return None,
                None => {}
            }
        }
    }
}
