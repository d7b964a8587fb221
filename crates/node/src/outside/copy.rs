//! The copy of a session that its home makes in the external store, closed, before the session goes there.

use std::collections::BTreeSet;

use fulmar_model::{Code, Problem, Version};
use fulmar_state::record::{IdempotencyRecord, Record};
use fulmar_state::{SessionState, Table};
use futures_util::StreamExt;

use super::{Crossing, internal};
use crate::external::closed::{Writes, bytes_of, load, write};
use crate::{clock, courier, external, migrate};

/// A session above this many bytes stays where it is: every invocation would have to fetch it.
const MAX_BYTES: usize = 32 << 20;
/// Bytes that one write to the store takes, about.
const PART_BYTES: usize = 4 << 20;

/// Tries to close a session there: what is left of an earlier stay may be going just then.
const CLOSINGS: u32 = 4;
const OTHERS: &str = "somebody else writes it to the external store";

/// A copy of a session in the store, closed.
pub(super) struct Copy<'a> {
    of: &'a Crossing<'a>,
    version: Version,
    /// What was there before, from an earlier time.
    stale: BTreeSet<String>,
    bytes: usize,
}

impl<'a> Copy<'a> {
    pub(super) async fn begin(of: &'a Crossing<'a>, closing: &Writes) -> Result<Self, Problem> {
        for _ in 0..CLOSINGS {
            if let Some(copy) = Self::close(of, closing).await? {
                return Ok(copy);
            }
        }
        Err(of.stays(OTHERS))
    }

    /// Closes the session there; none if somebody wrote it meanwhile.
    async fn close(of: &'a Crossing<'a>, closing: &Writes) -> Result<Option<Self>, Problem> {
        let kept = load(of.core, of.store, of.group).await?;
        if kept.version != Version(0) && kept.closed.is_none() {
            let detail = format!("the external store has another session {}", of.group);
            return Err(Problem::new(Code::SessionsInTheWay, detail));
        }
        let mut stale: BTreeSet<_> = kept.entries.into_iter().map(|(key, _)| key).collect();
        for (key, _) in closing {
            stale.remove(key);
        }
        let written = write(of.core, of.store, of.group, kept.version, closing).await?;
        Ok(written.map(|version| Self {
            of,
            version,
            stale,
            bytes: bytes_of(closing),
        }))
    }

    async fn write(&mut self, writes: Writes) -> Result<(), Problem> {
        for (key, _) in &writes {
            self.stale.remove(key);
        }
        self.bytes += bytes_of(&writes);
        if self.bytes > MAX_BYTES {
            let detail = format!(
                "{} has over {MAX_BYTES} bytes, which is too much to be fetched for every invocation",
                self.of.group
            );
            return Err(Problem::new(Code::StateTooLarge, detail));
        }
        let Crossing {
            core, store, group, ..
        } = *self.of;
        match write(core, store, group, self.version, &writes).await? {
            Some(version) => {
                self.version = version;
                Ok(())
            }
            None => Err(self.of.stays(OTHERS)),
        }
    }

    /// Copies what is stored at home.
    pub(super) async fn whole(&mut self) -> Result<(), Problem> {
        let Crossing { core, group, .. } = *self.of;
        // What was committed before has to be where a scan looks.
        core.durable(core.store.commits().submitted()).await?;
        let rows = migrate::stored(core, group, vec![Table::State]);
        futures_util::pin_mut!(rows);
        let mut part = Writes::new();
        while let Some(entries) = rows.next().await {
            for entry in entries {
                part.push((name(&entry.key)?, entry.value));
            }
            if bytes_of(&part) >= PART_BYTES {
                self.write(std::mem::take(&mut part)).await?;
            }
        }
        self.write(part).await
    }

    /// Copies what has changed since.
    pub(super) async fn changed(&mut self, state: &SessionState) -> Result<(), Problem> {
        let Crossing { core, group, .. } = *self.of;
        let changes = migrate::changed(core, group, state.end_copy())?;
        let writes = changes
            .into_iter()
            .filter(|entry| entry.table == Table::State)
            .map(|entry| Ok((name(&entry.key)?, entry.value)));
        let writes = writes.collect::<Result<Writes, Problem>>()?;
        self.write(writes).await
    }

    /// Deletes what was there before, and takes along what the session has answered and got.
    pub(super) async fn end(&mut self) -> Result<(), Problem> {
        let stale = std::mem::take(&mut self.stale);
        self.write(stale.into_iter().map(|key| (key, None)).collect())
            .await?;
        let Crossing {
            core, store, group, ..
        } = *self.of;
        let records = migrate::stored(core, group, vec![Table::Idempotency]);
        futures_util::pin_mut!(records);
        while let Some(part) = records.next().await {
            let mut answers = Vec::with_capacity(part.len());
            for entry in part {
                if let (Some(name), Some(value)) =
                    (courier::answer_in_store(&entry.key), entry.value)
                {
                    let record = IdempotencyRecord::decode(&value).map_err(internal)?;
                    answers.push((name, record));
                }
            }
            let kept = store.keep_answers(group, &answers, clock::unix_ms()).await;
            kept.map_err(|error| external::problem(&error))?;
        }
        Ok(())
    }
}

fn name(key: &[u8]) -> Result<String, Problem> {
    String::from_utf8(key.to_vec()).map_err(internal)
}
