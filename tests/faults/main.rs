//! The catalogue of faults: what may go wrong, by its number in the table of RELIABILITY.md, and what comes of it.
#![allow(unsafe_code)]

#[path = "../harness/mod.rs"]
mod harness;

mod start;
mod start_argument;
mod start_caller;
mod start_risks;
mod start_shortage;
mod start_surroundings;
