//! What a session's home reads and writes in the external store while it is closed there, and how it is opened.

use std::time::Duration;

use bytes::Bytes;
use fulmar_model::{Code, Epoch, ExecutionModel, Group, Problem, Version};
use fulmar_state::external::{CLOSED, Change, Closed, External, Kept, Outcome};

use super::{after, back, of, problem, there};
use crate::core::Core;
use crate::execute::storage_failed;
use crate::{clock, custody};

/// Attempts to write what others keep writing.
pub(crate) const MAX_CONFLICTS: u32 = 100;
/// Longest wait for the object store by what holds a session up.
const KNOWN: Duration = Duration::from_secs(2);

/// Keys with their values; none: deleted.
pub(crate) type Writes = Vec<(String, Option<Bytes>)>;

pub(crate) fn opening() -> Writes {
    vec![(CLOSED.to_owned(), None)]
}

pub(crate) fn closing(stay: u64, epoch: Epoch) -> Writes {
    vec![(CLOSED.to_owned(), Some(Closed { stay, epoch }.value()))]
}

pub(crate) async fn load(core: &Core, store: &External, group: &Group) -> Result<Kept, Problem> {
    there(core, 0).await;
    let kept = store.load(group).await;
    let kept = kept.map_err(|error| problem(&error))?;
    let entries = kept.entries.iter();
    let bytes = entries.map(|(key, value)| key.len() + value.len());
    back(core, bytes.sum()).await;
    Ok(kept)
}

/// Writes to the store; none if the session has another version there.
pub(crate) async fn write(
    core: &Core,
    store: &External,
    group: &Group,
    base: Version,
    writes: &Writes,
) -> Result<Option<Version>, Problem> {
    there(core, bytes_of(writes)).await;
    let change = Change {
        group,
        base,
        next: after(base),
        writes,
        messages: &[],
        answers: &[],
        now_unix_ms: clock::unix_ms(),
    };
    let outcome = store.commit(&change).await;
    back(core, 0).await;
    match outcome.map_err(|error| problem(&error))? {
        Outcome::Committed(version) => Ok(Some(version)),
        Outcome::Conflict | Outcome::Replay(_) => Ok(None),
    }
}

pub(crate) fn bytes_of(writes: &Writes) -> usize {
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
    let store = of(core).await?;
    for _ in 0..MAX_CONFLICTS {
        let kept = load(core, store, group).await?;
        if kept.version == Version(0) {
            return Err(lost(group));
        }
        if let Some(closed) = kept.closed {
            check(group, &closed, stay, epoch)?;
            known_to_takers(core, group).await?;
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
pub(crate) fn check(
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

pub(crate) fn lost(group: &Group) -> Problem {
    let detail = format!("the external store does not have {group}, which was put there");
    Problem::new(Code::ExternalStoreUnreachable, detail)
}

pub(crate) fn contended(group: &Group) -> Problem {
    let detail = format!("other nodes keep changing {group} in the external store");
    Problem::new(Code::QueueFull, detail)
}

/// Waits, not for long, until whoever may take over the session finds the note that it is in the store.
async fn known_to_takers(core: &Core, group: &Group) -> Result<(), Problem> {
    let last = core.store.commits().submitted();
    let known = tokio::time::timeout(KNOWN, custody::safe(core, &group.function, last)).await;
    match known {
        Ok(known) => known.map_err(|failure| storage_failed(&failure)),
        Err(_) => {
            let detail = "the object store has not taken what the node has committed";
            Err(Problem::new(Code::ObjectStoreUnreachable, detail))
        }
    }
}
