//! What is seen of a function's workers: what arrives, how long it takes, what it computes.

use std::time::{Duration, Instant};

use fulmar_policy::estimate::Smoothed;
use fulmar_policy::prewarm::History;
use fulmar_worker::Spent;

/// Over how many seconds arrivals are counted.
const WINDOW: f64 = 2.0;
/// Weight of the newest observation.
const NEWEST: f64 = 0.1;
/// What nothing is known of takes so long to start, in seconds.
const UNKNOWN_START: f64 = 0.1;
/// The shortest mean is forgotten by so much with each invocation: it may have risen for good.
const FORGOTTEN: f64 = 0.001;
/// CPU is looked at once in so many invocations, since that takes time itself.
const LOOKED_AT: u32 = 8;

pub(super) struct Measured {
    origin: Instant,
    /// Arrivals per second, as of the last one.
    rate: f64,
    last: Instant,
    seconds: Smoothed,
    /// Without the time for which others had the CPUs, where that is known.
    alone: Option<Smoothed>,
    /// The shortest that was: without contention.
    best: f64,
    cpu_seconds: Smoothed,
    start: Smoothed,
    start_cpu: Smoothed,
    count: u32,
    history: History,
}

impl Default for Measured {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            origin: now,
            rate: 0.0,
            last: now,
            seconds: Smoothed::new(NEWEST),
            alone: None,
            best: f64::INFINITY,
            cpu_seconds: Smoothed::new(NEWEST),
            start: Smoothed::starting_at(0.5, UNKNOWN_START),
            start_cpu: Smoothed::starting_at(0.5, UNKNOWN_START),
            count: 0,
            history: History::default(),
        }
    }
}

impl Measured {
    /// Somebody needs a worker.
    pub(super) fn arrived(&mut self, now: Instant) {
        self.rate = self.arrivals_per_second(now) + 1.0 / WINDOW;
        self.last = now;
        let at = now.saturating_duration_since(self.origin);
        self.history.came(at.as_secs_f64());
    }

    pub(super) fn arrivals_per_second(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.last).as_secs_f64();
        self.rate * (-since / WINDOW).exp()
    }

    pub(super) fn worked(&mut self, took: Duration, spent: Option<Spent>) {
        self.count = self.count.wrapping_add(1);
        let mean = self.seconds.see(took.as_secs_f64());
        self.best = mean.min(self.best * (1.0 + FORGOTTEN));
        if let Some(spent) = spent {
            if let Some(waited) = spent.waited {
                let alone = self.alone.get_or_insert(Smoothed::new(NEWEST));
                alone.see(took.saturating_sub(waited).as_secs_f64());
            }
            self.cpu_seconds.see(spent.cpu.as_secs_f64());
        }
    }

    pub(super) fn looks_at_cpu(&self) -> bool {
        self.count.is_multiple_of(LOOKED_AT)
    }

    /// How long an invocation keeps a worker without contention; 0 if nobody knows yet.
    pub(super) fn seconds(&self) -> f64 {
        match &self.alone {
            Some(alone) => alone.value(),
            None if self.best.is_finite() => self.best,
            None => 0.0,
        }
    }

    /// How long it keeps a worker as it is now, with contention.
    pub(super) fn present_seconds(&self) -> f64 {
        self.seconds.value()
    }

    /// What CPU it uses of that; 0 if nobody knows.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.cpu_seconds.value().min(self.seconds())
    }

    pub(super) fn started(&mut self, took: Duration, spent: Option<Spent>) {
        let waited = spent.and_then(|spent| spent.waited).unwrap_or_default();
        let took = took.saturating_sub(waited).as_secs_f64();
        self.start.see(took);
        let cpu = spent.map_or(took, |spent| spent.cpu.as_secs_f64().min(took));
        self.start_cpu.see(cpu);
    }

    pub(super) fn start_seconds(&self) -> f64 {
        self.start.value()
    }

    pub(super) fn start_cpu_seconds(&self) -> f64 {
        self.start_cpu.value()
    }

    /// Whether it is known when the next will come.
    pub(super) fn tells_the_next(&self) -> bool {
        self.history.next().is_some()
    }

    /// Whether somebody is expected to come soon.
    pub(super) fn expects_one(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.origin);
        self.history
            .wants_one(now.as_secs_f64(), self.start_seconds())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_counted_and_forgotten() {
        let mut measured = Measured::default();
        let mut now = Instant::now();
        for _ in 0..200 {
            now += Duration::from_millis(100);
            measured.arrived(now);
        }
        let rate = measured.arrivals_per_second(now);
        assert!((9.0..11.0).contains(&rate), "{rate}");
        assert!(measured.arrivals_per_second(now + Duration::from_secs(20)) < 0.01);
    }

    #[test]
    fn contention_does_not_look_like_work() {
        let mut measured = Measured::default();
        assert_eq!(measured.seconds(), 0.0);
        for ms in [20_u64; 20].into_iter().chain([200; 20]) {
            measured.worked(Duration::from_millis(ms), None);
        }
        assert!(measured.seconds() < 0.03, "{}", measured.seconds());
        // For however long others have the CPUs, if the kernel tells.
        for n in 0..100_000 {
            let spent = Spent {
                cpu: Duration::from_millis(18),
                waited: Some(Duration::from_millis(180)),
            };
            let looked = (n % LOOKED_AT == 0).then_some(spent);
            measured.worked(Duration::from_millis(200), looked);
        }
        assert!(measured.seconds() < 0.021, "{}", measured.seconds());
        assert!(measured.cpu_seconds() <= measured.seconds());
        // What it waits for itself counts.
        for _ in 0..100 {
            let spent = Spent {
                cpu: Duration::from_millis(18),
                waited: Some(Duration::ZERO),
            };
            measured.worked(Duration::from_millis(200), Some(spent));
        }
        assert!(measured.seconds() > 0.19, "{}", measured.seconds());
    }
}
