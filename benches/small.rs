//! Small messages: how many a second go from one process to another, and how long one takes there and back.

use crate::carriers::{self, Carrier};
use crate::charts::{Chart, Kind};
use crate::places::{Place, Processors};
use crate::report::Report;
use crate::{figure, median, verdict, verdict_most};

/// How long a turn is about to take, in nanoseconds.
const TURN: f64 = 15e6;

/// What a channel of ours asks of the kernel for a bound of 1024, for a bare socket to have the same.
const BUFFER: usize = 1 << 20;

struct Contender {
    name: &'static str,
    carrier: Box<dyn Carrier>,
    /// How many a turn takes.
    counts: [u64; 3],
    /// Nanoseconds for each, of all turns.
    times: [Vec<f64>; 3],
}

/// What is measured: a stream, and there and back, between two processors and on one. (Where the kernel puts two that talk in turns is
/// chance, and makes twenty times the difference that they make.)
const WHERE: [Place; 3] = [Place::Anywhere, Place::Apart, Place::Together];

impl Contender {
    fn new(name: &'static str, carrier: Box<dyn Carrier>) -> Self {
        let mut contender = Self { name, carrier, counts: [2000, 200, 200], times: Default::default() };
        // The second time it is warm.
        for _ in 0..2 {
            let times = [0, 1, 2].map(|what| contender.turn(what));
            contender.counts = times.map(|time| ((TURN / time) as u64).clamp(100, 200_000));
        }
        contender
    }

    /// A turn: nanoseconds for each.
    fn turn(&mut self, what: usize) -> f64 {
        let count = self.counts[what];
        let time = if what == 0 { self.carrier.stream(count) } else { self.carrier.rounds(count) };
        time as f64 / count as f64
    }
}

/// The one that is compared, and the peers with what is asked of it: so many times their rate, so much of their time.
const OURS: &str = "offspring, bound 1024";
const BARE: &str = "bare socket pair";
const TARGETS: [(&str, Option<f64>, Option<f64>); 3] = [
    (BARE, Some(0.5), Some(1.3)),
    ("ipc-channel", Some(3.0), None),
    ("multiprocessing.Queue", Some(10.0), None),
];

/// Measures them, and tells.
pub fn messages(report: &mut Report, rounds: usize) {
    let mut all = vec![
        Contender::new("offspring, bound 64", carriers::offspring(64)),
        Contender::new(OURS, carriers::offspring(1024)),
        Contender::new(BARE, carriers::bare(Some(BUFFER))),
        Contender::new("bare socket pair, default buffer", carriers::bare(None)),
        Contender::new("ipc-channel", carriers::ipc_channel()),
    ];
    // There may be no Python here.
    all.extend(carriers::python().map(|carrier| Contender::new("multiprocessing.Queue", carrier)));
    let processors = Processors::new();
    for _ in 0..rounds {
        for (what, place) in WHERE.into_iter().enumerate() {
            if !processors.put(place) {
                continue;
            }
            for contender in &mut all {
                let time = contender.turn(what);
                contender.times[what].push(time);
            }
        }
    }
    processors.put(Place::Anywhere);
    let ours = all.iter().find(|one| one.name == OURS).map(|one| one.times.clone()).unwrap_or_default();
    // Of each round, for what else the machine does meets those that are next to each other alike.
    let ratio = |one: &Contender, what: usize| {
        let pairs = ours[what].iter().zip(&one.times[what]);
        median(&pairs.map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    };
    let row = |one: &Contender| {
        let target = TARGETS.iter().find(|(other, ..)| *other == one.name);
        let rate = 1.0 / ratio(one, 0);
        let mut cells = vec![
            format!("{:.0}", 1e9 / median(&one.times[0])),
            target.and_then(|(_, least, _)| *least).map_or(figure(rate), |least| verdict(rate, least)),
        ];
        for what in (1..WHERE.len()).filter(|what| !one.times[*what].is_empty()) {
            let time = ratio(one, what);
            cells.push(figure(median(&one.times[what]) / 1000.0));
            cells.push(
                target.and_then(|(.., most)| *most).map_or(figure(time), |most| verdict_most(time, most)),
            );
        }
        (one.name.to_owned(), cells)
    };
    report.table(
        "Messages of 32 bytes, from one process to another",
        &[
            "messages a second",
            "ours (1024) in so many times its rate",
            "there and back, between two processors: microseconds",
            "ours in so much of its time",
            "there and back, on one: microseconds",
            "ours in so much of its time",
        ],
        &all.iter().map(row).collect::<Vec<_>>(),
    );
    report.say(
        "The bare socket pair is AF_UNIX, SOCK_SEQPACKET, as a channel's, with blocking sendmsg(2) and recv(2); each packet has the \
         35 bytes that ours has (tag, codec's two, message), and nothing is encoded, decoded or counted. Its buffer is the one of a channel of 1024, \
         or the kernel's default. Ratios are medians of each round's. `ipc-channel` has a channel for each direction, its other end in this program executed once more; \
         `multiprocessing.Queue` has room for 1024.",
    );
    report.chart(Chart {
        file: "channels",
        title: "Messages of 32 bytes, from one process to another".into(),
        unit: "messages a second",
        kind: Kind::Bars(all.iter().map(|one| (one.name.to_owned(), 1e9 / median(&one.times[0]))).collect()),
    });
}
