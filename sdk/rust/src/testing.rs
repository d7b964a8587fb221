//! Testing functions natively: the same code against a node in memory.
//!
//! ```
//! use fulmar::{Counter, Error, testing};
//!
//! static COUNT: Counter = Counter::new("count");
//!
//! fn handle(delta: String) -> Result<String, Error> {
//!     Ok(COUNT.add(delta.parse()?)?.to_string())
//! }
//!
//! testing::reset();
//! assert_eq!(testing::invoke("line-3", || handle("5".into())), Ok("5".into()));
//! testing::drop_worker();
//! assert_eq!(testing::invoke("line-3", || handle("2".into())), Ok("7".into()));
//! assert!(testing::invoke("line-3", || handle("two".into())).is_err());
//! assert_eq!(testing::stored_in_session("line-3", "count").unwrap(), b"7");
//! ```
//!
//! Each thread has a node of its own, so tests do not see each other. Code called outside of
//! [`invoke`] runs in an invocation of the session `test` that does not end.

use crate::bindings::fulmar::function::context::Invocation;
use crate::host::memory::{self, Memory, session_bucket};
use crate::state::cache;
use crate::{Error, ExecutionModel, Level};

/// A message that was sent, after its invocation committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The function it goes to.
    pub function: String,
    /// The session it goes to.
    pub session: Option<String>,
    /// What it says.
    pub body: Vec<u8>,
}

/// How often the node was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// `get`.
    pub reads: u64,
    /// `set`, `delete`, `increment` and `compare-and-swap`.
    pub writes: u64,
    /// `list-keys`.
    pub lists: u64,
    /// What the invocation's context is.
    pub contexts: u64,
}

impl Calls {
    pub(crate) const NONE: Self = Self {
        reads: 0,
        writes: 0,
        lists: 0,
        contexts: 0,
    };
}

/// Runs something as one invocation of a session: what it wrote and sent is kept if it succeeds.
pub fn invoke<R>(session: &str, handler: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    Invoke::new().session(session).run(handler)
}

/// An invocation with everything that can be said about it.
#[derive(Debug)]
pub struct Invoke {
    invocation: Invocation,
}

impl Default for Invoke {
    fn default() -> Self {
        Self::new()
    }
}

impl Invoke {
    /// A first attempt, without a session.
    pub fn new() -> Self {
        let mut invocation = memory::invocation();
        invocation.session = None;
        Self { invocation }
    }

    /// In a session.
    pub fn session(mut self, session: &str) -> Self {
        self.invocation.session = Some(session.to_owned());
        self
    }

    /// With an idempotency key.
    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.invocation.idempotency_key = Some(key.to_owned());
        self
    }

    /// As a later attempt to deliver a message.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.invocation.attempt = attempt;
        self
    }

    /// Declared read-only: writes are refused.
    pub fn read_only(mut self) -> Self {
        self.invocation.read_only = true;
        self
    }

    /// Runs something as this invocation.
    pub fn run<R>(self, handler: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        thread_local! {
            // A worker serves one session.
            static SERVED: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
        }
        if SERVED.replace(self.invocation.session.clone()) != self.invocation.session {
            drop_worker();
        }
        Memory.begin(self.invocation);
        let result = crate::run(handler);
        match &result {
            Ok(_) => Memory.commit(),
            Err(_) => Memory.roll_back(),
        }
        result
    }
}

/// Forgets what the worker holds in memory, as when it was idle for long: the state stays.
pub fn drop_worker() {
    cache::clear();
}

/// A node with nothing stored and nothing sent.
pub fn reset() {
    drop_worker();
    Memory.reset();
}

/// What a session has stored under a key.
pub fn stored_in_session(session: &str, key: &str) -> Option<Vec<u8>> {
    Memory.peek(&(session_bucket(session), key.to_owned()))
}

/// What a shared bucket has stored under a key.
pub fn stored(bucket: &str, key: &str) -> Option<Vec<u8>> {
    Memory.peek(&(bucket.to_owned(), key.to_owned()))
}

/// Stores something in a shared bucket, as another function would.
pub fn store(bucket: &str, key: &str, value: impl Into<Vec<u8>>) {
    Memory.poke((bucket.to_owned(), key.to_owned()), value.into());
}

/// Sets a value of the manifest's `[config]`.
pub fn configure(key: &str, value: &str) {
    Memory.configure(key, value);
}

/// The messages sent since the last time this was asked.
pub fn sent() -> Vec<Message> {
    Memory.take_sent()
}

/// The execution model that was chosen last for a session.
pub fn chosen_model() -> Option<ExecutionModel> {
    Memory.chosen_model()
}

/// The lines logged since the last time this was asked.
pub fn logged() -> Vec<(Level, String)> {
    Memory.take_logged()
}

/// How often the node was asked since the last [`reset`].
pub fn calls() -> Calls {
    Memory.calls()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, Counter, bucket, context, send};

    static COUNT: Counter = Counter::new("count");

    #[test]
    fn a_failed_invocation_leaves_nothing() {
        invoke("s", || COUNT.add(1)).unwrap();
        let failed: Result<(), _> = invoke("s", || {
            COUNT.add(10)?;
            bucket("b").set("k", b"v")?;
            send("other", None, "hello")?;
            Err(Error::failed("no"))
        });
        assert_eq!(failed, Err(Error::failed("no")));
        assert_eq!(invoke("s", || COUNT.get()), Ok(1));
        assert_eq!(stored("b", "k"), None);
        assert_eq!(sent(), []);
    }

    #[test]
    fn sessions_do_not_see_each_other() {
        invoke("a", || COUNT.add(1)).unwrap();
        invoke("b", || COUNT.add(2)).unwrap();
        assert_eq!(invoke("a", || COUNT.get()), Ok(1));
        let none = Invoke::new().run(|| COUNT.get()).unwrap_err();
        assert!(none.to_string().contains("no session"), "{none}");
    }

    #[test]
    fn a_read_only_invocation_cannot_write() {
        let error = Invoke::new().session("s").read_only().run(|| COUNT.add(1));
        assert!(error.unwrap_err().to_string().contains("read-only"));
        let read = Invoke::new().session("s").read_only().run(|| COUNT.get());
        assert_eq!(read, Ok(0));
    }

    #[test]
    fn the_context_tells_what_it_was_given_and_asks_once() {
        let before = calls().contexts;
        let seen = Invoke::new().session("s").attempt(3).idempotency_key("k");
        let seen = seen.run(|| {
            let context: Context = context();
            assert_eq!(context.idempotency_key(), Some("k"));
            Ok((context.session().map(str::to_owned), context.attempt()))
        });
        assert_eq!(seen, Ok((Some("s".into()), 3)));
        assert_eq!(calls().contexts, before + 1);
    }

    #[test]
    fn messages_leave_with_the_commit() {
        invoke("s", || {
            crate::send_json("other", Some("t"), &[1, 2])?;
            assert_eq!(sent(), []);
            Ok(())
        })
        .unwrap();
        let expected = Message {
            function: "other".into(),
            session: Some("t".into()),
            body: b"[1,2]".to_vec(),
        };
        assert_eq!(sent(), [expected]);
    }

    #[test]
    fn a_choice_counts_with_the_commit() {
        let failed = invoke("s", || {
            crate::choose_model(ExecutionModel::External)?;
            Err::<(), _>(Error::failed("no"))
        });
        assert!(failed.is_err());
        assert_eq!(chosen_model(), None);
        invoke("s", || crate::choose_model(ExecutionModel::InEdge)).unwrap();
        assert_eq!(chosen_model(), Some(ExecutionModel::InEdge));
        let nobody = Invoke::new().run(|| crate::choose_model(ExecutionModel::Auto));
        assert!(nobody.unwrap_err().to_string().contains("no session"));
    }
}
