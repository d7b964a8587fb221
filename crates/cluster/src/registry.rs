//! The registry: the source of truth for what is proportional to nodes and functions.
//!
//! A small key-value store with revisions and leases, after etcd's: every change has a revision, a key
//! is written only if it is at the revision that the writer saw, and keys written under a lease go with
//! it. Two engines: [`embedded`] (a table in one node's local data store, served to the others by
//! [`remote`]) and [`etcd`].

pub mod embedded;
pub mod etcd;
pub mod remote;

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;

/// A change's place in the order of all changes; what was never written is at revision 0.
pub type Revision = u64;

/// A lease: as long as it is kept alive, so are its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub u64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// Its last change.
    pub revision: Revision,
}

/// Keys and values as of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// In the order of the keys.
    pub entries: Vec<Entry>,
    /// The last change that is in it.
    pub revision: Revision,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its value now; none: it was deleted.
    pub value: Option<Bytes>,
    /// When.
    pub revision: Revision,
}

/// What became of a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Done, at this revision.
    Done(Revision),
    /// Not done: the key is at another revision than expected (none: it is not there).
    Conflict(Option<Entry>),
}

/// The registry cannot answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or no answer in time; whether a write took effect is unknown.
    #[error("the registry cannot be reached: {0}")]
    Unreachable(String),
    /// It answers, but not as it should.
    #[error("the registry refused: {0}")]
    Refused(String),
    /// The lease ran out.
    #[error("the lease has run out")]
    LeaseLost,
    /// The changes asked for are no longer known: list again.
    #[error("the registry no longer knows the changes after revision {0}")]
    Compacted(Revision),
}

/// Changes in their order, some at a time.
pub type Changes = BoxStream<'static, Result<Vec<Change>, RegistryError>>;

/// The registry. Every call has a deadline of its own.
#[tonic::async_trait]
pub trait Registry: Send + Sync {
    /// All keys that start with `prefix`.
    async fn list(&self, prefix: &str) -> Result<Snapshot, RegistryError>;

    /// Writes a key that is at the revision `expected` (0: that is not there).
    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Revision,
        lease: Option<LeaseId>,
    ) -> Result<Written, RegistryError>;

    /// Deletes a key that is at the revision `expected`.
    async fn delete(&self, key: &str, expected: Revision) -> Result<Written, RegistryError>;

    /// A lease that runs out `ttl` after it was last kept alive.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError>;

    /// Keeps a lease alive.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), RegistryError>;

    /// All changes after a revision, as they happen.
    async fn watch(&self, after: Revision) -> Result<Changes, RegistryError>;
}
