//! A session moves to another node while it is in use.
//!
//! Copied first while it goes on, if it is large; then its turn is taken, so that what comes waits in its
//! queue, and what has changed is copied. That it leaves is stored here before its directory shard is asked
//! to make the other node its home: that change is the decision. Whatever fails before it leaves the session
//! here; whatever fails after it leaves it there; if it is not known which, whoever wants the session next
//! asks the directory ([`homes`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_cluster::{Cluster, Home, StageEntry, StageHead};
use fulmar_model::{Code, Epoch, Group, NodeName, Problem};
use fulmar_state::aside;
use fulmar_state::record::HomeRecord;
use fulmar_state::{Bookkeeping, Changes, SessionState, Table, key};
use futures_util::{Stream, StreamExt};

use crate::core::Core;
use crate::execute::{self, storage_failed};
use crate::functions::Function;
use crate::invocation::Turn;
use crate::sessions::Session;
use crate::{external, homes, route};

/// A session above this many bytes is copied before it is held up.
const COPY_FIRST_BYTES: usize = 256 << 10;
/// Entries that go at once, in bytes.
const PART_BYTES: usize = 256 << 10;
/// Parts that wait to be sent.
const PARTS_AHEAD: usize = 4;
/// Longest time for the copy of a session in use, and for what has changed since.
const COPY: Duration = Duration::from_secs(600);
const COPY_REST: Duration = Duration::from_secs(10);
/// Longest wait for the messages that a session has sent: those that it sends afterwards must not
/// overtake them.
const MESSAGES: Duration = Duration::from_secs(2);

/// How a session moved.
#[derive(Debug)]
pub(crate) struct Migration {
    /// Where it is now.
    pub(crate) home: Home,
    /// How long what came for it was held up.
    pub(crate) held: Duration,
}

/// Longest wait for the home of what is to come here.
const COMING: Duration = Duration::from_secs(5);

/// Has the home of a placement group move it to this node.
///
/// # Errors
/// When it does not, or cannot be asked.
pub(crate) async fn bring(
    cluster: &Cluster,
    group: &Group,
    home: &NodeName,
) -> Result<(), Problem> {
    let wanted = serde_json::json!({
        "function": group.function,
        "session": group.session,
        "to": cluster.name(),
    });
    let (path, body) = ("/admin/migrations", Bytes::from(wanted.to_string()));
    let brought = route::ask(cluster, home, "POST", path, body, COMING).await;
    // Wherever it is now, it is not where it was last heard of.
    cluster.directory().unlearn(group);
    match brought {
        Ok(_) => Ok(()),
        // It comes or not: what it was wanted for has not begun.
        Err(problem) if problem.code == Code::OutcomeUnknown => {
            Err(Problem::new(Code::HomeUnreachable, problem.detail))
        }
        Err(problem) => Err(problem),
    }
}

/// A session on its way.
struct Way<'a> {
    core: &'a Arc<Core>,
    cluster: &'a Arc<Cluster>,
    group: &'a Group,
    to: &'a NodeName,
    attempt: u64,
}

/// Moves a session that is at home here to another node. On a task of its own: whoever asked for it may go
/// away, and a session that is half on its way must not be left so.
///
/// # Errors
/// When it is not at home here, or cannot be moved; then it stays, unless the directory did not answer.
pub(crate) async fn migrate(
    core: &Arc<Core>,
    cluster: &Arc<Cluster>,
    group: &Group,
    to: &NodeName,
) -> Result<Migration, Problem> {
    let (core, cluster) = (core.clone(), cluster.clone());
    let (group, to) = (group.clone(), to.clone());
    let going = tokio::spawn(async move {
        // One at a time: what has changed since a copy began is remembered once.
        let departure = core.departures.of(&group);
        let _alone = departure.lock().await;
        go(&core, &cluster, &group, &to).await
    });
    going
        .await
        .unwrap_or_else(|error| Err(Problem::new(Code::Internal, error.to_string())))
}

async fn go(
    core: &Arc<Core>,
    cluster: &Arc<Cluster>,
    group: &Group,
    to: &NodeName,
) -> Result<Migration, Problem> {
    let function = core.functions.of(group).ok_or_else(|| {
        let detail = format!("no function {} is deployed", group.function);
        Problem::new(Code::FunctionNotFound, detail)
    })?;
    if let Some(refused) = external::on_no_node(&function.current()) {
        return Err(refused);
    }
    let way = Way {
        core,
        cluster,
        group,
        to,
        attempt: next_attempt(core),
    };
    let session = function.sessions.of(group.session.shared());
    let mut turn = execute::turn(core, &function, &session).await?;
    let state = way.state(&session).await?;
    let is_large = state.whole().is_none() || state.hot_bytes() > COPY_FIRST_BYTES;
    if is_large {
        state.begin_copy();
        drop(turn);
        let copied = way.copy(&state).await;
        turn = execute::turn(core, &function, &session).await?;
        // Another one has not the changes that this one remembers.
        let is_same = session.state().is_some_and(|now| Arc::ptr_eq(&now, &state));
        let replaced = || Err(way.failed(&"it was removed or replaced while it was copied"));
        if let Err(problem) = copied.and_then(|()| if is_same { Ok(()) } else { replaced() }) {
            state.end_copy();
            way.give_up();
            return Err(problem);
        }
    }
    let held = Instant::now();
    let home = way
        .leave(&function, &session, &state, is_large, turn)
        .await?;
    Ok(Migration {
        home,
        held: held.elapsed(),
    })
}

/// Higher than that of every earlier attempt of this node, so that what is late is told from what is not.
pub(crate) fn next_attempt(core: &Core) -> u64 {
    /// Far more attempts than a start can make.
    const BITS: u32 = 40;
    let id = core.next_id();
    id.epoch << BITS | id.number
}

impl Way<'_> {
    async fn state(&self, session: &Session) -> Result<Arc<SessionState>, Problem> {
        homes::load_for_others(self.core, self.group, session).await
    }

    fn head(&self, state: &SessionState, first: bool, last: bool) -> StageHead {
        StageHead {
            group: self.group.clone(),
            epoch: Epoch(state.epoch().0 + 1),
            attempt: self.attempt,
            first,
            last: last.then(|| state.version()),
        }
    }

    fn failed(&self, error: &impl std::fmt::Display) -> Problem {
        let detail = format!("{} stays here: {error}", self.group);
        Problem::new(Code::MigrationFailed, detail)
    }

    /// Copies what is stored, while the session goes on.
    async fn copy(&self, state: &SessionState) -> Result<(), Problem> {
        // What was committed before the copy began has to be where a scan looks.
        self.core
            .durable(self.core.store.commits().submitted())
            .await?;
        let head = self.head(state, true, false);
        let entries = stored(
            self.core,
            self.group,
            vec![Table::State, Table::Idempotency],
        );
        let copied = self.cluster.stage(self.to, head, entries, COPY).await;
        copied.map_err(|error| self.failed(&error))
    }

    /// Lets the session go, in its turn, which is given back when it is known where it is.
    async fn leave(
        &self,
        function: &Arc<Function>,
        session: &Session,
        state: &Arc<SessionState>,
        was_copied: bool,
        turn: Turn,
    ) -> Result<Home, Problem> {
        let Self {
            core,
            cluster,
            group,
            to,
            attempt,
        } = *self;
        let drained = core.courier.drained(group);
        if tokio::time::timeout(MESSAGES, drained).await.is_err() {
            state.end_copy();
            let detail = "messages that it sent are not delivered yet";
            return Err(self.failed(&detail));
        }
        let here = Home {
            node: cluster.name().clone(),
            epoch: state.epoch(),
        };
        let epoch = Epoch(here.epoch.0 + 1);
        let leaving = HomeRecord::Leaving {
            to: to.clone(),
            epoch,
        };
        let mut bookkeeping = Bookkeeping::default();
        bookkeeping.put(Table::Homes, &key::session(group), &leaving);
        // With it all that the session has committed is stored, and where a scan looks.
        let stored_leaving = core.store.commit_durably(bookkeeping).await;
        stored_leaving.map_err(|failure| storage_failed(&failure))?;
        if let Err(problem) = self.copy_rest(state, was_copied).await {
            self.stay();
            return Err(problem);
        }
        let relocated = cluster.directory().relocate(group, &here, to).await;
        // From here on the hot state is of no use, whatever the answer.
        session.set_state(None);
        core.pool
            .evict_session(&function.name, group.session.as_str());
        match relocated {
            Ok(home) => {
                cluster.directory().learn(group, home.clone());
                let (told, group, to) = (cluster.clone(), group.clone(), to.clone());
                let telling = async move {
                    if let Err(error) = told.settle(&to, &group, epoch, attempt, true).await {
                        tracing::debug!(%error, "a new home was not told and will find out");
                    }
                };
                tokio::spawn(telling);
                drop(turn);
                let (core, group) = (core.clone(), self.group.clone());
                tokio::spawn(async move {
                    if let Err(problem) = homes::clear_out(&core, &group).await {
                        tracing::warn!(%group, %problem, "what is left of a session that has gone is cleared out later");
                    }
                });
                Ok(home)
            }
            Err(error) => {
                drop(turn);
                Err(homes::unknown(&error))
            }
        }
    }

    /// Copies what has not been copied yet, which completes the copy.
    async fn copy_rest(&self, state: &SessionState, was_copied: bool) -> Result<(), Problem> {
        let head = self.head(state, !was_copied, true);
        let sent = if was_copied {
            let entries = parts(changed(self.core, self.group, state.end_copy())?);
            self.cluster.stage(self.to, head, entries, COPY_REST).await
        } else if let Some(whole) = state.whole() {
            let whole = whole.into_iter().map(|(key, value)| StageEntry {
                table: Table::State,
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Some(value),
            });
            let state = parts(whole.collect());
            let records = stored(self.core, self.group, vec![Table::Idempotency]);
            let entries = state.chain(records);
            self.cluster.stage(self.to, head, entries, COPY_REST).await
        } else {
            let entries = stored(
                self.core,
                self.group,
                vec![Table::State, Table::Idempotency],
            );
            self.cluster.stage(self.to, head, entries, COPY).await
        };
        sent.map_err(|error| self.failed(&error))
    }

    /// The session stays: nobody was asked to make another node its home.
    fn stay(&self) {
        let (store, record_key) = (&self.core.store, key::session(self.group));
        // It may be doubted meanwhile.
        if let Ok(Some(HomeRecord::Leaving { .. })) = store.record(Table::Homes, &record_key) {
            let mut bookkeeping = Bookkeeping::default();
            bookkeeping.delete(Table::Homes, &record_key);
            // If it is not stored, the next start asks the directory, which knows nothing of it either.
            let _ = store.commit_bookkeeping(bookkeeping, Box::new(|_| {}));
        }
        self.give_up();
    }

    /// Tells the other node that its copy is of no use, only to free its disk earlier.
    fn give_up(&self) {
        let (cluster, group, to) = (self.cluster.clone(), self.group.clone(), self.to.clone());
        let attempt = self.attempt;
        tokio::spawn(async move {
            let _ = cluster.settle(&to, &group, Epoch(0), attempt, false).await;
        });
    }
}

/// What is stored of a session, some entries at a time.
pub(crate) fn stored(
    core: &Arc<Core>,
    group: &Group,
    tables: Vec<Table>,
) -> impl Stream<Item = Vec<StageEntry>> + Send + 'static + use<> {
    let (core, prefix) = (core.clone(), key::session_state(group));
    let parts = aside::items(PARTS_AHEAD, move |give| {
        for table in tables {
            let (mut part, mut bytes) = (Vec::new(), 0);
            let scanned = core.store.scan(table, &prefix, None, &mut |key, value| {
                bytes += key.len() + value.len();
                part.push(StageEntry {
                    table,
                    key: Bytes::copy_from_slice(&key[prefix.len()..]),
                    value: Some(Bytes::copy_from_slice(value)),
                });
                if bytes < PART_BYTES {
                    return true;
                }
                bytes = 0;
                // Nobody listens any more: the copy was given up.
                give(std::mem::take(&mut part))
            });
            if let Err(error) = scanned {
                // The copy ends here, and its end is missed.
                tracing::error!(%error, "a session cannot be read to be copied");
                return;
            }
            if !part.is_empty() && !give(part) {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(parts)
}

/// What has changed of a session; in its turn, when all is applied.
pub(crate) fn changed(
    core: &Core,
    group: &Group,
    changes: Changes,
) -> Result<Vec<StageEntry>, Problem> {
    let prefix = key::session_state(group);
    let state = changes.state.iter().map(|key| {
        let path = [&prefix, key.as_bytes()].concat();
        (Table::State, path)
    });
    let records = changes.idempotency.into_iter();
    let paths = state.chain(records.map(|path| (Table::Idempotency, path)));
    paths
        .filter(|(_, path)| path.starts_with(&prefix))
        .map(|(table, path)| {
            let value = core
                .store
                .applied(table, &path)
                .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
            Ok(StageEntry {
                table,
                key: Bytes::copy_from_slice(&path[prefix.len()..]),
                value,
            })
        })
        .collect()
}

/// Entries, some at a time.
fn parts(entries: Vec<StageEntry>) -> impl Stream<Item = Vec<StageEntry>> + Send + 'static {
    let mut entries = entries.into_iter();
    futures_util::stream::iter(std::iter::from_fn(move || {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < PART_BYTES
            && let Some(entry) = entries.next()
        {
            bytes += entry.key.len() + entry.value.as_ref().map_or(0, Bytes::len);
            part.push(entry);
        }
        (!part.is_empty()).then_some(part)
    }))
}
