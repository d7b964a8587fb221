//! An operator's hold on state: a session, in its turn, or the shared buckets.
//!
//! Goes through the same transactions and commits as invocations do, so that the same promises hold.

use std::sync::Arc;

use fulmar_cluster::{Home, Returned, Settled};
use fulmar_model::{Code, Durability, Group, Problem};
use fulmar_state::{Bookkeeping, SessionState, Transaction};
use tokio::sync::oneshot;

use crate::core::Core;
use crate::execute::lender::Lender;
use crate::execute::{self, storage_failed};
use crate::external::closed;
use crate::functions::Function;
use crate::invocation::Turn;
use crate::sessions::Session;
use crate::transition::{self, Away};
use crate::{carry, clock, custody, external, homes, keys};

/// Exclusive use of a session, or use of the shared buckets.
pub(crate) struct Hold {
    core: Arc<Core>,
    state: Option<Arc<SessionState>>,
    session: Option<(Arc<Function>, Arc<Session>, Group)>,
    /// Whether the session's state is in the external store.
    is_in_store: bool,
    /// Last, so that it is given back when all else is done.
    _turn: Option<Turn>,
}

impl Hold {
    /// Waits for a session's turn. Sessions of a function that is not deployed can be held as well.
    pub(crate) async fn session(core: &Arc<Core>, group: &Group) -> Result<Self, Problem> {
        let Some(function) = core.functions.of(group) else {
            let state = homes::load_copy(core, group).await?;
            return Ok(Self {
                core: core.clone(),
                state: Some(state),
                session: None,
                is_in_store: false,
                _turn: None,
            });
        };
        if function.current().is_in_client() {
            return Err(carry::unreachable(group.function.as_str()));
        }
        if !function.current().is_external() {
            let session = function.sessions.of(group.session.shared());
            let turn = execute::turn(core, &function, &session).await?;
            let state = homes::load_for_others(core, group, &session).await?;
            let away = transition::away(core, group);
            let away = away.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
            let Some(Away::InStore(stay)) = away else {
                return Ok(Self {
                    core: core.clone(),
                    state: Some(state),
                    session: Some((function, session, group.clone())),
                    is_in_store: false,
                    _turn: Some(turn),
                });
            };
            closed::open(core, group, stay, state.epoch()).await?;
        }
        let session = function.borrowed.of(group.session.shared());
        let turn = execute::turn(core, &function, &session).await?;
        let state = match session.state() {
            Some(state) => state,
            None => {
                let lent = lender(core).await?.load(group).await?;
                let entries = lent.entries.unwrap_or_default();
                let store = &core.store;
                let state = store.borrow_session(group.clone(), lent.version, lent.epoch, entries);
                session.set_state(Some(state.clone()));
                state
            }
        };
        Ok(Self {
            core: core.clone(),
            state: Some(state),
            session: Some((function, session, group.clone())),
            is_in_store: true,
            _turn: Some(turn),
        })
    }

    /// The shared buckets.
    pub(crate) fn shared(core: &Arc<Core>) -> Self {
        Self {
            core: core.clone(),
            state: None,
            session: None,
            is_in_store: false,
            _turn: None,
        }
    }

    /// Begins a transaction.
    pub(crate) fn begin(&self) -> Transaction {
        self.core.store.begin(self.state.clone(), false)
    }

    /// Waits until everything committed so far is durable, and so in the engine.
    pub(crate) async fn settled(&self) -> Result<(), Problem> {
        self.core
            .durable(self.core.store.commits().submitted())
            .await
    }

    /// Commits and waits until it is durable.
    pub(crate) async fn commit(
        &self,
        mut tx: Transaction,
        bookkeeping: Bookkeeping,
    ) -> Result<(), Problem> {
        if let Some(refused) = self.core.refuses_writes() {
            return Err(refused);
        }
        if self.is_in_store {
            return self.commit_outside(tx).await;
        }
        let mut keys = keys::Turns::default();
        if self.core.cluster.is_some() && !keys.write(&self.core, &mut tx).await? {
            return Err(Problem::new(
                Code::Internal,
                "a write that depends on nothing failed",
            ));
        }
        let (durable, committed) = oneshot::channel();
        {
            let release = Box::new(move |result| {
                let _ = durable.send(result);
            });
            let prepared = self.core.store.prepare(tx, 0).map_err(|_| {
                Problem::new(
                    Code::QueueFull,
                    "a running invocation wants the same shared key; try again",
                )
            })?;
            // What the release hears is what counts.
            let _ = prepared.commit(Durability::Local, bookkeeping, clock::unix_ms(), release);
        }
        wait(committed).await?;
        let Some((function, ..)) = &self.session else {
            return Ok(());
        };
        let last = self.core.store.commits().submitted();
        let safe = custody::safe(&self.core, &function.name, last).await;
        safe.map_err(|failure| storage_failed(&failure))
    }

    /// Commits to the external store. What is written depends on nothing, so that it is written again if others were quicker.
    async fn commit_outside(&self, tx: Transaction) -> Result<(), Problem> {
        let Some(state) = &self.state else {
            return Err(Problem::new(Code::Internal, "no session is held"));
        };
        let lender = lender(&self.core).await?;
        let mut change = Returned {
            group: state.group().clone(),
            version: state.version(),
            epoch: state.epoch(),
            writes: tx.session_writes(),
            messages: Vec::new(),
            idempotency: None,
            durability: Durability::Local,
        };
        let committed = lender.commit(&change).await;
        if let Ok(Settled::Committed(version)) = committed {
            tx.committed_elsewhere(version);
            return Ok(());
        }
        // What is hot is out of date, or may be.
        self.forget();
        committed?;
        for conflicts in 0.. {
            lender.try_again(conflicts).await?;
            change.version = lender.load(&change.group).await?.version;
            if let Settled::Committed(_) = lender.commit(&change).await? {
                break;
            }
        }
        Ok(())
    }

    /// Where the session is at home: here, under which epoch. None when the node is alone.
    pub(crate) fn home(&self) -> Option<Home> {
        let cluster = self.core.cluster.as_ref()?;
        Some(Home {
            node: cluster.name().clone(),
            epoch: self.state.as_ref()?.epoch(),
        })
    }

    /// Lets the hot state and the live worker of the session go: what they know is no longer so.
    pub(crate) fn forget(&self) {
        if let Some((function, session, group)) = &self.session {
            session.set_state(None);
            self.core
                .pool
                .evict_session(&function.name, group.session.as_str());
        }
    }
}

async fn lender(core: &Core) -> Result<Lender<'_>, Problem> {
    Ok(Lender::External(core, external::of(core).await?))
}

async fn wait(
    durable: oneshot::Receiver<Result<(), fulmar_state::StoreFailure>>,
) -> Result<(), Problem> {
    match durable.await {
        Ok(result) => result.map_err(|failure| storage_failed(&failure)),
        Err(_) => Err(Problem::new(
            Code::ShuttingDown,
            "the node stopped before it was stored",
        )),
    }
}
