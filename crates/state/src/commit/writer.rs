//! Whoever writes what was submitted: a thread, or a task of a runtime whose time does not pass by itself.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use rustc_hash::FxHashSet;
use tokio::sync::Notify;

use super::{Batch, Cause, Queue, Shared, StoreFailure};
use crate::changelog::{is_copied, segment};
use crate::engine::{Table, Write};
use crate::submitters::Submitters;

/// A batch lingers for others only if the last one had at least so many commits: with fewer clients
/// waiting would only cost latency.
const LINGER_FROM_COMMITS: usize = 8;
/// Longest time that a batch lingers, as a part of the time that the last one took to write: what
/// is waited is less than what the saved sync would have cost.
const LINGER_PART: u32 = 2;
/// Never linger longer than this, however slow the disk was.
const LINGER_MAX: Duration = Duration::from_micros(500);

/// Who writes.
#[derive(Clone)]
pub enum Writer {
    /// A thread of its own, which lingers while any of these may still submit something.
    Thread(Arc<Submitters>),
    /// A task of the runtime that the store is opened in, each batch after such a time: for simulations. What is
    /// not written when the runtime ends never is.
    Task(Arc<dyn Fn() -> Duration + Send + Sync>),
}

/// How the writer is told that there is something to write.
pub(super) enum Wake {
    Thread(OnceLock<Thread>),
    Task(Notify),
}

impl Wake {
    pub(super) fn for_writer(writer: &Writer) -> Self {
        match writer {
            Writer::Thread(_) => Self::Thread(OnceLock::new()),
            Writer::Task(_) => Self::Task(Notify::new()),
        }
    }

    pub(super) fn writer(&self) {
        match self {
            Self::Thread(thread) => {
                if let Some(thread) = thread.get() {
                    thread.unpark();
                }
            }
            Self::Task(notify) => notify.notify_one(),
        }
    }

    async fn wait(&self) {
        if let Self::Task(notify) = self {
            notify.notified().await;
        }
    }
}

impl Writer {
    /// Begins to write; what comes back is to be joined.
    pub(super) fn start(self, shared: &Arc<Shared>) -> std::io::Result<Option<JoinHandle<()>>> {
        let submitters = match self {
            Self::Thread(submitters) => submitters,
            Self::Task(takes) => {
                tokio::spawn(write_in_task(shared.clone(), takes));
                return Ok(None);
            }
        };
        let (written, counted) = (shared.clone(), submitters.clone());
        let thread = std::thread::Builder::new().name("fulmar-commit".into());
        let writer = thread.spawn(move || write_in_thread(&written, &counted))?;
        submitters.set_writer(writer.thread().clone());
        if let Wake::Thread(thread) = &shared.wake {
            let _first = thread.set(writer.thread().clone());
        }
        Ok(Some(writer))
    }
}

/// The writing thread: until closed, take what is queued, write it, sync, release.
fn write_in_thread(shared: &Shared, submitters: &Submitters) {
    let mut batch = Batch::default();
    let (mut last_commits, mut last_took) = (0, Duration::ZERO);
    loop {
        let mut queue = shared.queue.lock();
        while queue.is_idle() {
            if queue.closed {
                return;
            }
            queue.writer_wants = 1;
            MutexGuard::unlocked(&mut queue, std::thread::park);
        }
        if last_commits >= LINGER_FROM_COMMITS && queue.commits < last_commits && !queue.closed {
            let until = Instant::now() + (last_took / LINGER_PART).min(LINGER_MAX);
            // A commit is also counted with its release, hence twice as many.
            queue.writer_wants = 2 * last_commits;
            MutexGuard::unlocked(&mut queue, || {
                let enough = || shared.queue.lock().writer_wants == 0;
                submitters.linger(until, enough);
            });
        }
        let taken = queue.take(&mut batch);
        drop(queue);
        let Some(took) = write(shared, &batch, taken) else {
            return;
        };
        (last_commits, last_took) = (taken.commits, took);
    }
}

/// The same as a task.
async fn write_in_task(shared: Arc<Shared>, takes: Arc<dyn Fn() -> Duration + Send + Sync>) {
    let mut batch = Batch::default();
    loop {
        let is_idle = {
            let mut queue = shared.queue.lock();
            if queue.is_idle() && queue.closed {
                return;
            }
            queue.writer_wants = 1;
            queue.is_idle()
        };
        if is_idle {
            shared.wake.wait().await;
            continue;
        }
        tokio::time::sleep(takes()).await;
        let taken = shared.queue.lock().take(&mut batch);
        if write(&shared, &batch, taken).is_none() {
            return;
        }
    }
}

/// What was taken from the queue: the last ticket, how many commits, and whether anybody waits for the disk.
#[derive(Clone, Copy)]
struct Taken {
    last: u64,
    commits: usize,
    sync: bool,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.commits == 0 && self.releases.is_empty()
    }

    /// Everything that waits; `batch` gets what is to be written.
    fn take(&mut self, batch: &mut Batch) -> Taken {
        self.writer_wants = 0;
        batch.clear();
        std::mem::swap(&mut self.batch, batch);
        self.in_flight = std::mem::take(&mut self.releases);
        self.in_flight_last = self.next;
        self.in_flight_sync = std::mem::take(&mut self.sync);
        Taken {
            last: self.next,
            commits: std::mem::take(&mut self.commits),
            sync: self.in_flight_sync,
        }
    }
}

/// Writes a batch and releases what waited for it; the time that writing took, or none if it failed.
fn write(shared: &Shared, batch: &Batch, taken: Taken) -> Option<Duration> {
    let Taken {
        last,
        commits,
        sync,
    } = taken;
    let started = Instant::now();
    let mut seen = FxHashSet::default();
    let mut writes = batch.last_writes(&mut seen);
    let to_copy = shared.changelog.as_ref().map(|_| to_copy(&writes));
    let to_copy = to_copy.filter(|content| !content.is_empty());
    let row = last.to_be_bytes();
    if let Some(content) = &to_copy {
        writes.push(Write {
            table: Table::Changelog,
            key: &row,
            value: Some(content),
        });
    }
    let written = match (writes.is_empty(), sync) {
        (true, true) => shared.engine.sync(),
        (true, false) => Ok(()),
        (false, sync) => shared.engine.write(&writes, sync),
    };
    if let Err(error) = written {
        fail(shared, &error.to_string());
        return None;
    }
    shared.applied.store(last, Ordering::Release);
    if sync {
        shared.durable.store(last, Ordering::Release);
    }
    let took = started.elapsed();
    let bytes = batch.bytes.len();
    shared.observer.batch_written(commits, bytes, sync, took);
    if let Some(changelog) = &shared.changelog {
        changelog.written(to_copy.is_some());
    }
    let released = {
        let mut queue = shared.queue.lock();
        queue.in_flight_sync = false;
        std::mem::take(&mut queue.in_flight)
    };
    if !released.is_empty() {
        (shared.run_releases)(Box::new(move || {
            for release in released {
                release(Ok(()));
            }
        }));
    }
    Some(took)
}

/// What of a batch is to be copied to the object store.
fn to_copy(writes: &[Write<'_>]) -> Vec<u8> {
    let mut content = Vec::new();
    for write in writes.iter().filter(|write| is_copied(write.table)) {
        segment::put_write(&mut content, write);
    }
    content
}

/// Stops for good: everything waiting, and everything to come, gets the failure.
fn fail(shared: &Shared, reason: &str) {
    let failure = StoreFailure {
        cause: Cause::Local,
        reason: reason.into(),
    };
    tracing::error!(
        reason,
        "writing to the local data store failed: nothing is acknowledged any more"
    );
    shared.failed.store(true, Ordering::Release);
    let waiting = {
        let mut queue = shared.queue.lock();
        queue.failure = Some(failure.clone());
        let mut waiting = std::mem::take(&mut queue.in_flight);
        waiting.append(&mut queue.releases);
        waiting
    };
    for release in waiting {
        release(Err(failure.clone()));
    }
}
