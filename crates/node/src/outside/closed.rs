//! What a session's home reads and writes in the external store while it is closed there, and how it is opened.

use bytes::Bytes;
use fulmar_model::{Code, Epoch, ExecutionModel, Group, Problem, Version};
use fulmar_state::external::{CLOSED, Change, Closed, External, Kept, Outcome};

use super::MAX_CONFLICTS;
use crate::core::Core;
use crate::execute::lender::after;
use crate::{clock, custody, external};

/// Keys with their values; none: deleted.
pub(super) type Writes = Vec<(String, Option<Bytes>)>;

pub(super) fn opening() -> Writes {
    vec![(CLOSED.to_owned(), None)]
}

pub(super) fn closing(stay: u64, epoch: Epoch) -> Writes {
    vec![(CLOSED.to_owned(), Some(Closed { stay, epoch }.value()))]
}

pub(super) async fn load(core: &Core, store: &External, group: &Group) -> Result<Kept, Problem> {
    external::there(core, 0).await;
    let kept = store.load(group).await;
    let kept = kept.map_err(|error| external::problem(&error))?;
    let entries = kept.entries.iter();
    let bytes = entries.map(|(key, value)| key.len() + value.len());
    external::back(core, bytes.sum()).await;
    Ok(kept)
}

/// Writes to the store; none if the session has another version there.
pub(super) async fn write(
    core: &Core,
    store: &External,
    group: &Group,
    base: Version,
    writes: &Writes,
) -> Result<Option<Version>, Problem> {
    external::there(core, bytes_of(writes)).await;
    let change = Change {
        group,
        base,
        next: after(base),
        writes,
        messages: &[],
        idempotency: None,
        now_unix_ms: clock::unix_ms(),
    };
    let outcome = store.commit(&change).await;
    external::back(core, 0).await;
    match outcome.map_err(|error| external::problem(&error))? {
        Outcome::Committed(version) => Ok(Some(version)),
        Outcome::Conflict | Outcome::Replay(_) => Ok(None),
    }
}

pub(super) fn bytes_of(writes: &Writes) -> usize {
    let sizes = writes
        .iter()
        .map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len));
    sizes.sum()
}

/// Makes sure, in a session's turn, that what its home, under this epoch, has put into the store can be used, and remembers
/// that it is there.
///
/// # Errors
/// When the store cannot be asked, or has lost it; `session-moved` if another node has become its home.
pub(crate) async fn open(
    core: &Core,
    group: &Group,
    stay: u64,
    epoch: Epoch,
) -> Result<(), Problem> {
    let store = external::of(core).await?;
    for _ in 0..MAX_CONFLICTS {
        let kept = load(core, store, group).await?;
        if kept.version == Version(0) {
            return Err(lost(group));
        }
        if let Some(closed) = kept.closed {
            check(group, &closed, stay, epoch)?;
            // Whoever takes over has to find the note as well, and what was delivered before.
            custody::known_to_takers(core, core.store.commits().submitted()).await?;
            let opened = write(core, store, group, kept.version, &opening()).await?;
            if opened.is_none() {
                continue;
            }
        }
        core.models.learn(group, ExecutionModel::External);
        return Ok(());
    }
    Err(contended(group))
}

/// Whether what is closed in the store is this stay of the session, and not closed by a later home.
pub(super) fn check(
    group: &Group,
    closed: &Closed,
    stay: u64,
    epoch: Epoch,
) -> Result<(), Problem> {
    if closed.stay == stay && closed.epoch <= epoch {
        return Ok(());
    }
    let detail = format!("another node has become home to {group}");
    Err(Problem::new(Code::SessionMoved, detail))
}

pub(super) fn lost(group: &Group) -> Problem {
    let detail = format!("the external store does not have {group}, which was put there");
    Problem::new(Code::ExternalStoreUnreachable, detail)
}

pub(super) fn contended(group: &Group) -> Problem {
    let detail = format!("other nodes keep changing {group} in the external store");
    Problem::new(Code::QueueFull, detail)
}
