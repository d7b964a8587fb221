//! The door to the node. Everything that the SDK asks goes through [`HOST`]: in a component the
//! node that runs it, elsewhere a map in memory that can be looked into.

#[cfg(not(target_family = "wasm"))]
pub(crate) mod memory;
#[cfg(target_family = "wasm")]
mod node;

use crate::bindings::fulmar::function::context::Invocation;
use crate::bindings::fulmar::function::{messages, placement, state};
use crate::{Error, Level};

/// What a node offers.
pub(crate) trait Host {
    fn get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, Error>;
    fn set(&self, bucket: &str, key: &str, value: &[u8]) -> Result<(), Error>;
    fn delete(&self, bucket: &str, key: &str) -> Result<(), Error>;
    fn list_keys(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, Error>;
    fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64, Error>;
    fn compare_and_swap(
        &self,
        bucket: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<bool, Error>;
    fn send(&self, function: &str, session: Option<&str>, body: &[u8]) -> Result<(), Error>;
    fn choose_model(&self, model: placement::ExecutionModel) -> Result<(), Error>;
    fn current(&self) -> Invocation;
    fn now_unix_ms(&self) -> u64;
    fn log(&self, level: Level, message: &str);
    fn config(&self, key: &str) -> Option<String>;
}

#[cfg(target_family = "wasm")]
pub(crate) const HOST: node::Node = node::Node;
#[cfg(not(target_family = "wasm"))]
pub(crate) const HOST: memory::Memory = memory::Memory;

/// A refused state operation, said so that the reader knows which and why.
#[cold]
fn refused(doing: &str, bucket: &str, key: &str, error: state::Error) -> Error {
    let why = match &error {
        state::Error::NoSession => "the invocation has no session; invoke /fn/FUNCTION/SESSION",
        state::Error::ReadOnly => "the invocation is read-only",
        state::Error::InvalidName(text)
        | state::Error::TooLarge(text)
        | state::Error::WrongType(text)
        | state::Error::Storage(text) => text,
    };
    Error::failed(format!(
        "cannot {doing} {key:?} in bucket {bucket:?}: {why}"
    ))
}

/// A refused message.
#[cold]
fn unsent(function: &str, error: messages::Error) -> Error {
    let why = match &error {
        messages::Error::ReadOnly => "the invocation is read-only",
        messages::Error::InvalidName(text) | messages::Error::TooLarge(text) => text,
    };
    Error::failed(format!("cannot send to {function:?}: {why}"))
}

/// A refused choice.
#[cold]
fn not_chosen(error: placement::Error) -> Error {
    let why = match &error {
        placement::Error::NoSession => "the invocation has no session; invoke /fn/FUNCTION/SESSION",
        placement::Error::ReadOnly => "the invocation is read-only",
        placement::Error::Fixed(text) => text,
    };
    Error::failed(format!("cannot choose an execution model: {why}"))
}
