//! Memory for workers: each takes as much as its function may use at most, and gives it back when it goes. Whoever finds
//! none waits for its turn; those that only wait for an invocation have to go then.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted: a page of WebAssembly memory, in bytes.
const PAGE_BYTES: u64 = 64 << 10;

/// Memory for workers, bounded or not.
#[derive(Debug)]
pub struct Room {
    bounded: Option<Bounded>,
}

#[derive(Debug)]
struct Bounded {
    pages: u32,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Memory of one worker, given back when dropped.
#[derive(Debug, Default)]
pub struct Reserved(Option<OwnedSemaphorePermit>);

impl Reserved {
    /// How much it is, in bytes; 0 where memory is not bounded.
    pub fn bytes(&self) -> u64 {
        let pages = self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        pages as u64 * PAGE_BYTES
    }
}

/// Counts who waits, also one who gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX)
}

impl Room {
    /// So many bytes; none for as many as are asked for.
    pub fn new(bytes: Option<u64>) -> Self {
        let bounded = bytes.map(|bytes| {
            let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
            Bounded {
                pages,
                free: Arc::new(Semaphore::new(pages as usize)),
                waiting: AtomicUsize::new(0),
            }
        });
        Self { bounded }
    }

    /// How much it is in all, in bytes; none if it is not bounded.
    pub fn total_bytes(&self) -> Option<u64> {
        let bounded = self.bounded.as_ref()?;
        Some(u64::from(bounded.pages) * PAGE_BYTES)
    }

    /// Whether a worker of so many bytes could start now, given how many bytes those have that are idle.
    pub fn fits(&self, bytes: u64, idle_bytes: u64) -> bool {
        self.bounded.as_ref().is_none_or(|bounded| {
            let free = bounded.free.available_permits() as u64 * PAGE_BYTES;
            !bounded.is_wanted() && bytes <= free + idle_bytes
        })
    }

    /// Whether somebody waits: no worker may be idle then.
    pub fn is_wanted(&self) -> bool {
        self.bounded.as_ref().is_some_and(Bounded::is_wanted)
    }

    /// Memory for a worker of so many bytes, as soon as there is some; `make_room` has an idle worker go, if there is one.
    /// None if it is more than there is in all.
    pub async fn reserve(&self, bytes: u64, make_room: impl Fn() -> bool) -> Option<Reserved> {
        let Some(bounded) = &self.bounded else {
            return Some(Reserved(None));
        };
        let pages = pages(bytes);
        if pages > bounded.pages {
            return None;
        }
        let at_once = || bounded.free.clone().try_acquire_many_owned(pages).ok();
        loop {
            if let Some(permit) = at_once() {
                return Some(Reserved(Some(permit)));
            }
            if !make_room() {
                break;
            }
        }
        bounded.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&bounded.waiting);
        // From here on no worker becomes idle; those that did before were not told.
        while bounded.free.available_permits() < pages as usize && make_room() {}
        // It is never closed.
        let permit = bounded.free.clone().acquire_many_owned(pages).await.ok()?;
        Some(Reserved(Some(permit)))
    }
}

impl Bounded {
    fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::task::{Context, Waker};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test]
    async fn idle_workers_go_when_their_memory_is_needed() {
        let room = Room::new(Some(4 * MIB));
        assert!(
            room.reserve(5 * MIB, || unreachable!()).await.is_none(),
            "more than there is"
        );
        let busy = room.reserve(MIB, || false).await.unwrap();
        let idle = RefCell::new(vec![
            room.reserve(MIB, || false).await.unwrap(),
            room.reserve(2 * MIB, || false).await.unwrap(),
        ]);
        assert!(!room.fits(1, 0));
        assert!(room.fits(3 * MIB, 3 * MIB));
        assert!(!room.fits(4 * MIB, 3 * MIB));
        let make_room = || idle.borrow_mut().pop().is_some();
        let large = room.reserve(3 * MIB, make_room).await.unwrap();
        assert_eq!((large.bytes(), busy.bytes()), (3 * MIB, MIB));
        assert!(idle.borrow().is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_gets_what_becomes_free_in_turn() {
        let room = Arc::new(Room::new(Some(2 * MIB)));
        let first = room.reserve(2 * MIB, || false).await.unwrap();
        assert!(!room.is_wanted());
        let waiting = |bytes| {
            let room = room.clone();
            let mut reserving = Box::pin(async move { room.reserve(bytes, || false).await });
            let mut context = Context::from_waker(Waker::noop());
            assert!(reserving.as_mut().poll(&mut context).is_pending());
            reserving
        };
        let second = waiting(2 * MIB);
        let third = waiting(MIB);
        assert!(room.is_wanted());
        assert!(!room.fits(0, 2 * MIB), "others come first");
        drop(first);
        let second = second.await.unwrap();
        drop(third);
        drop(second);
        assert!(!room.is_wanted(), "the third gave up");
        assert!(room.fits(2 * MIB, 0));
    }

    #[tokio::test]
    async fn without_a_bound_everything_fits() {
        let room = Room::new(None);
        assert!(room.fits(u64::MAX, 0) && room.total_bytes().is_none());
        assert_eq!(room.reserve(u64::MAX, || false).await.unwrap().bytes(), 0);
    }
}
