//! Whether a function whose workers are instances takes one more invocation by a client, or has too much to do.
//!
//! What waits is in line for a CPU ([`Runtime::waiting`](fulmar_worker::Runtime::waiting)) or for one of the function's workers. How
//! fast it is worked off is seen from how often one is done while some wait, whatever else the node does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fulmar_model::{Code, Manifest, Problem};
use fulmar_policy::overload::Queue;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::Core;
use crate::functions::Function;

/// Weight of the last pause between two that are done, in their mean.
const LAST: f64 = 0.1;
/// Invocations that may have a worker and wait, for each CPU.
const ENOUGH: usize = 1;
/// Longest pause between two looks at whether they still do.
const LOOK: Duration = Duration::from_millis(50);

/// What was seen of a deployed version's invocations.
pub(crate) struct Intake {
    /// How many run at once.
    at_once: u32,
    cpus: usize,
    /// How long one may wait, in seconds, if the manifest says so.
    max_wait: Option<f64>,
    seen: Mutex<Seen>,
    /// Whether anything waited when that was looked at last: mostly nothing does, and then nothing is locked.
    stands: AtomicBool,
    /// Held by whoever is next to get a worker, as long as that is not worthwhile.
    next: tokio::sync::Mutex<()>,
    /// Hears when an invocation is done.
    done: Notify,
}

#[derive(Default)]
struct Seen {
    /// Since when there is always one that waits.
    standing: Option<Instant>,
    /// When one was done last, since then.
    done: Option<Instant>,
    /// Mean pause between two that are done while others wait, in seconds; 0 if nobody knows.
    pause: f64,
}

/// Invocations of a function that wait to be run.
fn waiting(core: &Core, function: &Function) -> u32 {
    let in_line = core.runtime.waiting(&function.name);
    u32::try_from(in_line + function.waiting()).unwrap_or(u32::MAX)
}

impl Intake {
    pub(crate) fn new(manifest: &Manifest) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let max_wait = manifest.queue.max_wait.get();
        Self {
            at_once: cpus.min(manifest.workers.max),
            cpus: cpus as usize,
            max_wait: (!max_wait.is_zero()).then_some(max_wait.as_secs_f64()),
            seen: Mutex::default(),
            stands: AtomicBool::new(false),
            next: tokio::sync::Mutex::default(),
            done: Notify::new(),
        }
    }

    /// Takes one more, or says that it would wait for too long.
    pub(crate) fn admit(&self, core: &Core, function: &Function) -> Result<(), Problem> {
        let waiting = waiting(core, function);
        if waiting == 0 {
            return Ok(());
        }
        let queue = self.queue(waiting, Instant::now());
        queue.admit().map_err(|told| {
            let ms = told.wait_seconds * 1e3;
            let name = &function.name;
            let detail =
                format!("{waiting} invocations of {name} wait: it would wait for {ms:.0} ms");
            Problem::new(Code::Overloaded, detail)
        })
    }

    fn queue(&self, waiting: u32, now: Instant) -> Queue {
        self.stands.store(true, Ordering::Relaxed);
        let mut seen = self.seen.lock();
        let since = *seen.standing.get_or_insert(now);
        Queue {
            waiting,
            standing_seconds: now.saturating_duration_since(since).as_secs_f64(),
            workers: self.at_once,
            seconds: seen.pause * f64::from(self.at_once),
            allowed_seconds: self.max_wait,
        }
    }

    /// Waits as long as invocations of the function that have a worker wait for a CPU.
    pub(crate) async fn until_worthwhile(&self, core: &Core, function: &Function) {
        let enough = ENOUGH * self.cpus;
        let is_enough = || core.runtime.waiting(&function.name) >= enough;
        if !is_enough() {
            return;
        }
        let _waiting = function.wait();
        let _first = self.next.lock().await;
        while is_enough() {
            let _ = tokio::time::timeout(LOOK, self.done.notified()).await;
        }
    }

    /// One is done.
    pub(crate) fn done(&self, core: &Core, function: &Function) {
        self.done.notify_one();
        let waiting = waiting(core, function);
        if waiting > 0 || self.stands.load(Ordering::Relaxed) {
            self.note(waiting, Instant::now());
        }
    }

    fn note(&self, waiting: u32, now: Instant) {
        let mut seen = self.seen.lock();
        self.stands.store(waiting > 0, Ordering::Relaxed);
        if waiting == 0 {
            (seen.standing, seen.done) = (None, None);
            return;
        }
        if let Some(before) = seen.done.replace(now) {
            let pause = now.saturating_duration_since(before).as_secs_f64();
            seen.pause = match seen.pause {
                0.0 => pause,
                mean => mean + LAST * (pause - mean),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use fulmar_model::FunctionName;

    use super::*;

    #[test]
    fn how_fast_what_waits_is_worked_off_is_learned_while_some_waits() {
        let manifest = Manifest::for_artifact(FunctionName::new("it").unwrap());
        let intake = Intake {
            at_once: 2,
            ..Intake::new(&manifest)
        };
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let wait = |waiting, ms| intake.queue(waiting, at(ms)).wait_seconds();
        assert_eq!(wait(100, 0), 0.0, "nobody knows");
        for done in 0..100 {
            intake.note(50, at(5 * done));
        }
        // Every 5 ms one is done.
        assert!((wait(40, 500) - 0.2).abs() < 1e-9);
        intake.note(0, at(500));
        // The time until then says nothing.
        intake.note(50, at(10_000));
        assert!((wait(40, 10_000) - 0.2).abs() < 1e-9);
        let queue = intake.queue(40, at(10_200));
        assert!((queue.standing_seconds - 0.2).abs() < 1e-9 && queue.admit().is_err());
    }
}
