//! State as the running invocation sees it: its own writes over the session's hot state and the
//! shared buckets. Dropping a transaction without committing takes back everything it wrote.

mod keys;

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::{
    Bucket, ExecutionModel, FunctionName, NameError, Problem, SessionName, Version, id::check_key,
};

use crate::commit::Ticket;
use crate::engine::EngineError;
use crate::record::{Address, MessageRecord, StoredRequest};
use crate::sealed::Carried;
use crate::session::{SessionState, Undo};
use crate::shared::{Path, SharedWrite, SharedWrites};
use crate::store::Store;
pub use keys::{KeyWrite, VALUE};

/// Largest value in bytes: one event's worth, not a file.
pub const MAX_VALUE_BYTES: usize = 16 << 20;
/// All writes and messages of one invocation in bytes: they are one commit, held in memory.
pub const MAX_TRANSACTION_BYTES: usize = 64 << 20;
/// Messages of one invocation.
pub const MAX_MESSAGES: usize = 10_000;

/// Why a state operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The `session` bucket without a session.
    #[error(
        "the invocation has no session, so it has no `session` bucket; invoke /fn/FUNCTION/SESSION"
    )]
    NoSession,
    /// A write by a read-only invocation.
    #[error("the invocation was declared read-only, so it cannot write")]
    ReadOnly,
    /// A bucket or key name that is not allowed.
    #[error(transparent)]
    InvalidName(#[from] NameError),
    /// Over a limit.
    #[error("{what} has {size}; at most {max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// The stored value is not what the operation needs.
    #[error("{0}")]
    WrongType(String),
    /// The node that has a shared key, or who knows which one has it, could not be asked.
    #[error("{0}")]
    Unreachable(Problem),
    /// The local data store could not answer.
    #[error("the local data store could not answer: {0}")]
    Storage(String),
}

impl From<EngineError> for StateError {
    fn from(error: EngineError) -> Self {
        Self::Storage(error.0)
    }
}

/// A message of the running invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// The receiving function.
    pub to: FunctionName,
    /// Its session, if one is meant.
    pub session: Option<SessionName>,
    /// What it says.
    pub body: Bytes,
}

/// State as the running invocation sees it.
pub struct Transaction {
    store: Arc<Store>,
    session: Option<Arc<SessionState>>,
    pub(crate) undo: Undo,
    pub(crate) shared: SharedWrites,
    /// What was fetched of shared keys that are placed among nodes.
    fetched: BTreeMap<Path, Option<Bytes>>,
    /// Shared keys at home here, with how to take back what is written to them.
    pub(crate) keys: Vec<(Arc<SessionState>, Undo)>,
    pub(crate) messages: Vec<OutgoingMessage>,
    /// The model that the session is to have.
    model: Option<ExecutionModel>,
    /// Time spent on asking for shared keys.
    asking: Duration,
    /// Why one could not be asked for.
    unreachable: Option<Problem>,
    /// The latest commit whose writes were read.
    pub(crate) saw: Ticket,
    bytes: usize,
    /// Whether all writes together were too many for one commit.
    was_too_large: bool,
    read_only: bool,
}

impl Transaction {
    pub(crate) fn new(
        store: Arc<Store>,
        session: Option<Arc<SessionState>>,
        read_only: bool,
    ) -> Self {
        let saw = session
            .as_ref()
            .map_or(Ticket(0), |session| session.last_commit());
        Self {
            store,
            session,
            undo: Undo::default(),
            shared: SharedWrites::new(),
            fetched: BTreeMap::new(),
            keys: Vec::new(),
            messages: Vec::new(),
            model: None,
            asking: Duration::ZERO,
            unreachable: None,
            saw,
            bytes: 0,
            was_too_large: false,
            read_only,
        }
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The session, if the invocation has one.
    pub fn session(&self) -> Option<&Arc<SessionState>> {
        self.session.as_ref()
    }

    /// Whether the invocation has written to its session.
    pub fn has_written(&self) -> bool {
        !self.undo.is_empty()
    }

    /// What the session's client has to carry from the commit on; none if not all of it is in memory.
    pub fn to_carry(&self, left: u64) -> Option<Carried> {
        self.session.as_ref()?.to_carry(left)
    }

    /// Lets the session be what its client brings back, and nothing else.
    ///
    /// # Errors
    /// When what is there cannot be listed, or what comes is too much.
    pub fn bring_back(&mut self, entries: Vec<(String, Vec<u8>)>) -> Result<(), StateError> {
        let present = self.private()?.keys("", None, usize::MAX)?;
        for key in present {
            if !entries.iter().any(|(brought, _)| *brought == key) {
                self.delete(Bucket::Session, &key)?;
            }
        }
        for (key, value) in entries {
            self.set(Bucket::Session, &key, value.into())?;
        }
        Ok(())
    }

    /// Whether it has used more than half of what one commit may write: another invocation is better not added to it.
    pub fn is_half_full(&self) -> bool {
        self.bytes > MAX_TRANSACTION_BYTES / 2 || self.messages.len() > MAX_MESSAGES / 2
    }

    /// Whether something was refused because all writes together were too many for one commit.
    pub fn was_too_large(&self) -> bool {
        self.was_too_large
    }

    /// Whether there is anything to commit.
    pub fn is_clean(&self) -> bool {
        let wrote_shared = !self.shared.is_empty() || !self.keys.is_empty();
        self.undo.is_empty() && !wrote_shared && self.messages.is_empty()
    }

    /// The value of a key.
    pub fn get(&mut self, bucket: Bucket<'_>, key: &str) -> Result<Option<Bytes>, StateError> {
        check_key(key)?;
        match bucket {
            Bucket::Session => Ok(self.private()?.get(key)?),
            Bucket::Shared(bucket) => self.get_shared(&path(bucket, key)),
        }
    }

    /// Writes a key.
    pub fn set(&mut self, bucket: Bucket<'_>, key: &str, value: Bytes) -> Result<(), StateError> {
        self.write(bucket, key, Some(value))
    }

    /// Deletes a key; an absent one is fine.
    pub fn delete(&mut self, bucket: Bucket<'_>, key: &str) -> Result<(), StateError> {
        self.write(bucket, key, None)
    }

    /// Up to `limit` keys that start with `prefix` and come after `after`, in byte order.
    pub fn list_keys(
        &mut self,
        bucket: Bucket<'_>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StateError> {
        match bucket {
            Bucket::Session => Ok(self.private()?.keys(prefix, after, limit)?),
            Bucket::Shared(bucket) => {
                self.store
                    .shared_keys(bucket, prefix, after, limit, &self.shared)
            }
        }
    }

    /// Adds `delta` atomically to a decimal number and returns the sum; an absent key counts as 0.
    pub fn increment(
        &mut self,
        bucket: Bucket<'_>,
        key: &str,
        delta: i64,
    ) -> Result<i64, StateError> {
        let before = self.get(bucket, key)?;
        let number = match &before {
            None => 0,
            Some(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.trim().parse::<i64>().ok())
                .ok_or_else(|| {
                    StateError::WrongType(format!("the value of {key:?} is not a decimal number"))
                })?,
        };
        let sum = number.checked_add(delta).ok_or_else(|| {
            StateError::WrongType(format!(
                "{number} + {delta} of {key:?} is outside a 64-bit number"
            ))
        })?;
        self.write_dependent(bucket, key, before, Some(sum.to_string().into()))?;
        Ok(sum)
    }

    /// Writes `value` (none deletes) if the present value equals `expected` (none: absent); says
    /// whether it did.
    pub fn compare_and_swap(
        &mut self,
        bucket: Bucket<'_>,
        key: &str,
        expected: Option<&[u8]>,
        value: Option<Bytes>,
    ) -> Result<bool, StateError> {
        let before = self.get(bucket, key)?;
        if before.as_deref() != expected {
            return Ok(false);
        }
        self.write_dependent(bucket, key, before, value)?;
        Ok(true)
    }

    /// Sends a message with the commit.
    pub fn send(
        &mut self,
        to: FunctionName,
        session: Option<SessionName>,
        body: Bytes,
    ) -> Result<(), StateError> {
        self.account("the message", body.len())?;
        if self.messages.len() == MAX_MESSAGES {
            self.was_too_large = true;
            return Err(StateError::TooLarge {
                what: "the invocation's list of messages",
                size: MAX_MESSAGES + 1,
                max: MAX_MESSAGES,
            });
        }
        self.messages.push(OutgoingMessage { to, session, body });
        Ok(())
    }

    /// Wants the session to have this execution model after the commit.
    pub fn choose_model(&mut self, model: ExecutionModel) -> Result<(), StateError> {
        self.private()?;
        if self.read_only {
            return Err(StateError::ReadOnly);
        }
        self.model = Some(model);
        Ok(())
    }

    /// The execution model that the session is to have after the commit, if one was chosen.
    pub fn chosen_model(&self) -> Option<ExecutionModel> {
        self.model
    }

    fn private(&self) -> Result<&Arc<SessionState>, StateError> {
        self.session.as_ref().ok_or(StateError::NoSession)
    }

    fn get_shared(&mut self, path: &Path) -> Result<Option<Bytes>, StateError> {
        if let Some(write) = self.shared.get(path) {
            return Ok(write.value.clone());
        }
        if self.store.placed_keys().is_some() {
            let unasked = || StateError::Storage("a shared key was not asked for".into());
            return self.fetched.get(path).cloned().ok_or_else(unasked);
        }
        let (value, ticket) = self.store.shared_get(path)?;
        self.saw = self.saw.max(ticket);
        Ok(value)
    }

    /// Refuses a write that is not allowed or too large, and counts it.
    fn account(&mut self, what: &'static str, size: usize) -> Result<(), StateError> {
        if self.read_only {
            return Err(StateError::ReadOnly);
        }
        if size > MAX_VALUE_BYTES {
            let max = MAX_VALUE_BYTES;
            return Err(StateError::TooLarge { what, size, max });
        }
        self.bytes += size;
        if self.bytes > MAX_TRANSACTION_BYTES {
            self.was_too_large = true;
            return Err(StateError::TooLarge {
                what: "everything that the invocation writes",
                size: self.bytes,
                max: MAX_TRANSACTION_BYTES,
            });
        }
        Ok(())
    }

    fn write(
        &mut self,
        bucket: Bucket<'_>,
        key: &str,
        value: Option<Bytes>,
    ) -> Result<(), StateError> {
        check_key(key)?;
        self.account(
            "the value",
            key.len() + value.as_ref().map_or(0, Bytes::len),
        )?;
        match bucket {
            Bucket::Session => {
                let session = self.session.as_ref().ok_or(StateError::NoSession)?;
                session.set(key, value, &mut self.undo);
            }
            Bucket::Shared(bucket) => self.put_shared(path(bucket, key), value, None),
        }
        Ok(())
    }

    /// A write that depends on the value `before`.
    fn write_dependent(
        &mut self,
        bucket: Bucket<'_>,
        key: &str,
        before: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Result<(), StateError> {
        match bucket {
            Bucket::Session => self.write(bucket, key, value),
            Bucket::Shared(name) => {
                self.account(
                    "the value",
                    key.len() + value.as_ref().map_or(0, Bytes::len),
                )?;
                self.put_shared(path(name, key), value, Some(before));
                Ok(())
            }
        }
    }

    fn put_shared(&mut self, path: Path, value: Option<Bytes>, expected: Option<Option<Bytes>>) {
        match self.shared.entry(path) {
            // What an earlier write of this invocation depends on stays what it depends on.
            btree_map::Entry::Occupied(mut entry) => entry.get_mut().value = value,
            btree_map::Entry::Vacant(entry) => {
                entry.insert(SharedWrite { value, expected });
            }
        }
    }

    /// What is written to the session: keys with their values; none: deleted.
    pub fn session_writes(&self) -> Vec<(String, Option<Bytes>)> {
        let session = self.session.as_ref();
        session.map_or_else(Vec::new, |session| session.written(&self.undo))
    }

    /// The invocation's messages as records.
    pub fn take_messages(&mut self, now_unix_ms: u64) -> Vec<MessageRecord> {
        if self.messages.is_empty() {
            return Vec::new();
        }
        let from = self.session().map(|session| Address {
            function: session.group().function.clone(),
            session: Some(session.group().session.clone()),
        });
        let message = |message: OutgoingMessage| MessageRecord {
            from: from.clone(),
            to: Address {
                function: message.to,
                session: message.session,
            },
            request: StoredRequest {
                method: "POST".into(),
                path: "/".into(),
                headers: Vec::new(),
                body: message.body.into(),
            },
            invocation: None,
            idempotency_key: None,
            attempts: 0,
            error: String::new(),
            at_unix_ms: now_unix_ms,
        };
        std::mem::take(&mut self.messages)
            .into_iter()
            .map(message)
            .collect()
    }

    /// What was written to the session is committed by its home, and has made this version.
    pub fn committed_elsewhere(mut self, version: Version) {
        if let Some(session) = &self.session {
            session.committed_elsewhere(std::mem::take(&mut self.undo), version);
        }
    }

    /// Takes the session's writes back now rather than when dropped.
    pub fn abort(self) {}
}

impl Drop for Transaction {
    fn drop(&mut self) {
        for (state, undo) in std::mem::take(&mut self.keys) {
            state.roll_back(undo);
        }
        if let Some(session) = &self.session
            && !self.undo.is_empty()
        {
            session.roll_back(std::mem::take(&mut self.undo));
        }
    }
}

pub(crate) fn path(bucket: &str, key: &str) -> Path {
    [bucket.as_bytes(), crate::key::SEPARATOR, key.as_bytes()]
        .concat()
        .into()
}
