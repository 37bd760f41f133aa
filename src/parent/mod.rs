//! The user's process: starting children, hearing from them, ending them. Every line in this folder runs there.

pub(crate) mod launcher;
mod clone;
mod exec;
mod line;
mod parking;
pub(crate) mod spares;
mod zygote;
pub(crate) mod runtime;
pub(crate) mod reaper;
mod remains;
pub(crate) mod cgroup;
pub(crate) mod shutdown;
mod starvation;
pub(crate) mod table;
pub(crate) mod unit;
