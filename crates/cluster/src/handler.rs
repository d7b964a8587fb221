//! What a node does when another calls it; implemented above, where functions are known.

use std::ops::Range;

use bytes::Bytes;
use fulmar_model::{Durability, Epoch, Group, NodeName, Problem, Version};
use fulmar_state::Table;
use fulmar_state::record::{IdempotencyRecord, MessageRecord, StoredReply};
use futures_util::stream::BoxStream;

use crate::registry::Revision;

/// The answer to a forwarded request.
#[derive(Debug)]
pub struct Forwarded {
    /// What the client gets.
    pub response: http::Response<Bytes>,
    /// Set when the session is elsewhere: where, under which epoch. Then nothing ran.
    pub moved: Option<(NodeName, Epoch)>,
}

/// A message from another node.
#[derive(Debug)]
pub struct Delivery {
    /// The data directory that the message is stored in.
    pub instance: String,
    /// Its key there.
    pub key: [u8; 12],
    /// No message of that data directory with a key among these will be sent again.
    pub settled: Range<[u8; 12]>,
    /// The message.
    pub message: MessageRecord,
    /// Under which this node has to be home to the receiving session; 0: whichever.
    pub epoch: Epoch,
}

/// What became of it.
#[derive(Debug)]
pub enum Delivered {
    /// It is delivered, durably, now or before; with the answer, if it is an asynchronous invocation.
    Done(Option<StoredReply>),
    /// It is not.
    Failed(Problem),
    /// Its session is elsewhere: where, under which epoch, if that is known.
    Moved(Option<(NodeName, Epoch)>),
}

/// What a copy of a session is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageHead {
    /// The session.
    pub group: Group,
    /// The epoch that it has at its new home.
    pub epoch: Epoch,
    /// The same for all parts of one attempt.
    pub attempt: u64,
    /// Whether this is the beginning of a copy, or what has changed since.
    pub first: bool,
    /// The session's version, if the copy is complete after this.
    pub last: Option<Version>,
}

/// One of a session's stored entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageEntry {
    /// [`Table::State`] or [`Table::Idempotency`].
    pub table: Table,
    /// Without the session's prefix.
    pub key: Bytes,
    /// None: deleted.
    pub value: Option<Bytes>,
}

/// A session's state, lent to another node.
#[derive(Debug, Clone)]
pub struct Lent {
    /// The session's version.
    pub version: Version,
    /// The epoch of its home.
    pub epoch: Epoch,
    /// All keys and values; none: too many to be sent.
    pub entries: Option<Vec<(String, Bytes)>>,
}

/// What came of an invocation that ran on lent state.
#[derive(Debug, Clone)]
pub struct Returned {
    /// The session.
    pub group: Group,
    /// What was lent.
    pub version: Version,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Keys with their values now; none: deleted.
    pub writes: Vec<(String, Option<Bytes>)>,
    /// Messages to be sent.
    pub messages: Vec<MessageRecord>,
    /// The client's idempotency key, with the record to keep for it.
    pub idempotency: Option<(String, IdempotencyRecord)>,
    /// When the commit counts.
    pub durability: Durability,
}

/// What the home made of it.
#[derive(Debug, Clone)]
pub enum Settled {
    /// Committed: the session's version now.
    Committed(Version),
    /// The session is not as it was lent: nothing was committed.
    Conflict,
    /// The idempotency key was answered before: nothing was committed.
    Replay(IdempotencyRecord),
}

/// Why a home does nothing.
#[derive(Debug, Clone)]
pub enum NotHere {
    /// The session is elsewhere: where, under which epoch, if that is known.
    Moved(Option<(NodeName, Epoch)>),
    /// Something else.
    Failed(Problem),
}

/// Entries of a copy, some at a time.
pub type Entries = BoxStream<'static, Result<Vec<StageEntry>, String>>;

/// A mean of what was measured last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// In seconds.
    pub mean: f64,
    /// Standard error of the mean, in seconds.
    pub error: f64,
}

/// What a node does when another calls it.
#[tonic::async_trait]
pub trait Handler: Send + Sync + 'static {
    /// How many bytes of state this node has room for beyond what it has; none if that is not known.
    fn room_bytes(&self) -> Option<u64>;

    /// How many bytes of memory workers may have here; none if that is not bounded.
    fn worker_bytes(&self) -> Option<u64>;

    /// How long functions with an SLO take here.
    fn execution_times(&self) -> Vec<(String, Measured)>;

    /// Answers a client's request that another node took.
    async fn forward(&self, from: &NodeName, request: http::Request<Bytes>) -> Forwarded;

    /// Delivers a message of another node, once.
    async fn deliver(&self, delivery: Delivery) -> Delivered;

    /// Lends a session's state, or the value of a shared key.
    ///
    /// # Errors
    /// When it is not at home here, or cannot be loaded.
    async fn load(&self, from: &NodeName, group: &Group) -> Result<Lent, NotHere>;

    /// Commits what came of an invocation that ran on lent state.
    ///
    /// # Errors
    /// When the session is not at home here, or nothing can be committed.
    async fn commit(&self, from: &NodeName, returned: Returned) -> Result<Settled, NotHere>;

    /// Takes a copy of a session, durably if it is complete.
    ///
    /// # Errors
    /// When it cannot be taken; then it is of no use.
    async fn stage(
        &self,
        from: &NodeName,
        head: StageHead,
        entries: Entries,
    ) -> Result<(), Problem>;

    /// Hears whether this node has become home to a session of which it has a copy.
    async fn settle(&self, group: &Group, epoch: Epoch, attempt: u64, arrived: bool);

    /// A component by its digest, if it is here.
    async fn artifact(&self, digest: &str) -> Option<Bytes>;

    /// Waits until what the registry said up to a revision is in effect here.
    ///
    /// # Errors
    /// What cannot be put into effect.
    async fn catch_up(&self, revision: Revision) -> Result<(), Problem>;
}
