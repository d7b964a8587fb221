//! Delivery of messages: exactly once, in order per sending and receiving session.
//!
//! A message is stored with its sender's commit and deleted with its receiver's, so that it is
//! delivered once whatever happens in between. Between the two this module drives it: messages with
//! the same sending and receiving session share a lane that delivers one at a time; the others share
//! a lane per receiver that delivers several at once. Delivery need not wait until the sender's
//! commit is durable: the receiver's commit comes later in the order of commits, and so does
//! everything that is released because of it. [`deliver`] is one attempt; the others say how it goes to other nodes,
//! with what was taken over from them, and to and from the external store.

mod across;
mod adopted;
mod deliver;
mod external;
mod settled;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deliver::{Delivery, deliver};
use fulmar_model::Group;
use fulmar_state::record::{Address, MessageRecord, Record};
use fulmar_state::{StoreError, Table, Ticket};
use parking_lot::Mutex;
use settled::Settled;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::core::Core;
use crate::functions::Function;

/// Deliveries at once of a lane without order.
const UNORDERED_WIDTH: usize = 64;
/// The same to a function that takes them in batches.
const BATCHED_WIDTH: usize = 256;
/// Waiting messages held in memory, in bytes; of those beyond only the key is held.
const HELD_BYTES: usize = 32 << 20;

pub(crate) use across::receive;
pub(crate) use adopted::{disown, forget_attempts, owner};
pub(crate) use external::{answer_at_home, answer_in_store, collect, fetch, take_up};
pub(crate) use settled::{HandedIn, receipt, run as settle_what_is_copied, settle};

/// A message's key: the commit that sent it and its place there.
pub(crate) type MessageKey = [u8; 12];

/// The commit that sent a message.
pub(crate) fn commit_of(key: &MessageKey) -> Ticket {
    let [a, b, c, d, e, f, g, h, ..] = *key;
    Ticket(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

/// Which message it is: its key, and the data directory that it was sent from, if that is not this one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

    fn width(&self, core: &Core) -> usize {
        if self.from.is_some() {
            return 1;
        }
        let function = core.functions.get(self.to.function.as_str());
        let is_batched = |function: Arc<Function>| function.current().manifest.batch.max > 1;
        match function.is_some_and(is_batched) {
            true => BATCHED_WIDTH,
            false => UNORDERED_WIDTH,
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
    settled: Settled,
    lanes: Mutex<HashMap<Lane, LaneState>>,
    /// Messages of other nodes and of the external store that are in lanes, or being delivered.
    adopted: Mutex<HashSet<Posted>>,
    /// Hears when a lane has become empty, or what was delivered is copied.
    emptied: Notify,
    /// Kept locked by whoever writes a stored message again, or deletes what is another node's.
    changing: Mutex<()>,
    /// Bounds the deliveries of the node.
    deliveries: Arc<Semaphore>,
    held_bytes: AtomicUsize,
}

impl Courier {
    pub(crate) fn new(max_deliveries: usize) -> Self {
        Self {
            settled: Settled::new(),
            lanes: Mutex::default(),
            adopted: Mutex::default(),
            emptied: Notify::new(),
            changing: Mutex::default(),
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

    /// Takes over a message of another node that is stored here now, if it was not taken over before.
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
        match posted.origin {
            Some(_) if !self.adopted.lock().insert(posted.clone()) => return None,
            None if core.cluster.is_some() => self.settled.sent(posted.key),
            _ => {}
        }
        core.metrics.messages_pending.inc();
        let lane = Lane::of(&message);
        let bytes = message.request.body.len();
        let held = self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        let message = if held > HELD_BYTES {
            self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
            None
        } else {
            Some(Box::new(message))
        };
        let width = lane.width(core);
        let mut lanes = self.lanes.lock();
        let state = lanes.entry(lane.clone()).or_default();
        state.waiting.push_back(Waiting { posted, message });
        let is_short = state.running < width && !core.stopping.is_cancelled();
        state.running += usize::from(is_short);
        drop(lanes);
        is_short.then_some(lane)
    }

    /// Delivers a message again that seemed to be delivered.
    fn bring_again(&self, core: &Arc<Core>, posted: Posted, message: MessageRecord) {
        core.metrics.messages_pending.inc();
        let lane = Lane::of(&message);
        let message = Some(Box::new(message));
        let is_idle = self.put_back(&lane, Waiting { posted, message }, |state| {
            let is_idle = state.running == 0;
            state.running += usize::from(is_idle);
            is_idle
        });
        if is_idle {
            tokio::spawn(run_lane(core.clone(), lane));
        }
    }

    /// Puts a message back to before those of its lane that were sent after it.
    fn put_back<R>(
        &self,
        lane: &Lane,
        waiting: Waiting,
        then: impl FnOnce(&mut LaneState) -> R,
    ) -> R {
        let bytes = waiting.message.as_ref();
        let bytes = bytes.map_or(0, |message| message.request.body.len());
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut lanes = self.lanes.lock();
        let state = lanes.entry(lane.clone()).or_default();
        let is_later = |other: &Waiting| {
            other.posted.origin.is_none() && other.posted.key > waiting.posted.key
        };
        let at = match waiting.posted.origin {
            None => state.waiting.iter().position(is_later),
            // What came from elsewhere was sent before.
            Some(_) => Some(0),
        };
        let at = at.unwrap_or(state.waiting.len());
        state.waiting.insert(at, waiting);
        then(state)
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

    /// Waits until all that a session has sent to other sessions is delivered, for good.
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
            if !waits && !self.settled.keeps_of(&sender) {
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
                Delivery::Settled => ended(&core, posted),
                Delivery::Stopped => return,
                // In order: those behind it wait until it is delivered or parked.
                Delivery::Again(message, pause) if lane.from.is_some() => {
                    let message = Some(message);
                    let waiting = Waiting { posted, message };
                    core.courier.put_back(&lane, waiting, |_| ());
                    tokio::select! {
                        () = core.stopping.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
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
                ended(core, posted.clone());
                return true;
            }
            Delivery::Stopped => return false,
            Delivery::Again(again, next_pause) => (message, pause) = (again, next_pause),
        }
    }
}

/// A message is delivered or parked, or is another node's.
fn ended(core: &Arc<Core>, posted: Posted) {
    if posted.origin.is_none() {
        return settled::deleted(core, &posted);
    }
    core.courier.adopted.lock().remove(&posted);
    // It may have been stored again, and not been taken over again since it was still known.
    let stored = core
        .store
        .record::<MessageRecord>(posted.table(), &posted.stored_key());
    match stored {
        Ok(None) => {}
        Ok(Some(message)) => core.courier.adopt(core, posted, message),
        Err(error) => {
            tracing::error!(%error, "a message cannot be read; it stays in the data store");
        }
    }
}
