//! The embedded registry: a table in one node's local data store.
//!
//! Enough for one machine, a demo or a small site. Writes are made one by one, and seen by nobody
//! before they are durable. Leases are timed from this node's last start, never by wall clocks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_state::record::{Record, RegistryRecord};
use fulmar_state::{Bookkeeping, Store, StoreError, Table};
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Change, Changes, Entry, LeaseId, Registry, RegistryError, Revision, Snapshot, Written,
};

/// Changes that are remembered for watchers that come back.
const MAX_LOG: usize = 4096;
/// How often leases are looked at.
const EXPIRY: Duration = Duration::from_millis(200);
/// Key of the last revision; no other key starts so.
const REVISION: &[u8] = b"\0revision";

/// The embedded registry.
#[derive(Clone)]
pub struct Embedded(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    state: Mutex<State>,
    /// Held while something is written.
    writing: tokio::sync::Mutex<()>,
    revision: watch::Sender<Revision>,
}

struct State {
    entries: BTreeMap<String, Held>,
    leases: HashMap<LeaseId, Lease>,
    log: VecDeque<Change>,
    next_lease: u64,
}

struct Held {
    value: Bytes,
    revision: Revision,
    lease: Option<LeaseId>,
}

struct Lease {
    ttl: Duration,
    until: Instant,
}

fn failed(error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Refused(error.to_string())
}

impl Embedded {
    /// Takes up what the table holds. Leases begin anew.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn open(store: Arc<Store>) -> Result<Self, StoreError> {
        let (mut entries, mut leases) = (BTreeMap::new(), HashMap::new());
        let (mut revision, mut last_lease, mut bad) = (0, 0, None);
        store.scan(Table::Registry, &[], None, &mut |key, value| {
            match RegistryRecord::decode(value) {
                Ok(record) if key == REVISION => {
                    (revision, last_lease) = (record.revision, record.lease);
                }
                Ok(record) => {
                    let ttl = Duration::from_millis(record.lease_ttl_ms);
                    let lease = (record.lease > 0).then_some(LeaseId(record.lease));
                    if let Some(lease) = lease {
                        let until = Instant::now() + ttl;
                        leases.insert(lease, Lease { ttl, until });
                    }
                    entries.insert(
                        String::from_utf8_lossy(key).into_owned(),
                        Held {
                            value: record.value.into(),
                            revision: record.revision,
                            lease,
                        },
                    );
                }
                Err(error) => bad = Some(error),
            }
            bad.is_none()
        })?;
        if let Some(error) = bad {
            let table = Table::Registry;
            return Err(StoreError::Record { table, error });
        }
        // Leases that were granted and not used left no trace, so their numbers are skipped.
        let next_lease = leases.keys().map(|lease| lease.0).max().unwrap_or(0);
        let next_lease = next_lease.max(last_lease) + 1 + store.epoch().0 * 1_000_000;
        Ok(Self(Arc::new(Inner {
            store,
            state: Mutex::new(State {
                entries,
                leases,
                log: VecDeque::new(),
                next_lease,
            }),
            writing: tokio::sync::Mutex::default(),
            revision: watch::Sender::new(revision),
        })))
    }

    /// Lets leases run out, until stopped.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EXPIRY) => {}
            }
            if let Err(error) = self.0.expire(Instant::now()).await {
                tracing::error!(%error, "the registry cannot let leases run out");
            }
        }
    }
}

impl Inner {
    async fn expire(&self, now: Instant) -> Result<(), RegistryError> {
        let over: Vec<(String, Revision)> = {
            let mut state = self.state.lock();
            state.leases.retain(|_, lease| lease.until > now);
            let State {
                entries, leases, ..
            } = &*state;
            let is_over =
                |held: &Held| held.lease.is_some_and(|lease| !leases.contains_key(&lease));
            entries
                .iter()
                .filter(|(_, held)| is_over(held))
                .map(|(key, held)| (key.clone(), held.revision))
                .collect()
        };
        for (key, revision) in over {
            self.write(&key, None, revision, None).await?;
        }
        Ok(())
    }

    /// Writes a key, durably, and then tells of it.
    async fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Revision,
        lease: Option<LeaseId>,
    ) -> Result<Written, RegistryError> {
        let _turn = self.writing.lock().await;
        let (revision, ttl, next_lease) = {
            let state = self.state.lock();
            let present = state.entries.get(key);
            if present.map_or(0, |held| held.revision) != expected {
                return Ok(Written::Conflict(present.map(|held| Entry {
                    key: key.to_owned(),
                    value: held.value.clone(),
                    revision: held.revision,
                })));
            }
            let ttl = match lease {
                None => Duration::ZERO,
                Some(lease) => {
                    state
                        .leases
                        .get(&lease)
                        .ok_or(RegistryError::LeaseLost)?
                        .ttl
                }
            };
            (*self.revision.borrow() + 1, ttl, state.next_lease)
        };
        let mut bookkeeping = Bookkeeping::default();
        match &value {
            None => bookkeeping.delete(Table::Registry, key.as_bytes()),
            Some(value) => {
                let record = RegistryRecord {
                    value: value.to_vec(),
                    revision,
                    lease: lease.map_or(0, |lease| lease.0),
                    lease_ttl_ms: ttl.as_millis() as u64,
                };
                bookkeeping.put(Table::Registry, key.as_bytes(), &record);
            }
        }
        let last = RegistryRecord {
            value: Vec::new(),
            revision,
            lease: next_lease,
            lease_ttl_ms: 0,
        };
        bookkeeping.put(Table::Registry, REVISION, &last);
        self.store
            .commit_durably(bookkeeping)
            .await
            .map_err(failed)?;
        {
            let mut state = self.state.lock();
            match &value {
                None => {
                    state.entries.remove(key);
                }
                Some(value) => {
                    let held = Held {
                        value: value.clone(),
                        revision,
                        lease,
                    };
                    state.entries.insert(key.to_owned(), held);
                }
            }
            state.log.push_back(Change {
                key: key.to_owned(),
                value,
                revision,
            });
            if state.log.len() > MAX_LOG {
                state.log.pop_front();
            }
            self.revision.send_replace(revision);
        }
        Ok(Written::Done(revision))
    }

    /// The changes after a revision; none if they are no longer all known.
    fn since(&self, after: Revision) -> Option<Vec<Change>> {
        let state = self.state.lock();
        let known_from = match state.log.front() {
            Some(first) => first.revision - 1,
            None => *self.revision.borrow(),
        };
        let known = (known_from..=*self.revision.borrow()).contains(&after);
        known.then(|| {
            let newer = state.log.iter().filter(|change| change.revision > after);
            newer.cloned().collect()
        })
    }
}

#[tonic::async_trait]
impl Registry for Embedded {
    async fn list(&self, prefix: &str) -> Result<Snapshot, RegistryError> {
        let state = self.0.state.lock();
        let entries = state
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, held)| Entry {
                key: key.clone(),
                value: held.value.clone(),
                revision: held.revision,
            });
        Ok(Snapshot {
            entries: entries.collect(),
            revision: *self.0.revision.borrow(),
        })
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Revision,
        lease: Option<LeaseId>,
    ) -> Result<Written, RegistryError> {
        self.0.write(key, Some(value), expected, lease).await
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Written, RegistryError> {
        self.0.write(key, None, expected, None).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        let mut state = self.0.state.lock();
        let lease = LeaseId(state.next_lease);
        state.next_lease += 1;
        let until = Instant::now() + ttl;
        state.leases.insert(lease, Lease { ttl, until });
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), RegistryError> {
        let mut state = self.0.state.lock();
        let lease = state
            .leases
            .get_mut(&lease)
            .ok_or(RegistryError::LeaseLost)?;
        lease.until = Instant::now() + lease.ttl;
        Ok(())
    }

    async fn watch(&self, after: Revision) -> Result<Changes, RegistryError> {
        let revisions = self.0.revision.subscribe();
        let inner = self.0.clone();
        let stream = futures_util::stream::unfold(
            (inner, revisions, after, false),
            |(inner, mut revisions, after, ended)| async move {
                if ended {
                    return None;
                }
                loop {
                    match inner.since(after) {
                        None => {
                            let compacted = Err(RegistryError::Compacted(after));
                            return Some((compacted, (inner, revisions, after, true)));
                        }
                        Some(changes) => {
                            if let Some(last) = changes.last() {
                                let last = last.revision;
                                return Some((Ok(changes), (inner, revisions, last, false)));
                            }
                        }
                    }
                    if revisions.changed().await.is_err() {
                        return None;
                    }
                }
            },
        );
        Ok(stream.boxed())
    }
}
