//! How much to let in: a limit on concurrent invocations that follows measured latency.
//!
//! "Cliffhanger", IV-A and V: flow control made the difference between a queue that grows and one that
//! does not, and it should not be for users to tune. The limit grows as long as latency stays near what
//! it is without contention, and shrinks in proportion to how far it is above.

/// How the limit moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The limit is never below this.
    pub least: u32,
    /// Nor above this.
    pub most: u32,
    /// Latency may be so many times what it is without contention.
    pub tolerance: f64,
    /// Weight of the newest window in the limit, from 0 to 1.
    pub newest: f64,
    /// How fast the latency without contention is forgotten, as a part of it for each window: it may
    /// have risen for good.
    pub leak: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            least: 1,
            most: 10_000,
            tolerance: 2.0,
            newest: 0.3,
            leak: 0.002,
        }
    }
}

/// What was measured since the last change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Invocations that completed.
    pub completed: u32,
    /// Their mean latency from admission to completion, in seconds.
    pub mean_seconds: f64,
    /// Most invocations in flight at once.
    pub most_in_flight: u32,
}

/// The limit and what it is decided from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limiter {
    options: Options,
    limit: f64,
    uncontended_seconds: Option<f64>,
}

impl Limiter {
    /// Starts at `limit`.
    pub fn new(options: Options, limit: u32) -> Self {
        Self {
            options,
            limit: f64::from(limit.clamp(options.least, options.most)),
            uncontended_seconds: None,
        }
    }

    /// Invocations that may be in flight at once.
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// The least mean latency that was seen lately, in seconds.
    pub fn uncontended_seconds(&self) -> Option<f64> {
        self.uncontended_seconds
    }

    /// Takes in a window, and gives the new limit.
    pub fn update(&mut self, window: &Window) -> u32 {
        let options = &self.options;
        if window.completed == 0 || !window.mean_seconds.is_finite() || window.mean_seconds <= 0.0 {
            return self.limit();
        }
        let uncontended = self
            .uncontended_seconds
            .map_or(window.mean_seconds, |seconds| {
                window.mean_seconds.min(seconds * (1.0 + options.leak))
            });
        self.uncontended_seconds = Some(uncontended);
        let gradient = (options.tolerance * uncontended / window.mean_seconds).clamp(0.5, 1.0);
        // Room to find out whether more would do.
        let room = self.limit.sqrt();
        let next = self.limit * gradient + room;
        let next = self.limit + options.newest * (next - self.limit);
        // With half of the limit unused, latency says nothing about a higher one.
        let is_used = f64::from(window.most_in_flight) * 2.0 >= self.limit;
        if is_used || next < self.limit {
            self.limit = next.clamp(f64::from(options.least), f64::from(options.most));
        }
        self.limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server that does `cores` at once at full speed and shares beyond.
    fn latency(in_flight: u32, cores: f64, seconds: f64) -> f64 {
        seconds * (f64::from(in_flight) / cores).max(1.0)
    }

    fn settled(limiter: &mut Limiter, cores: f64, seconds: f64) -> u32 {
        for _ in 0..300 {
            let in_flight = limiter.limit();
            limiter.update(&Window {
                completed: in_flight,
                mean_seconds: latency(in_flight, cores, seconds),
                most_in_flight: in_flight,
            });
        }
        limiter.limit()
    }

    #[test]
    fn it_settles_at_the_same_limit_from_below_and_from_above() {
        let options = Options {
            leak: 0.0,
            ..Options::default()
        };
        let mut from_below = Limiter::new(options, 1);
        let below = settled(&mut from_below, 16.0, 0.1);
        let mut from_above = Limiter::new(options, 1_000);
        from_above.uncontended_seconds = Some(0.1);
        let above = settled(&mut from_above, 16.0, 0.1);
        assert!(below.abs_diff(above) <= 1, "{below} {above}");
        // Twice the latency at twice the cores, and the room to find out.
        assert!((32..=46).contains(&below), "{below}");
    }

    #[test]
    fn heavier_work_is_found_out_in_time() {
        let mut limiter = Limiter::new(Options::default(), 8);
        let before = settled(&mut limiter, 16.0, 0.1);
        // Ten times the work for good: contention at first, then the measure of things.
        for _ in 0..10 {
            settled(&mut limiter, 16.0, 1.0);
        }
        let after = limiter.limit();
        assert!(after >= before / 2, "{before} {after}");
    }

    #[test]
    fn silence_and_idleness_change_nothing() {
        let mut limiter = Limiter::new(Options::default(), 100);
        let window = Window {
            completed: 0,
            mean_seconds: f64::NAN,
            most_in_flight: 0,
        };
        assert_eq!(limiter.update(&window), 100);
        let idle = Window {
            completed: 10,
            mean_seconds: 0.1,
            most_in_flight: 3,
        };
        assert_eq!(limiter.update(&idle), 100);
    }

    proptest! {
        #[test]
        fn the_limit_stays_within_its_bounds(
            windows in prop::collection::vec((0_u32..100, 0.0_f64..100.0, 0_u32..1000), 0..60),
            least in 1_u32..10, more in 0_u32..100, start in 0_u32..1000,
        ) {
            let options = Options { least, most: least + more, ..Options::default() };
            let mut limiter = Limiter::new(options, start);
            for (completed, mean_seconds, most_in_flight) in windows {
                let limit = limiter.update(&Window { completed, mean_seconds, most_in_flight });
                prop_assert!((least..=least + more).contains(&limit));
            }
        }
    }
}
