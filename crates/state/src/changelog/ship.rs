//! From the table of what is to be copied to the object store, one segment after the other.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::segment::{self, Content, Damaged, Segment};
use super::{Changelog, base, prefix};
use crate::commit::{StoreFailure, Ticket};
use crate::engine::{EngineError, Table, Write};
use crate::objects::{Objects, ObjectsError};
use crate::record::Record;
use crate::store::{Bookkeeping, Store, StoreError};

/// Pause between two segments that nobody waits for: each costs a request.
const EVERY: Duration = Duration::from_secs(1);
/// Content of one segment in bytes, about.
const SEGMENT_BYTES: usize = 8 << 20;
/// Pauses before a segment is tried again.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A new base is written after so many bytes, or as many as the last one has if that is more,
const BASE_BYTES: u64 = 64 << 20;
/// or after so many segments, and one more for so many bytes of the last base.
const BASE_SEGMENTS: u64 = 10_000;
const BASE_SEGMENT_BYTES: u64 = 64 << 10;
/// Rows that one commit deletes.
const DELETED_ROWS: usize = 10_000;
/// Key of the stream's record in the system table.
const STREAM_KEY: &[u8] = b"changelog/stream";

/// Where this data directory's log is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamRecord {
    /// Its number; every log of a data directory has another.
    pub(crate) stream: u64,
    /// The last segment that is known to be stored.
    pub(crate) sequence: u64,
    /// The last commit in it.
    pub(crate) ticket: u64,
    /// Which segment the base comes before, if there is one.
    pub(crate) base: Option<u64>,
    /// Size of the base.
    pub(crate) base_bytes: u64,
    /// Content of all segments since the base.
    pub(crate) log_bytes: u64,
    /// The last segment that was deleted.
    pub(crate) trimmed: u64,
    /// Nothing more goes into it.
    pub(crate) closed: bool,
}

impl Record for StreamRecord {}

/// Why copying came to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The node stops.
    Stopped,
    /// Somebody has taken over from this node.
    Fenced {
        /// Who.
        by: String,
        /// The last commit that is theirs as well.
        last: Ticket,
    },
}

/// The copy cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The local data store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The same.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The same.
    #[error(transparent)]
    Commit(#[from] StoreFailure),
    /// What is to be copied is not as it was stored.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// The number of the log that a data directory goes on with, if it has one.
///
/// # Errors
/// When the local data store cannot be read.
pub fn stream(store: &Store) -> Result<Option<u64>, StoreError> {
    let record = store.record::<StreamRecord>(Table::System, STREAM_KEY)?;
    Ok(record
        .filter(|record| !record.closed)
        .map(|record| record.stream))
}

/// Ends this data directory's log, so that the next one begins with a base of its own. What has not been copied
/// yet is forgotten as such when that one begins.
///
/// # Errors
/// When the local data store cannot be read or written.
pub fn close(store: &Store) -> Result<(), StoreError> {
    if let Some(mut record) = store.record::<StreamRecord>(Table::System, STREAM_KEY)?
        && !record.closed
    {
        record.closed = true;
        let mut bookkeeping = Bookkeeping::default();
        bookkeeping.put(Table::System, STREAM_KEY, &record);
        let committed = store.commit_bookkeeping(bookkeeping, Box::new(|_| {}));
        committed.map_err(|failure| EngineError(failure.to_string()))?;
    }
    Ok(())
}

/// Receives the writes of a batch, and the last commit in it.
pub type VisitUncopied<'a> = dyn FnMut(Ticket, &[Write<'_>]) -> Result<(), EngineError> + 'a;

/// What this node has committed and not copied: writes in their order, some at a time.
///
/// # Errors
/// When the local data store cannot be read, or `visit` says so.
pub fn uncopied(store: &Store, visit: &mut VisitUncopied<'_>) -> Result<(), ShipError> {
    let record = store.record::<StreamRecord>(Table::System, STREAM_KEY)?;
    let after = record.map_or(0, |record| record.ticket).to_be_bytes();
    let mut failed = None;
    store.scan(Table::Changelog, &[], Some(&after), &mut |key, content| {
        let visited = segment::writes(content)
            .map_err(ShipError::from)
            .and_then(|writes| Ok(visit(ticket(key), &writes)?));
        failed = visited.err();
        failed.is_none()
    })?;
    failed.map_or(Ok(()), Err)
}

fn ticket(key: &[u8]) -> Ticket {
    let number = key.try_into().map_or(0, u64::from_be_bytes);
    Ticket(number)
}

/// Copies until stopped, or until somebody takes over.
///
/// # Errors
/// When the local data store fails: then nothing is acknowledged any more anyway.
pub async fn ship(
    store: Arc<Store>,
    log: Arc<Changelog>,
    objects: Objects,
    instance: String,
    stop: CancellationToken,
) -> Result<Ended, ShipError> {
    let mut shipping = Shipping::open(store, log, objects, instance).await?;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = shipping.work_to_do() => {}
        }
        if let Some((by, last)) = shipping.step().await? {
            shipping.log.fenced(&by);
            return Ok(Ended::Fenced { by, last });
        }
    }
    // What is left goes out if that can be done at once; the next start does the rest.
    if let Some((by, last)) = shipping.step().await? {
        return Ok(Ended::Fenced { by, last });
    }
    Ok(Ended::Stopped)
}

struct Shipping {
    store: Arc<Store>,
    log: Arc<Changelog>,
    objects: Objects,
    prefix: String,
    record: StreamRecord,
    /// Tells this run of the node from others.
    run: u64,
    /// Whether the log is known to be this node's.
    proven: bool,
    last_put: Option<Instant>,
    retry: Duration,
    basing: Option<JoinHandle<Result<base::Base, ObjectsError>>>,
}

/// Rows of the table, as one segment's content.
struct Gathered {
    content: Vec<u8>,
    keys: Vec<Vec<u8>>,
    last: Ticket,
    is_all: bool,
}

impl Shipping {
    async fn open(
        store: Arc<Store>,
        log: Arc<Changelog>,
        objects: Objects,
        instance: String,
    ) -> Result<Self, ShipError> {
        let record = store.record::<StreamRecord>(Table::System, STREAM_KEY)?;
        let record = match record {
            Some(record) if !record.closed => record,
            before => begin(&store, before.unwrap_or_default()).await?,
        };
        log.begin(record.stream, Ticket(record.ticket));
        Ok(Self {
            store,
            log,
            objects,
            prefix: prefix(&instance, record.stream),
            record,
            run: fastrand::u64(..),
            proven: false,
            last_put: None,
            retry: RETRY,
            basing: None,
        })
    }

    /// Waits until there is something to copy, and it is time for it.
    async fn work_to_do(&mut self) {
        if !self.proven || self.basing.as_ref().is_some_and(JoinHandle::is_finished) {
            return;
        }
        loop {
            let notified = self.log.wake.notified();
            if self.log.is_waited_for() {
                return;
            }
            let behind = self.store.commits().applied() > Ticket(self.record.ticket);
            let due = self
                .last_put
                .map_or(Duration::ZERO, |last| EVERY.saturating_sub(last.elapsed()));
            match (behind, due) {
                (true, Duration::ZERO) => return,
                (true, due) => {
                    tokio::select! {
                        () = notified => {}
                        () = tokio::time::sleep(due) => {}
                    }
                }
                // A base that is being written ends unheard.
                (false, _) => {
                    let _ = tokio::time::timeout(EVERY, notified).await;
                    if self.basing.as_ref().is_some_and(JoinHandle::is_finished) {
                        return;
                    }
                }
            }
        }
    }

    /// Copies what there is, up to the size of a segment; who has taken over, and up to which commit, if somebody has.
    async fn step(&mut self) -> Result<Option<(String, Ticket)>, ShipError> {
        self.look_after_base().await?;
        let proofs = self.log.take_proofs();
        // What is in the log has to be here as well, whatever the level of durability that was asked for.
        let wanted = self.log.wanted().unwrap_or_default();
        let wanted = wanted.max(self.store.commits().applied());
        if let Err(failure) = self.store.durable(wanted).await {
            self.log.put_back(proofs);
            return Err(failure.into());
        }
        // Whole batches: what is to be copied of one is stored under its last commit, which may come after the one that is
        // waited for.
        let durable = self.store.commits().durable();
        let gathered = self.gather(durable.max(Ticket(self.record.ticket)))?;
        if gathered.content.is_empty() && proofs.is_empty() && self.proven {
            self.record.ticket = gathered.last.0;
            self.log.advance(gathered.last, true);
            return Ok(None);
        }
        let sequence = self.record.sequence + 1;
        let segment = Segment {
            stream: self.record.stream,
            sequence,
            run: self.run,
            first: Ticket(self.record.ticket + 1),
            last: gathered.last,
            content: Content::Writes(Bytes::copy_from_slice(&gathered.content)),
        };
        match self.put(&segment).await {
            Ok(Put::Stored) => {
                self.stored(&gathered)?;
                for (_, proof) in proofs {
                    // Whoever asked may be gone.
                    let _ = proof.send(Ok(()));
                }
                Ok(None)
            }
            Ok(Put::StoredBefore(last)) => {
                // What it covers is gathered no more; whoever wants a proof gets it with the next.
                self.log.put_back(proofs);
                self.record.sequence = sequence;
                self.record.ticket = last.0;
                let mut bookkeeping = Bookkeeping::default();
                for key in gathered.keys.iter().filter(|key| ticket(key) <= last) {
                    bookkeeping.delete_raw(Table::Changelog, key);
                }
                self.keep(bookkeeping)?;
                Ok(None)
            }
            Ok(Put::Fenced(by, last)) => {
                self.log.put_back(proofs);
                Ok(Some((by, last)))
            }
            Err(error) => {
                tracing::warn!(%error, "what is committed here cannot be copied to the object store at this moment");
                self.log.failing(&error.to_string(), proofs);
                self.pause().await;
                Ok(None)
            }
        }
    }

    /// Longer after every failure in a row.
    async fn pause(&mut self) {
        tokio::time::sleep(self.retry).await;
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    /// The rows up to a ticket, or as many as fit into a segment: of each key the last write.
    fn gather(&self, upto: Ticket) -> Result<Gathered, ShipError> {
        let mut rows: Vec<(Vec<u8>, Bytes)> = Vec::new();
        let mut bytes = 0;
        let mut is_all = true;
        let after = self.record.ticket.to_be_bytes();
        self.store
            .scan(Table::Changelog, &[], Some(&after), &mut |key, content| {
                if ticket(key) > upto {
                    return false;
                }
                if bytes > SEGMENT_BYTES {
                    is_all = false;
                    return false;
                }
                bytes += content.len();
                rows.push((key.to_vec(), Bytes::copy_from_slice(content)));
                true
            })?;
        let mut content = Vec::with_capacity(bytes.min(SEGMENT_BYTES));
        let mut seen: HashSet<(Table, &[u8])> = HashSet::new();
        for (_, row) in rows.iter().rev() {
            for write in segment::writes(row)?.into_iter().rev() {
                if seen.insert((write.table, write.key)) {
                    segment::put_write(&mut content, &write);
                }
            }
        }
        let last = match (is_all, rows.last()) {
            (false, Some((key, _))) => ticket(key),
            _ => upto,
        };
        Ok(Gathered {
            content,
            keys: rows.into_iter().map(|(key, _)| key).collect(),
            last,
            is_all,
        })
    }

    async fn put(&mut self, segment: &Segment) -> Result<Put, PutError> {
        let name = format!("{}/log/{:016}", self.prefix, segment.sequence);
        let encoded = segment.encode();
        self.last_put = Some(Instant::now());
        if self.objects.create(&name, encoded.clone()).await? {
            return Ok(Put::Stored);
        }
        let present = self.objects.get(&name).await?;
        let present = present.ok_or(PutError::Vanished)?;
        if present == encoded {
            // The answer to an earlier attempt was lost.
            return Ok(Put::Stored);
        }
        let present = Segment::decode(&present)?;
        Ok(match present.content {
            Content::Fence(by) => Put::Fenced(by, present.last),
            // Of this run, or of one before it, whose record of it was lost with it.
            Content::Writes(_)
                if present.run == self.run || present.last < self.store.first_ticket() =>
            {
                Put::StoredBefore(present.last)
            }
            Content::Writes(_) => Put::Fenced(
                "another node with a copy of this data directory".into(),
                Ticket(0),
            ),
        })
    }

    fn stored(&mut self, gathered: &Gathered) -> Result<(), ShipError> {
        self.retry = RETRY;
        self.record.sequence += 1;
        self.record.ticket = gathered.last.0;
        self.record.log_bytes += gathered.content.len() as u64;
        let is_first = !std::mem::replace(&mut self.proven, true);
        if is_first && self.record.base.is_some() {
            self.log.set_ready();
        }
        self.log.advance(gathered.last, gathered.is_all);
        if !gathered.keys.is_empty() || is_first {
            let mut bookkeeping = Bookkeeping::default();
            for key in &gathered.keys {
                bookkeeping.delete_raw(Table::Changelog, key);
            }
            self.keep(bookkeeping)?;
        }
        Ok(())
    }

    fn keep(&self, mut bookkeeping: Bookkeeping) -> Result<(), ShipError> {
        bookkeeping.put(Table::System, STREAM_KEY, &self.record);
        self.store.commit_bookkeeping_lazily(bookkeeping)?;
        Ok(())
    }

    /// Begins a new base when it is time, and takes up one that is finished.
    async fn look_after_base(&mut self) -> Result<(), ShipError> {
        if let Some(basing) = self.basing.take_if(|basing| basing.is_finished()) {
            match basing.await {
                Ok(Ok(based)) => {
                    let is_first = self.record.base.is_none();
                    let old = self.record.base.replace(based.sequence);
                    self.record.base_bytes = based.bytes;
                    self.record.log_bytes = 0;
                    self.keep(Bookkeeping::default())?;
                    if is_first && self.proven {
                        self.log.set_ready();
                    }
                    self.trim(old, based.sequence)?;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a new base of the changelog could not be written");
                    self.pause().await;
                }
                Err(error) => tracing::error!(%error, "writing a base of the changelog broke off"),
            }
        }
        let record = &self.record;
        let is_due = match record.base {
            None => true,
            Some(base) => {
                let segments = BASE_SEGMENTS + record.base_bytes / BASE_SEGMENT_BYTES;
                record.log_bytes > BASE_BYTES.max(record.base_bytes)
                    || record.sequence - base > segments
            }
        };
        if is_due && self.basing.is_none() {
            let base = base::write(
                self.store.clone(),
                self.log.clone(),
                self.objects.clone(),
                self.prefix.clone(),
                self.run,
                record.stream,
                record.sequence,
            );
            self.basing = Some(tokio::spawn(base));
        }
        Ok(())
    }

    /// Deletes what a new base has made useless.
    fn trim(&mut self, old: Option<u64>, base: u64) -> Result<(), ShipError> {
        let first = self.record.trimmed + 1;
        self.record.trimmed = base;
        self.keep(Bookkeeping::default())?;
        let (objects, prefix) = (self.objects.clone(), self.prefix.clone());
        tokio::spawn(async move {
            let trimmed = async {
                for sequence in first..=base {
                    objects
                        .delete(&format!("{prefix}/log/{sequence:016}"))
                        .await?;
                }
                match old {
                    Some(old) if old != base => base::delete(&objects, &prefix, old).await,
                    _ => Ok(()),
                }
            };
            if let Err(error) = trimmed.await {
                tracing::info!(%error, "something of the changelog that is of no more use stays in the object store");
            }
        });
        Ok(())
    }
}

impl Drop for Shipping {
    fn drop(&mut self) {
        if let Some(basing) = &self.basing {
            basing.abort();
        }
    }
}

/// What became of a segment.
enum Put {
    Stored,
    /// Another one is there, of this node, up to this commit.
    StoredBefore(Ticket),
    Fenced(String, Ticket),
}

#[derive(Debug, thiserror::Error)]
enum PutError {
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error("a segment that was there is not to be found")]
    Vanished,
}

/// Begins a log: with nothing in it, everything that is committed belongs to its base.
async fn begin(store: &Store, before: StreamRecord) -> Result<StreamRecord, ShipError> {
    let ticket = store.commits().submitted();
    store.durable(ticket).await?;
    loop {
        let mut bookkeeping = Bookkeeping::default();
        let mut rows = 0;
        store.scan(Table::Changelog, &[], None, &mut |key, _| {
            if self::ticket(key) > ticket {
                return false;
            }
            bookkeeping.delete_raw(Table::Changelog, key);
            rows += 1;
            rows < DELETED_ROWS
        })?;
        store.commit_durably(bookkeeping).await?;
        if rows < DELETED_ROWS {
            break;
        }
    }
    let record = StreamRecord {
        stream: before.stream + 1,
        ticket: ticket.0,
        ..StreamRecord::default()
    };
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.put(Table::System, STREAM_KEY, &record);
    store.commit_durably(bookkeeping).await?;
    Ok(record)
}
