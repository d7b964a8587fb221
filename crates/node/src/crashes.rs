//! Workers that crash again and again: after a few in a row the next waits, longer each time.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Crashes in a row that are nothing unusual.
const USUAL: u32 = 5;
/// The pause after one more; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How the workers of a deployed version have ended lately.
#[derive(Default)]
pub(crate) struct Crashes(Mutex<State>);

#[derive(Default)]
struct State {
    in_a_row: u32,
    until: Option<Instant>,
    last: String,
}

/// Why no worker is started now.
pub(crate) struct Loop {
    /// How many have crashed in a row.
    pub(crate) count: u32,
    /// What the last one said.
    pub(crate) last: String,
    /// When the next may start.
    pub(crate) pause: Duration,
}

impl Crashes {
    /// One has crashed, or did not start.
    pub(crate) fn crashed(&self, why: &str, now: Instant) {
        let mut state = self.0.lock();
        // Several at once are one.
        if state.until.is_some_and(|until| now < until) {
            return;
        }
        state.in_a_row = state.in_a_row.saturating_add(1);
        why.clone_into(&mut state.last);
        if let Some(more) = state.in_a_row.checked_sub(USUAL) {
            let pause = FIRST_PAUSE.saturating_mul(1 << more.min(10));
            state.until = Some(now + pause.min(LONGEST_PAUSE));
        }
    }

    /// One has done its work.
    pub(crate) fn worked(&self) {
        let mut state = self.0.lock();
        if state.in_a_row > 0 {
            *state = State::default();
        }
    }

    /// Whether one may start now.
    pub(crate) fn may_start(&self, now: Instant) -> Result<(), Loop> {
        let state = self.0.lock();
        match state.until {
            Some(until) if now < until => Err(Loop {
                count: state.in_a_row,
                last: state.last.clone(),
                pause: until - now,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_crashes_again_and_again_waits_longer_each_time() {
        let (crashes, mut now) = (Crashes::default(), Instant::now());
        for _ in 1..USUAL {
            crashes.crashed("early", now);
            assert!(crashes.may_start(now).is_ok());
        }
        let mut pauses = Vec::new();
        for _ in 0..9 {
            crashes.crashed("late", now);
            crashes.crashed("at the same time", now);
            let Err(told) = crashes.may_start(now) else {
                panic!("it waits");
            };
            assert_eq!(told.last, "late");
            pauses.push(told.pause);
            now += told.pause;
            assert!(crashes.may_start(now).is_ok());
        }
        assert_eq!(pauses[..3], [1, 2, 4].map(|part| FIRST_PAUSE * part));
        assert_eq!(pauses[8], LONGEST_PAUSE);
        crashes.worked();
        crashes.crashed("again", now);
        assert!(crashes.may_start(now).is_ok());
    }
}
