//! Buckets as they are: keys and bytes, never cached here.

use crate::Error;
use crate::bindings::fulmar::function::state;
use crate::state::cache::SESSION;
use crate::state::host::{Host, Node, failed};

/// A bucket: shared by all functions, or the session's own.
#[derive(Debug, Clone)]
pub struct Bucket {
    name: String,
}

/// A shared bucket: linearizable per key.
pub fn bucket(name: &str) -> Bucket {
    Bucket { name: name.to_owned() }
}

/// The session's own bucket, as bytes. Do not mix it with typed state under the same keys.
pub fn session() -> Bucket {
    bucket(SESSION)
}

impl Bucket {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Node.get(&self.name, key)
    }

    /// Writes a key.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        Node.set(&self.name, key, value)
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        Node.delete(&self.name, key)
    }

    /// Up to `limit` keys that start with `prefix` and come after `after`, in byte order.
    pub fn list_keys(&self, prefix: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, Error> {
        Node.list_keys(&self.name, prefix, after, limit)
    }

    /// Adds to a decimal number atomically and returns the sum; an absent key counts as 0.
    pub fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        state::increment(&self.name, key, delta).map_err(|error| failed("increment", &self.name, key, error))
    }

    /// Writes `value` (none deletes) if the key's value is `expected` (none: absent); says whether.
    pub fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, value: Option<&[u8]>) -> Result<bool, Error> {
        state::compare_and_swap(&self.name, key, expected, value).map_err(|error| failed("swap", &self.name, key, error))
    }
}
