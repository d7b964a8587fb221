//! Messages of a node that was taken over from: they keep their identity, so that whoever has got one already
//! does not get it again, and go with the session that sent them, or, for asynchronous invocations, that
//! gets them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use fulmar_cluster::{Delivered, Delivery};
use fulmar_model::{Code, Epoch, Group, Problem};
use fulmar_state::record::{HomeRecord, InvocationRecord, MessageRecord, Record, StoredReply};
use fulmar_state::{Bookkeeping, StoreError, Table, Ticket, key};
use sha2::{Digest, Sha256};

use super::across::{self, answered};
use super::settled::NONE;
use super::{Lane, MessageKey, Posted, commit_of, external};
use crate::core::Core;
use crate::custody;
use crate::execute::{self, storage_failed};

impl Posted {
    /// A message of another data directory.
    pub(crate) fn adopted(origin: &str, key: MessageKey) -> Self {
        Self {
            origin: Some(origin.into()),
            key,
        }
    }

    /// From its place in a table.
    pub(crate) fn parse(table: Table, stored: &[u8]) -> Option<Self> {
        if table == Table::Messages {
            let key = stored.try_into().ok()?;
            return Some(Self { origin: None, key });
        }
        let (origin, key) = stored.split_last_chunk::<12>()?;
        let origin = std::str::from_utf8(origin.strip_suffix(key::SEPARATOR)?).ok()?;
        Some(Self::adopted(origin, *key))
    }

    /// Where it is stored.
    pub(crate) fn table(&self) -> Table {
        match self.origin {
            None => Table::Messages,
            Some(_) => Table::Adopted,
        }
    }

    /// Under which key it is kept when it was given up: its own, or, since another data directory may have a message of
    /// the same key, one that no other message has.
    pub(super) fn letter_key(&self) -> MessageKey {
        if self.origin.is_none() {
            return self.key;
        }
        let digest = Sha256::digest(self.stored_key());
        let mut key = MessageKey::default();
        let bytes = digest.iter().take(key.len());
        key.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        key
    }

    /// Under which key.
    pub(crate) fn stored_key(&self) -> Vec<u8> {
        match &self.origin {
            None => self.key.to_vec(),
            Some(origin) => [origin.as_bytes(), key::SEPARATOR, &self.key].concat(),
        }
    }
}

/// The session that a message goes with, if it goes with one.
pub(crate) fn owner(message: &MessageRecord) -> Option<Group> {
    let address = match (&message.from, &message.invocation) {
        (Some(from), _) => from,
        (None, Some(_)) => &message.to,
        (None, None) => return None,
    };
    Some(Group {
        function: address.function.clone(),
        session: address.session.clone()?,
    })
}

/// Whether a message is to be delivered.
pub(super) enum Due {
    Now,
    /// It is not known yet whose it is.
    Later,
    /// It is another node's.
    Never,
}

pub(super) fn due(
    core: &Core,
    posted: &Posted,
    message: &MessageRecord,
) -> Result<Due, StoreError> {
    let commits = core.store.commits();
    if core.store.changelog().is_none()
        || (posted.origin.is_none() && commit_of(&posted.key) > commits.applied())
    {
        return Ok(Due::Now);
    }
    let stored = core
        .store
        .record::<MessageRecord>(posted.table(), &posted.stored_key())?;
    if stored.is_none() {
        return Ok(Due::Never);
    }
    let Some(owner) = owner(message) else {
        return Ok(Due::Now);
    };
    let home = core
        .store
        .record::<HomeRecord>(Table::Homes, &key::session(&owner))?;
    Ok(match home {
        Some(HomeRecord::Arriving { .. } | HomeRecord::Doubted { .. }) => Due::Later,
        Some(HomeRecord::Leaving { .. }) | None => Due::Now,
    })
}

/// Whether a message of another node is here only as long as the session is that has sent it: whoever takes over a
/// session takes its messages first, and the session may stay where it is after all; and it does not leave before they are
/// delivered.
fn goes_with_sender(posted: &Posted, message: &MessageRecord) -> bool {
    let is_of_node = posted.origin.is_some() && !external::is_from_store(posted);
    is_of_node && Lane::of(message).from.is_some()
}

/// Deletes what is left of an attempt to take over a session that is not here.
pub(crate) async fn forget_attempts(core: &Core, group: &Group) -> Result<(), Problem> {
    delete_where(
        core,
        Table::Adopted,
        |stored_key, message: MessageRecord| {
            owner(&message).as_ref() == Some(group)
                && Posted::parse(Table::Adopted, stored_key)
                    .is_some_and(|posted| goes_with_sender(&posted, &message))
        },
    )
    .await
}

/// Delivers a message of another data directory to a session here.
pub(super) async fn hand_in(
    core: &Arc<Core>,
    origin: &Arc<str>,
    posted: &Posted,
    message: &MessageRecord,
) -> Result<Result<(), Problem>, execute::QueueFull> {
    let delivery = Delivery {
        instance: origin.to_string(),
        key: posted.key,
        // Who knows what its node has told others.
        settled: NONE..NONE,
        message: message.clone(),
        epoch: Epoch(0),
    };
    Ok(match across::receive(core, delivery).await {
        Delivered::Done(reply) => finish(core, posted, message, reply).await,
        Delivered::Failed(problem) if problem.code == Code::QueueFull => {
            return Err(execute::QueueFull);
        }
        Delivered::Failed(problem) => Err(problem),
        Delivered::Moved(_) => Err(Problem::new(Code::SessionMoved, "the session is elsewhere")),
    })
}

/// Forgets a message that is delivered.
pub(super) async fn finish(
    core: &Core,
    posted: &Posted,
    message: &MessageRecord,
    reply: Option<StoredReply>,
) -> Result<(), Problem> {
    // Only when that is stored may the other node forget that it was delivered.
    let bookkeeping = finished(core, posted, message, reply);
    let stored = core.store.commit_durably(bookkeeping).await;
    stored
        .map(|_| ())
        .map_err(|failure| storage_failed(&failure))
}

/// What there is to store when a message is delivered: that it is gone, and what it was answered.
pub(super) fn finished(
    core: &Core,
    posted: &Posted,
    message: &MessageRecord,
    reply: Option<StoredReply>,
) -> Bookkeeping {
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.delete(posted.table(), &posted.stored_key());
    let retention = core
        .functions
        .get(message.to.function.as_str())
        .map_or(Duration::ZERO, |function| {
            function.current().manifest.idempotency.retention.get()
        });
    answered(&mut bookkeeping, message, reply, retention);
    bookkeeping
}

/// Records that are looked at, and deleted, at once.
const DISOWNED_AT_ONCE: usize = 1000;

/// Deletes what a session had to deliver that was taken over with it: everything that it has sent, and what others
/// have asked of it up to a commit, with what came of it. Without a session: what was accepted up to a commit for
/// functions that are taken over, and goes with no session.
pub(crate) async fn disown(
    core: &Core,
    session: Option<&Group>,
    last: Ticket,
) -> Result<(), Problem> {
    let taken_over = |message: &MessageRecord| {
        let function = core.functions.get(message.to.function.as_str());
        function.is_some_and(|function| custody::is_taken_over(&function.current().manifest))
    };
    let mut kept = HashSet::new();
    for table in [Table::Messages, Table::Adopted] {
        delete_where(core, table, |stored_key, message: MessageRecord| {
            let was_copied = Posted::parse(table, stored_key)
                .is_some_and(|posted| posted.origin.is_some() || commit_of(&posted.key) <= last);
            let is_meant = match session {
                Some(_) => owner(&message).as_ref() == session,
                None => owner(&message).is_none() && taken_over(&message),
            };
            let goes = is_meant && (was_copied || message.from.is_some());
            kept.extend(message.invocation.filter(|_| !goes));
            goes
        })
        .await?;
    }
    let Some(session) = session else {
        return Ok(());
    };
    delete_where(core, Table::Invocations, |id, record: InvocationRecord| {
        record.to.function == session.function
            && record.to.session.as_ref() == Some(&session.session)
            && std::str::from_utf8(id).is_ok_and(|id| !kept.contains(id))
    })
    .await
}

/// Deletes the records of a table that are meant, some at a time.
async fn delete_where<R: Record>(
    core: &Core,
    table: Table,
    mut is_meant: impl FnMut(&[u8], R) -> bool,
) -> Result<(), Problem> {
    let internal = |error: &dyn std::fmt::Display| Problem::new(Code::Internal, error.to_string());
    let mut after: Option<Vec<u8>> = None;
    loop {
        let mut found = Vec::new();
        let deleted = {
            let _alone = core.courier.changing.lock();
            core.store
                .scan(table, &[], after.as_deref(), &mut |key, value| {
                    found.push((key.to_vec(), value.to_vec()));
                    found.len() < DISOWNED_AT_ONCE
                })
                .map_err(|error| internal(&error))?;
            let mut bookkeeping = Bookkeeping::default();
            for (stored_key, value) in &found {
                let record = R::decode(value).map_err(|error| internal(&error))?;
                if is_meant(stored_key, record) {
                    bookkeeping.delete(table, stored_key);
                }
            }
            match bookkeeping.is_empty() {
                true => Ok(None),
                false => core
                    .store
                    .commit_bookkeeping(bookkeeping, Box::new(|_| {}))
                    .map(Some),
            }
        };
        if let Some(ticket) = deleted.map_err(|failure| storage_failed(&failure))? {
            core.durable(ticket).await?;
        }
        match found.pop() {
            Some((last, _)) if found.len() + 1 == DISOWNED_AT_ONCE => after = Some(last),
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_different_origins_do_not_share_a_dead_letter() {
        let key = [7; 12];
        let posted = [
            Posted { origin: None, key },
            Posted::adopted("one", key),
            Posted::adopted("other", key),
        ];
        let keys: HashSet<MessageKey> = posted.iter().map(Posted::letter_key).collect();
        assert_eq!(keys.len(), posted.len());
        assert_eq!(posted[0].letter_key(), key);
    }
}
