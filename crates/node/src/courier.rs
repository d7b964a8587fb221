//! Delivery of messages: exactly once, in order per sending and receiving session.
//!
//! A message is stored with its sender's commit and deleted with its receiver's, so that it is
//! delivered once whatever happens in between. Between the two this module drives it: messages with
//! the same sending and receiving session share a lane that delivers one at a time; the others share
//! a lane per receiver that delivers several at once. Delivery need not wait until the sender's
//! commit is durable: the receiver's commit comes later in the order of commits, and so does
//! everything that is released because of it.

mod across;
mod adopted;
mod external;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_model::{Code, Group, Problem};
use fulmar_state::record::{Address, InvocationRecord, InvocationStatus, MessageRecord, Record};
use fulmar_state::{Bookkeeping, StoreError, StoreFailure, Table, Ticket};
use fulmar_worker::{Request, World};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::core::Core;
use crate::execute;
use crate::functions::Function;
use crate::invocation::{Invocation, Origin, StateFrom};
use crate::route::{self, Place};
use crate::{clock, custody};

/// Deliveries at once of a lane without order.
const UNORDERED_WIDTH: usize = 64;
/// Waiting messages held in memory, in bytes; of those beyond only the key is held.
const HELD_BYTES: usize = 32 << 20;
/// Pause before a message is offered again to a full queue: it was not tried, so it does not count.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(20);

/// Pause before a message is offered again to a node that could not be reached: it was not tried.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(500);

pub(crate) use across::{arrived_with_session, receive};
pub(crate) use adopted::{disown, owner};
pub(crate) use external::{collect, fetch};

/// A message's key: the commit that sent it and its place there.
pub(crate) type MessageKey = [u8; 12];

/// The commit that sent a message.
pub(crate) fn commit_of(key: &MessageKey) -> Ticket {
    let [a, b, c, d, e, f, g, h, ..] = *key;
    Ticket(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

/// Which message it is: its key, and the data directory that it was sent from, if that is not this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Posted {
    origin: Option<Arc<str>>,
    key: MessageKey,
}

/// Who a lane is between; no sender for those without order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lane {
    from: Option<Address>,
    to: Address,
}

impl Lane {
    fn of(message: &MessageRecord) -> Self {
        let ordered = message.to.session.is_some()
            && message
                .from
                .as_ref()
                .is_some_and(|from| from.session.is_some());
        Self {
            from: message.from.clone().filter(|_| ordered),
            to: message.to.clone(),
        }
    }

    fn width(&self) -> usize {
        if self.from.is_some() {
            1
        } else {
            UNORDERED_WIDTH
        }
    }
}

struct Waiting {
    posted: Posted,
    /// None: too many waited when it came; read again when its turn comes.
    message: Option<Box<MessageRecord>>,
}

#[derive(Default)]
struct LaneState {
    waiting: VecDeque<Waiting>,
    running: usize,
}

/// Drives the messages of the node.
pub(crate) struct Courier {
    /// Messages that are not settled, among other nodes: the lowest tells them what they may forget.
    unsettled: Mutex<BTreeSet<MessageKey>>,
    lanes: Mutex<HashMap<Lane, LaneState>>,
    /// Hears when a lane has become empty.
    emptied: Notify,
    /// Bounds the deliveries of the node.
    deliveries: Arc<Semaphore>,
    held_bytes: AtomicUsize,
}

impl Courier {
    pub(crate) fn new(max_deliveries: usize) -> Self {
        Self {
            unsettled: Mutex::default(),
            lanes: Mutex::default(),
            emptied: Notify::new(),
            deliveries: Arc::new(Semaphore::new(max_deliveries)),
            held_bytes: AtomicUsize::new(0),
        }
    }

    /// Takes over messages that were just committed, in the order of sending.
    pub(crate) fn post(&self, core: &Arc<Core>, messages: Vec<(MessageKey, MessageRecord)>) {
        for (key, message) in messages {
            self.enqueue(core, Posted { origin: None, key }, message);
        }
    }

    /// Takes over a message of another node that is stored here now.
    pub(crate) fn adopt(&self, core: &Arc<Core>, posted: Posted, message: MessageRecord) {
        self.enqueue(core, posted, message);
    }

    fn enqueue(&self, core: &Arc<Core>, posted: Posted, message: MessageRecord) {
        if let Some(lane) = self.line_up(core, posted, message) {
            tokio::spawn(run_lane(core.clone(), lane));
        }
    }

    /// Puts a message at the end of its lane; the lane, if it needs another runner.
    fn line_up(&self, core: &Arc<Core>, posted: Posted, message: MessageRecord) -> Option<Lane> {
        core.metrics.messages_pending.inc();
        if core.cluster.is_some() && posted.origin.is_none() {
            self.unsettled.lock().insert(posted.key);
        }
        let lane = Lane::of(&message);
        let bytes = message.request.body.len();
        let held = self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        let message = if held > HELD_BYTES {
            self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
            None
        } else {
            Some(Box::new(message))
        };
        let mut lanes = self.lanes.lock();
        let state = lanes.entry(lane.clone()).or_default();
        state.waiting.push_back(Waiting { posted, message });
        let is_short = state.running < lane.width() && !core.stopping.is_cancelled();
        state.running += usize::from(is_short);
        drop(lanes);
        is_short.then_some(lane)
    }

    /// The lane's next message; if there is none, one runner fewer.
    fn next(&self, lane: &Lane) -> Option<Waiting> {
        let mut lanes = self.lanes.lock();
        let state = lanes.get_mut(lane)?;
        if let Some(next) = state.waiting.pop_front() {
            return Some(next);
        }
        state.running -= 1;
        if state.running == 0 {
            lanes.remove(lane);
            self.emptied.notify_waiters();
        }
        None
    }

    /// Waits until all that a session has sent to other sessions is delivered.
    pub(crate) async fn drained(&self, group: &Group) {
        let sender = Address {
            function: group.function.clone(),
            session: Some(group.session.clone()),
        };
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            let waits = self
                .lanes
                .lock()
                .keys()
                .any(|lane| lane.from.as_ref() == Some(&sender));
            if !waits {
                return;
            }
            emptied.await;
        }
    }

    /// Takes up the messages that an earlier run of the node left. Nothing may send any before: they would be taken up
    /// twice.
    pub(crate) fn recover(&self, core: &Arc<Core>) -> Result<usize, StoreError> {
        let (mut found, mut bad) = (0, None);
        let mut lanes = Vec::new();
        // Those of other nodes are older than what their senders have sent since.
        for table in [Table::Adopted, Table::Messages] {
            core.store.scan(table, &[], None, &mut |key, value| {
                let message = MessageRecord::decode(value);
                let message = message.map_err(|error| StoreError::Record { table, error });
                match (Posted::parse(table, key), message) {
                    (Some(posted), Ok(message)) => {
                        lanes.extend(self.line_up(core, posted, message));
                    }
                    (None, _) => tracing::warn!("a message with a bad key was left out"),
                    (_, Err(error)) => bad = Some(error),
                }
                found += 1;
                bad.is_none()
            })?;
        }
        if let Some(error) = bad {
            return Err(error);
        }
        // What is delivered sends more.
        for lane in lanes {
            tokio::spawn(run_lane(core.clone(), lane));
        }
        Ok(found)
    }
}

/// Delivers a lane's messages until none waits.
async fn run_lane(core: Arc<Core>, lane: Lane) {
    while let Some(waiting) = core.courier.next(&lane) {
        if core.stopping.is_cancelled() {
            // It stays in the store and is taken up at the next start.
            return;
        }
        let message = match waiting.message {
            Some(message) => {
                core.courier
                    .held_bytes
                    .fetch_sub(message.request.body.len(), Ordering::Relaxed);
                Some(message)
            }
            None => read_again(&core, &waiting.posted).await,
        };
        if let Some(message) = message {
            let posted = waiting.posted;
            match deliver(&core, &posted, message).await {
                Delivery::Settled => settled(&core, &posted),
                Delivery::Stopped => return,
                // In order: those behind it wait until it is delivered or parked.
                Delivery::Again(message, pause) if lane.from.is_some() => {
                    if !retry(&core, &posted, message, pause).await {
                        return;
                    }
                }
                Delivery::Again(message, pause) => {
                    let core = core.clone();
                    tokio::spawn(async move { retry(&core, &posted, message, pause).await });
                }
            }
        }
    }
}

/// A message of which only the key was held.
async fn read_again(core: &Arc<Core>, posted: &Posted) -> Option<Box<MessageRecord>> {
    let (done, written) = oneshot::channel::<()>();
    let last = core.store.commits().submitted();
    let release = Box::new(move |_| drop(done));
    core.store.commits().when_durable(last, release);
    let _ = written.await;
    let stored = core
        .store
        .record::<MessageRecord>(posted.table(), &posted.stored_key());
    match stored {
        Ok(message) => message.map(Box::new),
        Err(error) => {
            tracing::error!(%error, "a message cannot be read; it stays in the data store");
            None
        }
    }
}

/// What became of a delivery.
enum Delivery {
    /// Delivered, or given up and parked.
    Settled,
    /// To be tried again after a pause.
    Again(Box<MessageRecord>, Duration),
    /// The node stops or its storage failed: the next start goes on.
    Stopped,
}

/// Tries a message again until it is settled; false if the node stops before.
async fn retry(
    core: &Arc<Core>,
    posted: &Posted,
    mut message: Box<MessageRecord>,
    mut pause: Duration,
) -> bool {
    loop {
        tokio::select! {
            () = core.stopping.cancelled() => return false,
            () = tokio::time::sleep(pause) => {}
        }
        match deliver(core, posted, message).await {
            Delivery::Settled => {
                settled(core, posted);
                return true;
            }
            Delivery::Stopped => return false,
            Delivery::Again(again, next_pause) => (message, pause) = (again, next_pause),
        }
    }
}

/// The message will not be sent again: not even by whoever may take over from this node.
fn settled(core: &Arc<Core>, posted: &Posted) {
    if core.cluster.is_none() || posted.origin.is_some() {
        return;
    }
    let (settling, key) = (core.clone(), posted.key);
    once_copied(core, move || {
        settling.courier.unsettled.lock().remove(&key);
    });
}

/// Does something once whoever may take over from this node will know all that is committed here by now.
fn once_copied(core: &Core, then: impl FnOnce() + Send + 'static) {
    match core.store.changelog() {
        None => then(),
        Some(changelog) => changelog.when_shipped(
            core.store.commits().submitted(),
            Box::new(move |copied| {
                if copied.is_ok() {
                    then();
                }
            }),
        ),
    }
}

/// Waits until a message may leave the node: it must not rest on less than its sender's commit has to, and nobody who
/// takes over from this node may begin before it.
async fn may_leave(
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

async fn deliver(core: &Arc<Core>, posted: &Posted, mut message: Box<MessageRecord>) -> Delivery {
    let Ok(_permit) = core.courier.deliveries.acquire().await else {
        return Delivery::Stopped;
    };
    match adopted::due(core, posted, &message) {
        Ok(adopted::Due::Now) => {}
        Ok(adopted::Due::Later) => return Delivery::Again(message, UNREACHABLE_PAUSE),
        Ok(adopted::Due::Never) => {
            core.metrics.messages_pending.dec();
            return Delivery::Settled;
        }
        Err(error) => {
            tracing::error!(%error, "whether a message is still to be delivered cannot be read; it stays");
            return Delivery::Stopped;
        }
    }
    let function = core.functions.get(message.to.function.as_str());
    let problem = match &function {
        None => Problem::new(
            Code::FunctionNotFound,
            format!("no function {} is deployed", message.to.function),
        ),
        Some(function) => match bring(core, function, posted, &message).await {
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
        Code::StorageFull | Code::ObjectStoreUnreachable | Code::TakenOver => {
            return Delivery::Again(message, Duration::from_secs(1));
        }
        _ => {}
    }
    core.metrics.redelivered.inc();
    message.attempts += 1;
    message.error = format!("{}: {}", problem.code.as_str(), problem.detail);
    let policy = function
        .map(|function| function.current().manifest.messages.clone())
        .unwrap_or_default();
    let mut bookkeeping = Bookkeeping::default();
    if message.invocation.is_some() {
        // A client's invocation is tried once; the client decides whether to try again.
        give_answer(&mut bookkeeping, &message, &problem, posted);
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
enum Brought {
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
    if let Some(session) = &message.to.session
        && function.current().is_external()
    {
        return match external::hand_in(core, function, session, posted, message).await {
            Ok(Ok(())) => Brought::Delivered,
            Ok(Err(problem)) => match problem.code {
                // Whatever became of it: it is delivered once.
                Code::ExternalStoreUnreachable | Code::OutcomeUnknown => {
                    Brought::Later(UNREACHABLE_PAUSE)
                }
                _ => Brought::Failed(problem),
            },
            Err(execute::QueueFull) => Brought::Later(QUEUE_FULL_PAUSE),
        };
    }
    for _ in 0..route::MAX_HOPS {
        let session = message.to.session.as_ref();
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
            Ok(Err(problem)) if problem.code == Code::DirectoryUnreachable => {
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

/// Whether the receiver is with its client now and will be back, as far as anybody knows.
fn is_away(function: &Function, problem: &Problem) -> bool {
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
    let (done, outcome) = oneshot::channel();
    let origin = Origin::Message {
        posted: Box::new(posted.clone()),
        record: Box::new(message.clone()),
        done,
    };
    execute::submit(core, function, invocation(core, message, request, origin))?;
    let gone = || Err(Problem::new(Code::ShuttingDown, "the node stops"));
    Ok(outcome.await.unwrap_or_else(|_| gone()))
}

/// The delivery as an invocation.
fn invocation(
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
fn request(function: &Function, message: &MessageRecord) -> Result<Request, Problem> {
    let stored = &message.request;
    let body = Bytes::copy_from_slice(&stored.body);
    match function.current().world() {
        World::Function => Ok(Request::Bytes(body)),
        World::Http => {
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
