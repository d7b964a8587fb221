//! Group commit: many sessions share one fsync, and nothing is released before it.
//!
//! A commit is submitted with the writes of one invocation and, usually, with what to do once it is
//! durable (its *release*). One thread takes everything that has been submitted while it was busy,
//! writes it as one batch, syncs once and runs the releases. Submitting never waits, so a session's
//! next invocation runs on the hot state while the previous commit is still being written.
//!
//! Invariants:
//! - Tickets are handed out in submission order, and batches are written in ticket order, so what
//!   is on disk is always a prefix of what was submitted.
//! - A release runs once: with `Ok` after its ticket is durable, with `Err` if it never will be.
//! - After a failed write nothing is written or acknowledged any more ([`StoreFailure`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxHashSet;

use crate::changelog::Changelog;
use crate::engine::{Engine, Table, Write};
use crate::observe::CommitObserver;

mod writer;

use writer::Wake;
pub use writer::Writer;

/// Submitted but unwritten bytes from which on even `memory` commits wait for the disk, so that the
/// queue is bounded by the number of invocations in flight.
const BACKPRESSURE_BYTES: usize = 64 << 20;

/// A commit's place in the order of all commits of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What keeps a commit from being as durable as was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The local data store stopped taking writes; nothing is acknowledged until a restart.
    Local,
    /// The object store does not answer; the commit stands here, and may be copied later.
    ObjectStore,
    /// Another node has taken over.
    Fenced,
}

/// A commit is not as durable as was asked for, and it is not known whether it ever will be.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {reason}", match .cause {
    Cause::Local => "the local data store stopped taking writes",
    Cause::ObjectStore => "it is stored here, and not in the object store",
    Cause::Fenced => "it is stored here, and does not count",
})]
pub struct StoreFailure {
    /// Who failed.
    pub cause: Cause,
    /// What was said.
    pub reason: Arc<str>,
}

/// What to do once a commit is durable, or never will be.
pub type Release = Box<dyn FnOnce(Result<(), StoreFailure>) + Send>;

/// Runs the releases of a batch somewhere else than on the commit thread (the node: a task of its
/// runtime), so that the next batch is not held up by them.
pub type RunReleases = Arc<dyn Fn(Box<dyn FnOnce() + Send>) + Send + Sync>;

/// The writes of one commit, copied into one buffer.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    writes: Vec<Span>,
}

struct Span {
    table: Table,
    key_start: usize,
    key_end: usize,
    /// End of the value; none deletes the key.
    value_end: Option<usize>,
}

impl Batch {
    /// Adds a write; of two to the same key the later counts.
    pub fn put(&mut self, table: Table, key: &[&[u8]], value: &[u8]) {
        self.push(table, key, Some(value));
    }

    /// Adds the deletion of a key.
    pub fn delete(&mut self, table: Table, key: &[&[u8]]) {
        self.push(table, key, None);
    }

    fn push(&mut self, table: Table, key: &[&[u8]], value: Option<&[u8]>) {
        let key_start = self.bytes.len();
        for part in key {
            self.bytes.extend_from_slice(part);
        }
        let key_end = self.bytes.len();
        let value_end = value.map(|value| {
            self.bytes.extend_from_slice(value);
            self.bytes.len()
        });
        self.writes.push(Span {
            table,
            key_start,
            key_end,
            value_end,
        });
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn append(&mut self, other: &Batch) {
        let base = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.writes.extend(other.writes.iter().map(|span| Span {
            table: span.table,
            key_start: span.key_start + base,
            key_end: span.key_end + base,
            value_end: span.value_end.map(|end| end + base),
        }));
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.writes.clear();
    }

    /// The last write to each key: an engine's batch knows no order among its own writes.
    fn last_writes<'a>(&'a self, seen: &mut FxHashSet<(Table, &'a [u8])>) -> Vec<Write<'a>> {
        let mut last = Vec::with_capacity(self.writes.len());
        for span in self.writes.iter().rev() {
            let key = &self.bytes[span.key_start..span.key_end];
            if seen.insert((span.table, key)) {
                last.push(Write {
                    table: span.table,
                    key,
                    value: span.value_end.map(|end| &self.bytes[span.key_end..end]),
                });
            }
        }
        last
    }
}

/// Everything submitted since the last batch was taken.
#[derive(Default)]
struct Queue {
    batch: Batch,
    commits: usize,
    /// Whether any of them asked to be durable.
    sync: bool,
    releases: Vec<Release>,
    next: u64,
    /// Releases of the batch being written now, and of reads that saw it.
    in_flight: Vec<Release>,
    in_flight_last: u64,
    in_flight_sync: bool,
    /// The writer sleeps until so many commits wait; 0 while it works.
    writer_wants: usize,
    closed: bool,
    failure: Option<StoreFailure>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Wake,
    /// The last ticket that is in the engine (durable if anybody waits for it).
    applied: Arc<AtomicU64>,
    /// The last ticket that is synced.
    durable: AtomicU64,
    failed: AtomicBool,
    engine: Arc<dyn Engine>,
    /// Hears what is to be copied to the object store, if anything is.
    changelog: Option<Arc<Changelog>>,
    observer: Arc<dyn CommitObserver>,
    run_releases: RunReleases,
}

/// The writer of the local data store. Dropping it writes what is queued and joins the thread.
pub struct GroupCommit {
    shared: Arc<Shared>,
    /// None: it is a task.
    writer: Option<JoinHandle<()>>,
}

impl GroupCommit {
    /// Starts the writer; tickets begin after `first`.
    pub fn start(
        engine: Arc<dyn Engine>,
        changelog: Option<Arc<Changelog>>,
        first: Ticket,
        observer: Arc<dyn CommitObserver>,
        run_releases: RunReleases,
        writer: Writer,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                next: first.0,
                in_flight_last: first.0,
                ..Queue::default()
            }),
            wake: Wake::for_writer(&writer),
            applied: Arc::new(AtomicU64::new(first.0)),
            durable: AtomicU64::new(first.0),
            failed: AtomicBool::new(false),
            engine,
            changelog,
            observer,
            run_releases,
        });
        let writer = writer.start(&shared)?;
        Ok(Self { shared, writer })
    }

    /// Submits the writes of one commit. `fill` gets the commit's ticket and adds further writes
    /// that need it; it runs under the queue's lock and must be quick.
    ///
    /// With `release` the commit is synced and the release runs after that; without, it is written
    /// in order but nobody waits for it.
    pub fn submit(
        &self,
        batch: &Batch,
        fill: impl FnOnce(Ticket, &mut Batch),
        release: Option<Release>,
    ) -> Result<Ticket, (StoreFailure, Option<Release>)> {
        let mut queue = self.shared.queue.lock();
        if let Some(failure) = &queue.failure {
            let failure = failure.clone();
            drop(queue);
            return Err((failure, release));
        }
        queue.next += 1;
        queue.commits += 1;
        let ticket = Ticket(queue.next);
        queue.batch.append(batch);
        fill(ticket, &mut queue.batch);
        if let Some(release) = release {
            queue.sync = true;
            queue.releases.push(release);
        }
        self.wake_writer(queue);
        Ok(ticket)
    }

    /// Runs `release` once everything up to `ticket` is durable; at once if it is already.
    pub fn when_durable(&self, ticket: Ticket, release: Release) {
        if self.durable() >= ticket && !self.has_failed() {
            return release(Ok(()));
        }
        let mut queue = self.shared.queue.lock();
        if let Some(failure) = queue.failure.clone() {
            drop(queue);
            return release(Err(failure));
        }
        if self.durable() >= ticket {
            drop(queue);
            return release(Ok(()));
        }
        if queue.in_flight_sync && ticket.0 <= queue.in_flight_last {
            queue.in_flight.push(release);
            return;
        }
        // The pending batch is later in order: syncing it makes the earlier ones durable as well.
        queue.sync = true;
        queue.releases.push(release);
        self.wake_writer(queue);
    }

    fn wake_writer(&self, mut queue: MutexGuard<'_, Queue>) {
        let wanted = queue.writer_wants;
        let wake = wanted > 0 && queue.commits + queue.releases.len() >= wanted;
        if wake {
            queue.writer_wants = 0;
        }
        drop(queue);
        if wake {
            self.shared.wake.writer();
        }
    }

    /// The last ticket whose writes the engine answers.
    pub fn applied(&self) -> Ticket {
        Ticket(self.shared.applied.load(Ordering::Acquire))
    }

    /// The last ticket handed out.
    pub fn submitted(&self) -> Ticket {
        Ticket(self.shared.queue.lock().next)
    }

    pub(crate) fn applied_counter(&self) -> Arc<AtomicU64> {
        self.shared.applied.clone()
    }

    /// The last ticket that is on stable storage.
    pub fn durable(&self) -> Ticket {
        Ticket(self.shared.durable.load(Ordering::Acquire))
    }

    /// Whether a write failed; then nothing will be acknowledged any more.
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// Why writing stopped, if it did.
    pub fn failure(&self) -> Option<StoreFailure> {
        self.shared.queue.lock().failure.clone()
    }

    /// Whether so much waits to be written that `memory` commits should wait as well.
    pub fn is_backed_up(&self) -> bool {
        self.shared.queue.lock().batch.bytes.len() > BACKPRESSURE_BYTES
    }
}

impl Drop for GroupCommit {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.writer();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the commit thread panicked");
        }
    }
}
