//! The re-executed program before it is anybody: this code runs in the new process, ahead of `main`.

pub(crate) mod boot;
