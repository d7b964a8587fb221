//! What was read of a lost node's log.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use fulmar_cluster::{LogRecord, StageEntry};
use fulmar_model::{Epoch, FunctionName, Group, Problem, Version};
use fulmar_state::engine::{Engine, EngineError};
use fulmar_state::fjall_engine::FjallEngine;
use fulmar_state::record::{HomeRecord, InvocationRecord, MessageRecord, Record, SessionRecord};
use fulmar_state::{Table, key};

use super::internal;
use crate::courier::{self, Posted};

/// Entries that are staged at once, in bytes.
const PART_BYTES: usize = 256 << 10;

/// What was read of a lost node's log.
pub(super) struct Image {
    pub(super) log: LogRecord,
    pub(super) engine: Arc<FjallEngine>,
    folder: PathBuf,
    /// Messages that it still had to deliver, by the session that they go with.
    pub(super) messages: Messages,
    /// Asynchronous invocations that it had accepted, by the session that they are of.
    pub(super) invocations: HashMap<Option<Group>, Vec<String>>,
    /// Functions of which the answers to idempotency keys without a session were taken over.
    pub(super) keyed: HashSet<FunctionName>,
}

impl Drop for Image {
    fn drop(&mut self) {
        // What stays is removed at the next start.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Image {
    /// A place for a log, with nothing in it.
    pub(super) fn open(log: LogRecord, folder: PathBuf) -> Result<Self, EngineError> {
        Ok(Self {
            log,
            engine: Arc::new(FjallEngine::open(&folder)?),
            folder,
            messages: Messages::new(),
            invocations: HashMap::new(),
            keyed: HashSet::new(),
        })
    }

    /// The same when all is read.
    pub(super) fn indexed(mut self) -> Result<Self, EngineError> {
        self.messages = messages(&*self.engine, &self.log.instance)?;
        self.invocations = invocations(&*self.engine)?;
        Ok(self)
    }

    /// The version of a session's copy in a lost node's log; none if what is there is not of the home that the directory
    /// names, but of an earlier one.
    pub(super) fn version(&self, group: &Group, epoch: Epoch) -> Result<Option<Version>, Problem> {
        let engine = &*self.engine;
        let record_key = key::session(group);
        let stored = engine.get(Table::Sessions, &record_key).map_err(internal)?;
        let Some(stored) = stored else {
            return Ok(None);
        };
        let stored = SessionRecord::decode(&stored).map_err(internal)?;
        if stored.epoch == epoch {
            return Ok(Some(stored.version));
        }
        if stored.epoch > epoch {
            // Whatever has gone wrong: what is newer than the directory is not thrown away.
            return Err(internal(format!(
                "{group} is in the log under {:?}, and in the directory only under {epoch:?}",
                stored.epoch
            )));
        }
        let on_its_way = engine.get(Table::Homes, &record_key).map_err(internal)?;
        let on_its_way = on_its_way
            .map(|record| HomeRecord::decode(&record))
            .transpose();
        tracing::info!(%group, ?epoch, ?stored, ?on_its_way, "what is in the log is of another time");
        let is_this = match on_its_way.map_err(internal)? {
            // It had come, or had stayed after all, and that was not copied any more.
            Some(
                HomeRecord::Arriving { epoch: next, .. }
                | HomeRecord::Leaving { epoch: next, .. }
                | HomeRecord::Doubted { epoch: next, .. },
            ) => next == epoch && stored.epoch <= epoch,
            None => false,
        };
        Ok(is_this.then_some(stored.version))
    }

    /// A session's entries, some at a time.
    pub(super) fn entries(&self, group: &Group) -> Result<Vec<Vec<StageEntry>>, EngineError> {
        let engine = &*self.engine;
        let prefix = key::session_state(group);
        let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
        for table in [Table::State, Table::Idempotency] {
            engine.scan(table, &prefix, None, &mut |key, value| {
                bytes += key.len() + value.len();
                part.push(StageEntry {
                    table,
                    key: Bytes::copy_from_slice(&key[prefix.len()..]),
                    value: Some(Bytes::copy_from_slice(value)),
                });
                if bytes > PART_BYTES {
                    parts.push(std::mem::take(&mut part));
                    bytes = 0;
                }
                true
            })?;
        }
        parts.push(part);
        Ok(parts)
    }
}

/// The asynchronous invocations in a log, by their sessions.
fn invocations(engine: &dyn Engine) -> Result<HashMap<Option<Group>, Vec<String>>, EngineError> {
    let mut invocations: HashMap<Option<Group>, Vec<String>> = HashMap::new();
    engine.scan(Table::Invocations, &[], None, &mut |key, value| {
        if let (Ok(id), Ok(record)) = (std::str::from_utf8(key), InvocationRecord::decode(value)) {
            let session = record.to.session.map(|session| Group {
                function: record.to.function,
                session,
            });
            invocations.entry(session).or_default().push(id.to_owned());
        }
        true
    })?;
    Ok(invocations)
}

type Messages = HashMap<Option<Group>, Vec<(Posted, MessageRecord)>>;

/// The messages in a log, by the session that they go with, in their order.
fn messages(engine: &dyn Engine, instance: &str) -> Result<Messages, EngineError> {
    let mut messages = Messages::new();
    for table in [Table::Adopted, Table::Messages] {
        engine.scan(table, &[], None, &mut |key, value| {
            let posted = match table {
                Table::Adopted => Posted::parse(table, key),
                _ => key
                    .try_into()
                    .ok()
                    .map(|key| Posted::adopted(instance, key)),
            };
            match (posted, MessageRecord::decode(value)) {
                (Some(posted), Ok(message)) => {
                    let owner = courier::owner(&message);
                    messages.entry(owner).or_default().push((posted, message));
                }
                _ => tracing::error!(
                    "a message of a node that is gone cannot be read and is left out"
                ),
            }
            true
        })?;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use fulmar_model::{NodeName, SessionName};
    use fulmar_state::engine::Write;

    use super::*;

    #[test]
    fn a_copy_counts_if_it_is_of_the_home_that_the_directory_names() {
        let folder = tempfile::tempdir().unwrap();
        let log = LogRecord {
            instance: "instance".to_owned(),
            stream: 1,
        };
        let image = Image::open(log, folder.path().join("image")).unwrap();
        let group = Group {
            function: FunctionName::new("f").unwrap(),
            session: SessionName::new("s").unwrap(),
        };
        let key = key::session(&group);
        let put = |table, value: &[u8]| {
            let value = Some(value);
            let write = Write {
                table,
                key: &key,
                value,
            };
            image.engine.write(&[write], false).unwrap();
        };
        let version = |epoch| image.version(&group, Epoch(epoch));
        assert_eq!(version(7).unwrap(), None);
        let stored = SessionRecord {
            version: Version(3),
            epoch: Epoch(7),
            updated_unix_ms: 1,
        };
        put(Table::Sessions, &stored.encode());
        assert_eq!(version(7).unwrap(), Some(Version(3)));
        // Of an earlier home; or what it was about to become.
        assert_eq!(version(8).unwrap(), None);
        let by = NodeName::new("n2").unwrap();
        let doubted = HomeRecord::Doubted {
            by,
            epoch: Epoch(8),
            last: 1,
        };
        put(Table::Homes, &doubted.encode());
        assert_eq!(version(8).unwrap(), Some(Version(3)));
        // Newer than the directory: never taken for nothing.
        let newer = version(6).unwrap_err();
        assert!(newer.detail.contains("only under"), "{newer}");
    }
}
