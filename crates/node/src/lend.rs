//! Sessions at home here whose invocations run on other nodes: their state is lent, and what comes of the
//! invocations is committed here, as if they had run here.

use std::sync::Arc;

use fulmar_cluster::{Lent, NotHere, Returned, Settled};
use fulmar_model::{Bucket, Code, Epoch, Group, NodeName, Problem, Version};
use fulmar_state::record::IdempotencyRecord;
use fulmar_state::{Bookkeeping, SessionState, Table, VALUE, key};
use tokio::sync::oneshot;

use crate::core::Core;
use crate::execute::{self, storage_failed};
use crate::functions::Function;
use crate::invocation::Turn;
use crate::sessions::Session;
use crate::{clock, custody, external, follow, homes, keys};

/// A session above this many bytes is not lent: its invocations run here.
const MAX_LENT_BYTES: usize = 256 << 10;

/// A session in its turn.
struct Held {
    function: Arc<Function>,
    session: Arc<Session>,
    state: Arc<SessionState>,
    _turn: Turn,
}

async fn hold(core: &Arc<Core>, group: &Group) -> Result<Held, NotHere> {
    let function = core.functions.of(group).ok_or_else(|| {
        let detail = format!("no function {} is deployed", group.function);
        NotHere::Failed(Problem::new(Code::FunctionNotFound, detail))
    })?;
    if let Some(refused) = external::on_no_node(&function.current()) {
        return Err(NotHere::Failed(refused));
    }
    let session = function.sessions.of(group.session.shared());
    let turn = execute::turn(core, &function, &session).await;
    let turn = turn.map_err(NotHere::Failed)?;
    let state = match session.state() {
        Some(state) => state,
        None => {
            let state = homes::load(core, group).await;
            let state = state.map_err(|problem| elsewhere(core, group, problem))?;
            core.keeper.loaded(state.hot_bytes());
            session.set_state(Some(state.clone()));
            state
        }
    };
    Ok(Held {
        function,
        session,
        state,
        _turn: turn,
    })
}

fn elsewhere(core: &Core, group: &Group, problem: Problem) -> NotHere {
    if problem.code != Code::SessionMoved {
        return NotHere::Failed(problem);
    }
    let cluster = core.cluster.as_ref();
    let home = cluster.and_then(|cluster| cluster.directory().cached(group));
    NotHere::Moved(home.map(|home| (home.node, home.epoch)))
}

/// Lends a session's state.
pub(crate) async fn load(
    core: &Arc<Core>,
    from: &NodeName,
    group: &Group,
) -> Result<Lent, NotHere> {
    if group.function.is_shared_keys() {
        return load_key(core, from, group).await;
    }
    let held = hold(core, group).await?;
    let state = &held.state;
    let (version, epoch, last) = (state.version(), state.epoch(), state.last_commit());
    let small = state.hot_bytes() <= MAX_LENT_BYTES;
    let whole = small.then(|| state.whole()).flatten();
    let function = held.function.clone();
    drop(held);
    // What leaves the node must not rest on what is not stored. What comes of it waits here for more, if it has to.
    core.durable(last).await.map_err(NotHere::Failed)?;
    let sure = custody::sure(core, &function.current()).await;
    sure.map_err(NotHere::Failed)?;
    let entries = whole.map(|whole| {
        let entries = whole.into_iter();
        entries
            .map(|(key, value)| (key.to_string(), value))
            .collect()
    });
    Ok(Lent {
        version,
        epoch,
        entries,
    })
}

/// Lends a shared key's value, whoever has its turn.
async fn load_key(core: &Arc<Core>, from: &NodeName, group: &Group) -> Result<Lent, NotHere> {
    let read = keys::read_here(core, group, Some(from)).await;
    let read = read.map_err(|problem| elsewhere(core, group, problem))?;
    if let Some(keys) = core.functions.of(group) {
        let shown = custody::shown(core, &keys, read.saw).await;
        shown.map_err(NotHere::Failed)?;
    }
    let entries = read.value.map(|value| (VALUE.to_owned(), value));
    Ok(Lent {
        entries: Some(entries.into_iter().collect()),
        version: Version(0),
        epoch: Epoch(0),
    })
}

/// Commits what came of an invocation that ran on lent state at another node.
pub(crate) async fn commit(
    core: &Arc<Core>,
    from: &NodeName,
    returned: Returned,
) -> Result<Settled, NotHere> {
    if let Some(refused) = core.refuses_writes() {
        return Err(NotHere::Failed(refused));
    }
    let group = returned.group.clone();
    let held = hold(core, &group).await?;
    let sure = custody::sure(core, &held.function.current()).await;
    sure.map_err(NotHere::Failed)?;
    let state = held.state.clone();
    let internal = |text: String| NotHere::Failed(Problem::new(Code::Internal, text));
    let mut bookkeeping = Bookkeeping::default();
    if let Some((idempotency_key, record)) = &returned.idempotency {
        let (function, session) = (group.function.as_str(), group.session.as_str());
        let record_key = key::idempotency(function, Some(session), idempotency_key);
        let found = core
            .store
            .record_with_ticket::<IdempotencyRecord>(Table::Idempotency, &record_key)
            .map_err(|error| internal(error.to_string()))?;
        if let Some((found, ticket)) = found
            && found.expires_unix_ms > clock::unix_ms()
        {
            drop(held);
            let safe = custody::safe(core, &group.function, ticket).await;
            safe.map_err(|failure| NotHere::Failed(storage_failed(&failure)))?;
            return Ok(Settled::Replay(found));
        }
        bookkeeping.put(Table::Idempotency, &record_key, record);
    }
    if (state.version(), state.epoch()) != (returned.version, returned.epoch) {
        return Ok(Settled::Conflict);
    }
    // Only what succeeds, so that who is far, and comes too late more often, does not count for more.
    let (function, name) = (&held.function, group.session.shared());
    follow::note(core, function, &held.session, name, Some(from));
    let mut tx = core.store.begin(Some(state), false);
    for (key, value) in returned.writes {
        let written = match value {
            Some(value) => tx.set(Bucket::Session, &key, value),
            None => tx.delete(Bucket::Session, &key),
        };
        written.map_err(|error| internal(error.to_string()))?;
    }
    for message in returned.messages {
        let body = message.request.body.into();
        let sent = tx.send(message.to.function, message.to.session, body);
        sent.map_err(|error| internal(error.to_string()))?;
    }
    let (done, durable) = oneshot::channel();
    let committed = {
        let release = Box::new(move |result| {
            let _ = done.send(result);
        });
        let prepared = core.store.prepare(tx, 0);
        let prepared = prepared.map_err(|_| internal("a shared key was written".to_owned()))?;
        let (durability, now) = (returned.durability, clock::unix_ms());
        prepared.commit(durability, bookkeeping, now, release)
    };
    let committed = committed.map_err(|failure| NotHere::Failed(storage_failed(&failure)))?;
    // A worker that knows the session here knows it as it was.
    core.pool
        .evict_session(&held.function.name, group.session.as_str());
    core.courier.post(core, committed.messages);
    let version = held.session.state().map(|state| state.version());
    drop(held);
    match durable.await {
        Ok(Ok(())) => Ok(Settled::Committed(version.unwrap_or_default())),
        Ok(Err(failure)) => Err(NotHere::Failed(storage_failed(&failure))),
        Err(_) => Err(NotHere::Failed(Problem::new(
            Code::ShuttingDown,
            "the node stopped before it was stored",
        ))),
    }
}
