//! The catalogue of faults: what may go wrong, by its number in the table of RELIABILITY.md, and what comes of it.
#![allow(unsafe_code)]

#[path = "../harness/mod.rs"]
mod harness;

mod endings;
mod held;
mod interference;
mod interference_context;
mod interference_pids;
mod interference_rights;
mod interference_tools;
mod parent;
mod parent_units;
mod security;
mod security_memory;
mod security_words;
mod start;
mod start_argument;
mod start_caller;
mod start_risks;
mod start_shortage;
mod start_surroundings;
mod stopping;
mod told;
mod transport;
mod zygote;
mod zygote_image;
