//! A start in surroundings that are not as usual: the program's file, its libraries, /proc, filters of system calls.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use offspring::{ErrorKind, Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

use crate::behaviour;
use crate::harness::marks::{self, Mark};
use crate::harness::told::Told;
use crate::harness::{self, can, double, eventually, is_again, limit, mount, own_mounts, zygote};

/// Every launcher, and the library's own choice.
const EVERY: [&str; 4] = ["auto", "zygote", "spare", "exec"];

fn twice(n: u32) {
    assert_eq!(double(n).unwrap(), 2 * n);
}

fn is_launcher(name: &str) -> bool {
    std::env::var("OFFSPRING_LAUNCHER").unwrap() == name
}

/// A copy of this program, told to run the same test.
fn copy(file: &Path) -> Command {
    std::fs::copy(std::env::current_exe().unwrap(), file).unwrap();
    let again = harness::myself();
    let mut command = Command::new(file);
    command.args(again.get_args()).env("AGAIN", "1");
    command
}

#[derive(Serialize, Deserialize)]
struct Reads;

impl Subprocess for Reads {
    type Output = usize;

    fn run(self) -> usize {
        std::env::var("BIG").unwrap().len()
    }
}

behaviour! { through EVERY;
    fn case_5_a_program_that_may_not_be_executed_any_more() {
        if is_again() {
            let directory = std::env::current_exe().unwrap().parent().unwrap().to_owned();
            assert!(mount(c"none", &directory, libc::MS_REMOUNT | libc::MS_NOEXEC));
            for _ in 0..2 {
                let error = double(1).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Start);
                let text = error.to_string();
                assert!(text.contains("exec of /proc/self/exe") && text.contains("os error 13"), "{text}");
                assert!(std::error::Error::source(&error).is_some());
            }
            assert!(mount(c"none", &directory, libc::MS_REMOUNT));
            (0..5).for_each(twice);
            return;
        }
        let unit = spawn(harness::place("noexec"), |directory| {
            if !own_mounts() {
                return;
            }
            std::fs::create_dir(&directory).unwrap();
            if can("a file system in memory", mount(c"tmpfs", &directory, 0)) {
                harness::good(copy(&directory.join("it")));
            }
        });
        unit.unwrap().wait().unwrap();
        let _ = std::fs::remove_dir(harness::place("noexec"));
    }

    fn case_5_every_refusal_to_execute_is_told() {
        for errno in [libc::ENOENT, libc::EACCES, libc::ETXTBSY, libc::ELIBBAD, libc::ENOMEM] {
            let unit = spawn(errno, |errno: i32| {
                if can("a filter", harness::filter(libc::SYS_execve, errno, true)) {
                    let error = double(1).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Start);
                    let text = error.to_string();
                    let number = format!("os error {errno}");
                    assert!(text.contains("exec of /proc/self/exe") && text.contains(&number), "{text}");
                }
            });
            unit.unwrap().wait().unwrap();
        }
    }

    fn case_5_a_start_that_cannot_be_names_the_step_and_the_cause() {
        let unit = Offspring::builder(Reads).current_dir("/no/such/place").spawn();
        let error = unit.and_then(Offspring::wait).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start);
        assert!(error.to_string().contains("current directory") && error.to_string().contains("os error 2"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
        let error = Offspring::builder(Reads).env("A", "nul\0nul").spawn().and_then(Offspring::wait).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start);
        assert!(error.to_string().contains("environment"), "{error}");
        assert!(error.death().is_none());
        twice(1);
    }

    fn case_5_an_environment_too_large_for_execve() {
        // It is no hindrance to a clone; also not to the very first, which would be executed.
        for _ in 0..2 {
            let unit = Offspring::builder(Reads).env("BIG", "x".repeat(200_000)).spawn().and_then(Offspring::wait);
            if is_launcher("exec") {
                let error = unit.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Start);
                assert!(error.to_string().contains("os error 7"), "{error}");
            } else {
                assert_eq!(unit.unwrap(), 200_000);
            }
        }
        twice(1);
    }

    fn case_18_a_deleted_executable_is_still_the_program() {
        if is_again() {
            std::fs::remove_file(std::env::current_exe().unwrap()).unwrap();
            let parent = spawn((), |()| std::os::unix::process::parent_id()).unwrap().wait().unwrap();
            assert_eq!(parent, std::process::id());
            (0..5).for_each(twice);
            return;
        }
        harness::good(copy(&harness::place("deleted")));
        assert!(!harness::place("deleted").exists());
    }

    fn case_18_an_executable_that_was_replaced_is_not_what_runs() {
        let (other, file) = (harness::place("other"), harness::place("replaced"));
        if is_again() {
            for round in 0..2 {
                std::fs::copy("/bin/false", &other).unwrap();
                std::fs::rename(&other, &file).unwrap();
                (0..5).for_each(twice);
                // By what is there before the first start, and what comes between two.
                assert_eq!(Command::new(&file).status().unwrap().code(), Some(1), "{round}");
                offspring::shutdown();
            }
            return;
        }
        harness::good(copy(&file));
        std::fs::remove_file(&file).unwrap();
    }

    fn case_19_a_library_that_was_exchanged_before_the_first_start() {
        let source = |version| format!("int version = {version};");
        let symbol = |_: ()| {
            // SAFETY: the library that was loaded ahead has such a variable.
            unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"version".as_ptr()).cast::<i32>().read() }
        };
        if is_again() {
            let own = std::env::var_os("LD_PRELOAD").unwrap();
            let newer = harness::library("newer", &source(2));
            std::fs::rename(&newer, own).unwrap();
            harness::remove(&newer);
            // As with any program that is executed: what is there now.
            assert_eq!(symbol(()), 1);
            (0..3).for_each(|_| assert_eq!(spawn((), symbol).and_then(Offspring::wait).unwrap(), 2));
            return;
        }
        let library = harness::library("older", &source(1));
        let mut command = harness::myself();
        command.env("LD_PRELOAD", &library);
        harness::good(command);
        harness::remove(&library);
    }

    fn case_19_a_library_that_cannot_be_loaded_any_more_is_an_error() {
        const NAME: &str = "libgcc_s.so.1";
        let directory = harness::place("libraries");
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
        let find = |maps: String| maps.split_whitespace().find(|word| word.ends_with(NAME)).map(str::to_owned);
        if is_again() {
            let (file, kept) = (directory.join(NAME), directory.join("kept"));
            std::fs::rename(&file, &kept).unwrap();
            std::fs::write(&file, "no library").unwrap();
            for _ in 0..2 {
                let error = double(1).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Start);
                assert!(error.to_string().contains("exit status: 127"), "{error}");
            }
            std::fs::rename(&kept, &file).unwrap();
            (0..5).for_each(twice);
            return;
        }
        let found = find(maps());
        if can("a library that the program needs", found.is_some()) {
            std::fs::create_dir(&directory).unwrap();
            std::fs::copy(found.unwrap(), directory.join(NAME)).unwrap();
            let mut command = harness::myself();
            command.env("LD_LIBRARY_PATH", &directory);
            harness::good(command);
            std::fs::remove_dir_all(directory).unwrap();
        }
    }

    fn case_20_no_proc_at_the_first_start() {
        let unit = spawn((), |()| {
            if !own_mounts() {
                return;
            }
            // SAFETY: a string that ends with NUL.
            assert_eq!(unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) }, 0);
            for _ in 0..2 {
                let error = double(1).unwrap_err();
                assert!([ErrorKind::Start, ErrorKind::Unsupported].contains(&error.kind()), "{error}");
                assert!(error.to_string().contains("/proc/self/"), "{error}");
            }
            assert!(mount(c"proc", Path::new("/proc"), 0));
            (0..5).for_each(twice);
        });
        unit.unwrap().wait().unwrap();
    }

    fn case_20_a_root_without_the_program_at_the_first_start() {
        let unit = spawn(harness::place("root"), |root| {
            std::fs::create_dir(&root).unwrap();
            let path = CString::new(root.as_os_str().as_bytes()).unwrap();
            // SAFETY: changes this process's root.
            if can("another root", unsafe { libc::chroot(path.as_ptr()) } == 0) {
                std::env::set_current_dir("/").unwrap();
                let error = double(1).unwrap_err();
                assert!([ErrorKind::Start, ErrorKind::Unsupported].contains(&error.kind()), "{error}");
                assert!(error.to_string().contains("/proc/self/"), "{error}");
            }
        });
        unit.unwrap().wait().unwrap();
        std::fs::remove_dir(harness::place("root")).unwrap();
    }

    fn case_20_a_proc_that_hides_the_processes_of_others() {
        let unit = spawn((), |()| {
            if !own_mounts() {
                return;
            }
            // SAFETY: strings that end with NUL.
            let hidden = unsafe {
                let proc = c"proc".as_ptr();
                libc::mount(proc, c"/proc".as_ptr(), proc, 0, c"hidepid=2".as_ptr().cast()) == 0
            };
            if can("a /proc that hides", hidden) && harness::become_user(65528) {
                (0..10).for_each(twice);
            }
        });
        unit.unwrap().wait().unwrap();
    }
}

behaviour! { through ["zygote", "spare"];
    fn case_20_once_there_is_a_zygote_nobody_looks_into_proc() {
        let unit = spawn(harness::place("empty"), |root| {
            twice(1);
            if !own_mounts() {
                return;
            }
            std::fs::create_dir(&root).unwrap();
            let path = CString::new(root.as_os_str().as_bytes()).unwrap();
            // SAFETY: a string that ends with NUL.
            assert_eq!(unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) }, 0);
            (0..20).for_each(twice);
            // SAFETY: changes this process's root.
            assert_eq!(unsafe { libc::chroot(path.as_ptr()) }, 0);
            (0..20).for_each(twice);
        });
        unit.unwrap().wait().unwrap();
        let _ = std::fs::remove_dir(harness::place("empty"));
    }
}

behaviour! { through ["zygote"];
    fn case_22_a_filter_that_has_not_heard_of_clone3() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let unit = spawn(errno, |errno: i32| {
                // A unit is the parent here. glibc starts no thread behind such a filter, so ours are there before it.
                twice(1);
                if !can("a filter", harness::filter(libc::SYS_clone3, errno, true)) {
                    return;
                }
                let first = zygote().unwrap();
                harness::kill(first, libc::SIGKILL);
                // Until it is seen to be dead, what is asked of it is refused, for it has no such filter.
                eventually("it does not die", || double(1).is_ok());
                (0..5).for_each(twice);
                assert_ne!(zygote(), Some(first));
                let error = spawn((), |()| -> () { std::process::exit(3) }).unwrap().wait().unwrap_err();
                assert_eq!(error.death().unwrap().status().code(), Some(3));
            });
            unit.unwrap().wait().unwrap();
        }
    }

    fn case_22_a_filter_that_kills_who_would_be_scheduled_otherwise_harms_no_start() {
        for call in [libc::SYS_sched_setscheduler, libc::SYS_sched_getscheduler] {
            let unit = spawn(call, |call| {
                if can("a filter", harness::forbid(call)) {
                    (0..20).for_each(twice);
                }
            });
            unit.unwrap().wait().unwrap();
        }
    }

    fn case_22_a_filter_that_kills_who_calls_clone3_is_an_error_in_time() {
        let unit = spawn((), |()| {
            twice(1);
            let first = zygote().unwrap();
            if !can("a filter", harness::forbid(libc::SYS_clone3)) {
                return;
            }
            harness::kill(first, libc::SIGKILL);
            eventually("it does not die", || !harness::is_alive(first));
            let unit = Offspring::builder(Reads).start_timeout(std::time::Duration::from_millis(300));
            assert_eq!(unit.spawn().unwrap_err().kind(), ErrorKind::Start);
        });
        unit.unwrap().wait().unwrap();
    }
}

behaviour! { through ["auto"];
    fn case_22_where_a_filter_kills_who_calls_clone3_the_program_is_executed_for_each_unit() {
        let unit = spawn((), |()| {
            eventually("there is no zygote", || {
                twice(1);
                zygote().is_some()
            });
            let first = zygote().unwrap();
            if !can("a filter", harness::forbid(libc::SYS_clone3)) {
                return;
            }
            let told = Told::listen();
            harness::kill(first, libc::SIGKILL);
            eventually("it does not die", || !harness::is_alive(first));
            (0..5).for_each(twice);
            eventually("there is one again", || harness::zygotes().is_empty());
            // The last one's end may be heard later than it is seen here.
            eventually("nobody is told", || {
                twice(1);
                !told.warnings().is_empty()
            });
            let warnings = told.warnings();
            assert!(matches!(&*warnings, [it] if it.contains("ended by a filter")), "{warnings:?}");
            let ends = told.events().iter().filter(|said| said.text.contains("zygote ended")).count();
            assert!(ends <= 4, "{ends}");
        });
        unit.unwrap().wait().unwrap();
    }

    fn case_22_the_old_call_makes_a_child_and_there_is_no_descriptor_for_it() {
        let file = marks::file();
        if !can("a filter", harness::filter(libc::SYS_clone3, libc::ENOSYS, true)) {
            return;
        }
        eventually("there is no zygote", || {
            twice(1);
            zygote().is_some()
        });
        eventually("the spares stay", || harness::spares().is_empty());
        limit(zygote().unwrap(), libc::RLIMIT_NOFILE, 6);
        let unit = Offspring::new(Mark { file: file.clone(), number: 1 });
        assert_eq!(unit.and_then(Offspring::wait).unwrap(), 1);
        assert_eq!(marks::runs(&file), std::collections::BTreeMap::from([(1, 1)]));
    }
}
