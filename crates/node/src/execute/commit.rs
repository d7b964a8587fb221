//! An invocation that ran here, on what is at home here or came with its client: committed, its messages posted, its
//! worker put by.

use std::sync::Arc;

use fulmar_model::SessionName;
use fulmar_state::{ReservedKeys, Transaction};
use fulmar_worker::{Key as PoolKey, Reply, Worker};

use super::{Run, storage_failed};
use crate::invocation::{IdempotencyKey, Origin};
use crate::transition::{self, Away};
use crate::{carry, route};

/// What becomes of a session that its client may carry.
pub(super) enum Carried {
    /// It is at home, and stays there.
    No,
    /// It keeps the token that it has, of which this is the tag.
    Unchanged { tag: u64 },
    /// It gets a new one.
    Sealed(carry::Closed),
    /// It leaves its home.
    Leaves(carry::Closed, u64),
    /// It comes back.
    Returns,
}

/// An invocation that ran and may commit.
pub(super) struct Finished<'a> {
    /// What its session's client carries then.
    pub(super) carried: Carried,
    pub(super) session: Option<&'a SessionName>,
    pub(super) idempotency: &'a Option<IdempotencyKey>,
    pub(super) id: Arc<str>,
    pub(super) reply: Reply,
    pub(super) worker: Worker,
    pub(super) pool_key: &'a PoolKey,
    pub(super) now_unix_ms: u64,
}

/// Something that an invocation depends on changed while it ran.
pub(super) struct Conflict {
    /// The keys that it depends on.
    pub(super) keys: ReservedKeys,
    pub(super) origin: Origin,
    /// It remembers writes that did not happen.
    pub(super) worker: Worker,
}

impl Run<'_> {
    /// Commits what ran, lets its worker wait for the next, posts its messages. If something that it
    /// depends on changed meanwhile, gives back what the next try needs.
    pub(super) fn commit(
        &self,
        tx: Transaction,
        writer: u64,
        origin: Origin,
        finished: Finished<'_>,
    ) -> Result<(), Box<Conflict>> {
        let prepared = match self.core.store.prepare(tx, writer) {
            Ok(prepared) => prepared,
            Err(keys) => {
                let worker = finished.worker;
                return Err(Box::new(Conflict {
                    keys,
                    origin,
                    worker,
                }));
            }
        };
        let Finished {
            carried,
            session,
            idempotency,
            id,
            reply,
            worker,
            pool_key,
            now_unix_ms,
        } = finished;
        let mut bookkeeping = self.bookkeeping(
            session.map(SessionName::as_str),
            idempotency,
            &origin,
            &id,
            &reply,
            now_unix_ms,
        );
        let group = session.map(|session| route::group(&self.function.name, session));
        match (&carried, &group) {
            (Carried::Sealed(closed), _) => {
                closed.count(self.core, now_unix_ms, &mut bookkeeping);
            }
            (Carried::Leaves(_, left), Some(group)) => {
                transition::note(group, Away::WithClient(*left), &mut bookkeeping);
            }
            (Carried::Returns, Some(group)) => {
                transition::take_note_away(group, &mut bookkeeping);
            }
            _ => {}
        }
        let (release, done) = self.release(origin, id, reply);
        let committed = prepared.commit(
            self.deployed.manifest.durability,
            bookkeeping,
            now_unix_ms,
            release,
        );
        let result = match committed {
            Ok(committed) => {
                let tag = match &carried {
                    Carried::Sealed(closed) | Carried::Leaves(closed, _) => closed.tag,
                    Carried::Unchanged { tag } => *tag,
                    _ => committed.tag.unwrap_or_default(),
                };
                self.put_by(worker, pool_key, tag);
                self.core.courier.post(self.core, committed.messages);
                Ok(())
            }
            Err(failure) => Err(storage_failed(&failure)),
        };
        if let Some(done) = done {
            // The courier may have stopped listening; what is committed stays so.
            let _ = done.send(result);
        }
        Ok(())
    }
}
