//! What a unit could learn of others by its memory: addresses, and what is left of those before it.

use std::io::{Read, Seek, SeekFrom};

use offspring::{Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::{can, eventually, zygote};

/// Where things are, and what the kernel gave the program to guess them by: code, stack, heap, the seed of the stack's guard.
fn places(_: ()) -> (Vec<u64>, [u8; 16]) {
    let (local, boxed) = (0_u8, Box::new(0_u8));
    let places = [
        places as *const () as u64,
        libc::getpid as *const () as u64,
        &raw const local as u64,
        &raw const *boxed as u64,
    ];
    // SAFETY: the kernel has put sixteen bytes there, which nobody changes.
    let seed = unsafe { *(libc::getauxval(libc::AT_RANDOM) as *const [u8; 16]) };
    (places.to_vec(), seed)
}

/// Whether the kernel gives a program that is executed other addresses each time.
fn is_random() -> bool {
    const ADDR_NO_RANDOMIZE: i32 = 0x0004_0000;
    // SAFETY: this value asks and sets nothing.
    let personality = unsafe { libc::personality(0xffff_ffff) };
    let switch = std::fs::read_to_string("/proc/sys/kernel/randomize_va_space").unwrap();
    switch.trim() != "0" && personality & ADDR_NO_RANDOMIZE == 0
}

const MASK: u8 = 0x5a;

/// A secret as it may stand in memory: each byte is another's.
fn masked() -> Vec<u8> {
    (0..32_u8).map(|n| (b'a' + n * 7 % 26) ^ MASK).collect()
}

fn unmask(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(byte ^ MASK)).collect()
}

/// How often the secret stands in a process's memory that can be written.
fn occurrences(pid: u32, masked: &[u8]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut count = 0;
    for line in
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|access| access.starts_with("rw")))
    {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; (number(end) - number(start)) as usize];
        memory.seek(SeekFrom::Start(number(start))).unwrap();
        // What the kernel keeps for itself cannot be read.
        if memory.read_exact(&mut bytes).is_ok() {
            // Compared byte by byte, so that it comes to stand nowhere.
            let is_it = |window: &[u8]| window.iter().zip(masked).all(|(a, b)| a ^ MASK == *b);
            count += bytes.windows(masked.len()).filter(|window| is_it(window)).count();
        }
    }
    count
}

/// Has the secret everywhere: as its own, on the heap, and said aloud.
#[derive(Serialize, Deserialize)]
struct Knows(String);

impl Subprocess for Knows {
    type Output = String;

    fn run(self) -> String {
        // SAFETY: no other thread reads the environment here.
        unsafe { std::env::set_var("SECRET", &self.0) };
        std::mem::forget(Box::new(self.0.clone()));
        self.0
    }
}

/// Looks for the secret in its own memory; puts it there first, if it is to.
#[derive(Serialize, Deserialize)]
struct Looks {
    masked: Vec<u8>,
    puts: bool,
}

impl Subprocess for Looks {
    type Output = usize;

    fn run(self) -> usize {
        if self.puts {
            std::mem::forget(Box::new(unmask(&self.masked)));
        }
        occurrences(std::process::id(), &self.masked)
    }
}

behaviour! { through ["zygote", "spare"];
    fn case_86_addresses_are_those_of_all_units_until_a_shutdown() {
        // The very first is executed, while the zygote is being made.
        spawn((), |()| ()).unwrap().wait().unwrap();
        let first = spawn((), places).unwrap().wait().unwrap();
        let sibling = spawn((), places).unwrap().wait().unwrap();
        assert_eq!((&sibling.0[..2], sibling.1), (&first.0[..2], first.1));
        offspring::shutdown();
        let second = spawn((), places).unwrap().wait().unwrap();
        assert_ne!(first.1, second.1);
        assert_ne!(places(()).1, second.1);
        if can("addresses that change", is_random()) {
            for (a, b) in first.0.iter().zip(&second.0) {
                assert_ne!(a, b, "{first:x?} {second:x?}");
            }
        }
    }

    fn case_87_what_a_unit_knew_no_later_one_finds() {
        let looks = |puts| Offspring::new(Looks { masked: masked(), puts }).unwrap().wait().unwrap();
        for _ in 0..4 {
            assert_eq!(Offspring::new(Knows(unmask(&masked()))).unwrap().wait().unwrap(), unmask(&masked()));
            assert_eq!(looks(false), 0);
            // If it were there it would be found.
            assert_ne!(looks(true), 0);
        }
        assert_eq!(occurrences(zygote().unwrap(), &masked()), 0);
    }

    fn case_87_what_has_left_the_environment_is_gone_after_a_shutdown() {
        let (masked, secret) = (masked(), unmask(&masked()));
        // SAFETY: no other thread reads the environment here.
        unsafe { std::env::set_var("SECRET", &secret) };
        let looks = || Offspring::new(Looks { masked: masked.clone(), puts: false }).unwrap().wait().unwrap();
        assert_ne!(looks(), 0);
        // SAFETY: as above.
        unsafe { std::env::remove_var("SECRET") };
        // It is in no unit's environment any more, but the zygote was executed with it.
        assert!(spawn((), |()| std::env::var("SECRET").is_err()).unwrap().wait().unwrap());
        offspring::shutdown();
        assert_eq!(looks(), 0);
        eventually("there is no zygote", || zygote().is_some());
        assert_eq!(occurrences(zygote().unwrap(), &masked), 0);
    }
}
