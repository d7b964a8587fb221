//! One invocation on its way through the node, and what comes of it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fulmar_model::{Code, Epoch, NodeName, Problem, SessionName};
use fulmar_state::record::StoredReply;
use fulmar_worker::{Reply, Request};
use http::header::{CONTENT_TYPE, HeaderName};
use tokio::sync::oneshot;

use crate::courier::HandedIn;

/// Identifier of an invocation: unique on the node, also across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct InvocationId {
    pub(crate) epoch: u64,
    pub(crate) number: u64,
}

impl std::fmt::Display for InvocationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{:x}", self.epoch, self.number)
    }
}

/// The node in the text of an invocation's identifier, if it names one.
pub(crate) fn node_of(id: &str) -> Option<NodeName> {
    let mut parts = id.rsplitn(3, '-');
    let node = parts.nth(2)?;
    NodeName::new(node).ok()
}

/// The client's idempotency key, and what it was used for.
#[derive(Debug, Clone)]
pub(crate) struct IdempotencyKey {
    pub(crate) key: Arc<str>,
    /// SHA-256 of method, path and body.
    pub(crate) request: [u8; 32],
}

/// What an invocation has to answer, and where to.
pub(crate) struct Invocation {
    pub(crate) id: InvocationId,
    pub(crate) session: Option<SessionName>,
    pub(crate) request: Request,
    pub(crate) state: StateFrom,
    /// What makes a repetition get the first answer; a delivery is unique without it.
    pub(crate) idempotency: Option<IdempotencyKey>,
    /// The client's key as the function sees it.
    pub(crate) idempotency_key: Option<Arc<str>>,
    /// Declared read-only: may run beside others, may not write.
    pub(crate) read_only: bool,
    /// 1 for the first try.
    pub(crate) attempt: u32,
    pub(crate) arrived: Instant,
    pub(crate) origin: Origin,
}

/// Where the state of an invocation's session comes from.
pub(crate) enum StateFrom {
    /// From this node, if it is home to the session, or from nobody.
    Home,
    /// From the client, which sent it along.
    Token(Box<str>),
    /// From its home, from where its client takes it along.
    Leaving,
    /// From the client, which brings it back to its home.
    Returned(Box<str>),
    /// From its home, which lends it.
    Node(NodeName),
    /// From the external store, into which its home has put it.
    Store,
}

/// Who waits for the outcome.
pub(crate) enum Origin {
    /// A client on its connection.
    Client(oneshot::Sender<Outcome>),
    /// A message from the outbox.
    Message {
        message: Box<HandedIn>,
        /// Hears as soon as the delivery is committed or failed.
        done: oneshot::Sender<Result<(), Problem>>,
    },
    /// A message from the outbox of another node.
    Delivery {
        receipt: Box<Receipt>,
        /// Hears once the delivery is durable or failed.
        done: oneshot::Sender<Result<Option<StoredReply>, Problem>>,
    },
}

/// That a message of another node was delivered.
pub(crate) struct Receipt {
    /// Key of the record that says so.
    pub(crate) key: Vec<u8>,
    /// Keys of such records that are of no more use.
    pub(crate) settled: Vec<Vec<u8>>,
    /// Whether the answer is wanted as well.
    pub(crate) wants_reply: bool,
    /// Under which this node has to be home to the session; 0: whichever. What was sent to it before the session was
    /// elsewhere may have been delivered there.
    pub(crate) under: Epoch,
}

impl Origin {
    /// Whether nobody waits any more. A message always waits.
    pub(crate) fn is_abandoned(&self) -> bool {
        matches!(self, Origin::Client(reply) if reply.is_closed())
    }
}

/// An answer, or why there is none.
pub(crate) type Outcome = Result<Answer, Problem>;

/// What a function answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    /// The invocation that made it.
    pub(crate) invocation: Arc<str>,
    /// Whether it was kept from an earlier invocation with the same idempotency key.
    pub(crate) replayed: bool,
}

/// Exclusive use of a session, out of the order of invocations; given back when dropped.
pub(crate) struct Turn {
    /// Dropping it tells whoever runs the queue to go on.
    pub(crate) _done: oneshot::Sender<std::convert::Infallible>,
}

/// Type of the answers of functions that speak bytes.
pub(crate) const BYTES_TYPE: &str = "application/octet-stream";

/// A reply as it is kept.
pub(crate) fn store_reply(reply: &Reply) -> StoredReply {
    match reply {
        Reply::Bytes(body) => StoredReply {
            status: 200,
            headers: vec![(CONTENT_TYPE.as_str().to_owned(), BYTES_TYPE.into())],
            body: body.to_vec(),
        },
        Reply::Http(response) => StoredReply {
            status: response.status().as_u16(),
            headers: response
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body: response.body().to_vec(),
        },
    }
}

/// A kept reply as a response again.
pub(crate) fn restore_reply(stored: StoredReply) -> Result<Reply, Problem> {
    let bad = |error: &dyn std::fmt::Display| {
        Problem::new(
            Code::Internal,
            format!("a stored reply cannot be read: {error}"),
        )
    };
    let mut response = http::Response::new(Bytes::from(stored.body));
    *response.status_mut() =
        http::StatusCode::from_u16(stored.status).map_err(|error| bad(&error))?;
    for (name, value) in stored.headers {
        let name = HeaderName::try_from(name).map_err(|error| bad(&error))?;
        let value = http::HeaderValue::try_from(value).map_err(|error| bad(&error))?;
        response.headers_mut().append(name, value);
    }
    Ok(Reply::Http(Box::new(response)))
}
