//! Shared keys that are placed among nodes, as the running invocation uses them: asked for before they are read, and made
//! part of its commit when they are at home here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::{Bucket, Problem};

use super::{StateError, Transaction, path};
use crate::placed::{Found, KeyRange, PlacedKeys};
use crate::session::{SessionState, Undo};
use crate::shared::Path;

/// The key under which a shared key that is a placement group of its own keeps its value.
pub const VALUE: &str = "value";

/// A write to a shared key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyWrite {
    /// The bucket, by its name among those of all namespaces.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// What is written; none deletes.
    pub value: Option<Bytes>,
    /// What has to be there for it, if that matters.
    pub expected: Option<Option<Bytes>>,
}

impl Transaction {
    /// Whoever reads a shared key that is placed among nodes, and has to be asked before it is used.
    pub fn lacks(&self, bucket: Bucket<'_>, key: &str) -> Option<Arc<dyn PlacedKeys>> {
        let Bucket::Shared(bucket) = bucket else {
            return None;
        };
        let placed = self.store.placed_keys()?;
        let path = path(bucket, key);
        let is_known = self.shared.contains_key(&path) || self.fetched.contains_key(&path);
        (!is_known).then(|| placed.clone())
    }

    /// Such a key could not be asked for: that, and not what the function makes of it, is why the invocation fails.
    pub fn unreachable(&mut self, problem: Problem) {
        self.unreachable = Some(problem);
    }

    /// Why a shared key could not be asked for, if one could not.
    pub fn missed(&self) -> Option<&Problem> {
        self.unreachable.as_ref()
    }

    /// Takes what was read of such a key, and how long that took.
    pub fn fetched(&mut self, bucket: &str, key: &str, found: Found, took: Duration) {
        self.asking += took;
        self.saw = self.saw.max(found.saw);
        self.fetched.insert(path(bucket, key), found.value);
    }

    /// Time that was spent on asking for shared keys (`T_{f,i}^data` of the invocation).
    pub fn asking(&self) -> Duration {
        self.asking
    }

    /// The writes to shared keys that are placed among nodes, in the order of their buckets and keys.
    pub fn key_writes(&self) -> Vec<KeyWrite> {
        if self.store.placed_keys().is_none() {
            return Vec::new();
        }
        let writes = self.shared.iter().map(|(path, write)| {
            let (bucket, key) = split(path);
            KeyWrite {
                bucket,
                key,
                value: write.value.clone(),
                expected: write.expected.clone(),
            }
        });
        writes.collect()
    }

    /// The shared keys that were read or written, placed among nodes, with the sizes of their values in bytes.
    pub fn used_keys(&self) -> Vec<(String, String, usize)> {
        if self.store.placed_keys().is_none() {
            return Vec::new();
        }
        let read = self.fetched.iter();
        let written = self
            .shared
            .iter()
            .filter(|(path, _)| !self.fetched.contains_key(*path));
        let written = written.map(|(path, write)| (path, &write.value));
        read.chain(written)
            .map(|(path, value)| {
                let (bucket, key) = split(path);
                (bucket, key, value.as_ref().map_or(0, Bytes::len))
            })
            .collect()
    }

    /// Whether anything was written to shared buckets.
    pub fn has_written_shared(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Makes the writes to shared keys part of the commit, given the states of those keys in the order of
    /// [`Self::key_writes`], for whoever has the turn of all of them; false if one has another value than was expected, and
    /// nothing is written.
    ///
    /// # Errors
    /// When the local data store cannot be read.
    pub fn write_keys(&mut self, states: &[Arc<SessionState>]) -> Result<bool, StateError> {
        let writes = std::mem::take(&mut self.shared);
        for (write, state) in writes.values().zip(states) {
            if let Some(expected) = &write.expected
                && state.get(VALUE)? != *expected
            {
                return Ok(false);
            }
        }
        for (write, state) in writes.into_values().zip(states) {
            let mut undo = Undo::default();
            state.set(VALUE, write.value, &mut undo);
            self.keys.push((state.clone(), undo));
        }
        Ok(true)
    }

    /// Whoever lists the keys of a shared bucket, if they are placed among nodes, and how many more of them are to be listed
    /// than are wanted, since this invocation may have deleted some.
    pub fn lister(&self, bucket: Bucket<'_>) -> Option<(Arc<dyn PlacedKeys>, usize)> {
        match bucket {
            Bucket::Session => None,
            Bucket::Shared(_) => Some((self.store.placed_keys()?.clone(), self.shared.len())),
        }
    }

    /// The keys that were listed there, with what this invocation has written: in byte order.
    pub fn with_own_keys(&self, range: KeyRange<'_>, listed: Vec<String>) -> Vec<String> {
        let mut keys: BTreeSet<String> = listed.into_iter().collect();
        for (path, write) in &self.shared {
            let (of, key) = split(path);
            let is_wanted = of == range.bucket
                && key.starts_with(range.prefix)
                && range.after.is_none_or(|after| key.as_str() > after);
            match (is_wanted, &write.value) {
                (false, _) => {}
                (true, Some(_)) => drop(keys.insert(key)),
                (true, None) => drop(keys.remove(&key)),
            }
        }
        keys.into_iter().take(range.limit).collect()
    }
}

fn split(path: &Path) -> (String, String) {
    let text = String::from_utf8_lossy(path);
    let (bucket, key) = text.split_once('\0').unwrap_or((&text, ""));
    (bucket.to_owned(), key.to_owned())
}
