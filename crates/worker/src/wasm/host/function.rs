//! `fulmar:function`: context, state, messages, placement.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fulmar_model::{Bucket, ExecutionModel};
use fulmar_state::{StateError, Transaction};

use super::Host;
use crate::running::{ChoiceError, NOT_YET};
use crate::wasm::bindings::offered::fulmar::function::{context, messages, placement, state};

/// Keys of one page at most.
const MAX_PAGE: usize = 10_000;

impl context::Host for Host {
    fn current(&mut self) -> wasmtime::Result<context::Invocation> {
        let read_only = self.running.tx().is_some_and(|tx| tx.is_read_only());
        let current = self.running.current.as_ref();
        let current = current.ok_or_else(|| wasmtime::Error::msg(NOT_YET))?;
        Ok(context::Invocation {
            id: current.id.to_string(),
            function: current.function.to_string(),
            session: current.session.as_ref().map(ToString::to_string),
            idempotency_key: current.idempotency_key.as_deref().map(str::to_owned),
            attempt: current.attempt,
            deadline_unix_ms: current.deadline_unix_ms,
            read_only,
        })
    }

    fn now_unix_ms(&mut self) -> wasmtime::Result<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(now.map_or(0, |now| now.as_millis() as u64))
    }
}

fn state_error(error: StateError) -> state::Error {
    let text = error.to_string();
    match error {
        StateError::NoSession => state::Error::NoSession,
        StateError::ReadOnly => state::Error::ReadOnly,
        StateError::InvalidName(_) => state::Error::InvalidName(text),
        StateError::TooLarge { .. } => state::Error::TooLarge(text),
        StateError::WrongType(_) => state::Error::WrongType(text),
        StateError::Unreachable(_) | StateError::Storage(_) => state::Error::Storage(text),
    }
}

impl Host {
    fn with_state<T>(
        &mut self,
        bucket: &str,
        use_state: impl FnOnce(&mut Transaction, Bucket<'_>) -> Result<T, StateError>,
    ) -> wasmtime::Result<Result<T, state::Error>> {
        let bucket = match Bucket::new(bucket) {
            Ok(bucket) => bucket,
            Err(error) => return Ok(Err(state::Error::InvalidName(error.to_string()))),
        };
        match self.running.in_bucket(bucket, use_state) {
            None => Ok(Err(state::Error::Storage(NOT_YET.into()))),
            Some(used) => Ok(used.map_err(state_error)),
        }
    }
}

impl Host {
    /// Asks for a key that is used next, if it may have to come from another node.
    async fn ask_for(&mut self, bucket: &str, key: &str) -> Result<(), state::Error> {
        let bucket = Bucket::new(bucket);
        let bucket = bucket.map_err(|error| state::Error::InvalidName(error.to_string()))?;
        self.running.fetch(bucket, key).await.map_err(state_error)
    }
}

impl state::Host for Host {
    async fn get(
        &mut self,
        bucket: String,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, state::Error>> {
        if let Err(error) = self.ask_for(&bucket, &key).await {
            return Ok(Err(error));
        }
        self.with_state(&bucket, |tx, bucket| {
            Ok(tx.get(bucket, &key)?.map(Vec::from))
        })
    }

    fn set(
        &mut self,
        bucket: String,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), state::Error>> {
        self.with_state(&bucket, |tx, bucket| tx.set(bucket, &key, value.into()))
    }

    fn delete(
        &mut self,
        bucket: String,
        key: String,
    ) -> wasmtime::Result<Result<(), state::Error>> {
        self.with_state(&bucket, |tx, bucket| tx.delete(bucket, &key))
    }

    async fn list_keys(
        &mut self,
        bucket: String,
        prefix: String,
        after: Option<String>,
        limit: u32,
    ) -> wasmtime::Result<Result<Vec<String>, state::Error>> {
        let limit = (limit as usize).min(MAX_PAGE);
        let bucket = match Bucket::new(&bucket) {
            Ok(bucket) => bucket,
            Err(error) => return Ok(Err(state::Error::InvalidName(error.to_string()))),
        };
        match self
            .running
            .list(bucket, &prefix, after.as_deref(), limit)
            .await
        {
            None => Ok(Err(state::Error::Storage(NOT_YET.into()))),
            Some(listed) => Ok(listed.map_err(state_error)),
        }
    }

    async fn increment(
        &mut self,
        bucket: String,
        key: String,
        delta: i64,
    ) -> wasmtime::Result<Result<i64, state::Error>> {
        if let Err(error) = self.ask_for(&bucket, &key).await {
            return Ok(Err(error));
        }
        self.with_state(&bucket, |tx, bucket| tx.increment(bucket, &key, delta))
    }

    async fn compare_and_swap(
        &mut self,
        bucket: String,
        key: String,
        expected: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
    ) -> wasmtime::Result<Result<bool, state::Error>> {
        if let Err(error) = self.ask_for(&bucket, &key).await {
            return Ok(Err(error));
        }
        self.with_state(&bucket, |tx, bucket| {
            tx.compare_and_swap(bucket, &key, expected.as_deref(), value.map(Bytes::from))
        })
    }
}

impl messages::Host for Host {
    fn send(
        &mut self,
        function: String,
        session: Option<String>,
        body: Vec<u8>,
    ) -> wasmtime::Result<Result<(), messages::Error>> {
        let sent = self
            .running
            .send(&function, session.as_deref(), body.into());
        Ok(sent.map_err(|error| match error {
            StateError::ReadOnly => messages::Error::ReadOnly,
            StateError::InvalidName(error) => messages::Error::InvalidName(error.to_string()),
            other => messages::Error::TooLarge(other.to_string()),
        }))
    }
}

impl placement::Host for Host {
    fn choose(
        &mut self,
        model: placement::ExecutionModel,
    ) -> wasmtime::Result<Result<(), placement::Error>> {
        let model = match model {
            placement::ExecutionModel::Auto => ExecutionModel::Auto,
            placement::ExecutionModel::InFunction => ExecutionModel::InFunction,
            placement::ExecutionModel::InEdge => ExecutionModel::InEdge,
            placement::ExecutionModel::External => ExecutionModel::External,
        };
        Ok(self.running.choose(model).map_err(|error| match error {
            ChoiceError::Fixed(_) => placement::Error::Fixed(error.to_string()),
            ChoiceError::State(StateError::ReadOnly) => placement::Error::ReadOnly,
            ChoiceError::State(_) => placement::Error::NoSession,
        }))
    }
}
