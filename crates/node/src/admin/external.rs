//! Sessions in the external store: listed, shown, removed, exported.

use std::sync::Arc;

use bytes::Bytes;
use fulmar_model::{Code, ExecutionModel, FunctionName, Group, Problem};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Answer, Failed, json, no_content, session_name};
use crate::core::Core;
use crate::external;
use crate::hold::Hold;
use crate::models;

/// Sessions that an export asks for at once.
const EXPORT_STEP: usize = 256;

/// Whether the sessions of a function are in the external store.
pub(super) fn is_external(core: &Core, function: &str) -> bool {
    let function = core.functions.get(function);
    function.is_some_and(|function| function.current().is_external())
}

/// Whether a session is in the external store.
pub(super) fn has(core: &Core, group: &Group) -> Result<bool, Problem> {
    let at_home = models::at_home(core, group);
    let at_home = at_home.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(is_external(core, group.function.as_str()) || at_home == Some(ExecutionModel::External))
}

async fn names(
    core: &Core,
    function: &FunctionName,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<String>, Problem> {
    let store = external::of(core).await?;
    let names = store.sessions(function, after, limit).await;
    names.map_err(|error| external::problem(&error))
}

fn describe(group: &Group, version: u64, entries: &[(String, Bytes)]) -> Value {
    let bytes = entries.iter().map(|(key, value)| key.len() + value.len());
    json!({
        "function": group.function,
        "session": group.session,
        "version": version,
        "keys": entries.len(),
        "bytes": bytes.sum::<usize>(),
        "hot": false,
        "hot_bytes": 0,
        "epoch": 0,
        "home": "external store",
        "updated_at": Value::Null,
    })
}

/// Says of a session that is at home here what the store has of it.
pub(super) async fn measure(
    core: &Core,
    group: &Group,
    described: &mut Value,
) -> Result<(), Problem> {
    let kept = external::of(core).await?.load(group).await;
    let kept = kept.map_err(|error| external::problem(&error))?;
    let measured = describe(group, kept.version.0, &kept.entries);
    for field in ["version", "keys", "bytes"] {
        described[field] = measured[field].clone();
    }
    Ok(())
}

/// Lists a function's sessions whose names begin with a prefix and come after one.
pub(super) async fn list(
    core: &Core,
    function: &FunctionName,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Answer {
    let mut sessions = Vec::new();
    let mut after = after.map(str::to_owned);
    let mut next = None;
    'pages: loop {
        let page = names(core, function, after.as_deref(), limit).await?;
        for name in &page {
            if !name.starts_with(prefix) {
                continue;
            }
            let group = Group {
                function: function.clone(),
                session: session_name(name)?,
            };
            let kept = external::of(core).await?.load(&group).await;
            let kept = kept.map_err(|error| external::problem(&error))?;
            sessions.push(describe(&group, kept.version.0, &kept.entries));
            if sessions.len() == limit {
                next = Some(group.to_string());
                break 'pages;
            }
        }
        if page.len() < limit {
            break;
        }
        after = page.last().cloned();
    }
    Ok(json(&json!({ "sessions": sessions, "next": next })))
}

/// Shows or removes one.
pub(super) async fn one(core: &Arc<Core>, method: &str, group: &Group) -> Answer {
    let store = external::of(core).await?;
    let kept = store.load(group).await;
    let kept = kept.map_err(|error| external::problem(&error))?;
    if kept.version.0 == 0 {
        let detail = format!("no session {group} is stored");
        return Err(Failed(Problem::new(Code::SessionNotFound, detail)));
    }
    match method {
        "GET" => Ok(json(&describe(group, kept.version.0, &kept.entries))),
        "DELETE" => {
            let hold = Hold::session(core, group).await?;
            let unsent = store.messages(group).await;
            let unsent = unsent.map_err(|error| external::problem(&error))?;
            if !unsent.is_empty() {
                let detail = "messages that the session has sent are still on their way; try again";
                return Err(Failed(Problem::new(Code::QueueFull, detail)));
            }
            let removed = store.remove(group).await;
            removed.map_err(|error| external::problem(&error))?;
            hold.forget();
            Ok(no_content())
        }
        other => Err(Failed(Problem::new(
            Code::MethodNotAllowed,
            format!("{other} is not allowed here; GET and DELETE are"),
        ))),
    }
}

/// Sends what the external store has of a function, or of one of its sessions, as lines of an export.
pub(super) async fn export(
    core: &Core,
    function: &FunctionName,
    session: Option<&Group>,
    line: impl Fn(&Group, &str, &[u8]) -> Vec<u8>,
    lines: &mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> Result<(), Problem> {
    let mut after: Option<String> = None;
    loop {
        let page = match session {
            Some(group) => vec![group.session.to_string()],
            None => names(core, function, after.as_deref(), EXPORT_STEP).await?,
        };
        for name in &page {
            let group = Group {
                function: function.clone(),
                session: session_name(name).map_err(|failed| failed.0)?,
            };
            let kept = external::of(core).await?.load(&group).await;
            let kept = kept.map_err(|error| external::problem(&error))?;
            for (key, value) in &kept.entries {
                if lines
                    .send(Ok(line(&group, key, value).into()))
                    .await
                    .is_err()
                {
                    // The client went away.
                    return Ok(());
                }
            }
        }
        if session.is_some() || page.len() < EXPORT_STEP {
            return Ok(());
        }
        after = page.last().cloned();
    }
}
