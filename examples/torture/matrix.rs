//! Figure 5: an error, a panic, an exit and a crash, at each of the five places where foreign code runs.

use ErrorKind::{Decode, Died, Encode, Panicked, Start};
use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::figure::Job;
use crate::processes::Belongings;

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Place {
    EncodedInParent,
    DecodedInChild,
    Run,
    EncodedInChild,
    DecodedInParent,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum Deed {
    Refuse,
    Panic,
    Exit,
    Crash,
}

/// A value, and a unit, that does the deed when it comes to that place.
#[derive(Debug)]
struct Touchy {
    place: Place,
    deed: Deed,
    parent: u32,
}

impl Touchy {
    fn at(&self, place: Place) -> Result<(), &'static str> {
        if self.place != place {
            return Ok(());
        }
        match self.deed {
            Deed::Refuse => Err("refused"),
            Deed::Panic => panic!("touched"),
            Deed::Exit => std::process::exit(3),
            Deed::Crash => {
                // SAFETY: ends the process, which is what is wanted.
                unsafe { libc::raise(libc::SIGSEGV) };
                Ok(())
            }
        }
    }

    fn here(&self, in_parent: Place, in_child: Place) -> Place {
        if std::process::id() == self.parent { in_parent } else { in_child }
    }
}

impl Serialize for Touchy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = self.here(Place::EncodedInParent, Place::EncodedInChild);
        self.at(place).map_err(serde::ser::Error::custom)?;
        (self.place, self.deed, self.parent).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, deed, parent) = Deserialize::deserialize(deserializer)?;
        let this = Self { place, deed, parent };
        let place = this.here(Place::DecodedInParent, Place::DecodedInChild);
        this.at(place).map_err(serde::de::Error::custom)?;
        Ok(this)
    }
}

#[derive(Serialize, Deserialize)]
struct Echo(Touchy);

impl Subprocess for Echo {
    type Output = Result<Touchy, String>;

    fn run(self) -> Self::Output {
        self.0.at(Place::Run)?;
        Ok(self.0)
    }
}

/// What is expected: an error of a kind, or, where the unit itself says no, a value. Those that would end the parent, as any
/// other code that ends it, are not here.
const CELLS: [(Place, Deed, Option<ErrorKind>); 16] = [
    (Place::EncodedInParent, Deed::Refuse, Some(Encode)),
    (Place::EncodedInParent, Deed::Panic, Some(Encode)),
    (Place::DecodedInChild, Deed::Refuse, Some(Decode)),
    (Place::DecodedInChild, Deed::Panic, Some(Panicked)),
    (Place::DecodedInChild, Deed::Exit, Some(Start)),
    (Place::DecodedInChild, Deed::Crash, Some(Start)),
    (Place::Run, Deed::Refuse, None),
    (Place::Run, Deed::Panic, Some(Panicked)),
    (Place::Run, Deed::Exit, Some(Died)),
    (Place::Run, Deed::Crash, Some(Died)),
    (Place::EncodedInChild, Deed::Refuse, Some(Encode)),
    (Place::EncodedInChild, Deed::Panic, Some(Panicked)),
    (Place::EncodedInChild, Deed::Exit, Some(Died)),
    (Place::EncodedInChild, Deed::Crash, Some(Died)),
    (Place::DecodedInParent, Deed::Refuse, Some(Decode)),
    (Place::DecodedInParent, Deed::Panic, Some(Decode)),
];

pub(crate) fn all(job: &Job) -> String {
    // In the parent, where panics are wanted.
    std::panic::set_hook(Box::new(|_| {}));
    let belongings = Belongings::now();
    let in_parent = [Place::EncodedInParent, Place::DecodedInParent];
    let possible =
        |place, deed| !(cfg!(panic = "abort") && deed == Deed::Panic && in_parent.contains(&place));
    let cells: Vec<_> = CELLS.iter().filter(|(place, deed, _)| possible(*place, *deed)).collect();
    for &&(place, deed, expected) in &cells {
        for _ in 0..job.count {
            let touchy = Touchy { place, deed, parent: std::process::id() };
            let unit = Offspring::builder(Echo(touchy)).stderr(Stdio::null()).spawn();
            let result = unit.and_then(Offspring::wait);
            let is_right = match (&result, expected) {
                (Ok(Err(told)), None) => told == "refused",
                (Err(error), Some(kind)) => error.kind() == kind && says_why(error, deed),
                _ => false,
            };
            job.tally.check(is_right, || format!("{place:?}, {deed:?}: {result:?} for {expected:?}"));
            let next = spawn(1, |n: u32| n + 1).and_then(Offspring::wait);
            job.tally.check(matches!(next, Ok(2)), || format!("after {place:?}, {deed:?}: {next:?}"));
            job.tally.done();
        }
    }
    if let Some(left) = belongings.left_over() {
        job.tally.fail(left);
    }
    format!(
        "{} wrong of {} cases; {} would end the parent",
        job.tally.failed(),
        cells.len(),
        5 * 4 - cells.len()
    )
}

/// Whether the error has what is known of the deed.
fn says_why(error: &Error, deed: Deed) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let status = error.death().map(|death| death.status());
    match deed {
        Deed::Refuse => error.to_string().contains("refused"),
        Deed::Panic => {
            error.kind() != Panicked || error.panic().is_some_and(|panic| panic.message() == "touched")
        }
        Deed::Exit => status.is_some_and(|status| status.code() == Some(3)),
        Deed::Crash => status.is_some_and(|status| status.signal() == Some(libc::SIGSEGV)),
    }
}
