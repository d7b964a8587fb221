//! Running an invocation: session queue, idempotency, worker, commit. The room between the broker and the crates `worker`
//! and `state`.

mod batch;
mod borrowed;
mod commit;
pub(crate) mod lender;
mod outcome;
mod queue;
mod source;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_model::{Code, ExecutionModel, Problem, SessionName};
use fulmar_state::{Cause, ReservedKeys, StoreFailure, Transaction};
use fulmar_worker::{Call, CallError, Key as PoolKey, Reply};

use borrowed::GivenBack;
use commit::{Carried, Conflict, Finished};
use lender::Lender;
pub(crate) use queue::{QueueFull, submit, turn};
use worker::Before;
pub(crate) use worker::{may_start, start_worker};

use crate::core::Core;
use crate::functions::{Deployed, Function};
use crate::invocation::{Invocation, Origin, StateFrom};
use crate::sessions::Session;
use crate::{carry, clock, custody, homes, keys, models, route};

/// Runs of an invocation that keeps meeting changed shared keys; reserving makes two enough, unless
/// it wants other keys each time.
const MAX_CONFLICTS: u32 = 32;

/// Runs one invocation; the outcome goes to its origin once it is durable.
async fn run(
    core: &Arc<Core>,
    function: &Arc<Function>,
    session: Option<&Arc<Session>>,
    invocation: Invocation,
) {
    if invocation.origin.is_abandoned() {
        return;
    }
    let run = Run {
        core,
        function,
        deployed: function.current(),
        started: Instant::now(),
        has_begun: !matches!(invocation.origin, Origin::Client(_)),
    };
    core.metrics
        .queue_seconds
        .observe((run.started - invocation.arrived).as_secs_f64());
    if let Err((origin, problem)) = run.invoke(session, invocation).await {
        run.finish_failed(origin, problem);
    }
}

struct Run<'a> {
    core: &'a Arc<Core>,
    function: &'a Arc<Function>,
    deployed: Arc<Deployed>,
    started: Instant,
    /// Whether it completes work that has begun before.
    has_begun: bool,
}

impl Run<'_> {
    async fn invoke(
        &self,
        session: Option<&Arc<Session>>,
        invocation: Invocation,
    ) -> Result<(), (Origin, Problem)> {
        let Invocation {
            id,
            session: name,
            request,
            state: from,
            idempotency,
            idempotency_key,
            read_only,
            mut attempt,
            origin,
            ..
        } = invocation;
        let is_carried = self.deployed.is_in_client() || matches!(from, StateFrom::Token(_));
        let lender = match self.lender(&from, name.is_some()).await {
            Ok(lender) => lender,
            Err(problem) => return Err((origin, problem)),
        };
        let store = &self.core.store;
        if let Some(failure) = self.core.refuses_writes() {
            // What this node cannot do the session's home may.
            let moved = match (&name, &from) {
                (Some(name), StateFrom::Home | StateFrom::Leaving | StateFrom::Returned(_)) => {
                    let group = route::group(&self.function.name, name);
                    homes::elsewhere(self.core, &group).await
                }
                _ => None,
            };
            return Err((origin, moved.unwrap_or(failure)));
        }
        if let Some(refused) = custody::refuses(self.core, &self.deployed.manifest) {
            return Err((origin, refused));
        }
        if let (Some(session), Some(name), None) = (session, &name, &lender)
            && self.core.cluster.is_some()
            && !is_carried
            // What is remembered here of a session that is not here, or only comes, does not count.
            && let Err(problem) = self.confirm(session, name).await
        {
            return Err((origin, problem));
        }
        let Some(origin) = self.redelivered(origin).await else {
            return Ok(());
        };
        let mut origin = match &idempotency {
            None => origin,
            Some(idempotency) => {
                let session = name.as_ref().map(SessionName::as_str);
                match self.replay(session, idempotency, origin).await {
                    Some(origin) => origin,
                    None => return Ok(()),
                }
            }
        };
        if let (Some(lender), Some(name)) = (&lender, &name) {
            origin = match self.answered(lender, name, &idempotency, origin).await? {
                Some(origin) => origin,
                None => return Ok(()),
            };
        }
        let (mut tag, mut brought) = (None, None);
        let lending = Instant::now();
        let mut state = match (session, &name) {
            (Some(session), Some(name)) if let Some(lender) = &lender => {
                match self.borrow(lender, session, name).await {
                    Ok(state) => Some(state),
                    Err(problem) => return Err((origin, problem)),
                }
            }
            (Some(_), Some(name)) if is_carried => {
                let token = match &from {
                    StateFrom::Token(token) => Some(&**token),
                    _ => None,
                };
                match self.carried(&origin, name, token).await {
                    Ok(opened) => {
                        tag = Some(opened.tag);
                        Some(opened.state)
                    }
                    Err(problem) => return Err((origin, problem)),
                }
            }
            (Some(session), Some(name)) if let StateFrom::Returned(token) = &from => {
                match self.returned(session, name, token).await {
                    Ok((opened, entries)) => {
                        // A worker may remember what the token has, never what the home has.
                        tag = Some(opened.tag);
                        brought = Some(entries);
                        Some(opened.state)
                    }
                    Err(problem) => return Err((origin, problem)),
                }
            }
            (Some(session), Some(name)) => match self.state(session, name).await {
                Ok(state) => Some(state),
                Err(problem) => return Err((origin, problem)),
            },
            _ => None,
        };
        if let (Origin::Delivery { receipt, .. }, Some(state)) = (&origin, &state)
            && let Err(problem) = Self::came_in_time(receipt, state)
        {
            return Err((origin, problem));
        }
        let lending = lending.elapsed();
        let leaving = matches!(from, StateFrom::Leaving).then(|| fastrand::u64(1..));
        let is_program = self.deployed.manifest.is_program();
        let pool_key = PoolKey {
            function: self.function.name.clone(),
            version: self.deployed.version,
            // Programs go from session to session.
            session: name.clone().filter(|_| !is_program),
        };
        let id: Arc<str> = self.core.id_text(id).into();
        let mut reserved: Option<(ReservedKeys, u64)> = None;
        let mut keys = keys::Turns::default();
        let mut before = Before::Nothing;
        for conflicts in 0..MAX_CONFLICTS {
            let tag = tag.unwrap_or_else(|| state.as_ref().map_or(0, |state| state.tag()));
            let left = std::mem::take(&mut before);
            let mut worker = match self.worker(&pool_key, name.as_ref(), tag, left).await {
                Ok(worker) => worker,
                Err(problem) => return Err((origin, problem)),
            };
            let timeout = self.deployed.manifest.limits.timeout.get();
            let now_unix_ms = clock::unix_ms();
            let call = Call {
                id: id.clone(),
                function: self.function.name.clone(),
                session: name.clone(),
                tag,
                goes_on: false,
                idempotency_key: idempotency_key.clone(),
                attempt,
                deadline: self.started + timeout,
                deadline_unix_ms: now_unix_ms + timeout.as_millis() as u64,
                request: request.clone(),
            };
            let mut tx = store.begin(state.clone(), read_only);
            if let Some(brought) = &brought
                && let Err(error) = tx.bring_back(brought.clone())
            {
                return Err((origin, Problem::new(Code::Internal, error.to_string())));
            }
            if let Err(problem) = keys.tell(&mut tx) {
                return Err((origin, problem));
            }
            let called = Instant::now();
            let used = self.used(&worker);
            let (mut tx, result) = worker.call(call, tx).await;
            let worked = called.elapsed();
            self.note_work(worked, used, &worker);
            self.core
                .metrics
                .execute_seconds
                .observe(worked.as_secs_f64());
            if self.deployed.may_be_in_store(self.core) {
                self.function.profile.worked(worked);
            }
            match &result {
                Ok(_) => self.deployed.crashes.worked(),
                Err(error) => self.note_crash(error),
            }
            let mut reply = match result {
                Ok(reply) if !is_server_error(&reply) => reply,
                Ok(reply) => {
                    // Nothing is kept of it, so the worker's own memory of it must go as well.
                    drop(tx);
                    self.let_go(worker);
                    self.unreserve(reserved);
                    return self.finish_unkept(origin, id, reply);
                }
                Err(error) => {
                    let missed = tx.missed().cloned();
                    drop((tx, worker));
                    if is_worth_another(&error) && attempt < self.deployed.manifest.limits.attempts
                    {
                        attempt += 1;
                        // Nobody waits for a worker with keys that others wait for.
                        self.unreserve(reserved.take());
                        keys = keys::Turns::default();
                        continue;
                    }
                    self.unreserve(reserved);
                    return Err((origin, missed.unwrap_or_else(|| self.call_problem(error))));
                }
            };
            if self.core.cluster.is_some() && conflicts == 0 {
                let used = keys::groups(tx.used_keys());
                let now = self.core.started.elapsed().as_secs_f64();
                self.function.accesses.note(used, now);
                self.function.profile.waited(tx.asking());
                self.reached(lending + tx.asking());
            }
            let mut closed = None;
            if is_carried || leaving.is_some() {
                let closing = carry::close(self.core, &self.deployed, &tx, leaving, &mut reply);
                closed = match closing.await {
                    Ok(closed) => closed,
                    Err(problem) => {
                        drop((tx, worker));
                        self.unreserve(reserved);
                        return Err((origin, problem));
                    }
                };
            }
            match self.write_keys(lender.as_ref(), &mut keys, &mut tx).await {
                Ok(true) => {}
                Ok(false) => {
                    drop(tx);
                    before = Before::of(worker);
                    self.core.metrics.conflicts.inc();
                    continue;
                }
                Err(problem) => {
                    drop((tx, worker));
                    self.unreserve(reserved);
                    return Err((origin, problem));
                }
            }
            if let Err(problem) = custody::sure(self.core, &self.deployed).await {
                drop((tx, worker));
                self.unreserve(reserved);
                return Err((origin, problem));
            }
            let chosen = tx.chosen_model();
            let writer = reserved.as_ref().map_or(0, |(_, writer)| *writer);
            let finished = Finished {
                carried: match (closed, leaving, &brought) {
                    (Some(closed), None, _) => Carried::Sealed(closed),
                    (Some(closed), Some(left), _) => Carried::Leaves(closed, left),
                    (None, _, Some(_)) => Carried::Returns,
                    (None, _, None) if is_carried => Carried::Unchanged { tag },
                    (None, _, None) => Carried::No,
                },
                session: name.as_ref(),
                idempotency: &idempotency,
                id: id.clone(),
                reply,
                worker,
                pool_key: &pool_key,
                now_unix_ms,
            };
            if let (Some(lender), Some(session), Some(name)) = (&lender, session, &name) {
                let given = self.give_back(lender, session, tx, origin, finished);
                origin = match given.await? {
                    GivenBack::Settled => {
                        self.change_model(Some(name), chosen);
                        return Ok(());
                    }
                    GivenBack::Conflict(origin, worker) => {
                        before = Before::of(worker);
                        origin
                    }
                };
                if let Err(problem) = lender.try_again(conflicts).await {
                    return Err((origin, problem));
                }
                state = match self.borrow(lender, session, name).await {
                    Ok(state) => Some(state),
                    Err(problem) => return Err((origin, problem)),
                };
                continue;
            }
            let committed = self.commit(tx, writer, origin, finished);
            self.unreserve(reserved.take());
            match committed {
                Ok(()) => {
                    self.change_model(name.as_ref(), chosen);
                    if let Some(session) = session {
                        if leaving.is_some() {
                            // Whoever wants it now finds the note.
                            session.set_state(None);
                        } else if brought.is_some() {
                            session.set_state(state);
                        }
                    }
                    return Ok(());
                }
                Err(conflict) => {
                    let Conflict { keys, worker, .. } = *conflict;
                    before = Before::of(worker);
                    origin = conflict.origin;
                    self.core.metrics.conflicts.inc();
                    if conflicts > 0 {
                        let writer = store.next_writer();
                        store.reserve(&keys, writer).await;
                        reserved = Some((keys, writer));
                    }
                }
            }
        }
        self.unreserve(reserved);
        let detail =
            format!("the shared keys it depends on changed {MAX_CONFLICTS} times while it ran");
        Err((origin, Problem::new(Code::Internal, detail)))
    }

    /// Counts whether the function's promise about the access to its state was kept (`T_{f,i}^data`, eq. 3).
    fn reached(&self, took: Duration) {
        let slo = &self.deployed.manifest.slo;
        let late = took.saturating_sub(slo.max_data_access.get());
        if slo.promises_access() && !late.is_zero() {
            self.core.metrics.reached_late(
                self.function.name.as_str(),
                late.as_secs_f64(),
                slo.penalty_per_second,
            );
        }
    }

    /// Makes what was written to shared keys among nodes part of the commit; false if it has to run again.
    async fn write_keys(
        &self,
        lender: Option<&Lender<'_>>,
        keys: &mut keys::Turns,
        tx: &mut Transaction,
    ) -> Result<bool, Problem> {
        match lender {
            _ if !tx.has_written_shared() => Ok(true),
            Some(lender) => Err(lender.has_no_shared_keys(&self.function.name)),
            None if self.core.cluster.is_none() => Ok(true),
            None => keys.write(self.core, tx).await,
        }
    }

    /// Gives the session the model that its invocation has chosen, soon.
    fn change_model(&self, name: Option<&SessionName>, chosen: Option<ExecutionModel>) {
        if let (Some(name), Some(model)) = (name, chosen) {
            let group = route::group(&self.function.name, name);
            models::change_soon(self.core, group, model);
        }
    }

    fn unreserve(&self, reserved: Option<(ReservedKeys, u64)>) {
        if let Some((keys, writer)) = reserved {
            self.core.store.unreserve(&keys, writer);
        }
    }
}

/// Whether a worker failed in a way that another may not.
fn is_worth_another(error: &CallError) -> bool {
    match error {
        CallError::Trap(_)
        | CallError::MemoryLimit { .. }
        | CallError::StackOverflow
        | CallError::Exited(_)
        | CallError::Start(_) => true,
        // There is no time left, it wants none, or it would be the same.
        CallError::Timeout
        | CallError::Failed(_)
        | CallError::Rejected(_)
        | CallError::NoResponse
        | CallError::ResponseTooLarge { .. }
        | CallError::NoRoom => false,
    }
}

fn is_server_error(reply: &Reply) -> bool {
    matches!(reply, Reply::Http(response) if response.status().is_server_error())
}

/// A commit is not as durable as was asked for.
pub(crate) fn storage_failed(failure: &StoreFailure) -> Problem {
    let code = match failure.cause {
        Cause::Local => Code::StorageFailed,
        Cause::ObjectStore => Code::ObjectStoreUnreachable,
        Cause::Fenced => Code::TakenOver,
    };
    Problem::new(code, failure.to_string())
}
