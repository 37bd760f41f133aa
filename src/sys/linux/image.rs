//! This program's image: what is named by its place in it, and the proof that re-executing it reaches us again.
//!
//! Parent and child are the same file, mapped at different addresses. So a function, or a record of one, is named by
//! its distance from the start of the image, and the child finds it at the same distance in its own.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::mem::{align_of, size_of};
use std::ops::Range;
use std::sync::OnceLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::child::run::Host;
use crate::wire::parcel::Bytes;

/// The object (executable or shared library) into which this copy of the crate is linked.
#[derive(Debug)]
struct Image {
    base: usize,
    headers: usize,
    /// Start, end and whether it is executable, of every loaded segment.
    segments: Vec<(usize, usize, bool)>,
    /// `DT_INIT_ARRAY` and its size in bytes, from the dynamic section.
    init_array: Option<(usize, usize)>,
}

const MAGIC: u64 = 0x6f66_6673_7072_6e67;

/// What a child may be told to run. It stands in the image as constant data, so that a child can check it before it
/// jumps anywhere.
#[repr(C)]
pub(crate) struct Entry {
    magic: u64,
    /// The unit's type.
    pub(crate) name: fn() -> &'static str,
    /// Decodes the unit, runs it, hands what comes of it to the host.
    pub(crate) run: fn(Bytes, &mut dyn Host),
}

impl Entry {
    pub(crate) const fn new(name: fn() -> &'static str, run: fn(Bytes, &mut dyn Host)) -> Self {
        Self { magic: MAGIC, name, run }
    }

    /// Its place in the image; `None` if it stands in another object than this crate does (a Rust `dylib`).
    pub(crate) fn offset(&'static self) -> Option<u64> {
        offset_of(std::ptr::from_ref(self) as usize, size_of::<Self>(), false)
    }

    /// Touches what it names. Changes nothing.
    pub(crate) fn rehearse(&self) {
        // SAFETY: reads a byte of each function.
        unsafe {
            (self.run as *const u8).read_volatile();
            (self.name as *const u8).read_volatile();
        }
    }

    /// The entry at a place that [`Entry::offset`] gave in another process of the same program, if one stands there.
    pub(crate) fn at(offset: u64) -> Option<&'static Self> {
        let address = address_of(offset, size_of::<Self>(), false)?;
        if address % align_of::<Self>() != 0 {
            return None;
        }
        let pointer = address as *const Self;
        // SAFETY: the address lies, with the whole of an Entry behind it, in a segment of our own image, which is
        // mapped readable for as long as the process lives, and it is aligned. Any bytes are a valid u64.
        let magic = unsafe { (&raw const (*pointer).magic).read() };
        // SAFETY: as above; and the magic number says that an Entry was laid down here by this very image, so that
        // its two function pointers are what `new` was given (relocated by the loader before we run).
        (magic == MAGIC).then(|| unsafe { &*pointer })
    }
}

/// A function of this program that crosses to another process of it by its place in the image.
pub(crate) struct Function<A, R>(pub(crate) fn(A) -> R);

impl<A, R> Serialize for Function<A, R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let offset = offset_of(self.0 as usize, 1, true).ok_or_else(|| {
            serde::ser::Error::custom("the function lies in a shared library, not in the program itself")
        })?;
        (offset, std::any::type_name::<fn(A) -> R>()).serialize(serializer)
    }
}

impl<'de, A, R> Deserialize<'de> for Function<A, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (offset, name) = <(u64, String)>::deserialize(deserializer)?;
        let address = address_of(offset, 1, true).filter(|_| name == std::any::type_name::<fn(A) -> R>());
        let address = address.ok_or_else(|| serde::de::Error::custom("no such function in this program"))?;
        // SAFETY: only `serialize` makes such a pair, from a real `fn(A) -> R` of the same image (the type is private
        // to the crate and the bytes come from our own parent, whose program is ours to the byte); the place is
        // executable, and the signature's name is the one that was written.
        Ok(Self(unsafe { std::mem::transmute::<*const c_void, fn(A) -> R>(address as *const c_void) }))
    }
}

fn offset_of(address: usize, length: usize, code: bool) -> Option<u64> {
    image()
        .filter(|image| image.holds(address, length, code))
        .map(|image| address.wrapping_sub(image.base) as u64)
}

fn address_of(offset: u64, length: usize, code: bool) -> Option<usize> {
    let image = image()?;
    let address = image.base.wrapping_add(offset as usize);
    image.holds(address, length, code).then_some(address)
}

impl Image {
    fn holds(&self, address: usize, length: usize, code: bool) -> bool {
        let end = address.checked_add(length);
        self.segments.iter().any(|&(low, high, executable)| {
            low <= address && end.is_some_and(|end| end <= high) && (executable || !code)
        })
    }
}

/// A place that is the same in every process of this program and in no other copy of this crate in it.
pub(crate) fn anchor() -> u64 {
    static ANCHOR: u8 = 0;
    let address = &raw const ANCHOR as usize;
    image().map_or(0, |image| address.wrapping_sub(image.base) as u64)
}

fn image() -> Option<&'static Image> {
    static IMAGE: OnceLock<Option<Image>> = OnceLock::new();
    IMAGE.get_or_init(find).as_ref()
}

fn find() -> Option<Image> {
    struct Search {
        address: usize,
        found: Option<Image>,
    }
    extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr(3) calls us with a valid record, and with the pointer that we gave it below, which
        // is to a Search that nothing else uses meanwhile.
        let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        // SAFETY: the loader vouches for `dlpi_phnum` headers behind the pointer, mapped while the object is.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize) };
        let base = info.dlpi_addr as usize;
        let place = |header: &libc::Elf64_Phdr| base.wrapping_add(header.p_vaddr as usize);
        let segments: Vec<_> = headers
            .iter()
            .filter(|header| header.p_type == libc::PT_LOAD)
            .map(|header| {
                (
                    place(header),
                    place(header).wrapping_add(header.p_memsz as usize),
                    header.p_flags & libc::PF_X != 0,
                )
            })
            .collect();
        if !segments.iter().any(|&(low, high, _)| (low..high).contains(&search.address)) {
            return 0;
        }
        let tag = |wanted| dynamic_tag(base, headers, wanted);
        const DT_INIT_ARRAY: usize = 25;
        const DT_INIT_ARRAYSZ: usize = 27;
        let init_array = tag(DT_INIT_ARRAY).zip(tag(DT_INIT_ARRAYSZ)).map(|(start, size)| {
            // The loader leaves this entry as it is in the file, relative to the base.
            (base.wrapping_add(start), size)
        });
        search.found = Some(Image { base, headers: info.dlpi_phdr as usize, segments, init_array });
        1
    }
    let mut search = Search { address: find as *const () as usize, found: None };
    // SAFETY: `visit` has the signature that dl_iterate_phdr(3) asks for, and `search` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.found
}

/// Whether this crate stands in the very file that `/proc/self/exe` would execute, or why not.
///
/// The kernel's own auxiliary vector says where the headers of the file that it executed were mapped. The one in
/// memory will not do: a loader that was started by hand (`ld.so ./program`) rewrites it.
pub(crate) fn is_the_executable() -> io::Result<()> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::Unsupported, why));
    let Some(image) = image() else { return refuse("this program's image cannot be found in memory") };
    let vector = auxiliary_vector()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read /proc/self/auxv: {error}")))?;
    let headers = vector.chunks_exact(2 * size_of::<usize>()).find_map(|pair| {
        let (tag, value) = pair.split_at(size_of::<usize>());
        let word = |bytes: &[u8]| usize::from_ne_bytes(bytes.try_into().unwrap_or_default());
        (word(tag) == libc::AT_PHDR as usize).then(|| word(value))
    });
    if headers != Some(image.headers) {
        return refuse("the crate is linked into a shared library that another program loaded");
    }
    Ok(())
}

/// What an object that is loaded says of itself in its dynamic section.
fn dynamic_tag(base: usize, headers: &[libc::Elf64_Phdr], wanted: usize) -> Option<usize> {
    let header = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC)?;
    let place = base.wrapping_add(header.p_vaddr as usize) as *const [usize; 2];
    // SAFETY: PT_DYNAMIC is a mapped array of tag and value, `p_memsz` bytes long.
    let all = unsafe { std::slice::from_raw_parts(place, header.p_memsz as usize / 16) };
    all.iter().take_while(|entry| entry[0] != 0).find(|entry| entry[0] == wanted).map(|entry| entry[1])
}

/// What the end of a process takes of memory: what its last functions write to, and where they begin.
pub(crate) struct Exit {
    writes: Vec<Range<usize>>,
    runs: Vec<usize>,
}

impl Exit {
    /// Looks it up; in a zygote, so that its children need not touch for it what they need for nothing else.
    pub(crate) fn find() -> Self {
        let ends = [libc::exit as *const () as usize, std::process::exit as *const () as usize];
        let mut exit = Self { writes: Vec::new(), runs: ends.to_vec() };
        // SAFETY: `visit` has the signature that dl_iterate_phdr(3) asks for, and `exit` outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(Self::visit), (&raw mut exit).cast()) };
        exit
    }

    extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, exit: *mut c_void) -> c_int {
        const PAGE: usize = 4096;
        // SAFETY: as below.
        if unsafe { (*info).dlpi_phdr.is_null() } {
            return 0;
        }
        /// Of a larger segment, what an exit writes to is about where the file's part ends and the zeroed part begins.
        const SMALL: usize = 4 * PAGE;
        // SAFETY: dl_iterate_phdr(3) calls us with a valid record, whose headers are mapped while the object is, and with
        // what `find` has lent it.
        let (base, headers, exit) = unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize);
            (info.dlpi_addr as usize, headers, &mut *exit.cast::<Self>())
        };
        let before = exit.runs.len();
        let place = |header: &libc::Elf64_Phdr| base.wrapping_add(header.p_vaddr as usize);
        let relro = headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO);
        let locked = relro.map_or(0, |header| place(header) + header.p_memsz as usize);
        let writable =
            |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W != 0;
        for header in headers.iter().filter(writable) {
            let (first, end) =
                (place(header).max(locked) & !(PAGE - 1), place(header) + header.p_memsz as usize);
            let middle = (place(header) + header.p_filesz as usize) & !(PAGE - 1);
            match end.saturating_sub(first) <= SMALL {
                true if first < end => exit.writes.push(first..end),
                true => {}
                false => exit.writes.push(middle.max(first)..(middle + 2 * PAGE).min(end)),
            }
        }
        const DT_FINI: usize = 13;
        const DT_FINI_ARRAY: usize = 26;
        const DT_FINI_ARRAYSZ: usize = 28;
        let tag = |wanted| dynamic_tag(base, headers, wanted);
        exit.runs.extend(tag(DT_FINI).map(|place| base.wrapping_add(place)));
        if let (Some(first), Some(size)) = (tag(DT_FINI_ARRAY), tag(DT_FINI_ARRAYSZ)) {
            let first = base.wrapping_add(first) as *const usize;
            // SAFETY: by the ELF specification a mapped array of so many bytes, of the addresses of functions.
            let all = unsafe { std::slice::from_raw_parts(first, size / size_of::<usize>()) };
            exit.runs.extend(all.iter().filter(|function| ![0, usize::MAX].contains(*function)));
        }
        // SAFETY: getauxval(3) has no conditions.
        if base == unsafe { libc::getauxval(libc::AT_BASE) } as usize {
            // The loader's own, which nobody names: as much at a time as the kernel maps at a fault.
            const AROUND: usize = 64 << 10;
            let runs = |header: &&libc::Elf64_Phdr| {
                header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0
            };
            for header in headers.iter().filter(runs) {
                exit.runs.extend((place(header)..place(header) + header.p_memsz as usize).step_by(AROUND));
            }
        }
        // Code may be mapped to be executed alone, and what an array names may lie anywhere.
        let is_readable = |address: &usize| {
            let holds = |header: &libc::Elf64_Phdr| {
                header.p_type == libc::PT_LOAD
                    && header.p_flags & libc::PF_R != 0
                    && (place(header)..place(header) + header.p_memsz as usize).contains(address)
            };
            headers.iter().any(holds)
        };
        let found = exit.runs.split_off(before);
        exit.runs.extend(found.into_iter().filter(is_readable));
        0
    }

    /// Touches all of it, so that it is there when a process that waits now comes to its end. Changes nothing.
    pub(crate) fn rehearse(&self) {
        /// Linux 5.14; before that the call says EINVAL.
        const MADV_POPULATE_WRITE: c_int = 23;
        for range in &self.writes {
            // SAFETY: makes pages of a loaded segment present, as a write of what stands there would.
            unsafe { libc::madvise(range.start as *mut c_void, range.len(), MADV_POPULATE_WRITE) };
        }
        for function in &self.runs {
            // SAFETY: reads a byte of a function of an object that is loaded.
            unsafe { (*function as *const u8).read_volatile() };
        }
        // Nothing is left to be flushed, but this is the last that an exit does.
        // SAFETY: fflush(3) of null flushes all open streams.
        unsafe { libc::fflush(std::ptr::null_mut()) };
    }
}

/// Whether the program runs in valgrind, which loads a library of its own ahead of all others. It knows nothing of pidfds,
/// and executes itself when the program executes itself.
pub(crate) fn is_in_valgrind() -> bool {
    extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr(3) calls us with a valid record, whose name is a string or null.
        let name = unsafe {
            let name = (*info).dlpi_name;
            if name.is_null() { c"" } else { CStr::from_ptr(name) }
        };
        c_int::from(name.to_bytes().windows(15).any(|part| part == b"/vgpreload_core"))
    }
    // SAFETY: `visit` has the signature that dl_iterate_phdr(3) asks for, and uses no data.
    unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::null_mut()) != 0 }
}

/// The kernel's own. Its file belongs to root in a process that has given up rights, so it is asked for directly first.
fn auxiliary_vector() -> io::Result<Vec<u8>> {
    /// Since Linux 6.4: include/uapi/linux/prctl.h.
    const PR_GET_AUXV: c_int = 0x4155_5856;
    let mut vector = vec![0; 1024];
    // SAFETY: the kernel writes at most as many bytes as it is told.
    let length = unsafe { libc::prctl(PR_GET_AUXV, vector.as_mut_ptr(), vector.len(), 0_usize, 0_usize) };
    match usize::try_from(length) {
        Ok(length) if length <= vector.len() => Ok(vector),
        _ => std::fs::read("/proc/self/auxv"),
    }
}

type Constructor = extern "C" fn(c_int, *const *const libc::c_char, *const *const libc::c_char);

/// The constructors of this image that the loader would have called after the one in `slot`.
pub(super) fn constructors_after(slot: *const Constructor) -> Option<Vec<Constructor>> {
    let (start, size) = image()?.init_array?;
    let own = (slot as usize).checked_sub(start).filter(|distance| *distance < size)? / size_of::<usize>();
    // SAFETY: DT_INIT_ARRAY and DT_INIT_ARRAYSZ describe a mapped array of words in our own image.
    let slots = unsafe { std::slice::from_raw_parts(start as *const usize, size / size_of::<usize>()) };
    let is_function = |word: &&usize| **word != 0 && **word != usize::MAX;
    // SAFETY: each word of the array other than 0 and -1 is, by the ELF specification, the address of a function that
    // the loader calls in this way.
    let function = |word: &usize| unsafe { std::mem::transmute::<usize, Constructor>(*word) };
    Some(slots[own + 1..].iter().filter(is_function).map(function).collect())
}
