//! How busy the machine's processors are, all of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fulmar_sim::report::{Plot, Point, Series};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Looks again and again until it is stopped.
pub(super) struct Cpu {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Vec<(f64, f64)>>,
}

/// What it was, by seconds: from 0 to 1.
pub(super) struct Busy(Vec<(f64, f64)>);

impl Cpu {
    pub(super) fn watch() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let looking = std::thread::spawn(move || {
            let (started, mut seen) = (Instant::now(), Vec::new());
            let mut last = times();
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
                let now = times();
                if let (Some((busy, all)), Some((busy_before, all_before))) = (now, last) {
                    let all = all.saturating_sub(all_before).max(1);
                    let busy = busy.saturating_sub(busy_before);
                    seen.push((started.elapsed().as_secs_f64(), busy as f64 / all as f64));
                }
                last = now;
            }
            seen
        });
        Self { stop, looking }
    }

    pub(super) fn stop(self) -> Busy {
        self.stop.store(true, Ordering::Relaxed);
        Busy(self.looking.join().unwrap_or_default())
    }
}

impl Busy {
    /// The longest time in a row, in seconds, that it was below this part, within so many seconds from the start.
    pub(super) fn longest_below(&self, part: f64, within: f64) -> f64 {
        let (mut longest, mut since) = (0.0_f64, None);
        for (at, busy) in self.0.iter().filter(|(at, _)| *at <= within) {
            match (*busy < part, since) {
                (true, None) => since = Some(at - LOOK.as_secs_f64()),
                (true, Some(_)) => {}
                (false, _) => since = None,
            }
            longest = longest.max(since.map_or(0.0, |since| at - since));
        }
        longest
    }

    pub(super) fn plot(&self, title: &str) -> Plot {
        let point = |&(x, busy): &(f64, f64)| Point {
            x,
            y: busy * 100.0,
            ci95: None,
        };
        Plot {
            title: title.to_owned(),
            x: "s".into(),
            y: "%".into(),
            log_y: false,
            series: vec![Series {
                name: "all cores".into(),
                points: self.0.iter().map(point).collect(),
                dots: false,
            }],
        }
    }
}

/// Ticks of all processors so far: busy, and all. None where the system does not tell.
fn times() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks = text.lines().next()?.split_whitespace().skip(1).take(8);
    let ticks: Vec<u64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
    let idle = ticks.get(3)? + ticks.get(4)?;
    let all: u64 = ticks.iter().sum();
    Some((all - idle, all))
}
