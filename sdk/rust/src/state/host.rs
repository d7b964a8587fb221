//! The door to the node: the host's state functions, or a map in tests.

use crate::Error;
use crate::bindings::fulmar::function::state;

/// Reads and writes keys.
pub trait Host {
    /// The value of a key.
    fn get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, Error>;
    /// Writes a key.
    fn set(&self, bucket: &str, key: &str, value: &[u8]) -> Result<(), Error>;
    /// Deletes a key.
    fn delete(&self, bucket: &str, key: &str) -> Result<(), Error>;
    /// Up to `limit` keys with a prefix, after `after`.
    fn list_keys(&self, bucket: &str, prefix: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, Error>;
}

/// The node that runs this component.
pub struct Node;

pub(crate) fn failed(doing: &str, bucket: &str, key: &str, error: state::Error) -> Error {
    let what = match error {
        state::Error::NoSession => "the invocation has no session; invoke /fn/FUNCTION/SESSION".to_owned(),
        state::Error::ReadOnly => "the invocation is read-only".to_owned(),
        state::Error::InvalidName(text)
        | state::Error::TooLarge(text)
        | state::Error::WrongType(text)
        | state::Error::Storage(text) => text,
    };
    Error::failed(format!("cannot {doing} {key:?} in bucket {bucket:?}: {what}"))
}

impl Host for Node {
    fn get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        state::get(bucket, key).map_err(|error| failed("read", bucket, key, error))
    }

    fn set(&self, bucket: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        state::set(bucket, key, value).map_err(|error| failed("write", bucket, key, error))
    }

    fn delete(&self, bucket: &str, key: &str) -> Result<(), Error> {
        state::delete(bucket, key).map_err(|error| failed("delete", bucket, key, error))
    }

    fn list_keys(&self, bucket: &str, prefix: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, Error> {
        state::list_keys(bucket, prefix, after, limit).map_err(|error| failed("list", bucket, prefix, error))
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use super::{Error, Host};
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    /// A map that counts what is asked of it.
    #[derive(Default)]
    pub(crate) struct Fake {
        pub(crate) keys: RefCell<BTreeMap<String, Vec<u8>>>,
        pub(crate) reads: Cell<usize>,
        pub(crate) writes: Cell<usize>,
    }

    impl Host for Fake {
        fn get(&self, _: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
            self.reads.set(self.reads.get() + 1);
            Ok(self.keys.borrow().get(key).cloned())
        }

        fn set(&self, _: &str, key: &str, value: &[u8]) -> Result<(), Error> {
            self.writes.set(self.writes.get() + 1);
            self.keys.borrow_mut().insert(key.to_owned(), value.to_vec());
            Ok(())
        }

        fn delete(&self, _: &str, key: &str) -> Result<(), Error> {
            self.writes.set(self.writes.get() + 1);
            self.keys.borrow_mut().remove(key);
            Ok(())
        }

        fn list_keys(&self, _: &str, prefix: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, Error> {
            let keys = self.keys.borrow();
            let wanted = keys.keys().filter(|key| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after));
            Ok(wanted.take(limit as usize).cloned().collect())
        }
    }
}
