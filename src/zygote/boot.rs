//! The constructor's decision: is this process a child of ours or a zygote, and of which line?
//!
//! A parent says so by one environment variable, the marker. It names the version of the marker, the role, the parent's pid, a
//! place in the image (so that two copies of this crate in one program do not take each other's children) and a number
//! that the line must repeat. Once it is recognised, this process never reaches `main`, come what may.

use super::serve;
use crate::child;
use crate::sys;

/// The environment variable that makes a process of this program a child.
pub(crate) const MARKER: &str = "OFFSPRING_CHILD_OF";

/// What the marker says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) role: Role,
    pub(crate) parent: u32,
    pub(crate) nonce: u64,
}

/// What a process that was executed is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A child, for one unit.
    Child,
    /// The zygote, which makes children.
    Zygote,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Child => "child",
            Self::Zygote => "zygote",
        }
    }
}

/// The marker's value, as a parent writes it.
pub(crate) fn marker(claim: &Claim, anchor: u64) -> String {
    format!("offspring-1:{}:{}:{anchor:x}:{:x}", claim.role.word(), claim.parent, claim.nonce)
}

/// What a marker claims, if it is meant for this copy of the crate.
pub(crate) fn claim(value: &[u8]) -> Option<Claim> {
    parse(std::str::from_utf8(value).ok()?, sys::image::anchor)
}

fn parse(value: &str, anchor: impl FnOnce() -> u64) -> Option<Claim> {
    let mut parts = value.split(':');
    let mut next = || parts.next();
    (next()? == "offspring-1").then_some(())?;
    let role = next()?;
    let role = [Role::Child, Role::Zygote].into_iter().find(|known| known.word() == role)?;
    let parent = next()?.parse().ok()?;
    (u64::from_str_radix(next()?, 16).ok()? == anchor()).then_some(())?;
    let nonce = u64::from_str_radix(next()?, 16).ok()?;
    next().is_none().then_some(Claim { role, parent, nonce })
}

/// The whole life of the re-executed process.
pub(crate) fn main(claim: Claim) -> ! {
    // The parent, or a process that it forked, ended before we came here: nobody waits for anything from us.
    if sys::signals::orphaned(claim.parent as i32) {
        sys::lifecycle::exit_now(0);
    }
    match claim.role {
        Role::Child => child::executed(claim),
        Role::Zygote => serve::main(claim),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_understood_by_the_copy_that_wrote_it_alone() {
        for role in [Role::Child, Role::Zygote] {
            let claim = Claim { role, parent: 17, nonce: 0xfeed };
            let value = marker(&claim, 0xa0);
            assert_eq!(parse(&value, || 0xa1), None);
            assert_eq!(parse(&value, || 0xa0), Some(claim));
        }
    }

    #[test]
    fn what_stands_there_by_accident_is_no_marker() {
        for value in [
            "",
            "1",
            "offspring-1",
            "offspring-1:child:1:a0",
            "offspring-1:child:1:a0:1:2",
            "offspring-1:egg:1:a0:1",
        ] {
            assert_eq!(parse(value, || 0xa0), None, "{value}");
        }
    }
}
