//! Invocations of one session that run one after the other in one worker, on one transaction, and are committed together, as
//! their function's manifest wants. If that does not work out, nothing of it is kept, and each runs on its own.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_cluster::{Returned, Settled};
use fulmar_model::SessionName;
use fulmar_model::manifest::Batch;
use fulmar_state::{Bookkeeping, SessionState, StoreFailure, Transaction};
use fulmar_worker::{Call, Key as PoolKey, Reply, Used, Worker};

use super::borrowed::{answer_key, finish};
use super::lender::{Lender, commit_in_store};
use super::worker::Before;
use super::{Run, is_server_error, run, storage_failed};
use crate::core::Core;
use crate::functions::Function;
use crate::invocation::{Answer, Invocation, Origin, StateFrom};
use crate::sessions::Session;
use crate::{clock, courier, custody, keys, route};

/// Runs in vain of a batch on what the external store has before its invocations run one by one.
const MAX_CONFLICTS: u32 = 4;

/// Takes what may run together with an invocation from the session's queue, as far as it is there or comes in time.
pub(super) async fn gather(session: &Session, first: Invocation, batch: &Batch) -> Vec<Invocation> {
    let most = batch.max as usize;
    if !may_batch(&first) {
        return vec![first];
    }
    let ends = first.arrived + batch.max_wait.get();
    if !batch.max_wait.get().is_zero() {
        session.filled(most - 1, ends).await;
    }
    let is_lent = matches!(first.state, StateFrom::Store);
    let mut keys = HashSet::new();
    keys.extend(first.idempotency.as_ref().map(|used| used.key.clone()));
    let mut gathered = vec![first];
    session.take_while(most - 1, &mut gathered, |next| {
        // The second with a key gets the answer to the first.
        let is_new = next.idempotency.as_ref();
        may_batch(next)
            && matches!(next.state, StateFrom::Store) == is_lent
            && is_new.is_none_or(|used| keys.insert(used.key.clone()))
    });
    gathered
}

fn may_batch(invocation: &Invocation) -> bool {
    !invocation.read_only && matches!(invocation.state, StateFrom::Home | StateFrom::Store)
}

/// Runs invocations of a session, together as far as that works.
pub(super) async fn run_all(
    core: &Arc<Core>,
    function: &Arc<Function>,
    session: &Arc<Session>,
    invocations: Vec<Invocation>,
) {
    let mut batches = VecDeque::from([invocations]);
    let mut conflicts = 0;
    while let Some(mut invocations) = batches.pop_front() {
        let deployed = function.current();
        if invocations.len() > 1 && conflicts < MAX_CONFLICTS && !deployed.is_in_client() {
            let is_client =
                |invocation: &Invocation| matches!(invocation.origin, Origin::Client(_));
            let run = Run {
                core,
                function,
                deployed,
                started: Instant::now(),
                has_begun: !invocations.iter().all(is_client),
            };
            match run.together(session, invocations).await {
                Left::Rest(rest) => {
                    batches.push_front(rest);
                    continue;
                }
                Left::Conflict(again) => {
                    conflicts += 1;
                    batches.push_front(again);
                    continue;
                }
                Left::Failed {
                    before,
                    failed,
                    rest,
                } => {
                    batches.push_front(rest);
                    batches.push_front(vec![*failed]);
                    batches.push_front(before);
                    continue;
                }
                Left::OneByOne(again) => invocations = again,
            }
        }
        for invocation in invocations {
            run(core, function, Some(session), invocation).await;
        }
    }
}

/// Which invocations are still to run, in their order.
enum Left {
    /// Those that did not fit.
    Rest(Vec<Invocation>),
    /// All: the state had changed meanwhile.
    Conflict(Vec<Invocation>),
    /// All, because of one of them.
    Failed {
        before: Vec<Invocation>,
        failed: Box<Invocation>,
        rest: Vec<Invocation>,
    },
    /// All, each on its own: then it is seen what is the matter.
    OneByOne(Vec<Invocation>),
}

/// An invocation that ran.
struct Ran {
    invocation: Invocation,
    id: Arc<str>,
    reply: Reply,
}

/// Gives the invocations back.
fn undone(ran: Vec<Ran>, rest: impl IntoIterator<Item = Invocation>) -> Vec<Invocation> {
    let ran = ran.into_iter().map(|ran| ran.invocation);
    ran.chain(rest).collect()
}

impl Run<'_> {
    async fn together(&self, session: &Arc<Session>, invocations: Vec<Invocation>) -> Left {
        let Some(first) = invocations.first() else {
            return Left::Rest(invocations);
        };
        let Some(name) = first.session.clone() else {
            return Left::OneByOne(invocations);
        };
        let is_refused = self.core.refuses_writes().is_some()
            || custody::refuses(self.core, &self.deployed.manifest).is_some();
        let from = match first.state {
            StateFrom::Store => StateFrom::Store,
            _ => StateFrom::Home,
        };
        let lender = match self.lender(&from, true).await {
            Ok(lender) if !is_refused => lender,
            _ => return Left::OneByOne(invocations),
        };
        if lender.is_none()
            && self.core.cluster.is_some()
            && self.confirm(session, &name).await.is_err()
        {
            return Left::OneByOne(invocations);
        }
        let invocations = match &lender {
            None => self.new_ones(&name, invocations).await,
            Some(lender) => match self.new_ones_to(lender, &name, invocations).await {
                Ok(invocations) => invocations,
                Err(invocations) => return Left::OneByOne(invocations),
            },
        };
        if invocations.is_empty() {
            return Left::Rest(invocations);
        }
        let lending = Instant::now();
        let state = match &lender {
            None => self.state(session, &name).await,
            Some(lender) => self.borrow(lender, session, &name).await,
        };
        let Ok(state) = state else {
            return Left::OneByOne(invocations);
        };
        let lending = lending.elapsed();
        let pool_key = PoolKey {
            function: self.function.name.clone(),
            version: self.deployed.version,
            session: (!self.deployed.manifest.is_program()).then(|| name.clone()),
        };
        let hired = self.worker(&pool_key, Some(&name), state.tag(), Before::Nothing);
        let Ok(worker) = hired.await else {
            return Left::OneByOne(invocations);
        };
        let done = match self.run_each(&name, &state, worker, invocations).await {
            Ok(done) => done,
            Err(left) => return left,
        };
        let batch_size = &self.core.metrics.batch_size;
        batch_size.observe(done.ran.len() as f64);
        if self.core.cluster.is_some() {
            let asking = done.tx.asking();
            self.function.profile.waited(asking);
            done.ran.iter().for_each(|_| self.reached(lending + asking));
        }
        match lender {
            None => self.commit_all(done, &pool_key, &name),
            Some(Lender::External(_, store)) => {
                let commit = self.commit_all_in_store(store, session, &state, &pool_key, done);
                commit.await
            }
            // No batch is gathered for what other nodes lend.
            Some(Lender::Node(..)) => Left::OneByOne(undone(done.ran, done.rest)),
        }
    }

    /// Answers those that were answered before, at home.
    async fn new_ones(&self, name: &SessionName, invocations: Vec<Invocation>) -> Vec<Invocation> {
        let mut new = Vec::with_capacity(invocations.len());
        for mut invocation in invocations {
            let origin = invocation.origin;
            if origin.is_abandoned() {
                continue;
            }
            let Some(mut origin) = self.redelivered(origin).await else {
                continue;
            };
            if let Some(idempotency) = &invocation.idempotency {
                let replayed = self.replay(Some(name.as_str()), idempotency, origin);
                match replayed.await {
                    Some(new) => origin = new,
                    None => continue,
                }
            }
            invocation.origin = origin;
            new.push(invocation);
        }
        new
    }

    /// The same where the external store knows.
    async fn new_ones_to(
        &self,
        lender: &Lender<'_>,
        name: &SessionName,
        mut invocations: Vec<Invocation>,
    ) -> Result<Vec<Invocation>, Vec<Invocation>> {
        invocations.retain(|invocation| !invocation.origin.is_abandoned());
        let key = |invocation: &Invocation| answer_key(&invocation.idempotency, &invocation.origin);
        let keys: Vec<Option<String>> = invocations.iter().map(key).collect();
        let asked: Vec<&str> = keys.iter().flatten().map(String::as_str).collect();
        if asked.is_empty() {
            return Ok(invocations);
        }
        let group = route::group(&self.function.name, name);
        let Ok(answered) = lender.answered(&group, &asked).await else {
            return Err(invocations);
        };
        let mut answered = answered.into_iter();
        let mut new = Vec::with_capacity(invocations.len());
        for (invocation, key) in invocations.into_iter().zip(&keys) {
            let record = key.as_ref().and_then(|_| answered.next().flatten());
            match record {
                None => new.push(invocation),
                Some(record) => {
                    let origin = invocation.origin;
                    if let Err((origin, problem)) =
                        self.answer_again(origin, &invocation.idempotency, record)
                    {
                        self.finish_failed(origin, problem);
                    }
                }
            }
        }
        Ok(new)
    }

    /// Runs them on one transaction; gives them back if that cannot be committed.
    async fn run_each(
        &self,
        name: &SessionName,
        state: &Arc<SessionState>,
        mut worker: Worker,
        invocations: Vec<Invocation>,
    ) -> Result<Done, Left> {
        let timeout = self.deployed.manifest.limits.timeout.get();
        let mut tx = self.core.store.begin(Some(state.clone()), false);
        let mut ran: Vec<Ran> = Vec::with_capacity(invocations.len());
        let mut left = invocations.into_iter();
        while let Some(invocation) = (!tx.is_half_full()).then(|| left.next()).flatten() {
            if let Origin::Delivery { receipt, .. } = &invocation.origin
                && let Err(problem) = Self::came_in_time(receipt, state)
            {
                self.finish_failed(invocation.origin, problem);
                continue;
            }
            let called = Instant::now();
            let waited = called.saturating_duration_since(invocation.arrived);
            let metrics = &self.core.metrics;
            metrics.queue_seconds.observe(waited.as_secs_f64());
            let id: Arc<str> = self.core.id_text(invocation.id).into();
            let call = Call {
                id: id.clone(),
                function: self.function.name.clone(),
                session: Some(name.clone()),
                tag: state.tag(),
                goes_on: !ran.is_empty(),
                idempotency_key: invocation.idempotency_key.clone(),
                attempt: invocation.attempt,
                deadline: called + timeout,
                deadline_unix_ms: clock::unix_ms() + timeout.as_millis() as u64,
                request: invocation.request.clone(),
            };
            let used = self.used(&worker);
            let result;
            (tx, result) = worker.call(call, tx).await;
            self.note_call(called.elapsed(), used, &worker);
            match result {
                Ok(reply) if !is_server_error(&reply) && !tx.was_too_large() => ran.push(Ran {
                    invocation,
                    id,
                    reply,
                }),
                result => {
                    drop(tx);
                    if result.is_ok() {
                        self.let_go(worker);
                    }
                    return Err(Left::Failed {
                        before: undone(ran, None),
                        failed: Box::new(invocation),
                        rest: left.collect(),
                    });
                }
            }
        }
        self.deployed.crashes.worked();
        if self.core.cluster.is_some() {
            // Written to where it is at home, which is between nodes, with a turn for each key.
            let has_keys = tx.has_written_shared();
            if has_keys || custody::sure(self.core, &self.deployed).await.is_err() {
                drop((tx, worker));
                return Err(Left::OneByOne(undone(ran, left)));
            }
            let used = keys::groups(tx.used_keys());
            let now = self.core.started.elapsed().as_secs_f64();
            self.function.accesses.note(used, now);
        }
        Ok(Done {
            tx,
            worker,
            ran,
            rest: left.collect(),
        })
    }

    fn note_call(&self, worked: Duration, used: Option<Used>, worker: &Worker) {
        self.note_work(worked, used, worker);
        let seconds = worked.as_secs_f64();
        self.core.metrics.execute_seconds.observe(seconds);
        if self.deployed.may_be_in_store(self.core) {
            self.function.profile.worked(worked);
        }
    }

    /// Commits what ran, at home.
    fn commit_all(&self, done: Done, pool_key: &PoolKey, name: &SessionName) -> Left {
        let Done {
            tx,
            worker,
            ran,
            rest,
        } = done;
        let chosen = tx.chosen_model();
        let Ok(prepared) = self.core.store.prepare(tx, 0) else {
            self.core.metrics.conflicts.inc();
            return Left::OneByOne(undone(ran, rest));
        };
        let now_unix_ms = clock::unix_ms();
        let mut bookkeeping = Bookkeeping::default();
        let (mut releases, mut settled) = (Vec::with_capacity(ran.len()), Vec::new());
        for Ran {
            invocation,
            id,
            reply,
        } in ran
        {
            let Invocation {
                idempotency,
                origin,
                ..
            } = invocation;
            let session = Some(name.as_str());
            let own = self.bookkeeping(session, &idempotency, &origin, &id, &reply, now_unix_ms);
            bookkeeping.add(own);
            let (release, done) = self.release(origin, id, reply);
            releases.push(release);
            settled.extend(done);
        }
        let release = Box::new(move |durable: Result<(), StoreFailure>| {
            for release in releases {
                release(durable.clone());
            }
        });
        let durability = self.deployed.manifest.durability;
        let result = match prepared.commit(durability, bookkeeping, now_unix_ms, release) {
            Ok(committed) => {
                self.put_by(worker, pool_key, committed.tag.unwrap_or_default());
                self.core.courier.post(self.core, committed.messages);
                self.change_model(Some(name), chosen);
                Ok(())
            }
            Err(failure) => Err(storage_failed(&failure)),
        };
        for done in settled {
            // The courier may have stopped listening; what is committed stays so.
            let _ = done.send(result.clone());
        }
        Left::Rest(rest)
    }

    /// Commits what ran with one conditional write to the external store.
    async fn commit_all_in_store(
        &self,
        store: &fulmar_state::external::External,
        session: &Session,
        state: &Arc<SessionState>,
        pool_key: &PoolKey,
        done: Done,
    ) -> Left {
        let Done {
            mut tx,
            worker,
            ran,
            rest,
        } = done;
        if tx.has_written_shared() {
            drop((tx, worker));
            return Left::OneByOne(undone(ran, rest));
        }
        let now_unix_ms = clock::unix_ms();
        let kept = |ran: &Ran| {
            let Invocation {
                idempotency,
                origin,
                ..
            } = &ran.invocation;
            self.kept(idempotency, origin, &ran.id, &ran.reply, now_unix_ms)
        };
        let answers: Vec<_> = ran.iter().filter_map(kept).collect();
        let chosen = tx.chosen_model();
        let returned = Returned {
            group: state.group().clone(),
            version: state.version(),
            epoch: state.epoch(),
            writes: tx.session_writes(),
            messages: tx.take_messages(now_unix_ms),
            idempotency: None,
            durability: self.deployed.manifest.durability,
        };
        let problem = match commit_in_store(self.core, store, &returned, &answers).await {
            Ok(Settled::Committed(version)) => {
                tx.committed_elsewhere(version);
                self.put_by(worker, pool_key, state.tag());
                if !returned.messages.is_empty() {
                    courier::fetch(self.core, &returned.group);
                }
                self.change_model(Some(&returned.group.session), chosen);
                None
            }
            Ok(Settled::Conflict) => {
                session.set_state(None);
                self.core.metrics.conflicts.inc();
                return Left::Conflict(undone(ran, rest));
            }
            // One of them: the others run again.
            Ok(Settled::Replay(_)) => {
                self.let_go(worker);
                return Left::OneByOne(undone(ran, rest));
            }
            Err(problem) => {
                session.set_state(None);
                Some(problem)
            }
        };
        for ran in ran {
            let outcome = match &problem {
                Some(problem) => Err((ran.invocation.origin, problem.clone())),
                None => finish(
                    ran.invocation.origin,
                    Answer {
                        reply: ran.reply,
                        invocation: ran.id,
                        replayed: false,
                    },
                ),
            };
            if let Err((origin, problem)) = outcome {
                self.finish_failed(origin, problem);
            }
        }
        Left::Rest(rest)
    }
}

/// A batch that ran and may commit.
struct Done {
    tx: Transaction,
    worker: Worker,
    ran: Vec<Ran>,
    /// What did not fit.
    rest: Vec<Invocation>,
}
