//! What a program and the node tell each other of a session's state, at the start of a body: records, one after the other.
//!
//! ```text
//! kind  u8
//! 0     forget all that is remembered of any session
//! 1     set: key, value
//! 2     delete: key
//! 3     what is not remembered now is absent
//! 4     send (to the node only): function, session (empty: none), body
//! ```
//!
//! A key, a value and so on is a `u32` in big-endian order, and so many bytes; keys and names are UTF-8.

use bytes::{Buf, Bytes};
use fulmar_model::Bucket;
use fulmar_state::StateError;

use crate::running::{NOT_YET, Running};

const FORGET: u8 = 0;
const SET: u8 = 1;
const DELETE: u8 = 2;
const COMPLETE: u8 = 3;
const SEND: u8 = 4;

/// What a program answered cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// It is no frame.
    #[error("the frames of the answer are damaged: {0}")]
    Damaged(&'static str),
    /// It is refused.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Frames for a program.
#[derive(Debug, Default)]
pub(super) struct Frames(Vec<u8>);

impl Frames {
    fn part(&mut self, bytes: &[u8]) {
        // A value has at most 16 MiB.
        self.0
            .extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn forget(&mut self) {
        self.0.push(FORGET);
    }

    pub(super) fn put(&mut self, key: &str, value: Option<&[u8]>) {
        self.0.push(if value.is_some() { SET } else { DELETE });
        self.part(key.as_bytes());
        if let Some(value) = value {
            self.part(value);
        }
    }

    pub(super) fn complete(&mut self) {
        self.0.push(COMPLETE);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

fn part(from: &mut Bytes) -> Result<Bytes, FrameError> {
    let ends = FrameError::Damaged("they end in the middle of one");
    match from.try_get_u32() {
        Ok(length) if from.len() >= length as usize => Ok(from.split_to(length as usize)),
        _ => Err(ends),
    }
}

fn text(from: &mut Bytes) -> Result<String, FrameError> {
    let text = String::from_utf8(part(from)?.into());
    text.map_err(|_| FrameError::Damaged("a key or name is not UTF-8"))
}

/// Does what a program wants.
pub(super) fn apply(mut frames: Bytes, running: &mut Running) -> Result<(), FrameError> {
    let storage = || FrameError::State(StateError::Storage(NOT_YET.into()));
    while let Ok(kind) = frames.try_get_u8() {
        match kind {
            SET => {
                let (key, value) = (text(&mut frames)?, part(&mut frames)?);
                let tx = running.tx().ok_or_else(storage)?;
                // On its own, so that it does not keep the whole answer in memory.
                tx.set(Bucket::Session, &key, Bytes::copy_from_slice(&value))?;
            }
            DELETE => {
                let key = text(&mut frames)?;
                let tx = running.tx().ok_or_else(storage)?;
                tx.delete(Bucket::Session, &key)?;
            }
            SEND => {
                let (function, session) = (text(&mut frames)?, text(&mut frames)?);
                let session = (!session.is_empty()).then_some(session.as_str());
                let body = Bytes::copy_from_slice(&part(&mut frames)?);
                running.send(&function, session, body)?;
            }
            _ => return Err(FrameError::Damaged("one is of no known kind")),
        }
    }
    Ok(())
}
