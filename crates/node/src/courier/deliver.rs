//! One attempt to deliver a message: where its receiver is, there or here, and what comes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_model::manifest::Messages as MessagePolicy;
use fulmar_model::{Code, ExecutionModel, Problem, SessionName};
use fulmar_state::record::{InvocationRecord, InvocationStatus, MessageRecord};
use fulmar_state::{Bookkeeping, StoreFailure, Table};
use fulmar_worker::{Request, World};
use tokio::sync::oneshot;

use super::settled::HandedIn;
use super::{Posted, across, adopted, commit_of, external, settled};
use crate::core::Core;
use crate::execute::storage_failed;
use crate::functions::Function;
use crate::invocation::{Invocation, Origin, StateFrom};
use crate::route::{self, Place};
use crate::{clock, continuum, custody, execute};

/// Pause before a message is offered again to a full queue: it was not tried, so it does not count.
pub(super) const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(20);

/// Pause before a message is offered again to a node that could not be reached: it was not tried.
pub(super) const UNREACHABLE_PAUSE: Duration = Duration::from_millis(500);

/// What became of a delivery.
pub(super) enum Delivery {
    /// Delivered, or given up and parked.
    Settled,
    /// To be tried again after a pause.
    Again(Box<MessageRecord>, Duration),
    /// The node stops or its storage failed: the next start goes on.
    Stopped,
}

/// Tries once.
pub(super) async fn deliver(
    core: &Arc<Core>,
    posted: &Posted,
    message: Box<MessageRecord>,
) -> Delivery {
    let Ok(_permit) = core.courier.deliveries.acquire().await else {
        return Delivery::Stopped;
    };
    match is_due_now(core, posted, &message) {
        Ok(true) => {}
        Ok(false) => return Delivery::Again(message, UNREACHABLE_PAUSE),
        Err(ended) => return ended,
    }
    let function = continuum::function(core, message.to.function.as_str()).await;
    let problem = match &function {
        Err(problem) => problem.clone(),
        Ok(function) => match bring(core, function, posted, &message).await {
            Brought::Delivered => {
                core.metrics.delivered.inc();
                core.metrics.messages_pending.dec();
                external::settled(core, posted, &message);
                return Delivery::Settled;
            }
            Brought::Failed(problem) => problem,
            Brought::Later(pause) => return Delivery::Again(message, pause),
        },
    };
    match problem.code {
        Code::StorageFailed | Code::ShuttingDown => return Delivery::Stopped,
        Code::StorageFull
        | Code::ObjectStoreUnreachable
        | Code::TakenOver
        | Code::RegistryUnreachable => {
            return Delivery::Again(message, Duration::from_secs(1));
        }
        _ => {}
    }
    let policy = function
        .map(|function| function.current().manifest.messages.clone())
        .unwrap_or_default();
    not_delivered(core, posted, message, &problem, &policy)
}

/// Whether a message is to be delivered now, or later; or what its delivery ends with.
fn is_due_now(core: &Core, posted: &Posted, message: &MessageRecord) -> Result<bool, Delivery> {
    match adopted::due(core, posted, message) {
        Ok(adopted::Due::Now) => Ok(true),
        Ok(adopted::Due::Later) => Ok(false),
        Ok(adopted::Due::Never) => {
            core.metrics.messages_pending.dec();
            Err(Delivery::Settled)
        }
        Err(error) => {
            tracing::error!(%error, "whether a message is still to be delivered cannot be read; it stays");
            Err(Delivery::Stopped)
        }
    }
}

/// What becomes of a message that its receiver was tried with: it is tried again later, or parked.
fn not_delivered(
    core: &Arc<Core>,
    posted: &Posted,
    mut message: Box<MessageRecord>,
    problem: &Problem,
    policy: &MessagePolicy,
) -> Delivery {
    // What is another node's by now must not be written again.
    let _alone = core.courier.changing.lock();
    if let Err(ended) = is_due_now(core, posted, &message) {
        return ended;
    }
    core.metrics.redelivered.inc();
    message.attempts += 1;
    message.error = format!("{}: {}", problem.code.as_str(), problem.detail);
    let mut bookkeeping = Bookkeeping::default();
    if message.invocation.is_some() {
        // A client's invocation is tried once; the client decides whether to try again.
        give_answer(&mut bookkeeping, &message, problem, posted);
    } else if message.attempts >= policy.max_attempts || problem.code == Code::RejectedByFunction {
        tracing::warn!(from = ?message.from, to = ?message.to, error = message.error, "a message is parked as a dead letter");
        message.at_unix_ms = clock::unix_ms();
        bookkeeping.delete(posted.table(), &posted.stored_key());
        bookkeeping.put(Table::DeadLetters, &posted.letter_key(), &*message);
        core.metrics.parked.inc();
        core.metrics.dead_letters.inc();
    } else {
        // So that a restart goes on counting; nobody waits for it.
        bookkeeping.put(posted.table(), &posted.stored_key(), &*message);
        if core
            .store
            .commit_bookkeeping(bookkeeping, Box::new(|_| {}))
            .is_err()
        {
            return Delivery::Stopped;
        }
        let pause = backoff(
            policy.backoff_initial.get(),
            policy.backoff_max.get(),
            message.attempts,
            fastrand::f64(),
        );
        return Delivery::Again(message, pause);
    }
    core.metrics.messages_pending.dec();
    external::settled(core, posted, &message);
    match core.store.commit_bookkeeping(bookkeeping, Box::new(|_| {})) {
        Ok(_) => Delivery::Settled,
        Err(_) => Delivery::Stopped,
    }
}

/// Exponential backoff with full jitter over its upper half. `random` is in 0..1.
fn backoff(initial: Duration, max: Duration, attempts: u32, random: f64) -> Duration {
    let doubled = initial.saturating_mul(1 << (attempts.saturating_sub(1)).min(20));
    doubled.min(max).mul_f64(0.5 + random / 2.0)
}

/// What came of an attempt to deliver.
pub(super) enum Brought {
    Delivered,
    /// The receiver was tried.
    Failed(Problem),
    /// It was not, so that it does not count.
    Later(Duration),
}

/// Delivers here, or to the node that is home to the receiver.
async fn bring(
    core: &Arc<Core>,
    function: &Arc<Function>,
    posted: &Posted,
    message: &MessageRecord,
) -> Brought {
    if let Err(problem) = external::claim(core, posted, message).await {
        tracing::debug!(%problem, "a message waits for the external store");
        return Brought::Later(UNREACHABLE_PAUSE);
    }
    for _ in 0..route::MAX_HOPS {
        let session = message.to.session.as_ref();
        if let Some(session) = session
            && is_in_store(core, function, session)
        {
            match external::hand_in(core, function, session, posted, message).await {
                Ok(Ok(())) => return Brought::Delivered,
                Ok(Err(problem)) => match problem.code {
                    // Its home has taken it back.
                    Code::SessionMoved => continue,
                    // Whatever became of it: it is delivered once.
                    Code::ExternalStoreUnreachable | Code::OutcomeUnknown => {
                        return Brought::Later(UNREACHABLE_PAUSE);
                    }
                    _ => return Brought::Failed(problem),
                },
                Err(execute::QueueFull) => return Brought::Later(QUEUE_FULL_PAUSE),
            }
        }
        let place = session.map(|session| route::of_session(core, function, session));
        if let (Some(Place::There(node)), Some(cluster)) = (place, &core.cluster) {
            match across::send(core, cluster, &node, function, posted, message).await {
                Some(brought) => return brought,
                None => continue,
            }
        }
        let handed_in = match (&posted.origin, session) {
            (Some(origin), Some(_)) => adopted::hand_in(core, origin, posted, message).await,
            _ => hand_in(core, function, posted, message).await,
        };
        match handed_in {
            Ok(Ok(())) => return Brought::Delivered,
            Ok(Err(problem)) if problem.code == Code::SessionMoved => {}
            Ok(Err(problem)) if problem.code == Code::SessionInStore => {
                if let Some(session) = session {
                    let group = route::group(&function.name, session);
                    core.models.learn(&group, ExecutionModel::External);
                }
            }
            Ok(Err(problem)) if is_of_the_way(problem.code) => {
                return Brought::Later(UNREACHABLE_PAUSE);
            }
            Ok(Err(problem)) if is_away(function, &problem) => {
                return Brought::Later(UNREACHABLE_PAUSE);
            }
            Ok(Err(problem)) => return Brought::Failed(problem),
            Err(execute::QueueFull) => return Brought::Later(QUEUE_FULL_PAUSE),
        }
    }
    Brought::Later(UNREACHABLE_PAUSE)
}

/// Whether the receiver's state is in the external store, as far as this node knows.
fn is_in_store(core: &Core, function: &Function, session: &SessionName) -> bool {
    let group = || route::group(&function.name, session);
    function.current().is_external() || core.models.get(group) == Some(ExecutionModel::External)
}

/// Whether the receiver could not be asked, or a shared key that it uses could not be had.
fn is_of_the_way(code: Code) -> bool {
    use Code::{DirectoryUnreachable, ExternalStoreUnreachable, HomeUnreachable, QueueFull};
    matches!(
        code,
        DirectoryUnreachable | ExternalStoreUnreachable | HomeUnreachable | QueueFull
    )
}

/// Whether the receiver is with its client now and will be back, as far as anybody knows.
pub(super) fn is_away(function: &Function, problem: &Problem) -> bool {
    problem.code == Code::StateWithClient && !function.current().is_in_client()
}

/// Runs the delivery as an invocation; its commit deletes the message.
async fn hand_in(
    core: &Arc<Core>,
    function: &Arc<Function>,
    posted: &Posted,
    message: &MessageRecord,
) -> Result<Result<(), Problem>, execute::QueueFull> {
    let request = match request(function, message) {
        Ok(request) => request,
        Err(problem) => return Ok(Err(problem)),
    };
    // Its receiver may stay when its sender is taken over, or have moved before.
    if let Some(from) = &message.from
        && custody::is_copied_first(core, &from.function)
        && let Err(failure) = may_leave(core, posted, message).await
    {
        return Ok(Err(storage_failed(&failure)));
    }
    let stream = settled::stream(core);
    let at_home = settled::at_home(core, posted, message);
    let (done, outcome) = oneshot::channel();
    let origin = Origin::Message {
        message: Box::new(HandedIn {
            posted: posted.clone(),
            record: message.clone(),
            at_home: at_home.clone(),
        }),
        done,
    };
    execute::submit(core, function, invocation(core, message, request, origin))?;
    let gone = || Err(Problem::new(Code::ShuttingDown, "the node stops"));
    let delivered = outcome.await.unwrap_or_else(|_| gone());
    if let (Ok(()), Some(at_home)) = (&delivered, at_home) {
        settled::delivered(core, posted, message, stream, at_home);
    }
    Ok(delivered)
}

/// The delivery as an invocation.
pub(super) fn invocation(
    core: &Core,
    message: &MessageRecord,
    request: Request,
    origin: Origin,
) -> Invocation {
    core.metrics.invocations.inc();
    Invocation {
        id: core.next_id(),
        session: message.to.session.clone(),
        request,
        state: StateFrom::Home,
        idempotency: None,
        idempotency_key: message.idempotency_key.as_deref().map(Arc::from),
        read_only: false,
        attempt: message.attempts + 1,
        arrived: Instant::now(),
        origin,
    }
}

/// The message as what its receiver understands.
pub(super) fn request(function: &Function, message: &MessageRecord) -> Result<Request, Problem> {
    let stored = &message.request;
    let body = Bytes::copy_from_slice(&stored.body);
    match function.current().world() {
        World::Function => Ok(Request::Bytes(body)),
        World::Http | World::Program => {
            let mut request = http::Request::builder()
                .method(stored.method.as_str())
                .uri(stored.path.as_str());
            for (name, value) in &stored.headers {
                request = request.header(name.as_str(), value.as_slice());
            }
            let request = request.body(body);
            request
                .map(|request| Request::Http(Box::new(request)))
                .map_err(|error| Problem::new(Code::BadRequest, error.to_string()))
        }
    }
}

/// Stores why an asynchronous invocation has no result.
fn give_answer(
    bookkeeping: &mut Bookkeeping,
    message: &MessageRecord,
    problem: &Problem,
    posted: &Posted,
) {
    bookkeeping.delete(posted.table(), &posted.stored_key());
    if let Some(invocation) = &message.invocation {
        let now = clock::unix_ms();
        let record = InvocationRecord {
            to: message.to.clone(),
            submitted_unix_ms: message.at_unix_ms,
            finished_unix_ms: now,
            status: InvocationStatus::Failed(problem.to_json()),
            expires_unix_ms: now + FAILED_RETENTION_MS,
        };
        bookkeeping.put(Table::Invocations, invocation.as_bytes(), &record);
    }
}

/// How long the failure of an asynchronous invocation is kept, in milliseconds: a day, as its
/// function may be gone and its manifest with it.
const FAILED_RETENTION_MS: u64 = 24 * 3600 * 1000;

/// Waits until a message may leave the node: it must not rest on less than its sender's commit has to, and nobody who
/// takes over from this node may begin before it.
pub(super) async fn may_leave(
    core: &Core,
    posted: &Posted,
    message: &MessageRecord,
) -> Result<(), StoreFailure> {
    match &message.from {
        Some(from) if posted.origin.is_none() => {
            custody::safe(core, &from.function, commit_of(&posted.key)).await
        }
        _ => core.store.durable(core.store.commits().submitted()).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_limit_and_is_spread() {
        let ms = Duration::from_millis;
        assert_eq!(backoff(ms(100), ms(1000), 1, 1.0), ms(100));
        assert_eq!(backoff(ms(100), ms(1000), 1, 0.0), ms(50));
        assert_eq!(backoff(ms(100), ms(1000), 3, 1.0), ms(400));
        assert_eq!(backoff(ms(100), ms(1000), 60, 1.0), ms(1000));
    }
}
