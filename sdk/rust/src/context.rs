//! What is known about the running invocation and where it runs.

use std::cell::OnceCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bindings::fulmar::function::context::Invocation;
use crate::host::{HOST, Host};

/// What is known about the running invocation. The node is asked once, and only if something is
/// asked of the context.
#[derive(Debug, Clone, Default)]
pub struct Context {
    known: OnceCell<Invocation>,
}

/// The context of the running invocation.
pub fn context() -> Context {
    Context::default()
}

impl Context {
    fn known(&self) -> &Invocation {
        self.known.get_or_init(|| HOST.current())
    }

    /// Identifier of the invocation, unique on the node; new on every attempt.
    pub fn id(&self) -> &str {
        &self.known().id
    }

    /// Name of the deployed function.
    pub fn function(&self) -> &str {
        &self.known().function
    }

    /// The session, when the invocation has one.
    pub fn session(&self) -> Option<&str> {
        self.known().session.as_deref()
    }

    /// The client's `Idempotency-Key`, when it sent one.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.known().idempotency_key.as_deref()
    }

    /// 1 for the first try, more when a message is delivered again.
    pub fn attempt(&self) -> u32 {
        self.known().attempt
    }

    /// When the invocation is cut off.
    pub fn deadline(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.known().deadline_unix_ms)
    }

    /// How long until the invocation is cut off.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.known().deadline_unix_ms.saturating_sub(now_unix_ms()))
    }

    /// Whether the invocation was declared read-only: then writes and messages are refused.
    pub fn is_read_only(&self) -> bool {
        self.known().read_only
    }
}

/// The node's clock, in milliseconds since the Unix epoch.
pub fn now_unix_ms() -> u64 {
    HOST.now_unix_ms()
}

/// A value of the manifest's `[config]`.
pub fn config(key: &str) -> Option<String> {
    HOST.config(key)
}
