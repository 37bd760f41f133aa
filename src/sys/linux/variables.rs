//! This process's own environment: a copy that is kept, and looked at for whether it is still the same.
//!
//! Every start needs to know the environment. A copy of it by std costs a quarter of a microsecond a variable, and nothing tells whether
//! it has changed since. So the copy is kept, together with where each of its pieces lies; at the next start the kernel is asked to
//! read those places once more, in one system call. It reads as a debugger would: what another thread has freed or
//! changed meanwhile is a difference, or an error, but never undefined, as reading through pointers without std's lock would be.

use std::ffi::{OsString, c_char};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, RwLock, TryLockError};

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// Names and values.
pub(crate) type Variables = Arc<Vec<(OsString, OsString)>>;

static KEPT: RwLock<Option<Kept>> = RwLock::new(None);

/// The environment as it is now, as std tells it.
pub(crate) fn own() -> Variables {
    match KEPT.try_read() {
        Ok(kept) => {
            if let Some(kept) = kept.as_ref().filter(|kept| kept.is_so_still()) {
                return kept.variables.clone();
            }
        }
        // Somebody else is keeping it at the moment (or was, when this process was forked off).
        Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return copy(),
    }
    let variables = copy();
    if let Ok(mut kept) = KEPT.try_write() {
        // What could not be found the last time is not looked for again as long as it is the same.
        if let Some(same) = kept.as_ref().filter(|kept| kept.places.is_empty() && kept.variables == variables)
        {
            return same.variables.clone();
        }
        let (places, bytes, matters) = Default::default();
        let unknown = || Kept { variables: variables.clone(), places, bytes, matters };
        *kept = Some(Kept::find(&variables).unwrap_or_else(unknown));
    }
    variables
}

fn copy() -> Variables {
    Arc::new(std::env::vars_os().collect())
}

/// The environment at one moment, and where its pieces were.
struct Kept {
    variables: Variables,
    /// What is to be read: the variable `environ`, its array, the strings. Nothing, if they could not be found.
    places: Vec<libc::iovec>,
    /// What was read there.
    bytes: Vec<u8>,
    /// What of it matters. Between two strings that lie close to each other there may be other things.
    matters: Vec<Range<usize>>,
}

// SAFETY: the pointers in `places` are addresses for the kernel, and are followed by nobody else.
unsafe impl Send for Kept {}
// SAFETY: as above; nothing is changed after it was made.
unsafe impl Sync for Kept {}

/// So far apart are two strings at most to be read as one piece: a piece more costs as much as some hundred bytes more.
const GAP: usize = 256;

/// The kernel takes so many pieces at most (`UIO_MAXIOV`).
const PIECES: usize = 1024;

impl Kept {
    /// Finds where these variables lie. `None` if that cannot be told, or they are not these any more.
    fn find(variables: &Variables) -> Option<Self> {
        let array = (&raw const environ).addr();
        let start = usize::from_ne_bytes(read(&[piece(array, size_of::<usize>())])?.try_into().ok()?);
        // The array ends with a null, but not necessarily after as many entries: std skips what has no `=`.
        let wanted = (variables.len() + 1) * size_of::<usize>();
        let pointers: Vec<usize> = read(&[piece(start, wanted)])?
            .chunks_exact(size_of::<usize>())
            .filter_map(|bytes| Some(usize::from_ne_bytes(bytes.try_into().ok()?)))
            .collect();
        let (end, pointers) = pointers.split_last()?;
        if *end != 0 || pointers.contains(&0) {
            return None;
        }
        let mut places = vec![piece(array, size_of::<usize>()), piece(start, wanted)];
        let mut bytes = start.to_ne_bytes().to_vec();
        bytes.extend(pointers.iter().chain(&[0]).flat_map(|pointer| pointer.to_ne_bytes()));
        let mut matters: Vec<Range<usize>> = std::iter::once(0..bytes.len()).collect();
        // Each string where it was found, in the order of their places, those that are close to each other together.
        let mut strings: Vec<(usize, Vec<u8>)> = pointers
            .iter()
            .zip(variables.iter())
            .map(|(pointer, (name, value))| {
                let string = [name.clone().into_vec(), vec![b'='], value.clone().into_vec(), vec![0]];
                (*pointer, string.concat())
            })
            .collect();
        strings.sort_unstable_by_key(|(pointer, _)| *pointer);
        let mut last = 0..0;
        for (start, string) in strings {
            let end = start.checked_add(string.len())?;
            // One that lies within another is too odd to be kept.
            let gap = start.checked_sub(last.end)?;
            if !last.is_empty() && gap <= GAP {
                bytes.resize(bytes.len() + gap, 0);
                last.end = end;
            } else {
                places.extend((!last.is_empty()).then(|| piece(last.start, last.len())));
                last = start..end;
            }
            matters.push(bytes.len()..bytes.len() + string.len());
            bytes.extend(string);
        }
        places.extend((!last.is_empty()).then(|| piece(last.start, last.len())));
        let kept = Self { variables: variables.clone(), places, bytes, matters };
        (kept.places.len() <= PIECES && kept.is_so_still()).then_some(kept)
    }

    fn is_so_still(&self) -> bool {
        !self.places.is_empty()
            && read(&self.places).is_some_and(|now| {
                self.matters.iter().all(|range| now.get(range.clone()) == self.bytes.get(range.clone()))
            })
    }
}

fn piece(start: usize, len: usize) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::without_provenance_mut(start), iov_len: len }
}

/// What stands in these places of our own memory, or `None` if it is not all there.
fn read(places: &[libc::iovec]) -> Option<Vec<u8>> {
    let len = places.iter().map(|place| place.iov_len).sum();
    let mut bytes = Vec::<u8>::with_capacity(len);
    let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
    // SAFETY: the kernel writes to our own buffer, no more than it holds; it reads from addresses that need not be valid.
    let count = unsafe {
        libc::process_vm_readv(
            libc::getpid(),
            &raw const here,
            1,
            places.as_ptr(),
            places.len() as libc::c_ulong,
            0,
        )
    };
    if usize::try_from(count) != Ok(len) {
        return None;
    }
    // SAFETY: so many bytes have been written.
    unsafe { bytes.set_len(len) };
    Some(bytes)
}
