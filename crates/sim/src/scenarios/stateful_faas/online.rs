//! The on-line promotion policy against every static split, under load that changes.
//!
//! Heterogeneous sessions call at random; a share of them is busier than the rest, and every now and
//! then others are. A static split gives containers to the same sessions for ever (to those that are
//! busiest on average); the policy sees measured rates only.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use fulmar_policy::estimate::Smoothed;
use fulmar_policy::local_state::promotion::{self, Options, Wish};

use super::Settings;
use crate::random::Random;
use crate::report::{Finding, Plot, Point, ResultRow, Series, Table};
use crate::stats::{Summary, quantile};
use crate::{Error, Report, Run};

/// Weight of the last interval in a measured rate.
const NEWEST: f64 = 0.33;

/// Who has a container.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Split {
    /// The first so many sessions, for ever.
    Static(u32),
    /// Whoever the policy says.
    OnLine,
}

struct Outcome {
    mean: f64,
    p99: f64,
    transitions: u32,
}

pub(super) fn run(settings: &Settings, run: &Run, report: &mut Report) -> Result<(), Error> {
    let most = settings.containers.min(settings.sessions);
    let mut splits: Vec<Split> = (0..=most)
        .step_by((most / 10).max(1) as usize)
        .map(Split::Static)
        .collect();
    splits.push(Split::OnLine);
    let replications = settings.replications(run) as usize;
    let outcomes = run.replicate(splits.len() * replications, |job| {
        // The same arrivals for every split.
        let replication = (job % replications) as u64;
        let mut world = World::new(settings, splits[job / replications], run.seed, replication);
        world.run();
        Ok(world.outcome())
    })?;
    let mut table = Table {
        title: "On-line promotion against static splits, changing load".into(),
        columns: ["split", "mean latency (s)", "p99 (s)", "transitions"]
            .map(String::from)
            .to_vec(),
        rows: Vec::new(),
    };
    let mut line = Series {
        name: "static split".into(),
        ..Series::default()
    };
    let mut on_line = Series {
        name: "on line".into(),
        ..Series::default()
    };
    let (mut best, mut decided) = (f64::INFINITY, f64::INFINITY);
    for (split, outcomes) in splits.iter().zip(outcomes.chunks(replications)) {
        let name = match split {
            Split::Static(local) => local.to_string(),
            Split::OnLine => "on-line".into(),
        };
        let summary = |value: fn(&Outcome) -> f64| outcomes.iter().map(value).collect::<Summary>();
        let mean = summary(|outcome| outcome.mean);
        let p99 = summary(|outcome| outcome.p99);
        let transitions = summary(|outcome| f64::from(outcome.transitions));
        table.rows.push(vec![
            name.clone(),
            format!("{:.3}", mean.mean()),
            format!("{:.2}", p99.mean()),
            format!("{:.0}", transitions.mean()),
        ]);
        for (metric, unit, summary) in [
            ("mean_latency", "s", mean),
            ("p99_latency", "s", p99),
            ("transitions", "count", transitions),
        ] {
            report.results.push(ResultRow {
                config: vec![("figure", "on-line".into()), ("split", name.clone())],
                metric,
                unit,
                mean: summary.mean(),
                ci95: summary.ci95(),
                n: summary.n(),
            });
        }
        let point = |x: u32| Point {
            x: f64::from(x),
            y: mean.mean(),
            ci95: mean.ci95(),
        };
        match split {
            Split::Static(local) => {
                best = best.min(mean.mean());
                line.points.push(point(*local));
            }
            Split::OnLine => {
                decided = mean.mean();
                on_line.points.extend([point(0), point(most)]);
            }
        }
    }
    report.findings.push(Finding {
        claim: "The on-line policy beats every static split under changing load".into(),
        holds: decided < best,
        evidence: format!(
            "mean latency {decided:.3} s on line, {best:.3} s with the best static split"
        ),
    });
    report.tables.push(table);
    report.plots.push(Plot {
        title: "On-line promotion against static splits".into(),
        x: "containers dedicated by the static split".into(),
        y: "mean latency (s)".into(),
        log_y: true,
        series: vec![line, on_line],
    });
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(u32),
    DedicatedDone(u32),
    PoolDone,
    Decide,
    Shift,
}

struct Session {
    /// Its own arrivals and service times, so that all splits see the same.
    random: Random,
    base_rate: f64,
    rate: f64,
    measured: Smoothed,
    calls: u32,
    is_local: bool,
    /// Arrivals that wait for or are in its own container, and the service each wants.
    dedicated: VecDeque<(f64, f64)>,
    /// Its container is being set up until then.
    ready_at: f64,
}

struct World<'a> {
    settings: &'a Settings,
    split: Split,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next_event: u64,
    now: f64,
    end: f64,
    sessions: Vec<Session>,
    pool: VecDeque<(f64, f64)>,
    pool_busy: u32,
    shift: u32,
    latencies: Vec<f64>,
    transitions: u32,
}

impl<'a> World<'a> {
    fn new(settings: &'a Settings, split: Split, seed: u64, replication: u64) -> Self {
        let sessions = (0..settings.sessions)
            .map(|at| {
                let stream = (2 << 40) + (replication << 20) + u64::from(at);
                let mut random = Random::new(seed, stream);
                let base_rate = settings.rate * random.uniform(0.5, 1.5);
                Session {
                    random,
                    base_rate,
                    rate: base_rate,
                    measured: Smoothed::starting_at(NEWEST, base_rate),
                    calls: 0,
                    is_local: matches!(split, Split::Static(local) if at < local),
                    dedicated: VecDeque::new(),
                    ready_at: 0.0,
                }
            })
            .collect();
        Self {
            settings,
            split,
            events: BinaryHeap::new(),
            next_event: 0,
            now: 0.0,
            end: settings.shift_seconds * f64::from(settings.shifts),
            sessions,
            pool: VecDeque::new(),
            pool_busy: 0,
            shift: 0,
            latencies: Vec::new(),
            transitions: 0,
        }
    }

    fn at(&mut self, time: f64, event: Event) {
        self.next_event += 1;
        // The number keeps events of one time in the order in which they were made.
        self.events
            .push(Reverse((time.to_bits(), self.next_event, event)));
    }

    fn run(&mut self) {
        self.set_rates();
        for session in 0..self.settings.sessions {
            self.next_arrival(session);
        }
        self.at(self.settings.shift_seconds, Event::Shift);
        if self.split == Split::OnLine {
            self.at(self.settings.decide_seconds, Event::Decide);
        }
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = f64::from_bits(time);
            match event {
                Event::Arrival(session) => self.arrive(session),
                Event::DedicatedDone(session) => self.dedicated_done(session),
                Event::PoolDone => {
                    self.pool_busy -= 1;
                    self.start_pool();
                }
                Event::Decide if self.now < self.end => {
                    self.decide();
                    self.at(self.now + self.settings.decide_seconds, Event::Decide);
                }
                Event::Shift if self.now < self.end => {
                    self.shift += 1;
                    self.set_rates();
                    self.at(self.now + self.settings.shift_seconds, Event::Shift);
                }
                Event::Decide | Event::Shift => {}
            }
        }
    }

    /// Those whose turn it is are busier by the factor; the total stays about the same, since the
    /// busy group only moves on.
    fn set_rates(&mut self) {
        let count = self.sessions.len();
        let busy = (count as f64 * self.settings.busy_share).round() as usize;
        let first = self.shift as usize * busy;
        for (at, session) in self.sessions.iter_mut().enumerate() {
            let is_busy = (at + count - first % count) % count < busy;
            let factor = if is_busy {
                self.settings.busy_factor
            } else {
                1.0
            };
            session.rate = session.base_rate * factor / self.settings.busy_factor.sqrt();
        }
    }

    fn next_arrival(&mut self, at: u32) {
        let session = &mut self.sessions[at as usize];
        let then = self.now + session.random.exponential(1.0 / session.rate);
        if then < self.end {
            self.at(then, Event::Arrival(at));
        }
    }

    fn arrive(&mut self, at: u32) {
        let now = self.now;
        let session = &mut self.sessions[at as usize];
        session.calls += 1;
        let effort = session.random.exponential(1.0);
        if session.is_local {
            session.dedicated.push_back((now, effort));
            if session.dedicated.len() == 1 {
                self.start_dedicated(at);
            }
        } else {
            self.pool.push_back((now, effort));
            self.start_pool();
        }
        self.next_arrival(at);
    }

    fn start_dedicated(&mut self, at: u32) {
        let session = &self.sessions[at as usize];
        if let Some((_, effort)) = session.dedicated.front() {
            let start = self.now.max(session.ready_at);
            let done = start + effort * self.settings.local_seconds;
            self.at(done, Event::DedicatedDone(at));
        }
    }

    fn dedicated_done(&mut self, at: u32) {
        if let Some((arrived, _)) = self.sessions[at as usize].dedicated.pop_front() {
            self.latencies.push(self.now - arrived);
        }
        self.start_dedicated(at);
        // A container that was given up is free once it has nothing left to do.
        self.start_pool();
    }

    /// Containers of the pool: those that no session has, or still drains.
    fn pool_containers(&self) -> u32 {
        let taken = self
            .sessions
            .iter()
            .filter(|session| session.is_local || !session.dedicated.is_empty())
            .count();
        self.settings.containers.saturating_sub(taken as u32)
    }

    fn start_pool(&mut self) {
        let containers = self.pool_containers();
        while self.pool_busy < containers
            && let Some((arrived, effort)) = self.pool.pop_front()
        {
            let done = self.now + effort * self.settings.remote_seconds;
            self.pool_busy += 1;
            self.latencies.push(done - arrived);
            self.at(done, Event::PoolDone);
        }
    }

    fn decide(&mut self) {
        let settings = self.settings;
        let sessions: Vec<promotion::Session> = self
            .sessions
            .iter_mut()
            .map(|session| {
                let seen = f64::from(std::mem::take(&mut session.calls)) / settings.decide_seconds;
                promotion::Session {
                    rate: session.measured.see(seen),
                    local_seconds: settings.local_seconds,
                    remote_seconds: settings.remote_seconds,
                    is_local: session.is_local,
                    wish: Wish::None,
                }
            })
            .collect();
        let plan = promotion::plan(
            &sessions,
            &Options {
                containers: settings.containers,
                transition_seconds: settings.transition_seconds,
                horizon_seconds: settings.horizon_seconds,
                margin: 0.02,
            },
        );
        for at in &plan.demote {
            self.sessions[*at].is_local = false;
            self.transitions += 1;
        }
        for at in &plan.promote {
            self.sessions[*at].is_local = true;
            self.sessions[*at].ready_at = self.now + settings.transition_seconds;
            self.transitions += 1;
        }
        self.start_pool();
    }

    fn outcome(mut self) -> Outcome {
        // Those that no container is left for have waited at least until the end.
        let waiting = self.pool.iter().map(|(arrived, _)| self.end - arrived);
        self.latencies.extend(waiting);
        self.latencies.sort_by(f64::total_cmp);
        let summary: Summary = self.latencies.iter().copied().collect();
        Outcome {
            mean: summary.mean(),
            p99: match self.latencies.is_empty() {
                true => 0.0,
                false => quantile(&self.latencies, 0.99),
            },
            transitions: self.transitions,
        }
    }
}
