//! Workers that are programs: anything that serves HTTP/1.1 on the Unix socket it is given.
//!
//! A worker has a folder of its own with two sockets: on one the program answers invocations, one at a time; on the other
//! the node answers what the program asks about the state of the invocation that runs ([`asking`]). A program that says
//! that it speaks the protocol of [`frames`] is also sent what its memory of the session lacks, and sends back what it
//! writes, with the request and the answer.

mod asking;
mod ending;
mod frames;
mod memory;
mod program;
pub(crate) mod start;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fulmar_model::SessionName;
use fulmar_state::Transaction;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::sync::mpsc;

use crate::call::{Call, CallError, Reply, Request};
use crate::cgroup::{Usage, Used};
use crate::logs::Writer;
use crate::running::Running;
use asking::Asked;
use ending::Ended;
use memory::Memories;

pub(crate) use program::PATH;
pub use program::Program;

/// The version of the protocol of [`frames`], offered with each request; a program that speaks it says so in its answer.
const PROTOCOL: HeaderName = HeaderName::from_static("fulmar-protocol");
const VERSION: HeaderValue = HeaderValue::from_static("1");
/// Bytes at the start of a body that are frames.
const FRAMES: HeaderName = HeaderName::from_static("fulmar-frames");
/// A session that the program has to forget.
const FORGET: HeaderName = HeaderName::from_static("fulmar-forget");
/// The request's method, where that would leave no room for frames in the answer; and the status of such an answer.
const METHOD: HeaderName = HeaderName::from_static("fulmar-method");
const STATUS: HeaderName = HeaderName::from_static("fulmar-status");
/// What the program may want to know of its invocation.
const INVOCATION: HeaderName = HeaderName::from_static("fulmar-invocation");
const FUNCTION: HeaderName = HeaderName::from_static("fulmar-function");
const SESSION: HeaderName = HeaderName::from_static("fulmar-session");
const ATTEMPT: HeaderName = HeaderName::from_static("fulmar-attempt");
const DEADLINE: HeaderName = HeaderName::from_static("fulmar-deadline-unix-ms");
const READ_ONLY: HeaderName = HeaderName::from_static("fulmar-read-only");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// One running program.
pub(crate) struct Process {
    sender: SendRequest<Full<Bytes>>,
    /// Where it listens.
    socket: PathBuf,
    asked: mpsc::Receiver<Asked>,
    ended: Ended,
    usage: Option<Usage>,
    running: Running,
    writer: Arc<Writer>,
    /// What it remembers, once it has said that it speaks the protocol.
    memories: Option<Memories>,
    /// The session that it had last.
    last: Option<SessionName>,
    max_response_bytes: usize,
}

fn failed(text: impl Into<String>) -> CallError {
    CallError::Failed(text.into())
}

impl Process {
    /// Runs one invocation on its transaction.
    pub(crate) async fn call(
        &mut self,
        call: Call,
        tx: Transaction,
    ) -> (Transaction, Result<Reply, CallError>) {
        let deadline = call.deadline;
        // Asked by what an earlier invocation has left behind.
        while let Ok(asked) = self.asked.try_recv() {
            asked.refuse();
        }
        self.writer.begin(call.session.clone(), call.id.clone());
        self.running.begin(&call, tx);
        let answered = tokio::time::timeout_at(deadline.into(), self.answer(call)).await;
        let tx = self.running.end();
        (tx, answered.unwrap_or(Err(CallError::Timeout)))
    }

    /// What it has used of the CPUs so far, with all that it has started.
    pub(crate) fn used(&self) -> Option<Used> {
        self.usage.as_ref()?.used()
    }

    /// Whether it remembers something of a session.
    pub(crate) fn remembers(&self, session: &SessionName) -> bool {
        self.memories
            .as_ref()
            .is_some_and(|memories| memories.has(session))
    }

    /// What it remembers of the session that it had last is of this version from now on.
    pub(crate) fn committed(&mut self, tag: u64) {
        if let (Some(memories), Some(session)) = (&mut self.memories, &self.last)
            && let Some(memory) = memories.of(session)
        {
            memory.committed(tag);
        }
    }

    async fn answer(&mut self, call: Call) -> Result<Reply, CallError> {
        let request = self.request(call)?;
        if self.sender.ready().await.is_err() {
            // A server of HTTP/1.0, or one that is tired of the connection.
            let stream = tokio::select! {
                stream = start::connect(&self.socket) => stream?,
                why = self.ended.ended() => return Err(why),
            };
            self.sender = start::talk(stream).await?;
        }
        let Self {
            sender,
            asked,
            ended,
            running,
            ..
        } = self;
        let max = self.max_response_bytes;
        let mut answering = std::pin::pin!(async {
            let answer = sender.send_request(request).await?;
            collect(answer, max).await
        });
        let (mut head, mut body) = loop {
            tokio::select! {
                biased;
                answer = &mut answering => break match answer {
                    Ok(Some(answer)) => answer,
                    Ok(None) => return Err(CallError::ResponseTooLarge { limit: max }),
                    // Whether it has ended is known in a moment.
                    Err(error) => return Err(ended.explain(&error).await),
                },
                Some(asked) = asked.recv() => asked.answer(running).await,
                why = ended.ended() => return Err(why),
            }
        };
        let speaks = head
            .headers
            .remove(PROTOCOL)
            .is_some_and(|said| said == VERSION);
        if let Some(count) = head.headers.remove(FRAMES) {
            let count = count.to_str().ok().and_then(|count| count.parse().ok());
            let count = count.filter(|count| *count <= body.len());
            let count = count.ok_or_else(|| failed("the answer ends before its frames do"))?;
            frames::apply(body.split_to(count), &mut self.running)
                .map_err(|error| failed(error.to_string()))?;
        }
        let status = head.headers.remove(STATUS).filter(|_| speaks);
        if let Some(status) =
            status.and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok())
        {
            head.status = status;
        }
        match (speaks, &self.memories) {
            (true, None) => self.memories = Some(Memories::default()),
            (false, Some(_)) => self.memories = None,
            _ => {}
        }
        if let (Some(memories), Some(session)) = (&mut self.memories, &self.last)
            && let Some(tx) = self.running.tx()
        {
            memories.begin(session).0.ran(tx);
        }
        Ok(Reply::Http(Box::new(Response::from_parts(head, body))))
    }

    fn request(&mut self, call: Call) -> Result<http::Request<Full<Bytes>>, CallError> {
        let invalid = |error: http::Error| failed(format!("the request cannot be sent: {error}"));
        let Request::Http(request) = call.request else {
            let text = "a program takes an HTTP request, not bytes";
            return Err(CallError::Rejected(text.to_owned()));
        };
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned();
        head.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        let headers = &mut head.headers;
        // The way to the program is another than that from the client.
        for name in [
            CONNECTION,
            CONTENT_LENGTH,
            EXPECT,
            TRANSFER_ENCODING,
            UPGRADE,
            FRAMES,
        ] {
            headers.remove(name);
        }
        headers
            .entry(HOST)
            .or_insert(HeaderValue::from_static("fulmar"));
        let text = |text: &str| HeaderValue::from_str(text).map_err(|error| invalid(error.into()));
        headers.insert(PROTOCOL, VERSION);
        headers.insert(INVOCATION, text(&call.id)?);
        headers.insert(FUNCTION, text(call.function.as_str())?);
        headers.insert(ATTEMPT, call.attempt.into());
        headers.insert(DEADLINE, call.deadline_unix_ms.into());
        headers.remove(SESSION);
        if let Some(session) = &call.session {
            let session = HeaderValue::from_bytes(session.as_str().as_bytes());
            headers.insert(SESSION, session.map_err(|error| invalid(error.into()))?);
        }
        headers.remove(IDEMPOTENCY_KEY);
        if let Some(key) = &call.idempotency_key {
            headers.insert(IDEMPOTENCY_KEY, text(key)?);
        }
        headers.remove(READ_ONLY);
        let tx = self.running.tx();
        if tx.as_ref().is_some_and(|tx| tx.is_read_only()) {
            headers.insert(READ_ONLY, HeaderValue::from_static("true"));
        }
        headers.remove(FORGET);
        headers.remove(METHOD);
        if self.memories.is_some() && head.method == Method::HEAD {
            head.method = Method::GET;
            headers.insert(METHOD, HeaderValue::from_static("HEAD"));
        }
        let body = match (&mut self.memories, tx, &call.session) {
            // What it lacked it was sent with the first one of the transaction.
            (Some(memories), Some(_), Some(session)) if call.goes_on && memories.has(session) => {
                headers.insert(FRAMES, 0.into());
                body
            }
            (Some(memories), Some(tx), Some(session)) => {
                let (memory, forgotten) = memories.begin(session);
                if let Some(forgotten) = forgotten {
                    let name = HeaderValue::from_bytes(forgotten.as_str().as_bytes());
                    headers.insert(FORGET, name.map_err(|error| invalid(error.into()))?);
                }
                let frames = memory.lacks(tx, call.tag);
                headers.insert(FRAMES, frames.len().into());
                Bytes::from([&frames[..], &body[..]].concat())
            }
            _ => body,
        };
        self.last = call.session;
        Ok(http::Request::from_parts(head, Full::new(body)))
    }
}

/// The whole answer; none if it is too large.
async fn collect(
    answer: Response<Incoming>,
    max: usize,
) -> Result<Option<(http::response::Parts, Bytes)>, hyper::Error> {
    let (mut head, mut body) = answer.into_parts();
    // What it writes to its state has a limit of its own.
    let frames: usize = number(&head.headers, &FRAMES).unwrap_or_default();
    let most = frames.min(fulmar_state::MAX_TRANSACTION_BYTES * 2) + max;
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if whole.len() + data.len() > most {
                return Ok(None);
            }
            whole.extend_from_slice(&data);
        }
    }
    for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE] {
        head.headers.remove(name);
    }
    Ok(Some((head, whole.freeze())))
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<usize> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
