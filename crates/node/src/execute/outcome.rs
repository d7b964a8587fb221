//! What comes of an invocation: its answer, kept or given; the records that go with its commit; and what
//! its origin is told if there is no answer.

use std::sync::Arc;
use std::time::Instant;

use fulmar_model::{Code, Problem};
use fulmar_state::record::{IdempotencyRecord, InvocationRecord, InvocationStatus, StoredReply};
use fulmar_state::{Bookkeeping, StoreFailure, Table, key};
use fulmar_worker::{CallError, Reply};
use tokio::sync::oneshot;

use super::{Run, storage_failed};
use crate::courier::{self, HandedIn};
use crate::invocation::{Answer, IdempotencyKey, Origin, Outcome, restore_reply, store_reply};
use crate::{clock, custody};

/// How long a node that has crashed keeps what says that messages were delivered on it, in milliseconds: far longer than
/// whoever has taken over from it needs to deliver them. Otherwise it goes as soon as it is of no use.
const RECEIPT_MS: u64 = 30 * 24 * 3600 * 1000;

impl Run<'_> {
    /// Tells whoever brings a message that it was delivered before, if it was; gives the origin back if not.
    pub(super) async fn redelivered(&self, origin: Origin) -> Option<Origin> {
        if let Origin::Message { message, .. } = &origin {
            let settled = match courier::receipt(self.core, message) {
                Ok(None) => return Some(origin),
                // What this node has of a session that was taken over says nothing.
                Ok(Some(receipt)) => match self.sure().await {
                    Ok(()) => courier::settle(self.core, message, receipt),
                    Err(problem) => Err(problem),
                },
                Err(problem) => Err(problem),
            };
            if let Origin::Message { done, .. } = origin {
                let _ = done.send(settled);
            }
            return None;
        }
        let Origin::Delivery { receipt, .. } = &origin else {
            return Some(origin);
        };
        let found = self
            .core
            .store
            .record_with_ticket::<IdempotencyRecord>(Table::Idempotency, &receipt.key);
        match found {
            Ok(None) => Some(origin),
            Ok(Some((record, ticket))) => {
                if let Err(problem) = self.sure().await {
                    self.finish_failed(origin, problem);
                    return None;
                }
                let Origin::Delivery { receipt, done } = origin else {
                    return None;
                };
                let release = Box::new(move |durable: Result<(), StoreFailure>| {
                    let reply = receipt.wants_reply.then_some(record.reply);
                    let _ = done.send(
                        durable
                            .map(|()| reply)
                            .map_err(|failure| storage_failed(&failure)),
                    );
                });
                let durability = self.deployed.manifest.durability;
                self.core.store.release(ticket, durability, release);
                None
            }
            Err(error) => {
                self.finish_failed(origin, Problem::new(Code::Internal, error.to_string()));
                None
            }
        }
    }

    async fn sure(&self) -> Result<(), Problem> {
        custody::sure(self.core, &self.deployed).await
    }

    /// Answers from the record of the idempotency key, if there is one; gives the origin back if not.
    pub(super) async fn replay(
        &self,
        session: Option<&str>,
        idempotency: &IdempotencyKey,
        origin: Origin,
    ) -> Option<Origin> {
        let key = key::idempotency(self.function.name.as_str(), session, &idempotency.key);
        let found = self
            .core
            .store
            .record_with_ticket::<IdempotencyRecord>(Table::Idempotency, &key);
        let (record, ticket) = match found {
            Ok(Some((record, ticket))) if record.expires_unix_ms > clock::unix_ms() => {
                (record, ticket)
            }
            Ok(_) => return Some(origin),
            Err(error) => {
                self.finish_failed(origin, Problem::new(Code::Internal, error.to_string()));
                return None;
            }
        };
        // What this node has of a session that was taken over was not answered.
        if let Err(problem) = self.sure().await {
            self.finish_failed(origin, problem);
            return None;
        }
        if record.request != idempotency.request {
            let detail = format!(
                "the key was used by invocation {} for another request",
                record.invocation
            );
            self.finish_failed(origin, Problem::new(Code::IdempotencyKeyReused, detail));
            return None;
        }
        match restore_reply(record.reply) {
            Err(problem) => self.finish_failed(origin, problem),
            Ok(reply) => {
                let answer = Answer {
                    reply,
                    invocation: record.invocation.into(),
                    replayed: true,
                };
                self.core.metrics.replays.inc();
                match origin {
                    Origin::Client(to) => {
                        let release = Box::new(move |durable: Result<(), StoreFailure>| {
                            let _ = to.send(
                                durable
                                    .map(|()| answer)
                                    .map_err(|failure| storage_failed(&failure)),
                            );
                        });
                        self.core
                            .store
                            .release(ticket, self.deployed.manifest.durability, release);
                    }
                    // An asynchronous invocation under a key that was answered meanwhile.
                    origin @ (Origin::Message { .. } | Origin::Delivery { .. }) => {
                        let id = answer.invocation.clone();
                        let bookkeeping = self.bookkeeping(
                            session,
                            &None,
                            &origin,
                            &id,
                            &answer.reply,
                            clock::unix_ms(),
                        );
                        self.settle(origin, bookkeeping, id, answer.reply);
                    }
                }
            }
        }
        None
    }

    /// The node's own writes that belong to the commit.
    pub(super) fn bookkeeping(
        &self,
        session: Option<&str>,
        idempotency: &Option<IdempotencyKey>,
        origin: &Origin,
        id: &Arc<str>,
        reply: &Reply,
        now_unix_ms: u64,
    ) -> Bookkeeping {
        let mut bookkeeping = Bookkeeping::default();
        let retention = self
            .deployed
            .manifest
            .idempotency
            .retention
            .get()
            .as_millis() as u64;
        let expires_unix_ms = now_unix_ms + retention;
        if let Some(idempotency) = idempotency {
            let record = IdempotencyRecord {
                request: idempotency.request,
                invocation: id.to_string(),
                reply: store_reply(reply),
                expires_unix_ms,
            };
            let key = key::idempotency(self.function.name.as_str(), session, &idempotency.key);
            bookkeeping.put(Table::Idempotency, &key, &record);
        }
        if let Origin::Delivery { receipt, .. } = origin {
            let record = IdempotencyRecord {
                request: [0; 32],
                invocation: id.to_string(),
                reply: match receipt.wants_reply {
                    true => store_reply(reply),
                    false => StoredReply::default(),
                },
                // For as long as the other node may send it again.
                expires_unix_ms: u64::MAX,
            };
            for settled in &receipt.settled {
                bookkeeping.delete(Table::Idempotency, settled);
            }
            bookkeeping.put(Table::Idempotency, &receipt.key, &record);
        }
        if let Origin::Message { message, .. } = origin {
            let HandedIn {
                posted,
                record,
                at_home,
            } = &**message;
            if !at_home.as_ref().is_some_and(|at_home| at_home.is_kept) {
                bookkeeping.delete(posted.table(), &posted.stored_key());
            }
            if let Some(at_home) = at_home {
                let record = IdempotencyRecord {
                    request: [0; 32],
                    invocation: id.to_string(),
                    reply: match record.invocation {
                        Some(_) => store_reply(reply),
                        None => StoredReply::default(),
                    },
                    expires_unix_ms: now_unix_ms + RECEIPT_MS,
                };
                bookkeeping.put(Table::Idempotency, &at_home.receipt, &record);
            }
            if let Some(invocation) = &record.invocation {
                let status = InvocationStatus::Done(store_reply(reply));
                let record = InvocationRecord {
                    to: record.to.clone(),
                    submitted_unix_ms: record.at_unix_ms,
                    finished_unix_ms: now_unix_ms,
                    status,
                    expires_unix_ms,
                };
                bookkeeping.put(Table::Invocations, invocation.as_bytes(), &record);
            }
        }
        bookkeeping
    }

    /// What happens when the commit is durable, and for a message whom to tell before that.
    pub(super) fn release(
        &self,
        origin: Origin,
        id: Arc<str>,
        reply: Reply,
    ) -> (
        fulmar_state::Release,
        Option<oneshot::Sender<Result<(), Problem>>>,
    ) {
        let committed = Instant::now();
        let metrics = self.core.metrics.clone();
        match origin {
            Origin::Client(to) => {
                let release = move |durable: Result<(), StoreFailure>| {
                    metrics
                        .commit_seconds
                        .observe(committed.elapsed().as_secs_f64());
                    let answer = Answer {
                        reply,
                        invocation: id,
                        replayed: false,
                    };
                    // The client may be gone; the commit stands.
                    let _ = to.send(
                        durable
                            .map(|()| answer)
                            .map_err(|failure| storage_failed(&failure)),
                    );
                };
                (Box::new(release), None)
            }
            Origin::Message { done, .. } => (Box::new(|_| {}), Some(done)),
            Origin::Delivery { receipt, done } => {
                let release = move |durable: Result<(), StoreFailure>| {
                    let reply = receipt.wants_reply.then(|| store_reply(&reply));
                    let _ = done.send(
                        durable
                            .map(|()| reply)
                            .map_err(|failure| storage_failed(&failure)),
                    );
                };
                (Box::new(release), None)
            }
        }
    }

    /// A response with a server error: answered, but nothing of it is kept.
    pub(super) fn finish_unkept(
        &self,
        origin: Origin,
        invocation: Arc<str>,
        reply: Reply,
    ) -> Result<(), (Origin, Problem)> {
        match origin {
            Origin::Client(to) => {
                let _ = to.send(Ok(Answer {
                    reply,
                    invocation,
                    replayed: false,
                }));
                Ok(())
            }
            origin @ (Origin::Message { .. } | Origin::Delivery { .. }) => {
                let detail = match &reply {
                    Reply::Http(response) => format!(
                        "the function answered {}: {}",
                        response.status(),
                        String::from_utf8_lossy(&response.body()[..response.body().len().min(200)])
                    ),
                    Reply::Bytes(_) => "the function failed".to_owned(),
                };
                Err((origin, Problem::new(Code::FunctionFailed, detail)))
            }
        }
    }

    /// Tells the origin that there is no answer.
    pub(super) fn finish_failed(&self, origin: Origin, problem: Problem) {
        self.core.metrics.failed(problem.code);
        match origin {
            Origin::Client(to) => {
                let _ = to.send(Outcome::Err(problem));
            }
            Origin::Message { done, .. } => {
                let _ = done.send(Err(problem));
            }
            Origin::Delivery { done, .. } => {
                let _ = done.send(Err(problem));
            }
        }
    }

    /// Commits bookkeeping alone and tells a message's courier that it is delivered.
    fn settle(&self, origin: Origin, bookkeeping: Bookkeeping, id: Arc<str>, reply: Reply) {
        let (release, done) = self.release(origin, id, reply);
        let committed = self.core.store.commit_bookkeeping(bookkeeping, release);
        if let Some(done) = done {
            let _ = done.send(
                committed
                    .map(|_| ())
                    .map_err(|failure| storage_failed(&failure)),
            );
        }
    }

    pub(super) fn call_problem(&self, error: CallError) -> Problem {
        let name = &self.function.name;
        let limits = &self.deployed.manifest.limits;
        match error {
            CallError::Trap(text) => {
                Problem::new(Code::FunctionTrap, format!("{name} trapped: {text}"))
            }
            CallError::Timeout => Problem::new(
                Code::FunctionTimeout,
                format!("{name} ran for longer than its limit of {}", limits.timeout),
            ),
            CallError::MemoryLimit { .. } => Problem::new(
                Code::MemoryLimit,
                format!("{name} asked for more than its limit of {}", limits.memory),
            ),
            CallError::StackOverflow => {
                Problem::new(Code::StackOverflow, format!("{name} used up its stack"))
            }
            CallError::Failed(text) => Problem::new(Code::FunctionFailed, text),
            CallError::Rejected(text) => Problem::new(Code::RejectedByFunction, text),
            CallError::NoResponse => Problem::new(
                Code::NoResponse,
                format!("{name} returned without a response"),
            ),
            CallError::ResponseTooLarge { .. } => Problem::new(
                Code::ResponseTooLarge,
                format!(
                    "{name} answered more than its limit of {}",
                    limits.max_response
                ),
            ),
            CallError::NoRoom => Problem::new(
                Code::QueueFull,
                "all workers that the node can have are busy",
            ),
            CallError::Exited(text) => Problem::new(
                Code::FunctionTrap,
                format!("the program of {name} ended: {text}"),
            ),
            CallError::Start(text) => Problem::new(
                Code::WorkerNotStarted,
                format!("a worker of {name} could not start: {text}"),
            ),
        }
    }
}
