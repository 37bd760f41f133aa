//! What a unit sees of the process around it, and what it does not.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;

use offspring::{ErrorKind, Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

/// A look at its own process.
#[derive(Serialize, Deserialize)]
struct Look;

#[derive(Serialize, Deserialize, Debug)]
struct View {
    directory: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    descriptors: Vec<String>,
    status: BTreeMap<String, String>,
    name: String,
    parent: u32,
    umask: u32,
    random: u64,
}

impl Subprocess for Look {
    type Output = View;

    fn run(self) -> View {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let field =
            |line: &str| line.split_once(":\t").map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
        let list = std::fs::read_dir("/proc/self/fd").unwrap();
        let mut descriptors: Vec<String> =
            list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        descriptors.retain(|name| std::fs::read_link(format!("/proc/self/fd/{name}")).is_ok());
        descriptors.sort();
        View {
            directory: std::env::current_dir().unwrap().display().to_string(),
            arguments: std::env::args().collect(),
            environment: std::env::vars().collect(),
            descriptors,
            status: status.lines().filter_map(field).collect(),
            name: std::fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned(),
            parent: std::os::unix::process::parent_id(),
            // SAFETY: umask(2) has no conditions.
            umask: unsafe { libc::umask(0) },
            random: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 1),
        }
    }
}

fn look() -> View {
    Offspring::new(Look).unwrap().wait().unwrap()
}

behaviour! {
    fn an_environment_that_is_too_large_is_an_error_that_says_so() {
        let error = Offspring::builder(Look).env("LARGE", "x".repeat(17 << 20)).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start);
        let said = error.to_string();
        // execve(2) says E2BIG.
        assert!(said.contains("environment: it takes") || said.contains("os error 7"), "{said}");
        assert_eq!(look().environment.get("LARGE"), None);
    }

    fn no_marker_is_left() {
        let view = look();
        assert!(!view.environment.keys().any(|name| name.starts_with("OFFSPRING_CHILD")), "{view:?}");
    }



    fn it_is_scheduled_as_its_parent_is() {
        // SAFETY: they have no conditions.
        let policy = |()| unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
        let ours = policy(());
        for _ in 0..20 {
            assert_eq!(spawn((), policy).unwrap().wait().unwrap(), ours);
        }
    }

    fn random_seeds_are_its_own() {
        assert_ne!(look().random, look().random);
    }

    fn every_way_to_change_the_environment_is_seen_by_the_next_unit() {
        // The zygote takes over what has been asked for twice.
        let differs = |what: &str| {
            for n in 0..4 {
                assert_eq!(look().environment, std::env::vars().collect(), "{what}, {n}");
            }
        };
        // SAFETY: no other thread touches the environment here.
        let set = |name: &str, value: &str| unsafe { std::env::set_var(name, value) };
        // SAFETY: as above.
        let remove = |name: &str| unsafe { std::env::remove_var(name) };
        // SAFETY: as above.
        let clear = || unsafe { libc::clearenv() };
        differs("at first");
        set("SHORT", "1");
        differs("one more");
        set("SHORT", "2");
        differs("one of the same length");
        set("SHORT", "1");
        differs("as it was before");
        let entry = c"IN_PLACE=one".to_owned().into_raw();
        // SAFETY: as above; the string stays where it is.
        unsafe { libc::putenv(entry) };
        differs("one that the program keeps");
        // SAFETY: within the string, and nobody reads it now.
        unsafe { entry.add("IN_PLACE=".len()).copy_from(c"two".as_ptr(), 3) };
        assert_eq!(std::env::var("IN_PLACE").unwrap(), "two");
        differs("changed in place");
        // SAFETY: as above.
        unsafe { entry.add("IN_PLACE=o".len()).write(0) };
        differs("shorter in place");
        for n in 0..2000 {
            set(&format!("MANY_{n}"), &"x".repeat(n % 600));
        }
        differs("many, with room between them");
        set("MANY_1999", "y");
        differs("the last of many");
        for n in 0..2000 {
            remove(&format!("MANY_{n}"));
        }
        differs("none of them any more");
        let own: Vec<_> = std::env::vars().collect();
        let maker = harness::zygote();
        clear();
        let empty = look();
        (0..3).for_each(|_| assert_eq!(look().environment, BTreeMap::new()));
        assert_eq!(harness::zygote(), maker, "an empty one is taken over as any other");
        for (name, value) in own {
            set(&name, &value);
        }
        assert_eq!(empty.environment, BTreeMap::new());
        differs("back again");
    }

    fn what_the_builder_sets() {
        let unit = Offspring::builder(Look)
            .name("path::to::worker")
            .env("A", "1")
            .env_remove("PATH")
            .current_dir("/tmp")
            .umask(0o27)
            .spawn()
            .unwrap();
        assert_eq!(unit.process().unwrap().name(), "path::to::worker");
        let view = unit.wait().unwrap();
        assert_eq!(view.environment["A"], "1");
        assert!(!view.environment.contains_key("PATH"));
        assert_eq!((view.directory.as_str(), view.umask, view.name.as_str()), ("/tmp", 0o27, "worker"));
        let view = Offspring::builder(Look).env("B", "2").env_clear().env("A", "1").spawn().unwrap().wait().unwrap();
        assert_eq!(view.environment.into_iter().collect::<Vec<_>>(), [("A".to_owned(), "1".to_owned())]);
    }


    fn threads_of_the_unit_work() {
        let unit = spawn((), |()| {
            let threads: Vec<_> = (0..4_u32).map(|n| std::thread::spawn(move || n)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
        });
        assert_eq!(unit.unwrap().wait().unwrap(), 6);
    }
}
