//! Memory that several processes share.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use offspring::{Offspring, SharedBytes, SharedMemory, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

fn sum(bytes: SharedBytes) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

/// Locks the memory, writes half of what it would, says so, and stays.
#[derive(Serialize, Deserialize)]
struct Holder(SharedMemory);

impl Subprocess for Holder {
    type Output = ();

    fn run(self) {
        let writer = self.0.lock().unwrap();
        writer.write_at(0, b"half").unwrap();
        println!("locked");
        std::thread::sleep(std::time::Duration::from_secs(3600));
        drop(writer);
    }
}

behaviour! {
    fn bytes_cross_to_units_and_back() {
        for size in [0, 1, 5000, 3 << 20] {
            let bytes = SharedBytes::new(&vec![3; size]).unwrap();
            let units: Vec<_> = (0..3).map(|_| spawn(bytes.clone(), sum).unwrap()).collect();
            for unit in units {
                assert_eq!(unit.wait().unwrap(), 3 * size as u64);
            }
            let back = spawn(size, |size: usize| SharedBytes::with(size, |bytes| bytes.fill(7)).unwrap());
            let back = back.unwrap().wait().unwrap();
            assert!(back.len() == size && back.iter().all(|byte| *byte == 7));
        }
        let mut text = &b"from a reader"[..];
        assert_eq!(spawn(SharedBytes::from_reader(&mut text).unwrap(), |bytes| bytes.to_vec()).unwrap().wait().unwrap(), b"from a reader");
    }

    fn a_process_that_is_forked_while_they_are_written_neither_hinders_nor_changes_them() {
        let (mut told, tell) = std::io::pipe().unwrap();
        let mut copy = 0;
        let bytes = SharedBytes::with(3 << 20, |bytes| {
            bytes.fill(7);
            // SAFETY: the copy makes the system calls below alone.
            copy = unsafe { libc::fork() };
            if copy == 0 {
                let mut byte = 0_u8;
                // SAFETY: one byte, and the mapping, of which the copy has one as well.
                unsafe {
                    libc::close(tell.as_raw_fd());
                    libc::read(told.as_raw_fd(), (&raw mut byte).cast(), 1);
                    bytes[0] = 8;
                    libc::_exit(0);
                }
            }
        });
        drop(tell);
        // SAFETY: our own child.
        unsafe { libc::waitpid(copy, std::ptr::null_mut(), 0) };
        assert_eq!(told.read(&mut [0]).unwrap(), 0);
        assert!(bytes.unwrap().iter().all(|byte| *byte == 7));
    }

    fn what_nobody_has_written_is_zeros_there_too() {
        let bytes = SharedBytes::with(3 << 20, |bytes| bytes[5000] = 7).unwrap();
        assert_eq!(spawn(bytes.clone(), sum).unwrap().wait().unwrap(), 7);
        assert_eq!(spawn(bytes, |bytes: SharedBytes| bytes.len()).unwrap().wait().unwrap(), 3 << 20);
    }

    fn they_are_not_copied() {
        // Both look at the same pages: where the file is, the kernel tells.
        let bytes = SharedBytes::new(&vec![1; 1 << 20]).unwrap();
        let theirs = spawn(bytes.clone(), |bytes: SharedBytes| inode_of(&bytes)).unwrap().wait().unwrap();
        assert!(theirs.is_some());
        assert_eq!(inode_of(&bytes), theirs);
    }

    fn nobody_can_change_them() {
        let bytes = SharedBytes::new(b"as it is").unwrap();
        let unit = spawn(bytes.clone(), |bytes: SharedBytes| {
            let mut refused = 0;
            for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
                let path = entry.unwrap().path();
                if std::fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().contains("memfd:")) {
                    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
                    assert!(std::os::unix::fs::FileExt::write_all_at(&file, b"X", 0).is_err());
                    assert!(file.set_len(1).is_err() && file.set_len(100).is_err());
                    refused += 1;
                }
            }
            (refused, bytes.to_vec())
        });
        let (refused, seen) = unit.unwrap().wait().unwrap();
        assert!(refused >= 1 && seen == b"as it is");
        assert_eq!(&*bytes, b"as it is");
    }

    fn one_process_at_a_time_writes() {
        let memory = SharedMemory::new(8).unwrap();
        let units: Vec<_> = (0..3).map(|_| spawn(memory.clone(), |memory: SharedMemory| {
            for _ in 0..200 {
                let writer = memory.lock().unwrap();
                let mut number = [0; 8];
                writer.read_at(0, &mut number).unwrap();
                writer.write_at(0, &(u64::from_le_bytes(number) + 1).to_le_bytes()).unwrap();
            }
        }).unwrap()).collect();
        std::thread::scope(|scope| for _ in 0..2 {
            scope.spawn(|| for _ in 0..200 {
                let writer = memory.lock().unwrap();
                let mut number = [0; 8];
                writer.read_at(0, &mut number).unwrap();
                writer.write_at(0, &(u64::from_le_bytes(number) + 1).to_le_bytes()).unwrap();
            });
        });
        units.into_iter().for_each(|unit| unit.wait().unwrap());
        let mut number = [0; 8];
        memory.read_at(0, &mut number).unwrap();
        assert_eq!(u64::from_le_bytes(number), 1000);
    }

    fn the_lock_of_a_process_that_dies_is_free() {
        let memory = SharedMemory::new(16).unwrap();
        let mut unit = Offspring::builder(Holder(memory.clone())).stdout(Stdio::piped()).spawn().unwrap();
        unit.take_stdout().unwrap().read_exact(&mut [0; 6]).unwrap();
        unit.process().unwrap().kill().unwrap();
        let writer = memory.lock().unwrap();
        let mut seen = [0; 4];
        writer.read_at(0, &mut seen).unwrap();
        assert_eq!(&seen, b"half");
        assert!(unit.wait().is_err());
    }

    fn beyond_its_end_there_is_nothing() {
        let memory = SharedMemory::new(4).unwrap();
        assert_eq!((memory.len(), memory.is_empty()), (4, false));
        let writer = memory.lock().unwrap();
        writer.write_at(0, b"four").unwrap();
        for (offset, bytes) in [(1, &b"four"[..]), (4, b"x"), (u64::MAX, b"x")] {
            assert_eq!(writer.write_at(offset, bytes).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
            assert!(memory.read_at(offset, &mut vec![0; bytes.len()]).is_err());
        }
        writer.write_at(4, b"").unwrap();
        assert!(SharedMemory::new(0).unwrap().is_empty());
    }

    fn memory_that_is_not_sealed_is_refused() {
        /// As the bytes cross: a descriptor that may be missing, and a length.
        #[derive(Serialize, Deserialize)]
        struct Raw(#[serde(with = "offspring::fd")] Option<OwnedFd>, usize);
        #[derive(Serialize, Deserialize)]
        #[serde(untagged)]
        enum Either {
            Bytes(SharedBytes),
            Raw(Raw),
        }
        // What this unit gives as the one is read as the other.
        let unit = spawn((), |()| {
            // SAFETY: a constant name; the descriptor is ours.
            let open = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"open".as_ptr(), libc::MFD_CLOEXEC)) };
            std::fs::File::from(open.try_clone().unwrap()).set_len(4).unwrap();
            Either::Raw(Raw(Some(open), 4))
        });
        // It was refused as bytes, and is a file all the same; where it can be nothing else, that is the end.
        assert!(matches!(unit.unwrap().wait().unwrap(), Either::Raw(Raw(Some(_), 4))));
        #[derive(Serialize, Deserialize)]
        #[serde(untagged)]
        enum Strict {
            Bytes(SharedBytes),
            #[serde(skip_deserializing)]
            Raw(Raw),
        }
        let unit = spawn((), |()| {
            // SAFETY: as above.
            let open = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"open".as_ptr(), libc::MFD_CLOEXEC)) };
            std::fs::File::from(open.try_clone().unwrap()).set_len(4).unwrap();
            Strict::Raw(Raw(Some(open), 4))
        });
        let error = unit.unwrap().wait().err().unwrap();
        assert_eq!(error.kind(), offspring::ErrorKind::Decode, "{error}");
        let unit = spawn((), |()| Strict::Bytes(SharedBytes::new(b"good").unwrap()));
        assert!(matches!(unit.unwrap().wait().unwrap(), Strict::Bytes(bytes) if &*bytes == b"good"));
        // And good ones are taken.
        let unit = spawn((), |()| Either::Bytes(SharedBytes::new(b"good").unwrap()));
        assert!(matches!(unit.unwrap().wait().unwrap(), Either::Bytes(bytes) if &*bytes == b"good"));
    }
}

/// The number of the file that is mapped where these bytes are.
fn inode_of(bytes: &[u8]) -> Option<String> {
    let address = bytes.as_ptr().addr();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        (number(start)?..number(end)?)
            .contains(&address)
            .then(|| rest.split_whitespace().nth(3).map(str::to_owned))?
    })
}

#[test]
fn outside_of_a_crossing_they_are_an_error() {
    assert!(serde_json::to_string(&SharedBytes::new(b"").unwrap()).is_err());
    let error = serde_json::to_string(&SharedBytes::new(b"x").unwrap()).unwrap_err();
    assert!(error.to_string().contains("crosses to a unit"), "{error}");
}
