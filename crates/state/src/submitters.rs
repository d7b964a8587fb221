//! The threads that submit commits: whether any of them still has work to do.
//!
//! A batch lingers for more commits only while somebody may submit one. Once all threads are idle,
//! what the disk waits for is already there.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Instant;

/// Counts idle threads; told by the runtime's hooks, asked by the commit thread.
#[derive(Debug)]
pub struct Submitters {
    threads: usize,
    idle: AtomicUsize,
    lingering: AtomicBool,
    writer: OnceLock<Thread>,
}

impl Submitters {
    /// So many threads submit commits, all of them busy.
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            idle: AtomicUsize::new(0),
            lingering: AtomicBool::new(false),
            writer: OnceLock::new(),
        }
    }

    /// Threads that nobody counts: batches linger as long as they would for busy ones.
    pub fn uncounted() -> Self {
        Self::new(usize::MAX)
    }

    /// The calling thread has nothing more to do.
    pub fn parked(&self) {
        // Sequentially consistent with `linger`: of a thread that goes idle and a writer that begins
        // to linger, at least one sees the other.
        let idle = self.idle.fetch_add(1, Ordering::SeqCst) + 1;
        if idle >= self.threads && self.lingering.load(Ordering::SeqCst) {
            // There is none only before the store is open.
            if let Some(writer) = self.writer.get() {
                writer.unpark();
            }
        }
    }

    /// The calling thread goes on.
    pub fn unparked(&self) {
        self.idle.fetch_sub(1, Ordering::SeqCst);
    }

    /// Says which thread lingers.
    pub(crate) fn set_writer(&self, writer: Thread) {
        // A second store on the same threads would linger as if nobody was counted.
        let _ = self.writer.set(writer);
    }

    /// The calling writer waits until `until`, until all threads are idle, or until `enough`.
    pub(crate) fn linger(&self, until: Instant, enough: impl Fn() -> bool) {
        self.lingering.store(true, Ordering::SeqCst);
        while self.idle.load(Ordering::SeqCst) < self.threads && !enough() {
            let now = Instant::now();
            if now >= until {
                break;
            }
            std::thread::park_timeout(until - now);
        }
        self.lingering.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_writer_lingers_until_the_last_thread_is_idle() {
        let submitters = Arc::new(Submitters::new(2));
        submitters.set_writer(std::thread::current());
        submitters.parked();
        let idle = std::thread::spawn({
            let submitters = submitters.clone();
            move || submitters.parked()
        });
        let far = Instant::now() + Duration::from_secs(60);
        submitters.linger(far, || false);
        assert!(Instant::now() < far);
        idle.join().unwrap();
    }

    #[test]
    fn a_busy_thread_is_waited_for_no_longer_than_asked() {
        let submitters = Submitters::new(1);
        submitters.parked();
        submitters.unparked();
        let until = Instant::now() + Duration::from_millis(5);
        submitters.linger(until, || false);
        assert!(Instant::now() >= until);
        submitters.linger(Instant::now() + Duration::from_secs(60), || true);
    }
}
