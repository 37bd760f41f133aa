//! The zygote: the program executed once more, small and with one thread, which makes the user's process its children by
//! cloning itself. Every line in this folder runs there, and ahead of `main`.

pub(crate) mod boot;
mod serve;
mod wards;
