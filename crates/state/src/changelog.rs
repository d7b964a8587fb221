//! The changelog: everything that this node commits, in the object store as well.
//!
//! With every batch the commit thread stores what is to be copied, in a table of its own ([`segment`]). One task
//! ([`ship`]) puts it into the object store, in segments that are numbered without a gap, each written only if
//! nobody has written that number; now and then it writes all that there is as a new base ([`base`]), and what
//! came before goes. Whoever takes over from this node writes the next number itself ([`restore`]): from then
//! on nothing that this node commits can be called replicated, whatever it believes, without a clock or a
//! lease being asked.
//!
//! What is here is who waits for what.

mod base;
pub mod restore;
pub mod segment;
pub mod ship;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use crate::commit::{Cause, Release, StoreFailure, Ticket};
use crate::engine::Table;

/// Whoever waits is told that the object store cannot be reached after so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a table is copied. The others are the node's own.
pub(crate) fn is_copied(table: Table) -> bool {
    match table {
        Table::Sessions
        | Table::State
        | Table::Idempotency
        | Table::Messages
        | Table::Adopted
        | Table::DeadLetters
        | Table::Invocations
        | Table::Homes
        | Table::Directory => true,
        Table::System | Table::Shared | Table::Registry | Table::Changelog => false,
    }
}

/// Where the log of a data directory is in the object store.
pub fn prefix(instance: &str, stream: u64) -> String {
    format!("{instance}/{stream:08}")
}

/// How far the copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// It is not known yet whether the log is still this node's, or others could not take over from it yet.
    Opening,
    /// It is this node's.
    Open,
    /// Somebody else has ended it.
    Fenced(String),
    /// Nothing more is copied, for this reason.
    Failed(String),
}

impl Phase {
    /// Why nobody need wait any longer, if so.
    fn end(&self) -> Option<StoreFailure> {
        match self {
            Self::Opening | Self::Open => None,
            Self::Fenced(by) => Some(StoreFailure {
                cause: Cause::Fenced,
                reason: format!("{by} has taken over from this node").into(),
            }),
            Self::Failed(said) => Some(unreachable(said)),
        }
    }
}

/// What is in the object store, and who waits for it.
pub struct Changelog {
    state: Mutex<State>,
    wake: Notify,
    shipped: watch::Sender<Ticket>,
    /// Whether all is there that others need to take over.
    ready: watch::Sender<bool>,
}

struct State {
    phase: Phase,
    stream: u64,
    since: Ticket,
    waiting: BTreeMap<Ticket, Vec<(Instant, Release)>>,
    /// Who wants to know that the log is still this node's, as of now.
    proofs: Vec<(Instant, Proof)>,
    /// Since when something waits to be copied.
    behind_since: Option<Instant>,
    /// Since when the object store does not do what it is asked, and what it says.
    trouble: Option<(Instant, String)>,
}

type Proof = oneshot::Sender<Result<(), StoreFailure>>;

/// How it stands with the copy.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Which log of the data directory it is; 0: none yet.
    pub stream: u64,
    /// Up to which commit it began with what there was, or had been copied when the node was started.
    pub since: Ticket,
    /// Whether the log is known to be this node's.
    pub open: bool,
    /// Who has ended it, if somebody has.
    pub fenced_by: Option<String>,
    /// The last commit that is in the object store.
    pub shipped: Ticket,
    /// For how long the oldest commit that is not has been waiting.
    pub behind: Duration,
    /// What the object store says, if it does not do what it is asked.
    pub trouble: Option<String>,
}

impl State {
    fn wanted(&self, shipped: Ticket) -> Option<Ticket> {
        let (last, _) = self.waiting.last_key_value()?;
        (*last > shipped).then_some(*last)
    }
}

impl Changelog {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                phase: Phase::Opening,
                stream: 0,
                since: Ticket(0),
                waiting: BTreeMap::new(),
                proofs: Vec::new(),
                behind_since: None,
                trouble: None,
            }),
            wake: Notify::new(),
            shipped: watch::Sender::new(Ticket(0)),
            ready: watch::Sender::new(false),
        }
    }

    /// A batch was written, with something in it that is to be copied or not.
    pub(crate) fn written(&self, is_copied: bool) {
        let mut state = self.state.lock();
        if is_copied {
            state.behind_since.get_or_insert_with(Instant::now);
        }
        let wakes = is_copied || !state.waiting.is_empty();
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Runs `release` once everything up to a ticket is in the object store.
    pub fn when_shipped(&self, ticket: Ticket, release: Release) {
        let mut state = self.state.lock();
        let answer = match &state.phase {
            Phase::Fenced(_) | Phase::Failed(_) => state.phase.end().map_or(Ok(()), Err),
            Phase::Open if *self.shipped.borrow() >= ticket => Ok(()),
            _ => {
                let waiting = state.waiting.entry(ticket).or_default();
                waiting.push((Instant::now(), release));
                drop(state);
                return self.wake.notify_one();
            }
        };
        drop(state);
        release(answer);
    }

    /// Makes sure that the log is still this node's: that it was so at some moment after the call.
    ///
    /// # Errors
    /// When somebody else has ended it, or the object store cannot be asked.
    pub async fn prove(&self) -> Result<(), StoreFailure> {
        let (done, proven) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if let Some(end) = state.phase.end() {
                return Err(end);
            }
            state.proofs.push((Instant::now(), done));
        }
        self.wake.notify_one();
        let stopped = || StoreFailure {
            cause: Cause::Local,
            reason: "the node stops".into(),
        };
        proven.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let state = self.state.lock();
        Standing {
            stream: state.stream,
            since: state.since,
            open: state.phase == Phase::Open,
            fenced_by: match &state.phase {
                Phase::Fenced(by) => Some(by.clone()),
                _ => None,
            },
            shipped: *self.shipped.borrow(),
            behind: state
                .behind_since
                .map_or(Duration::ZERO, |since| since.elapsed()),
            trouble: match (&state.phase, &state.trouble) {
                (Phase::Failed(said), _) | (_, Some((_, said))) => Some(said.clone()),
                _ => None,
            },
        }
    }

    /// Why nothing can be called replicated at this moment, if the object store has been silent for long.
    pub fn trouble(&self) -> Option<StoreFailure> {
        let state = self.state.lock();
        if let Phase::Failed(said) = &state.phase {
            return Some(unreachable(said));
        }
        let (since, said) = state.trouble.as_ref()?;
        (since.elapsed() > PATIENCE).then(|| unreachable(said))
    }

    /// Waits until a ticket is in the object store, whosever the log is.
    pub(crate) async fn reached(&self, ticket: Ticket) {
        let mut shipped = self.shipped.subscribe();
        // The sender is here.
        let _ = shipped.wait_for(|shipped| *shipped >= ticket).await;
    }

    fn begin(&self, stream: u64, shipped: Ticket) {
        let mut state = self.state.lock();
        state.phase = Phase::Opening;
        state.stream = stream;
        state.since = shipped;
        self.shipped.send_replace(shipped);
        self.ready.send_replace(false);
    }

    /// Waits until the log is known to be this node's, and has a base: what is left to do is to tell the others
    /// where it is, and to [`Changelog::open`] it.
    pub async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender is here.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Who waits for a proof from here on gets it with the next segment.
    fn take_proofs(&self) -> Vec<(Instant, Proof)> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Open => std::mem::take(&mut state.proofs),
            _ => Vec::new(),
        }
    }

    fn put_back(&self, proofs: Vec<(Instant, Proof)>) {
        self.state.lock().proofs.extend(proofs);
    }

    /// Whether somebody waits for another segment.
    fn is_waited_for(&self) -> bool {
        let state = self.state.lock();
        (state.phase == Phase::Open && !state.proofs.is_empty())
            || state.wanted(*self.shipped.borrow()).is_some()
    }

    /// The last commit that somebody waits for and that is not in the object store.
    fn wanted(&self) -> Option<Ticket> {
        self.state.lock().wanted(*self.shipped.borrow())
    }

    /// Everything up to a ticket is in the object store.
    fn advance(&self, ticket: Ticket, is_all: bool) {
        let released = {
            let mut state = self.state.lock();
            state.trouble = None;
            state.behind_since = (!is_all).then(Instant::now);
            self.shipped.send_replace(ticket);
            if state.phase != Phase::Open {
                return;
            }
            let rest = state.waiting.split_off(&Ticket(ticket.0 + 1));
            std::mem::replace(&mut state.waiting, rest)
        };
        for (_, release) in released.into_values().flatten() {
            release(Ok(()));
        }
    }

    /// Lets go what has waited for it: the others know where the log is, once it is [`Changelog::ready`].
    pub fn open(&self) {
        {
            let mut state = self.state.lock();
            if state.phase != Phase::Opening || !*self.ready.borrow() {
                return;
            }
            state.phase = Phase::Open;
        }
        let shipped = *self.shipped.borrow();
        self.advance(shipped, true);
        self.wake.notify_one();
    }

    /// The object store does not do what it is asked. Whoever has waited for long is told so.
    fn failing(&self, said: &str, proofs: Vec<(Instant, Proof)>) {
        let mut told = Vec::new();
        let mut state = self.state.lock();
        let queued = std::mem::take(&mut state.proofs);
        let proofs = proofs.into_iter().chain(queued);
        let trouble = state
            .trouble
            .get_or_insert_with(|| (Instant::now(), String::new()));
        trouble.1 = said.to_owned();
        state.waiting.retain(|_, waiting| {
            let (late, rest) = std::mem::take(waiting)
                .into_iter()
                .partition(|(since, _)| since.elapsed() > PATIENCE);
            *waiting = rest;
            told.extend(late);
            !waiting.is_empty()
        });
        let (late, rest): (Vec<_>, Vec<_>) =
            proofs.partition(|(since, _)| since.elapsed() > PATIENCE);
        state.proofs = rest;
        drop(state);
        for (_, release) in told {
            release(Err(unreachable(said)));
        }
        for (_, proof) in late {
            // Whoever asked may be gone.
            let _ = proof.send(Err(unreachable(said)));
        }
    }

    /// Nothing more can be copied: whoever waits, and whoever will, is told so.
    pub fn give_up(&self, said: &str) {
        self.end(Phase::Failed(said.to_owned()));
    }

    /// Somebody else has ended the log.
    fn fenced(&self, by: &str) {
        self.end(Phase::Fenced(by.to_owned()));
    }

    fn end(&self, phase: Phase) {
        let Some(failure) = phase.end() else {
            return;
        };
        let (waiting, proofs) = {
            let mut state = self.state.lock();
            state.phase = phase;
            (
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.proofs),
            )
        };
        self.ready.send_replace(false);
        for (_, release) in waiting.into_values().flatten() {
            release(Err(failure.clone()));
        }
        for (_, proof) in proofs {
            let _ = proof.send(Err(failure.clone()));
        }
    }
}

fn unreachable(said: &str) -> StoreFailure {
    StoreFailure {
        cause: Cause::ObjectStore,
        reason: said.into(),
    }
}
