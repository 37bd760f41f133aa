//! Figure 11: starts that lack what they need, and the one after them, which does not.

use std::time::Duration;

use offspring::{Error, ErrorKind, Offspring, Stdio, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::copies;
use crate::figure::{Job, Measure, Tally};
use crate::processes::{Belongings, eventually, tag_below, zygotes};

/// What is lacking, as a copy is told it; the launcher that is forced, for what else would be gone round; and how.
const WANTS: [(&str, &str, Measure); 6] = [
    ("EMFILE", "auto", descriptors),
    ("EMFILE in the zygote", "zygote", zygotes_descriptors),
    ("ENFILE", "auto", files),
    ("EAGAIN", "auto", processes),
    ("ENOMEM", "auto", memory),
    ("FSIZE", "auto", sizes),
];

/// A user whom nobody else is: limits of processes are counted by user, and root has none.
const NOBODY: u32 = 65_531;

pub(crate) fn role(wanted: &str) -> Measure {
    let found = WANTS.iter().find(|(name, ..)| *name == wanted);
    found.expect("there is such a want").2
}

pub(crate) fn all(job: &Job) -> String {
    let mut said = Vec::new();
    for (want, launcher, _) in WANTS {
        let tag = tag_below(want.replace(' ', "-"));
        let mut command = copies::copy(&["starved", want, &job.count.to_string()], &tag);
        command.env("OFFSPRING_LAUNCHER", launcher);
        let report = copies::run(command, &tag, Duration::from_secs(150), &mut |_| job.tally.done());
        said.push(format!("{want} {}", job.tally.adopt(want, report)));
    }
    format!("{} wrong; refused: {}", job.tally.failed(), said.join(", "))
}

/// Takes so much memory, and gives back what it was given, a little changed if it took any.
#[derive(Serialize, Deserialize)]
struct Hungry {
    take: usize,
    payload: serde_bytes::ByteBuf,
    /// The largest file that it may write.
    files: Option<u64>,
}

impl Subprocess for Hungry {
    type Output = serde_bytes::ByteBuf;

    fn run(self) -> Self::Output {
        if let Some(most) = self.files {
            limit(0, libc::RLIMIT_FSIZE, most);
        }
        let taken = std::hint::black_box(vec![0_u8; self.take]);
        let mut payload = self.payload;
        payload[0] += u8::from(!taken.is_empty());
        payload
    }
}

fn hungry(take: usize, size: usize, files: Option<u64>) -> Result<(), Error> {
    let unit = Hungry { take, payload: vec![1; size].into(), files };
    let back = Offspring::builder(unit).stderr(Stdio::null()).spawn()?.wait()?;
    assert!(back.len() == size && back[0] == 1 + u8::from(take > 0), "it came back as another");
    Ok(())
}

/// Changes the soft limit of a process of ours (0: of this one); gives what it was.
fn limit(pid: u32, what: libc::__rlimit_resource_t, most: u64) -> u64 {
    // SAFETY: valid records.
    unsafe {
        let mut old: libc::rlimit = std::mem::zeroed();
        libc::prlimit(pid as i32, what, std::ptr::null(), &raw mut old);
        let new = libc::rlimit { rlim_cur: most.min(old.rlim_max), ..old };
        libc::prlimit(pid as i32, what, &raw const new, std::ptr::null_mut());
        old.rlim_cur
    }
}

/// Makes the calling thread, and what it starts, get an error from these system calls.
fn refuse(calls: &[libc::c_long], errno: i32) -> bool {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut steps = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, number)];
    for call in calls {
        steps.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *call as u32));
        steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
    }
    steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the program; both are this thread's alone.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) == 0
    }
}

/// In a thread of its own, which is gone with its filter afterwards.
fn refused<R: Send>(calls: &[libc::c_long], errno: i32, what: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            assert!(refuse(calls, errno), "no filter can be had");
            what()
        });
        thread.join().unwrap()
    })
}

/// So many times: `starved` lacks something, and lifts that; what it gives is right, or an error that says what was lacking.
fn rounds(job: &Job, words: &[&str], mut starved: impl FnMut(u64) -> Result<(), Error>) -> String {
    let belongings = Belongings::now();
    works(&job.tally, "before");
    job.tally.check(eventually(|| zygotes().len() == 1), || "there is no zygote".into());
    let mut refused = 0;
    for n in 0..job.count {
        if let Err(error) = starved(n) {
            refused += 1;
            let text = error.to_string();
            let is_typed = [ErrorKind::Start, ErrorKind::Died].contains(&error.kind());
            job.tally.check(is_typed && words.iter().any(|word| text.contains(word)), || {
                format!("round {n}: {text}")
            });
        }
        works(&job.tally, "after it was lifted");
        job.tally.done();
    }
    if let Some(left) = belongings.left_over() {
        job.tally.fail(left);
    }
    format!("{refused} of {}", job.count)
}

fn works(tally: &Tally, when: &str) {
    let answer = spawn(1, |n: u32| n + 1).and_then(Offspring::wait);
    tally.check(matches!(answer, Ok(2)), || format!("{when}: {answer:?}"));
}

/// None left, or one, or two: each step of a start is the first to lack one.
fn descriptors(job: &Job) -> String {
    rounds(job, &["os error 24", "open files"], |n| {
        let old = limit(0, libc::RLIMIT_NOFILE, 64);
        let mut all: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).take(64).collect();
        all.truncate(all.len().saturating_sub(n as usize % 5));
        let result = hungry(0, 1, None);
        drop(all);
        limit(0, libc::RLIMIT_NOFILE, old);
        result
    })
}

/// Its streams, its line, the pidfd of its parent; then a unit's line, then the child's pidfd.
fn zygotes_descriptors(job: &Job) -> String {
    rounds(job, &["os error 24"], |n| {
        let Some(&zygote) = zygotes().first() else { return Ok(()) };
        let old = limit(zygote, libc::RLIMIT_NOFILE, 4 + n % 3);
        let result = hungry(0, 1, None);
        limit(zygote, libc::RLIMIT_NOFILE, old);
        result
    })
}

/// The system's table is full, as far as this thread can tell: another line cannot be made, or no memory file.
fn files(job: &Job) -> String {
    rounds(job, &["os error 23"], |n| match n % 2 {
        0 => refused(&[libc::SYS_socketpair], libc::ENFILE, || hungry(0, 1, None)),
        _ => refused(&[libc::SYS_memfd_create], libc::ENFILE, || hungry(0, 1 << 20, None)),
    })
}

/// The user may have no more processes. There may be some spares still.
fn processes(job: &Job) -> String {
    // SAFETY: this process's user and group; nothing has been started yet.
    unsafe {
        if libc::geteuid() == 0 {
            job.tally.check(
                libc::setresgid(NOBODY, NOBODY, NOBODY) == 0 && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0,
                || "no other user can be had".into(),
            );
        }
    }
    rounds(job, &["os error 11"], |_| {
        let who: Vec<u32> = zygotes().into_iter().chain([0]).collect();
        let old = limit(0, libc::RLIMIT_NPROC, 1);
        for pid in &who {
            limit(*pid, libc::RLIMIT_NPROC, 1);
        }
        let result = (0..60).try_for_each(|_| hungry(0, 1, None));
        for pid in who {
            limit(pid, libc::RLIMIT_NPROC, old);
        }
        result
    })
}

/// The parent cannot make another process; or whoever is made by the zygote has no room.
fn memory(job: &Job) -> String {
    rounds(job, &["os error 12", "SIGABRT", "zygote"], |n| {
        if n.is_multiple_of(2) {
            let calls = [libc::SYS_clone3, libc::SYS_clone, libc::SYS_vfork, libc::SYS_fork];
            return refused(&calls, libc::ENOMEM, || hungry(0, 1, None));
        }
        for zygote in zygotes() {
            limit(zygote, libc::RLIMIT_AS, 1 << 20);
        }
        let result = (0..60).try_for_each(|_| hungry(64 << 20, 1, None));
        // Spares were made that have no room either.
        offspring::shutdown();
        works(&job.tally, "after a shutdown");
        job.tally.check(eventually(|| zygotes().len() == 1), || "there is no other zygote".into());
        result
    })
}

/// Who may write no large file is not kept from large values, for those go by memory files. Here the parent, there the child.
fn sizes(job: &Job) -> String {
    rounds(job, &["os error 27"], |n| {
        if n.is_multiple_of(2) {
            return hungry(0, 3 << 20, Some(1 << 20));
        }
        let old = limit(0, libc::RLIMIT_FSIZE, 1 << 20);
        let result = hungry(0, 3 << 20, None);
        limit(0, libc::RLIMIT_FSIZE, old);
        result
    })
}
