//! The sessions of a function that are in use: each one's queue and, while it is hot, its state.
//!
//! Invocations of one session run one at a time, in order of arrival, by whoever finds the session
//! idle; those that arrive meanwhile wait in its queue and are run back to back on the hot state.
//! Declared read-only invocations that follow each other run together.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use fulmar_model::NodeName;
use fulmar_state::{SessionState, Ticket};
use parking_lot::Mutex;
use rustc_hash::{FxBuildHasher, FxHashMap};
use tokio::sync::{Notify, RwLock, oneshot};

use crate::follow::{Seen, Takers};
use crate::invocation::{Invocation, Turn};

/// Locks that the sessions are spread over.
const SHARDS: usize = 16;

/// A session in use.
pub(crate) struct Session {
    queue: Mutex<Queue>,
    /// Read-only invocations hold it shared, the others alone.
    pub(crate) turn: Arc<RwLock<()>>,
    /// Hears when as much waits as somebody wants.
    full: Notify,
    /// Sweep in which the session was last used.
    last_used: AtomicU32,
    /// Invocations since that was asked last.
    used: AtomicU32,
    /// Who takes its requests, if other nodes do.
    takers: Mutex<Option<Box<Takers>>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Work>,
    running: bool,
    /// How much is to wait before it is said; 0: nobody wants to know.
    wanted: usize,
    state: Option<Arc<SessionState>>,
}

/// What waits in a session's queue.
pub(crate) enum Work {
    /// An invocation of the function.
    Invocation(Invocation),
    /// The operator wants the session for itself: gets a [`Turn`] and gives it back by dropping it.
    Turn(oneshot::Sender<Turn>),
}

/// What became of an invocation that was put into a session's queue.
pub(crate) enum Enqueued {
    /// The session was idle: the caller has to run the queue now.
    Run,
    /// Somebody runs the queue already.
    Waits,
    /// Too many wait: it was not taken.
    Full,
}

impl Session {
    fn new(sweep: u32) -> Self {
        Self {
            queue: Mutex::default(),
            turn: Arc::default(),
            full: Notify::new(),
            last_used: AtomicU32::new(sweep),
            used: AtomicU32::new(0),
            takers: Mutex::default(),
        }
    }

    /// Invocations that were put into the queue since the last time that this was asked.
    pub(crate) fn take_used(&self) -> u32 {
        self.used.swap(0, Ordering::Relaxed)
    }

    /// A request was taken by another node, or by this one; true if it is the first by another.
    pub(crate) fn note_taker(&self, by: Option<&NodeName>) -> bool {
        let mut takers = self.takers.lock();
        match (takers.as_mut(), by) {
            (Some(takers), by) => takers.note(by),
            (None, Some(_)) => {
                takers.insert(Box::new(Takers::new())).note(by);
                return true;
            }
            (None, None) => {}
        }
        false
    }

    /// Who takes its requests, as seen so many seconds after the last look; none if no other node does.
    pub(crate) fn look_at_takers(&self, seconds: f64) -> Option<Seen> {
        let mut takers = self.takers.lock();
        let seen = takers.as_mut().and_then(|takers| takers.look(seconds));
        if seen.is_none() {
            *takers = None;
        }
        seen
    }

    /// Begins to count anew.
    pub(crate) fn forget_takers(&self) {
        *self.takers.lock() = None;
    }

    /// Puts an invocation at the end of the queue, unless `max` wait there already.
    pub(crate) fn enqueue(&self, work: Work, max: usize) -> Enqueued {
        let mut queue = self.queue.lock();
        if queue.waiting.len() >= max {
            return Enqueued::Full;
        }
        if let Work::Invocation(_) = &work {
            self.used.fetch_add(1, Ordering::Relaxed);
        }
        queue.waiting.push_back(work);
        if queue.waiting.len() == queue.wanted {
            self.full.notify_one();
        }
        if std::mem::replace(&mut queue.running, true) {
            Enqueued::Waits
        } else {
            Enqueued::Run
        }
    }

    /// The next invocation; if there is none, the session is idle from then on.
    pub(crate) fn next(&self) -> Option<Work> {
        let mut queue = self.queue.lock();
        let next = queue.waiting.pop_front();
        queue.running = next.is_some();
        next
    }

    /// Waits until so many wait, or it is late.
    pub(crate) async fn filled(&self, wanted: usize, until: Instant) {
        let is_full = {
            let mut queue = self.queue.lock();
            queue.wanted = wanted;
            queue.waiting.len() >= wanted
        };
        if !is_full {
            let _ = tokio::time::timeout_at(until.into(), self.full.notified()).await;
        }
        self.queue.lock().wanted = 0;
    }

    /// Takes up to `most` invocations from the front of the queue, as long as they are like that.
    pub(crate) fn take_while(
        &self,
        most: usize,
        to: &mut Vec<Invocation>,
        mut is_like_that: impl FnMut(&Invocation) -> bool,
    ) {
        let mut queue = self.queue.lock();
        for _ in 0..most {
            let next = queue.waiting.pop_front_if(|work| match work {
                Work::Invocation(invocation) => is_like_that(invocation),
                Work::Turn(_) => false,
            });
            let Some(Work::Invocation(invocation)) = next else {
                return;
            };
            to.push(invocation);
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.lock().waiting.len()
    }

    /// The hot state, if the session is hot. Only whoever runs the queue may load it.
    pub(crate) fn state(&self) -> Option<Arc<SessionState>> {
        self.queue.lock().state.clone()
    }

    /// Sets or drops the hot state; only for whoever runs the queue.
    pub(crate) fn set_state(&self, state: Option<Arc<SessionState>>) {
        self.queue.lock().state = state;
    }
}

/// Sessions in use, by name, over several locks.
#[derive(Default)]
pub(crate) struct Sessions {
    shards: [Mutex<FxHashMap<Arc<str>, Arc<Session>>>; SHARDS],
    sweep: AtomicU32,
}

/// An idle session, for the choice of what to let go.
pub(crate) struct Idle {
    pub(crate) name: Arc<str>,
    pub(crate) hot_bytes: usize,
    /// Sweeps since its last use.
    pub(crate) age: u32,
}

impl Sessions {
    fn shard(&self, name: &str) -> &Mutex<FxHashMap<Arc<str>, Arc<Session>>> {
        &self.shards[FxBuildHasher.hash_one(name) as usize % SHARDS]
    }

    /// The session, which becomes one in use if it was not.
    pub(crate) fn of(&self, name: &Arc<str>) -> Arc<Session> {
        let sweep = self.sweep.load(Ordering::Relaxed);
        let mut shard = self.shard(name).lock();
        if let Some(session) = shard.get(name) {
            session.last_used.store(sweep, Ordering::Relaxed);
            return session.clone();
        }
        let session = Arc::new(Session::new(sweep));
        shard.insert(name.clone(), session.clone());
        session
    }

    /// The session, if it is in use.
    pub(crate) fn peek(&self, name: &str) -> Option<Arc<Session>> {
        self.shard(name).lock().get(name).cloned()
    }

    /// Names of all that are in use.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        let shards = self.shards.iter();
        shards
            .flat_map(|shard| shard.lock().keys().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Sessions in use, and invocations that wait in their queues.
    pub(crate) fn count(&self) -> (usize, usize) {
        self.shards
            .iter()
            .fold((0, 0), |(sessions, waiting), shard| {
                let shard = shard.lock();
                let queued: usize = shard.values().map(|session| session.waiting()).sum();
                (sessions + shard.len(), waiting + queued)
            })
    }

    /// Starts a sweep: what every hot session holds in bytes, and which of them could go. A session
    /// can go if nobody uses it and the engine answers all that it has committed.
    pub(crate) fn sweep(&self, applied: Ticket) -> (usize, Vec<Idle>) {
        let now = self.sweep.fetch_add(1, Ordering::Relaxed) + 1;
        let (mut bytes, mut idle) = (0, Vec::new());
        for shard in &self.shards {
            for (name, session) in &*shard.lock() {
                let hot_bytes = session.hot_bytes();
                bytes += hot_bytes;
                if Arc::strong_count(session) == 1 && session.can_go(applied) {
                    idle.push(Idle {
                        name: name.clone(),
                        hot_bytes,
                        age: now.wrapping_sub(session.last_used.load(Ordering::Relaxed)),
                    });
                }
            }
        }
        (bytes, idle)
    }

    /// Lets a session go if it still can.
    pub(crate) fn evict(&self, name: &str, applied: Ticket) -> bool {
        let mut shard = self.shard(name).lock();
        // Under the shard's lock nobody can get hold of a session that only the map holds.
        let goes = shard
            .get(name)
            .is_some_and(|session| Arc::strong_count(session) == 1 && session.can_go(applied));
        if goes {
            shard.remove(name);
        }
        goes
    }
}

/// What an entry costs besides its state: map slot, queue, lock.
const SESSION_BYTES: usize = 320;

impl Session {
    fn hot_bytes(&self) -> usize {
        let queue = self.queue.lock();
        SESSION_BYTES + queue.state.as_ref().map_or(0, |state| state.hot_bytes())
    }

    fn can_go(&self, applied: Ticket) -> bool {
        let queue = self.queue.lock();
        !queue.running
            && queue
                .state
                .as_ref()
                .is_none_or(|state| state.last_commit() <= applied)
    }
}
