//! What functions write: lines with the invocation that wrote them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use fulmar_model::{FunctionName, SessionName};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Bytes of an unfinished line of standard output that are held; a longer line is cut into several.
const LINE_BYTES: usize = 8 << 10;

/// How important a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For following every step.
    Trace,
    /// For finding faults.
    Debug,
    /// What happens.
    Info,
    /// What should be looked at.
    Warn,
    /// What went wrong.
    Error,
    /// What must be looked at now.
    Critical,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Critical => "critical",
        })
    }
}

/// One line.
#[derive(Debug, Clone, Copy)]
pub struct LogLine<'a> {
    /// The function that wrote it.
    pub function: &'a FunctionName,
    /// Its session, if it has one.
    pub session: Option<&'a SessionName>,
    /// The invocation; empty while the worker starts.
    pub invocation: &'a str,
    /// How important it is.
    pub level: Level,
    /// The text, without its line break.
    pub message: &'a str,
}

/// Takes lines; must not block.
pub trait LogSink: Send + Sync {
    /// Takes one line.
    fn log(&self, line: LogLine<'_>);
}

/// Who writes at the moment; shared by a worker's streams and host functions.
pub(crate) struct Writer {
    sink: Arc<dyn LogSink>,
    function: FunctionName,
    now: Mutex<(Option<SessionName>, Arc<str>)>,
}

impl Writer {
    pub(crate) fn new(sink: Arc<dyn LogSink>, function: FunctionName) -> Arc<Self> {
        Arc::new(Self {
            sink,
            function,
            now: Mutex::new((None, "".into())),
        })
    }

    pub(crate) fn begin(&self, session: Option<SessionName>, invocation: Arc<str>) {
        *self.now.lock() = (session, invocation);
    }

    pub(crate) fn log(&self, level: Level, message: &str) {
        let (session, invocation) = self.now.lock().clone();
        self.sink.log(LogLine {
            function: &self.function,
            session: session.as_ref(),
            invocation: &invocation,
            level,
            message,
        });
    }
}

/// Standard output or error of a worker: cut into lines.
#[derive(Clone)]
pub(crate) struct LineStream {
    writer: Arc<Writer>,
    level: Level,
    unfinished: Arc<Mutex<Vec<u8>>>,
}

impl LineStream {
    pub(crate) fn new(writer: Arc<Writer>, level: Level) -> Self {
        Self {
            writer,
            level,
            unfinished: Arc::default(),
        }
    }

    /// Writes out a line that has no end yet: the next invocation's would go on in it.
    pub(crate) fn end_line(&self) {
        let mut unfinished = self.unfinished.lock();
        if !unfinished.is_empty() {
            let line = std::mem::take(&mut *unfinished);
            self.writer.log(self.level, &String::from_utf8_lossy(&line));
        }
    }

    pub(crate) fn take(&self, bytes: &[u8]) {
        let mut unfinished = self.unfinished.lock();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            unfinished.extend_from_slice(part);
            if unfinished.ends_with(b"\n") || unfinished.len() > LINE_BYTES {
                let line = std::mem::take(&mut *unfinished);
                let text = String::from_utf8_lossy(&line);
                self.writer
                    .log(self.level, text.trim_end_matches(['\n', '\r']));
            }
        }
    }
}

impl IsTerminal for LineStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LineStream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.2 is linked, which asks for the other kind.
        Box::new(tokio::io::sink())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LineStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LineStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}
