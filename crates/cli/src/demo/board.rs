//! What is seen while it is played: by whoever looks, and in the record.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use fulmar_model::ExecutionModel;
use serde_json::{Value, json};

use super::script::Phase;
use super::table::Outcome;

/// Answers whose mean tells how fast a client is served.
const RECENT: usize = 10;
/// Things that happened which are kept to be shown.
const EVENTS: usize = 200;

/// One answer.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    pub(super) phase: Phase,
    /// Where it ran.
    pub(super) node: String,
    /// Where the state was, as the answer says.
    pub(super) model: ExecutionModel,
    /// From when it was to be sent until it was there.
    pub(super) took: Duration,
    pub(super) is_late: bool,
}

/// A client as it is served now.
#[derive(Debug, Default, Clone)]
pub(super) struct Served {
    pub(super) phase: &'static str,
    pub(super) node: String,
    pub(super) model: String,
    pub(super) requests: u64,
    pub(super) late: u64,
    recent: VecDeque<f64>,
    /// Mean before the last change, until enough has come to say what it is since.
    before: Option<f64>,
}

impl Served {
    /// Mean of the last answers in milliseconds.
    pub(super) fn mean_ms(&self) -> f64 {
        self.recent.iter().sum::<f64>() / self.recent.len().max(1) as f64
    }
}

#[derive(Default)]
struct Seen {
    clients: BTreeMap<String, Served>,
    events: VecDeque<String>,
    cloud_bytes: u64,
    /// Events that were taken by [`Board::news`].
    told: usize,
    happened: usize,
}

/// What is seen of one model.
pub(super) struct Board {
    pub(super) model: ExecutionModel,
    started: Instant,
    seen: Mutex<Seen>,
    recorder: Arc<Recorder>,
}

/// What there is to show at one moment.
pub(super) struct Snapshot {
    pub(super) seconds: f64,
    pub(super) clients: Vec<(String, Served)>,
    pub(super) events: Vec<String>,
    pub(super) cloud_bytes: u64,
}

impl Board {
    pub(super) fn new(model: ExecutionModel, recorder: Arc<Recorder>) -> Self {
        Self {
            model,
            started: Instant::now(),
            seen: Mutex::default(),
            recorder,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// An answer came.
    pub(super) fn answered(&self, client: &str, answer: &Answered) {
        let at = self.started.elapsed().as_secs_f64();
        let ms = answer.took.as_secs_f64() * 1000.0;
        let mut news = Vec::new();
        {
            let mut seen = self.seen();
            let served = seen.clients.entry(client.to_owned()).or_default();
            let model = answer.model.to_string();
            let is_other = served.node != answer.node || served.model != model;
            if is_other && !served.node.is_empty() {
                news.push(format!(
                    "{client} {}: {} at {}, was {} at {}",
                    answer.phase.name(),
                    model,
                    answer.node,
                    served.model,
                    served.node
                ));
                served.before = Some(served.mean_ms());
                served.recent.clear();
            }
            (served.node, served.model) = (answer.node.clone(), model);
            served.phase = answer.phase.name();
            served.requests += 1;
            served.late += u64::from(answer.is_late);
            served.recent.push_back(ms);
            if served.recent.len() > RECENT {
                served.recent.pop_front();
            }
            if served.recent.len() == RECENT
                && let Some(before) = served.before.take()
            {
                let now = served.mean_ms();
                let node = &served.node;
                news.push(format!(
                    "{client} at {node}: {before:.1} ms before the change, {now:.1} ms since"
                ));
            }
        }
        self.recorder.line(&json!({
            "kind": "answer",
            "model": self.model,
            "at_seconds": at,
            "client": client,
            "phase": answer.phase.name(),
            "node": answer.node,
            "execution_model": answer.model,
            "milliseconds": ms,
            "late": answer.is_late,
        }));
        for text in news {
            self.happened(&text);
        }
    }

    /// Something happened that is worth a line.
    pub(super) fn happened(&self, text: &str) {
        let at = self.started.elapsed().as_secs_f64();
        self.recorder.line(&json!({
            "kind": "event",
            "model": self.model,
            "at_seconds": at,
            "text": text,
        }));
        let mut seen = self.seen();
        seen.events.push_back(format!("{at:5.1} s  {text}"));
        seen.happened += 1;
        if seen.events.len() > EVENTS {
            seen.events.pop_front();
        }
    }

    pub(super) fn set_cloud_bytes(&self, bytes: u64) {
        self.seen().cloud_bytes = bytes;
    }

    /// All that there is to show.
    pub(super) fn snapshot(&self) -> Snapshot {
        let seen = self.seen();
        let clients = seen.clients.iter();
        Snapshot {
            seconds: self.started.elapsed().as_secs_f64(),
            clients: clients
                .map(|(name, served)| (name.clone(), served.clone()))
                .collect(),
            events: seen.events.iter().cloned().collect(),
            cloud_bytes: seen.cloud_bytes,
        }
    }

    /// What has happened since this was asked last.
    pub(super) fn news(&self) -> Vec<String> {
        let mut seen = self.seen();
        let new = (seen.happened - seen.told).min(seen.events.len());
        seen.told = seen.happened;
        let skipped = seen.events.len() - new;
        seen.events.iter().skip(skipped).cloned().collect()
    }
}

/// Writes what happens as JSON Lines, if somebody wants it.
pub(super) struct Recorder(Option<Mutex<BufWriter<File>>>);

impl Recorder {
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let file = File::create(path);
            file.with_context(|| format!("cannot write {}", path.display()))
        };
        let file = path.map(open).transpose()?;
        Ok(Self(file.map(|file| Mutex::new(BufWriter::new(file)))))
    }

    fn line(&self, value: &Value) {
        if let Some(file) = &self.0 {
            let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // What cannot be written is noticed at the end.
            let _ = writeln!(file, "{value}");
        }
    }

    pub(super) fn outcome(&self, outcome: &Outcome) {
        let mut line = outcome.row();
        line["kind"] = "outcome".into();
        self.line(&line);
    }

    /// Makes sure that everything is written.
    pub(super) fn finish(&self) -> anyhow::Result<()> {
        if let Some(file) = &self.0 {
            let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            file.flush().context("the record is not complete")?;
        }
        Ok(())
    }
}
