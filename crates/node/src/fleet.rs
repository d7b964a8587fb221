//! The workers of a function that are processes of their own: how many there are, and who gets the next one that is free.
//!
//! Whoever needs a worker gets one that is idle, or waits in line. How many there are
//! [`fulmar_policy::scaling`] decides from what arrives, how long it takes and what CPU is free; whoever made a worker start
//! may get another one that is free before. What completes work that has begun (messages) goes before what begins (clients).

mod cpu;
mod line;
mod measured;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fulmar_model::{Code, Manifest, Problem, SessionName};
use fulmar_policy::overload::Queue;
use fulmar_policy::scaling::{self, Bound, Decision};
use fulmar_worker::{Key as PoolKey, Pool, Spent, Used, Worker};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::core::Core;
use crate::execute;
use crate::functions::{Deployed, Function};
pub(crate) use cpu::Meter;
use line::Line;
use measured::Measured;

/// Longest pause between two decisions; where there is nothing to decide about.
const EVERY: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(60);
/// Idle workers go when it is decided, not by themselves.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);
/// Within so many seconds what waits should be worked off, if that is longer than a start.
const DRAIN_SECONDS: f64 = 0.1;

/// The workers of a deployed version of a function.
pub(crate) struct Fleet {
    key: PoolKey,
    least: u32,
    most: u32,
    idle_ttl: Duration,
    /// How long one may wait, in seconds, if the manifest says so.
    max_wait: Option<f64>,
    inner: Mutex<Inner>,
    /// Workers that live, busy or idle.
    alive: AtomicU32,
    /// Something has changed about which there may be something to decide.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    line: Line,
    starting: u32,
    measured: Measured,
    told: Option<Decision>,
}

/// Counts a worker while it lives.
struct Alive(Arc<Fleet>);

impl Drop for Alive {
    fn drop(&mut self) {
        // Not under the lock: a worker may go while somebody holds it.
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_one();
    }
}

impl Fleet {
    pub(crate) fn new(key: PoolKey, manifest: &Manifest) -> Self {
        let (workers, max_wait) = (&manifest.workers, manifest.queue.max_wait.get());
        Self {
            key,
            least: workers.min,
            most: workers.max,
            idle_ttl: workers.idle_ttl.get(),
            max_wait: (!max_wait.is_zero()).then_some(max_wait.as_secs_f64()),
            inner: Mutex::default(),
            alive: AtomicU32::new(0),
            changed: Notify::new(),
        }
    }

    /// A worker, as soon as there is one: for a session the one that remembers it, if that is idle.
    pub(crate) async fn hire(
        &self,
        pool: &Pool,
        session: Option<&SessionName>,
        has_begun: bool,
    ) -> Result<Worker, Problem> {
        let waiting = {
            let mut inner = self.inner.lock();
            inner.measured.arrived(Instant::now());
            let idle = match session {
                _ if !inner.line.is_empty() => None,
                Some(session) => pool.take_for(&self.key, session),
                None => pool.take(&self.key, 0),
            };
            if let Some(worker) = idle {
                return Ok(worker);
            }
            if !has_begun {
                self.admit(&inner)?;
            }
            inner.line.join(session.cloned(), has_begun)
        };
        self.changed.notify_one();
        let gone = || Problem::new(Code::Internal, "the function's workers are gone");
        waiting.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Whether another one may wait that begins: not if what waits is already too much for all workers that there can be.
    fn admit(&self, inner: &Inner) -> Result<(), Problem> {
        let is_full = |told: Decision| matches!(told.bound, Bound::Cpu | Bound::Configured);
        if inner.starting > 0 || !inner.told.is_some_and(is_full) {
            return Ok(());
        }
        let (waiting, workers) = (inner.line.len() as u32, self.alive());
        let queue = Queue {
            waiting,
            standing_seconds: inner.line.standing(Instant::now()).as_secs_f64(),
            workers,
            seconds: inner.measured.present_seconds(),
            allowed_seconds: self.max_wait,
        };
        queue.admit().map_err(|told| {
            let ms = told.wait_seconds * 1e3;
            let detail = format!(
                "{waiting} invocations wait for {workers} workers: it would wait for {ms:.0} ms"
            );
            Problem::new(Code::Overloaded, detail)
        })
    }

    /// A worker is free: for whoever waits, or until somebody needs it.
    pub(crate) fn free(&self, pool: &Pool, worker: Worker, is_current: bool) {
        // Under the lock, so that nobody joins the line who does not see it.
        let mut inner = self.inner.lock();
        let Some(worker) = inner.line.give(worker) else {
            return;
        };
        if !is_current {
            drop(inner);
            return drop(worker);
        }
        let expires = Instant::now() + FOR_EVER;
        pool.put_back(self.key.clone(), 0, worker, expires);
    }

    /// Whether what an invocation uses of the CPU is worth looking at.
    pub(crate) fn looks_at_cpu(&self) -> bool {
        self.inner.lock().measured.looks_at_cpu()
    }

    /// A worker has worked for so long on an invocation, and has spent so much, if that was looked at.
    pub(crate) fn worked(&self, took: Duration, spent: Option<Spent>) {
        self.inner.lock().measured.worked(took, spent);
    }

    fn alive(&self) -> u32 {
        self.alive.load(Ordering::SeqCst)
    }

    /// What there is, and why it is not more or less.
    pub(crate) fn describe(&self, pool: &Pool) -> Value {
        let inner = self.inner.lock();
        let (alive, idle) = (self.alive(), pool.idle_since(&self.key).len());
        let measured = &inner.measured;
        let wanted = inner.told.map_or(self.least, |told| told.wanted);
        json!({
            "alive": alive,
            "idle": idle,
            "starting": inner.starting,
            "waiting": inner.line.len(),
            "wanted": wanted,
            "why": why(inner.told.as_ref(), alive + inner.starting),
            "arrivals_per_second": rounded(measured.arrivals_per_second(Instant::now())),
            "ms": rounded(measured.seconds() * 1e3),
            "cpu_ms": rounded(measured.cpu_seconds() * 1e3),
            "start_ms": rounded(measured.start_seconds() * 1e3),
        })
    }

    /// Decides how many workers to start now; stops those that are not needed.
    fn decide(&self, pool: &Pool, meter: &Meter) -> u32 {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let idle = pool.idle_since(&self.key).into_iter();
        let idle: Vec<f64> = idle
            .map(|since| now.saturating_duration_since(since).as_secs_f64())
            .collect();
        let alive = self.alive();
        let measured = &inner.measured;
        let start_seconds = measured.start_seconds();
        let workers = scaling::Workers {
            ready: alive,
            busy: alive.saturating_sub(idle.len() as u32),
            starting: inner.starting,
            queued: inner.line.len() as u32,
            waited_seconds: inner.line.longest(now).as_secs_f64(),
            arrivals_per_second: measured.arrivals_per_second(now),
            seconds: measured.seconds(),
            cpu_seconds: measured.cpu_seconds(),
            idle_seconds: &idle,
        };
        let options = scaling::Options {
            least: self.least.max(u32::from(measured.expects_one(now))),
            most: self.most,
            start_seconds,
            start_cpu_seconds: measured.start_cpu_seconds(),
            keep_seconds: self.idle_ttl.as_secs_f64(),
            drain_seconds: start_seconds.max(DRAIN_SECONDS),
            ..scaling::Options::default()
        };
        let decision = scaling::decide(&workers, &meter.read(now), &options);
        inner.told = Some(decision);
        inner.starting += decision.start;
        drop(inner);
        pool.drop_idle(&self.key, decision.stop as usize);
        decision.start
    }

    /// When to decide again, if nothing changes until then.
    fn pause(&self) -> Duration {
        let inner = self.inner.lock();
        let has_any = self.alive() + inner.starting + self.least > 0;
        match has_any || !inner.line.is_empty() || inner.measured.tells_the_next() {
            true => EVERY,
            false => IDLE,
        }
    }

    /// A worker has started, or has not.
    fn started(
        self: &Arc<Self>,
        pool: &Pool,
        started: Result<Worker, Problem>,
        took: Duration,
        is_current: bool,
    ) {
        match started {
            Ok(worker) => {
                let spent = worker.used().map(|used| used.since(&Used::default()));
                self.alive.fetch_add(1, Ordering::SeqCst);
                {
                    let mut inner = self.inner.lock();
                    inner.starting -= 1;
                    inner.measured.started(took, spent);
                }
                let worker = worker.counted_by(Alive(self.clone()));
                self.free(pool, worker, is_current);
            }
            Err(problem) => {
                let mut inner = self.inner.lock();
                inner.starting -= 1;
                // Otherwise others serve whoever waits.
                if self.alive() == 0 && inner.starting == 0 {
                    inner.line.send_away(&problem);
                }
            }
        }
        self.changed.notify_one();
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn why(told: Option<&Decision>, have: u32) -> String {
    let Some(told) = told else {
        return "nothing has come yet".to_owned();
    };
    let more = have < told.wanted;
    let why = match told.bound {
        Bound::Demand if more => "workers are being started for what arrives and waits",
        Bound::Demand => "as many as what arrives and waits needs",
        Bound::Configured => "workers.min or workers.max of the manifest says so",
        Bound::Cpu => "more would not have CPU to work with",
        Bound::ColdStarts => "starting more at once would take CPU from those that work",
        Bound::NotWorthIt => "what waits is done before another one would have started",
    };
    why.to_owned()
}

/// Keeps the number of a deployed version's workers right for as long as it is deployed.
pub(crate) fn begin(core: &Arc<Core>, function: &Arc<Function>) {
    let deployed = function.current();
    let Some(fleet) = deployed.fleet.clone() else {
        return;
    };
    let (core, function) = (Arc::downgrade(core), Arc::downgrade(function));
    tokio::spawn(async move {
        loop {
            let (Some(core), Some(function)) = (core.upgrade(), function.upgrade()) else {
                return;
            };
            // Invocations that took this version may still come for a worker.
            let is_used =
                is_current(&core, &function, &deployed) || Arc::strong_count(&deployed) > 1;
            if !is_used {
                core.pool.drop_idle(&fleet.key, usize::MAX);
                return;
            }
            if let Err(problem) = execute::may_start(&function, &deployed) {
                let mut inner = fleet.inner.lock();
                if fleet.alive() == 0 && inner.starting == 0 {
                    inner.line.send_away(&problem);
                }
            } else {
                for _ in 0..fleet.decide(&core.pool, &core.meter) {
                    tokio::spawn(start(core.clone(), function.clone(), deployed.clone()));
                }
            }
            drop((core, function));
            let _ = tokio::time::timeout(fleet.pause(), fleet.changed.notified()).await;
        }
    });
}

/// Whether this version is what new invocations run.
fn is_current(core: &Core, function: &Function, deployed: &Deployed) -> bool {
    let known = core.functions.get(function.name.as_str());
    known.is_some_and(|known| known.current().version == deployed.version)
}

/// Starts a worker for whoever waits first when it has.
async fn start(core: Arc<Core>, function: Arc<Function>, deployed: Arc<Deployed>) {
    let began = Instant::now();
    let started = execute::start_worker(&core, &function, &deployed).await;
    if let Some(fleet) = &deployed.fleet {
        let is_current = is_current(&core, &function, &deployed);
        fleet.started(&core.pool, started, began.elapsed(), is_current);
    }
}
