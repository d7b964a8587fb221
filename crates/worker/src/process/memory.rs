//! What a program remembers of sessions, and what it lacks of them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use fulmar_model::SessionName;
use fulmar_state::{SessionState, Ticket, Transaction};

use super::frames::Frames;

/// Sessions that one program remembers.
const SESSIONS: usize = 256;

/// What a program remembers of the sessions that it has had, by their names.
#[derive(Default)]
pub(super) struct Memories {
    of: HashMap<SessionName, Memory>,
    /// How many invocations it has had.
    count: u64,
}

impl Memories {
    pub(super) fn has(&self, session: &SessionName) -> bool {
        self.of.contains_key(session)
    }

    pub(super) fn of(&mut self, session: &SessionName) -> Option<&mut Memory> {
        self.of.get_mut(session)
    }

    /// What it remembers of a session that it gets now; and which one it is to forget for that, if there are too many.
    pub(super) fn begin(&mut self, session: &SessionName) -> (&mut Memory, Option<SessionName>) {
        self.count += 1;
        let is_full = self.of.len() >= SESSIONS && !self.has(session);
        let oldest = self.of.iter().min_by_key(|(_, memory)| memory.used);
        let forgotten = oldest.filter(|_| is_full).map(|(name, _)| name.clone());
        if let Some(name) = &forgotten {
            self.of.remove(name);
        }
        let memory = self.of.entry(session.clone()).or_default();
        memory.used = self.count;
        (memory, forgotten)
    }
}

/// What a program remembers of a session.
#[derive(Default)]
pub(super) struct Memory {
    /// When it had it last.
    used: u64,
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
    pub(super) fn lacks(&mut self, tx: &Transaction, tag: u64) -> Vec<u8> {
        let mut frames = Frames::default();
        let Some(session) = tx.session() else {
            return Vec::new();
        };
        if self.tag == Some(tag) {
            return Vec::new();
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
        frames.into_bytes()
    }
}
