//! Messages that were given up: shown, tried again, dropped.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::Response;
use axum::routing::{delete, get, post};
use fulmar_model::{Code, Problem};
use fulmar_state::record::{MessageRecord, Record};
use fulmar_state::{Bookkeeping, Table};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failed, json, no_content, page};
use crate::clock;
use crate::core::Core;
use crate::courier::MessageKey;
use crate::deploy::store;
use crate::execute::storage_failed;

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/admin/dead-letters", get(list).delete(drop_all))
        .route("/admin/dead-letters/retry", post(retry_all))
        .route("/admin/dead-letters/{id}", delete(drop_one))
        .route("/admin/dead-letters/{id}/retry", post(retry_one))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    after: Option<String>,
    limit: Option<usize>,
}

fn id_of(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_of(id: &str) -> Result<MessageKey, Failed> {
    let mut key = MessageKey::default();
    let good = id.len() == 2 * key.len() && id.is_ascii();
    for (at, byte) in key.iter_mut().enumerate().filter(|_| good) {
        *byte = u8::from_str_radix(&id[2 * at..2 * at + 2], 16).map_err(|_| unknown(id))?;
    }
    if good { Ok(key) } else { Err(unknown(id)) }
}

fn unknown(id: &str) -> Failed {
    Failed(Problem::new(
        Code::DeadLetterNotFound,
        format!("no dead letter {id:?} is parked"),
    ))
}

fn find(core: &Core, id: &str) -> Result<(MessageKey, MessageRecord), Failed> {
    let key = key_of(id)?;
    let message = core
        .store
        .record::<MessageRecord>(Table::DeadLetters, &key)?;
    Ok((key, message.ok_or_else(|| unknown(id))?))
}

/// Up to `limit` dead letters after a key.
fn some(
    core: &Core,
    after: Option<MessageKey>,
    limit: usize,
) -> Result<Vec<(MessageKey, MessageRecord)>, Failed> {
    let (mut letters, mut bad) = (Vec::new(), None);
    core.store.scan(
        Table::DeadLetters,
        &[],
        after.as_ref().map(|key| &key[..]),
        &mut |key, value| {
            match (MessageKey::try_from(key), MessageRecord::decode(value)) {
                (Ok(key), Ok(message)) => letters.push((key, message)),
                (_, Err(error)) => bad = Some(error.to_string()),
                (Err(_), _) => bad = Some("a key has the wrong length".into()),
            }
            letters.len() < limit
        },
    )?;
    match bad {
        Some(error) => Err(Failed(Problem::new(
            Code::Internal,
            format!("a dead letter cannot be read: {error}"),
        ))),
        None => Ok(letters),
    }
}

async fn list(State(core): State<Arc<Core>>, Query(options): Query<Options>) -> Answer {
    let limit = page(options.limit);
    let after = options.after.as_deref().map(key_of).transpose()?;
    let letters = some(&core, after, limit)?;
    let next = letters
        .last()
        .filter(|_| letters.len() == limit)
        .map(|(key, _)| id_of(key));
    let shown: Vec<Value> = letters
        .iter()
        .map(|(key, message)| {
            json!({
                "id": id_of(key),
                "from": message.from,
                "to": message.to,
                "attempts": message.attempts,
                "error": message.error,
                "parked_at": clock::rfc3339(message.at_unix_ms),
                "body_bytes": message.request.body.len(),
            })
        })
        .collect();
    Ok(json(&json!({ "dead_letters": shown, "next": next })))
}

/// Puts a letter back among the messages, as if it had just been sent.
fn send_again(core: &Arc<Core>, key: MessageKey, mut message: MessageRecord) -> Result<(), Failed> {
    message.attempts = 0;
    message.at_unix_ms = clock::unix_ms();
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.delete(Table::DeadLetters, &key);
    let sent = core
        .store
        .commit_message(bookkeeping, &message, Box::new(|_| {}));
    let key = sent.map_err(|failure| storage_failed(&failure))?;
    core.metrics.dead_letters.dec();
    core.courier.post(core, vec![(key, message)]);
    Ok(())
}

async fn retry_one(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Answer {
    let (key, message) = find(&core, &id)?;
    send_again(&core, key, message)?;
    Ok(no_content())
}

async fn drop_one(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Answer {
    let (key, _) = find(&core, &id)?;
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.delete(Table::DeadLetters, &key);
    store(&core, bookkeeping).await?;
    core.metrics.dead_letters.dec();
    Ok(no_content())
}

async fn retry_all(State(core): State<Arc<Core>>) -> Answer {
    let done = for_all(&core, |key, message| send_again(&core, key, message))?;
    Ok(counted("retried", done))
}

async fn drop_all(State(core): State<Arc<Core>>) -> Answer {
    let mut bookkeeping = Bookkeeping::default();
    let dropped = for_all(&core, |key, _| {
        bookkeeping.delete(Table::DeadLetters, &key);
        Ok(())
    })?;
    if !bookkeeping.is_empty() {
        store(&core, bookkeeping).await?;
    }
    core.metrics.dead_letters.sub(dropped as i64);
    Ok(counted("dropped", dropped))
}

fn for_all(
    core: &Core,
    mut each: impl FnMut(MessageKey, MessageRecord) -> Result<(), Failed>,
) -> Result<usize, Failed> {
    let (mut done, mut after) = (0, None);
    loop {
        let letters = some(core, after, super::MAX_PAGE)?;
        let Some((last, _)) = letters.last() else {
            return Ok(done);
        };
        after = Some(*last);
        for (key, message) in letters {
            each(key, message)?;
            done += 1;
        }
    }
}

fn counted(what: &str, count: usize) -> Response<axum::body::Body> {
    json(&json!({ what: count }))
}
