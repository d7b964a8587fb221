//! The execution models that were chosen for single sessions: changed on request, and remembered by the nodes that ask
//! their homes.
//!
//! A home notes what was chosen, and tells it to whichever node passes a request on to it. That node then goes by it for a
//! while, and asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_model::{Code, ExecutionModel, Group, Problem};
use fulmar_state::{Bookkeeping, StoreError};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use serde_json::json;

use crate::core::Core;
use crate::execute::{self, storage_failed};
use crate::target::encode_segment;
use crate::transition::{self, Away};
use crate::{custody, homes, outside, route};

/// How long a node goes by what it was told.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Sessions that are remembered; beyond that all are forgotten.
const MAX_REMEMBERED: usize = 100_000;
/// Longest wait for a session's home to change its model.
const CHANGING: Duration = Duration::from_secs(60);

/// What is known of the sessions that other nodes, or the external store, have.
#[derive(Default)]
pub(crate) struct Models {
    known: Mutex<FxHashMap<Group, (ExecutionModel, Instant)>>,
    count: AtomicUsize,
    /// What sessions are being changed to.
    wanted: Mutex<FxHashMap<Group, ExecutionModel>>,
}

impl Models {
    /// The model that was chosen for a session, as far as is remembered.
    pub(crate) fn get(&self, group: impl FnOnce() -> Group) -> Option<ExecutionModel> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let group = group();
        let (model, since) = *self.known.lock().get(&group)?;
        if since.elapsed() > REMEMBERED {
            self.forget(&group);
            return None;
        }
        Some(model)
    }

    pub(crate) fn learn(&self, group: &Group, model: ExecutionModel) {
        let mut known = self.known.lock();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(group.clone(), (model, Instant::now()));
        self.count.store(known.len(), Ordering::Relaxed);
    }

    pub(crate) fn forget(&self, group: &Group) {
        let mut known = self.known.lock();
        known.remove(group);
        self.count.store(known.len(), Ordering::Relaxed);
    }
}

/// The model of a session at home here, if one was chosen for it, or where its state is says so.
pub(crate) fn at_home(core: &Core, group: &Group) -> Result<Option<ExecutionModel>, StoreError> {
    Ok(match transition::away(core, group)? {
        Some(Away::WithClient(_)) => Some(ExecutionModel::InClient),
        Some(Away::InStore(_)) => Some(ExecutionModel::External),
        // As long as the store does not have it, it is not there, whatever was chosen.
        None => {
            let chosen = transition::chosen(core, group)?;
            chosen.filter(|model| *model != ExecutionModel::External)
        }
    })
}

/// Gives a session that is at home here another model, which it keeps; false if it has it already.
///
/// # Errors
/// When it is not at home here, or the function or the session does not allow it.
pub(crate) async fn change(
    core: &Arc<Core>,
    group: &Group,
    model: ExecutionModel,
) -> Result<bool, Problem> {
    let refused = |detail: String| Err(Problem::new(Code::ExecutionModelRefused, detail));
    let Some(function) = core.functions.get(group.function.as_str()) else {
        let detail = format!("no function {} is deployed", group.function);
        return Err(Problem::new(Code::FunctionNotFound, detail));
    };
    let fixed = function.current().manifest.execution_model;
    if fixed != ExecutionModel::Auto {
        if fixed == model {
            return Ok(false);
        }
        return refused(format!(
            "{} has execution_model = \"{fixed}\"; with \"auto\" its sessions may have others",
            group.function
        ));
    }
    if model == ExecutionModel::InClient {
        return refused(format!(
            "only a client can take {group} along: its requests choose with Fulmar-Execution-Model"
        ));
    }
    let internal = |error: StoreError| Problem::new(Code::Internal, error.to_string());
    let has_crossed = match (model, transition::away(core, group).map_err(internal)?) {
        (ExecutionModel::External, _) => outside::go(core, group).await?,
        (_, Some(Away::InStore(_))) => outside::come_back(core, group).await?,
        _ => false,
    };
    let session = function.sessions.of(group.session.shared());
    let turn = execute::turn(core, &function, &session).await?;
    homes::confirm_here(core, group).await?;
    let is_with_client = matches!(
        transition::away(core, group).map_err(internal)?,
        Some(Away::WithClient(_))
    );
    let chosen = transition::chosen(core, group).map_err(internal)?;
    let is_chosen = chosen.unwrap_or_default() != model;
    if is_with_client && model != ExecutionModel::InFunction {
        return Err(transition::with_client(group));
    }
    if is_chosen || is_with_client {
        let mut bookkeeping = Bookkeeping::default();
        transition::choose(group, model, &mut bookkeeping);
        if is_with_client {
            // It goes on from the copy.
            transition::take_note_away(group, &mut bookkeeping);
            session.set_state(None);
            core.pool
                .evict_session(&function.name, group.session.as_str());
        }
        let stored = core.store.commit_durably(bookkeeping).await;
        let ticket = stored.map_err(|failure| storage_failed(&failure))?;
        let safe = custody::safe(core, &function.name, ticket).await;
        safe.map_err(|failure| storage_failed(&failure))?;
    }
    drop(turn);
    if model != ExecutionModel::External {
        core.models.forget(group);
    }
    Ok(is_chosen || is_with_client || has_crossed)
}

/// The same for a session that is at home anywhere.
///
/// # Errors
/// Those, and when its home cannot be asked.
pub(crate) async fn change_at_home(
    core: &Arc<Core>,
    group: &Group,
    model: ExecutionModel,
) -> Result<(), Problem> {
    let Some(cluster) = &core.cluster else {
        return change(core, group, model).await.map(|_| ());
    };
    core.models.forget(group);
    for _ in 0..route::MAX_HOPS {
        let home = match homes::is_surely_here(core, group) {
            Ok(true) => None,
            _ => {
                let found = cluster.directory().find(group, None).await;
                found.map_err(|error| homes::unknown(&error))?
            }
        };
        let Some(home) = home.filter(|home| home.node != *cluster.name()) else {
            match change(core, group, model).await {
                Err(problem) if problem.code == Code::SessionMoved => continue,
                changed => return changed.map(|_| ()),
            }
        };
        let [function, session] =
            [group.function.as_str(), group.session.as_str()].map(encode_segment);
        let wanted = json!({ "execution_model": model });
        let path = format!("/admin/sessions/{function}/{session}");
        let body = Bytes::from(wanted.to_string());
        match route::ask(cluster, &home.node, "PATCH", &path, body, CHANGING).await {
            Err(problem) if problem.code == Code::SessionMoved => {
                cluster.directory().unlearn(group);
            }
            changed => return changed.map(|_| ()),
        }
    }
    let detail = format!("{group} was not where it was said to be");
    Err(Problem::new(Code::SessionMoved, detail))
}

/// The same, some time soon, for whoever does not wait for it. What is wanted while one change is under way comes after it,
/// the last of it alone.
pub(crate) fn change_soon(core: &Arc<Core>, group: Group, model: ExecutionModel) {
    let is_under_way = {
        let mut wanted = core.models.wanted.lock();
        wanted.insert(group.clone(), model).is_some()
    };
    if is_under_way {
        return;
    }
    let core = core.clone();
    tokio::spawn(async move {
        let mut model = model;
        loop {
            if let Err(problem) = change_at_home(&core, &group, model).await {
                tracing::warn!(%group, %model, %problem, "a session keeps its execution model");
            }
            let mut wanted = core.models.wanted.lock();
            match wanted.get(&group) {
                Some(newer) if *newer != model => model = *newer,
                _ => {
                    wanted.remove(&group);
                    return;
                }
            }
        }
    });
}
