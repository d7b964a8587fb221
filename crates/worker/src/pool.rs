//! Live workers that wait for their next invocation.
//!
//! A worker that served a session waits for that session only, tagged with the session's version:
//! what it remembers is true as long as nobody else changed the session. Workers without a session
//! are interchangeable. Over the limit the one that waited longest goes.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use fulmar_model::{FunctionName, SessionName};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::room::{Need, Reserved, Room};
use crate::worker::Worker;

/// What waits in a pool.
pub trait Holds {
    /// What it has for itself.
    fn has(&self) -> Need;

    /// Whether it can be told what it lacks of a session that has changed since.
    fn catches_up(&self) -> bool {
        false
    }

    /// Whether it remembers something of a session, of several that it may have had.
    fn remembers(&self, _session: &SessionName) -> bool {
        false
    }

    /// What it did last is committed, and its session has this version now.
    fn committed(&mut self, _tag: u64) {}
}

/// What a worker is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The function.
    pub function: FunctionName,
    /// Its deployed version.
    pub version: u64,
    /// The session whose state the worker may remember, if it has one.
    pub session: Option<SessionName>,
}

struct Waiting<W> {
    tag: u64,
    worker: W,
    expires: Instant,
    since: Instant,
    /// Place in the order of use.
    turn: u64,
}

struct Inner<W> {
    waiting: FxHashMap<Key, VecDeque<Waiting<W>>>,
    /// Of which a function's workers may be, since they were all dropped last.
    versions: FxHashMap<FunctionName, Vec<u64>>,
    /// By turn: the first is the one that waited longest.
    order: BTreeMap<u64, Key>,
    next_turn: u64,
    /// What all that wait have for themselves.
    idle: Need,
}

/// Live workers that wait. Generic only for its tests.
pub struct Pool<W = Worker> {
    inner: Mutex<Inner<W>>,
    max: usize,
    /// Where they have their memory from.
    room: Room,
}

impl<W: Holds> Pool<W> {
    /// A pool of at most `max` waiting workers, which have their memory from `room`.
    pub fn new(max: usize, room: Room) -> Self {
        Self {
            inner: Mutex::new(Inner {
                waiting: FxHashMap::default(),
                versions: FxHashMap::default(),
                order: BTreeMap::new(),
                next_turn: 0,
                idle: Need::default(),
            }),
            max,
            room,
        }
    }

    /// The worker for the key that waited least, if what it remembers is of version `tag`; one of
    /// another version is dropped, unless it can catch up.
    pub fn take(&self, key: &Key, tag: u64) -> Option<W> {
        let (found, _dropped_unlocked);
        {
            let mut inner = self.inner.lock();
            let waiting = inner.waiting.get_mut(key)?;
            let last = waiting.pop_back()?;
            if waiting.is_empty() {
                inner.waiting.remove(key);
            }
            inner.order.remove(&last.turn);
            inner.idle -= last.worker.has();
            if last.tag == tag || last.worker.catches_up() {
                (found, _dropped_unlocked) = (Some(last.worker), None);
            } else {
                (found, _dropped_unlocked) = (None, Some(last.worker));
            }
        }
        found
    }

    /// The worker for the key that remembers a session, or else the one that waited least, so that those that nobody needs
    /// wait until they go. For those that catch up.
    pub fn take_for(&self, key: &Key, session: &SessionName) -> Option<W> {
        let mut inner = self.inner.lock();
        let waiting = inner.waiting.get_mut(key)?;
        let knows = |waiting: &Waiting<W>| waiting.worker.remembers(session);
        let last = waiting.len().checked_sub(1)?;
        let at = waiting.iter().position(knows).unwrap_or(last);
        let found = waiting.remove(at)?;
        if waiting.is_empty() {
            inner.waiting.remove(key);
        }
        inner.order.remove(&found.turn);
        inner.idle -= found.worker.has();
        Some(found.worker)
    }

    /// Lets a worker wait whose last invocation is committed, and has made this version of its session: until `expires`,
    /// unless others wait for its memory.
    pub fn put(&self, key: Key, tag: u64, mut worker: W, expires: Instant) {
        worker.committed(tag);
        self.put_back(key, tag, worker, expires);
    }

    /// The same for one of which it is not known that what it did last is committed.
    pub fn put_back(&self, key: Key, tag: u64, worker: W, expires: Instant) {
        let mut dropped_unlocked = Vec::new();
        {
            let mut inner = self.inner.lock();
            let turn = inner.next_turn;
            inner.next_turn += 1;
            inner.idle += worker.has();
            inner.order.insert(turn, key.clone());
            inner.note_version(&key);
            inner.waiting.entry(key).or_default().push_back(Waiting {
                tag,
                worker,
                expires,
                since: Instant::now(),
                turn,
            });
            while inner.order.len() > self.max || self.room.is_wanted() {
                let Some((_, oldest)) = inner.order.pop_first() else {
                    break;
                };
                dropped_unlocked.extend(inner.pop_front(&oldest));
            }
        }
        drop(dropped_unlocked);
    }

    /// Makes room for a fresh worker when the engine has no slot left: drops the one that waited
    /// longest. False if none waits.
    pub fn drop_oldest(&self) -> bool {
        let dropped = {
            let mut inner = self.inner.lock();
            let oldest = inner.order.pop_first();
            oldest.and_then(|(_, key)| inner.pop_front(&key))
        };
        dropped.is_some()
    }

    /// Drops the workers whose time is over.
    pub fn sweep(&self, now: Instant) {
        self.drop_where(|_, waiting| waiting.expires <= now);
    }

    /// Drops the workers of a session.
    pub fn evict_session(&self, function: &FunctionName, session: &str) {
        let Ok(session) = SessionName::new(session) else {
            return;
        };
        let mut dropped_unlocked = Vec::new();
        {
            let inner = &mut *self.inner.lock();
            let versions = inner.versions.get(function).into_iter().flatten();
            let mut key = Key {
                function: function.clone(),
                version: 0,
                session: Some(session),
            };
            for version in versions {
                key.version = *version;
                for worker in inner.waiting.remove(&key).into_iter().flatten() {
                    inner.order.remove(&worker.turn);
                    inner.idle -= worker.worker.has();
                    dropped_unlocked.push(worker);
                }
            }
        }
        drop(dropped_unlocked);
    }

    /// Drops the workers of a function.
    pub fn evict_function(&self, function: &FunctionName) {
        self.inner.lock().versions.remove(function);
        self.drop_where(|key, _| key.function == *function);
    }

    /// Room for another worker that takes so much, as soon as there is some; those that waited longest go if need be.
    /// None if it is more than there is in all.
    pub async fn reserve(&self, need: Need) -> Option<Reserved> {
        self.room.reserve(need, || self.drop_oldest()).await
    }

    /// Whether another worker that takes so much could start now.
    pub fn fits(&self, need: Need) -> bool {
        self.room.fits(need, self.inner.lock().idle)
    }

    /// What there is for all workers.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Since when those wait that wait for the key, the longest first.
    pub fn idle_since(&self, key: &Key) -> Vec<Instant> {
        let inner = self.inner.lock();
        let waiting = inner.waiting.get(key).into_iter().flatten();
        waiting.map(|waiting| waiting.since).collect()
    }

    /// Drops so many of those that wait for the key, that waited longest.
    pub fn drop_idle(&self, key: &Key, count: usize) {
        let mut dropped_unlocked = Vec::new();
        {
            let mut inner = self.inner.lock();
            for _ in 0..count {
                let Some(oldest) = inner.pop_front(key) else {
                    break;
                };
                inner.order.remove(&oldest.turn);
                dropped_unlocked.push(oldest);
            }
        }
        drop(dropped_unlocked);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.inner.lock().order.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn drop_where(&self, mut goes: impl FnMut(&Key, &Waiting<W>) -> bool) {
        let mut dropped_unlocked = Vec::new();
        {
            let inner = &mut *self.inner.lock();
            let (order, idle) = (&mut inner.order, &mut inner.idle);
            inner.waiting.retain(|key, waiting| {
                let mut kept = VecDeque::with_capacity(waiting.len());
                for worker in waiting.drain(..) {
                    if goes(key, &worker) {
                        order.remove(&worker.turn);
                        *idle -= worker.worker.has();
                        dropped_unlocked.push(worker);
                    } else {
                        kept.push_back(worker);
                    }
                }
                *waiting = kept;
                !waiting.is_empty()
            });
        }
        drop(dropped_unlocked);
    }
}

impl<W: Holds> Inner<W> {
    fn note_version(&mut self, key: &Key) {
        let known = self.versions.get(&key.function);
        if !known.is_some_and(|versions| versions.contains(&key.version)) {
            let versions = self.versions.entry(key.function.clone()).or_default();
            versions.push(key.version);
        }
    }

    /// The worker of a key that waited longest; its turn is already gone.
    fn pop_front(&mut self, key: &Key) -> Option<Waiting<W>> {
        let waiting = self.waiting.get_mut(key)?;
        let oldest = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(key);
        }
        if let Some(oldest) = &oldest {
            self.idle -= oldest.worker.has();
        }
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    impl Holds for &str {
        fn has(&self) -> Need {
            Need::default()
        }
    }

    /// A worker with its memory, 1 MiB.
    struct Sized(Reserved);

    impl Holds for Sized {
        fn has(&self) -> Need {
            self.0.need()
        }
    }

    fn unbounded(max: usize) -> Pool<&'static str> {
        Pool::new(max, Room::default())
    }

    fn key(session: Option<&str>) -> Key {
        Key {
            function: FunctionName::new("f").unwrap(),
            version: 1,
            session: session.map(|name| SessionName::new(name).unwrap()),
        }
    }

    #[test]
    fn a_worker_that_remembers_another_version_is_dropped() {
        let (pool, later) = (unbounded(4), Instant::now() + Duration::from_secs(1));
        pool.put(key(Some("a")), 7, "knows 7", later);
        assert_eq!(pool.take(&key(Some("a")), 8), None);
        assert_eq!(pool.take(&key(Some("a")), 7), None, "it is gone");
        pool.put(key(Some("a")), 7, "knows 7", later);
        assert_eq!(pool.take(&key(Some("a")), 7), Some("knows 7"));
    }

    #[test]
    fn sessions_do_not_share_workers_and_the_oldest_goes_first() {
        let (pool, later) = (unbounded(2), Instant::now() + Duration::from_secs(1));
        pool.put(key(Some("a")), 0, "1", later);
        pool.put(key(Some("b")), 0, "2", later);
        pool.put(key(None), 0, "3", later);
        assert_eq!(pool.take(&key(Some("a")), 0), None, "waited longest");
        assert_eq!(pool.take(&key(Some("b")), 0), Some("2"));
        assert_eq!(pool.take(&key(Some("b")), 0), None);
        assert_eq!(pool.take(&key(None), 0), Some("3"));
        assert!(pool.is_empty());
    }

    #[test]
    fn sweeps_and_evictions_leave_the_others() {
        let (pool, now) = (unbounded(8), Instant::now());
        pool.put(key(Some("a")), 0, "1", now);
        pool.put(key(Some("b")), 0, "2", now + Duration::from_secs(2));
        pool.sweep(now + Duration::from_secs(1));
        assert_eq!(pool.len(), 1);
        pool.put(key(None), 0, "3", now);
        let of_before = Key {
            version: 0,
            ..key(Some("b"))
        };
        pool.put(of_before, 0, "4", now);
        pool.evict_session(&key(None).function, "b");
        assert_eq!(pool.len(), 1);
        assert!(pool.drop_oldest());
        assert!(!pool.drop_oldest());
    }

    #[tokio::test]
    async fn those_that_wait_go_when_their_memory_is_needed() {
        const MIB: u64 = 1 << 20;
        let memory = |bytes| Need {
            bytes,
            cpu_millis: 0,
        };
        let (pool, later) = (
            Pool::new(8, Room::new(Some(2 * MIB), None)),
            Instant::now() + Duration::from_secs(1),
        );
        let reserved = pool.reserve(memory(MIB)).await.unwrap();
        assert!(pool.fits(memory(MIB)) && !pool.fits(memory(2 * MIB)));
        pool.put(key(Some("a")), 0, Sized(reserved), later);
        assert!(pool.fits(memory(2 * MIB)), "it would go");
        let both = pool.reserve(memory(2 * MIB)).await.unwrap();
        assert!(pool.is_empty() && !pool.fits(memory(1)));
        let mut next = std::pin::pin!(pool.reserve(memory(MIB)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(next.as_mut().poll(&mut context).is_pending());
        pool.put(key(None), 0, Sized(both), later);
        assert!(pool.is_empty(), "its memory is wanted");
        assert!(next.await.is_some());
        assert!(pool.reserve(memory(3 * MIB)).await.is_none());
    }
}
