//! The catalogue of faults: for each way in which processes go wrong, a test of what happens here instead.
#![allow(unsafe_code)]

#[path = "../harness/mod.rs"]
mod harness;

mod endings;
mod held;
mod stopping;
mod transport;
