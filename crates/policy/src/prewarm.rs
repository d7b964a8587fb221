//! When the next invocation will come, from when those before came: so that a worker is ready for it that was stopped in the
//! meantime.
//!
//! "Cliffhanger", IV-C: functions that are used now and then, as from a motion detector or every minute, meet a cold start
//! each time. Pauses that are much alike tell the next one.

use std::collections::VecDeque;

/// Pauses that are remembered.
const REMEMBERED: usize = 16;
/// Fewer say nothing.
const LEAST: usize = 3;
/// Pauses are alike if they differ by no more than this part of their median.
const ALIKE: f64 = 0.25;
/// Shorter pauses are part of one activity, in seconds.
const SHORTEST: f64 = 1.0;

/// When invocations came, in seconds from any origin.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    pauses: VecDeque<f64>,
    last: Option<f64>,
}

impl History {
    /// An invocation has come.
    pub fn came(&mut self, at: f64) {
        if let Some(last) = self.last.replace(at)
            && at - last >= SHORTEST
        {
            self.pauses.push_back(at - last);
            if self.pauses.len() > REMEMBERED {
                self.pauses.pop_front();
            }
        }
    }

    /// From when to when the next is expected after a pause, if the pauses tell.
    pub fn next(&self) -> Option<(f64, f64)> {
        let last = self.last?;
        if self.pauses.len() < LEAST {
            return None;
        }
        let mut pauses: Vec<f64> = self.pauses.iter().copied().collect();
        pauses.sort_by(f64::total_cmp);
        let median = pauses[pauses.len() / 2];
        let margin = median * ALIKE;
        let alike = pauses
            .iter()
            .filter(|pause| (**pause - median).abs() <= margin);
        // One that was missed is as good as none.
        if alike.count() * 4 < pauses.len() * 3 {
            return None;
        }
        Some((last + median - margin, last + median + margin))
    }

    /// Whether a worker should be there at this time, if it takes so long to start one.
    pub fn wants_one(&self, now: f64, start_seconds: f64) -> bool {
        self.next()
            .is_some_and(|(from, to)| (from - start_seconds..=to).contains(&now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_that_are_alike_tell_the_next() {
        let mut history = History::default();
        for at in [0.0, 60.0, 121.0, 179.0] {
            assert!(!history.wants_one(at + 59.0, 1.0));
            history.came(at);
            // Some more of the same activity.
            history.came(at + 0.1);
            history.came(at + 0.2);
        }
        assert!(!history.wants_one(179.2 + 30.0, 1.0), "not yet");
        assert!(history.wants_one(179.2 + 50.0, 1.0));
        assert!(history.wants_one(179.2 + 60.0, 1.0));
        assert!(!history.wants_one(179.2 + 90.0, 1.0), "it did not come");
        assert!(history.wants_one(179.2 + 40.0, 10.0), "it takes longer");
    }

    #[test]
    fn pauses_that_differ_tell_nothing() {
        let mut history = History::default();
        for at in [0.0, 10.0, 100.0, 105.0, 400.0, 402.0] {
            history.came(at);
        }
        assert_eq!(history.next(), None);
        assert_eq!(History::default().next(), None);
    }
}
