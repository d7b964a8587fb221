//! How long a function takes and how large what goes in and out is: means of what was seen last.

use std::time::{Duration, Instant};

use fulmar_cluster::Measured;
use fulmar_policy::estimate::{Sampled, Smoothed};
use parking_lot::Mutex;

/// Weight of the newest observation.
const NEWEST: f64 = 0.1;
/// What was seen longer ago says nothing about how busy the node is now.
const FRESH: Duration = Duration::from_secs(10);

/// What was seen of a function on this node.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    seen: Mutex<Option<Seen>>,
    work: Mutex<Option<Smoothed>>,
}

#[derive(Debug)]
struct Seen {
    execution: Sampled,
    /// The part of it that was spent on waiting for shared keys.
    waiting: Smoothed,
    /// Shortest mean so far, without that: what it takes when nothing is in the way.
    best: f64,
    input: Smoothed,
    output: Smoothed,
    at: Instant,
}

impl Seen {
    fn new() -> Self {
        Self {
            execution: Sampled::new(NEWEST),
            waiting: Smoothed::new(NEWEST),
            best: f64::INFINITY,
            input: Smoothed::new(NEWEST),
            output: Smoothed::new(NEWEST),
            at: Instant::now(),
        }
    }
}

impl Seen {
    /// Seconds of an execution without the wait for shared keys.
    fn working(&self) -> f64 {
        (self.execution.mean() - self.waiting.value()).max(0.0)
    }
}

impl Profile {
    /// It was executed here, in so much time.
    pub(crate) fn executed(&self, took: Duration) {
        let mut seen = self.seen.lock();
        let seen = seen.get_or_insert_with(Seen::new);
        seen.execution.see(took.as_secs_f64());
        seen.best = seen.best.min(seen.working());
        seen.at = Instant::now();
    }

    /// An invocation has waited for shared keys for so long, before it was executed.
    pub(crate) fn waited(&self, took: Duration) {
        let mut seen = self.seen.lock();
        let seen = seen.get_or_insert_with(Seen::new);
        seen.waiting.see(took.as_secs_f64());
    }

    /// An invocation was taken here, wherever it ran.
    pub(crate) fn taken(&self, input_bytes: usize, output_bytes: usize) {
        let mut seen = self.seen.lock();
        let seen = seen.get_or_insert_with(Seen::new);
        seen.input.see(input_bytes as f64);
        seen.output.see(output_bytes as f64);
    }

    /// A worker has worked for so long on an invocation.
    pub(crate) fn worked(&self, took: Duration) {
        let mut work = self.work.lock();
        let work = work.get_or_insert_with(|| Smoothed::new(NEWEST));
        work.see(took.as_secs_f64());
    }

    /// Seconds of a worker that an invocation takes, if that is known.
    pub(crate) fn work_seconds(&self) -> Option<f64> {
        self.work.lock().as_ref().map(Smoothed::value)
    }

    /// How long an execution takes, if it was executed here: as of late, or, if that is long ago, as it was at best.
    pub(crate) fn execution(&self) -> Option<Measured> {
        let seen = self.seen.lock();
        let seen = seen.as_ref().filter(|seen| seen.best.is_finite())?;
        let mean = match seen.at.elapsed() < FRESH {
            true => seen.working(),
            false => seen.best,
        };
        let error = seen.execution.error();
        Some(Measured { mean, error })
    }

    /// Seconds of an execution when nothing was in the way, if it was executed here.
    pub(crate) fn best_seconds(&self) -> Option<f64> {
        let seen = self.seen.lock();
        let best = seen.as_ref().map(|seen| seen.best);
        best.filter(|best| best.is_finite())
    }

    /// Mean bytes in and out.
    pub(crate) fn bytes(&self) -> (f64, f64) {
        let seen = self.seen.lock();
        let bytes = |seen: &Seen| (seen.input.value(), seen.output.value());
        seen.as_ref().map_or((0.0, 0.0), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_follows_what_is_seen() {
        let profile = Profile::default();
        assert_eq!(profile.execution(), None);
        profile.taken(100, 10);
        assert_eq!(profile.execution(), None);
        assert_eq!(profile.bytes(), (100.0, 10.0));
        profile.executed(Duration::from_millis(10));
        assert_eq!(
            profile.execution(),
            Some(Measured {
                mean: 0.01,
                error: 0.01
            })
        );
        for _ in 0..100 {
            profile.executed(Duration::from_millis(30));
        }
        assert!((profile.execution().unwrap().mean - 0.03).abs() < 1e-4);
        for _ in 0..100 {
            profile.waited(Duration::from_millis(20));
            profile.executed(Duration::from_millis(30));
        }
        assert!((profile.execution().unwrap().mean - 0.01).abs() < 1e-4);
    }
}
