//! What functions write: the last lines of each, kept in memory, and followers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use fulmar_model::FunctionName;
use fulmar_worker::{LogLine, LogSink};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::clock;

/// Lines kept of each function.
const KEPT_LINES: usize = 1000;
/// Bytes kept of each function's lines.
const KEPT_BYTES: usize = 256 << 10;
/// Bytes of one line; the rest of a longer one is cut.
const LINE_BYTES: usize = 8 << 10;
/// Lines that a follower may lag behind before it misses some.
const FOLLOWER_LINES: usize = 1024;

/// One line, as the API gives it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    time: String,
    function: String,
    session: Option<String>,
    invocation: String,
    level: String,
    message: String,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    followers: Option<broadcast::Sender<Arc<Line>>>,
}

impl Line {
    /// Whether it is of the session, or any is wanted.
    pub(crate) fn is_of(&self, session: Option<&str>) -> bool {
        session.is_none() || self.session.as_deref() == session
    }
}

impl Kept {
    fn last(&self, session: Option<&str>, tail: usize) -> Vec<Arc<Line>> {
        let wanted = self.lines.iter().rev().filter(|line| line.is_of(session));
        let mut last: Vec<Arc<Line>> = wanted.take(tail).cloned().collect();
        last.reverse();
        last
    }
}

/// The logs of all functions.
#[derive(Default)]
pub(crate) struct Logs(Mutex<HashMap<String, Kept>>);

impl Logs {
    /// The last `tail` lines of a function, or of one of its sessions.
    pub(crate) fn tail(
        &self,
        function: &str,
        session: Option<&str>,
        tail: usize,
    ) -> Vec<Arc<Line>> {
        let logs = self.0.lock();
        logs.get(function)
            .map_or_else(Vec::new, |kept| kept.last(session, tail))
    }

    /// The last `tail` lines of a function or one of its sessions, and what comes after them of the
    /// whole function, with no gap between.
    pub(crate) fn follow(
        &self,
        function: &str,
        session: Option<&str>,
        tail: usize,
    ) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
        let mut logs = self.0.lock();
        let kept = logs.entry(function.to_owned()).or_default();
        let lines = kept.last(session, tail);
        let followers = kept
            .followers
            .get_or_insert_with(|| broadcast::Sender::new(FOLLOWER_LINES));
        (lines, followers.subscribe())
    }

    /// Forgets a removed function's lines.
    pub(crate) fn forget(&self, function: &FunctionName) {
        self.0.lock().remove(function.as_str());
    }
}

impl LogSink for Logs {
    fn log(&self, line: LogLine<'_>) {
        let mut message = line.message;
        if message.len() > LINE_BYTES {
            message = &message[..message.floor_char_boundary(LINE_BYTES)];
        }
        let line = Arc::new(Line {
            time: clock::rfc3339(clock::unix_ms()),
            function: line.function.to_string(),
            session: line.session.map(ToString::to_string),
            invocation: line.invocation.to_owned(),
            level: line.level.to_string(),
            message: message.to_owned(),
        });
        let mut logs = self.0.lock();
        let kept = logs.entry(line.function.clone()).or_default();
        kept.bytes += line.message.len();
        kept.lines.push_back(line.clone());
        while kept.lines.len() > KEPT_LINES || kept.bytes > KEPT_BYTES {
            let Some(oldest) = kept.lines.pop_front() else {
                break;
            };
            kept.bytes -= oldest.message.len();
        }
        if let Some(followers) = &kept.followers
            && followers.send(line).is_err()
        {
            kept.followers = None;
        }
    }
}
