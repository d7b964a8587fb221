//! The engine in memory: the `memory` home. Nothing survives the process.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::engine::{Engine, EngineError, Table, Visit, Write};

/// Ordered maps behind the [`Engine`] trait.
#[derive(Default)]
pub struct MemoryEngine {
    tables: [RwLock<BTreeMap<Vec<u8>, Bytes>>; Table::ALL.len()],
}

impl Engine for MemoryEngine {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.tables[table as usize].read().get(key).cloned())
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        let start = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let map = self.tables[table as usize].read();
        for (key, value) in map.range::<[u8], _>((start, Bound::Unbounded)) {
            if !key.starts_with(prefix) || !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, writes: &[Write<'_>], _sync: bool) -> Result<(), EngineError> {
        let mut guards: [Option<_>; Table::ALL.len()] = Default::default();
        // Locked in the order of the tables, so that two writers cannot wait for each other.
        for (at, table) in self.tables.iter().enumerate() {
            if writes.iter().any(|w| w.table as usize == at) {
                guards[at] = Some(table.write());
            }
        }
        for write in writes {
            if let Some(map) = &mut guards[write.table as usize] {
                match write.value {
                    Some(value) => map.insert(write.key.to_vec(), Bytes::copy_from_slice(value)),
                    None => map.remove(write.key),
                };
            }
        }
        Ok(())
    }

    fn approximate_len(&self, table: Table) -> usize {
        self.tables[table as usize].read().len()
    }

    fn sync(&self) -> Result<(), EngineError> {
        Ok(())
    }
}
