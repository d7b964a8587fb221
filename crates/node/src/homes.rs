//! Whether a session is at home here, found out by whoever has its turn before its state is loaded.
//!
//! A hot session is at home: whatever takes it away takes its turn first, and its hot state with it. For
//! any other the records tell: of the node itself where they can, of the directory where they cannot.

use std::sync::Arc;

use fulmar_cluster::directory::FIRST_EPOCH;
use fulmar_cluster::{Cluster, DirectoryError, Home};
use fulmar_model::{Code, Epoch, Group, Problem};
use fulmar_state::record::{HomeRecord, SessionRecord};
use fulmar_state::{Bookkeeping, SessionState, Store, StoreError, Table, Ticket, key};

use crate::core::Core;
use crate::courier;
use crate::custody;
use crate::execute::storage_failed;
use crate::external::closed;
use crate::sessions::Session;
use crate::transition::{self, Away};

/// Keys that one commit deletes of a session that has gone.
const PURGED_KEYS: usize = 1000;

/// The state of a session that is at home here, loaded for whoever has its turn.
///
/// # Errors
/// `session-moved` if it is elsewhere; where is in the directory's cache then. `state-with-client` if its client has it;
/// `session-in-store` if the external store has it.
pub(crate) async fn load(core: &Core, group: &Group) -> Result<Arc<SessionState>, Problem> {
    let state = load_copy(core, group).await?;
    let away = transition::away(core, group);
    match away.map_err(|error| Problem::new(Code::Internal, error.to_string()))? {
        None => Ok(state),
        Some(Away::WithClient(_)) => Err(transition::with_client(group)),
        Some(Away::InStore(stay)) => {
            closed::open(core, group, stay, state.epoch()).await?;
            Err(transition::in_store(group))
        }
    }
}

/// The state of a session in use, for whoever does not serve its clients: also if it is away, and what is here is only a
/// copy, or nothing. That does not become hot, so that nobody is served from it.
pub(crate) async fn load_for_others(
    core: &Core,
    group: &Group,
    session: &Session,
) -> Result<Arc<SessionState>, Problem> {
    if let Some(state) = session.state() {
        return Ok(state);
    }
    let state = load_copy(core, group).await?;
    let away = transition::away(core, group);
    if away
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?
        .is_none()
    {
        session.set_state(Some(state.clone()));
    }
    Ok(state)
}

/// The state of a session that is at home here, also if it is away.
pub(crate) async fn load_copy(core: &Core, group: &Group) -> Result<Arc<SessionState>, Problem> {
    let epoch = match &core.cluster {
        None => core.store.epoch(),
        Some(cluster) => confirm(core, cluster, group).await?,
    };
    core.store
        .load_session(group, epoch)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))
}

/// Makes sure, in a session's turn, that this node is home to what little is kept of it.
///
/// # Errors
/// `session-moved` if another node is.
pub(crate) async fn confirm_here(core: &Core, group: &Group) -> Result<(), Problem> {
    if let Some(cluster) = &core.cluster {
        confirm(core, cluster, group).await?;
    }
    Ok(())
}

/// The epoch under which a session is at home here; a session that is nowhere becomes so.
async fn confirm(core: &Core, cluster: &Cluster, group: &Group) -> Result<Epoch, Problem> {
    let kept = kept(&core.store, group);
    let stored = match kept.map_err(|error| Problem::new(Code::Internal, error.to_string()))? {
        Kept::OnItsWay(record) => {
            let known = cluster.directory().cached(group);
            return match (&record, known) {
                // It has gone, and what is left of it is being cleared out.
                (HomeRecord::Leaving { epoch, .. }, Some(home)) if home.epoch >= *epoch => {
                    Err(moved(cluster, group, home))
                }
                _ => settle(core, cluster, group, record).await,
            };
        }
        Kept::AtHome(epoch) => return Ok(epoch),
        Kept::FromAlone => true,
        Kept::Nothing => false,
    };
    if let Some(home) = cluster.directory().cached(group) {
        return Err(moved(cluster, group, home));
    }
    custody::open(core).await?;
    let found = cluster.directory().find(group, Some(cluster.name())).await;
    match found.map_err(|error| unknown(&error))? {
        Some(home) if home.node == *cluster.name() => Ok(home.epoch),
        Some(home) => {
            if stored {
                tracing::error!(%group, home = %home.node, "a session of this name is at home elsewhere; what this node has of it, from when it was alone, is not used");
            }
            Err(moved(cluster, group, home))
        }
        None => Err(unknown(&DirectoryError::Unsettled)),
    }
}

/// That a session is at home elsewhere, if it is; nobody becomes its home by the question.
pub(crate) async fn elsewhere(core: &Core, group: &Group) -> Option<Problem> {
    let cluster = core.cluster.as_ref()?;
    let home = cluster.directory().find(group, None).await.ok()??;
    (home.node != *cluster.name()).then(|| moved(cluster, group, home))
}

/// What the node's own records say of a session.
#[derive(Debug, PartialEq)]
enum Kept {
    Nothing,
    /// It is here from when the node was alone; or it has come since its other record was looked at, and is asked for as well.
    FromAlone,
    /// It comes or goes, or may have been taken over.
    OnItsWay(HomeRecord),
    /// It is at home here, under this epoch.
    AtHome(Epoch),
}

fn kept(store: &Store, group: &Group) -> Result<Kept, StoreError> {
    let record_key = key::session(group);
    if let Some(record) = store.record::<HomeRecord>(Table::Homes, &record_key)? {
        return Ok(Kept::OnItsWay(record));
    }
    // Only this one says that it is at home: a copy that comes between the two looks does not.
    Ok(match store.session_record(group)? {
        None => Kept::Nothing,
        Some(stored) if stored.epoch < FIRST_EPOCH => Kept::FromAlone,
        Some(stored) => Kept::AtHome(stored.epoch),
    })
}

/// Whether a session is at home here by what is known here, without a turn and without asking anybody.
pub(crate) fn is_surely_here(core: &Core, group: &Group) -> Result<bool, StoreError> {
    let function = core.functions.of(group);
    let in_use = function.and_then(|function| function.sessions.peek(group.session.as_str()));
    if in_use.is_some_and(|session| session.state().is_some()) {
        return Ok(true);
    }
    Ok(matches!(kept(&core.store, group)?, Kept::AtHome(_)))
}

/// Finds out where a session is that is on its way.
async fn settle(
    core: &Core,
    cluster: &Cluster,
    group: &Group,
    record: HomeRecord,
) -> Result<Epoch, Problem> {
    let directory = cluster.directory();
    custody::open(core).await?;
    let home = match record {
        HomeRecord::Arriving { epoch, .. } => match directory.find(group, None).await {
            Ok(Some(home)) if home.node == *cluster.name() && home.epoch == epoch => home,
            // Not yet, or never: what is here of it stays until it is tried again.
            Ok(Some(home)) => return Err(moved(cluster, group, home)),
            Ok(None) => return Err(unknown(&DirectoryError::Changed(None))),
            Err(error) => return Err(unknown(&error)),
        },
        HomeRecord::Doubted { epoch, last, .. } => {
            let here = Home {
                node: cluster.name().clone(),
                epoch: Epoch(epoch.0 - 1),
            };
            match directory.relocate(group, &here, cluster.name()).await {
                Ok(home) => home,
                Err(DirectoryError::Changed(home))
                    if home
                        .as_ref()
                        .is_none_or(|home| home.node != *cluster.name()) =>
                {
                    // What it had to deliver is the other's as well, and goes first: the record says so.
                    courier::disown(core, Some(group), Ticket(last)).await?;
                    clear_out(core, group).await?;
                    return Err(match home {
                        Some(home) => moved(cluster, group, home),
                        None => unknown(&DirectoryError::Changed(None)),
                    });
                }
                Err(error) => {
                    tracing::debug!(%group, expected = ?here, %error, "a session that may have been taken over waits");
                    return Err(unknown(&error));
                }
            }
        }
        HomeRecord::Leaving { epoch, .. } => {
            // It goes on here under another epoch, so that nothing that is still on its way can take it
            // away afterwards.
            let here = Home {
                node: cluster.name().clone(),
                epoch: Epoch(epoch.0 - 1),
            };
            match directory.relocate(group, &here, cluster.name()).await {
                Ok(home) => home,
                Err(DirectoryError::Changed(Some(home))) if home.node != *cluster.name() => {
                    clear_out(core, group).await?;
                    return Err(moved(cluster, group, home));
                }
                Err(error) => {
                    tracing::debug!(%group, expected = ?here, %error, "a session that was to leave waits");
                    return Err(unknown(&error));
                }
            }
        }
    };
    let arrival = core.arrivals.of(group);
    let _alone = arrival.lock().await;
    take_over(core, group, home.epoch).await?;
    directory.learn(group, home.clone());
    Ok(home.epoch)
}

/// Stores that a session is at home here under an epoch, if that is not stored yet. For whoever keeps it from
/// arriving meanwhile.
pub(crate) async fn take_over(core: &Core, group: &Group, epoch: Epoch) -> Result<(), Problem> {
    tracing::debug!(%group, ?epoch, "at home here");
    let record_key = key::session(group);
    let internal = |error: StoreError| Problem::new(Code::Internal, error.to_string());
    let on_its_way = core.store.record::<HomeRecord>(Table::Homes, &record_key);
    if on_its_way.map_err(internal)?.is_none() {
        // Somebody else was quicker, and it may have gone on since.
        return Ok(());
    }
    let stored = core.store.session_record(group).map_err(internal)?;
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.delete(Table::Homes, &record_key);
    if let Some(stored) = stored {
        let record = SessionRecord { epoch, ..stored };
        bookkeeping.put(Table::Sessions, &record_key, &record);
    }
    let stored = core.store.commit_durably(bookkeeping).await;
    stored.map_err(|failure| storage_failed(&failure))?;
    Ok(())
}

/// Deletes what is stored here of a session that has gone.
pub(crate) async fn clear_out(core: &Core, group: &Group) -> Result<(), Problem> {
    let arrival = core.arrivals.of(group);
    let _alone = arrival.lock().await;
    let record = core
        .store
        .record::<HomeRecord>(Table::Homes, &key::session(group))
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    match record {
        Some(HomeRecord::Leaving { .. } | HomeRecord::Doubted { .. }) => purge(core, group).await,
        // Somebody else was quicker, and it may be on its way back.
        _ => Ok(()),
    }
}

/// Deletes what is stored here of a session that is elsewhere, for whoever keeps it from arriving
/// meanwhile. Everything that was committed to it has to be applied.
pub(crate) async fn purge(core: &Core, group: &Group) -> Result<(), Problem> {
    let internal =
        |error: fulmar_state::engine::EngineError| Problem::new(Code::Internal, error.to_string());
    let commit = |bookkeeping| {
        let committed = core.store.commit_bookkeeping(bookkeeping, Box::new(|_| {}));
        committed.map_err(|failure| storage_failed(&failure))
    };
    let prefix = key::session_state(group);
    let mut bookkeeping = Bookkeeping::default();
    for table in [Table::State, Table::Idempotency] {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let (after, mut count) = (last.take(), 0);
            core.store
                .scan(table, &prefix, after.as_deref(), &mut |key, _| {
                    match table {
                        Table::State => bookkeeping.delete_raw(table, key),
                        // A record may be looked for before its deletion is applied.
                        _ => bookkeeping.delete(table, key),
                    }
                    last = Some(key.to_vec());
                    count += 1;
                    count < PURGED_KEYS
                })
                .map_err(internal)?;
            if count < PURGED_KEYS {
                break;
            }
            commit(std::mem::take(&mut bookkeeping))?;
            tokio::task::yield_now().await;
        }
    }
    // Last, so that what is left after a crash is found again.
    bookkeeping.delete(Table::Sessions, &key::session(group));
    bookkeeping.delete(Table::Homes, &key::session(group));
    commit(bookkeeping)?;
    Ok(())
}

fn moved(cluster: &Cluster, group: &Group, home: Home) -> Problem {
    let detail = format!("the session {group} is at {}", home.node);
    cluster.directory().learn(group, home);
    Problem::new(Code::SessionMoved, detail)
}

/// The directory cannot answer.
pub(crate) fn unknown(error: &DirectoryError) -> Problem {
    Problem::new(Code::DirectoryUnreachable, error.to_string())
}

#[cfg(test)]
mod tests {
    use fulmar_model::{FunctionName, SessionName, Version};

    use super::*;
    use crate::arrive;

    /// Whoever looks while a copy comes may see the record that it goes with as it was before.
    #[test]
    fn a_copy_alone_is_not_at_home() {
        let store = Store::memory(Arc::new(()), Arc::new(|releases| releases())).unwrap();
        let group = Group {
            function: FunctionName::new("f").unwrap(),
            session: SessionName::new("s").unwrap(),
        };
        let put = |record: &SessionRecord| {
            let mut bookkeeping = Bookkeeping::default();
            bookkeeping.put(Table::Sessions, &key::session(&group), record);
            store
                .commit_bookkeeping(bookkeeping, Box::new(|_| {}))
                .unwrap();
        };
        let mut record = arrive::record_of_copy(Version(7));
        put(&record);
        assert_eq!(kept(&store, &group).unwrap(), Kept::FromAlone);
        record.epoch = FIRST_EPOCH;
        put(&record);
        assert_eq!(kept(&store, &group).unwrap(), Kept::AtHome(FIRST_EPOCH));
    }
}
