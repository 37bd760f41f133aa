//! Whether all that is sent arrives, once and in order: counted, not timed.

use std::collections::BTreeMap;
use std::process::exit;
use std::sync::mpsc;
use std::time::Duration;

use offspring::{Offspring, Receiver, RecvError, Sender, SharedMemory, channel, spawn};

use crate::now;
use crate::report::Report;

/// So many who send, and so many who receive, each in a process of its own.
const SIDES: u32 = 4;
const BOUND: usize = 64;
/// Longer than any part of it takes, in seconds.
const PATIENCE: u64 = 300;

/// Who sent it, and the how-manieth of his it is.
fn numbered(who: u32, n: u32) -> u64 {
    u64::from(who) << 32 | u64::from(n)
}

/// Sends so many, and notes each that is sent where it is seen also after a death.
fn produce((who, count, sender, sent): (u32, u32, Sender<u64>, Option<SharedMemory>)) {
    let note = sent.as_ref().map(|sent| sent.lock().unwrap());
    for n in 0..count {
        sender.send(numbered(who, n)).unwrap();
        if let Some(note) = &note {
            note.write_at(0, &(n + 1).to_le_bytes()).unwrap();
        }
    }
}

fn noted(sent: &SharedMemory) -> u32 {
    let mut bytes = [0; 4];
    sent.read_at(0, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// What has come, until the end.
fn consume(receiver: Receiver<u64>) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        match receiver.recv() {
            Ok(message) => all.push(message),
            Err(RecvError::Disconnected) => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What was wrong.
#[derive(Default)]
struct Faults {
    arrived: u64,
    lost: u64,
    doubled: u64,
    disordered: u64,
    /// Came though nobody had sent it.
    invented: u64,
    descriptors: i64,
}

impl Faults {
    /// What each received, and how many each had sent: those that he knew of, and perhaps one more.
    fn new(received: &[Vec<u64>], sent: &BTreeMap<u32, (u32, u32)>) -> Self {
        let mut faults = Self::default();
        let mut all: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for list in received {
            let mut last = BTreeMap::new();
            for message in list {
                let (who, n) = ((message >> 32) as u32, *message as u32);
                faults.arrived += 1;
                faults.disordered += u64::from(last.insert(who, n).is_some_and(|before| before >= n));
                all.entry(who).or_default().push(n);
            }
        }
        for (who, (least, most)) in sent {
            let mut numbers = all.remove(who).unwrap_or_default();
            numbers.sort_unstable();
            let count = numbers.len();
            numbers.dedup();
            faults.doubled += (count - numbers.len()) as u64;
            // Those that are there are all up to the last, and the last is no earlier than the last that he knew of.
            let up_to = numbers.last().map_or(0, |last| last + 1).max(*least);
            faults.lost += u64::from(up_to) - numbers.len() as u64;
            faults.invented += u64::from(up_to.saturating_sub(*most));
        }
        faults.invented += all.values().map(|numbers| numbers.len() as u64).sum::<u64>();
        faults
    }

    fn is_sound(&self) -> bool {
        [self.lost, self.doubled, self.disordered, self.invented] == [0; 4] && self.descriptors == 0
    }
}

/// Descriptors that are open here, with nothing of the library's.
fn descriptors() -> i64 {
    offspring::shutdown();
    std::fs::read_dir("/proc/self/fd").unwrap().count() as i64
}

/// Does it, within that patience: who hangs is at fault.
fn within<R>(act: impl FnOnce() -> R) -> R {
    let (done, is_done) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if is_done.recv_timeout(Duration::from_secs(PATIENCE)) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("channels: not all has arrived after {PATIENCE} seconds");
            exit(1);
        }
    });
    let result = act();
    drop(done);
    watch.join().unwrap();
    result
}

type Consumers = Vec<Offspring<Vec<u64>>>;

fn consumers(receiver: &Receiver<u64>) -> Consumers {
    (0..SIDES).map(|_| spawn(receiver.clone(), consume).unwrap()).collect()
}

fn received(consumers: Consumers) -> Vec<Vec<u64>> {
    consumers.into_iter().map(|consumer| consumer.wait().unwrap()).collect()
}

/// Nobody dies.
fn in_peace(count: u32) -> Faults {
    let (sender, receiver) = channel(BOUND).unwrap();
    let consumers = consumers(&receiver);
    drop(receiver);
    let each = count / SIDES;
    let producers: Vec<_> =
        (0..SIDES).map(|who| spawn((who, each, sender.clone(), None), produce).unwrap()).collect();
    drop(sender);
    producers.into_iter().for_each(|producer| producer.wait().unwrap());
    Faults::new(&received(consumers), &(0..SIDES).map(|who| (who, (each, each))).collect())
}

/// A producer that is to be killed.
struct Victim {
    who: u32,
    unit: Offspring<()>,
    sent: SharedMemory,
}

impl Victim {
    fn new(who: u32, sender: &Sender<u64>) -> Self {
        let sent = SharedMemory::new(4).unwrap();
        let unit = spawn((who, u32::MAX, sender.clone(), Some(sent.clone())), produce).unwrap();
        Self { who, unit, sent }
    }

    /// Who it was, and how many it knew to be sent.
    fn kill(self) -> (u32, u32) {
        self.unit.process().unwrap().kill().unwrap();
        self.unit.wait().unwrap_err();
        (self.who, noted(&self.sent))
    }
}

/// Producers are killed, each at a moment of chance, and others take their places. Also how many.
fn in_war(count: u32) -> (Faults, usize) {
    let (sender, receiver) = channel(BOUND).unwrap();
    let consumers = consumers(&receiver);
    drop(receiver);
    let mut victims: Vec<Victim> = (0..SIDES).map(|who| Victim::new(who, &sender)).collect();
    let mut dead: Vec<(u32, u32)> = Vec::new();
    let mut chance = now() | 1;
    let mut draw = |below: u64| {
        // Marsaglia's xorshift.
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance % below
    };
    loop {
        std::thread::sleep(Duration::from_micros(500 + draw(8000)));
        let alive = victims.iter().map(|victim| noted(&victim.sent));
        if dead.iter().map(|(_, sent)| *sent).chain(alive).map(u64::from).sum::<u64>() >= u64::from(count) {
            break;
        }
        let next = Victim::new(SIDES + dead.len() as u32, &sender);
        dead.push(std::mem::replace(&mut victims[draw(u64::from(SIDES)) as usize], next).kill());
    }
    dead.extend(victims.into_iter().map(Victim::kill));
    drop(sender);
    // The one under way may have arrived.
    let sent = dead.iter().map(|(who, sent)| (*who, (*sent, sent + 1))).collect();
    (Faults::new(&received(consumers), &sent), dead.len())
}

/// Both, and what came of them; whether nothing was wrong.
pub fn counted(report: &mut Report, rounds: usize) -> bool {
    // Fewer in a trial.
    let count = if rounds < 20 { 100_000 } else { 1_000_000 };
    // What the first unit opens once for all.
    spawn((), |()| ()).unwrap().wait().unwrap();
    let before = descriptors();
    let mut peace = within(|| in_peace(count));
    peace.descriptors = descriptors() - before;
    let (mut war, kills) = within(|| in_war(count));
    war.descriptors = descriptors() - before;
    let row = |name: String, faults: &Faults| {
        let counts = [faults.arrived, faults.lost, faults.doubled, faults.disordered, faults.invented];
        let cells = counts.iter().map(u64::to_string).chain([faults.descriptors.to_string()]);
        (name, cells.collect())
    };
    report.table(
        &format!("{count} messages, {SIDES} producers and {SIDES} consumers, each a process: counts"),
        &["arrived", "lost", "doubled", "out of order", "never sent", "descriptors left"],
        &[row("nobody dies".into(), &peace), row(format!("{kills} producers killed"), &war)],
    );
    report.say(
        "Lost is what a producer had sent (`send` had returned) and nobody received, and what is missing in front of the last that arrived of his.",
    );
    peace.is_sound() && war.is_sound()
}
