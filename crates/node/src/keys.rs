//! Shared keys among nodes: each is a placement group of its own, with a home, an epoch and a turn like a session's.
//!
//! A read asks the key's home and waits for nobody's turn. What an invocation writes is committed on the node where it ran,
//! in one commit with all else that it does: first the keys come here, and are kept from others until then. They are taken
//! in one order by everybody, so that nobody waits in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fulmar_cluster::Cluster;
use fulmar_model::id::{MAX_SESSION_NAME_BYTES, bucket_within, split_bucket};
use fulmar_model::{Code, FunctionName, Group, NodeName, Problem, SessionName};
use fulmar_state::{
    Answer, Found, KeyRange, KeyWrite, PlacedKeys, SessionState, StateError, Table, Transaction,
    VALUE, key,
};

use futures_util::future::BoxFuture;

use crate::core::Core;
use crate::functions::Function;
use crate::invocation::Turn;
use crate::sessions::Session;
use crate::target::{decode_segment, encode_segment};
use crate::{execute, follow, homes, migrate, route};

/// Longest search for a key that others keep taking away.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for another node's keys.
const LISTING: Duration = Duration::from_secs(60);
/// Pause before a key that is on its way is asked for again.
const PAUSE: Duration = Duration::from_millis(5);

/// The placement group of a key, of a bucket by its name among those of all namespaces.
///
/// # Errors
/// When the two names together are too long to be placed.
pub(crate) fn group(bucket: &str, key: &str) -> Result<Group, StateError> {
    let (namespace, bucket) = split_bucket(bucket);
    let name = format!("{}/{key}", encode_segment(bucket));
    let size = name.len();
    let session = SessionName::new(&name).map_err(|_| StateError::TooLarge {
        what: "the name of the bucket and the key together",
        size,
        max: MAX_SESSION_NAME_BYTES,
    })?;
    Ok(Group {
        function: FunctionName::of_shared_keys(namespace),
        session,
    })
}

/// The bucket, by its name among those of all namespaces, and the key of a placement group that stands for a shared key.
pub(crate) fn parse(function: &FunctionName, session: &str) -> Option<(String, String)> {
    let (bucket, key) = session.split_once('/')?;
    let bucket = decode_segment(bucket)?;
    let bucket = bucket_within(function.namespace(), &bucket).into_owned();
    Some((bucket, key.to_owned()))
}

/// The placement groups of keys that an invocation has used, with their sizes.
pub(crate) fn groups(used: Vec<(String, String, usize)>) -> Vec<(Group, usize)> {
    let placed = used.into_iter();
    let placed =
        placed.filter_map(|(bucket, key, bytes)| Some((group(&bucket, &key).ok()?, bytes)));
    placed.collect()
}

/// Reads keys for the transactions of a node.
pub(crate) struct Reader(pub(crate) Weak<Core>);

impl Reader {
    fn core(&self) -> Result<Arc<Core>, StateError> {
        let stopped = || StateError::Storage("the node stops".into());
        self.0.upgrade().ok_or_else(stopped)
    }
}

impl PlacedKeys for Reader {
    fn read(&self, bucket: &str, key: &str) -> Answer<Found> {
        let (core, group) = (self.core(), group(bucket, key));
        Box::pin(async move { read(&core?, &group?).await.map_err(StateError::Unreachable) })
    }

    fn list(&self, range: KeyRange<'_>) -> Answer<Vec<String>> {
        let core = self.core();
        let (bucket, prefix) = (range.bucket.to_owned(), range.prefix.to_owned());
        let after = range.after.map(str::to_owned);
        let limit = range.limit;
        Box::pin(async move {
            let range = KeyRange {
                bucket: &bucket,
                prefix: &prefix,
                after: after.as_deref(),
                limit,
            };
            list(&core?, range).await.map_err(StateError::Unreachable)
        })
    }
}

fn alone() -> Problem {
    Problem::new(
        Code::Internal,
        "this node is alone, and its shared keys are placed",
    )
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Internal, error.to_string())
}

/// The value of a key, wherever it is. Looking at what is not there does not make it.
async fn read(core: &Arc<Core>, group: &Group) -> Result<Found, Problem> {
    let cluster = core.cluster.as_ref().ok_or_else(alone)?;
    for _ in 0..route::MAX_HOPS {
        let home = match homes::is_surely_here(core, group).map_err(internal)? {
            true => cluster.name().clone(),
            false => match cluster.directory().cached(group) {
                Some(home) => home.node,
                None => {
                    let found = cluster.directory().find(group, None).await;
                    match found.map_err(|error| homes::unknown(&error))? {
                        Some(home) => {
                            cluster.directory().learn(group, home.clone());
                            home.node
                        }
                        None => return Ok(Found::default()),
                    }
                }
            },
        };
        if home == *cluster.name() {
            match read_here(core, group, None).await {
                Err(problem) if problem.code == Code::SessionMoved => continue,
                found => return found,
            }
        }
        let lent = cluster.load(&home, group).await.map_err(|error| {
            // It may be elsewhere before long.
            cluster.directory().unlearn(group);
            route::lost_before(&error)
        });
        match lent? {
            Ok(lent) => {
                let entries = lent.entries.into_iter().flatten();
                let value = entries.map(|(_, value)| value).next();
                return Ok(Found {
                    value,
                    ..Found::default()
                });
            }
            Err(not_here) => match route::elsewhere(cluster, group, not_here) {
                problem if problem.code == Code::SessionMoved => {}
                problem => return Err(problem),
            },
        }
    }
    Err(kept_away(group, "it was not where it was said to be"))
}

/// That others keep taking a key away; the client is to come back.
fn kept_away(group: &Group, why: impl std::fmt::Display) -> Problem {
    let detail = format!("the shared key {} cannot be had now: {why}", group.session);
    Problem::new(Code::QueueFull, detail)
}

/// The value of a key that is at home here, as it was committed last, for another node or for this one.
///
/// # Errors
/// `session-moved` if it is elsewhere.
pub(crate) async fn read_here(
    core: &Arc<Core>,
    group: &Group,
    by: Option<&NodeName>,
) -> Result<Found, Problem> {
    let (function, session) = in_use(core, group)?;
    loop {
        if let Some(state) = session.state() {
            if let Some((value, saw)) = state.committed_value(VALUE).map_err(internal)? {
                follow::note(core, &function, &session, group.session.shared(), by);
                return Ok(Found { value, saw });
            }
            // It is being committed at this moment.
            tokio::task::yield_now().await;
            continue;
        }
        let _turn = execute::turn(core, &function, &session).await?;
        hot(core, group, &session).await?;
    }
}

fn in_use(core: &Core, group: &Group) -> Result<(Arc<Function>, Arc<Session>), Problem> {
    let function = core.functions.of(group);
    let function = function.ok_or_else(|| internal(format!("{group} is no shared key")))?;
    let session = function.sessions.of(group.session.shared());
    Ok((function, session))
}

/// The state of a key, for whoever has its turn.
async fn hot(core: &Core, group: &Group, session: &Session) -> Result<Arc<SessionState>, Problem> {
    if let Some(state) = session.state() {
        return Ok(state);
    }
    let state = homes::load(core, group).await?;
    core.keeper.loaded(state.hot_bytes());
    session.set_state(Some(state.clone()));
    Ok(state)
}

/// Keys that are kept from others.
#[derive(Default)]
pub(crate) struct Turns(BTreeMap<Group, Held>);

struct Held {
    state: Arc<SessionState>,
    _turn: Turn,
}

impl Turns {
    /// Tells a transaction what it will find: whoever has the turn of a key cannot wait for it.
    pub(crate) fn tell(&self, tx: &mut Transaction) -> Result<(), Problem> {
        for (group, held) in &self.0 {
            let (bucket, key) = parse(&group.function, group.session.as_str())
                .ok_or_else(|| internal(format!("{group} is no shared key")))?;
            if let Some((value, saw)) = held.state.committed_value(VALUE).map_err(internal)? {
                tx.fetched(&bucket, &key, Found { value, saw }, Duration::ZERO);
            }
        }
        Ok(())
    }

    /// Brings the keys here that a transaction writes, and makes them part of its commit; false if one of them is not what
    /// it was taken for, so that the invocation has to run again. They are kept from others until this is dropped.
    pub(crate) async fn write(
        &mut self,
        core: &Arc<Core>,
        tx: &mut Transaction,
    ) -> Result<bool, Problem> {
        let writes = tx.key_writes();
        let groups = writes
            .iter()
            .map(|write: &KeyWrite| group(&write.bucket, &write.key));
        let groups: Result<Vec<Group>, StateError> = groups.collect();
        let groups = groups.map_err(|error| Problem::new(Code::KeyInvalid, error.to_string()))?;
        if !groups.iter().all(|group| self.0.contains_key(group)) {
            let wanted: BTreeSet<Group> = groups.iter().chain(self.0.keys()).cloned().collect();
            // Given back first: all are taken in their order.
            self.0.clear();
            for group in wanted {
                let held = hold(core, &group).await?;
                self.0.insert(group, held);
            }
        }
        let states = groups.iter().filter_map(|group| self.0.get(group));
        let states: Vec<_> = states.map(|held| held.state.clone()).collect();
        tx.write_keys(&states).map_err(internal)
    }
}

/// Brings a key here and keeps it from others. Boxed, since a turn may run an invocation that does the same.
fn hold<'a>(core: &'a Arc<Core>, group: &'a Group) -> BoxFuture<'a, Result<Held, Problem>> {
    Box::pin(hold_unboxed(core, group))
}

async fn hold_unboxed(core: &Arc<Core>, group: &Group) -> Result<Held, Problem> {
    let cluster = core.cluster.as_ref().ok_or_else(alone)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let (function, session) = in_use(core, group)?;
        let turn = execute::turn(core, &function, &session).await?;
        let problem = match hot(core, group, &session).await {
            Ok(state) => return Ok(Held { state, _turn: turn }),
            Err(problem) => problem,
        };
        drop(turn);
        let problem = match (problem.code, cluster.directory().cached(group)) {
            (Code::SessionMoved, Some(home)) if home.node != *cluster.name() => {
                match migrate::bring(cluster, group, &home.node).await {
                    Ok(()) => continue,
                    Err(problem) => problem,
                }
            }
            _ => problem,
        };
        let is_on_its_way = matches!(
            problem.code,
            Code::SessionMoved | Code::MigrationFailed | Code::SessionNotFound
        );
        if !is_on_its_way {
            return Err(problem);
        }
        if Instant::now() > until {
            return Err(kept_away(group, problem));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The keys of a range, of all nodes, in byte order.
///
/// # Errors
/// When one of the nodes cannot be asked.
pub(crate) async fn list(core: &Arc<Core>, range: KeyRange<'_>) -> Result<Vec<String>, Problem> {
    let cluster = core.cluster.as_ref().ok_or_else(alone)?;
    let (namespace, name) = split_bucket(range.bucket);
    let limit = range.limit;
    let path = format!(
        "/admin/state/namespace/{}/{}/keys?limit={limit}&prefix={}&after={}",
        encode_segment(namespace),
        encode_segment(name),
        encode_segment(range.prefix),
        encode_segment(range.after.unwrap_or_default()),
    );
    let mut keys: BTreeSet<String> = list_here(core, range).await?.into_iter().collect();
    for answer in route::ask_all_others(cluster, &path, LISTING).await? {
        let listed = answer["keys"].as_array().into_iter().flatten();
        keys.extend(listed.filter_map(|key| key.as_str().map(str::to_owned)));
    }
    Ok(keys.into_iter().take(limit).collect())
}

/// The same of those that are at home here.
pub(crate) async fn list_here(
    core: &Arc<Core>,
    range: KeyRange<'_>,
) -> Result<Vec<String>, Problem> {
    let KeyRange { bucket, limit, .. } = range;
    // What was committed last has to be where it is looked for.
    core.durable(core.store.commits().submitted()).await?;
    let (namespace, name) = split_bucket(bucket);
    let function = FunctionName::of_shared_keys(namespace);
    let first = format!("{function}\0{}/", encode_segment(name));
    let start = format!("{first}{}", range.prefix);
    // The separator plus one: after whatever is kept of that key.
    let behind = |key: &str| format!("{first}{key}\u{1}");
    let after = range.after.filter(|after| *after >= range.prefix);
    let mut after = after.map(behind);
    let mut keys: Vec<String> = Vec::new();
    loop {
        let mut found: Vec<String> = Vec::new();
        let from = after.as_deref().map(str::as_bytes);
        core.store
            .scan(Table::State, start.as_bytes(), from, &mut |path, _| {
                let session = key::parse_session(path).and_then(|(_, rest)| rest.split_once('\0'));
                let key = session.and_then(|(session, _)| session.split_once('/'));
                found.extend(key.map(|(_, key)| key.to_owned()));
                found.len() < limit
            })
            .map_err(internal)?;
        let Some(last) = found.last() else {
            return Ok(keys);
        };
        after = Some(behind(last));
        for key in found {
            let group = group(bucket, &key).map_err(internal)?;
            if homes::is_surely_here(core, &group).map_err(internal)? {
                keys.push(key);
            }
            if keys.len() == limit {
                return Ok(keys);
            }
        }
    }
}

/// Says so if there are shared keys from when the node was alone: those of many nodes are others.
pub(crate) fn warn_of_older(core: &Core, cluster: &Cluster) {
    let mut is_any = false;
    let scanned = core.store.scan(Table::Shared, &[], None, &mut |_, _| {
        is_any = true;
        false
    });
    if is_any && scanned.is_ok() {
        tracing::warn!(
            node = %cluster.name(),
            "shared keys from when this node was alone are not those of all nodes: export them with `fulmar dev` and import them here"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_again_by_its_group() {
        for (bucket, name) in [("b", "k"), ("a/b", "c/d"), ("b", "ä b"), ("%2F", "/")] {
            for namespace in ["default", "shop"] {
                let full = bucket_within(namespace, bucket);
                let group = group(&full, name).unwrap();
                assert_eq!(
                    parse(&group.function, group.session.as_str()),
                    Some((full.into_owned(), name.to_owned()))
                );
            }
        }
        assert!(group("b", &"x".repeat(600)).is_err());
    }
}
