//! Values by key, each stored under a key of its own.

use std::fmt::Display;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::state::cache;
use crate::state::host::{Host, Node};

/// Keys of one page when listing.
const PAGE: u32 = 1000;

/// A map of the session: the entry of `key` is stored as JSON under `name:key`, so an event costs
/// what it touches, however large the map is.
#[derive(Debug, Clone, Copy)]
pub struct Map<K, V> {
    name: &'static str,
    _type: PhantomData<fn() -> (K, V)>,
}

impl<K: Display + FromStr, V: Serialize + DeserializeOwned + 'static> Map<K, V> {
    /// The map of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name, _type: PhantomData }
    }

    fn path(&self, key: &K) -> String {
        format!("{}:{key}", self.name)
    }

    /// A copy of a value.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error>
    where
        V: Clone,
    {
        self.get_on(&Node, key)
    }

    /// Changes a value in place; `None` is absent.
    pub fn update<R>(&self, key: &K, change: impl FnOnce(&mut Option<V>) -> R) -> Result<R, Error> {
        cache::update(&Node, &self.path(key), &cache::json(), change)
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &K) -> Result<bool, Error> {
        cache::read::<V, _>(&Node, &self.path(key), &cache::json(), |value| value.is_some())
    }

    /// Writes a value.
    pub fn insert(&self, key: &K, value: V) {
        cache::put(&self.path(key), &cache::json(), Some(value));
    }

    /// Removes a key.
    pub fn remove(&self, key: &K) {
        cache::put::<V>(&self.path(key), &cache::json(), None);
    }

    /// All keys, in the byte order of their text; what this invocation changed included.
    pub fn keys(&self) -> Result<Vec<K>, Error> {
        self.keys_on(&Node)
    }

    pub(crate) fn get_on(&self, host: &impl Host, key: &K) -> Result<Option<V>, Error>
    where
        V: Clone,
    {
        cache::read(host, &self.path(key), &cache::json(), |value: Option<&V>| value.cloned())
    }

    pub(crate) fn keys_on(&self, host: &impl Host) -> Result<Vec<K>, Error> {
        let prefix = format!("{}:", self.name);
        let mut paths = std::collections::BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = host.list_keys(cache::SESSION, &prefix, after.as_deref(), PAGE)?;
            after = page.last().cloned();
            let full = page.len() == PAGE as usize;
            paths.extend(page);
            if !full {
                break;
            }
        }
        for (path, present) in cache::unwritten(&prefix) {
            if present {
                paths.insert(path);
            } else {
                paths.remove(&path);
            }
        }
        let parse = |path: String| {
            let key = &path[prefix.len()..];
            key.parse().map_err(|_| Error::failed(format!("the key {key:?} of map {:?} is not of its type", self.name)))
        };
        paths.into_iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::host::fake::Fake;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_map_is_a_map(operations in proptest::collection::vec((0_u8..4, 0_u32..6, any::<i32>()), 0..60)) {
            cache::clear();
            let (host, map, mut plain) = (Fake::default(), Map::<u32, i32>::new("m"), BTreeMap::new());
            for (operation, key, value) in operations {
                match operation {
                    0 => { map.insert(&key, value); plain.insert(key, value); }
                    1 => { map.remove(&key); plain.remove(&key); }
                    2 => cache::flush(&host).unwrap(),
                    // A new worker.
                    _ => { cache::flush(&host).unwrap(); cache::clear(); }
                }
                prop_assert_eq!(map.get_on(&host, &key).unwrap(), plain.get(&key).copied());
                prop_assert_eq!(map.keys_on(&host).unwrap(), plain.keys().copied().collect::<Vec<_>>());
            }
        }
    }
}
