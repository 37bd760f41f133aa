//! Panics in the child: said on standard error as Rust says them, told to the parent when they begin, and caught.
//!
//! The parent is told at the beginning, by a note, because in a program built with `panic = "abort"`, or in a panic that
//! cannot unwind, there is no later.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::sync::OnceLock;

use super::run::Line;
use crate::wire::message::Panicked;

thread_local! {
    /// The panic that began last in this thread.
    static LAST: RefCell<Option<Panicked>> = const { RefCell::new(None) };
}

/// Whose panics these are: the line to tell them on, the unit's name, and its first thread, whose number is the process's.
static SPEAKER: OnceLock<(Line, String, u32)> = OnceLock::new();

/// Puts our hook in the place of Rust's own. A unit may set another; then a panic comes home with its message alone.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|info| {
        let (line, unit, main) = match SPEAKER.get() {
            Some((line, unit, main)) => (Some(line), unit.as_str(), *main),
            None => (None, "", 0),
        };
        let thread = match std::thread::current().name() {
            Some(name) => Some(name.to_owned()),
            // The first thread has no name before `main`; with one it would be this.
            None => (crate::sys::lifecycle::thread_id() == main).then(|| "main".to_owned()),
        };
        let panic = record(info, thread);
        print(&panic, unit);
        if let Some(line) = line {
            line.note(&panic);
        }
        LAST.set(Some(panic));
    }));
}

/// From now on panics are this unit's.
pub(crate) fn speak_for(line: &Line, unit: &str) {
    let _ = SPEAKER.set((line.clone(), unit.to_owned(), line.owner));
}

fn record(info: &PanicHookInfo<'_>, thread: Option<String>) -> Panicked {
    let wanted = std::env::var_os("RUST_BACKTRACE").filter(|value| value != "0");
    let backtrace = wanted.map(|value| {
        let backtrace = Backtrace::force_capture();
        cut(if value == "full" { format!("{backtrace:#}") } else { backtrace.to_string() })
    });
    let place = info.location();
    Panicked {
        message: message(info.payload()),
        file: place.map(|place| place.file().to_owned()),
        line: place.map(|place| place.line()),
        column: place.map(|place| place.column()),
        thread,
        backtrace,
    }
}

fn message(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&'static str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    cut(text.unwrap_or("Box<dyn Any>").to_owned())
}

/// The first mebibyte, for a message that carries it must stay small.
fn cut(mut text: String) -> String {
    const LIMIT: usize = 1 << 20;
    if text.len() > LIMIT {
        text.truncate(text.floor_char_boundary(LIMIT));
        text.push('…');
    }
    text
}

fn print(panic: &Panicked, unit: &str) {
    let thread = panic.thread.as_deref().unwrap_or("<unnamed>");
    let pid = std::process::id();
    let mut text = format!("\nthread '{thread}' of unit '{unit}' (pid {pid}) panicked");
    if let (Some(file), Some(line), Some(column)) = (&panic.file, panic.line, panic.column) {
        text += &format!(" at {file}:{line}:{column}");
    }
    text += &format!(":\n{}\n", panic.message);
    match &panic.backtrace {
        Some(backtrace) => text += &format!("stack backtrace:\n{backtrace}\n"),
        None => text += "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n",
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A panic that was caught, and can go on.
pub(crate) struct Held {
    payload: Box<dyn Any + Send>,
    panic: Box<Panicked>,
}

impl Held {
    /// Unwinds again, without a word: it has been reported.
    pub(crate) fn go_on(self) -> ! {
        LAST.set(Some(*self.panic));
        resume_unwind(self.payload)
    }
}

/// Runs `work`; a panic in it stops here.
pub(crate) fn held<R>(work: impl FnOnce() -> R) -> Result<R, Held> {
    // What the work had in its hands when it panicked is never looked at again, or belongs to a loop whose `end` is
    // promised to run whatever happened.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let message = message(&*payload);
        // Another panic may have begun and been caught since, in a destructor; or the hook was not ours.
        let panic = LAST.take().filter(|last| last.message == message);
        let panic = panic.unwrap_or(Panicked {
            message,
            file: None,
            line: None,
            column: None,
            thread: None,
            backtrace: None,
        });
        Held { payload, panic: Box::new(panic) }
    })
}

/// As [`held`], for where the payload is of no more use.
pub(crate) fn caught<R>(work: impl FnOnce() -> R) -> Result<R, Panicked> {
    held(work).map_err(|held| {
        let Held { payload, panic } = held;
        // The payload is the unit's; its destructor may panic as well.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        *panic
    })
}
