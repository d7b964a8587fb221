//! Frames to a node when they are due, results back, and how long that took.
//!
//! Open loop: a timestep's frames are sent when their time has come, whatever became of those before, and latency counts
//! from that time. Each frame has an idempotency key; what is refused or breaks off is sent again, so that nothing that
//! the node has acknowledged may be missing in the end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::kit::{Kit, Then};
use super::measure::quantile;
use super::server::SCENE;
use crate::bench::connection::Connection;
use crate::bench::load::on_one_thread;
use crate::bench::pace::Pacer;
use crate::bench::request::run_id;

/// Pause before a frame is sent again that did not arrive.
const AGAIN: Duration = Duration::from_millis(20);
/// The same for one that was turned away: whoever comes again at once only adds to the load.
const TURNED_AWAY: Duration = Duration::from_millis(250);
/// Pause between two requests for results: part of the latency that is measured.
const POLL: Duration = Duration::from_millis(5);
/// How long results may stay away after the last frame before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// Results fetched at once.
const AT_ONCE: u32 = 256;

/// What is sent.
pub(super) struct Plan {
    pub(super) kit: Arc<Kit>,
    pub(super) address: std::net::SocketAddr,
    /// When each timestep is due, from the start.
    pub(super) due: Vec<Duration>,
    /// The first timestep's number: those before were another plan's.
    pub(super) first: u64,
    pub(super) then: Then,
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// For each timestep, when it was due and how long it took until its result was there, in seconds.
    pub(super) steps: Vec<(f64, Option<f64>)>,
    /// What each detection took inside the function, in seconds.
    pub(super) detections: Vec<f64>,
    /// Answers of 429.
    pub(super) turned_away: u64,
    /// Results without the views of all cameras.
    pub(super) incomplete: u64,
    /// Times between the beginnings of an event of `collect` and of the one before it, in seconds.
    pub(super) between: Vec<f64>,
    /// The first thing that went wrong for good.
    pub(super) error: Option<String>,
}

impl Seen {
    /// End-to-end latencies of the timesteps that were due from then on, sorted, in seconds.
    pub(super) fn latencies(&self, from: f64) -> Vec<f64> {
        let steps = self.steps.iter().filter(|(due, _)| *due >= from);
        let mut latencies: Vec<f64> = steps.filter_map(|(_, took)| *took).collect();
        latencies.sort_by(f64::total_cmp);
        latencies
    }

    /// A quantile of the end-to-end latencies, in seconds.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        quantile(&self.latencies(0.0), share)
    }

    /// Timesteps without a result.
    pub(super) fn lost(&self) -> usize {
        self.steps.iter().filter(|(_, took)| took.is_none()).count()
    }
}

/// So many timesteps a second, for so long.
pub(super) fn steady(per_second: f64, seconds: f64) -> Vec<Duration> {
    let count = (per_second * seconds) as u64;
    let due = |step| Duration::from_secs_f64(step as f64 / per_second);
    (0..count.max(1)).map(due).collect()
}

/// Carries a plan out.
pub(super) fn run(plan: &Plan) -> anyhow::Result<Seen> {
    on_one_thread(drive(plan))?
}

struct Shared {
    address: std::net::SocketAddr,
    idle: RefCell<Vec<Connection>>,
    seen: RefCell<Seen>,
    run: u128,
    all_sent: std::cell::Cell<bool>,
}

impl Shared {
    /// Sends a request until it is answered: the body.
    async fn post(&self, path: &str, key: Option<&str>, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let key = key.map_or_else(String::new, |key| {
            format!("idempotency-key: {:x}-{key}\r\n", self.run)
        });
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: node\r\n{key}content-length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < deadline {
            let mut pause = AGAIN;
            let connection = self.idle.borrow_mut().pop();
            let opened = match connection {
                Some(connection) => Ok(connection),
                None => Connection::open(self.address).await,
            };
            match opened {
                Ok(mut connection) => match connection.exchange(&request).await {
                    Ok(200) => {
                        let body = connection.body().to_vec();
                        self.idle.borrow_mut().push(connection);
                        return Ok(body);
                    }
                    Ok(status) => {
                        let body = String::from_utf8_lossy(connection.body()).into_owned();
                        self.idle.borrow_mut().push(connection);
                        match status {
                            429 => {
                                self.seen.borrow_mut().turned_away += 1;
                                pause = TURNED_AWAY;
                            }
                            503 => {}
                            _ => bail!("{path}: status {status}: {body}"),
                        }
                        last = body;
                    }
                    Err(error) => last = error.to_string(),
                },
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(pause).await;
        }
        bail!("{path}: no answer for {PATIENCE:?}; last: {last}")
    }
}

async fn drive(plan: &Plan) -> anyhow::Result<Seen> {
    let shared = Rc::new(Shared {
        address: plan.address,
        idle: RefCell::default(),
        seen: RefCell::default(),
        run: run_id(),
        all_sent: false.into(),
    });
    let due = plan.due.iter().map(|due| (due.as_secs_f64(), None));
    shared.seen.borrow_mut().steps = due.collect();
    let start = Instant::now() + Duration::from_millis(20);
    let due: Vec<Instant> = plan.due.iter().map(|due| start + *due).collect();
    let fetching = fetch(shared.clone(), due.clone(), plan.first, plan.then);
    let fetching = tokio::task::spawn_local(fetching);
    let mut pacer = Pacer::new()?;
    let mut frames = JoinSet::new();
    for (step, due) in due.into_iter().enumerate() {
        let number = plan.first + step as u64;
        let events =
            (0..plan.kit.cameras()).map(|camera| plan.kit.event(SCENE, number, camera, plan.then));
        let events: Vec<_> = events.collect();
        pacer.until(due).await?;
        for (camera, event) in events.into_iter().enumerate() {
            let shared = shared.clone();
            let (key, then) = (format!("{number}-{camera}"), plan.then);
            frames.spawn_local(async move {
                if let Err(error) = send(&shared, &key, &event, then).await {
                    let mut seen = shared.seen.borrow_mut();
                    seen.error.get_or_insert_with(|| format!("{error:#}"));
                }
            });
        }
    }
    while let Some(sent) = frames.join_next().await {
        sent.context("a frame's task failed")?;
    }
    shared.all_sent.set(true);
    fetching.await.context("fetching results failed")??;
    let shared = Rc::into_inner(shared).context("a frame's task goes on")?;
    Ok(shared.seen.into_inner())
}

async fn send(shared: &Shared, key: &str, event: &[u8], then: Then) -> anyhow::Result<()> {
    let answer = shared.post("/fn/detect", Some(key), event).await?;
    let mut view: Value = serde_json::from_slice(&answer)?;
    let micros = view["detect_micros"].as_u64().unwrap_or_default();
    let seconds = micros as f64 / 1e6;
    shared.seen.borrow_mut().detections.push(seconds);
    if then == Then::Answer {
        // Whoever calls one function after the other is what an application manager is otherwise.
        view["request"] = json!("view");
        let path = format!("/fn/aggregate/{SCENE}");
        shared
            .post(&path, None, view.to_string().as_bytes())
            .await?;
    }
    Ok(())
}

/// Fetches results until all are there, or none came for long.
async fn fetch(
    shared: Rc<Shared>,
    due: Vec<Instant>,
    first: u64,
    then: Then,
) -> anyhow::Result<()> {
    let function = match then {
        Then::Collect => "collect",
        Then::Aggregate | Then::Answer => "aggregate",
    };
    let path = format!("/fn/{function}/{SCENE}");
    let (mut from, mut last) = (first, Instant::now());
    let end = first + due.len() as u64;
    while from < end && (!shared.all_sent.get() || last.elapsed() < PATIENCE) {
        let request = json!({ "request": "results", "from": from, "limit": AT_ONCE });
        let request = request.to_string();
        let answer = shared.post(&path, None, request.as_bytes()).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let there = Instant::now();
        let between = answer["between_micros"].as_array().into_iter().flatten();
        let between = between.filter_map(|micros| Some(micros.as_f64()? / 1e6));
        shared.seen.borrow_mut().between.extend(between);
        for result in answer["results"].as_array().into_iter().flatten() {
            from += 1;
            last = there;
            let mut seen = shared.seen.borrow_mut();
            let missing = result["missing"].as_array().map_or(0, Vec::len);
            seen.incomplete += u64::from(missing > 0);
            let step = result["step"].as_u64().context("a result without a step")?;
            let at = step.checked_sub(first).map(|at| at as usize);
            if let Some(at) = at.filter(|at| *at < due.len()) {
                let took = there.saturating_duration_since(due[at]).as_secs_f64();
                if seen.steps[at].1.replace(took).is_some() {
                    bail!("the result of timestep {step} came twice");
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
