//! What is known of messages that were delivered, and for how long that has to be known.
//!
//! Whoever takes over from this node knows of it what is copied. A message may be sent again as long as that, or this node
//! itself, has it; so what says that it was delivered goes last, once whoever might send it again has heard that
//! it is gone. And a message that was delivered on this node is kept until that is copied: whoever takes over the receiver, but
//! not the sender, may not know of the delivery.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fulmar_model::{Code, Group, Problem};
use fulmar_state::record::{Address, IdempotencyRecord, MessageRecord};
use fulmar_state::{Bookkeeping, Cause, Store, Table, key};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use super::{Lane, MessageKey, Posted, adopted, external};
use crate::core::Core;
use crate::execute::storage_failed;
use crate::{custody, route};

/// Messages whose records go with one commit.
const AT_ONCE: usize = 1000;

/// Something that is to be done once all that is committed by now is copied.
struct Due {
    /// The log that this has to be copied to: what an earlier one does not have may not have happened.
    stream: u64,
    key: MessageKey,
    what: What,
}

enum What {
    /// The message was delivered here and is kept: it goes, and then its receipt.
    Delivered { receipt: Vec<u8> },
    /// The message is deleted, and nobody will send it again.
    Deleted { receipt: Option<Vec<u8>> },
    /// The same, and its receipt is in the external store.
    DeletedInStore { group: Group, receipt: String },
}

/// Messages that were delivered here and are kept.
#[derive(Default)]
struct Kept {
    lanes: HashMap<MessageKey, Lane>,
    /// How many of each lane.
    counts: HashMap<Lane, usize>,
}

impl Kept {
    fn insert(&mut self, key: MessageKey, lane: Lane) {
        if self.lanes.insert(key, lane.clone()).is_none() {
            *self.counts.entry(lane).or_default() += 1;
        }
    }

    fn remove(&mut self, key: &MessageKey) {
        if let Some(lane) = self.lanes.remove(key)
            && let Entry::Occupied(mut count) = self.counts.entry(lane)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What is known of messages of this node that were sent.
pub(super) struct Settled {
    /// Messages that may be sent again: the lowest tells other nodes what they may forget.
    unsettled: Mutex<BTreeSet<MessageKey>>,
    kept: Mutex<Kept>,
    due: UnboundedSender<Due>,
    queue: Mutex<Option<UnboundedReceiver<Due>>>,
    /// Whether what an earlier run of the node has deleted is copied.
    is_copied: AtomicBool,
}

impl Settled {
    pub(super) fn new() -> Self {
        let (due, queue) = unbounded_channel();
        Self {
            unsettled: Mutex::default(),
            kept: Mutex::default(),
            due,
            queue: Mutex::new(Some(queue)),
            is_copied: AtomicBool::new(false),
        }
    }

    /// A message of this node waits for its delivery.
    pub(super) fn sent(&self, key: MessageKey) {
        self.unsettled.lock().insert(key);
    }

    /// Whether a message that a session has sent to any was delivered, but may have to be delivered again.
    pub(super) fn keeps_of(&self, sender: &Address) -> bool {
        let kept = self.kept.lock();
        let mut lanes = kept.counts.keys();
        lanes.any(|lane| lane.from.as_ref() == Some(sender))
    }

    /// The same of a message whose place in its lane counts.
    pub(super) fn keeps_before(&self, message: &MessageRecord) -> bool {
        let lane = Lane::of(message);
        lane.from.is_some() && self.kept.lock().counts.contains_key(&lane)
    }
}

/// What says that a message was delivered on its sender's own node, until nobody sends it again.
#[derive(Clone)]
pub(crate) struct AtHome {
    /// Its key. Whoever takes over the sender, but not the receiver, from this node may not know of the delivery, and sends
    /// the message again.
    pub(crate) receipt: Vec<u8>,
    /// Whether the message itself is kept. Whoever takes over the receiver, but not the sender, may not know of the delivery,
    /// and this node sends it again.
    pub(crate) is_kept: bool,
}

/// A message as it is handed in to its receiver.
pub(crate) struct HandedIn {
    pub(crate) posted: Posted,
    pub(crate) record: MessageRecord,
    /// None if nobody needs to know.
    pub(crate) at_home: Option<AtHome>,
}

/// None if nobody needs to know.
pub(super) fn at_home(core: &Core, posted: &Posted, message: &MessageRecord) -> Option<AtHome> {
    // What nobody has sent goes with its receiver.
    let (Some(_), Some(from), None) = (&message.to.session, &message.from, &posted.origin) else {
        return None;
    };
    let is_sent_again = custody::is_copied_first(core, &from.function);
    let is_kept = custody::is_copied_first(core, &message.to.function);
    (is_sent_again || is_kept).then_some(AtHome {
        receipt: receipt_key(core, posted, message)?,
        is_kept,
    })
}

fn receipt_key(core: &Core, posted: &Posted, message: &MessageRecord) -> Option<Vec<u8>> {
    let group = route::group(&message.to.function, message.to.session.as_ref()?);
    Some([&key::deliveries(&group, &core.instance)[..], &posted.key].concat())
}

/// What says that a message of this node was delivered to a session that is here now: when it was elsewhere, or before a
/// restart. Its sender may not have heard of that before the session came.
pub(crate) fn receipt(
    core: &Core,
    message: &HandedIn,
) -> Result<Option<(Vec<u8>, IdempotencyRecord)>, Problem> {
    let HandedIn { posted, record, .. } = message;
    if core.cluster.is_none() || posted.origin.is_some() {
        return Ok(None);
    }
    let Some(receipt) = receipt_key(core, posted, record) else {
        return Ok(None);
    };
    let found = core
        .store
        .record::<IdempotencyRecord>(Table::Idempotency, &receipt);
    let found = found.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(found.map(|record| (receipt, record)))
}

/// Forgets a message that was delivered before, and what says so, unless that has to wait: then whoever brings it
/// ([`delivered`]) sees to it.
pub(crate) fn settle(
    core: &Core,
    message: &HandedIn,
    (receipt, found): (Vec<u8>, IdempotencyRecord),
) -> Result<(), Problem> {
    let HandedIn {
        posted,
        record,
        at_home,
    } = message;
    if at_home.as_ref().is_some_and(|at_home| at_home.is_kept) {
        return Ok(());
    }
    let reply = record.invocation.is_some().then_some(found.reply);
    let mut bookkeeping = adopted::finished(core, posted, record, reply);
    if at_home.is_none() {
        bookkeeping.delete(Table::Idempotency, &receipt);
    }
    let committed = core.store.commit_bookkeeping(bookkeeping, Box::new(|_| {}));
    committed
        .map(|_| ())
        .map_err(|failure| storage_failed(&failure))
}

/// The log that this node's commits are copied to now; 0: none.
pub(super) fn stream(core: &Core) -> u64 {
    let changelog = core.store.changelog();
    changelog.map_or(0, |changelog| changelog.standing().stream)
}

/// A message was delivered to a session at home here, whose node had that log when it was brought.
pub(super) fn delivered(
    core: &Core,
    posted: &Posted,
    message: &MessageRecord,
    stream: u64,
    at_home: AtHome,
) {
    let settled = &core.courier.settled;
    let receipt = at_home.receipt;
    let what = match at_home.is_kept {
        true => {
            settled.kept.lock().insert(posted.key, Lane::of(message));
            What::Delivered { receipt }
        }
        false => What::Deleted {
            receipt: Some(receipt),
        },
    };
    later(core, stream, posted.key, what);
}

/// A message of this node was delivered to a session in the external store, and is deleted here, by a commit to that log or
/// a later one.
pub(super) fn delivered_in_store(
    core: &Core,
    key: MessageKey,
    stream: u64,
    (group, receipt): (Group, String),
) {
    let what = What::DeletedInStore { group, receipt };
    later(core, stream, key, what);
}

/// A message of this node is deleted, unless it is kept for some more time: it will not be sent again.
pub(super) fn deleted(core: &Core, posted: &Posted) {
    let settled = &core.courier.settled;
    if core.cluster.is_none() || settled.kept.lock().lanes.contains_key(&posted.key) {
        return;
    }
    let what = What::Deleted { receipt: None };
    later(core, stream(core), posted.key, what);
}

fn later(core: &Core, stream: u64, key: MessageKey, what: What) {
    // Who listens stops with the node.
    let _ = core.courier.settled.due.send(Due { stream, key, what });
}

/// Before every message's key.
pub(super) const NONE: MessageKey = [0; 12];

/// Which messages of this node will not be sent again, whoever sends them; for one that may leave.
pub(super) fn settled_keys(core: &Core, key: MessageKey) -> Range<MessageKey> {
    let settled = &core.courier.settled;
    if !settled.is_copied.load(Ordering::Acquire) {
        return NONE..NONE;
    }
    let from = match core.store.changelog().map(|log| log.standing()) {
        // Of those from before another node took over some may be that node's now.
        Some(standing) if standing.stream > 1 => key::message(standing.since, u32::MAX),
        _ => NONE,
    };
    let unsettled = settled.unsettled.lock();
    from..unsettled.first().copied().unwrap_or(key)
}

/// Does what is due once it may be done, until stopped.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let settled = &core.courier.settled;
    let Some(queue) = settled.queue.lock().take() else {
        return;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work(&core, queue) => {}
    }
}

async fn work(core: &Arc<Core>, mut queue: UnboundedReceiver<Due>) {
    let settled = &core.courier.settled;
    copied(&core.store).await;
    settled.is_copied.store(true, Ordering::Release);
    // Of messages that are deleted, which may not be copied yet.
    let mut rest = Vec::new();
    loop {
        let mut batch = std::mem::take(&mut rest);
        if batch.is_empty() && queue.recv_many(&mut batch, AT_ONCE).await == 0 {
            return;
        }
        while batch.len() < AT_ONCE
            && let Ok(due) = queue.try_recv()
        {
            batch.push(due);
        }
        copied(&core.store).await;
        let stream = stream(core);
        let mut bookkeeping = Bookkeeping::default();
        let (mut gone, mut again) = (Vec::new(), Vec::new());
        let mut in_store: HashMap<Group, Vec<String>> = HashMap::new();
        for Due {
            stream: before,
            key,
            what,
        } in batch
        {
            let is_copied = before == stream;
            match what {
                What::Delivered { receipt } if is_copied => {
                    bookkeeping.delete(Table::Messages, &key);
                    let receipt = Some(receipt);
                    gone.push((key, receipt));
                }
                // Whoever has taken the receiver over may not know of it.
                What::Delivered { .. } => again.push(key),
                What::Deleted { receipt } => {
                    settled.unsettled.lock().remove(&key);
                    if let Some(receipt) = receipt.filter(|_| is_copied) {
                        bookkeeping.delete(Table::Idempotency, &receipt);
                    }
                }
                What::DeletedInStore { group, receipt } if is_copied => {
                    in_store.entry(group).or_default().push(receipt);
                }
                What::DeletedInStore { .. } => {}
            }
        }
        for (group, receipts) in in_store {
            let core = core.clone();
            tokio::spawn(async move { external::forget(&core, &group, &receipts).await });
        }
        if !bookkeeping.is_empty()
            && core
                .store
                .commit_bookkeeping(bookkeeping, Box::new(|_| {}))
                .is_err()
        {
            // The next start finds all of it.
            return;
        }
        // In their order, before those that were sent after them.
        for key in again.into_iter().rev() {
            bring_again(core, key);
        }
        for (key, receipt) in gone {
            settled.kept.lock().remove(&key);
            let what = What::Deleted { receipt };
            rest.push(Due { stream, key, what });
        }
        core.courier.emptied.notify_waiters();
    }
}

/// Puts a message that was delivered, and is kept, back to where it waited.
fn bring_again(core: &Arc<Core>, key: MessageKey) {
    let posted = Posted { origin: None, key };
    let stored = core.store.record::<MessageRecord>(Table::Messages, &key);
    core.courier.settled.kept.lock().remove(&key);
    match stored {
        Ok(Some(message)) => core.courier.bring_again(core, posted, message),
        // It is another node's by now.
        Ok(None) => deleted(core, &posted),
        Err(error) => {
            tracing::error!(%error, "a message cannot be read; it stays in the data store");
        }
    }
}

/// Waits until whoever may take over from this node knows all that is committed here by now; however often others
/// take over before.
async fn copied(store: &Store) {
    let last = store.commits().submitted();
    while let Err(failure) = store.safe(last).await {
        match (failure.cause, store.changelog()) {
            (Cause::ObjectStore | Cause::Fenced, Some(changelog)) => changelog.ready().await,
            // Nothing is written any more.
            _ => std::future::pending().await,
        }
    }
}
