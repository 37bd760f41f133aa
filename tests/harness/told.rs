//! A listener to the library's events and spans.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

#[derive(Clone, Default)]
pub struct Told {
    lists: Arc<Mutex<Lists>>,
    /// What is done when it is told of that, in the middle of it.
    answer: Option<(&'static str, fn())>,
}

#[derive(Default)]
struct Lists {
    events: Vec<Said>,
    /// Each span: its name and fields, and how often it has been cloned and not closed.
    spans: Vec<(String, usize)>,
}

/// An event.
#[derive(Clone, Debug)]
pub struct Said {
    pub level: Level,
    pub text: String,
    /// The span that it is in, from 1.
    pub span: Option<u64>,
}

impl Told {
    /// From now on, in this whole process.
    pub fn listen() -> Self {
        Self::default().listens()
    }

    /// The same; whoever tells of this does that first.
    pub fn listen_and(words: &'static str, act: fn()) -> Self {
        Self { answer: Some((words, act)), ..Self::default() }.listens()
    }

    fn listens(self) -> Self {
        tracing::subscriber::set_global_default(self.clone()).unwrap();
        self
    }

    pub fn events(&self) -> Vec<Said> {
        self.lists.lock().unwrap().events.clone()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.events().into_iter().filter(|said| said.level == Level::WARN).map(|said| said.text).collect()
    }

    /// What the events of one span say.
    pub fn within(&self, span: u64) -> Vec<String> {
        self.events().into_iter().filter(|said| said.span == Some(span)).map(|said| said.text).collect()
    }

    /// The spans that were opened; and how many of them are open still.
    pub fn spans(&self) -> (Vec<String>, usize) {
        let lists = self.lists.lock().unwrap();
        let open = lists.spans.iter().filter(|(_, uses)| *uses > 0).count();
        (lists.spans.iter().map(|(text, _)| text.clone()).collect(), open)
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Subscriber for Told {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "offspring"
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut text = Text(format!("{} ", attributes.metadata().name()));
        attributes.record(&mut text);
        let spans = &mut self.lists.lock().unwrap().spans;
        spans.push((text.0, 1));
        span::Id::from_u64(spans.len() as u64)
    }

    fn record(&self, id: &span::Id, values: &span::Record<'_>) {
        let mut text = Text(String::new());
        values.record(&mut text);
        self.lists.lock().unwrap().spans[id.into_u64() as usize - 1].0.push_str(&text.0);
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let said = Said {
            level: *event.metadata().level(),
            text: text.0,
            span: event.parent().map(span::Id::into_u64),
        };
        if let Some((_, act)) = self.answer.filter(|(words, _)| said.text.contains(words)) {
            act();
        }
        self.lists.lock().unwrap().events.push(said);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}

    fn clone_span(&self, id: &span::Id) -> span::Id {
        self.lists.lock().unwrap().spans[id.into_u64() as usize - 1].1 += 1;
        id.clone()
    }

    fn try_close(&self, id: span::Id) -> bool {
        let uses = &mut self.lists.lock().unwrap().spans[id.into_u64() as usize - 1].1;
        *uses -= 1;
        *uses == 0
    }
}
