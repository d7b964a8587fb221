//! Sessions: listed, shown, removed.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::routing::{any, get, post};
use fulmar_model::id::is_shared_keys;
use fulmar_model::{Bucket, Code, ExecutionModel, Group, NodeName, Problem};
use fulmar_state::record::{Record, SessionRecord};
use fulmar_state::{Bookkeeping, Table, key};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, Failed, bad_request, external, function_name, json, no_content, page, segments,
    session_name,
};
use crate::clock;
use crate::core::Core;
use crate::hold::Hold;
use crate::{migrate, models, outside, route, transition};

/// Keys counted when a session is listed; of a larger one the numbers are left out.
const COUNTED_KEYS: usize = 1000;
/// Keys deleted by one commit.
const DELETED_KEYS: usize = 5000;

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/admin/sessions", get(list))
        .route("/admin/sessions/{*path}", any(one))
        .route("/admin/migrations", post(migrate))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    function: Option<String>,
    prefix: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

async fn list(State(core): State<Arc<Core>>, Query(options): Query<Options>) -> Answer {
    let limit = page(options.limit);
    if let Some(function) = &options.function
        && external::is_external(&core, function)
    {
        let after = options.after.as_deref();
        let after = after.and_then(|after| after.split_once('/'));
        let prefix = options.prefix.as_deref().unwrap_or_default();
        let (function, after) = (function_name(function)?, after.map(|(_, session)| session));
        return external::list(&core, &function, prefix, after, limit).await;
    }
    let prefix = match (
        &options.function,
        options.prefix.as_deref().unwrap_or_default(),
    ) {
        (Some(function), prefix) => format!("{}\0{prefix}", function_name(function)?),
        (None, "") => String::new(),
        (None, _) => return Err(bad_request("prefix needs a function")),
    };
    // `after` is what `next` gave: function and session, joined by a slash.
    let after = options
        .after
        .as_deref()
        .and_then(|after| after.split_once('/'));
    let after = after.map(|(function, session)| format!("{function}\0{session}"));
    let after = after
        .as_deref()
        .filter(|after| *after >= prefix.as_str())
        .map(str::as_bytes);
    let mut found = Vec::new();
    core.store.scan(
        Table::Sessions,
        prefix.as_bytes(),
        after,
        &mut |key, value| {
            let session = key::parse_session(key);
            // Shared keys are listed as such.
            let is_one = |(function, _): &(&str, &str)| !is_shared_keys(function);
            if let Some((function, session)) = session.filter(is_one) {
                found.push((
                    function.to_owned(),
                    session.to_owned(),
                    SessionRecord::decode(value),
                ));
            }
            found.len() < limit
        },
    )?;
    let next = found
        .last()
        .filter(|_| found.len() == limit)
        .map(|(function, session, _)| format!("{function}/{session}"));
    let mut sessions = Vec::with_capacity(found.len());
    for (function, session, record) in found {
        let record = record.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        let group = Group {
            function: function_name(&function)?,
            session: session_name(&session)?,
        };
        sessions.push(describe(&core, &group, &record, COUNTED_KEYS)?);
    }
    let functions = core.functions.all().into_iter();
    let external: Vec<_> = functions
        .filter(|function| options.function.is_none() && function.current().is_external())
        .map(|function| function.name.clone())
        .collect();
    Ok(json(
        &json!({ "sessions": sessions, "next": next, "external": external }),
    ))
}

fn describe(
    core: &Core,
    group: &Group,
    record: &SessionRecord,
    count_at_most: usize,
) -> Result<Value, Failed> {
    let hot = core
        .functions
        .get(group.function.as_str())
        .and_then(|function| function.sessions.peek(group.session.as_str()))
        .and_then(|session| session.state());
    let prefix = key::session_state(group);
    let (mut keys, mut bytes) = (0_usize, 0_usize);
    core.store
        .scan(Table::State, &prefix, None, &mut |key, value| {
            keys += 1;
            bytes += key.len() - prefix.len() + value.len();
            keys < count_at_most
        })?;
    let model = execution_model(core, group)?;
    // What is here says nothing of what the external store has.
    let is_here = model != ExecutionModel::External;
    let counted = keys < count_at_most && is_here;
    let version = hot.as_ref().map_or(record.version, |hot| hot.version());
    Ok(json!({
        "function": group.function,
        "session": group.session,
        "version": is_here.then_some(version.0),
        "keys": counted.then_some(keys),
        "bytes": counted.then_some(bytes),
        "hot": hot.is_some(),
        "hot_bytes": hot.map_or(0, |hot| hot.hot_bytes()),
        "epoch": record.epoch.0,
        "execution_model": model,
        "home": core.cluster.as_ref().map(|cluster| cluster.name()),
        "updated_at": clock::rfc3339(record.updated_unix_ms),
    }))
}

/// Where the session's state is, if the platform does not decide it from request to request.
fn execution_model(core: &Core, group: &Group) -> Result<ExecutionModel, Failed> {
    if let Some(model) = models::at_home(core, group)? {
        return Ok(model);
    }
    let function = core.functions.get(group.function.as_str());
    Ok(function.map_or(ExecutionModel::Auto, |function| {
        function.current().manifest.execution_model
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    execution_model: String,
}

/// Changes the model of a session that is at home here.
async fn set_model(core: &Arc<Core>, group: &Group, body: Body) -> Answer {
    let body = super::read(body, MAX_WANTED_BYTES).await?;
    let change: Change = serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the change is not as expected: {error}")))?;
    let model = ExecutionModel::parse(&change.execution_model).ok_or_else(|| {
        let detail = format!("{:?} is no execution model", change.execution_model);
        Problem::new(Code::ExecutionModelRefused, detail)
    })?;
    let changed = models::change(core, group, model).await?;
    Ok(json(
        &json!({ "execution_model": model, "changed": changed }),
    ))
}

async fn one(State(core): State<Arc<Core>>, request: Request) -> Answer {
    let segments = segments(request.uri(), "/admin/sessions/")?;
    let [function, session] = &segments[..] else {
        return Err(bad_request(
            "the path has to be /admin/sessions/FUNCTION/SESSION, each percent-encoded",
        ));
    };
    let group = Group {
        function: function_name(function)?,
        session: session_name(session)?,
    };
    if external::is_external(&core, function) {
        return external::one(&core, request.method().as_str(), &group).await;
    }
    let unknown = || {
        Failed(Problem::new(
            Code::SessionNotFound,
            format!("no session {group} is stored"),
        ))
    };
    match request.method().as_str() {
        "GET" => {
            let hold = Hold::session(&core, &group).await?;
            hold.settled().await?;
            let record = core.store.session_record(&group)?.ok_or_else(unknown)?;
            let mut described = describe(&core, &group, &record, usize::MAX)?;
            if external::has(&core, &group)? {
                external::measure(&core, &group, &mut described).await?;
            }
            Ok(json(&described))
        }
        "PATCH" => {
            // What was committed last has to be where it is looked for. Whoever has run the session need not look.
            if !request.headers().contains_key(&route::RELAYED) {
                Hold::shared(&core).settled().await?;
                core.store.session_record(&group)?.ok_or_else(unknown)?;
            }
            set_model(&core, &group, request.into_body()).await
        }
        "DELETE" => {
            if external::has(&core, &group)? {
                // What is left in the store then is nobody's.
                outside::come_back(&core, &group).await?;
            }
            let hold = Hold::session(&core, &group).await?;
            hold.settled().await?;
            core.store.session_record(&group)?.ok_or_else(unknown)?;
            loop {
                let mut tx = hold.begin();
                let keys = tx
                    .list_keys(Bucket::Session, "", None, DELETED_KEYS)
                    .map_err(super::state::problem)?;
                for key in &keys {
                    tx.delete(Bucket::Session, key)
                        .map_err(super::state::problem)?;
                }
                let last = keys.len() < DELETED_KEYS;
                let mut bookkeeping = Bookkeeping::default();
                if last {
                    bookkeeping.delete(Table::Sessions, &key::session(&group));
                    transition::take_note_away(&group, &mut bookkeeping);
                    transition::choose(&group, ExecutionModel::Auto, &mut bookkeeping);
                }
                hold.commit(tx, bookkeeping).await?;
                if last {
                    break;
                }
            }
            let home = hold.home();
            hold.forget();
            if let (Some(cluster), Some(home)) = (&core.cluster, home) {
                let forgotten = cluster.directory().forget(&group, &home).await;
                forgotten.map_err(|error| crate::homes::unknown(&error))?;
            }
            Ok(no_content())
        }
        other => Err(Failed(Problem::new(
            Code::MethodNotAllowed,
            format!("{other} is not allowed here; GET, PATCH and DELETE are"),
        ))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    function: String,
    session: String,
    to: String,
}

/// Largest request for a migration in bytes.
const MAX_WANTED_BYTES: usize = 16 << 10;

/// Moves a session to another node; asked of any node.
async fn migrate(State(core): State<Arc<Core>>, request: Request) -> Answer {
    let is_relayed = request.headers().contains_key(&route::RELAYED);
    let body = super::read(request.into_body(), MAX_WANTED_BYTES).await?;
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the migration is not as expected: {error}")))?;
    let group = Group {
        function: function_name(&wanted.function)?,
        session: session_name(&wanted.session)?,
    };
    let to = NodeName::new(&wanted.to).map_err(|error| bad_request(error.to_string()))?;
    let cluster = super::nodes::cluster(&core)?;
    if cluster.view().member(&to).is_none() {
        let detail = format!("no node is called {to}");
        return Err(Failed(Problem::new(Code::NodeNotFound, detail)));
    }
    let found = cluster.directory().find(&group, None).await;
    let home = found.map_err(|error| crate::homes::unknown(&error))?;
    let Some(home) = home else {
        let detail = format!("no session {group} is known");
        return Err(Failed(Problem::new(Code::SessionNotFound, detail)));
    };
    if home.node == to {
        return Ok(json(
            &json!({ "home": to, "epoch": home.epoch.0, "moved": false }),
        ));
    }
    if home.node != *cluster.name() && !is_relayed {
        return super::relay(cluster, &home.node, "POST", "/admin/migrations", body).await;
    }
    let migration = migrate::migrate(&core, cluster, &group, &to).await?;
    Ok(json(&json!({
        "home": migration.home.node,
        "epoch": migration.home.epoch.0,
        "moved": true,
        "held_seconds": migration.held.as_secs_f64(),
    })))
}
