//! Taking over from a node: its log is ended, and what is in it is read.

use bytes::Bytes;
use futures_util::StreamExt;

use super::segment::{self, Content, Damaged, Segment};
use super::{base, prefix};
use crate::commit::Ticket;
use crate::engine::{Engine, EngineError};
use crate::objects::{Objects, ObjectsError};

/// Segments that are fetched ahead.
const AHEAD: usize = 16;
/// Tries while the log's owner goes on writing bases.
const TRIES: usize = 5;

/// A log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The object store.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// Something in it.
    #[error("{name}: {error}")]
    Damaged {
        /// The object.
        name: String,
        /// What is wrong with it.
        error: Damaged,
    },
    /// Where it is to be kept.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It was never complete.
    #[error("the log has no base: the node had not copied all that it had")]
    NoBase,
    /// Something is gone.
    #[error("the log has lost {0}, and there are later segments")]
    Lost(String),
    /// Its owner is alive, and quick.
    #[error("the log changes faster than it can be read")]
    Unsettled,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The last commit in it.
    pub last: Ticket,
    /// Where the log ends now.
    pub end: u64,
    /// Who ended it: now, or before.
    pub by: String,
}

/// Ends the log of a data directory, unless somebody has, and reads all of it into an engine that has nothing in it.
///
/// # Errors
/// When it cannot be read; whether it was ended is then unknown.
pub async fn take(
    objects: &Objects,
    instance: &str,
    stream: u64,
    by: &str,
    engine: &dyn Engine,
) -> Result<Restored, RestoreError> {
    let prefix = prefix(instance, stream);
    for _ in 0..TRIES {
        let current = base::read_current(objects, &prefix).await?;
        let current = current.ok_or(RestoreError::NoBase)?;
        for part in 0..current.parts {
            let name = base::part(&prefix, current.sequence, part);
            match objects.get(&name).await? {
                Some(bytes) => apply(engine, &read(&name, &bytes)?, &name)?,
                None if is_newer(objects, &prefix, current.sequence).await? => break,
                None => return Err(RestoreError::Lost(name)),
            }
        }
        let restored = follow(objects, &prefix, stream, current.sequence, by, engine).await?;
        // What was read may have been trimmed away meanwhile, and its end then is none.
        if !is_newer(objects, &prefix, current.sequence).await? {
            return Ok(restored);
        }
    }
    Err(RestoreError::Unsettled)
}

async fn is_newer(objects: &Objects, prefix: &str, than: u64) -> Result<bool, ObjectsError> {
    let current = base::read_current(objects, prefix).await?;
    Ok(current.is_some_and(|current| current.sequence > than))
}

fn read(name: &str, bytes: &Bytes) -> Result<Segment, RestoreError> {
    let damaged = |error| RestoreError::Damaged {
        name: name.to_owned(),
        error,
    };
    Segment::decode(bytes).map_err(damaged)
}

fn apply(engine: &dyn Engine, segment: &Segment, name: &str) -> Result<(), RestoreError> {
    if let Content::Writes(content) = &segment.content {
        let writes = segment::writes(content).map_err(|error| RestoreError::Damaged {
            name: name.to_owned(),
            error,
        })?;
        engine.write(&writes, false)?;
    }
    Ok(())
}

/// Reads the segments after a base, and ends the log where they end.
async fn follow(
    objects: &Objects,
    prefix: &str,
    stream: u64,
    base: u64,
    by: &str,
    engine: &dyn Engine,
) -> Result<Restored, RestoreError> {
    let name = |sequence: u64| format!("{prefix}/log/{sequence:016}");
    let (mut next, mut last) = (base + 1, Ticket(0));
    loop {
        let segments = futures_util::stream::iter(next..).map(|sequence| {
            let name = name(sequence);
            async move { objects.get(&name).await }
        });
        let mut segments = std::pin::pin!(segments.buffered(AHEAD));
        while let Some(bytes) = segments.next().await.transpose()?.flatten() {
            let segment = read(&name(next), &bytes)?;
            if let Content::Fence(by) = segment.content {
                return Ok(Restored {
                    last,
                    end: next,
                    by,
                });
            }
            apply(engine, &segment, &name(next))?;
            last = segment.last;
            next += 1;
        }
        if objects.size(&name(next + 1)).await?.is_some()
            && objects.size(&name(next)).await?.is_none()
        {
            return Err(RestoreError::Lost(name(next)));
        }
        let fence = Segment {
            stream,
            sequence: next,
            run: 0,
            first: last,
            last,
            content: Content::Fence(by.to_owned()),
        };
        if objects.create(&name(next), fence.encode()).await? {
            return Ok(Restored {
                last,
                end: next,
                by: by.to_owned(),
            });
        }
        // Its owner was quicker.
    }
}
