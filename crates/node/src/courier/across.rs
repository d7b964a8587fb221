//! Messages between nodes: sent until the receiver's node says that they are delivered, delivered there once.
//!
//! The receiver's commit stores that the message was delivered, and the sender deletes it after that. Every
//! message tells which ones will not be sent again, so that those records can go.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use fulmar_cluster::{Cluster, Delivered, Home};
use fulmar_model::{Code, ExecutionModel, Group, NodeName, Problem};
use fulmar_state::record::{InvocationRecord, InvocationStatus, MessageRecord, StoredReply};
use fulmar_state::{Bookkeeping, Table, key};
use tokio::sync::oneshot;

use super::deliver::{
    Brought, QUEUE_FULL_PAUSE, UNREACHABLE_PAUSE, invocation, is_away, may_leave, request,
};
use super::settled::{NONE, settled_keys};
use super::{Posted, adopted};
use crate::core::Core;
use crate::execute::{self, storage_failed};
use crate::functions::Function;
use crate::invocation::{Origin, Receipt};
use crate::{clock, route};

/// What a delivery to another node may take besides the function's own time.
const SEND_SLACK: Duration = Duration::from_secs(30);
/// Records of settled deliveries that one delivery removes.
const MAX_SETTLED: usize = 1000;

/// Delivers to another node, and deletes the message when that is done; none if the receiver is not there.
pub(super) async fn send(
    core: &Arc<Core>,
    cluster: &Cluster,
    node: &NodeName,
    function: &Function,
    posted: &Posted,
    message: &MessageRecord,
) -> Option<Brought> {
    let group = Group {
        function: message.to.function.clone(),
        session: message.to.session.clone()?,
    };
    if core.courier.settled.keeps_before(message) {
        // What was sent before it was delivered here, and may have to be delivered there.
        return Some(Brought::Later(QUEUE_FULL_PAUSE));
    }
    if let Err(failure) = may_leave(core, posted, message).await {
        return Some(Brought::Failed(storage_failed(&failure)));
    }
    let key = posted.key;
    let (instance, settled) = match &posted.origin {
        None => (&*cluster.info().instance, settled_keys(core, key)),
        // Who knows what its node has told others.
        Some(origin) => (&**origin, NONE..NONE),
    };
    let deadline = function.current().manifest.limits.timeout.get() + SEND_SLACK;
    let home = cluster.directory().cached(&group);
    let home = home.filter(|home| home.node == *node)?;
    let delivered = cluster.deliver(&home, instance, key, settled, message, deadline);
    let delivered = delivered.await;
    match delivered {
        Ok(Delivered::Done(reply)) => {
            Some(match adopted::finish(core, posted, message, reply).await {
                Ok(()) => Brought::Delivered,
                Err(problem) => Brought::Failed(problem),
            })
        }
        Ok(Delivered::Failed(problem)) if problem.code == Code::QueueFull => {
            Some(Brought::Later(QUEUE_FULL_PAUSE))
        }
        Ok(Delivered::Failed(problem)) if is_away(function, &problem) => {
            Some(Brought::Later(UNREACHABLE_PAUSE))
        }
        Ok(Delivered::Failed(problem)) if problem.code == Code::SessionInStore => {
            core.models.learn(&group, ExecutionModel::External);
            None
        }
        Ok(Delivered::Failed(problem)) => match problem.code {
            // The other node's trouble, not the receiver's.
            Code::StorageFailed
            | Code::StorageFull
            | Code::ObjectStoreUnreachable
            | Code::TakenOver
            | Code::ShuttingDown
            | Code::FunctionNotFound
            | Code::ExternalStoreUnreachable
            | Code::HomeUnreachable
            | Code::DirectoryUnreachable => Some(Brought::Later(UNREACHABLE_PAUSE)),
            _ => Some(Brought::Failed(problem)),
        },
        Ok(Delivered::Moved(Some((node, epoch)))) => {
            cluster.directory().learn(&group, Home { node, epoch });
            None
        }
        Ok(Delivered::Moved(None)) => {
            cluster.directory().unlearn(&group);
            None
        }
        Err(error) => {
            tracing::debug!(%error, "a message waits for its receiver's node");
            cluster.directory().unlearn(&group);
            Some(Brought::Later(UNREACHABLE_PAUSE))
        }
    }
}

/// Notes what an asynchronous invocation has answered elsewhere.
pub(super) fn answered(
    bookkeeping: &mut Bookkeeping,
    message: &MessageRecord,
    reply: Option<StoredReply>,
    retention: Duration,
) {
    if let (Some(invocation), Some(reply)) = (&message.invocation, reply) {
        let now = clock::unix_ms();
        let record = InvocationRecord {
            to: message.to.clone(),
            submitted_unix_ms: message.at_unix_ms,
            finished_unix_ms: now,
            status: InvocationStatus::Done(reply),
            expires_unix_ms: now + retention.as_millis() as u64,
        };
        bookkeeping.put(Table::Invocations, invocation.as_bytes(), &record);
    }
}

/// Delivers a message of another node to a session here, once.
pub(crate) async fn receive(core: &Arc<Core>, delivery: fulmar_cluster::Delivery) -> Delivered {
    let message = delivery.message;
    let Some(function) = core.functions.get(message.to.function.as_str()) else {
        let detail = format!("no function {} is deployed", message.to.function);
        return Delivered::Failed(Problem::new(Code::FunctionNotFound, detail));
    };
    let Some(session) = &message.to.session else {
        let detail = "a message without a session is delivered where it is";
        return Delivered::Failed(Problem::new(Code::BadRequest, detail));
    };
    let request = match request(&function, &message) {
        Ok(request) => request,
        Err(problem) => return Delivered::Failed(problem),
    };
    let group = route::group(&function.name, session);
    let prefix = key::deliveries(&group, &delivery.instance);
    let Range { start, end } = delivery.settled;
    let (from, to) = ([&prefix[..], &start].concat(), [&prefix[..], &end].concat());
    let after = (start != NONE).then_some(&from[..]);
    let mut settled = Vec::new();
    let scanned = core
        .store
        .scan(Table::Idempotency, &prefix, after, &mut |key, _| {
            let is_settled = key < &to[..];
            if is_settled {
                settled.push(key.to_vec());
            }
            is_settled && settled.len() < MAX_SETTLED
        });
    if let Err(error) = scanned {
        return Delivered::Failed(Problem::new(Code::Internal, error.to_string()));
    }
    let (done, outcome) = oneshot::channel();
    let origin = Origin::Delivery {
        receipt: Box::new(Receipt {
            key: [&prefix[..], &delivery.key].concat(),
            settled,
            wants_reply: message.invocation.is_some(),
            under: delivery.epoch,
        }),
        done,
    };
    let delivery = invocation(core, &message, request, origin);
    if let Err(execute::QueueFull) = execute::submit(core, &function, delivery) {
        return Delivered::Failed(Problem::new(Code::QueueFull, "the session's queue is full"));
    }
    match outcome.await {
        Ok(Ok(reply)) => Delivered::Done(reply),
        Ok(Err(problem)) if problem.code == Code::SessionMoved => {
            let cluster = core.cluster.as_ref();
            let home = cluster.and_then(|cluster| cluster.directory().cached(&group));
            Delivered::Moved(home.map(|home| (home.node, home.epoch)))
        }
        Ok(Err(problem)) => Delivered::Failed(problem),
        Err(_) => Delivered::Failed(Problem::new(Code::ShuttingDown, "the node stops")),
    }
}
