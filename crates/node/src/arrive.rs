//! A session comes from another node: its copy is taken, and counts once the directory says so.

use std::collections::HashMap;
use std::sync::Arc;

use fulmar_cluster::directory::FIRST_EPOCH;
use fulmar_cluster::{Entries, StageHead};
use fulmar_model::{Code, Epoch, Group, NodeName, Problem, Version};
use fulmar_state::record::{HomeRecord, SessionRecord};
use fulmar_state::{Bookkeeping, Table, key};
use futures_util::StreamExt;
use parking_lot::Mutex;

use crate::core::Core;
use crate::execute::storage_failed;
use crate::{clock, courier, custody, homes, migrate};

/// Of a copy that does not count yet: what has it in its record is at home nowhere by that. The epoch of the home comes when
/// the directory has said so ([`homes::take_over`]); whoever looks at the records of a session that comes at this moment may
/// see some of them as they were before and some as they are.
const NOT_AT_HOME: Epoch = Epoch(0);
/// Bytes that one commit takes of a copy.
const COMMIT_BYTES: usize = 4 << 20;

/// Sessions that are coming, or going, so that two attempts do not mix.
#[derive(Default)]
pub(crate) struct Moving(Mutex<HashMap<Group, Arc<tokio::sync::Mutex<()>>>>);

impl Moving {
    /// Kept locked by whoever takes a copy or clears one out, or sends one away.
    pub(crate) fn of(&self, group: &Group) -> Arc<tokio::sync::Mutex<()>> {
        let mut moving = self.0.lock();
        moving.retain(|_, session| Arc::strong_count(session) > 1);
        moving.entry(group.clone()).or_default().clone()
    }
}

fn refused(detail: impl Into<String>) -> Problem {
    Problem::new(Code::MigrationFailed, detail)
}

/// Takes a part of a copy; durable when this comes back, if it is the last.
pub(crate) async fn stage(
    core: &Core,
    from: &NodeName,
    head: StageHead,
    entries: Entries,
) -> Result<(), Problem> {
    let arrival = core.arrivals.of(&head.group);
    let _alone = arrival.lock().await;
    take(core, from, head, entries).await
}

/// The same, for whoever keeps the session from arriving otherwise meanwhile.
pub(crate) async fn take(
    core: &Core,
    from: &NodeName,
    head: StageHead,
    mut entries: Entries,
) -> Result<(), Problem> {
    if let Some(refused) = core.refuses_writes() {
        return Err(refused);
    }
    let group = &head.group;
    let mut batch = Bookkeeping::default();
    match head.first {
        true => begin(core, from, &head, &mut batch).await?,
        false => {
            let record = on_its_way(core, group)?;
            if !matches!(record, Some(HomeRecord::Arriving { attempt, .. }) if attempt == head.attempt)
            {
                return Err(refused(format!("no copy of {group} was begun")));
            }
        }
    }
    let prefix = key::session_state(group);
    while let Some(part) = entries.next().await {
        let part = part.map_err(|error| refused(format!("the copy broke off: {error}")))?;
        for entry in part {
            let path = [&prefix[..], &entry.key].concat();
            match entry.value {
                Some(value) => batch.put_raw(entry.table, &path, &value),
                None => batch.delete_raw(entry.table, &path),
            }
        }
        if batch.bytes() > COMMIT_BYTES {
            let part = std::mem::take(&mut batch);
            let stored = core.store.commit_durably(part).await;
            stored.map_err(|failure| storage_failed(&failure))?;
            if let Some(refused) = core.refuses_writes() {
                return Err(refused);
            }
        }
    }
    if let Some(version) = head.last {
        let record = record_of_copy(version);
        batch.put(Table::Sessions, &key::session(group), &record);
    }
    let is_last = head.last.is_some();
    let stored = core.store.commit_durably(batch).await;
    let ticket = stored.map_err(|failure| storage_failed(&failure))?;
    if is_last {
        // Where it comes from it was safe as well.
        let safe = custody::safe(core, &group.function, ticket).await;
        safe.map_err(|failure| storage_failed(&failure))?;
    }
    Ok(())
}

/// What a session's record is while its copy does not count.
pub(crate) fn record_of_copy(version: Version) -> SessionRecord {
    SessionRecord {
        version,
        epoch: NOT_AT_HOME,
        updated_unix_ms: clock::unix_ms(),
    }
}

/// An attempt that comes after all that have come before.
pub(crate) fn last_attempt(core: &Core, group: &Group) -> Result<u64, Problem> {
    let next = migrate::next_attempt(core);
    Ok(match on_its_way(core, group)? {
        Some(HomeRecord::Arriving { attempt, .. }) => next.max(attempt + 1),
        _ => next,
    })
}

fn on_its_way(core: &Core, group: &Group) -> Result<Option<HomeRecord>, Problem> {
    core.store
        .record::<HomeRecord>(Table::Homes, &key::session(group))
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))
}

/// Makes room for a copy, unless the session is at home here already.
async fn begin(
    core: &Core,
    from: &NodeName,
    head: &StageHead,
    batch: &mut Bookkeeping,
) -> Result<(), Problem> {
    let group = &head.group;
    let at_home = || refused(format!("{group} is at home here already"));
    let stored = core
        .store
        .session_record(group)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    match on_its_way(core, group)? {
        Some(HomeRecord::Leaving { .. } | HomeRecord::Doubted { .. }) => return Err(at_home()),
        Some(HomeRecord::Arriving { epoch, attempt, .. })
            if (head.epoch, head.attempt) <= (epoch, attempt) =>
        {
            return Err(refused(format!("a newer copy of {group} has come before")));
        }
        Some(HomeRecord::Arriving { .. }) => {
            // An earlier attempt: it may have come to its end without this node's hearing of it.
            let cluster = core.cluster.as_ref();
            let cluster = cluster.ok_or_else(|| refused("this node is alone"))?;
            let found = cluster.directory().find(group, None).await;
            match found.map_err(|error| homes::unknown(&error))? {
                Some(home) if home.node == *cluster.name() => {
                    homes::take_over(core, group, home.epoch).await?;
                    return Err(at_home());
                }
                _ => clear(core, group).await?,
            }
        }
        None => match stored {
            None => clear(core, group).await?,
            Some(stored) if stored.epoch >= head.epoch => return Err(at_home()),
            Some(stored) if stored.epoch < FIRST_EPOCH => {
                let detail = format!("there is another {group} here, from when the node was alone");
                return Err(refused(detail));
            }
            // What is left of a session that has gone would be on its way.
            Some(_) => {
                let detail =
                    format!("{group} was taken over from this node, which does not know that yet");
                return Err(refused(detail));
            }
        },
    }
    let arriving = HomeRecord::Arriving {
        from: from.clone(),
        epoch: head.epoch,
        attempt: head.attempt,
    };
    batch.put(Table::Homes, &key::session(group), &arriving);
    Ok(())
}

/// Deletes what is left of earlier attempts, and their messages before what says that they are nobody's.
async fn clear(core: &Core, group: &Group) -> Result<(), Problem> {
    courier::forget_attempts(core, group).await?;
    homes::purge(core, group).await
}

/// Hears whether the session has come.
pub(crate) async fn settle(core: &Core, group: &Group, epoch: Epoch, attempt: u64, arrived: bool) {
    let arrival = core.arrivals.of(group);
    let _alone = arrival.lock().await;
    let settled = async {
        let is_this = match on_its_way(core, group)? {
            Some(HomeRecord::Arriving { attempt: begun, .. }) => begun == attempt,
            _ => false,
        };
        match (is_this, arrived) {
            (false, _) => Ok(()),
            (true, true) => homes::take_over(core, group, epoch).await,
            (true, false) => homes::purge(core, group).await,
        }
    };
    if let Err(problem) = settled.await {
        tracing::warn!(%group, %problem, "what became of a session that was to come is found out later");
    }
    if arrived && let Some(cluster) = &core.cluster {
        cluster.directory().unlearn(group);
    }
}
