//! The floor: every system call, every line of `unsafe`, every question of platform. Above it all code is safe.
//!
//! Each name below stands for the same function on every platform; where there is no Linux underneath,
//! `unsupported` answers [`std::io::ErrorKind::Unsupported`] before anything else is reached.
#![allow(unsafe_code)]

#[cfg(all(target_os = "linux", not(offspring_unsupported)))]
mod linux;
#[cfg(all(target_os = "linux", not(offspring_unsupported)))]
pub(crate) use linux::*;

#[cfg(not(all(target_os = "linux", not(offspring_unsupported))))]
mod unsupported;
#[cfg(not(all(target_os = "linux", not(offspring_unsupported))))]
pub(crate) use unsupported::*;
