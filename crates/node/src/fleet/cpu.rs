//! How busy the machine's CPUs are.

use std::time::{Duration, Instant};

use fulmar_policy::scaling::Cpu;
use parking_lot::Mutex;

/// A measurement counts for so long.
const FRESH: Duration = Duration::from_millis(250);

/// Measures when it is asked, not more often than that makes sense.
pub(crate) struct Meter(Mutex<State>);

struct State {
    cpus: f64,
    busy: f64,
    at: Option<Instant>,
    /// Of all CPUs together: ticks in all, and of these idle.
    ticks: (u64, u64),
}

impl Default for Meter {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        Self(Mutex::new(State {
            cpus,
            busy: 0.0,
            at: None,
            ticks: (0, 0),
        }))
    }
}

impl Meter {
    pub(crate) fn read(&self, now: Instant) -> Cpu {
        let mut state = self.0.lock();
        let is_fresh = |at| now.saturating_duration_since(at) < FRESH;
        if !state.at.is_some_and(is_fresh)
            && let Some(ticks) = std::fs::read_to_string("/proc/stat")
                .ok()
                .as_deref()
                .and_then(ticks)
        {
            let (all, idle) = (
                ticks.0 - state.ticks.0.min(ticks.0),
                ticks.1 - state.ticks.1.min(ticks.1),
            );
            if state.at.is_some() && all > 0 {
                let busy = all.saturating_sub(idle) as f64 / all as f64;
                state.busy = busy * state.cpus;
            }
            (state.at, state.ticks) = (Some(now), ticks);
        }
        Cpu {
            cpus: state.cpus,
            busy: state.busy,
        }
    }
}

/// `cpu user nice system idle iowait irq softirq steal ...`: in all, and idle.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .take(8)
        .collect();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((ticks.iter().sum(), idle))
}

#[cfg(test)]
mod tests {
    #[test]
    fn waiting_for_disks_is_idle() {
        let stat = "cpu  100 0 50 800 40 5 5 0 0 0\ncpu0 1 2 3 4\n";
        assert_eq!(super::ticks(stat), Some((1000, 840)));
        assert_eq!(super::ticks(""), None);
    }
}
