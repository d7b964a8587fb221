//! Records that are committed but may not be in the engine yet, for tables that are not cached
//! otherwise: a look-up sees them from the moment of their commit.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::commit::Ticket;
use crate::engine::Table;

#[derive(Default)]
pub(crate) struct Recent(Mutex<Inner>);

/// Key of a record: its table and its key there.
type Name = (Table, Box<[u8]>);

#[derive(Default)]
struct Inner {
    records: FxHashMap<Name, (Ticket, Option<Bytes>)>,
    order: VecDeque<(Ticket, Name)>,
}

impl Recent {
    /// Remembers a write until it is applied; forgets those that are.
    pub(crate) fn insert(
        &self,
        table: Table,
        key: &[u8],
        value: Option<Bytes>,
        ticket: Ticket,
        applied: Ticket,
    ) {
        let mut inner = self.0.lock();
        while let Some((oldest, _)) = inner.order.front()
            && *oldest <= applied
        {
            if let Some((ticket, name)) = inner.order.pop_front()
                && inner
                    .records
                    .get(&name)
                    .is_some_and(|(latest, _)| *latest == ticket)
            {
                inner.records.remove(&name);
            }
        }
        let name: Name = (table, key.into());
        inner.records.insert(name.clone(), (ticket, value));
        inner.order.push_back((ticket, name));
    }

    /// The unapplied record, if there is one: its value (none: deleted) and its commit. Of one that is applied the engine
    /// knows better: not all that is written afterwards is remembered here.
    pub(crate) fn get(
        &self,
        table: Table,
        key: &[u8],
        applied: Ticket,
    ) -> Option<(Option<Bytes>, Ticket)> {
        let inner = self.0.lock();
        if inner.records.is_empty() {
            return None;
        }
        let (ticket, value) = inner.records.get(&(table, key.into()))?;
        (*ticket > applied).then(|| (value.clone(), *ticket))
    }
}
