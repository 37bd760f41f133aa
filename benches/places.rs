//! On which processors this process and those below it run.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// Where who asks and who answers are.
#[derive(Clone, Copy)]
pub enum Place {
    /// Where the kernel puts them.
    Anywhere,
    /// Each on a processor of its own.
    Apart,
    /// Both on one.
    Together,
}

/// The processors that this process had in the beginning.
pub struct Processors(CpuSet);

impl Processors {
    pub fn new() -> Self {
        Self(sched_getaffinity(None).unwrap())
    }

    /// Puts the calling thread and all processes below this one there; false if there are too few processors.
    pub fn put(&self, place: Place) -> bool {
        let mut list = (0..CpuSet::MAX_CPU).filter(|cpu| self.0.is_set(*cpu));
        let (Some(first), second) = (list.next(), list.next()) else { return false };
        let only = |cpu| {
            let mut set = CpuSet::new();
            set.set(cpu);
            set
        };
        let sets = match (place, second) {
            (Place::Anywhere, _) => [self.0, self.0],
            (Place::Together, _) => [only(first), only(first)],
            (Place::Apart, Some(second)) => [only(first), only(second)],
            (Place::Apart, None) => return false,
        };
        sched_setaffinity(None, &sets[0]).unwrap();
        put_below(std::process::id(), &sets, 1);
        true
    }
}

/// The next generation is elsewhere: a process that answers is one below the one that asks.
fn put_below(pid: u32, sets: &[CpuSet; 2], depth: usize) {
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()) {
            for task in std::fs::read_dir(format!("/proc/{child}/task")).into_iter().flatten().flatten() {
                let thread = task.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
                // It may be gone.
                let _ = sched_setaffinity(thread, &sets[depth % 2]);
            }
            put_below(child, sets, depth + 1);
        }
    }
}
