//! Buckets as they are: keys and bytes, never cached here.

use crate::Error;
use crate::host::{HOST, Host};
use crate::state::cache::{self, SESSION};
use crate::state::stored::Stored;

/// A bucket: shared by all functions, or the session's own.
///
/// Nothing of it is cached, since others write to shared buckets. What this invocation writes, it
/// sees at once; others see it when the invocation succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    name: String,
}

/// A shared bucket: linearizable per key.
pub fn bucket(name: &str) -> Bucket {
    Bucket {
        name: name.to_owned(),
    }
}

/// The session's own bucket, where typed state is too, under its names.
pub fn session() -> Bucket {
    bucket(SESSION)
}

impl Bucket {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.flush()?;
        HOST.get(&self.name, key)
    }

    /// The value of a key, decoded: JSON unless its type says otherwise ([`Stored`]).
    pub fn load<T: Stored>(&self, key: &str) -> Result<Option<T>, Error> {
        let bytes = self.get(key)?;
        let value = bytes.map(|bytes| T::from_stored(&bytes)).transpose();
        value.map_err(|error| error.while_doing(format!("{key:?} in bucket {:?}", self.name)))
    }

    /// Writes a key.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.take_over(key)?;
        HOST.set(&self.name, key, value)
    }

    /// Writes a key, encoded as [`Bucket::load`] reads it.
    pub fn store<T: Stored>(&self, key: &str, value: &T) -> Result<(), Error> {
        self.set(key, &value.to_stored()?)
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        self.take_over(key)?;
        HOST.delete(&self.name, key)
    }

    /// Up to `limit` keys that start with `prefix` and come after `after`, in byte order.
    pub fn list_keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, Error> {
        self.flush()?;
        HOST.list_keys(&self.name, prefix, after, limit)
    }

    /// Adds to a decimal number atomically and returns the sum; an absent key counts as 0.
    pub fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.take_over(key)?;
        HOST.increment(&self.name, key, delta)
    }

    /// Writes `value` (none deletes) if the key's value is `expected` (none: absent); says whether.
    pub fn compare_and_swap(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<bool, Error> {
        self.take_over(key)?;
        HOST.compare_and_swap(&self.name, key, expected, value)
    }

    /// Typed state of the session that is not written yet is written first.
    fn flush(&self) -> Result<(), Error> {
        if self.name == SESSION {
            cache::flush()?;
        }
        Ok(())
    }

    /// As `flush`, and typed state forgets the key.
    fn take_over(&self, key: &str) -> Result<(), Error> {
        if self.name == SESSION {
            cache::flush()?;
            cache::forget(key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;
    use crate::testing::{invoke, reset, store, stored};

    static COUNT: Counter = Counter::new("count");

    #[test]
    fn typed_state_and_the_session_s_bytes_agree() {
        reset();
        let seen = invoke("s", || {
            COUNT.add(5)?;
            assert_eq!(session().get("count")?.unwrap(), b"5");
            assert_eq!(session().list_keys("", None, 10)?, ["count"]);
            session().increment("count", 2)?;
            COUNT.add(1)
        });
        assert_eq!(seen, Ok(8));
    }

    #[test]
    fn a_shared_bucket_is_read_anew() {
        reset();
        let read = || bucket("b").load::<u32>("k");
        assert_eq!(invoke("s", read), Ok(None));
        store("b", "k", "7");
        assert_eq!(invoke("s", read), Ok(Some(7)));
        invoke("s", || bucket("b").store("k", &8)).unwrap();
        assert_eq!(stored("b", "k").unwrap(), b"8");
        store("b", "k", "eight");
        let wrong = invoke("s", read).unwrap_err().to_string();
        assert!(wrong.starts_with(r#""k" in bucket "b""#), "{wrong}");
    }

    #[test]
    fn swapping_and_incrementing_say_what_happened() {
        reset();
        let bucket = bucket("b");
        assert_eq!(bucket.compare_and_swap("k", None, Some(b"1")), Ok(true));
        assert_eq!(bucket.compare_and_swap("k", None, Some(b"2")), Ok(false));
        assert_eq!(bucket.increment("k", 4), Ok(5));
        assert_eq!(bucket.compare_and_swap("k", Some(b"5"), None), Ok(true));
        assert_eq!(bucket.get("k"), Ok(None));
    }
}
