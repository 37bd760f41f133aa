//! A loop: begin, tick after tick until it breaks or is told to stop, end.

use std::ops::ControlFlow;

use super::panic;
use crate::subprocess::SubprocessLoop;
use crate::sys::signals;

/// Runs a loop to its end. A panic in `begin` or `tick` does not keep `end` from running, and the first is what goes on.
pub(crate) fn drive<T: SubprocessLoop>(mut unit: T) -> T::Output {
    let first = panic::held(|| {
        unit.begin();
        while !signals::stopped() {
            match unit.tick() {
                ControlFlow::Continue(pause) => signals::sleep_until_stopped(pause),
                ControlFlow::Break(()) => break,
            }
        }
    });
    match (first, panic::held(|| unit.end())) {
        (Ok(()), Ok(output)) => output,
        (Err(panic), _) | (Ok(()), Err(panic)) => panic.go_on(),
    }
}
