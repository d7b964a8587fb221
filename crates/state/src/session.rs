//! The hot state of one session: what has been read and written, in memory, next to its worker.
//!
//! A small session is loaded whole on first use (`complete`); of a larger one only the keys in use
//! are held. Writes go straight into the hot state and are undone if the invocation fails, so that
//! the common path keeps no second map. At most one writing invocation runs at a time (the node's
//! session queue sees to that); read-only ones may run beside each other.

mod moving;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fulmar_model::{Epoch, Group, Version};
use parking_lot::Mutex;

use crate::commit::{Batch, Ticket};
use crate::engine::{Engine, EngineError, Table};
use crate::key;
use crate::sealed::Carried;

/// A session up to this many bytes is loaded whole on first use.
const LOAD_WHOLE_BYTES: usize = 256 << 10;
/// Keys of one session held hot, in bytes; above it those not in use are dropped again.
const HOT_BYTES: usize = 4 << 20;
/// What an entry costs besides its key and value: map node, pointers, counters.
const ENTRY_BYTES: usize = 96;
/// Versions that one session record covers: the record is written when they are used up rather than
/// with every commit, and a session loaded again goes on after them. Versions only ever grow.
const VERSIONS_PER_RECORD: u64 = 256;
/// Marks entries that the running invocation has touched.
const TOUCHED: Ticket = Ticket(u64::MAX);

#[derive(Debug, Clone)]
struct Entry {
    /// None: known to be absent.
    value: Option<Bytes>,
    /// The commit that wrote it, 0 if it came from the engine, [`TOUCHED`] while uncommitted.
    ticket: Ticket,
}

impl Entry {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// How to take back what the running invocation wrote: each key's entry before its first write.
#[derive(Default)]
pub(crate) struct Undo(Vec<(Arc<str>, Option<Entry>)>);

impl Undo {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One session's hot state.
pub struct SessionState {
    group: Group,
    /// Prefix of the session's keys in the engine.
    prefix: Box<[u8]>,
    engine: Arc<dyn Engine>,
    /// The last ticket that the engine answers.
    applied: Arc<AtomicU64>,
    hot: Mutex<Hot>,
    /// Bytes held, readable without the lock (for the memory budget).
    bytes: AtomicUsize,
    home: Home,
    /// Under which this node is home to it.
    epoch: Epoch,
    /// When it left with its client, if its client sent it.
    left: u64,
}

/// Where what the session commits goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// The local data store.
    Store,
    /// A token, by whoever began the transaction.
    Client,
    /// Another node, by whoever began the transaction.
    Node,
}

struct Hot {
    version: Version,
    /// The last version that the stored record covers.
    covered: Version,
    /// The last commit of this session; what it wrote may not be durable yet.
    last: Ticket,
    entries: BTreeMap<Arc<str>, Entry>,
    /// The last commit that deleted a key and kept no trace of it in `entries`.
    last_delete: Ticket,
    /// Whether keys that are not in `entries` are absent.
    complete: bool,
    bytes: usize,
    /// What has changed since somebody began to copy the session.
    changed: Option<Changes>,
}

/// What changed of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys of its state.
    pub state: BTreeSet<Arc<str>>,
    /// Keys of what is kept of it for idempotency keys and deliveries.
    pub idempotency: BTreeSet<Vec<u8>>,
}

impl SessionState {
    /// Loads a session: nothing to read for a new one, the whole of a small one, only the record
    /// of a large one. `version` is the last that its record covers (0 for a new session).
    pub(crate) fn load(
        group: Group,
        engine: Arc<dyn Engine>,
        applied: Arc<AtomicU64>,
        version: Version,
        epoch: Epoch,
    ) -> Result<Self, EngineError> {
        let prefix = key::session_state(&group).into_boxed_slice();
        let mut hot = Hot::new(version);
        if version > Version(0) {
            hot.load_whole(&*engine, &prefix)?;
        }
        Ok(Self {
            group,
            prefix,
            engine,
            applied,
            bytes: AtomicUsize::new(hot.bytes),
            hot: Mutex::new(hot),
            home: Home::Store,
            epoch,
            left: 0,
        })
    }

    /// A session of which all is given, and nothing is stored here.
    pub(crate) fn given(
        group: Group,
        engine: Arc<dyn Engine>,
        applied: Arc<AtomicU64>,
        home: Home,
        (version, epoch): (Version, Epoch),
        left: u64,
        entries: impl Iterator<Item = (String, Bytes)>,
    ) -> Self {
        let mut hot = Hot::new(version);
        for (key, value) in entries {
            hot.insert_clean(key.into(), Some(value));
        }
        Self {
            prefix: key::session_state(&group).into_boxed_slice(),
            group,
            engine,
            applied,
            bytes: AtomicUsize::new(hot.bytes),
            hot: Mutex::new(hot),
            home,
            epoch,
            left,
        }
    }

    /// It was loaded from what commits up to this one have left.
    pub(crate) fn saw(&self, ticket: Ticket) {
        self.hot.lock().last = ticket;
    }

    pub(crate) fn home(&self) -> Home {
        self.home
    }

    /// What a client carries once the running invocation is committed; none if not all of it is in memory.
    pub(crate) fn to_carry(&self, left: u64) -> Option<Carried> {
        let hot = self.hot.lock();
        let present = hot.entries.iter().filter_map(|(key, entry)| {
            let value = entry.value.as_ref()?;
            Some((key.to_string(), value.to_vec()))
        });
        hot.complete.then(|| Carried {
            version: hot.version.next(),
            left,
            entries: present.collect(),
        })
    }

    /// Under which this node is home to it.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// When it left with its client, if its client sent it.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Which session this is.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Key of the session's record in the engine.
    pub(crate) fn record_key(&self) -> &[u8] {
        &self.prefix[..self.prefix.len() - key::SEPARATOR.len()]
    }

    /// The version that the record has to cover before the next commit, if it does not yet.
    pub(crate) fn uncovered(&self) -> Option<Version> {
        let hot = self.hot.lock();
        let version = match hot.version {
            Version(0) => first_version(),
            version => version,
        };
        (hot.version >= hot.covered).then(|| Version(version.0 + VERSIONS_PER_RECORD))
    }

    /// Grows with every commit; after a restart it may skip some numbers.
    pub fn version(&self) -> Version {
        self.hot.lock().version
    }

    /// Tells this very state from every other that the session has had or will have, on any node.
    pub fn tag(&self) -> u64 {
        tag(self.epoch, self.version())
    }

    /// The session's last commit.
    pub fn last_commit(&self) -> Ticket {
        self.hot.lock().last
    }

    /// Bytes of memory that the hot state takes.
    pub fn hot_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Bytes>, EngineError> {
        self.look_up(&mut self.hot.lock(), key)
    }

    fn look_up(&self, hot: &mut Hot, key: &str) -> Result<Option<Bytes>, EngineError> {
        if let Some(entry) = hot.entries.get(key) {
            return Ok(entry.value.clone());
        }
        if hot.complete {
            return Ok(None);
        }
        let path = [&self.prefix, key.as_bytes()].concat();
        let value = self.engine.get(Table::State, &path)?;
        hot.insert_clean(key.into(), value.clone());
        self.bound(hot);
        Ok(value)
    }

    /// A value as it was committed last, and that commit, without a turn; none at the moment between a write and its commit.
    ///
    /// # Errors
    /// When the local data store cannot be read.
    pub fn committed_value(
        &self,
        key: &str,
    ) -> Result<Option<(Option<Bytes>, Ticket)>, EngineError> {
        let mut hot = self.hot.lock();
        let entry = hot.entries.get(key);
        if entry.is_some_and(|entry| entry.ticket == TOUCHED) {
            return Ok(None);
        }
        let value = self.look_up(&mut hot, key)?;
        Ok(Some((value, hot.last)))
    }

    pub(crate) fn set(&self, key: &str, value: Option<Bytes>, undo: &mut Undo) {
        self.hot.lock().set(key, value, undo);
    }

    /// Takes back what the invocation wrote.
    pub(crate) fn roll_back(&self, undo: Undo) {
        let mut hot = self.hot.lock();
        for (key, before) in undo.0.into_iter().rev() {
            let after = match before {
                Some(entry) => hot.entries.insert(key.clone(), entry),
                None => hot.entries.remove(&key),
            };
            hot.bytes -= after.map_or(0, |entry| key.len() + entry.bytes());
            hot.bytes += hot
                .entries
                .get(&key)
                .map_or(0, |entry| key.len() + entry.bytes());
        }
    }

    /// Adds the invocation's writes to its commit.
    pub(crate) fn collect(&self, undo: &Undo, batch: &mut Batch) {
        let hot = self.hot.lock();
        for (key, _) in &undo.0 {
            let path: [&[u8]; 2] = [&self.prefix, key.as_bytes()];
            match hot.entries.get(key).and_then(|entry| entry.value.as_ref()) {
                Some(value) => batch.put(Table::State, &path, value),
                None => batch.delete(Table::State, &path),
            }
        }
    }

    /// The invocation's writes: keys with their values now.
    pub(crate) fn written(&self, undo: &Undo) -> Vec<(String, Option<Bytes>)> {
        let hot = self.hot.lock();
        let value = |key: &str| hot.entries.get(key).and_then(|entry| entry.value.clone());
        let keys = undo.0.iter().map(|(key, _)| key);
        keys.map(|key| (key.to_string(), value(key))).collect()
    }

    /// Marks the invocation's writes as committed elsewhere, which made this version.
    pub(crate) fn committed_elsewhere(&self, undo: Undo, version: Version) {
        self.committed(undo, Ticket(0), None);
        let mut hot = self.hot.lock();
        hot.version = version;
        hot.covered = version;
    }

    /// Marks the invocation's writes as committed under `ticket`, and bounds what is held.
    pub(crate) fn committed(&self, undo: Undo, ticket: Ticket, covered: Option<Version>) {
        let mut hot = self.hot.lock();
        hot.version = match (hot.version, covered) {
            (Version(0), Some(covered)) => Version(covered.0 - VERSIONS_PER_RECORD).next(),
            (version, _) => version.next(),
        };
        hot.covered = covered.unwrap_or(hot.covered);
        hot.last = ticket;
        for (key, _) in undo.0 {
            if let Some(changed) = &mut hot.changed {
                changed.state.insert(key.clone());
            }
            let complete = hot.complete;
            match hot.entries.get_mut(&key) {
                Some(entry) if entry.value.is_none() && complete => {
                    let bytes = key.len() + entry.bytes();
                    hot.bytes -= bytes;
                    hot.entries.remove(&key);
                    hot.last_delete = ticket;
                }
                Some(entry) => entry.ticket = ticket,
                None => {}
            }
        }
        self.bound(&mut hot);
    }

    /// Lets go of keys that are not in use when too many are held.
    fn bound(&self, hot: &mut Hot) {
        if hot.bytes > HOT_BYTES && self.home == Home::Store {
            hot.shrink(Ticket(self.applied.load(Ordering::Acquire)));
        }
        self.bytes.store(hot.bytes, Ordering::Relaxed);
    }

    /// Up to `limit` keys that start with `prefix` and come after `after`, in byte order.
    pub(crate) fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, EngineError> {
        let hot = self.hot.lock();
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut hot_keys = hot
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, entry)| (&**key, entry.value.is_some()));
        if hot.complete {
            let present = hot_keys.filter(|(_, present)| *present);
            return Ok(present.take(limit).map(|(key, _)| key.to_owned()).collect());
        }
        // Merge with the engine: what is hot is newer than what is stored.
        let stored_prefix = [&self.prefix, prefix.as_bytes()].concat();
        let stored_after = match start {
            Bound::Excluded(after) => Some([&self.prefix, after.as_bytes()].concat()),
            _ => None,
        };
        let mut keys = Vec::new();
        let mut next_hot = hot_keys.next();
        let skip = self.prefix.len();
        self.engine.scan(
            Table::State,
            &stored_prefix,
            stored_after.as_deref(),
            &mut |stored, _| {
                let Ok(stored) = std::str::from_utf8(&stored[skip..]) else {
                    return true;
                };
                while let Some((key, present)) = next_hot
                    && key < stored
                    && keys.len() < limit
                {
                    if present {
                        keys.push(key.to_owned());
                    }
                    next_hot = hot_keys.next();
                }
                if keys.len() < limit {
                    match next_hot {
                        Some((key, present)) if key == stored => {
                            if present {
                                keys.push(key.to_owned());
                            }
                            next_hot = hot_keys.next();
                        }
                        _ => keys.push(stored.to_owned()),
                    }
                }
                keys.len() < limit
            },
        )?;
        while let Some((key, present)) = next_hot
            && keys.len() < limit
        {
            if present {
                keys.push(key.to_owned());
            }
            next_hot = hot_keys.next();
        }
        Ok(keys)
    }
}

/// Where the versions of a new session begin: with the time, so that one that was removed and made again never has one that
/// it had before, which somebody may remember: it would have to see a commit every microsecond to catch up. JSON has such
/// numbers exactly.
fn first_version() -> Version {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Version(now.map_or(0, |now| now.as_micros() as u64))
}

/// Versions of one epoch are far apart from those of all others.
fn tag(epoch: Epoch, version: Version) -> u64 {
    epoch
        .0
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(version.0)
}

impl Hot {
    /// A session with nothing in it, at a version that its record covers.
    fn new(version: Version) -> Self {
        Self {
            version,
            covered: version,
            last: Ticket(0),
            last_delete: Ticket(0),
            entries: BTreeMap::new(),
            complete: true,
            bytes: 0,
            changed: None,
        }
    }

    fn load_whole(&mut self, engine: &dyn Engine, prefix: &[u8]) -> Result<(), EngineError> {
        let mut bad_key = false;
        engine.scan(Table::State, prefix, None, &mut |stored, value| {
            let Ok(key) = std::str::from_utf8(&stored[prefix.len()..]) else {
                bad_key = true;
                return true;
            };
            self.insert_clean(key.into(), Some(Bytes::copy_from_slice(value)));
            self.complete = self.bytes <= LOAD_WHOLE_BYTES;
            self.complete
        })?;
        if bad_key {
            tracing::warn!("a stored key is not UTF-8 and was left out");
        }
        if !self.complete {
            self.entries.clear();
            self.bytes = 0;
        }
        Ok(())
    }

    fn insert_clean(&mut self, key: Arc<str>, value: Option<Bytes>) {
        let entry = Entry {
            value,
            ticket: Ticket(0),
        };
        self.bytes += key.len() + entry.bytes();
        self.entries.insert(key, entry);
    }

    fn set(&mut self, key: &str, value: Option<Bytes>, undo: &mut Undo) {
        if let Some(entry) = self.entries.get_mut(key) {
            let before = entry.bytes();
            let old = std::mem::replace(&mut entry.value, value);
            self.bytes = self.bytes - before + entry.bytes();
            if entry.ticket != TOUCHED {
                let ticket = std::mem::replace(&mut entry.ticket, TOUCHED);
                undo.0
                    .push((key.into(), Some(Entry { value: old, ticket })));
            }
            return;
        }
        let key: Arc<str> = key.into();
        let entry = Entry {
            value,
            ticket: TOUCHED,
        };
        self.bytes += key.len() + entry.bytes();
        self.entries.insert(key.clone(), entry);
        undo.0.push((key, None));
    }

    /// Drops the keys that the engine can answer: all but those written by unapplied commits. Not
    /// while a deletion that left no trace is unapplied, for the engine would answer the old value.
    fn shrink(&mut self, applied: Ticket) {
        if self.last_delete > applied {
            return;
        }
        self.complete = false;
        let mut bytes = 0;
        self.entries.retain(|key, entry| {
            let keep = entry.ticket > applied;
            if keep {
                bytes += key.len() + entry.bytes();
            }
            keep
        });
        self.bytes = bytes;
    }
}
