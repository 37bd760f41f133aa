//! A value on its way to another process: its bytes, and the descriptors that are part of it.
//!
//! A descriptor is written as its place in a list that goes along. The list is kept for the thread that encodes or decodes, as
//! serde has no room for it; outside of a crossing there is none, and a descriptor is an error. However long it is, it
//! goes as one descriptor more: a *bag*, the end of a socket in which the others lie.

use std::cell::RefCell;
use std::io;
use std::mem::ManuallyDrop;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{self, CodecError, Encoded};
use crate::sys::io::{self as sysio, AsFd, BorrowedFd, OwnedFd};
use crate::sys::limit;

thread_local! {
    /// The crossing that this thread is in the middle of. Between two of them there is nothing to be dropped; without a destructor
    /// it can be asked at any time, also when a thread or the process ends.
    static CURRENT: RefCell<ManuallyDrop<Crossing>> = const { RefCell::new(ManuallyDrop::new(Crossing::None)) };
}

#[derive(Default)]
enum Crossing {
    #[default]
    None,
    Out(Vec<OwnedFd>),
    In(Vec<Option<OwnedFd>>),
}

/// A value, encoded.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) body: Encoded,
    pub(crate) bag: Option<OwnedFd>,
}

/// Encodes a value for another process. Its descriptors are duplicated.
pub(crate) fn pack<T: Serialize + ?Sized>(value: &T) -> Result<Packed, CodecError> {
    let (body, crossing) = within(Crossing::Out(Vec::new()), || codec::encode_to_cross(value));
    let Crossing::Out(descriptors) = crossing else {
        return Err(CodecError::new("a crossing that was left open"));
    };
    let bag = fill(descriptors).map_err(|error| {
        let hint = limit::hint(limit::PACK, &error).unwrap_or_default();
        CodecError::new(format!("its descriptors cannot be sent: {error}{hint}"))
    })?;
    Ok(Packed { body: body?, bag })
}

/// Decodes a value of another process. Descriptors that it does not ask for are closed.
pub(crate) fn unpack<T: DeserializeOwned>(bytes: &[u8], bag: Option<OwnedFd>) -> Result<T, CodecError> {
    let descriptors = bag.map_or_else(|| Ok(Vec::new()), empty);
    let descriptors = descriptors.map_err(|error| CodecError::new(format!("its descriptors: {error}")))?;
    within(Crossing::In(descriptors), || codec::decode(bytes)).0
}

/// Does something in a crossing, also when it is begun in the middle of another; what the crossing has become.
fn within<R>(crossing: Crossing, act: impl FnOnce() -> R) -> (R, Crossing) {
    /// Puts the one before back, also when foreign code panics.
    struct Before(Crossing);
    impl Drop for Before {
        fn drop(&mut self) {
            drop(exchange(std::mem::take(&mut self.0)));
        }
    }
    let before = Before(exchange(crossing));
    let result = act();
    let crossing = exchange(Crossing::None);
    drop(before);
    (result, crossing)
}

fn exchange(crossing: Crossing) -> Crossing {
    ManuallyDrop::into_inner(CURRENT.replace(ManuallyDrop::new(crossing)))
}

/// Why a descriptor is no value.
const OUTSIDE: &str = "a descriptor crosses to a unit, in its result, or through a channel, and nowhere else";

/// For what is being encoded: the place of a descriptor in the list.
pub(crate) fn leave(descriptor: BorrowedFd<'_>) -> Result<u32, String> {
    CURRENT.with_borrow_mut(|crossing| match &mut **crossing {
        Crossing::Out(list) => {
            let copy = sysio::duplicate(descriptor);
            list.push(copy.map_err(|error| {
                let hint = limit::hint(limit::PACK, &error).unwrap_or_default();
                format!("a descriptor cannot be duplicated: {error}{hint}")
            })?);
            u32::try_from(list.len() - 1).map_err(|error| error.to_string())
        }
        _ => Err(OUTSIDE.into()),
    })
}

/// For what is being encoded: whether descriptors could be a part of it.
pub(crate) fn check() -> Result<(), String> {
    CURRENT.with_borrow(|crossing| match &**crossing {
        Crossing::Out(_) => Ok(()),
        Crossing::None | Crossing::In(_) => Err(OUTSIDE.into()),
    })
}

/// For what is being decoded: the descriptor at that place.
pub(crate) fn take(place: u32) -> Result<OwnedFd, String> {
    CURRENT.with_borrow_mut(|crossing| match &mut **crossing {
        Crossing::In(list) => {
            let slot = list.get_mut(place as usize).ok_or("its descriptor did not arrive")?;
            // serde may try one type, and then another (untagged enums): it is there for that as well, if there is room for it.
            if let (true, Some(there)) = (codec::is_guessing(), &*slot)
                && let Ok(copy) = sysio::duplicate(there)
            {
                return Ok(copy);
            }
            slot.take().ok_or_else(|| "a descriptor that was taken before".into())
        }
        _ => Err(OUTSIDE.into()),
    })
}

/// Puts them into a bag; `None` if there are none.
fn fill(descriptors: Vec<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    if descriptors.is_empty() {
        return Ok(None);
    }
    let (bag, hand) = sysio::packet_line()?;
    for some in descriptors.chunks(sysio::MANY) {
        let some: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
        // How many there are stands in front, so that whoever has no room for them knows what is lost.
        sysio::send_many(&hand, &(descriptors.len() as u32).to_le_bytes(), &some)?;
    }
    Ok(Some(bag))
}

/// So many packets are taken out of one at most: it may come from who means no good.
const MOST_PACKETS: usize = 4096;

/// Takes out what is in a bag.
fn empty(bag: OwnedFd) -> io::Result<Vec<Option<OwnedFd>>> {
    let mut all = Vec::new();
    let mut wanted = 0;
    for _ in 0..MOST_PACKETS {
        let mut count = [0; 4];
        match sysio::receive_many(&bag, &mut count, &mut all) {
            Ok(4) => wanted = u32::from_le_bytes(count) as usize,
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    if all.len() < wanted {
        return Err(io::Error::other(format!(
            "{} of {wanted} were lost: {}",
            wanted - all.len(),
            limit::no_room()
        )));
    }
    Ok(all.into_iter().map(Some).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Files {
        before: u8,
        #[serde(with = "crate::fd")]
        files: Vec<File>,
        after: String,
    }

    fn file(text: &str) -> File {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("offspring-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn descriptors_cross_in_their_order_also_more_than_one_message_takes() {
        for count in [0, 1, 3, 300] {
            let files = (0..count).map(|n| file(&n.to_string())).collect();
            let packed = pack(&Files { before: 7, files, after: "after".into() }).unwrap();
            assert_eq!(packed.bag.is_some(), count > 0);
            let mut files: Files = unpack(&packed.body.bytes().unwrap(), packed.bag).unwrap();
            assert_eq!((files.before, files.after.as_str(), files.files.len()), (7, "after", count));
            for (n, file) in files.files.iter_mut().enumerate() {
                let mut text = String::new();
                file.rewind().unwrap();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, n.to_string());
            }
        }
    }

    #[test]
    fn outside_of_a_crossing_they_are_an_error() {
        let files = Files { before: 7, files: vec![file("")], after: String::new() };
        assert!(codec::encode(&files).unwrap_err().to_string().contains("crosses to a unit"));
        let packed = pack(&files).unwrap();
        let bytes = packed.body.bytes().unwrap();
        assert!(codec::decode::<Files>(&bytes).err().unwrap().to_string().contains("crosses to a unit"));
        assert!(unpack::<Files>(&bytes, None).err().unwrap().to_string().contains("did not arrive"));
    }
}
