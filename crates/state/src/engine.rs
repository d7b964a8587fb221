//! What the state crate needs of a key-value engine: point reads, ordered scans, one atomic write.
//!
//! Two engines: [`crate::fjall_engine::FjallEngine`] on disk and
//! [`crate::memory_engine::MemoryEngine`] for the `memory` home. Both are plain stores: hot state,
//! ordering and durability levels are built on top, in this crate, once.

use bytes::Bytes;

/// The tables of the local data store. The order is the order on disk: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Table {
    /// Format, epoch, deployed functions.
    System,
    /// One record a session: version, epoch, times.
    Sessions,
    /// The keys and values of sessions.
    State,
    /// The keys and values of shared buckets.
    Shared,
    /// Answers kept for their idempotency keys.
    Idempotency,
    /// Messages that wait for delivery.
    Messages,
    /// Messages that were given up.
    DeadLetters,
    /// Asynchronous invocations and their results.
    Invocations,
    /// Sessions that are not simply at home here: on their way, or gone.
    Homes,
    /// Who is home to the groups of the directory shards that this node owns.
    Directory,
    /// The embedded registry, on the node that has it.
    Registry,
    /// What is committed and still to be copied to the object store.
    Changelog,
    /// Messages that another node had to deliver, from which this one has taken over.
    Adopted,
}

impl Table {
    /// All tables, in the order of their discriminants.
    pub const ALL: [Table; 13] = [
        Table::System,
        Table::Sessions,
        Table::State,
        Table::Shared,
        Table::Idempotency,
        Table::Messages,
        Table::DeadLetters,
        Table::Invocations,
        Table::Homes,
        Table::Directory,
        Table::Registry,
        Table::Changelog,
        Table::Adopted,
    ];

    /// The table's name in the engine.
    pub fn name(self) -> &'static str {
        match self {
            Table::System => "system",
            Table::Sessions => "sessions",
            Table::State => "state",
            Table::Shared => "shared",
            Table::Idempotency => "idempotency",
            Table::Messages => "messages",
            Table::DeadLetters => "dead_letters",
            Table::Invocations => "invocations",
            Table::Homes => "homes",
            Table::Directory => "directory",
            Table::Registry => "registry",
            Table::Changelog => "changelog",
            Table::Adopted => "adopted",
        }
    }
}

/// One write: a value, or none to delete the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write<'a> {
    /// Where.
    pub table: Table,
    /// Which key.
    pub key: &'a [u8],
    /// The value; none deletes.
    pub value: Option<&'a [u8]>,
}

/// The engine could not read or write; after a failed write it must not be written to again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// Receives one key and value of a scan; returns false to stop.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> bool + 'a;

/// An ordered key-value store with atomic batches.
pub trait Engine: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Visits, in byte order, the keys that start with `prefix` and are greater than `after`.
    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError>;

    /// Applies all writes or none. With `sync` they are on stable storage when it returns. No key
    /// may occur twice in a table.
    fn write(&self, writes: &[Write<'_>], sync: bool) -> Result<(), EngineError>;

    /// About how many keys a table has.
    fn approximate_len(&self, table: Table) -> usize;

    /// Makes everything written before durable.
    fn sync(&self) -> Result<(), EngineError>;
}
