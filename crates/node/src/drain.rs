//! Many sessions move at once: all of a node's, or all of a function's that are there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_cluster::Cluster;
use fulmar_model::{Code, FunctionName, Group, NodeName, Problem, SessionName};
use fulmar_state::{Table, key};
use futures_util::StreamExt;

use crate::core::Core;
use crate::migrate;

/// Sessions on their way at once to a node next door: enough to share each fsync, few enough to leave room for invocations.
const AT_ONCE: usize = 4;
/// How many more for each further millisecond there and back, so that a long way is not slower: a session takes four
/// round trips.
const MORE_PER_MS: f64 = 5.0;
/// Longest round trip of a node next door, in milliseconds; much of it may be waiting for a busy one.
const NEXT_DOOR_MS: f64 = 1.0;
const MOST_AT_ONCE: usize = 64;
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

/// How many sessions go at once to a node that is so far, in seconds there and back, if that is known.
fn at_once(round_trip: Option<f64>) -> usize {
    let further_ms = round_trip.unwrap_or_default() * 1000.0 - NEXT_DOOR_MS;
    let more = MORE_PER_MS * further_ms.max(0.0);
    (AT_ONCE + more as usize).min(MOST_AT_ONCE)
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
    let way = cluster.hints().way(to);
    let at_once = at_once(way.map(|way| way.round_trip));
    let mut moving = futures_util::stream::iter(moving).buffer_unordered(at_once);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_sessions_are_on_their_way_at_once_the_longer_it_is() {
        let seconds = [None, Some(0.0002), Some(0.003), Some(0.01), Some(0.3)];
        assert_eq!(seconds.map(at_once), [4, 4, 14, 49, 64]);
    }
}
