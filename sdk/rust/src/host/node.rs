//! The node that runs this component.

use super::{Host, Invocation, messages, not_chosen, placement, refused, state, unsent};
use crate::bindings::fulmar::function::context;
use crate::bindings::wasi::{config::store, logging::logging};
use crate::{Error, Level};

/// The node that runs this component.
pub(crate) struct Node;

impl Host for Node {
    fn get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        state::get(bucket, key).map_err(|error| refused("read", bucket, key, error))
    }

    fn set(&self, bucket: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        state::set(bucket, key, value).map_err(|error| refused("write", bucket, key, error))
    }

    fn delete(&self, bucket: &str, key: &str) -> Result<(), Error> {
        state::delete(bucket, key).map_err(|error| refused("delete", bucket, key, error))
    }

    fn list_keys(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, Error> {
        state::list_keys(bucket, prefix, after, limit)
            .map_err(|error| refused("list", bucket, prefix, error))
    }

    fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64, Error> {
        state::increment(bucket, key, delta)
            .map_err(|error| refused("increment", bucket, key, error))
    }

    fn compare_and_swap(
        &self,
        bucket: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<bool, Error> {
        state::compare_and_swap(bucket, key, expected, value)
            .map_err(|error| refused("swap", bucket, key, error))
    }

    fn send(&self, function: &str, session: Option<&str>, body: &[u8]) -> Result<(), Error> {
        messages::send(function, session, body).map_err(|error| unsent(function, error))
    }

    fn choose_model(&self, model: placement::ExecutionModel) -> Result<(), Error> {
        placement::choose(model).map_err(not_chosen)
    }

    fn current(&self) -> Invocation {
        context::current()
    }

    fn now_unix_ms(&self) -> u64 {
        context::now_unix_ms()
    }

    fn log(&self, level: Level, message: &str) {
        logging::log(level, "", message);
    }

    fn config(&self, key: &str) -> Option<String> {
        store::get(key).ok().flatten()
    }
}
