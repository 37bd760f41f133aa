//! A shared library with the crate in it, for a host program that is not ours.

/// Tries to start a unit; prints what came of it.
#[unsafe(no_mangle)]
pub extern "C" fn foreign_start() {
    match offspring::spawn((), |()| 1).and_then(offspring::Offspring::wait) {
        Ok(value) => println!("result {value}"),
        Err(error) => println!("{:?}: {error}", error.kind()),
    }
}
