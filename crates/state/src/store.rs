//! The state of one node: engine, group commit, shared buckets, records.

mod invocation;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fulmar_model::{Durability, Epoch, Group, Version};

use crate::changelog::{Changelog, ship};
use crate::commit::{Cause, GroupCommit, Release, RunReleases, StoreFailure, Ticket, Writer};
use crate::datadir::DataDir;
use crate::engine::{Engine, EngineError, Table, Visit};
use crate::fjall_engine::FjallEngine;
use crate::key;
use crate::memory_engine::MemoryEngine;
use crate::observe::CommitObserver;
use crate::placed::PlacedKeys;
use crate::recent::Recent;
use crate::record::{MessageRecord, NodeRecord, Record, RecordError, SessionRecord};
use crate::sealed::Carried;
use crate::session::{Home, SessionState};
use crate::shared::{SharedBuckets, SharedWrites};
use crate::submitters::Submitters;
use crate::transaction::{StateError, Transaction};

pub use invocation::{Bookkeeping, Committed, Prepared, ReservedKeys};

/// Tickets of one start: far more commits than a start can make.
const TICKETS_PER_EPOCH_BITS: u32 = 44;
/// Key of the node's record in the system table.
const NODE_KEY: &[u8] = b"node";

/// The store could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine said no.
    #[error("the local data store: {0}")]
    Engine(#[from] EngineError),
    /// A stored record cannot be read.
    #[error("the local data store has a bad record in table {}: {error}", .table.name())]
    Record {
        /// In which table.
        table: Table,
        /// What is wrong with it.
        error: RecordError,
    },
    /// The session was committed to by a home with a higher epoch.
    #[error(
        "the session {group} belongs to a newer home (epoch {stored:?}, this node has {own:?})"
    )]
    Fenced {
        /// The session.
        group: Group,
        /// The epoch of its last commit.
        stored: Epoch,
        /// This node's epoch.
        own: Epoch,
    },
    /// A commit failed.
    #[error(transparent)]
    Failed(#[from] StoreFailure),
    /// A thread could not be started.
    #[error("cannot start the commit thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The state of one node.
pub struct Store {
    engine: Arc<dyn Engine>,
    commit: GroupCommit,
    shared: SharedBuckets,
    recent: Recent,
    epoch: Epoch,
    next_writer: AtomicU64,
    /// Who reads shared keys, if they are placed among nodes.
    placed_keys: OnceLock<Arc<dyn PlacedKeys>>,
    changelog: Option<Arc<Changelog>>,
    /// The ticket before the first of this start.
    first: Ticket,
}

impl Store {
    /// Opens the home `local data store`: fjall in a folder. With `copies` what is committed is kept until it
    /// is in the object store as well ([`crate::changelog::ship`]).
    pub fn local(
        dir: &DataDir,
        observer: Arc<dyn CommitObserver>,
        run_releases: RunReleases,
        submitters: Arc<Submitters>,
        copies: bool,
    ) -> Result<Arc<Self>, StoreError> {
        let engine = Arc::new(FjallEngine::open(&dir.store())?);
        let writer = Writer::Thread(submitters);
        Self::open(engine, observer, run_releases, writer, copies)
    }

    /// Opens the home `memory`: nothing survives the process.
    pub fn memory(
        observer: Arc<dyn CommitObserver>,
        run_releases: RunReleases,
    ) -> Result<Arc<Self>, StoreError> {
        let writer = Writer::Thread(Arc::new(Submitters::uncounted()));
        let engine = Arc::new(MemoryEngine::default());
        Self::open(engine, observer, run_releases, writer, false)
    }

    /// Opens a store on any engine: every start has an epoch of its own.
    pub fn open(
        engine: Arc<dyn Engine>,
        observer: Arc<dyn CommitObserver>,
        run_releases: RunReleases,
        writer: Writer,
        copies: bool,
    ) -> Result<Arc<Self>, StoreError> {
        let table = Table::System;
        let epoch = match engine.get(table, NODE_KEY)? {
            None => Epoch(1),
            Some(bytes) => {
                let node = NodeRecord::decode(&bytes)
                    .map_err(|error| StoreError::Record { table, error })?;
                Epoch(node.epoch.0 + 1)
            }
        };
        let record = NodeRecord { epoch }.encode();
        let write = crate::engine::Write {
            table,
            key: NODE_KEY,
            value: Some(&record),
        };
        engine.write(&[write], true)?;
        let first = Ticket(epoch.0 << TICKETS_PER_EPOCH_BITS);
        let changelog = copies.then(|| Arc::new(Changelog::new()));
        let store = Arc::new(Self {
            commit: GroupCommit::start(
                engine.clone(),
                changelog.clone(),
                first,
                observer,
                run_releases,
                writer,
            )?,
            changelog,
            first,
            shared: SharedBuckets::new(engine.clone()),
            recent: Recent::default(),
            engine,
            epoch,
            next_writer: AtomicU64::new(1),
            placed_keys: OnceLock::new(),
        });
        if !copies {
            // From now on it would miss something.
            ship::close(&store)?;
        }
        Ok(store)
    }

    /// What of the commits is in the object store, if they are copied there.
    pub fn changelog(&self) -> Option<&Arc<Changelog>> {
        self.changelog.as_ref()
    }

    /// The ticket before the first of this start.
    pub(crate) fn first_ticket(&self) -> Ticket {
        self.first
    }

    /// From now on shared keys are placed among nodes, and read by this.
    pub fn place_keys(&self, placed: Arc<dyn PlacedKeys>) {
        // The first one stays: there is only one start.
        let _ = self.placed_keys.set(placed);
    }

    pub(crate) fn placed_keys(&self) -> Option<&Arc<dyn PlacedKeys>> {
        self.placed_keys.get()
    }

    /// The epoch of this start.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The group commit: tickets, durability, failure.
    pub fn commits(&self) -> &GroupCommit {
        &self.commit
    }

    /// Loads a session under the epoch in which this node is home to it; a new one is empty. The caller
    /// keeps at most one per session.
    pub fn load_session(
        &self,
        group: &Group,
        epoch: Epoch,
    ) -> Result<Arc<SessionState>, StoreError> {
        let version = match self.session_record(group)? {
            None => Version(0),
            Some(record) if record.epoch > epoch => {
                return Err(StoreError::Fenced {
                    group: group.clone(),
                    stored: record.epoch,
                    own: epoch,
                });
            }
            Some(record) => record.version,
        };
        let engine = self.engine.clone();
        let applied = self.commit.applied_counter();
        let loaded = SessionState::load(group.clone(), engine, applied, version, epoch)?;
        loaded.saw(self.seen());
        Ok(Arc::new(loaded))
    }

    /// A session that its client carries, with what it sent.
    pub fn carry_session(&self, group: Group, carried: Carried) -> Arc<SessionState> {
        let position = (carried.version, Epoch(0));
        let entries = carried.entries.into_iter();
        let entries = entries.map(|(key, value)| (key, value.into()));
        self.give_session(group, Home::Client, position, carried.left, entries)
    }

    /// A session that another node has lent.
    pub fn borrow_session(
        &self,
        group: Group,
        version: Version,
        epoch: Epoch,
        entries: Vec<(String, Bytes)>,
    ) -> Arc<SessionState> {
        let position = (version, epoch);
        self.give_session(group, Home::Node, position, 0, entries.into_iter())
    }

    fn give_session(
        &self,
        group: Group,
        home: Home,
        position: (Version, Epoch),
        left: u64,
        entries: impl Iterator<Item = (String, Bytes)>,
    ) -> Arc<SessionState> {
        let engine = self.engine.clone();
        let applied = self.commit.applied_counter();
        let state = SessionState::given(group, engine, applied, home, position, left, entries);
        Arc::new(state)
    }

    /// The record of a session, if it was ever committed to. Its latest commits may not show yet.
    pub fn session_record(&self, group: &Group) -> Result<Option<SessionRecord>, StoreError> {
        self.record(Table::Sessions, &key::session(group))
    }

    /// Begins an invocation's view of the state.
    pub fn begin(
        self: &Arc<Self>,
        session: Option<Arc<SessionState>>,
        read_only: bool,
    ) -> Transaction {
        Transaction::new(self.clone(), session, read_only)
    }

    /// A number that no other invocation has, for [`Store::commit`] and [`Store::reserve`].
    pub fn next_writer(&self) -> u64 {
        self.next_writer.fetch_add(1, Ordering::Relaxed)
    }

    /// Commits bookkeeping of the node that belongs to no invocation's state; always durable.
    pub fn commit_bookkeeping(
        &self,
        bookkeeping: Bookkeeping,
        release: Release,
    ) -> Result<Ticket, StoreFailure> {
        let ticket = self
            .commit
            .submit(&bookkeeping.batch, |_, _| {}, Some(release))
            .map_err(|(failure, _)| failure)?;
        self.remember(bookkeeping.recent, ticket);
        Ok(ticket)
    }

    /// Commits new messages (asynchronous invocations), with bookkeeping; always durable.
    pub fn commit_message(
        &self,
        bookkeeping: Bookkeeping,
        message: &MessageRecord,
        release: Release,
    ) -> Result<[u8; 12], StoreFailure> {
        let encoded = message.encode();
        let ticket = self
            .commit
            .submit(
                &bookkeeping.batch,
                |ticket, batch| batch.put(Table::Messages, &[&key::message(ticket, 0)], &encoded),
                Some(release),
            )
            .map_err(|(failure, _)| failure)?;
        self.remember(bookkeeping.recent, ticket);
        Ok(key::message(ticket, 0))
    }

    fn remember(&self, recent: Vec<(Table, Vec<u8>, Option<Bytes>)>, ticket: Ticket) {
        let applied = self.commit.applied();
        for (table, key, value) in recent {
            self.recent.insert(table, &key, value, ticket, applied);
        }
    }

    /// Waits until a commit is durable.
    ///
    /// # Errors
    /// When it never will be.
    pub async fn durable(&self, ticket: Ticket) -> Result<(), StoreFailure> {
        let (done, settled) = tokio::sync::oneshot::channel();
        let release = Box::new(move |result| {
            let _ = done.send(result);
        });
        self.commit.when_durable(ticket, release);
        settled.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Waits until a commit is as safe as this node can make it: in the object store, if there is one.
    ///
    /// # Errors
    /// When it is not known whether it ever will be.
    pub async fn safe(&self, ticket: Ticket) -> Result<(), StoreFailure> {
        let Some(changelog) = &self.changelog else {
            return self.durable(ticket).await;
        };
        let (done, settled) = tokio::sync::oneshot::channel();
        let release = Box::new(move |result| {
            let _ = done.send(result);
        });
        changelog.when_shipped(ticket, release);
        settled.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Commits bookkeeping that nobody waits for, in order, without a sync of its own.
    pub(crate) fn commit_bookkeeping_lazily(
        &self,
        bookkeeping: Bookkeeping,
    ) -> Result<Ticket, StoreFailure> {
        let ticket = self
            .commit
            .submit(&bookkeeping.batch, |_, _| {}, None)
            .map_err(|(failure, _)| failure)?;
        self.remember(bookkeeping.recent, ticket);
        Ok(ticket)
    }

    /// Commits bookkeeping of the node and waits until it is durable.
    ///
    /// # Errors
    /// When it never will be.
    pub async fn commit_durably(&self, bookkeeping: Bookkeeping) -> Result<Ticket, StoreFailure> {
        let (done, settled) = tokio::sync::oneshot::channel();
        let release = Box::new(move |result| {
            let _ = done.send(result);
        });
        let ticket = self.commit_bookkeeping(bookkeeping, release)?;
        settled
            .await
            .unwrap_or_else(|_| Err(stopped()))
            .map(|()| ticket)
    }

    /// Runs `release` once `ticket` is durable at the level.
    pub fn release(&self, ticket: Ticket, durability: Durability, release: Release) {
        match durability {
            // Memory commits do not wait for the disk, unless it is so far behind that the queue
            // would grow without bound.
            Durability::Memory if !self.commit.is_backed_up() && !self.commit.has_failed() => {
                release(Ok(()))
            }
            Durability::Replicated => match &self.changelog {
                Some(changelog) => changelog.when_shipped(ticket, release),
                None => release(Err(StoreFailure {
                    cause: Cause::ObjectStore,
                    reason: "this node has none".into(),
                })),
            },
            _ => self.commit.when_durable(ticket, release),
        }
    }

    /// A record, including commits that are not applied yet for what [`Bookkeeping`] wrote.
    pub fn record<R: Record>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        Ok(self
            .record_with_ticket(table, key)?
            .map(|(record, _)| record))
    }

    /// A record and the commit that wrote it, or a later one; 0 if that is of no importance any more.
    pub fn record_with_ticket<R: Record>(
        &self,
        table: Table,
        key: &[u8],
    ) -> Result<Option<(R, Ticket)>, StoreError> {
        // Before the engine is asked: what is not applied by then is remembered.
        let applied = self.commit.applied();
        let (bytes, ticket) = match self.recent.get(table, key, applied) {
            Some(recent) => recent,
            None => {
                let stored = self.engine.get(table, key)?;
                (stored, self.seen())
            }
        };
        let decode =
            |bytes: Bytes| R::decode(&bytes).map_err(|error| StoreError::Record { table, error });
        Ok(bytes
            .map(decode)
            .transpose()?
            .map(|record| (record, ticket)))
    }

    /// The last commit of which something may be seen in the engine, if anybody could have to wait for it.
    fn seen(&self) -> Ticket {
        match &self.changelog {
            Some(_) => self.commit.applied(),
            None => Ticket(0),
        }
    }

    /// A value as the last applied commit left it.
    pub fn applied(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(table, key)
    }

    /// About how many records a table has.
    pub fn approximate_len(&self, table: Table) -> usize {
        self.engine.approximate_len(table)
    }

    /// Visits the applied records of a table in the order of their keys.
    pub fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        self.engine.scan(table, prefix, after, visit)
    }

    pub(crate) fn shared_get(&self, path: &[u8]) -> Result<(Option<Bytes>, Ticket), EngineError> {
        self.shared.get(path, self.commit.applied())
    }

    pub(crate) fn shared_keys(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        own: &SharedWrites,
    ) -> Result<Vec<String>, StateError> {
        let bucket = key::bucket(bucket);
        let stored_prefix = [&bucket, prefix.as_bytes()].concat();
        let stored_after = after
            .filter(|after| *after >= prefix)
            .map(|after| [&bucket, after.as_bytes()].concat());
        let paths = self
            .shared
            .paths(&stored_prefix, stored_after.as_deref(), limit, own)?;
        let key = |path: Vec<u8>| String::from_utf8_lossy(&path[bucket.len()..]).into_owned();
        Ok(paths.into_iter().map(key).collect())
    }
}

fn stopped() -> StoreFailure {
    StoreFailure {
        cause: Cause::Local,
        reason: "the node stopped".into(),
    }
}
