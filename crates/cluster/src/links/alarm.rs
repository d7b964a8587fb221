//! Wakes tasks at a moment, to some ten microseconds: the runtime's own timers tick in milliseconds, and waiting actively for
//! the rest takes the time of those that are waited for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

static ALARMS: Alarms = Alarms {
    waiting: Mutex::new(BinaryHeap::new()),
    changed: Condvar::new(),
    is_running: OnceLock::new(),
};

/// Waits until a moment.
pub(super) async fn at(moment: Instant) {
    if moment <= Instant::now() {
        return;
    }
    if let Some(rings) = ALARMS.set(moment) {
        // It rings, or the process ends.
        let _ = rings.await;
    } else {
        tokio::time::sleep_until(moment.into()).await;
    }
}

/// What rings when; the thread that rings them lives as long as the process.
struct Alarms {
    waiting: Mutex<BinaryHeap<Reverse<Alarm>>>,
    changed: Condvar,
    /// Without a thread nobody rings.
    is_running: OnceLock<bool>,
}

struct Alarm {
    moment: Instant,
    rings: oneshot::Sender<()>,
}

impl PartialEq for Alarm {
    fn eq(&self, other: &Self) -> bool {
        self.moment == other.moment
    }
}

impl Eq for Alarm {}

impl PartialOrd for Alarm {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Alarm {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.moment.cmp(&other.moment)
    }
}

impl Alarms {
    /// Hears when it is time; none if there is no thread for it.
    fn set(&'static self, moment: Instant) -> Option<oneshot::Receiver<()>> {
        let is_running = self.is_running.get_or_init(|| {
            let thread = std::thread::Builder::new().name("fulmar-links".into());
            thread.spawn(|| self.ring()).is_ok()
        });
        if !is_running {
            return None;
        }
        let (rings, heard) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_next = (waiting.peek()).is_none_or(|Reverse(next)| moment < next.moment);
        waiting.push(Reverse(Alarm { moment, rings }));
        drop(waiting);
        if is_next {
            self.changed.notify_one();
        }
        Some(heard)
    }

    fn ring(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            waiting = match waiting.peek() {
                None => self
                    .changed
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Reverse(next)) if next.moment > now => {
                    let left = next.moment - now;
                    let waited = self.changed.wait_timeout(waiting, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    if let Some(Reverse(alarm)) = waiting.pop() {
                        // Nobody may wait any more.
                        let _ = alarm.rings.send(());
                    }
                    waiting
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn alarms_ring_in_their_order_and_not_too_early() {
        let now = Instant::now();
        let waiting = [7, 3, 5, 3].map(|ms| async move {
            let moment = now + Duration::from_millis(ms);
            at(moment).await;
            assert!(Instant::now() >= moment);
            ms
        });
        let mut rang: Vec<u64> = Vec::new();
        let mut waiting: futures_util::stream::FuturesUnordered<_> = waiting.into_iter().collect();
        while let Some(ms) = futures_util::StreamExt::next(&mut waiting).await {
            rang.push(ms);
        }
        assert_eq!(rang.len(), 4);
        at(now).await;
    }
}
