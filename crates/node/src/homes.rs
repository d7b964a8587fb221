//! Whether a session is at home here, found out by whoever has its turn before its state is loaded.
//!
//! A hot session is at home: whatever takes it away takes its turn first, and its hot state with it. For
//! any other the records tell: of the node itself where they can, of the directory where they cannot.

use std::sync::Arc;

use fulmar_cluster::directory::FIRST_EPOCH;
use fulmar_cluster::{Cluster, DirectoryError, Home};
use fulmar_model::{Code, Epoch, Group, Problem};
use fulmar_state::record::HomeRecord;
use fulmar_state::{Bookkeeping, SessionState, Table, key};

use crate::core::Core;
use crate::execute::storage_failed;

/// The state of a session that is at home here, loaded for whoever has its turn.
///
/// # Errors
/// `session-moved` if it is elsewhere; where is in the directory's cache then.
pub(crate) async fn load(core: &Core, group: &Group) -> Result<Arc<SessionState>, Problem> {
    let epoch = match &core.cluster {
        None => core.store.epoch(),
        Some(cluster) => confirm(core, cluster, group).await?,
    };
    core.store
        .load_session(group, epoch)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))
}

/// The epoch under which a session is at home here; a session that is nowhere becomes so.
async fn confirm(core: &Core, cluster: &Cluster, group: &Group) -> Result<Epoch, Problem> {
    let internal =
        |error: fulmar_state::StoreError| Problem::new(Code::Internal, error.to_string());
    let away = core
        .store
        .record::<HomeRecord>(Table::Homes, &key::session(group))
        .map_err(internal)?;
    match away {
        Some(HomeRecord::Gone { to, epoch }) => {
            // It may have come back, or gone further, without this node.
            let gone = Home { node: to, epoch };
            let home = cluster.directory().cached(group).unwrap_or(gone);
            return Err(moved(cluster, group, home));
        }
        Some(HomeRecord::Leaving { .. } | HomeRecord::Arriving { .. }) => {
            return settle(core, cluster, group).await;
        }
        None => {}
    }
    let stored = core.store.session_record(group).map_err(internal)?;
    if let Some(record) = stored.filter(|record| record.epoch >= FIRST_EPOCH) {
        return Ok(record.epoch);
    }
    let found = cluster.directory().find(group, Some(cluster.name())).await;
    match found.map_err(|error| unknown(&error))? {
        Some(home) if home.node == *cluster.name() => Ok(home.epoch),
        Some(home) => Err(moved(cluster, group, home)),
        None => Err(unknown(&DirectoryError::Unsettled)),
    }
}

/// Finds out what became of a session that was on its way when the node stopped.
async fn settle(core: &Core, cluster: &Cluster, group: &Group) -> Result<Epoch, Problem> {
    let found = cluster.directory().find(group, None).await;
    let Some(home) = found.map_err(|error| unknown(&error))? else {
        return Err(unknown(&DirectoryError::Changed(None)));
    };
    let mut bookkeeping = Bookkeeping::default();
    let record_key = key::session(group);
    if home.node == *cluster.name() {
        bookkeeping.delete(Table::Homes, &record_key);
    } else {
        let gone = HomeRecord::Gone {
            to: home.node.clone(),
            epoch: home.epoch,
        };
        bookkeeping.put(Table::Homes, &record_key, &gone);
    }
    let stored = core.store.commit_durably(bookkeeping).await;
    stored.map_err(|failure| storage_failed(&failure))?;
    match home.node == *cluster.name() {
        true => Ok(home.epoch),
        false => Err(moved(cluster, group, home)),
    }
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
