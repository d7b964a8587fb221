//! Messages from and to sessions in the external store.
//!
//! Sent: a commit leaves them in the store, in the sender's record. A node takes them over into its local data store and
//! delivers them from there, like those of a node that was taken over from; they go from the store when they are
//! delivered, so that whoever sends the next ones finds those before, and the receiver gets each once, in order,
//! whichever nodes try. A receiver without a session cannot tell what it has got before: such messages are only
//! delivered by the node that ran the sender, and go from the store first.
//!
//! Received: the receiver's commit notes in the store that a message was delivered, until its sender has forgotten it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_model::{Code, Epoch, Group, Problem, SessionName, Version};
use fulmar_state::external::{MessageId, Unsent};
use fulmar_state::record::MessageRecord;
use fulmar_state::{Bookkeeping, StoreError, Table, Ticket, key};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::deliver::{invocation, may_leave, request};
use super::{MessageKey, Posted, adopted, settled};
use crate::core::Core;
use crate::functions::Function;
use crate::invocation::{Origin, Receipt, StateFrom};
use crate::{clock, execute, external, route};

/// Pause between two looks for messages that nobody delivers.
const LOOK: Duration = Duration::from_secs(5);
/// Sessions with such messages that one look takes.
const AT_ONCE: usize = 256;
/// Pause between two rounds of deleting what has expired.
const TIDY: Duration = Duration::from_secs(3600);
/// Begins the origin of messages that were sent from the store; no data directory is called so.
const ORIGIN: &str = "external/";

/// The session in the external store that a message was sent from, and which message of it it is.
fn sender(posted: &Posted, message: &MessageRecord) -> Option<(Group, MessageId)> {
    if !is_from_store(posted) {
        return None;
    }
    let from = message.from.as_ref()?;
    let group = Group {
        function: from.function.clone(),
        session: from.session.clone()?,
    };
    let (version, index) = posted.key.split_first_chunk::<8>()?;
    let id = MessageId {
        version: Version(u64::from_be_bytes(*version)),
        index: u32::from_be_bytes(index.try_into().ok()?),
    };
    Some((group, id))
}

/// Whether a message was sent by a session in the external store.
pub(super) fn is_from_store(posted: &Posted) -> bool {
    let origin = posted.origin.as_ref();
    origin.is_some_and(|origin| origin.starts_with(ORIGIN))
}

fn posted(group: &Group, id: MessageId) -> Posted {
    let key: MessageKey = key::message(Ticket(id.version.0), id.index);
    Posted::adopted(&format!("{ORIGIN}{group}"), key)
}

/// Takes up what a session has sent, soon.
pub(crate) fn fetch(core: &Arc<Core>, group: &Group) {
    let (core, group) = (core.clone(), group.clone());
    tokio::spawn(async move {
        if let Err(problem) = take_up(&core, &group).await {
            tracing::debug!(%group, %problem, "its messages stay in the external store for now");
        }
    });
}

/// Takes up what nobody delivers, until stopped.
pub(crate) async fn collect(core: Arc<Core>, stop: CancellationToken) {
    let mut tidy_due = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let uses_it = |function: &Arc<Function>| function.current().is_external();
        let was_used = core.external.as_ref().is_some_and(|store| store.is_ready());
        if !was_used && !core.functions.all().iter().any(uses_it) {
            continue;
        }
        if let Err(problem) = look(&core, Instant::now() >= tidy_due).await {
            tracing::warn!(%problem, "the external store is not looked through at this moment");
        } else if Instant::now() >= tidy_due {
            tidy_due = Instant::now() + TIDY;
        }
    }
}

async fn look(core: &Arc<Core>, is_tidy_due: bool) -> Result<(), Problem> {
    let store = external::of(core).await?;
    let unsent = store.unsent(AT_ONCE).await;
    for group in unsent.map_err(|error| external::problem(&error))? {
        if let Err(problem) = take_up(core, &group).await {
            tracing::warn!(%group, %problem, "its messages stay in the external store for now");
        }
    }
    if is_tidy_due {
        let tidied = store.tidy(clock::unix_ms()).await;
        tidied.map_err(|error| external::problem(&error))?;
    }
    Ok(())
}

/// Stores a session's messages here, to be delivered from here.
pub(crate) async fn take_up(core: &Arc<Core>, group: &Group) -> Result<(), Problem> {
    let Some(external) = &core.external else {
        return Err(external::missing());
    };
    let store = external::of(core).await?;
    let _alone = external.taking(group).lock().await;
    let messages = store.messages(group).await;
    let messages = messages.map_err(|error| external::problem(&error))?;
    if messages.is_empty() {
        // What says that there are some may have been left behind.
        let taken = store.taken(group, &[]).await;
        return taken.map_err(|error| external::problem(&error));
    }
    let mut bookkeeping = Bookkeeping::default();
    let mut new = Vec::new();
    for (id, Unsent { by, message }) in messages {
        let posted = posted(group, id);
        if message.to.session.is_none() && by != core.instance {
            continue;
        }
        let stored_key = posted.stored_key();
        let stored = core
            .store
            .record::<MessageRecord>(Table::Adopted, &stored_key);
        let internal = |error: StoreError| Problem::new(Code::Internal, error.to_string());
        if stored.map_err(internal)?.is_none() {
            bookkeeping.put(Table::Adopted, &stored_key, &message);
            new.push((posted, message));
        }
    }
    let stored = core.store.commit_durably(bookkeeping).await;
    stored.map_err(|failure| execute::storage_failed(&failure))?;
    for (posted, message) in new {
        core.courier.adopt(core, posted, message);
    }
    Ok(())
}

/// Makes sure that nobody takes up a message again which its receiver could not tell from a new one.
pub(super) async fn claim(
    core: &Core,
    posted: &Posted,
    message: &MessageRecord,
) -> Result<(), Problem> {
    match sender(posted, message) {
        Some((group, id)) if message.to.session.is_none() => remove(core, &group, id).await,
        _ => Ok(()),
    }
}

/// A message is delivered, or was given up: it need not be in the store any more. If it stays there it is delivered
/// again, which its receiver sees.
pub(super) fn settled(core: &Arc<Core>, posted: &Posted, message: &MessageRecord) {
    let Some((group, id)) = sender(posted, message) else {
        return;
    };
    let core = core.clone();
    tokio::spawn(async move {
        if let Err(problem) = remove(&core, &group, id).await {
            tracing::debug!(%group, %problem, "a delivered message stays in the external store for now");
        }
    });
}

async fn remove(core: &Core, group: &Group, id: MessageId) -> Result<(), Problem> {
    let Some(external) = &core.external else {
        return Err(external::missing());
    };
    let store = external::of(core).await?;
    let _alone = external.taking(group).lock().await;
    let taken = store.taken(group, &[id]).await;
    taken.map_err(|error| external::problem(&error))
}

/// Delivers a message to a session in the external store, here: any node can.
pub(super) async fn hand_in(
    core: &Arc<Core>,
    function: &Arc<Function>,
    session: &SessionName,
    posted: &Posted,
    message: &MessageRecord,
) -> Result<Result<(), Problem>, execute::QueueFull> {
    let request = match request(function, message) {
        Ok(request) => request,
        Err(problem) => return Ok(Err(problem)),
    };
    if let Err(failure) = may_leave(core, posted, message).await {
        return Ok(Err(execute::storage_failed(&failure)));
    }
    let origin = posted.origin.as_deref().unwrap_or(&core.instance);
    let receipt = receipt(origin, &posted.key);
    let (done, outcome) = oneshot::channel();
    let origin = Origin::Delivery {
        receipt: Box::new(Receipt {
            key: receipt.clone().into_bytes(),
            settled: Vec::new(),
            wants_reply: message.invocation.is_some(),
            under: Epoch(0),
        }),
        done,
    };
    let mut delivery = invocation(core, message, request, origin);
    delivery.state = StateFrom::Store;
    execute::submit(core, function, delivery)?;
    let reply = match outcome.await {
        Ok(Ok(reply)) => reply,
        Ok(Err(problem)) => return Ok(Err(problem)),
        Err(_) => {
            let gone = Problem::new(Code::ShuttingDown, "the node stops");
            return Ok(Err(gone));
        }
    };
    let stream = settled::stream(core);
    if let Err(problem) = adopted::finish(core, posted, message, reply).await {
        return Ok(Err(problem));
    }
    if posted.origin.is_none() {
        let group = route::group(&function.name, session);
        settled::delivered_in_store(core, posted.key, stream, (group, receipt));
    }
    Ok(Ok(()))
}

/// Forgets that messages were delivered, which nobody sends again.
pub(super) async fn forget(core: &Core, group: &Group, receipts: &[String]) {
    let Ok(store) = external::of(core).await else {
        return;
    };
    if let Err(error) = store.forget(group, receipts).await {
        tracing::debug!(%group, %error, "that messages were delivered stays in the external store");
    }
}

/// What says in the store that a message of a data directory was delivered; no client's idempotency key begins so.
fn receipt(instance: &str, key: &MessageKey) -> String {
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\u{1}{instance}\u{1}{key}")
}

fn parse_receipt(name: &str) -> Option<(&str, MessageKey)> {
    let (instance, digits) = name.strip_prefix('\u{1}')?.rsplit_once('\u{1}')?;
    let mut key = MessageKey::default();
    if digits.len() != 2 * key.len() {
        return None;
    }
    for (place, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some((instance, key))
}

/// The name that an answer of a session at home has in the store, by what follows the session in its key there; none if it
/// is no answer.
pub(crate) fn answer_in_store(at_home: &[u8]) -> Option<String> {
    match key::parse_delivery(at_home) {
        Some((instance, key)) => Some(receipt(instance, &key)),
        None if key::is_note(at_home) => None,
        None => String::from_utf8(at_home.to_vec()).ok(),
    }
}

/// The key that it has at home.
pub(crate) fn answer_at_home(group: &Group, in_store: &str) -> Vec<u8> {
    match parse_receipt(in_store) {
        Some((instance, key)) => [&key::deliveries(group, instance)[..], &key].concat(),
        None => {
            let (function, session) = (group.function.as_str(), group.session.as_str());
            key::idempotency(function, Some(session), in_store)
        }
    }
}

#[cfg(test)]
mod tests {
    use fulmar_model::FunctionName;

    use super::*;

    #[test]
    fn what_a_session_has_answered_and_got_keeps_its_name_through_the_store() {
        let group = Group {
            function: FunctionName::new("tracker").unwrap(),
            session: SessionName::new("line-3").unwrap(),
        };
        let prefix = key::session_state(&group);
        let delivered = key::deliveries(&group, "external/f/\u{e4}");
        let delivered = [&delivered[..], &[1, 0, 255, 1, 1, 2, 3, 4, 5, 6, 7, 1]].concat();
        let answered = key::idempotency("tracker", Some("line-3"), "0123456789abcdef01234567");
        for at_home in [delivered, answered] {
            let name = answer_in_store(&at_home[prefix.len()..]).unwrap();
            assert_eq!(answer_at_home(&group, &name), at_home);
        }
        for note in [key::away(&group), key::chosen(&group)] {
            assert_eq!(answer_in_store(&note[prefix.len()..]), None);
        }
    }
}
