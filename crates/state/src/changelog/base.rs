//! A base: all that there is, so that the log before it is of no more use.
//!
//! It is read while commits go on, so that it may hold some of what the segments after it hold as well;
//! they are read after it, and their writes replace its own. It counts only when the log has caught up with
//! what it may have seen.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::segment::{self, Content, Segment};
use super::{Changelog, is_copied};
use crate::aside;
use crate::engine::{EngineError, Table, Write};
use crate::objects::{Objects, ObjectsError};
use crate::store::Store;

/// Content of one part in bytes, about.
const PART_BYTES: usize = 4 << 20;

/// What is known of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    /// The segment that it comes after.
    pub(crate) sequence: u64,
    /// Its parts.
    pub(crate) parts: u64,
    /// Bytes of all of them.
    pub(crate) bytes: u64,
}

/// Name of the object that says which base counts.
pub(crate) fn current(prefix: &str) -> String {
    format!("{prefix}/base/current")
}

pub(crate) fn part(prefix: &str, sequence: u64, part: u64) -> String {
    format!("{prefix}/base/{sequence:016}/{part:06}")
}

fn bad(name: &str, reason: impl Into<String>) -> ObjectsError {
    ObjectsError::Failed {
        doing: "keep",
        name: name.to_owned(),
        reason: reason.into(),
    }
}

/// Which base counts, if there is one.
pub(crate) async fn read_current(
    objects: &Objects,
    prefix: &str,
) -> Result<Option<Base>, ObjectsError> {
    let name = current(prefix);
    let Some(bytes) = objects.get(&name).await? else {
        return Ok(None);
    };
    let base = serde_json::from_slice(&bytes);
    base.map(Some)
        .map_err(|error| bad(&name, error.to_string()))
}

/// Writes a base.
pub(super) async fn write(
    store: Arc<Store>,
    log: Arc<Changelog>,
    objects: Objects,
    prefix: String,
    run: u64,
    stream: u64,
    sequence: u64,
) -> Result<Base, ObjectsError> {
    let mut contents = contents(store.clone());
    let mut base = Base {
        sequence,
        parts: 0,
        bytes: 0,
    };
    let mut sizes = Vec::new();
    while let Some(content) = contents.recv().await {
        let name = part(&prefix, sequence, base.parts);
        let content = content.map_err(|error| bad(&name, error.to_string()))?;
        let encoded = Segment {
            stream,
            sequence: base.parts,
            run,
            first: crate::Ticket(0),
            last: crate::Ticket(0),
            content: Content::Writes(content.into()),
        }
        .encode();
        base.parts += 1;
        base.bytes += encoded.len() as u64;
        sizes.push((name.clone(), encoded.len() as u64));
        objects.put(&name, encoded).await?;
    }
    // Whatever of later commits is in it is in the log as well, before it counts.
    log.reached(store.commits().submitted()).await;
    for (name, size) in sizes {
        if objects.size(&name).await? != Some(size) {
            return Err(bad(&name, "it is not there as it was written"));
        }
    }
    let name = current(&prefix);
    let text = serde_json::to_vec(&base).map_err(|error| bad(&name, error.to_string()))?;
    objects.put(&name, Bytes::from(text)).await?;
    match read_current(&objects, &prefix).await? {
        Some(read) if read == base => Ok(base),
        _ => Err(bad(&name, "it is not there as it was written")),
    }
}

/// Deletes a base that counts no more.
pub(super) async fn delete(
    objects: &Objects,
    prefix: &str,
    sequence: u64,
) -> Result<(), ObjectsError> {
    objects
        .delete_below(&format!("{prefix}/base/{sequence:016}"))
        .await
}

type Contents = mpsc::Receiver<Result<Vec<u8>, EngineError>>;

/// All that is copied, in parts. Read on a thread of its own, since it may take long.
fn contents(store: Arc<Store>) -> Contents {
    aside::items(1, move |give| {
        let mut content = Vec::new();
        for table in Table::ALL.into_iter().filter(|table| is_copied(*table)) {
            let mut gone = false;
            let scanned = store.scan(table, &[], None, &mut |key, value| {
                let write = Write {
                    table,
                    key,
                    value: Some(value),
                };
                segment::put_write(&mut content, &write);
                if content.len() > PART_BYTES {
                    gone = !give(Ok(std::mem::take(&mut content)));
                }
                !gone
            });
            if let Err(error) = scanned {
                // Nobody listens any more: then nobody misses it.
                let _ = give(Err(error));
                return;
            }
        }
        if !content.is_empty() {
            let _ = give(Ok(content));
        }
    })
}
