//! A session as it is copied to another home: all of it at once, or all but what changes meanwhile, and
//! then that. And what changed since a commit, for whoever remembers it as it was.

use std::sync::Arc;

use bytes::Bytes;

use super::{Changes, Home, SessionState};
use crate::commit::Ticket;

impl SessionState {
    /// All keys and values, if they are in memory; only in the session's turn.
    pub fn whole(&self) -> Option<Vec<(Arc<str>, Bytes)>> {
        let hot = self.hot.lock();
        let present = hot.entries.iter().filter_map(|(key, entry)| {
            let value = entry.value.clone()?;
            Some((key.clone(), value))
        });
        hot.complete.then(|| present.collect())
    }

    /// Keys that were written after a commit, with their values now; none if that is not known.
    pub fn changed_since(&self, commit: Ticket) -> Option<Vec<(Arc<str>, Option<Bytes>)>> {
        let hot = self.hot.lock();
        if !hot.complete || hot.last_delete > commit || self.home != Home::Store {
            return None;
        }
        let changed = hot
            .entries
            .iter()
            .filter(|(_, entry)| entry.ticket > commit);
        Some(
            changed
                .map(|(key, entry)| (key.clone(), entry.value.clone()))
                .collect(),
        )
    }

    /// Remembers from now on what changes.
    pub fn begin_copy(&self) {
        self.hot.lock().changed = Some(Changes::default());
    }

    /// What changed since [`SessionState::begin_copy`]; forgets it.
    pub fn end_copy(&self) -> Changes {
        self.hot.lock().changed.take().unwrap_or_default()
    }

    /// A record of an idempotency key or a delivery was written or deleted with a commit of the session.
    pub(crate) fn note_record(&self, key: &[u8]) {
        if let Some(changed) = &mut self.hot.lock().changed {
            changed.idempotency.insert(key.to_vec());
        }
    }
}
