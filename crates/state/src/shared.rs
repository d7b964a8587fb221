//! Shared buckets: keys that every function may use, linearizable per key.
//!
//! Invocations read the latest committed value and keep their own writes to themselves until they
//! commit. A commit checks, under the lock of the keys' shards, that every key which it incremented
//! or compared still has the value it saw; if not, the invocation is run again (nothing of it has
//! left the node). From the second try on it first reserves those keys in their order, which makes
//! others run again instead, so that everybody gets through and nobody waits in a circle.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rustc_hash::{FxBuildHasher, FxHashMap};
use tokio::sync::Notify;

use crate::commit::{Batch, Ticket};
use crate::engine::{Engine, EngineError, Table};

/// Locks that the keys are spread over.
const SHARDS: usize = 16;
/// Cached keys of one shard; above it those that the engine can answer are dropped.
const SHARD_ENTRIES: usize = 4096;

/// Path of a key: bucket, NUL, key.
pub(crate) type Path = Arc<[u8]>;

/// An uncommitted write of the running invocation.
#[derive(Debug, Clone)]
pub(crate) struct SharedWrite {
    pub(crate) value: Option<Bytes>,
    /// The committed value that the write depends on (`increment`, `compare_and_swap`), if it does.
    pub(crate) expected: Option<Option<Bytes>>,
}

/// Uncommitted writes, in the order of their paths.
pub(crate) type SharedWrites = BTreeMap<Path, SharedWrite>;

#[derive(Debug, Clone)]
struct Entry {
    value: Option<Bytes>,
    ticket: Ticket,
}

#[derive(Default)]
struct Shard {
    entries: FxHashMap<Path, Entry>,
    /// Keys reserved by an invocation that runs again, with its number.
    reserved: FxHashMap<Path, u64>,
}

/// The shared buckets of the node.
pub(crate) struct SharedBuckets {
    shards: [Mutex<Shard>; SHARDS],
    engine: Arc<dyn Engine>,
    /// Rings when reserved keys are given back.
    given_back: Notify,
}

/// The locks of a commit's shards, held from the check to the submission.
pub(crate) struct Checked<'a> {
    guards: Vec<(usize, MutexGuard<'a, Shard>)>,
}

impl SharedBuckets {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        Self {
            shards: Default::default(),
            engine,
            given_back: Notify::new(),
        }
    }

    fn shard_of(path: &[u8]) -> usize {
        FxBuildHasher.hash_one(path) as usize % SHARDS
    }

    /// The committed value and the commit that wrote it.
    pub(crate) fn get(
        &self,
        path: &[u8],
        applied: Ticket,
    ) -> Result<(Option<Bytes>, Ticket), EngineError> {
        let mut shard = self.shards[Self::shard_of(path)].lock();
        if let Some(entry) = shard.entries.get(path) {
            return Ok((entry.value.clone(), entry.ticket));
        }
        let value = self.engine.get(Table::Shared, path)?;
        if shard.entries.len() >= SHARD_ENTRIES {
            shard.entries.retain(|_, entry| entry.ticket > applied);
        }
        let entry = Entry {
            value: value.clone(),
            ticket: Ticket(0),
        };
        shard.entries.insert(path.into(), entry);
        Ok((value, Ticket(0)))
    }

    /// Locks the shards of the writes and checks what they depend on; `Err` names the keys to
    /// reserve before trying again.
    pub(crate) fn check(&self, writes: &SharedWrites, who: u64) -> Result<Checked<'_>, Vec<Path>> {
        let checked = self.lock(writes.keys());
        let conflict = writes.iter().any(|(path, write)| {
            let shard = checked.shard(path);
            let reserved = shard.reserved.get(path).is_some_and(|by| *by != who);
            let changed = write.expected.as_ref().is_some_and(|expected| {
                // What was read is cached until it is applied; what is not cached did not change
                // since, unless it was dropped and changed: then it counts as a conflict.
                shard.entries.get(path).map(|entry| &entry.value) != Some(expected)
            });
            reserved || changed
        });
        if conflict {
            return Err(writes.keys().cloned().collect());
        }
        Ok(checked)
    }

    /// Waits until all the keys are reserved for an invocation that runs again. They are taken all
    /// or none, so that whoever waits holds nothing.
    pub(crate) async fn reserve(&self, keys: &[Path], who: u64) {
        loop {
            let mut given_back = pin!(self.given_back.notified());
            // Listens from here on, so that nothing given back during the try is missed.
            given_back.as_mut().enable();
            if self.try_reserve(keys, who) {
                return;
            }
            given_back.await;
        }
    }

    fn try_reserve(&self, keys: &[Path], who: u64) -> bool {
        let mut locked = self.lock(keys.iter());
        let is_free = |path: &Path| {
            locked
                .shard(path)
                .reserved
                .get(path)
                .is_none_or(|by| *by == who)
        };
        let all_free = keys.iter().all(is_free);
        if all_free {
            for path in keys {
                let at = locked.at(path);
                locked.guards[at].1.reserved.insert(path.clone(), who);
            }
        }
        all_free
    }

    /// Locks the shards of some keys, in one order for everybody.
    fn lock<'a>(&self, keys: impl Iterator<Item = &'a Path>) -> Checked<'_> {
        let mut shards: Vec<usize> = keys.map(|path| Self::shard_of(path)).collect();
        shards.sort_unstable();
        shards.dedup();
        let guards = shards
            .into_iter()
            .map(|at| (at, self.shards[at].lock()))
            .collect();
        Checked { guards }
    }

    /// Gives reserved keys back.
    pub(crate) fn release(&self, keys: &[Path], who: u64) {
        for path in keys {
            let mut shard = self.shards[Self::shard_of(path)].lock();
            if shard.reserved.get(path) == Some(&who) {
                shard.reserved.remove(path);
            }
        }
        self.given_back.notify_waiters();
    }

    /// Up to `limit` committed paths that start with `prefix` and come after `after`, in order.
    pub(crate) fn paths(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        own: &SharedWrites,
    ) -> Result<Vec<Vec<u8>>, EngineError> {
        let wanted =
            |path: &[u8]| path.starts_with(prefix) && after.is_none_or(|after| path > after);
        // What is cached first, the engine second: a commit applied in between is seen in both.
        let mut newer: BTreeMap<Path, bool> = BTreeMap::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let unsaved = shard.entries.iter().filter(|(path, _)| wanted(path));
            newer.extend(unsaved.map(|(path, entry)| (path.clone(), entry.value.is_some())));
        }
        let own = own.iter().filter(|(path, _)| wanted(path));
        newer.extend(own.map(|(path, write)| (path.clone(), write.value.is_some())));
        let mut found: std::collections::BTreeSet<Vec<u8>> = newer
            .iter()
            .filter(|(_, present)| **present)
            .map(|(path, _)| path.to_vec())
            .collect();
        let mut stored = 0;
        self.engine
            .scan(Table::Shared, prefix, after, &mut |path, _| {
                if newer.get(path) != Some(&false) {
                    found.insert(path.to_vec());
                    stored += 1;
                }
                stored < limit
            })?;
        Ok(found.into_iter().take(limit).collect())
    }
}

impl Checked<'_> {
    fn at(&self, path: &[u8]) -> usize {
        let shard = SharedBuckets::shard_of(path);
        // Every path of the commit has its shard among the guards.
        self.guards.partition_point(|(at, _)| *at < shard)
    }

    fn shard(&self, path: &[u8]) -> &Shard {
        &self.guards[self.at(path)].1
    }

    /// Adds the writes to the commit.
    pub(crate) fn collect(writes: &SharedWrites, batch: &mut Batch) {
        for (path, write) in writes {
            match &write.value {
                Some(value) => batch.put(Table::Shared, &[path], value),
                None => batch.delete(Table::Shared, &[path]),
            }
        }
    }

    /// Makes the writes visible, as committed under `ticket`.
    pub(crate) fn publish(mut self, writes: SharedWrites, ticket: Ticket) {
        for (path, write) in writes {
            let at = self.at(&path);
            let entry = Entry {
                value: write.value,
                ticket,
            };
            self.guards[at].1.entries.insert(path, entry);
        }
    }
}
