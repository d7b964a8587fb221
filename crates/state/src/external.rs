//! External state homes: sessions that are kept in Redis, in PostgreSQL or in an object store, where any node
//! finds them.
//!
//! A session there is at home on no node. Whoever runs an invocation reads the session, unless it still knows it, and
//! commits with one conditional write: it takes effect if the session's version is what the invocation has seen. State,
//! messages to be sent and the answer for an idempotency key become visible with it together.

mod objects;
mod postgres;
mod redis;

use std::collections::BTreeMap;

use bytes::Bytes;
use fulmar_model::{Epoch, FunctionName, Group, Version};
use serde::{Deserialize, Serialize};

use crate::objects::ObjectsError;
use crate::record::{IdempotencyRecord, MessageRecord, Record, RecordError};

/// What every name in an external store begins with.
const NAMESPACE: &str = "fulmar";

/// A session as the store has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Its version; 0 if there is no such session.
    pub version: Version,
    /// All keys and values.
    pub entries: Vec<(String, Bytes)>,
    /// By whom it was closed, if it was: then it is only for its home, which is putting it here or taking it away.
    pub closed: Option<Closed>,
}

/// Key of what closes a session for everybody but its home; no function's key begins so.
pub const CLOSED: &str = "\u{1}closed";

/// By whom a session was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Random number of this stay of the session in the store.
    pub stay: u64,
    /// Under which the home was home then.
    pub epoch: Epoch,
}

impl Closed {
    /// As the value of [`CLOSED`].
    pub fn value(&self) -> Bytes {
        format!("{:x}:{:x}", self.stay, self.epoch.0).into()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (stay, epoch) = std::str::from_utf8(value).ok()?.split_once(':')?;
        Some(Self {
            stay: u64::from_str_radix(stay, 16).ok()?,
            epoch: Epoch(u64::from_str_radix(epoch, 16).ok()?),
        })
    }
}

/// What came of an invocation.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    /// The session.
    pub group: &'a Group,
    /// The version that the invocation has seen.
    pub base: Version,
    /// The version that it makes. Never one that the session has had before, not even if it was removed since.
    pub next: Version,
    /// Keys with their values now; none: deleted.
    pub writes: &'a [(String, Option<Bytes>)],
    /// Messages to be sent.
    pub messages: &'a [Unsent],
    /// What makes repetitions get the first answers, with the records to keep for them.
    pub answers: &'a [(String, IdempotencyRecord)],
    /// Now, in milliseconds since the Unix epoch: records that have expired by then do not count.
    pub now_unix_ms: u64,
}

impl Change<'_> {
    /// Whether the session has another version afterwards.
    fn makes_a_version(&self) -> bool {
        !self.writes.is_empty() || !self.messages.is_empty()
    }

    fn version_after(&self) -> Version {
        match self.makes_a_version() {
            true => self.next,
            false => self.base,
        }
    }
}

/// A message that nobody has taken yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsent {
    /// The data directory of the node that ran the invocation.
    pub by: String,
    /// The message.
    pub message: MessageRecord,
}

impl Record for Unsent {}

/// What the store made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in effect: the session's version now.
    Committed(Version),
    /// The session has another version: nothing is in effect.
    Conflict,
    /// An idempotency key was answered before: nothing is in effect.
    Replay(IdempotencyRecord),
}

/// Which message of a session: the version that its invocation made, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId {
    /// The version.
    pub version: Version,
    /// Its place.
    pub index: u32,
}

/// An external store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// The URL means nothing.
    #[error(
        "{0:?} is no external store; write redis://HOST, rediss://HOST, postgres://USER@HOST/DATABASE, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or a folder"
    )]
    Url(String),
    /// It did not do what it was asked; whether a write took effect is unknown.
    #[error("the external store cannot {doing}: {reason}")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// What was said.
        reason: String,
    },
    /// What is in the store is not what Fulmar writes.
    #[error("the external store holds what is no session: {0}")]
    Damaged(#[from] RecordError),
    /// The object store behind it.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
}

/// A new identity.
fn some_identity() -> String {
    format!("{:032x}", fastrand::u128(..))
}

impl ExternalError {
    fn failed(doing: &'static str, error: &dyn std::error::Error) -> Self {
        // What matters is often in the cause: `db error` alone says nothing.
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            source = cause.source();
        }
        Self::Failed { doing, reason }
    }
}

/// A store that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Tells it from every other store.
    pub identity: String,
    /// What could lose what it has acknowledged, for whoever runs it.
    pub caveats: Vec<String>,
}

/// An external store.
pub struct External(Kind);

enum Kind {
    Redis(Box<redis::Redis>),
    Postgres(postgres::Postgres),
    Objects(objects::Bucket),
}

macro_rules! each {
    ($self:ident, $store:ident => $call:expr) => {
        match &$self.0 {
            Kind::Redis($store) => $call.await,
            Kind::Postgres($store) => $call.await,
            Kind::Objects($store) => $call.await,
        }
    };
}

impl External {
    /// Opens a store by its URL; options are those of object stores. Nothing is sent yet.
    ///
    /// # Errors
    /// When the URL means nothing.
    pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Self, ExternalError> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        Ok(Self(match scheme {
            "redis" | "rediss" => Kind::Redis(Box::new(redis::Redis::open(url)?)),
            "postgres" | "postgresql" => Kind::Postgres(postgres::Postgres::open(url)?),
            _ => Kind::Objects(objects::Bucket::open(url, options)?),
        }))
    }

    /// Connects, makes what has to be there, and says what is against relying on it.
    ///
    /// # Errors
    /// When it cannot be reached, or does not let us.
    pub async fn prepare(&self) -> Result<Ready, ExternalError> {
        each!(self, store => store.prepare())
    }

    /// Reads a session.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn load(&self, group: &Group) -> Result<Kept, ExternalError> {
        let mut kept: Kept = each!(self, store => store.load(group))?;
        let Some(at) = kept.entries.iter().position(|(key, _)| key == CLOSED) else {
            return Ok(kept);
        };
        let (_, value) = kept.entries.swap_remove(at);
        let closed = Closed::parse(&value).ok_or_else(|| ExternalError::Failed {
            doing: "be understood",
            reason: format!("{group} is closed by {value:?}"),
        })?;
        kept.closed = Some(closed);
        Ok(kept)
    }

    /// Writes what came of an invocation, if the session is as the invocation has seen it.
    ///
    /// # Errors
    /// When it is not known whether it was written.
    pub async fn commit(&self, change: &Change<'_>) -> Result<Outcome, ExternalError> {
        each!(self, store => store.commit(change))
    }

    /// The answers kept for idempotency keys, in the order of the keys.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn answered(
        &self,
        group: &Group,
        keys: &[&str],
        now_unix_ms: u64,
    ) -> Result<Vec<Option<IdempotencyRecord>>, ExternalError> {
        match keys {
            [] => Ok(Vec::new()),
            keys => each!(self, store => store.answered(group, keys, now_unix_ms)),
        }
    }

    /// All answers that are kept for idempotency keys of a session, and what says which messages were delivered to it.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn answers(
        &self,
        group: &Group,
        now_unix_ms: u64,
    ) -> Result<Vec<(String, IdempotencyRecord)>, ExternalError> {
        each!(self, store => store.answers(group, now_unix_ms))
    }

    /// Keeps answers that were given elsewhere.
    ///
    /// # Errors
    /// When it is not known whether they are kept.
    pub async fn keep_answers(
        &self,
        group: &Group,
        answers: &[(String, IdempotencyRecord)],
        now_unix_ms: u64,
    ) -> Result<(), ExternalError> {
        each!(self, store => store.keep_answers(group, answers, now_unix_ms))
    }

    /// Deletes the answers kept for keys: nobody will ask for them again.
    ///
    /// # Errors
    /// When it is not known whether they are gone.
    pub async fn forget(&self, group: &Group, keys: &[String]) -> Result<(), ExternalError> {
        match keys {
            [] => Ok(()),
            keys => each!(self, store => store.forget(group, keys)),
        }
    }

    /// Deletes what has expired, where that does not go by itself.
    ///
    /// # Errors
    /// When it is not known whether it is gone.
    pub async fn tidy(&self, now_unix_ms: u64) -> Result<(), ExternalError> {
        match &self.0 {
            Kind::Postgres(store) => store.tidy(now_unix_ms).await,
            // Redis lets it expire; an object leaves it out when it is written again.
            Kind::Redis(_) | Kind::Objects(_) => Ok(()),
        }
    }

    /// Some of the sessions with messages that nobody has taken yet.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn unsent(&self, limit: usize) -> Result<Vec<Group>, ExternalError> {
        each!(self, store => store.unsent(limit))
    }

    /// A session's messages that nobody has taken yet, in the order of sending.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn messages(&self, group: &Group) -> Result<Vec<(MessageId, Unsent)>, ExternalError> {
        each!(self, store => store.messages(group))
    }

    /// Deletes messages that are stored elsewhere by now.
    ///
    /// # Errors
    /// When it is not known whether they are gone.
    pub async fn taken(&self, group: &Group, ids: &[MessageId]) -> Result<(), ExternalError> {
        each!(self, store => store.taken(group, ids))
    }

    /// Names of a function's sessions that come after one, in order, and at most so many.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn sessions(
        &self,
        function: &FunctionName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, ExternalError> {
        each!(self, store => store.sessions(function, after, limit))
    }

    /// Deletes a session with all that belongs to it.
    ///
    /// # Errors
    /// When it is not known whether it is gone.
    pub async fn remove(&self, group: &Group) -> Result<(), ExternalError> {
        each!(self, store => store.remove(group))
    }
}
