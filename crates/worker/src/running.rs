//! The invocation that runs in a worker, as what it calls reaches its state: of every kind of worker.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fulmar_model::id::{bucket_within, check_key};
use fulmar_model::{Bucket, ExecutionModel, FunctionName, SessionName};
use fulmar_state::{KeyRange, StateError, Transaction};

use crate::call::Call;

/// Why there is no state and no context while a worker starts.
pub(crate) const NOT_YET: &str = "there is no invocation while the worker starts";

/// The running invocation.
pub(crate) struct Current {
    pub(crate) id: Arc<str>,
    pub(crate) function: FunctionName,
    pub(crate) session: Option<SessionName>,
    pub(crate) idempotency_key: Option<Arc<str>>,
    pub(crate) attempt: u32,
    pub(crate) deadline_unix_ms: u64,
}

impl Current {
    fn of(call: &Call) -> Self {
        Self {
            id: call.id.clone(),
            function: call.function.clone(),
            session: call.session.clone(),
            idempotency_key: call.idempotency_key.clone(),
            attempt: call.attempt,
            deadline_unix_ms: call.deadline_unix_ms,
        }
    }
}

/// Why a session's execution model cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChoiceError {
    #[error("the manifest says execution_model = \"{0}\"; with \"auto\" functions may choose")]
    Fixed(ExecutionModel),
    #[error(transparent)]
    State(#[from] StateError),
}

/// The invocation that runs, if one does, and its state.
pub(crate) struct Running {
    pub(crate) current: Option<Current>,
    tx: Option<Transaction>,
    /// What the manifest says.
    model: ExecutionModel,
}

impl Running {
    /// Nothing yet, in a worker of a function with this execution model.
    pub(crate) fn new(model: ExecutionModel) -> Self {
        Self {
            current: None,
            tx: None,
            model,
        }
    }

    pub(crate) fn begin(&mut self, call: &Call, tx: Transaction) {
        self.current = Some(Current::of(call));
        self.tx = Some(tx);
    }

    /// Ends the call and gives its transaction back.
    pub(crate) fn end(&mut self) -> Transaction {
        self.current = None;
        self.tx
            .take()
            .unwrap_or_else(|| unreachable!("`begin` was called before"))
    }

    /// The invocation's state; none while the worker starts.
    pub(crate) fn tx(&mut self) -> Option<&mut Transaction> {
        self.tx.as_mut()
    }

    /// Uses a bucket as the invocation's namespace has it; none while the worker starts.
    pub(crate) fn in_bucket<T>(
        &mut self,
        bucket: Bucket<'_>,
        use_state: impl FnOnce(&mut Transaction, Bucket<'_>) -> T,
    ) -> Option<T> {
        let Bucket::Shared(name) = bucket else {
            return Some(use_state(self.tx.as_mut()?, bucket));
        };
        let namespace = self.current.as_ref()?.function.namespace();
        let name = bucket_within(namespace, name);
        Some(use_state(self.tx.as_mut()?, Bucket::Shared(&name)))
    }

    /// The full name of a shared bucket, while an invocation runs.
    fn full_name(&self, bucket: &str) -> Option<String> {
        let namespace = self.current.as_ref()?.function.namespace();
        Some(bucket_within(namespace, bucket).into_owned())
    }

    /// Asks for a key that is used next, if it is a shared one that is placed among nodes and not known yet.
    pub(crate) async fn fetch(&mut self, bucket: Bucket<'_>, key: &str) -> Result<(), StateError> {
        let Bucket::Shared(name) = bucket else {
            return Ok(());
        };
        check_key(key)?;
        let (Some(name), Some(tx)) = (self.full_name(name), &self.tx) else {
            return Ok(());
        };
        let Some(placed) = tx.lacks(Bucket::Shared(&name), key) else {
            return Ok(());
        };
        let asked = Instant::now();
        let found = self.reached(placed.read(&name, key).await)?;
        if let Some(tx) = &mut self.tx {
            tx.fetched(&name, key, found, asked.elapsed());
        }
        Ok(())
    }

    /// Remembers that a shared key could not be asked for.
    fn reached<T>(&mut self, answer: Result<T, StateError>) -> Result<T, StateError> {
        if let (Err(StateError::Unreachable(problem)), Some(tx)) = (&answer, &mut self.tx) {
            tx.unreachable(problem.clone());
        }
        answer
    }

    /// The keys of a bucket, wherever they are; none while the worker starts.
    pub(crate) async fn list(
        &mut self,
        bucket: Bucket<'_>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Option<Result<Vec<String>, StateError>> {
        let lister = self.tx.as_ref()?.lister(bucket);
        let (Bucket::Shared(name), Some((lister, more))) = (bucket, lister) else {
            return self.in_bucket(bucket, |tx, bucket| {
                tx.list_keys(bucket, prefix, after, limit)
            });
        };
        let name = self.full_name(name)?;
        let range = KeyRange {
            bucket: &name,
            prefix,
            after,
            limit,
        };
        let limit = limit + more;
        let listed = lister.list(KeyRange { limit, ..range }).await;
        let listed = self.reached(listed);
        let tx = self.tx.as_ref()?;
        Some(listed.map(|listed| tx.with_own_keys(range, listed)))
    }

    /// Has the session get an execution model with the commit.
    pub(crate) fn choose(&mut self, model: ExecutionModel) -> Result<(), ChoiceError> {
        if self.model != ExecutionModel::Auto {
            return Err(ChoiceError::Fixed(self.model));
        }
        let tx = self.tx.as_mut().ok_or(StateError::NoSession)?;
        Ok(tx.choose_model(model)?)
    }

    /// Sends a message to a function of the same namespace with the commit.
    pub(crate) fn send(
        &mut self,
        function: &str,
        session: Option<&str>,
        body: Bytes,
    ) -> Result<(), StateError> {
        let Some(current) = &self.current else {
            return Err(StateError::ReadOnly);
        };
        let to = FunctionName::within(current.function.namespace(), function)?;
        let session = session.map(SessionName::new).transpose()?;
        let tx = self.tx.as_mut().ok_or(StateError::ReadOnly)?;
        tx.send(to, session, body)
    }
}
