//! A node in memory, for tests: of this crate and of functions, which run natively in them.
//!
//! Each thread has its own, so tests do not see each other. Writes and messages of an invocation
//! are kept aside and become visible when it succeeds, as on a node.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Host, Invocation, messages, not_chosen, placement, refused, state, unsent};
use crate::state::cache::SESSION;
use crate::testing::{Calls, Message};
use crate::{Error, Level};

/// The longest bucket or key name, in bytes.
const MAX_NAME_BYTES: usize = 1024;
/// How long an invocation may take unless a test says otherwise.
const TIMEOUT_MS: u64 = 30_000;

/// Bucket and key; the bucket of a session is `session/NAME`.
type Place = (String, String);

#[derive(Default)]
struct Node {
    stored: BTreeMap<Place, Vec<u8>>,
    sent: Vec<Message>,
    config: BTreeMap<String, String>,
    logged: Vec<(Level, String)>,
    model: Option<placement::ExecutionModel>,
    /// What the running invocation wrote, sent and chose.
    writes: BTreeMap<Place, Option<Vec<u8>>>,
    sends: Vec<Message>,
    choice: Option<placement::ExecutionModel>,
}

thread_local! {
    static NODE: RefCell<Node> = RefCell::default();
    static CURRENT: RefCell<Invocation> = RefCell::new(invocation());
    static CALLS: Cell<Calls> = const { Cell::new(Calls::NONE) };
}

/// The node in the memory of this thread.
pub(crate) struct Memory;

/// An invocation of the session `test`, by which state is usable in tests without more words.
pub(crate) fn invocation() -> Invocation {
    Invocation {
        id: "test".into(),
        function: "test".into(),
        session: Some("test".into()),
        idempotency_key: None,
        attempt: 1,
        deadline_unix_ms: Memory.now_unix_ms() + TIMEOUT_MS,
        read_only: false,
    }
}

impl Memory {
    pub(crate) fn begin(&self, invocation: Invocation) {
        self.roll_back();
        CURRENT.set(invocation);
    }

    pub(crate) fn commit(&self) {
        NODE.with_borrow_mut(|node| {
            for (place, value) in std::mem::take(&mut node.writes) {
                match value {
                    Some(value) => node.stored.insert(place, value),
                    None => node.stored.remove(&place),
                };
            }
            let sends = std::mem::take(&mut node.sends);
            node.sent.extend(sends);
            node.model = node.choice.take().or(node.model);
        });
    }

    pub(crate) fn roll_back(&self) {
        NODE.with_borrow_mut(|node| {
            node.writes.clear();
            node.sends.clear();
            node.choice = None;
        });
    }

    pub(crate) fn chosen_model(&self) -> Option<placement::ExecutionModel> {
        NODE.with_borrow(|node| node.model)
    }

    pub(crate) fn calls(&self) -> Calls {
        CALLS.get()
    }

    pub(crate) fn reset(&self) {
        NODE.set(Node::default());
        CURRENT.set(invocation());
        CALLS.set(Calls::NONE);
    }

    /// What is stored, the running invocation's writes included.
    pub(crate) fn peek(&self, place: &Place) -> Option<Vec<u8>> {
        NODE.with_borrow(|node| match node.writes.get(place) {
            Some(written) => written.clone(),
            None => node.stored.get(place).cloned(),
        })
    }

    pub(crate) fn poke(&self, place: Place, value: Vec<u8>) {
        NODE.with_borrow_mut(|node| node.stored.insert(place, value));
    }

    pub(crate) fn configure(&self, key: &str, value: &str) {
        NODE.with_borrow_mut(|node| node.config.insert(key.to_owned(), value.to_owned()));
    }

    pub(crate) fn take_sent(&self) -> Vec<Message> {
        NODE.with_borrow_mut(|node| std::mem::take(&mut node.sent))
    }

    pub(crate) fn take_logged(&self) -> Vec<(Level, String)> {
        NODE.with_borrow_mut(|node| std::mem::take(&mut node.logged))
    }

    fn put(&self, bucket: &str, key: &str, value: Option<Vec<u8>>) -> Result<(), state::Error> {
        let place = place(bucket, key)?;
        if CURRENT.with_borrow(|current| current.read_only) {
            return Err(state::Error::ReadOnly);
        }
        NODE.with_borrow_mut(|node| node.writes.insert(place, value));
        Ok(())
    }

    fn look(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, state::Error> {
        Ok(self.peek(&place(bucket, key)?))
    }
}

/// Where a bucket of the running invocation is.
fn stored_bucket(bucket: &str) -> Result<String, state::Error> {
    if bucket != SESSION {
        check_name(bucket)?;
        return Ok(bucket.to_owned());
    }
    CURRENT.with_borrow(|current| match &current.session {
        Some(session) => Ok(session_bucket(session)),
        None => Err(state::Error::NoSession),
    })
}

/// Where the bucket of a session is. (No bucket's name has a control character.)
pub(crate) fn session_bucket(session: &str) -> String {
    format!("{SESSION}\0{session}")
}

fn place(bucket: &str, key: &str) -> Result<Place, state::Error> {
    check_name(key)?;
    Ok((stored_bucket(bucket)?, key.to_owned()))
}

fn check_name(name: &str) -> Result<(), state::Error> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let text =
            format!("{name:?} is not 1 to {MAX_NAME_BYTES} bytes without control characters");
        return Err(state::Error::InvalidName(text));
    }
    Ok(())
}

fn count(change: impl FnOnce(&mut Calls)) {
    let mut calls = CALLS.get();
    change(&mut calls);
    CALLS.set(calls);
}

fn parse(bytes: Option<Vec<u8>>) -> Option<i64> {
    let Some(bytes) = bytes else { return Some(0) };
    std::str::from_utf8(&bytes).ok()?.parse().ok()
}

impl Host for Memory {
    fn get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        count(|calls| calls.reads += 1);
        self.look(bucket, key)
            .map_err(|error| refused("read", bucket, key, error))
    }

    fn set(&self, bucket: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        count(|calls| calls.writes += 1);
        self.put(bucket, key, Some(value.to_vec()))
            .map_err(|error| refused("write", bucket, key, error))
    }

    fn delete(&self, bucket: &str, key: &str) -> Result<(), Error> {
        count(|calls| calls.writes += 1);
        self.put(bucket, key, None)
            .map_err(|error| refused("delete", bucket, key, error))
    }

    fn list_keys(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, Error> {
        count(|calls| calls.lists += 1);
        let stored =
            stored_bucket(bucket).map_err(|error| refused("list", bucket, prefix, error))?;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded((stored.clone(), after.to_owned())),
            _ => Bound::Included((stored.clone(), prefix.to_owned())),
        };
        let range = (start, Bound::Unbounded);
        let here = |place: &Place| place.0 == stored && place.1.starts_with(prefix);
        NODE.with_borrow(|node| {
            let kept = node.stored.range(range.clone()).map(|(place, _)| place);
            let kept = kept.take_while(|place| here(place));
            let mut keys: std::collections::BTreeSet<_> = kept.map(|place| &place.1).collect();
            for (place, value) in node
                .writes
                .range(range)
                .take_while(|(place, _)| here(place))
            {
                match value {
                    Some(_) => keys.insert(&place.1),
                    None => keys.remove(&place.1),
                };
            }
            Ok(keys.into_iter().take(limit as usize).cloned().collect())
        })
    }

    fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64, Error> {
        count(|calls| calls.writes += 1);
        let sum = self.look(bucket, key).and_then(|bytes| {
            let sum = parse(bytes).and_then(|number| number.checked_add(delta));
            let sum =
                sum.ok_or_else(|| state::Error::WrongType("not a number of 64 bits".into()))?;
            self.put(bucket, key, Some(sum.to_string().into_bytes()))?;
            Ok(sum)
        });
        sum.map_err(|error| refused("increment", bucket, key, error))
    }

    fn compare_and_swap(
        &self,
        bucket: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<bool, Error> {
        count(|calls| calls.writes += 1);
        let swapped = self.look(bucket, key).and_then(|present| {
            let equal = present.as_deref() == expected;
            if equal {
                self.put(bucket, key, value.map(<[u8]>::to_vec))?;
            }
            Ok(equal)
        });
        swapped.map_err(|error| refused("swap", bucket, key, error))
    }

    fn send(&self, function: &str, session: Option<&str>, body: &[u8]) -> Result<(), Error> {
        if CURRENT.with_borrow(|current| current.read_only) {
            return Err(unsent(function, messages::Error::ReadOnly));
        }
        let message = Message {
            function: function.to_owned(),
            session: session.map(str::to_owned),
            body: body.to_vec(),
        };
        NODE.with_borrow_mut(|node| node.sends.push(message));
        Ok(())
    }

    fn choose_model(&self, model: placement::ExecutionModel) -> Result<(), Error> {
        let (read_only, session) =
            CURRENT.with_borrow(|current| (current.read_only, current.session.is_some()));
        match (session, read_only) {
            (false, _) => Err(not_chosen(placement::Error::NoSession)),
            (true, true) => Err(not_chosen(placement::Error::ReadOnly)),
            (true, false) => {
                NODE.with_borrow_mut(|node| node.choice = Some(model));
                Ok(())
            }
        }
    }

    fn current(&self) -> Invocation {
        count(|calls| calls.contexts += 1);
        CURRENT.with_borrow(Clone::clone)
    }

    fn now_unix_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_millis() as u64)
    }

    fn log(&self, level: Level, message: &str) {
        NODE.with_borrow_mut(|node| node.logged.push((level, message.to_owned())));
    }

    fn config(&self, key: &str) -> Option<String> {
        NODE.with_borrow(|node| node.config.get(key).cloned())
    }
}
