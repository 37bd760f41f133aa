//! The catalogue of faults: for each way in which processes go wrong, a test of what happens here instead.
#![allow(unsafe_code)]

#[path = "../harness/mod.rs"]
mod harness;

mod interference;
mod interference_context;
mod interference_pids;
mod interference_rights;
mod parent;
mod parent_units;
mod told;
mod zygote;
mod zygote_image;
