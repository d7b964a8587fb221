//! Load: connections on a few threads, in a closed loop or at a given rate.
//!
//! Each thread runs its connections by itself, so that they share counts and a histogram without
//! locks. In the open loop a request has an instant at which it should be sent, whatever became of
//! those before it, and its latency counts from there: a server that stalls is charged for every
//! request that it kept from being sent ("coordinated omission").

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;
use tokio::task::LocalSet;

use super::connection::Connection;
use super::pace::Pacer;
use super::request::{Key, Template};

/// How long after its end a run waits for answers and, in the open loop, sends what is late.
const GRACE: Duration = Duration::from_secs(10);
/// Longest latency that is told apart, in microseconds.
pub(super) const MAX_MICROS: u64 = 600_000_000;
/// Socket errors in a row after which a connection gives up.
const MAX_FAILURES: u32 = 3;
/// How much of an error answer is shown, in bytes.
const SHOWN_BYTES: usize = 300;

/// What to send.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) address: SocketAddr,
    pub(super) template: Template,
    /// Requests go to the sessions 1 to this one in turn.
    pub(super) sessions: u64,
    pub(super) connections: usize,
    pub(super) threads: usize,
    pub(super) duration: Duration,
    /// Requests a second in all; `None` is the closed loop.
    pub(super) rate: Option<f64>,
    /// Whether each request has an idempotency key of its own; they begin with this.
    pub(super) keys: Option<u128>,
    /// Whether it is more than the server can do, which says so: 429 is an answer then.
    pub(super) overload: bool,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Tally {
    /// Latency of the answers with a status of 2xx, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// Answers with a status of 2xx.
    pub(super) answered: u64,
    /// Answers with 429 in an overload.
    pub(super) turned_away: u64,
    /// Answers with another status.
    pub(super) refused: u64,
    /// Connections that failed or broke, answers that are no HTTP.
    pub(super) socket_errors: u64,
    /// Requests without an answer at the end of the grace time.
    pub(super) timeouts: u64,
    /// Open loop: requests that could not be sent in time; they count in the latency with the time
    /// they waited.
    pub(super) unsent: u64,
    /// The first error's own words.
    pub(super) first_error: Option<String>,
    /// From the start to the last answer.
    pub(super) elapsed: Duration,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            latency: Histogram::new_with_bounds(1, MAX_MICROS, 3)?,
            answered: 0,
            turned_away: 0,
            refused: 0,
            socket_errors: 0,
            timeouts: 0,
            unsent: 0,
            first_error: None,
            elapsed: Duration::ZERO,
        })
    }

    /// A run with errors says nothing about speed: answering an error may be faster than the work.
    pub(super) fn is_void(&self) -> bool {
        self.answered == 0 || self.refused + self.socket_errors + self.timeouts > 0
    }

    /// Answers in a second.
    pub(super) fn rate(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn record(&mut self, latency: Duration) {
        self.latency
            .saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    fn answer(&mut self, plan: &Plan, status: u16, body: &[u8], latency: Duration) {
        if plan.overload && status == 429 {
            self.turned_away += 1;
        } else if (200..300).contains(&status) {
            self.answered += 1;
            self.record(latency);
        } else {
            self.refused += 1;
            self.first_error.get_or_insert_with(|| {
                let shown = &body[..body.len().min(SHOWN_BYTES)];
                format!("status {status}: {}", String::from_utf8_lossy(shown))
            });
        }
    }

    fn socket_error(&mut self, error: &std::io::Error) {
        self.socket_errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    fn merge(&mut self, other: Self) {
        // Both have the same bounds.
        let added = self.latency.add(other.latency);
        debug_assert!(added.is_ok());
        self.answered += other.answered;
        self.turned_away += other.turned_away;
        self.refused += other.refused;
        self.socket_errors += other.socket_errors;
        self.timeouts += other.timeouts;
        self.unsent += other.unsent;
        self.elapsed = self.elapsed.max(other.elapsed);
        if self.first_error.is_none() {
            self.first_error = other.first_error;
        }
    }
}

/// Runs a plan to its end.
pub(super) fn run(plan: &Plan) -> anyhow::Result<Tally> {
    let threads = plan.threads.clamp(1, plan.connections);
    let barrier = Barrier::new(threads);
    let mut total = Tally::new()?;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || run_thread(plan, thread, threads, barrier))
            })
            .collect();
        for thread in running {
            let tally = thread
                .join()
                .map_err(|_| anyhow!("a thread of the load generator panicked"))??;
            total.merge(tally);
        }
        anyhow::Ok(())
    })?;
    Ok(total)
}

/// The connections of one thread: every `threads`-th.
fn run_thread(
    plan: &Plan,
    thread: usize,
    threads: usize,
    barrier: &Barrier,
) -> anyhow::Result<Tally> {
    let tally = Rc::new(RefCell::new(Tally::new()?));
    let connections = (thread..plan.connections).step_by(threads);
    on_one_thread(async {
        let mut open = Vec::new();
        for index in connections {
            match Connection::open(plan.address).await {
                Ok(connection) => open.push((index, connection)),
                Err(error) => tally.borrow_mut().socket_error(&error),
            }
        }
        // All threads start together, with their connections open.
        barrier.wait();
        let start = Instant::now();
        let tasks: Vec<_> = open
            .into_iter()
            .map(|(index, connection)| {
                let client = Client {
                    plan: plan.clone(),
                    index,
                    connection,
                    request: Vec::with_capacity(1024),
                    sent: 0,
                    failures: 0,
                    start,
                    tally: Rc::clone(&tally),
                };
                tokio::task::spawn_local(client.run())
            })
            .collect();
        for task in tasks {
            task.await.context("a connection's task failed")??;
        }
        tally.borrow_mut().elapsed = start.elapsed().max(Duration::from_nanos(1));
        anyhow::Ok(())
    })??;
    let tally = Rc::into_inner(tally).context("a connection's task goes on")?;
    Ok(tally.into_inner())
}

/// Runs a future, and what it spawns, on this thread.
pub(super) fn on_one_thread<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(LocalSet::new().block_on(&runtime, future))
}

/// One connection of a run.
struct Client {
    plan: Plan,
    index: usize,
    connection: Connection,
    request: Vec<u8>,
    sent: u64,
    failures: u32,
    start: Instant,
    tally: Rc<RefCell<Tally>>,
}

impl Client {
    async fn run(mut self) -> anyhow::Result<()> {
        let end = self.start + self.plan.duration;
        let tally = Rc::clone(&self.tally);
        // One deadline for the whole run rather than a timer for each request.
        let whole = async {
            match self.plan.rate {
                None => self.closed(end).await,
                Some(rate) => self.open(rate, end).await,
            }
        };
        match tokio::time::timeout_at((end + GRACE).into(), whole).await {
            Ok(result) => result,
            Err(_) => {
                let mut tally = tally.borrow_mut();
                tally.timeouts += 1;
                tally
                    .first_error
                    .get_or_insert_with(|| format!("no answer {GRACE:?} after the end"));
                Ok(())
            }
        }
    }

    /// The next request as soon as the last one is answered.
    async fn closed(&mut self, end: Instant) -> anyhow::Result<()> {
        let mut now = Instant::now();
        while now < end && self.failures < MAX_FAILURES {
            now = self.exchange(now).await;
        }
        Ok(())
    }

    /// Requests at the instants that the rate gives, as far as the connection is free.
    async fn open(&mut self, rate: f64, end: Instant) -> anyhow::Result<()> {
        let mut pacer = Pacer::new().context("cannot make a timer")?;
        let (index, connections) = (self.index as f64, self.plan.connections as f64);
        let last_send = end + GRACE / 2;
        for request in 0_u64.. {
            let offset = (index + request as f64 * connections) / rate;
            let due = self.start + Duration::from_secs_f64(offset);
            if due >= end {
                break;
            }
            let now = Instant::now();
            if now > last_send || self.failures >= MAX_FAILURES {
                let mut tally = self.tally.borrow_mut();
                tally.unsent += 1;
                tally.record(now.saturating_duration_since(due));
                continue;
            }
            pacer.until(due).await.context("the timer failed")?;
            self.exchange(due).await;
        }
        Ok(())
    }

    /// Sends the next request and counts its answer, with its latency since `since`; gives back when
    /// it was there.
    async fn exchange(&mut self, since: Instant) -> Instant {
        let plan = &self.plan;
        let first = self.index as u64 * plan.sessions / plan.connections as u64;
        let session = (first + self.sent) % plan.sessions + 1;
        let key = plan.keys.map(|run| Key {
            run,
            connection: self.index,
            request: self.sent,
        });
        plan.template.write(&mut self.request, session, key);
        self.sent += 1;
        let result = self.connection.exchange(&self.request).await;
        let now = Instant::now();
        let mut tally = self.tally.borrow_mut();
        match result {
            Ok(status) => {
                self.failures = 0;
                tally.answer(plan, status, self.connection.body(), now - since);
            }
            Err(error) => {
                self.failures += 1;
                tally.socket_error(&error);
            }
        }
        now
    }
}
