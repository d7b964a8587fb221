//! The commit of an invocation: its state, messages and bookkeeping become one batch.

use bytes::Bytes;
use fulmar_model::{Durability, Version};

use super::Store;
use crate::commit::{Batch, Release, StoreFailure, Ticket};
use crate::engine::Table;
use crate::key;
use crate::record::{MessageRecord, Record, SessionRecord};
use crate::session::{Home, SessionState, Undo};
use crate::shared::{Checked, Path};
use crate::transaction::Transaction;

/// Something that the invocation depends on changed meanwhile: it has to run again, and may want
/// these keys for itself then.
pub struct ReservedKeys(Vec<Path>);

/// An invocation that may commit: nothing that it depends on can change before it does.
pub struct Prepared<'a> {
    store: &'a Store,
    tx: Transaction,
    checked: Option<Checked<'a>>,
}

/// What a commit did.
pub struct Committed {
    /// The commit.
    pub ticket: Ticket,
    /// The tag of the session's state now, if the invocation has a session.
    pub tag: Option<u64>,
    /// The messages that are to be delivered now, in order, with their keys.
    pub messages: Vec<([u8; 12], MessageRecord)>,
}

/// Writes of the node that belong to an invocation's commit: its idempotency record, the message
/// that it consumed, its result.
#[derive(Default)]
pub struct Bookkeeping {
    pub(super) batch: Batch,
    pub(super) recent: Vec<(Table, Vec<u8>, Option<Bytes>)>,
}

impl Bookkeeping {
    /// Stores a record.
    pub fn put(&mut self, table: Table, key: &[u8], record: &impl Record) {
        let bytes = record.encode();
        self.batch.put(table, &[key], &bytes);
        self.recent.push((table, key.to_vec(), Some(bytes.into())));
    }

    /// Stores a value that is no record, where nobody looks before it is applied.
    pub fn put_raw(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.batch.put(table, &[key], value);
    }

    /// Deletes such a value.
    pub fn delete_raw(&mut self, table: Table, key: &[u8]) {
        self.batch.delete(table, &[key]);
    }

    /// Adds what belongs to another invocation of the same commit.
    pub fn add(&mut self, other: Self) {
        self.batch.append(&other.batch);
        self.recent.extend(other.recent);
    }

    /// Bytes to write, about.
    pub fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Deletes a record.
    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.batch.delete(table, &[key]);
        self.recent.push((table, key.to_vec(), None));
    }
}

impl Store {
    /// Checks what an invocation depends on; what comes back must be committed or dropped before
    /// the task waits for anything, for it holds the locks of the shared keys written.
    pub fn prepare(&self, tx: Transaction, writer: u64) -> Result<Prepared<'_>, ReservedKeys> {
        let checked = if tx.shared.is_empty() {
            None
        } else {
            Some(
                self.shared
                    .check(&tx.shared, writer)
                    .map_err(ReservedKeys)?,
            )
        };
        Ok(Prepared {
            store: self,
            tx,
            checked,
        })
    }

    /// Waits until the keys of a conflict are reserved for the writer.
    pub async fn reserve(&self, keys: &ReservedKeys, writer: u64) {
        self.shared.reserve(&keys.0, writer).await;
    }

    /// Gives reserved keys back.
    pub fn unreserve(&self, keys: &ReservedKeys, writer: u64) {
        self.shared.release(&keys.0, writer);
    }
}

/// Adds what was written to a session, or to a key, to its commit; the version that its record covers from then on, if that
/// changes.
fn collect(
    state: &SessionState,
    undo: &Undo,
    now_unix_ms: u64,
    batch: &mut Batch,
) -> Option<Version> {
    if state.home() != Home::Store {
        return None;
    }
    state.collect(undo, batch);
    let version = state.uncovered()?;
    let record = SessionRecord {
        version,
        epoch: state.epoch(),
        updated_unix_ms: now_unix_ms,
    };
    batch.put(Table::Sessions, &[state.record_key()], &record.encode());
    Some(version)
}

impl Prepared<'_> {
    /// Commits the invocation: its state, messages and bookkeeping, all or nothing. `release` runs
    /// once everything that the invocation wrote and saw is durable at its level, or with the
    /// failure if it never will be.
    pub fn commit(
        self,
        durability: Durability,
        bookkeeping: Bookkeeping,
        now_unix_ms: u64,
        release: Release,
    ) -> Result<Committed, StoreFailure> {
        let Self {
            store,
            mut tx,
            checked,
        } = self;
        let session = tx.session().cloned();
        if tx.is_clean() && bookkeeping.batch.is_empty() {
            store.release(tx.saw, durability, release);
            return Ok(Committed {
                ticket: tx.saw,
                tag: session.map(|session| session.tag()),
                messages: Vec::new(),
            });
        }
        let mut batch = bookkeeping.batch;
        Checked::collect(&tx.shared, &mut batch);
        let own = session.as_ref().filter(|_| !tx.undo.is_empty());
        let covered = own.and_then(|session| collect(session, &tx.undo, now_unix_ms, &mut batch));
        let keys = std::mem::take(&mut tx.keys).into_iter();
        let keys: Vec<_> = keys
            .map(|(state, undo)| {
                let covered = collect(&state, &undo, now_unix_ms, &mut batch);
                (state, undo, covered)
            })
            .collect();
        let messages = tx.take_messages(now_unix_ms);
        if batch.is_empty() && messages.is_empty() {
            // All that was written is with the client.
            if let Some(session) = &session {
                session.committed(std::mem::take(&mut tx.undo), tx.saw, None);
            }
            store.release(tx.saw, durability, release);
            return Ok(Committed {
                ticket: tx.saw,
                tag: session.map(|session| session.tag()),
                messages: Vec::new(),
            });
        }
        let encoded: Vec<Vec<u8>> = messages.iter().map(Record::encode).collect();
        let fill = |ticket: Ticket, batch: &mut Batch| {
            for (index, message) in encoded.iter().enumerate() {
                batch.put(
                    Table::Messages,
                    &[&key::message(ticket, index as u32)],
                    message,
                );
            }
        };
        let (waits, at_once) = match durability {
            Durability::Local => (Some(release), None),
            // The copy waits for the disk itself.
            Durability::Memory | Durability::Replicated => (None, Some(release)),
        };
        let ticket = match store.commit.submit(&batch, fill, waits) {
            Ok(ticket) => ticket,
            Err((failure, waits)) => {
                for (state, undo, _) in keys {
                    state.roll_back(undo);
                }
                if let Some(release) = waits.or(at_once) {
                    release(Err(failure.clone()));
                }
                return Err(failure);
            }
        };
        for (state, undo, covered) in keys {
            state.committed(undo, ticket, covered);
        }
        if let Some(checked) = checked {
            checked.publish(std::mem::take(&mut tx.shared), ticket);
        }
        if let Some(session) = &session {
            for (table, key, _) in &bookkeeping.recent {
                if *table == Table::Idempotency {
                    session.note_record(key);
                }
            }
        }
        store.remember(bookkeeping.recent, ticket);
        let tag = session.map(|session| {
            if !tx.undo.is_empty() {
                session.committed(std::mem::take(&mut tx.undo), ticket, covered);
            }
            session.tag()
        });
        if let Some(release) = at_once {
            store.release(ticket, durability, release);
        }
        let keys = (0..).map(|index| key::message(ticket, index));
        Ok(Committed {
            ticket,
            tag,
            messages: keys.zip(messages).collect(),
        })
    }
}
