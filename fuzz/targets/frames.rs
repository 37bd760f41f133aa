#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| offspring::fuzzing::frames(bytes));
