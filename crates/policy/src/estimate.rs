//! From observations to what decisions are taken from: rates and means that forget.
//!
//! Time is a parameter, in seconds from any origin; it must not run backwards.

use std::collections::BTreeMap;

use crate::view::{Access, FunctionIndex, KeyIndex, NodeIndex};

/// A value seen once in every interval, of which the newest weighs `newest` and older ones ever less
/// (as access rates are smoothed in "Function Offloading and Data Migration ...", section 5).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Smoothed {
    newest: f64,
    value: Option<f64>,
}

impl Smoothed {
    /// Nothing seen yet; `newest` is from 0 to 1.
    pub const fn new(newest: f64) -> Self {
        Self {
            newest,
            value: None,
        }
    }

    /// Something is known beforehand.
    pub const fn starting_at(newest: f64, value: f64) -> Self {
        Self {
            newest,
            value: Some(value),
        }
    }

    /// Takes in an interval's value, and gives the new estimate. The first value is taken as it is.
    pub fn see(&mut self, value: f64) -> f64 {
        let next = match self.value {
            Some(before) => before + self.newest * (value - before),
            None => value,
        };
        self.value = Some(next);
        next
    }

    /// The estimate, 0 before anything was seen.
    pub fn value(&self) -> f64 {
        self.value.unwrap_or(0.0)
    }
}

/// The mean of what was seen last, and how far it may be off: the mean of all until the newest would weigh less than
/// `newest`, which is its weight from there on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    newest: f64,
    count: u64,
    mean: f64,
    variance: f64,
    /// Sum of the squared weights of what was seen.
    squared_weights: f64,
}

impl Sampled {
    /// Nothing seen yet; `newest` is from 0 to 1.
    pub const fn new(newest: f64) -> Self {
        Self {
            newest,
            count: 0,
            mean: 0.0,
            variance: 0.0,
            squared_weights: 0.0,
        }
    }

    /// Takes in a value.
    pub fn see(&mut self, value: f64) {
        self.count += 1;
        let weight = self.newest.max(1.0 / self.count as f64);
        let off = value - self.mean;
        self.mean += weight * off;
        self.variance = (1.0 - weight) * (self.variance + weight * off * off);
        self.squared_weights =
            (1.0 - weight) * (1.0 - weight) * self.squared_weights + weight * weight;
    }

    /// The mean, 0 before anything was seen.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard error of the mean; of a single value as large as that.
    pub fn error(&self) -> f64 {
        match self.count {
            0 | 1 => self.mean.abs(),
            _ => {
                let unbiased = self.variance / (1.0 - self.squared_weights);
                (unbiased * self.squared_weights).sqrt()
            }
        }
    }
}

/// Events per second, decaying exponentially with time: after `memory_seconds` an event weighs 1/e.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    memory_seconds: f64,
    /// Decayed number of events.
    weight: f64,
    /// Decayed time that was watched.
    watched: f64,
    at: f64,
}

impl Rate {
    /// Watches from `now` on.
    pub const fn new(memory_seconds: f64, now: f64) -> Self {
        Self {
            memory_seconds,
            weight: 0.0,
            watched: 0.0,
            at: now,
        }
    }

    /// So many events happen now.
    pub fn see(&mut self, now: f64, events: f64) {
        self.pass(now);
        self.weight += events;
    }

    /// Events per second, right from the first seconds on: what was watched is decayed like what was
    /// seen. 0 as long as no time has passed.
    pub fn per_second(&self, now: f64) -> f64 {
        let mut then = *self;
        then.pass(now);
        match then.watched > 0.0 {
            true => then.weight / then.watched,
            false => 0.0,
        }
    }

    fn pass(&mut self, now: f64) {
        let passed = (now - self.at).max(0.0);
        let keeps = libm::exp(-passed / self.memory_seconds);
        self.weight *= keeps;
        // The integral of the decay over the time that passed.
        self.watched = self.watched * keeps + self.memory_seconds * (1.0 - keeps);
        self.at = now.max(self.at);
    }
}

/// The mean of observed values, decaying exponentially with time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    memory_seconds: f64,
    sum: f64,
    weight: f64,
    at: f64,
}

impl Mean {
    /// After `memory_seconds` a value weighs 1/e.
    pub const fn new(memory_seconds: f64) -> Self {
        Self {
            memory_seconds,
            sum: 0.0,
            weight: 0.0,
            at: 0.0,
        }
    }

    /// Takes in a value.
    pub fn see(&mut self, now: f64, value: f64) {
        let keeps = libm::exp(-(now - self.at).max(0.0) / self.memory_seconds);
        self.sum = self.sum * keeps + value;
        self.weight = self.weight * keeps + 1.0;
        self.at = now.max(self.at);
    }

    /// The mean; none before anything was seen.
    pub fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// Who accesses which key from where, as decayed rates: what a Data Proxy keeps, and what a placement
/// is decided from.
#[derive(Debug, Clone)]
pub struct AccessRates {
    memory_seconds: f64,
    rates: BTreeMap<(KeyIndex, FunctionIndex, NodeIndex), Rate>,
}

impl AccessRates {
    /// After `memory_seconds` an access weighs 1/e.
    pub const fn new(memory_seconds: f64) -> Self {
        Self {
            memory_seconds,
            rates: BTreeMap::new(),
        }
    }

    /// A function that runs on a node accesses a key.
    pub fn see(&mut self, now: f64, function: FunctionIndex, key: KeyIndex, node: NodeIndex) {
        self.rates
            .entry((key, function, node))
            .or_insert_with(|| Rate::new(self.memory_seconds, now - self.memory_seconds))
            .see(now, 1.0);
    }

    /// Rates of at least `least` accesses per second, sorted by key, then function; slower ones are
    /// forgotten.
    pub fn accesses(&mut self, now: f64, least: f64) -> Vec<Access> {
        self.rates.retain(|_, rate| rate.per_second(now) >= least);
        self.rates
            .iter()
            .map(|((key, function, node), rate)| Access {
                function: *function,
                key: *key,
                node: *node,
                rate: rate.per_second(now),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_value_weighs_as_said() {
        let mut rate = Smoothed::new(0.33);
        assert_eq!(rate.value(), 0.0);
        assert_eq!(rate.see(10.0), 10.0);
        assert!((rate.see(20.0) - 13.3).abs() < 1e-12);
    }

    #[test]
    fn a_mean_says_how_far_it_may_be_off() {
        let mut sampled = Sampled::new(0.1);
        sampled.see(2.0);
        assert_eq!((sampled.mean(), sampled.error()), (2.0, 2.0));
        sampled.see(4.0);
        // Variance 2 of two values, half of it of their mean.
        assert_eq!(sampled.mean(), 3.0);
        assert!((sampled.error() - 1.0).abs() < 1e-12);
        for at in 0..1000 {
            sampled.see(if at % 2 == 0 { 5.0 } else { 7.0 });
        }
        assert!((sampled.mean() - 6.0).abs() < 0.1, "{sampled:?}");
        // A weight of 0.1 makes 19 values of it: 1 / sqrt(19).
        assert!((sampled.error() - 0.23).abs() < 0.02, "{sampled:?}");
    }

    #[test]
    fn a_steady_rate_is_known_at_once_and_a_new_one_soon() {
        let mut rate = Rate::new(10.0, 0.0);
        let mut now = 0.0;
        for _ in 0..20 {
            now += 0.5;
            rate.see(now, 1.0);
        }
        assert!((rate.per_second(now) - 2.0).abs() < 0.15, "{rate:?}");
        // Silence: 1/e of it after the memory's length.
        let later = rate.per_second(now + 10.0);
        assert!(later < 1.0 && later > 0.5, "{later}");
    }

    #[test]
    fn what_nobody_accesses_any_more_is_forgotten() {
        let mut rates = AccessRates::new(60.0);
        let (f, n) = (FunctionIndex(0), NodeIndex(2));
        for second in 0..300 {
            rates.see(f64::from(second), f, KeyIndex(1), n);
        }
        rates.see(0.0, f, KeyIndex(0), n);
        let accesses = rates.accesses(300.0, 0.01);
        assert_eq!(accesses.len(), 1);
        assert!((accesses[0].rate - 1.0).abs() < 0.02, "{accesses:?}");
        assert!(rates.accesses(3_000.0, 0.01).is_empty());
    }

    proptest! {
        #[test]
        fn estimates_stay_within_what_was_seen(
            values in prop::collection::vec((0.0_f64..5.0, 1.0_f64..9.0), 1..50), memory in 0.1_f64..100.0,
        ) {
            let (mut mean, mut smoothed, mut now) = (Mean::new(memory), Smoothed::new(0.3), 0.0);
            for (gap, value) in values {
                now += gap;
                mean.see(now, value);
                smoothed.see(value);
            }
            for value in [mean.value().unwrap(), smoothed.value()] {
                prop_assert!((1.0 - 1e-9..9.0 + 1e-9).contains(&value));
            }
        }
    }
}
