//! What a program remembers of its session, and what it lacks of it.

use std::sync::{Arc, Weak};

use fulmar_state::{SessionState, StateError, Ticket, Transaction};

use super::frames::Frames;

/// What a program remembers of its session.
#[derive(Default)]
pub(super) struct Memory {
    /// The very state that its last invocation ran on.
    of: Weak<SessionState>,
    /// All commits up to this one are in it.
    knows: Ticket,
    /// The session's version that it has; none if it may have something that was never committed.
    tag: Option<u64>,
}

impl Memory {
    /// An invocation has run; whether it is committed is not known yet.
    pub(super) fn ran(&mut self, tx: &Transaction) {
        self.tag = None;
        match tx.session() {
            Some(session) => self.of = Arc::downgrade(session),
            None => self.of = Weak::new(),
        }
    }

    /// It is committed, and has made this version.
    pub(super) fn committed(&mut self, tag: u64) {
        self.tag = Some(tag);
        if let Some(session) = self.of.upgrade() {
            self.knows = session.last_commit();
        }
    }

    /// What it has to be told before the next invocation, which begins with the version `tag`.
    pub(super) fn lacks(&mut self, tx: &Transaction, tag: u64) -> Result<Vec<u8>, StateError> {
        let mut frames = Frames::default();
        let Some(session) = tx.session() else {
            return Ok(Vec::new());
        };
        if self.tag == Some(tag) {
            return Ok(Vec::new());
        }
        let is_same = self.tag.is_some() && std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(session));
        let changes = is_same.then(|| session.changed_since(self.knows)).flatten();
        match changes {
            Some(changes) => {
                for (key, value) in changes {
                    frames.put(&key, value.as_deref());
                }
            }
            None => {
                frames.forget();
                if let Some(whole) = session.whole() {
                    for (key, value) in whole {
                        frames.put(&key, Some(&value));
                    }
                    frames.complete();
                }
            }
        }
        Ok(frames.into_bytes())
    }
}
