//! The engine on disk: fjall, one keyspace per table, one journal for all of them.

use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::engine::{Engine, EngineError, Table, Visit, Write};

/// Block cache in bytes: what a 512 MB board can spare; hot sessions are cached above the engine.
const CACHE_BYTES: u64 = 16 << 20;
/// Memtable of one table in bytes: small, since a smaller skip list is faster and starts sooner.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// All journals in bytes: bounds what a restart has to read again.
const JOURNAL_BYTES: u64 = 64 << 20;

/// fjall behind the [`Engine`] trait.
pub struct FjallEngine {
    database: Database,
    tables: Vec<Keyspace>,
}

fn failed(error: fjall::Error) -> EngineError {
    EngineError(match &error {
        fjall::Error::Poisoned => {
            "an earlier write or fsync failed, so the data store takes no more writes".into()
        }
        _ => error.to_string(),
    })
}

impl FjallEngine {
    /// Opens or creates the store in a folder.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .manual_journal_persist(true)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let tables = Table::ALL
            .iter()
            .map(|table| {
                database.keyspace(table.name(), || {
                    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
                })
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        Ok(Self { database, tables })
    }

    fn table(&self, table: Table) -> &Keyspace {
        &self.tables[table as usize]
    }
}

/// The first key behind all that start with `prefix`; none if there is no such key.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

impl Engine for FjallEngine {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.table(table).get(key).map_err(failed)?;
        Ok(value.map(|v| Bytes::copy_from_slice(&v)))
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        // `after` is never below the prefix, so one range serves. It has to say where it ends: whoever
        // looks for the next key behind it may have to go over all that were deleted there.
        let start = after.map_or_else(|| prefix.to_vec(), |after| [after, b"\0"].concat());
        let end = end_of(prefix).map_or(Bound::Unbounded, Bound::Excluded);
        if matches!(&end, Bound::Excluded(end) if *end <= start) {
            return Ok(());
        }
        for guard in self.table(table).range((Bound::Included(start), end)) {
            let (key, value) = guard.into_inner().map_err(failed)?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, writes: &[Write<'_>], sync: bool) -> Result<(), EngineError> {
        let mode = if sync {
            PersistMode::SyncData
        } else {
            PersistMode::Buffer
        };
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), writes.len())
            .durability(Some(mode));
        for write in writes {
            let table = self.table(write.table);
            match write.value {
                Some(value) => batch.insert(table, write.key, value),
                None => batch.remove(table, write.key),
            }
        }
        batch.commit().map_err(failed)
    }

    fn approximate_len(&self, table: Table) -> usize {
        self.table(table).approximate_len()
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.database.persist(PersistMode::SyncData).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_ends_with_its_prefix() {
        assert_eq!(end_of(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(end_of(b"\xff"), None);
        assert_eq!(end_of(b""), None);
        let folder = tempfile::tempdir().unwrap();
        let engine = FjallEngine::open(folder.path()).unwrap();
        let keys: [&[u8]; 6] = [b"a", b"b", b"b\0x", b"b\xff", b"c", b"\xff\xff"];
        let writes = keys.map(|key| Write {
            table: Table::State,
            key,
            value: Some(b"v"),
        });
        engine.write(&writes, false).unwrap();
        let scan = |prefix: &[u8], after: Option<&[u8]>| {
            let mut seen = Vec::new();
            let visit = &mut |key: &[u8], _: &[u8]| {
                seen.push(key.to_vec());
                true
            };
            engine.scan(Table::State, prefix, after, visit).unwrap();
            seen
        };
        assert_eq!(scan(b"b", None), [&b"b"[..], b"b\0x", b"b\xff"]);
        assert_eq!(scan(b"b", Some(b"b\0x")), [b"b\xff"]);
        assert!(scan(b"b", Some(b"c")).is_empty());
        assert_eq!(scan(b"\xff", None), [b"\xff\xff"]);
        assert_eq!(scan(b"", None).len(), 6);
    }
}
