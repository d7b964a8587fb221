//! Keys and values as JSON Lines: exported, and imported again.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, Response, header};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fulmar_model::id::{DEFAULT_NAMESPACE, split_bucket};
use fulmar_model::{FunctionName, Group};
use fulmar_state::{Bookkeeping, MAX_VALUE_BYTES, Table, key};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use super::super::{Answer, Failed, bad_request, external, json};
use super::{Scope, problem};
use crate::core::Core;
use crate::hold::Hold;
use crate::{keys, outside};

/// Longest line of an import in bytes: the largest value as base64, and its names.
const MAX_LINE_BYTES: usize = MAX_VALUE_BYTES / 3 * 4 + (16 << 10);
/// Entries that an export holds in memory.
const EXPORT_STEP: usize = 256;

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/admin/state-export", get(export))
        .route("/admin/state-import", post(import))
}

/// One key and value, as exported and imported.
#[derive(Serialize, Deserialize)]
#[serde(tag = "scope", rename_all = "lowercase", deny_unknown_fields)]
enum Entry {
    Shared {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        bucket: String,
        key: String,
        value: String,
    },
    Session {
        function: String,
        session: String,
        key: String,
        value: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportOptions {
    scope: Option<String>,
}

async fn export(State(core): State<Arc<Core>>, Query(options): Query<ExportOptions>) -> Answer {
    Hold::shared(&core).settled().await?;
    let mut in_store: Vec<(FunctionName, Option<Group>)> = Vec::new();
    let ranges: Vec<(Table, Vec<u8>)> = match options.scope {
        None => {
            let functions = core.functions.all().into_iter();
            let functions = functions.filter(|function| function.current().is_external());
            in_store.extend(functions.map(|function| (function.name.clone(), None)));
            let some = outside::all(&core, None)?.into_iter();
            in_store.extend(some.map(|group| (group.function.clone(), Some(group))));
            vec![(Table::Shared, Vec::new()), (Table::State, Vec::new())]
        }
        Some(scope) => {
            let segments: Option<Vec<String>> = scope
                .split('/')
                .map(|segment| crate::target::decode_segment(segment).map(String::from))
                .collect();
            let segments =
                segments.ok_or_else(|| bad_request("the scope is not percent-encoded UTF-8"))?;
            match Scope::parse(&segments)?.0 {
                Scope::Shared(bucket) => vec![(Table::Shared, key::bucket(&bucket))],
                Scope::Session(group) if external::has(&core, &group)? => {
                    in_store.push((group.function.clone(), Some(group)));
                    Vec::new()
                }
                Scope::Session(group) => vec![(Table::State, key::session_state(&group))],
            }
        }
    };
    let (lines, exported) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    let (from, to) = (core.clone(), lines.clone());
    let kept_here = tokio::task::spawn_blocking(move || {
        let (core, lines) = (from, to);
        for (table, prefix) in ranges {
            if let Err(error) = export_range(&core, table, &prefix, &lines) {
                // Breaks the response off, so that it does not look whole.
                let _ = lines.blocking_send(Err(std::io::Error::other(error)));
                return;
            }
        }
    });
    tokio::spawn(async move {
        if kept_here.await.is_err() {
            return;
        }
        for (function, session) in in_store {
            let session = session.as_ref();
            if let Err(problem) = external::export(&core, &function, session, line, &lines).await {
                let _ = lines.send(Err(std::io::Error::other(problem.detail))).await;
                return;
            }
        }
    });
    let stream = futures_util::stream::unfold(exported, |mut exported| async move {
        exported.recv().await.map(|chunk| (chunk, exported))
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/jsonl"),
    );
    Ok(response)
}

/// Exports a range in steps, so that neither the engine nor memory is held by a slow client.
fn export_range(
    core: &Core,
    table: Table,
    prefix: &[u8],
    lines: &mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> Result<(), String> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let (mut chunk, mut seen, mut last) = (Vec::new(), 0, None);
        core.store
            .scan(table, prefix, after.as_deref(), &mut |path, value| {
                if let Some(entry) = entry(table, path, value)
                    && serde_json::to_writer(&mut chunk, &entry).is_ok()
                {
                    chunk.push(b'\n');
                }
                seen += 1;
                last = Some(path.to_vec());
                seen < EXPORT_STEP && chunk.len() < MAX_LINE_BYTES
            })
            .map_err(|error| error.to_string())?;
        let Some(last) = last else { return Ok(()) };
        after = Some(last);
        if lines.blocking_send(Ok(chunk.into())).is_err() {
            // The client went away.
            return Ok(());
        }
    }
}

/// A key of a session in the external store as a line.
fn line(group: &Group, key: &str, value: &[u8]) -> Vec<u8> {
    let entry = Entry::Session {
        function: group.function.to_string(),
        session: group.session.to_string(),
        key: key.to_owned(),
        value: BASE64.encode(value),
    };
    let mut line = serde_json::to_vec(&entry).unwrap_or_default();
    line.push(b'\n');
    line
}

fn entry(table: Table, path: &[u8], value: &[u8]) -> Option<Entry> {
    let value = BASE64.encode(value);
    let path = std::str::from_utf8(path).ok()?;
    let (first, rest) = path.split_once('\0')?;
    if table == Table::Shared {
        let (namespace, bucket) = split_bucket(first);
        return Some(Entry::Shared {
            namespace: (namespace != DEFAULT_NAMESPACE).then(|| namespace.to_owned()),
            bucket: bucket.to_owned(),
            key: rest.to_owned(),
            value,
        });
    }
    let (session, key) = rest.split_once('\0')?;
    let function = FunctionName::new(first).ok()?;
    if function.is_shared_keys() {
        let (bucket, key) = keys::parse(&function, session)?;
        let (namespace, bucket) = split_bucket(&bucket);
        return Some(Entry::Shared {
            namespace: (namespace != DEFAULT_NAMESPACE).then(|| namespace.to_owned()),
            bucket: bucket.to_owned(),
            key,
            value,
        });
    }
    Some(Entry::Session {
        function: first.to_owned(),
        session: session.to_owned(),
        key: key.to_owned(),
        value,
    })
}

async fn import(State(core): State<Arc<Core>>, request: Request) -> Answer {
    let mut stream = request.into_body().into_data_stream();
    let (mut buffer, mut line_number, mut imported) = (Vec::new(), 0_usize, 0_usize);
    let mut batch = Vec::new();
    loop {
        let chunk = stream
            .next()
            .await
            .transpose()
            .map_err(|error| bad_request(format!("the body broke off: {error}")))?;
        let ended = chunk.is_none();
        buffer.extend_from_slice(&chunk.unwrap_or_default());
        let mut start = 0;
        while start < buffer.len() {
            let end = match buffer[start..].iter().position(|byte| *byte == b'\n') {
                Some(at) => start + at,
                None if ended => buffer.len(),
                None => break,
            };
            line_number += 1;
            let line = &buffer[start..end];
            if !line.trim_ascii().is_empty() {
                let entry = serde_json::from_slice::<Entry>(line).map_err(|error| {
                    bad_request(format!(
                        "line {line_number} is not an exported entry: {error}"
                    ))
                })?;
                batch.push((line_number, entry));
            }
            start = end + 1;
        }
        buffer.drain(..start.min(buffer.len()));
        if buffer.len() > MAX_LINE_BYTES {
            return Err(bad_request(format!(
                "line {} is longer than {MAX_LINE_BYTES} bytes",
                line_number + 1
            )));
        }
        imported += batch.len();
        write(&core, &mut batch).await?;
        if ended {
            return Ok(json(&json!({ "imported": imported })));
        }
    }
}

/// Writes entries: consecutive ones of one scope in one commit.
async fn write(core: &Arc<Core>, batch: &mut Vec<(usize, Entry)>) -> Result<(), Failed> {
    let mut entries = std::mem::take(batch).into_iter().peekable();
    while let Some((line, entry)) = entries.next() {
        let (scope, first) = split(line, entry)?;
        let hold = scope.hold(core).await?;
        let mut tx = hold.begin();
        tx.set(scope.bucket(), &first.0, first.1).map_err(problem)?;
        while let Some((line, entry)) = entries.next_if(|(_, next)| is_in(next, &scope)) {
            let (_, (key, value)) = split(line, entry)?;
            tx.set(scope.bucket(), &key, value).map_err(problem)?;
        }
        hold.commit(tx, Bookkeeping::default()).await?;
    }
    Ok(())
}

fn is_in(entry: &Entry, scope: &Scope) -> bool {
    match (entry, scope) {
        (
            Entry::Shared {
                namespace, bucket, ..
            },
            Scope::Shared(name),
        ) => {
            (
                namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE),
                bucket.as_str(),
            ) == split_bucket(name)
        }
        (
            Entry::Session {
                function, session, ..
            },
            Scope::Session(group),
        ) => function == group.function.as_str() && session == group.session.as_str(),
        _ => false,
    }
}

fn split(line: usize, entry: Entry) -> Result<(Scope, (String, Bytes)), Failed> {
    let (segments, key, value) = match entry {
        Entry::Shared {
            namespace,
            bucket,
            key,
            value,
        } => {
            let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
            (vec!["namespace".to_owned(), namespace, bucket], key, value)
        }
        Entry::Session {
            function,
            session,
            key,
            value,
        } => (vec!["session".to_owned(), function, session], key, value),
    };
    let (scope, _) = Scope::parse(&segments)?;
    let value = BASE64
        .decode(value)
        .map_err(|error| bad_request(format!("the value in line {line} is not base64: {error}")))?;
    Ok((scope, (key, value.into())))
}
