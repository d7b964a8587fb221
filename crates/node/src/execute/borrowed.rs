//! Invocations on state that somebody else lends: it is fetched, unless it was before, and what came of the
//! invocation is given back to be committed there, if nothing else was committed there meanwhile.

use std::sync::Arc;
use std::time::Instant;

use fulmar_cluster::{Returned, Settled};
use fulmar_model::{Code, Problem, SessionName};
use fulmar_state::record::{IdempotencyRecord, StoredReply};
use fulmar_state::{SessionState, Transaction};
use fulmar_worker::{Reply, Worker};

use super::Run;
use super::commit::Finished;
use super::lender::Lender;
use crate::invocation::{Answer, IdempotencyKey, Origin, Receipt, restore_reply, store_reply};
use crate::sessions::Session;
use crate::{courier, route};

/// What became of an invocation on borrowed state.
pub(super) enum GivenBack {
    /// It is settled: its origin has its answer.
    Settled,
    /// The state was out of date: it has to run again, and its worker remembers writes that did not happen.
    Conflict(Origin, Worker),
}

impl Run<'_> {
    /// Answers from what the lender keeps for the invocation's key; gives the origin back if that is nothing.
    pub(super) async fn answered(
        &self,
        lender: &Lender<'_>,
        name: &SessionName,
        idempotency: &Option<IdempotencyKey>,
        origin: Origin,
    ) -> Result<Option<Origin>, (Origin, Problem)> {
        let Some(key) = answer_key(idempotency, &origin) else {
            return Ok(Some(origin));
        };
        let group = route::group(&self.function.name, name);
        let answered = match lender.answered(&group, &[&*key]).await {
            Ok(answered) => answered,
            Err(problem) => return Err((origin, problem)),
        };
        match answered.into_iter().flatten().next() {
            None => Ok(Some(origin)),
            Some(record) => self
                .answer_again(origin, idempotency, record)
                .map(|()| None),
        }
    }

    /// The session's state as it was lent last, or is now.
    ///
    /// # Errors
    /// `session-moved` if it cannot be lent, so that the invocation is better run elsewhere.
    pub(super) async fn borrow(
        &self,
        lender: &Lender<'_>,
        session: &Session,
        name: &SessionName,
    ) -> Result<Arc<SessionState>, Problem> {
        if let Some(state) = session.state() {
            return Ok(state);
        }
        let group = route::group(&self.function.name, name);
        let started = Instant::now();
        let lent = lender.load(&group).await?;
        let Some(entries) = lent.entries else {
            let detail = format!("{group} is too large to be lent");
            return Err(Problem::new(Code::SessionMoved, detail));
        };
        self.core
            .metrics
            .load_seconds
            .observe(started.elapsed().as_secs_f64());
        let store = &self.core.store;
        let state = store.borrow_session(group, lent.version, lent.epoch, entries);
        self.core.keeper.loaded(state.hot_bytes());
        session.set_state(Some(state.clone()));
        Ok(state)
    }

    /// Gives back what came of an invocation, and answers.
    pub(super) async fn give_back(
        &self,
        lender: &Lender<'_>,
        session: &Session,
        mut tx: Transaction,
        origin: Origin,
        finished: Finished<'_>,
    ) -> Result<GivenBack, (Origin, Problem)> {
        let Finished {
            idempotency,
            id,
            reply,
            worker,
            pool_key,
            now_unix_ms,
            ..
        } = finished;
        let Some(state) = tx.session().cloned() else {
            let problem = Problem::new(Code::Internal, "an invocation without a session borrowed");
            return Err((origin, problem));
        };
        let manifest = &self.deployed.manifest;
        let kept = self.kept(idempotency, &origin, &id, &reply, now_unix_ms);
        let returned = Returned {
            group: state.group().clone(),
            version: state.version(),
            epoch: state.epoch(),
            writes: tx.session_writes(),
            messages: tx.take_messages(now_unix_ms),
            idempotency: kept,
            durability: manifest.durability,
        };
        let settled = match lender.commit(&returned).await {
            Ok(settled) => settled,
            Err(problem) => {
                session.set_state(None);
                return Err((origin, problem));
            }
        };
        match settled {
            Settled::Committed(version) => {
                tx.committed_elsewhere(version);
                self.put_by(worker, pool_key, state.tag());
                if let Lender::External(..) = lender
                    && !returned.messages.is_empty()
                {
                    courier::fetch(self.core, &returned.group);
                }
                let answer = Answer {
                    reply,
                    invocation: id,
                    replayed: false,
                };
                finish(origin, answer).map(|()| GivenBack::Settled)
            }
            Settled::Conflict => {
                session.set_state(None);
                self.core.metrics.conflicts.inc();
                Ok(GivenBack::Conflict(origin, worker))
            }
            Settled::Replay(record) => {
                // It remembers what did not happen.
                self.let_go(worker);
                self.answer_again(origin, idempotency, record)
                    .map(|()| GivenBack::Settled)
            }
        }
    }

    /// What is kept of an answer, and under which key.
    pub(super) fn kept(
        &self,
        idempotency: &Option<IdempotencyKey>,
        origin: &Origin,
        id: &Arc<str>,
        reply: &Reply,
        now_unix_ms: u64,
    ) -> Option<(String, IdempotencyRecord)> {
        let key = answer_key(idempotency, origin)?;
        let retention = self.deployed.manifest.idempotency.retention.get();
        let (request, reply, expires_unix_ms) = match (idempotency, origin) {
            (Some(idempotency), _) => {
                let expires = now_unix_ms + retention.as_millis() as u64;
                (idempotency.request, store_reply(reply), expires)
            }
            // For as long as the message may come again.
            (None, Origin::Delivery { receipt, .. }) if receipt.wants_reply => {
                ([0; 32], store_reply(reply), u64::MAX)
            }
            (None, _) => ([0; 32], StoredReply::default(), u64::MAX),
        };
        let record = IdempotencyRecord {
            request,
            invocation: id.to_string(),
            reply,
            expires_unix_ms,
        };
        Some((key, record))
    }

    /// Gives an answer that was given before.
    pub(super) fn answer_again(
        &self,
        origin: Origin,
        idempotency: &Option<IdempotencyKey>,
        record: IdempotencyRecord,
    ) -> Result<(), (Origin, Problem)> {
        if idempotency
            .as_ref()
            .is_some_and(|idempotency| idempotency.request != record.request)
        {
            let detail = format!(
                "the key was used by invocation {} for another request",
                record.invocation
            );
            return Err((origin, Problem::new(Code::IdempotencyKeyReused, detail)));
        }
        self.core.metrics.replays.inc();
        if let Origin::Delivery { receipt, done } = origin {
            // The other node may have given up; the commit stands.
            let _ = done.send(Ok(receipt.wants_reply.then_some(record.reply)));
            return Ok(());
        }
        match restore_reply(record.reply) {
            Ok(reply) => finish(
                origin,
                Answer {
                    reply,
                    invocation: record.invocation.into(),
                    replayed: true,
                },
            ),
            Err(problem) => Err((origin, problem)),
        }
    }
}

/// Tells the origin what came of it.
pub(super) fn finish(origin: Origin, answer: Answer) -> Result<(), (Origin, Problem)> {
    match origin {
        // The client may be gone; the commit stands.
        Origin::Client(to) => {
            let _ = to.send(Ok(answer));
        }
        Origin::Delivery { receipt, done } => {
            let reply = receipt.wants_reply.then(|| store_reply(&answer.reply));
            let _ = done.send(Ok(reply));
        }
        Origin::Message { .. } => {
            let detail = "a message was handed in as if its receiver were here";
            return Err((origin, Problem::new(Code::Internal, detail)));
        }
    }
    Ok(())
}

/// Under which key the answer to an invocation is kept where its state is, if it is.
pub(super) fn answer_key(idempotency: &Option<IdempotencyKey>, origin: &Origin) -> Option<String> {
    match (idempotency, origin) {
        (Some(idempotency), _) => Some(idempotency.key.to_string()),
        (None, Origin::Delivery { receipt, .. }) => Some(receipt_key(receipt)),
        (None, _) => None,
    }
}

/// What stands for a delivery among the keys of a session; no client's key begins so.
fn receipt_key(receipt: &Receipt) -> String {
    String::from_utf8_lossy(&receipt.key).into_owned()
}
