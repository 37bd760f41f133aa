//! What is told to whoever listens, with the feature `tracing`. Without it, nothing is.
//!
//! Listeners are the program's own code: they may panic, and they may use this library. So they are called with nothing of ours
//! locked: what happens to a unit under its locks is noted, and told when they are free again.

use std::process::ExitStatus;
use std::time::Duration;

use crate::death::EndedBy;
use crate::parent::shutdown::Why;

/// What has happened to a unit.
#[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "told to nobody"))]
pub(crate) enum News {
    /// It has been made, or was there and has been told what to run.
    Started {
        pid: u32,
    },
    Ready,
    /// Its last word is home.
    Result {
        what: &'static str,
    },
    /// TERM was sent.
    Asked {
        why: Why,
    },
    /// KILL was sent; whether TERM had been before.
    Killed {
        why: Why,
        after_term: bool,
    },
    Ended {
        status: ExitStatus,
        ran: Duration,
        cpu_time: Option<Duration>,
        without_result: Option<EndedBy>,
    },
}

#[cfg(feature = "tracing")]
mod told {
    use std::fmt::Display;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::process::ExitStatus;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use super::News;

    fn tell(event: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(event)) {
            // Its destructor is foreign code as well.
            std::mem::forget(payload);
        }
    }

    /// A unit's span, from its start to its end, and what is to be told in it.
    pub(crate) struct Log(Mutex<Inner>);

    struct Inner {
        span: Option<Arc<tracing::Span>>,
        news: Vec<News>,
    }

    impl Log {
        pub(crate) fn new(name: &str, type_name: &str) -> Self {
            let mut span = None;
            tell(|| {
                let new = tracing::debug_span!(
                    target: "offspring", "unit", name, r#type = type_name, pid = tracing::field::Empty
                );
                span = Some(Arc::new(new));
            });
            Self(Mutex::new(Inner { span, news: Vec::new() }))
        }

        /// Notes what has happened. Calls nobody.
        pub(crate) fn note(&self, news: News) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).news.push(news);
        }

        /// Tells what was noted. With nothing of ours locked.
        pub(crate) fn tell(&self) {
            let (news, span) = {
                let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let news = std::mem::take(&mut inner.news);
                let is_over = news.iter().any(|news| matches!(news, News::Ended { .. }));
                (news, if is_over { inner.span.take() } else { inner.span.clone() })
            };
            tell(|| {
                if let Some(span) = span {
                    news.into_iter().for_each(|news| event(&span, news));
                }
            });
        }
    }

    impl Drop for Log {
        fn drop(&mut self) {
            let span = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).span.take();
            // The end of a span is told as well.
            tell(|| drop(span));
        }
    }

    fn event(span: &tracing::Span, news: News) {
        match news {
            News::Started { pid } => {
                span.record("pid", pid);
                tracing::debug!(target: "offspring", parent: span, pid, "started");
            }
            News::Ready => tracing::debug!(target: "offspring", parent: span, "ready"),
            News::Result { what } => tracing::debug!(target: "offspring", parent: span, what, "result"),
            News::Asked { why } => tracing::debug!(target: "offspring", parent: span, ?why, "asked to end"),
            News::Killed { why, after_term: true } => {
                tracing::warn!(target: "offspring", parent: span, ?why, "did not end in time after TERM; killed");
            }
            News::Killed { why, after_term: false } => {
                tracing::warn!(target: "offspring", parent: span, ?why, "killed");
            }
            News::Ended { status, ran, cpu_time, without_result } => {
                tracing::debug!(target: "offspring", parent: span, %status, ?ran, ?cpu_time, ?without_result, "ended");
            }
        }
    }

    /// Units are started the slow way, and why; said once in a process's life.
    pub(crate) fn fallback(step: &str, why: &dyn Display) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            tell(|| {
                tracing::warn!(target: "offspring", step, %why, "no zygote can be used; the program is executed for each unit");
            });
        }
    }

    /// Units with a process group have that alone, and why; said once in a process's life.
    pub(crate) fn no_cgroups(why: &dyn Display) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            tell(
                || tracing::debug!(target: "offspring", %why, "no cgroups can be made; process groups are all there is"),
            );
        }
    }

    /// `again`: one before it has ended.
    pub(crate) fn zygote_ready(after: Duration, again: bool) {
        tell(|| tracing::debug!(target: "offspring", ?after, again, "zygote ready"));
    }

    pub(crate) fn zygote_ended(status: &ExitStatus) {
        tell(|| tracing::debug!(target: "offspring", %status, "zygote ended"));
    }
}

#[cfg(not(feature = "tracing"))]
mod told {
    use std::fmt::Display;
    use std::process::ExitStatus;
    use std::time::Duration;

    use super::News;

    pub(crate) struct Log;

    impl Log {
        pub(crate) fn new(_: &str, _: &str) -> Self {
            Self
        }

        #[expect(clippy::unused_self, reason = "as it is with the feature")]
        pub(crate) fn note(&self, _: News) {}

        #[expect(clippy::unused_self, reason = "as it is with the feature")]
        pub(crate) fn tell(&self) {}
    }

    pub(crate) fn fallback(_: &str, _: &dyn Display) {}

    pub(crate) fn no_cgroups(_: &dyn Display) {}

    pub(crate) fn zygote_ready(_: Duration, _: bool) {}

    pub(crate) fn zygote_ended(_: &ExitStatus) {}
}

pub(crate) use told::{Log, fallback, no_cgroups, zygote_ended, zygote_ready};
