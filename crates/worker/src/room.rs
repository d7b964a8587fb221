//! Memory and CPU for workers: each takes as much as its function may use at most, or has reserved, and gives it back when it
//! goes. Whoever finds none waits for its turn; those that only wait for an invocation have to go then.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted: a page of WebAssembly memory, in bytes.
const PAGE_BYTES: u64 = 64 << 10;

/// What a worker takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Memory, in bytes.
    pub bytes: u64,
    /// CPU that is its own, in thousandths of one.
    pub cpu_millis: u32,
}

impl std::ops::AddAssign for Need {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.cpu_millis += other.cpu_millis;
    }
}

impl std::ops::SubAssign for Need {
    fn sub_assign(&mut self, other: Self) {
        self.bytes -= other.bytes;
        self.cpu_millis -= other.cpu_millis;
    }
}

/// What there is for workers, bounded or not.
#[derive(Debug, Default)]
pub struct Room {
    memory: Option<Bounded>,
    cpu: Option<Bounded>,
}

/// One of both, in pages or thousandths.
#[derive(Debug)]
struct Bounded {
    all: u32,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// What one worker has, given back when dropped.
#[derive(Debug, Default)]
pub struct Reserved {
    memory: Option<OwnedSemaphorePermit>,
    cpu: Option<OwnedSemaphorePermit>,
}

impl Reserved {
    /// How much it is; 0 of what is not bounded.
    pub fn need(&self) -> Need {
        let permits = |permit: &Option<OwnedSemaphorePermit>| {
            permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
        };
        Need {
            bytes: permits(&self.memory) as u64 * PAGE_BYTES,
            cpu_millis: permits(&self.cpu) as u32,
        }
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
    /// So many bytes and thousandths of a CPU; none for as many as are asked for.
    pub fn new(bytes: Option<u64>, cpu_millis: Option<u32>) -> Self {
        let whole_pages = |bytes| u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        Self {
            memory: bytes.map(whole_pages).map(Bounded::new),
            cpu: cpu_millis.map(Bounded::new),
        }
    }

    /// How much memory it is in all, in bytes; none if it is not bounded.
    pub fn total_bytes(&self) -> Option<u64> {
        let memory = self.memory.as_ref()?;
        Some(u64::from(memory.all) * PAGE_BYTES)
    }

    /// How much CPU it is in all, in thousandths of one; none if it is not bounded.
    pub fn total_cpu_millis(&self) -> Option<u32> {
        self.cpu.as_ref().map(|cpu| cpu.all)
    }

    /// Whether a worker that takes so much could start now, given how much those have that are idle.
    pub fn fits(&self, need: Need, idle: Need) -> bool {
        let memory = self.memory.as_ref();
        let cpu = self.cpu.as_ref();
        memory.is_none_or(|memory| memory.fits(pages(need.bytes), pages(idle.bytes)))
            && cpu.is_none_or(|cpu| cpu.fits(need.cpu_millis, idle.cpu_millis))
    }

    /// Whether somebody waits: no worker may be idle then.
    pub fn is_wanted(&self) -> bool {
        let mut bounds = self.memory.iter().chain(&self.cpu);
        bounds.any(Bounded::is_wanted)
    }

    /// Room for a worker that takes so much, as soon as there is some; `make_room` has an idle worker go, if there is one.
    /// None if it is more than there is in all.
    pub async fn reserve(&self, need: Need, make_room: impl Fn() -> bool) -> Option<Reserved> {
        let mut reserved = Reserved::default();
        if let Some(memory) = &self.memory {
            reserved.memory = Some(memory.take(pages(need.bytes), &make_room).await?);
        }
        // Always after memory: nobody who has CPU waits for memory.
        if let Some(cpu) = self.cpu.as_ref().filter(|_| need.cpu_millis > 0) {
            reserved.cpu = Some(cpu.take(need.cpu_millis, &make_room).await?);
        }
        Some(reserved)
    }
}

impl Bounded {
    fn new(all: u32) -> Self {
        Self {
            all,
            free: Arc::new(Semaphore::new(all as usize)),
            waiting: AtomicUsize::new(0),
        }
    }

    fn fits(&self, units: u32, idle: u32) -> bool {
        let free = self.free.available_permits() + idle as usize;
        units == 0 || !self.is_wanted() && units as usize <= free
    }

    async fn take(
        &self,
        units: u32,
        make_room: &impl Fn() -> bool,
    ) -> Option<OwnedSemaphorePermit> {
        if units > self.all {
            return None;
        }
        let at_once = || self.free.clone().try_acquire_many_owned(units).ok();
        loop {
            if let Some(permit) = at_once() {
                return Some(permit);
            }
            if !make_room() {
                break;
            }
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&self.waiting);
        // From here on no worker becomes idle; those that did before were not told.
        while self.free.available_permits() < units as usize && make_room() {}
        // It is never closed.
        self.free.clone().acquire_many_owned(units).await.ok()
    }

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

    fn memory(bytes: u64) -> Need {
        let cpu_millis = 0;
        Need { bytes, cpu_millis }
    }

    #[tokio::test]
    async fn idle_workers_go_when_their_memory_is_needed() {
        let room = Room::new(Some(4 * MIB), None);
        assert!(
            room.reserve(memory(5 * MIB), || unreachable!())
                .await
                .is_none(),
            "more than there is"
        );
        let busy = room.reserve(memory(MIB), || false).await.unwrap();
        let idle = RefCell::new(vec![
            room.reserve(memory(MIB), || false).await.unwrap(),
            room.reserve(memory(2 * MIB), || false).await.unwrap(),
        ]);
        assert!(!room.fits(memory(1), memory(0)));
        assert!(room.fits(memory(3 * MIB), memory(3 * MIB)));
        assert!(!room.fits(memory(4 * MIB), memory(3 * MIB)));
        let make_room = || idle.borrow_mut().pop().is_some();
        let large = room.reserve(memory(3 * MIB), make_room).await.unwrap();
        assert_eq!((large.need().bytes, busy.need().bytes), (3 * MIB, MIB));
        assert!(idle.borrow().is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_gets_what_becomes_free_in_turn() {
        let room = Arc::new(Room::new(Some(2 * MIB), None));
        let first = room.reserve(memory(2 * MIB), || false).await.unwrap();
        assert!(!room.is_wanted());
        let waiting = |bytes| {
            let room = room.clone();
            let mut reserving =
                Box::pin(async move { room.reserve(memory(bytes), || false).await });
            let mut context = Context::from_waker(Waker::noop());
            assert!(reserving.as_mut().poll(&mut context).is_pending());
            reserving
        };
        let second = waiting(2 * MIB);
        let third = waiting(MIB);
        assert!(room.is_wanted());
        assert!(!room.fits(memory(1), memory(2 * MIB)), "others come first");
        drop(first);
        let second = second.await.unwrap();
        drop(third);
        drop(second);
        assert!(!room.is_wanted(), "the third gave up");
        assert!(room.fits(memory(2 * MIB), memory(0)));
    }

    #[tokio::test]
    async fn without_a_bound_everything_fits() {
        let room = Room::default();
        assert!(room.fits(memory(u64::MAX), memory(0)) && room.total_bytes().is_none());
        assert_eq!(
            room.reserve(memory(u64::MAX), || false)
                .await
                .unwrap()
                .need()
                .bytes,
            0
        );
    }

    #[tokio::test]
    async fn reserved_cpu_is_only_given_once() {
        let room = Room::new(None, Some(2000));
        let cpu = |cpu_millis| Need {
            bytes: MIB,
            cpu_millis,
        };
        let half = room.reserve(cpu(1500), || false).await.unwrap();
        assert_eq!(
            half.need(),
            Need {
                bytes: 0,
                cpu_millis: 1500
            }
        );
        assert!(room.fits(cpu(500), Need::default()) && !room.fits(cpu(501), Need::default()));
        assert!(room.fits(cpu(2000), half.need()) && room.fits(cpu(0), Need::default()));
        assert!(room.reserve(cpu(2001), || unreachable!()).await.is_none());
        let mut next = Box::pin(room.reserve(cpu(600), || false));
        let mut context = Context::from_waker(Waker::noop());
        assert!(next.as_mut().poll(&mut context).is_pending());
        assert!(room.is_wanted());
        assert!(room.fits(cpu(0), Need::default()), "it needs none");
        drop(half);
        assert_eq!(next.await.unwrap().need().cpu_millis, 600);
    }
}
