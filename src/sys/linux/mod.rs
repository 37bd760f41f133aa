//! Linux 5.4 and newer, with glibc.

pub(crate) mod cgroup;
pub(crate) mod clone;
pub(crate) mod constructor;
mod counter;
pub(crate) mod environment;
mod generation;
pub(crate) mod group;
pub(crate) mod image;
pub(crate) mod io;
pub(crate) mod kept;
pub(crate) mod ledger;
pub(crate) mod lifecycle;
pub(crate) mod limit;
pub(crate) mod memory;
pub(crate) mod pidfd;
mod poller;
pub(crate) mod rights;
pub(crate) mod signals;
pub(crate) mod spawn;
pub(crate) mod variables;
