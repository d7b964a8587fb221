//! What goes into a worker and what comes out.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fulmar_model::{FunctionName, SessionName};

/// One invocation, as a worker gets it.
#[derive(Debug)]
pub struct Call {
    /// Identifier of the invocation.
    pub id: Arc<str>,
    /// The function.
    pub function: FunctionName,
    /// Its session, if it has one.
    pub session: Option<SessionName>,
    /// The session's version, which its worker may remember.
    pub tag: u64,
    /// Whether it goes on with the transaction of the worker's last call: then the worker knows what that wrote.
    pub goes_on: bool,
    /// The client's idempotency key, if it sent one.
    pub idempotency_key: Option<Arc<str>>,
    /// 1 for the first try.
    pub attempt: u32,
    /// When the worker is cut off.
    pub deadline: Instant,
    /// The same, in milliseconds since the Unix epoch.
    pub deadline_unix_ms: u64,
    /// What to work on.
    pub request: Request,
}

/// The input, whole.
#[derive(Debug, Clone)]
pub enum Request {
    /// For a component of `fulmar:function`.
    Bytes(Bytes),
    /// For a component of `wasi:http/proxy`, or a program.
    Http(Box<http::Request<Bytes>>),
}

/// The output, whole.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Of a component of `fulmar:function`.
    Bytes(Bytes),
    /// Of a component of `wasi:http/proxy`, or a program.
    Http(Box<http::Response<Bytes>>),
}

/// Why there is no reply. The worker must not be used again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The function trapped.
    #[error("trapped: {0}")]
    Trap(String),
    /// The deadline passed.
    #[error("ran past its deadline")]
    Timeout,
    /// It asked for more memory than it may have, and trapped.
    #[error("asked for more than {limit} bytes of memory")]
    MemoryLimit {
        /// The limit in bytes.
        limit: usize,
    },
    /// It used up its stack.
    #[error("used up its stack")]
    StackOverflow,
    /// It said that it failed.
    #[error("failed: {0}")]
    Failed(String),
    /// It said that the input is wrong.
    #[error("rejected the input: {0}")]
    Rejected(String),
    /// It returned without a response.
    #[error("returned without a response")]
    NoResponse,
    /// Its response is too large.
    #[error("answered more than {limit} bytes")]
    ResponseTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The engine has no slot left for another live worker.
    #[error("the node has no room for another live worker")]
    NoRoom,
    /// The program ended.
    #[error("ended: {0}")]
    Exited(String),
    /// It could not be started.
    #[error("could not start: {0}")]
    Start(String),
}
