//! Figure 12: what a unit finds about itself, in a parent that has much that is not for it.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use offspring::{Offspring, Subprocess};
use serde::{Deserialize, Serialize};

use crate::figure::Job;
use crate::processes::{Belongings, entries};

const THREADS: u64 = 4;

/// What a unit has around it.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct View {
    descriptors: Vec<String>,
    threads: usize,
    /// Blocked, ignored, caught; as bits.
    signals: [u64; 3],
    random: u64,
    environment: BTreeMap<String, String>,
    directory: PathBuf,
    umask: u32,
    /// A static of the program, which its parent has changed.
    touched: u64,
}

static TOUCHED: AtomicU64 = AtomicU64::new(0);

#[derive(Serialize, Deserialize)]
struct Look;

impl Subprocess for Look {
    type Output = View;

    fn run(self) -> View {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
        let bits = |name| u64::from_str_radix(field(name), 16).unwrap_or(u64::MAX);
        // SAFETY: reads the mask by changing it, in a process of one thread.
        let umask = unsafe { libc::umask(0) };
        View {
            descriptors: entries(std::process::id(), "fd").into_iter().collect(),
            threads: entries(std::process::id(), "task").len(),
            signals: [bits("SigBlk:"), bits("SigIgn:"), bits("SigCgt:")],
            random: RandomState::new().hash_one(1),
            environment: std::env::vars().collect(),
            directory: std::env::current_dir().unwrap_or_default(),
            umask,
            touched: TOUCHED.load(Relaxed),
        }
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// What is not as in a new program with these surroundings.
fn wrong(view: &View, expected: &View) -> Option<String> {
    // Of stack overflows, and of the end of the parent.
    let own = bit(libc::SIGSEGV) | bit(libc::SIGBUS) | !(bit(libc::SIGRTMIN()) - 1);
    let [blocked, ignored, caught] = view.signals;
    let is_right = [
        (view.descriptors == expected.descriptors, "descriptors"),
        (view.threads == 1, "threads"),
        (blocked == 0, "blocked signals"),
        (ignored == bit(libc::SIGPIPE), "ignored signals"),
        (caught & !own == 0, "caught signals"),
        (view.environment == expected.environment, "environment"),
        (view.directory == expected.directory, "directory"),
        (view.umask == expected.umask, "umask"),
        (view.touched == 0, "statics"),
    ];
    let (_, what) = is_right.iter().find(|(is_right, _)| !is_right)?;
    Some(format!("{what}: {view:?}"))
}

/// What is not for units: descriptors without CLOEXEC, an ignored TERM, a static that was changed, all signals blocked. Its
/// directory and umask, which are.
fn clutter() {
    TOUCHED.store(1, Relaxed);
    // SAFETY: descriptors that stay open, a disposition, masks.
    unsafe {
        for _ in 0..20 {
            libc::dup(2);
        }
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::umask(0o027);
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
    let _ = std::env::set_current_dir("/usr");
}

pub(crate) fn all(job: &Job) -> String {
    clutter();
    let belongings = Belongings::now();
    let own: BTreeMap<String, String> = std::env::vars().collect();
    let (next, random) = (AtomicU64::new(0), Mutex::new(HashSet::new()));
    let one = |n: u64| {
        let mut expected = View {
            descriptors: ["0", "1", "2", "3"].map(str::to_owned).to_vec(),
            threads: 1,
            signals: [0; 3],
            random: 0,
            environment: own.clone(),
            directory: "/usr".into(),
            umask: 0o027,
            touched: 0,
        };
        let mut builder = Offspring::builder(Look);
        // Every second has surroundings of its own.
        if n % 2 == 1 {
            expected.environment.remove("PATH");
            expected.environment.insert("UNIT".into(), n.to_string());
            (expected.directory, expected.umask) = ("/etc".into(), n as u32 % 0o777);
            builder = builder.env_remove("PATH").env("UNIT", n.to_string());
            builder = builder.current_dir("/etc").umask(expected.umask);
        }
        match builder.spawn().and_then(Offspring::wait) {
            Ok(view) => {
                if let Some(what) = wrong(&view, &expected) {
                    job.tally.fail(format!("unit {n}: {what}"));
                }
                let is_new = random.lock().unwrap().insert(view.random);
                job.tally.check(is_new, || format!("unit {n} has another's randomness"));
            }
            Err(error) => job.tally.fail(error),
        }
        job.tally.done();
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                std::iter::from_fn(|| Some(next.fetch_add(1, Relaxed)).filter(|n| *n < job.count))
                    .for_each(one);
            });
        }
    });
    if let Some(left) = belongings.left_over() {
        job.tally.fail(left);
    }
    format!("{} wrong; {} different hashes", job.tally.failed(), random.into_inner().unwrap().len())
}
