//! State as the running invocation sees it. (Signatures first; the body follows.)
#![allow(missing_docs, unused_variables, clippy::todo)]
use bytes::Bytes;
use fulmar_model::{Bucket, FunctionName, NameError, SessionName};

/// Why a state operation was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    #[error("the invocation has no session, so it has no `session` bucket")]
    NoSession,
    #[error("the invocation was declared read-only")]
    ReadOnly,
    #[error(transparent)]
    InvalidName(#[from] NameError),
    #[error("{what} has {bytes} bytes; at most {max} are allowed")]
    TooLarge { what: &'static str, bytes: usize, max: usize },
    #[error("{0}")]
    WrongType(String),
    #[error("the local data store could not answer: {0}")]
    Storage(String),
}

/// State as the running invocation sees it.
pub struct Transaction {}

impl Transaction {
    pub fn get(&mut self, bucket: Bucket<'_>, key: &str) -> Result<Option<Bytes>, StateError> { todo!() }
    pub fn set(&mut self, bucket: Bucket<'_>, key: &str, value: Bytes) -> Result<(), StateError> { todo!() }
    pub fn delete(&mut self, bucket: Bucket<'_>, key: &str) -> Result<(), StateError> { todo!() }
    pub fn list_keys(&mut self, bucket: Bucket<'_>, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StateError> { todo!() }
    pub fn increment(&mut self, bucket: Bucket<'_>, key: &str, delta: i64) -> Result<i64, StateError> { todo!() }
    pub fn compare_and_swap(&mut self, bucket: Bucket<'_>, key: &str, expected: Option<&[u8]>, value: Option<Bytes>) -> Result<bool, StateError> { todo!() }
    pub fn send(&mut self, to: FunctionName, session: Option<SessionName>, body: Bytes) -> Result<(), StateError> { todo!() }
    pub fn is_read_only(&self) -> bool { todo!() }
}
