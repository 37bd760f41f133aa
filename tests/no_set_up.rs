//! Units in plain test functions, in parallel, with nothing set up.

use offspring::spawn;

fn triple(n: u32) -> u32 {
    3 * n
}

macro_rules! in_parallel {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            let units: Vec<_> = (0..8).map(|n| spawn(n, triple).unwrap()).collect();
            for (n, unit) in (0..).zip(units) {
                assert_eq!(unit.wait().unwrap(), 3 * n);
            }
        }
    )*};
}

in_parallel! { one two three four }

#[test]
fn a_unit_that_is_left_behind_ends_with_the_tests() {
    drop(spawn((), |()| std::thread::sleep(std::time::Duration::from_secs(3600))).unwrap());
}
