//! Loops: begin, tick, end, and the signals that end them.

#[path = "harness/mod.rs"]
mod harness;

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::time::Duration;

use offspring::{ErrorKind, Offspring, PAUSE, Stdio, SubprocessLoop};
use serde::{Deserialize, Serialize};

/// Says where it is, and does as it is told.
#[derive(Serialize, Deserialize, Default)]
struct Talker {
    panic_in: Vec<String>,
    block_in: String,
    breaks_after: Option<u32>,
    pause: Duration,
    ticks: u32,
    begun: bool,
}

impl Talker {
    fn at(&self, place: &str) {
        println!("{place}");
        if self.block_in == place {
            // Until the test says to go on.
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
        if self.panic_in.iter().any(|other| other == place) {
            panic!("in {place}");
        }
    }
}

impl SubprocessLoop for Talker {
    type Output = (bool, u32);

    fn begin(&mut self) {
        self.begun = true;
        self.at("begin");
    }

    fn tick(&mut self) -> ControlFlow<(), Duration> {
        self.ticks += 1;
        self.at("tick");
        if self.breaks_after == Some(self.ticks) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(self.pause)
    }

    fn end(self) -> (bool, u32) {
        self.at("end");
        (self.begun, self.ticks)
    }
}

const LONG: Duration = Duration::from_secs(3600);

struct Running {
    unit: Offspring<(bool, u32)>,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

fn start(talker: Talker) -> Running {
    let mut unit = Offspring::builder(talker)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(unit.take_stdout().unwrap()).lines();
    Running { unit, lines }
}

impl Running {
    fn expect(&mut self, wanted: &str) {
        assert_eq!(self.lines.next().unwrap().unwrap(), wanted);
    }

    fn send(&self, signal: i32) {
        self.unit.process().unwrap().send_signal(signal).unwrap();
    }
}

behaviour! {
    fn a_loop_that_breaks_gives_its_result() {
        let running = start(Talker { breaks_after: Some(3), ..Talker::default() });
        assert_eq!(running.unit.wait().unwrap(), (true, 3));
        let running = start(Talker { breaks_after: Some(2), pause: PAUSE, ..Talker::default() });
        assert_eq!(running.unit.wait().unwrap(), (true, 2));
    }

    fn term_and_int_cut_a_sleep_short() {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let mut running = start(Talker { pause: LONG, ..Talker::default() });
            running.expect("begin");
            running.expect("tick");
            running.send(signal);
            assert_eq!(running.unit.wait().unwrap(), (true, 1));
        }
    }

    fn shutdown_of_a_loop_gives_its_result() {
        let mut running = start(Talker { pause: LONG, ..Talker::default() });
        running.expect("begin");
        running.expect("tick");
        assert_eq!(running.unit.shutdown().unwrap(), Some((true, 1)));
    }

    fn term_in_begin_ends_the_loop_before_its_first_tick() {
        let mut running = start(Talker { block_in: "begin".into(), ..Talker::default() });
        running.expect("begin");
        running.send(libc::SIGTERM);
        drop(running.unit.take_stdin());
        assert_eq!(running.unit.wait().unwrap(), (true, 0));
    }

    fn a_second_term_during_end_is_ignored() {
        let mut running = start(Talker { block_in: "end".into(), pause: LONG, ..Talker::default() });
        running.expect("begin");
        running.expect("tick");
        running.send(libc::SIGTERM);
        running.expect("end");
        running.send(libc::SIGTERM);
        running.send(libc::SIGINT);
        drop(running.unit.take_stdin());
        assert_eq!(running.unit.wait().unwrap(), (true, 1));
    }

    fn end_runs_after_a_panic_and_the_first_panic_is_told() {
        for (places, first) in [(vec!["begin"], "begin"), (vec!["tick"], "tick"), (vec!["end"], "end"),
                                (vec!["begin", "end"], "begin"), (vec!["tick", "end"], "tick")] {
            let panic_in = places.iter().map(ToString::to_string).collect();
            let breaks_after = Some(1);
            let running = start(Talker { panic_in, breaks_after, ..Talker::default() });
            let lines: Vec<String> = running.lines.map(Result::unwrap).collect();
            let error = running.unit.wait().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            assert_eq!(error.panic().unwrap().message(), format!("in {first}"));
            assert!(error.panic().unwrap().line().is_some());
            assert_eq!(lines.last().unwrap(), "end", "{places:?}");
        }
    }

    fn a_loop_is_a_unit_of_its_own_kind_in_the_same_vec() {
        let Running { unit, lines } = start(Talker { breaks_after: Some(1), ..Talker::default() });
        let mut units = vec![unit];
        units.push(offspring::spawn((), |()| (false, 0)).unwrap());
        let results: Vec<_> = units.into_iter().map(|unit| unit.wait().unwrap()).collect();
        assert_eq!(results, [(true, 1), (false, 0)]);
        // What it prints needs a reader until its end.
        drop(lines);
    }
}
