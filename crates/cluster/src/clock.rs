//! The time of day, as the cluster has it.
//!
//! Nothing rests on clocks but how long something is kept: idempotency records, results of asynchronous invocations.
//! Those go from node to node, so that nodes whose clocks differ by hours would forget them early. Therefore a node
//! takes the time from the one whose clock has been kept for longest: a machine that starts with a wrong clock, as
//! boards without a battery do, has the cluster's time before it serves anything. A machine's clock that is set while the node
//! runs is not followed until the node starts again: what is to be kept for a day would be gone in a moment.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fulmar_model::NodeName;
use parking_lot::Mutex;

/// A smaller difference is left alone.
const TOLERANCE: Duration = Duration::from_secs(1);

/// What the clock of a machine has been away from where it was expected, at least, if it was set.
const JUMP_MS: u64 = 1000;

/// A process has one.
static CLOCK: Clock = Clock {
    ahead_ms: AtomicI64::new(0),
    looked: Mutex::new(None),
    kept_since: Mutex::new(None),
};

/// Whether the machine's clock is watched.
static IS_KEPT: AtomicBool = AtomicBool::new(false);

/// From now on a clock of the machine that is set is not followed. For processes that live on one machine's time.
pub fn keep() {
    IS_KEPT.store(true, Ordering::Relaxed);
}

struct Clock {
    /// What is added to the machine's clock.
    ahead_ms: AtomicI64,
    /// What the machine's clock said last, while it is watched.
    looked: Mutex<Option<Look>>,
    /// Since when the time is kept that this node follows; none: not asked yet.
    kept_since: Mutex<Option<Since>>,
}

/// A moment, which may be before the machine started.
#[derive(Clone, Copy)]
struct Since {
    asked: Instant,
    before: Duration,
}

/// What the machine's clock said.
#[derive(Clone, Copy)]
struct Look {
    moment: Instant,
    unix_ms: u64,
}

/// A node's clock, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// For how long this time has been kept, by this node or by those that it has it from, in milliseconds.
    pub kept_ms: u64,
}

/// Milliseconds since the Unix epoch; 0 if it is set before it.
pub fn unix_ms() -> u64 {
    CLOCK.unix_ms()
}

/// What the machine's clock says.
fn machine_ms() -> u64 {
    let own = SystemTime::now().duration_since(UNIX_EPOCH);
    own.map_or(0, |elapsed| elapsed.as_millis() as u64)
}

pub(crate) fn read() -> Reading {
    CLOCK.read()
}

pub(crate) fn hear(node: &NodeName, said: Reading, round_trip: Duration) {
    if let Some(by_ms) = CLOCK.hear(said, round_trip) {
        tracing::warn!(%node, by_ms, "the clock of this machine differs from the cluster's, which is followed");
    }
}

impl Clock {
    fn unix_ms(&self) -> u64 {
        if !IS_KEPT.load(Ordering::Relaxed) {
            return self.told(machine_ms());
        }
        // Both clocks are read in the order in which they are compared.
        let mut looked = self.looked.lock();
        let own_ms = machine_ms();
        let jumped = self.jumped(&mut looked, own_ms, Instant::now());
        let told = self.told(own_ms);
        drop(looked);
        if let Some(by_ms) = jumped {
            tracing::warn!(
                by_ms,
                "the clock of this machine was set; it is followed when the node starts again"
            );
        }
        told
    }

    /// What it is when the machine's clock says this.
    fn told(&self, own_ms: u64) -> u64 {
        own_ms.saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Takes off what the machine's clock has jumped since the last look; by how much, in milliseconds, if it has.
    fn jumped(&self, looked: &mut Option<Look>, own_ms: u64, moment: Instant) -> Option<i64> {
        let look = Look {
            moment,
            unix_ms: own_ms,
        };
        let before = looked.replace(look)?;
        let passed = moment.saturating_duration_since(before.moment);
        let expected = before.unix_ms.saturating_add(passed.as_millis() as u64);
        let by_ms = own_ms.wrapping_sub(expected) as i64;
        if by_ms.unsigned_abs() < JUMP_MS {
            return None;
        }
        self.ahead_ms.fetch_sub(by_ms, Ordering::Relaxed);
        Some(by_ms)
    }

    fn read(&self) -> Reading {
        let mut kept_since = self.kept_since.lock();
        let since = kept_since.get_or_insert_with(|| Since {
            asked: Instant::now(),
            before: Duration::ZERO,
        });
        let kept = since.asked.elapsed() + since.before;
        Reading {
            unix_ms: self.unix_ms(),
            kept_ms: kept.as_millis() as u64,
        }
    }

    /// Follows another's clock, if that has been kept for longer and differs; by how much it changed, in milliseconds.
    fn hear(&self, said: Reading, round_trip: Duration) -> Option<i64> {
        let own = self.read();
        // It was read in the middle, more or less.
        let passed = round_trip / 2;
        let said_ms = said.unix_ms.saturating_add(passed.as_millis() as u64);
        let by_ms = said_ms.wrapping_sub(own.unix_ms) as i64;
        let is_near = by_ms.unsigned_abs() <= (TOLERANCE + round_trip).as_millis() as u64;
        if is_near || said.kept_ms <= own.kept_ms {
            return None;
        }
        self.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
        *self.kept_since.lock() = Some(Since {
            asked: Instant::now(),
            before: Duration::from_millis(said.kept_ms) + passed,
        });
        Some(by_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn clock() -> Clock {
        Clock {
            ahead_ms: AtomicI64::new(0),
            looked: Mutex::new(None),
            kept_since: Mutex::new(None),
        }
    }

    #[test]
    fn a_clock_that_is_set_is_not_followed_and_one_that_goes_on_is() {
        let (clock, start) = (clock(), Instant::now());
        let reads = |own_ms: u64, passed_ms| {
            let moment = start + Duration::from_millis(passed_ms);
            let jumped = clock.jumped(&mut clock.looked.lock(), own_ms, moment);
            (jumped, clock.told(own_ms))
        };
        let day = 24 * HOUR;
        assert_eq!(reads(day, 0), (None, day));
        assert_eq!(reads(day + 5000, 5000), (None, day + 5000));
        // Ahead by two hours, then back by three.
        let jump = 2 * HOUR as i64;
        assert_eq!(reads(day + 2 * HOUR + 6000, 6000), (Some(jump), day + 6000));
        assert_eq!(reads(day + 2 * HOUR + 7000, 7000), (None, day + 7000));
        let back = -3 * HOUR as i64;
        assert_eq!(reads(day - HOUR + 8000, 8000), (Some(back), day + 8000));
        // A correction of less than a second is one.
        assert_eq!(reads(day - HOUR + 9500, 9000), (None, day + 9500));
    }

    #[test]
    fn the_clock_that_was_kept_for_longer_is_followed() {
        let clock = clock();
        for (differs, kept_ms) in [(3 * HOUR as i64, HOUR), (-50 * HOUR as i64, 2 * HOUR)] {
            let own = clock.read();
            let unix_ms = own.unix_ms.saturating_add_signed(differs);
            let said = Reading { unix_ms, kept_ms };
            let changed = clock.hear(said, Duration::from_millis(20)).unwrap();
            assert!((changed - differs).abs() < 1000, "{changed}");
            assert!(clock.read().kept_ms >= kept_ms);
            // From now on they are the same.
            assert_eq!(clock.hear(said, Duration::from_millis(20)), None);
        }
    }

    #[test]
    fn a_younger_clock_and_a_near_one_are_not() {
        let clock = clock();
        let own = clock.read();
        let told = [
            (own.unix_ms + HOUR, own.kept_ms),
            (own.unix_ms + 900, own.kept_ms + HOUR),
            (own.unix_ms - 900, own.kept_ms + HOUR),
        ];
        for (unix_ms, kept_ms) in told {
            let said = Reading { unix_ms, kept_ms };
            assert_eq!(clock.hear(said, Duration::ZERO), None);
        }
    }
}
