//! What is told with the feature `tracing`: a span for each unit, and what happens in it.
#![allow(unsafe_code)]

#[path = "harness/mod.rs"]
mod harness;

use std::time::Duration;

use harness::told::Told;
use harness::{eventually, zygote};
use offspring::{Offspring, Subprocess, spawn};
use serde::{Deserialize, Serialize};

/// Whether each of these says the words in its place.
fn say(texts: &[String], words: &[&str]) -> bool {
    texts.len() == words.len() && texts.iter().zip(words).all(|(text, words)| text.contains(words))
}

#[derive(Serialize, Deserialize)]
struct Waited;

impl Subprocess for Waited {
    type Output = ();
    const WAIT_FOR_CHILD: bool = true;

    fn run(self) {}
}

/// Does not hear TERM.
fn deaf((): ()) {
    // SAFETY: ignores a signal.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    loop {
        println!("deaf");
        std::thread::sleep(Duration::from_secs(3600));
    }
}

#[derive(Serialize, Deserialize)]
struct Deaf;

impl Subprocess for Deaf {
    type Output = ();
    const SHUTDOWN_TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));

    fn run(self) {
        deaf(());
    }
}

behaviour! {
    fn a_unit_from_its_start_to_its_end() {
        let told = Told::listen();
        let unit = Offspring::builder(Waited).name("told").spawn().unwrap();
        let id = unit.process().unwrap().id();
        unit.wait().unwrap();
        // What the reaper has heard, it may tell a moment after the wait has returned.
        eventually("all is told", || told.within(1).len() == 4 && told.spans().1 == 0);
        let (spans, _) = told.spans();
        assert!(spans.len() == 1 && spans[0].starts_with("unit name=\"told\""), "{spans:?}");
        assert!(spans[0].contains("Waited") && spans[0].contains(&format!("pid={id}")), "{spans:?}");
        // Who starts it and who hears it are two threads.
        let mut said = told.within(1);
        said.sort_by_key(|text| ["started", "ready", "result", "ended"].iter().position(|word| text.contains(&format!("message={word}"))));
        assert!(say(&said, &["started", "ready", "result", "ended"]), "{said:?}");
        assert!(said[2].contains("what=\"value\"") && said[3].contains("status=exit status: 0"), "{said:?}");
        assert_eq!(told.warnings(), Vec::<String>::new());
    }

    fn a_panic_and_a_death() {
        let told = Told::listen();
        spawn((), |()| -> () { panic!("no") }).unwrap().wait().unwrap_err();
        spawn((), |()| -> () { std::process::exit(7) }).unwrap().wait().unwrap_err();
        eventually("the panic is told", || told.within(1).iter().any(|text| text.contains("what=\"panic\"")));
        eventually("the end is told", || told.within(2).iter().any(|text| text.contains("message=ended")));
        let second = told.within(2);
        let is_end = |text: &String| text.contains("message=ended status=exit status: 7") && text.contains("Some(Itself)");
        assert!(second.iter().any(is_end), "{second:?}");
        assert!(!second.iter().any(|text| text.contains("message=result")), "{second:?}");
    }

    fn an_escalation_is_a_warning() {
        let told = Told::listen();
        let mut unit = Offspring::builder(Deaf).stdout(offspring::Stdio::piped()).spawn().unwrap();
        let mut output = std::io::BufReader::new(unit.take_stdout().unwrap());
        std::io::BufRead::read_line(&mut output, &mut String::new()).unwrap();
        assert_eq!(unit.shutdown().unwrap(), None);
        let warnings = told.warnings();
        assert!(say(&warnings, &["did not end in time after TERM; killed why=Shutdown"]), "{warnings:?}");
        assert!(told.within(1).iter().any(|text| text.contains("asked to end why=Shutdown")), "{:?}", told.within(1));
    }
}

behaviour! { through ["zygote", "spare"];
    fn a_zygote_and_the_one_after_it() {
        let told = Told::listen();
        spawn((), |()| ()).unwrap().wait().unwrap();
        harness::kill(zygote().unwrap(), libc::SIGKILL);
        let says = |words: &str| told.events().iter().any(|said| said.span.is_none() && said.text.contains(words));
        eventually("its end is told", || says("zygote ended"));
        spawn((), |()| ()).unwrap().wait().unwrap();
        assert!(says("again=false") && says("again=true"), "{:?}", told.events());
    }
}
