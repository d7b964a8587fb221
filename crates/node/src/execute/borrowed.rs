//! Invocations on state that another node has lent: it is fetched, unless it was before, and what came of the
//! invocation is given back to be committed there, if nothing else was committed there meanwhile.

use std::sync::Arc;
use std::time::Instant;

use fulmar_cluster::{Cluster, Home, NotHere, Returned, Settled};
use fulmar_model::{Code, Group, NodeName, Problem, SessionName};
use fulmar_state::record::IdempotencyRecord;
use fulmar_state::{SessionState, Transaction};

use super::{Finished, Run};
use crate::invocation::{Answer, Origin, restore_reply, store_reply};
use crate::route;
use crate::sessions::Session;

/// What became of an invocation on borrowed state.
pub(super) enum GivenBack {
    /// It is settled: its origin has its answer.
    Settled,
    /// The state was out of date: it has to run again.
    Conflict(Origin),
}

impl Run<'_> {
    /// The session's state as its home lends it: as it was lent last, or fetched now.
    ///
    /// # Errors
    /// `session-moved` if it cannot be lent, so that the invocation is better run elsewhere.
    pub(super) async fn borrow(
        &self,
        cluster: &Cluster,
        lender: &NodeName,
        session: &Session,
        name: &SessionName,
    ) -> Result<Arc<SessionState>, Problem> {
        if let Some(state) = session.state() {
            return Ok(state);
        }
        let group = route::group(&self.function.name, name);
        let started = Instant::now();
        let loaded = cluster.load(lender, &group).await;
        let loaded = loaded.map_err(|error| route::lost_before(&error))?;
        let lent = loaded.map_err(|not_here| self.not_here(cluster, &group, not_here))?;
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

    fn not_here(&self, cluster: &Cluster, group: &Group, not_here: NotHere) -> Problem {
        match not_here {
            NotHere::Failed(problem) => problem,
            NotHere::Moved(to) => {
                match to {
                    Some((node, epoch)) => {
                        cluster.directory().learn(group, Home { node, epoch });
                    }
                    None => cluster.directory().unlearn(group),
                }
                Problem::new(Code::SessionMoved, format!("{group} is elsewhere"))
            }
        }
    }

    /// Gives back what came of an invocation, and answers.
    pub(super) async fn give_back(
        &self,
        cluster: &Cluster,
        lender: &NodeName,
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
        let retention = manifest.idempotency.retention.get().as_millis() as u64;
        let returned = Returned {
            group: state.group().clone(),
            version: state.version(),
            epoch: state.epoch(),
            writes: tx.session_writes(),
            messages: tx.take_messages(now_unix_ms),
            idempotency: idempotency.as_ref().map(|idempotency| {
                let record = IdempotencyRecord {
                    request: idempotency.request,
                    invocation: id.to_string(),
                    reply: store_reply(&reply),
                    expires_unix_ms: now_unix_ms + retention,
                };
                (idempotency.key.to_string(), record)
            }),
            durability: manifest.durability,
        };
        let settled = match cluster.commit(lender, &returned).await {
            Ok(Ok(settled)) => settled,
            Ok(Err(not_here)) => {
                session.set_state(None);
                return Err((origin, self.not_here(cluster, &returned.group, not_here)));
            }
            Err(error) => {
                session.set_state(None);
                return Err((origin, route::lost(&error)));
            }
        };
        let answer = match settled {
            Settled::Committed(version) => {
                tx.committed_elsewhere(version);
                let expires = Instant::now() + manifest.workers.idle_ttl.get();
                self.core
                    .pool
                    .put(pool_key.clone(), version.0, worker, expires);
                Answer {
                    reply,
                    invocation: id,
                    replayed: false,
                }
            }
            Settled::Conflict => {
                session.set_state(None);
                self.core.metrics.conflicts.inc();
                return Ok(GivenBack::Conflict(origin));
            }
            Settled::Replay(record) => {
                // The worker goes as well: it remembers what did not happen.
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
                match restore_reply(record.reply) {
                    Ok(reply) => Answer {
                        reply,
                        invocation: record.invocation.into(),
                        replayed: true,
                    },
                    Err(problem) => return Err((origin, problem)),
                }
            }
        };
        if let Origin::Client(to) = origin {
            // The client may be gone; the commit stands.
            let _ = to.send(Ok(answer));
        }
        Ok(GivenBack::Settled)
    }
}
