//! Many sessions move at once: all of a node's, or all of a function's that are there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_cluster::Cluster;
use fulmar_model::{Code, FunctionName, Group, NodeName, Problem, SessionName};
use fulmar_state::{Table, key};
use futures_util::StreamExt;

use crate::core::Core;
use crate::migrate;

/// Sessions on their way at once: enough to share each fsync, few enough to leave room for invocations.
const AT_ONCE: usize = 12;
/// Failures that are told one by one.
const MAX_TOLD: usize = 10;

/// What came of it.
pub(crate) struct Drained {
    pub(crate) moved: usize,
    pub(crate) failed: usize,
    /// The first failures.
    pub(crate) told: Vec<(Group, Problem)>,
    pub(crate) took: Duration,
    /// Whether there may be more.
    pub(crate) more: bool,
}

/// Moves up to `limit` sessions that are stored here to another node.
pub(crate) async fn drain(
    core: &Arc<Core>,
    cluster: &Arc<Cluster>,
    to: &NodeName,
    function: Option<&FunctionName>,
    limit: usize,
) -> Result<Drained, Problem> {
    let started = Instant::now();
    // What was committed may not be where a scan looks yet.
    core.durable(core.store.commits().submitted()).await?;
    let prefix = function.map(|function| [function.as_str().as_bytes(), key::SEPARATOR].concat());
    let mut groups = Vec::new();
    core.store
        .scan(
            Table::Sessions,
            prefix.as_deref().unwrap_or_default(),
            None,
            &mut |key, _| {
                groups.extend(key::parse_session(key).and_then(|(function, session)| {
                    Some(Group {
                        function: FunctionName::new(function).ok()?,
                        session: SessionName::new(session).ok()?,
                    })
                }));
                groups.len() < limit
            },
        )
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let mut drained = Drained {
        moved: 0,
        failed: 0,
        told: Vec::new(),
        took: Duration::ZERO,
        more: groups.len() == limit,
    };
    let moving = groups.into_iter().map(|group| {
        let (core, cluster, to) = (core.clone(), cluster.clone(), to.clone());
        async move {
            let moved = migrate::migrate(&core, &cluster, &group, &to).await;
            (group, moved)
        }
    });
    let mut moving = futures_util::stream::iter(moving).buffer_unordered(AT_ONCE);
    while let Some(moved) = moving.next().await {
        match moved {
            (_, Ok(_)) => drained.moved += 1,
            // Gone before its turn came.
            (_, Err(problem)) if problem.code == Code::SessionMoved => {}
            (group, Err(problem)) => {
                drained.failed += 1;
                if drained.told.len() < MAX_TOLD {
                    drained.told.push((group, problem));
                }
            }
        }
    }
    drained.took = started.elapsed();
    Ok(drained)
}
