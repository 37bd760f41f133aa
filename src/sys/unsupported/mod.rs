//! No Linux underneath. [`constructor::is_in_place`] says so, and is asked first at every start: nothing else below is
//! ever reached.

pub(crate) mod constructor {
    /// What a constructor would do with a marker, were there one.
    fn on_marker(marker: &[u8]) {
        if let Some(claim) = crate::zygote::boot::claim(marker) {
            crate::zygote::boot::main(claim)
        }
    }

    pub(crate) fn is_in_place() -> std::io::Result<()> {
        let _: fn(&[u8]) = on_marker;
        Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "needs Linux 5.4 or newer"))
    }
}

pub(crate) mod cgroup {
    use serde::{Deserialize, Serialize};

    use super::io::OwnedFd;
    use crate::limits::Limit;

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(crate) struct Cgroup;

    impl Cgroup {
        pub(crate) fn own() -> Result<Self, String> {
            Err("needs Linux".into())
        }

        pub(crate) fn make(&self) -> std::io::Result<Self> {
            super::none()
        }

        pub(crate) fn open(&self) -> std::io::Result<OwnedFd> {
            super::none()
        }

        pub(crate) fn join(&self) -> std::io::Result<()> {
            super::none()
        }

        pub(crate) fn limit(&self, _: Limit) -> bool {
            false
        }

        pub(crate) fn ran_out_of_memory(&self) -> bool {
            false
        }

        pub(crate) fn is_populated(&self) -> bool {
            false
        }

        pub(crate) fn send_to_others(&self, _: u32, _: &[i32]) {}

        pub(crate) fn kill(&self) {}

        pub(crate) fn remove(&self) -> bool {
            true
        }
    }
}

pub(crate) mod clone {
    use super::io::OwnedFd;
    use super::ledger::Ledger;

    pub(crate) struct Alone;

    impl Alone {
        pub(crate) fn prove() -> Result<Self, String> {
            Err("needs Linux".into())
        }

        pub(crate) fn clone_into(
            &self,
            _: &Ledger,
            _: &OwnedFd,
        ) -> std::io::Result<Option<(u32, Option<OwnedFd>)>> {
            super::none()
        }

        pub(crate) fn clone(&self, _: &Ledger) -> std::io::Result<Option<(u32, Option<OwnedFd>)>> {
            super::none()
        }
    }

    pub(crate) fn identity(_: &OwnedFd) -> Option<u64> {
        None
    }
}

pub(crate) mod environment {
    use std::ffi::OsString;

    pub(crate) fn set(_: Vec<u8>) {}

    #[derive(Default)]
    pub(crate) struct Installed;

    impl Installed {
        pub(crate) fn replace(&mut self, _: Vec<u8>) {}
    }

    pub(crate) fn block(_: &[(OsString, OsString)]) -> std::io::Result<Vec<u8>> {
        super::none()
    }
}

pub(crate) mod ledger {
    use std::time::Duration;

    use super::io::OwnedFd;

    pub(crate) const SLOTS: usize = 0;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(dead_code)] // Noted by the parent, read by nobody here.
    pub(crate) enum Care {
        Parked,
        LetBe,
        End(Option<Duration>),
    }

    pub(crate) struct Ledger;

    impl Ledger {
        pub(crate) fn new() -> std::io::Result<(Self, OwnedFd)> {
            super::none()
        }

        pub(crate) fn open(_: &OwnedFd) -> std::io::Result<Self> {
            super::none()
        }

        pub(crate) fn begin(&self, _: u64) {}

        pub(crate) fn note(&self, _: usize, _: Care) {}

        pub(crate) fn care(&self, _: usize) -> Care {
            Care::LetBe
        }

        pub(crate) fn child_of(&self, _: u64) -> Option<u32> {
            None
        }
    }
}

pub(crate) mod rights {
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(crate) struct Rights;

    pub(crate) fn of_this_thread() -> Rights {
        Rights
    }
}

pub(crate) mod group {
    use std::io::Result;

    use super::io::OwnedFd;

    pub(crate) fn lead() -> Result<()> {
        super::none()
    }

    pub(crate) fn outlives_leader(_: &OwnedFd) -> bool {
        false
    }

    pub(crate) fn send(_: &OwnedFd, _: u32, _: i32) -> Result<()> {
        super::none()
    }

    pub(crate) fn send_to_rest(_: &OwnedFd, _: i32) {}

    pub(crate) fn has_member(_: &OwnedFd) -> bool {
        false
    }

    pub(crate) fn seen_alive(_: &[(&OwnedFd, u32, Option<u32>)]) -> Vec<Option<u32>> {
        Vec::new()
    }
}

pub(crate) mod image {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::child::run::Host;
    use crate::wire::parcel::Bytes;

    pub(crate) struct Entry {
        pub(crate) name: fn() -> &'static str,
        pub(crate) run: fn(Bytes, &mut dyn Host),
    }

    impl Entry {
        pub(crate) const fn new(name: fn() -> &'static str, run: fn(Bytes, &mut dyn Host)) -> Self {
            Self { name, run }
        }

        pub(crate) fn offset(&'static self) -> Option<u64> {
            None
        }

        pub(crate) fn at(_: u64) -> Option<&'static Self> {
            None
        }

        pub(crate) fn rehearse(&self) {}
    }

    pub(crate) struct Function<A, R>(pub(crate) fn(A) -> R);

    impl<A, R> Serialize for Function<A, R> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            ().serialize(serializer)
        }
    }

    impl<'de, A, R> Deserialize<'de> for Function<A, R> {
        fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("no such function in this program"))
        }
    }

    pub(crate) fn anchor() -> u64 {
        0
    }

    pub(crate) struct Exit;

    impl Exit {
        pub(crate) fn find() -> Self {
            Self
        }

        pub(crate) fn rehearse(&self) {}
    }
}

fn none<T>() -> std::io::Result<T> {
    Err(std::io::ErrorKind::Unsupported.into())
}

pub(crate) mod io;
pub(crate) mod lifecycle;
pub(crate) mod memory;

pub(crate) mod kept {
    use super::io::OwnedFd;

    pub(crate) struct Kept<T>(Vec<(OwnedFd, T)>);

    impl<T> Default for Kept<T> {
        fn default() -> Self {
            Self(Vec::new())
        }
    }

    impl<T> Kept<T> {
        pub(crate) fn insert(&mut self, _: u64, _: OwnedFd, _: T) {}

        pub(crate) fn remove(&mut self, _: u64) {}

        pub(crate) fn iter(&self) -> impl Iterator<Item = &(OwnedFd, T)> {
            self.0.iter()
        }

        pub(crate) fn close(self) {}
    }
}

pub(crate) mod limit {
    pub(crate) const PACK: &str = "pack";

    pub(crate) fn no_room() -> String {
        String::new()
    }

    pub(crate) fn hint(_: &str, _: &std::io::Error) -> Option<String> {
        None
    }

    pub(crate) fn raise_files() {}

    pub(crate) fn set(_: crate::limits::Limit) -> std::io::Result<()> {
        super::none()
    }

    pub(crate) fn be_nicer(_: i32) -> std::io::Result<()> {
        super::none()
    }

    pub(crate) fn memory_kills() -> Option<u64> {
        None
    }

    pub(crate) fn memory_group(_: u32) -> Option<std::path::PathBuf> {
        None
    }

    pub(crate) fn memory_kills_of(_: &std::path::Path) -> Option<u64> {
        None
    }
}

pub(crate) mod pidfd {
    use std::io::Result;
    use std::process::ExitStatus;

    use super::io::{AsFd, OwnedFd};
    use super::none;

    pub(crate) fn open(_: u32) -> Result<OwnedFd> {
        none()
    }

    pub(crate) fn take_over(_: u32, _: Option<OwnedFd>) -> Result<OwnedFd> {
        none()
    }

    pub(crate) fn send_signal(_: impl AsFd, _: i32) -> Result<()> {
        none()
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Usage {
        pub(crate) cpu_time: std::time::Duration,
        pub(crate) peak_memory: u64,
    }

    pub(crate) struct Reaped {
        pub(crate) status: ExitStatus,
        pub(crate) usage: Option<Usage>,
    }

    pub(crate) fn reap(_: &OwnedFd) -> Option<Reaped> {
        None
    }

    pub(crate) fn core_dumped(_: ExitStatus) -> bool {
        false
    }

    pub(crate) fn reap_blocking(_: &OwnedFd) {}

    pub(crate) fn signal(_: ExitStatus) -> Option<i32> {
        None
    }

    pub(crate) fn is_lost(_: ExitStatus) -> bool {
        false
    }
}

pub(crate) mod signals {
    use std::time::Duration;

    pub(crate) const TERM: i32 = 15;
    pub(crate) const KILL: i32 = 9;
    pub(crate) const CONT: i32 = 18;
    pub(crate) const ABRT: i32 = 6;
    pub(crate) const SEGV: i32 = 11;
    pub(crate) const BUS: i32 = 7;
    pub(crate) const XCPU: i32 = 24;
    pub(crate) const XFSZ: i32 = 25;
    pub(crate) const SYS: i32 = 31;
    pub(crate) const GUARD: i32 = 61;

    pub(crate) fn is_own_doing(_: i32) -> bool {
        false
    }

    #[cfg(feature = "testing")]
    pub(crate) const STOP_SIGNAL: i32 = 19;

    #[derive(Clone, Copy)]
    pub(crate) struct Mask;

    pub(crate) fn block_all() -> Mask {
        Mask
    }

    pub(crate) fn block_handled() -> Mask {
        Mask
    }

    pub(crate) fn restore(_: Mask) {}

    pub(crate) fn catch_stop() -> std::io::Result<super::io::BorrowedFd<'static>> {
        super::none()
    }

    pub(crate) fn unblock_all() {}

    pub(crate) struct Forgetting(super::io::OwnedFd);

    impl Forgetting {
        pub(crate) fn new() -> Option<Self> {
            super::none().ok().map(Self)
        }

        pub(crate) fn forget(&self) {}
    }

    #[cfg(unix)]
    impl super::io::AsFd for Forgetting {
        fn as_fd(&self) -> super::io::BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    pub(crate) fn forget_what_came_before(_: u32) {}

    pub(crate) fn ignore_pipe() {}

    pub(crate) fn install_stop() {}

    pub(crate) fn stopped() -> bool {
        false
    }

    pub(crate) fn sleep_until_stopped(pause: Duration) {
        std::thread::sleep(pause);
    }

    pub(crate) fn install_guard(_: u32) {}

    pub(crate) fn prepare_guard() {}

    pub(crate) fn arm_guard(_: Option<Duration>, _: bool) {}

    pub(crate) fn dismiss_guard() {}

    pub(crate) fn orphaned(_: i32) -> bool {
        false
    }

    pub(crate) fn given_up() -> bool {
        false
    }

    pub(crate) fn install_overflow() {}
}

pub(crate) mod spawn {
    use std::ffi::OsString;
    use std::io::Error;
    use std::path::Path;

    use super::io::{BorrowedFd, OwnedFd};

    #[allow(dead_code)] // Filled in by the launcher, read by nobody here.
    pub(crate) struct Image<'a> {
        pub(crate) arguments: Vec<OsString>,
        pub(crate) environment: Vec<OsString>,
        pub(crate) directory: Option<&'a Path>,
        pub(crate) umask: Option<u32>,
        pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
        pub(crate) line: BorrowedFd<'a>,
        pub(crate) death_signal: Option<i32>,
    }

    pub(crate) fn spawn(_: Image<'_>) -> Result<(u32, OwnedFd), (&'static str, Error)> {
        super::none().map_err(|error| ("clone", error))
    }
}

pub(crate) mod variables {
    use std::ffi::OsString;
    use std::sync::Arc;

    pub(crate) type Variables = Arc<Vec<(OsString, OsString)>>;

    pub(crate) fn own() -> Variables {
        Arc::default()
    }
}
