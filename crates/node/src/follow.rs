//! Sessions follow their clients: whoever sees that another node takes most of a session's requests has it moved
//! there, if [`fulmar_policy::follow`] says that it pays.
//!
//! Requests are counted at the session's home, by the node that took them or borrowed the state, as soon as one has come
//! from elsewhere. Functions with a promise about the access to their state are [`crate::place`]'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_cluster::{Automatic, Cluster};
use fulmar_model::{ExecutionModel, NodeName};
use fulmar_policy::estimate::Smoothed;
use fulmar_policy::follow::{self, Broker, Settings};
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::decisions::{self, Candidate, Decision};
use crate::functions::Function;
use crate::place;
use crate::sessions::Session;

/// Pause between two looks at who takes what.
const LOOK: Duration = Duration::from_secs(1);
/// Weight of the last second's requests.
const NEWEST: f64 = 0.5;
/// Fewer requests per second are not counted any longer.
const FORGOTTEN: f64 = 0.05;
/// A session that stays is told of once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Who takes a session's requests.
pub(crate) struct Takers {
    /// Since when.
    since: Instant,
    at_home: Taker,
    others: Vec<(NodeName, Taker)>,
    told: Option<Instant>,
}

struct Taker {
    /// Since the last look.
    count: u32,
    rate: Smoothed,
}

impl Default for Taker {
    fn default() -> Self {
        Self {
            count: 0,
            rate: Smoothed::new(NEWEST),
        }
    }
}

impl Taker {
    fn look(&mut self, seconds: f64) -> f64 {
        self.rate
            .see(f64::from(std::mem::take(&mut self.count)) / seconds)
    }
}

impl Takers {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            at_home: Taker::default(),
            others: Vec::new(),
            told: None,
        }
    }

    /// A request was taken: by another node, or by this one.
    pub(crate) fn note(&mut self, by: Option<&NodeName>) {
        let taker = match by {
            None => &mut self.at_home,
            Some(by) => match self.others.iter().position(|(known, _)| known == by) {
                Some(at) => &mut self.others[at].1,
                None => {
                    self.others.push((by.clone(), Taker::default()));
                    let last = self.others.len() - 1;
                    &mut self.others[last].1
                }
            },
        };
        taker.count += 1;
    }
}

/// Whether it is counted which nodes take requests of a function's sessions, or borrow their state.
fn counts(function: &Function, core: &Core) -> bool {
    let Some(cluster) = &core.cluster else {
        return false;
    };
    let manifest = &function.current().manifest;
    let has_home = match manifest.execution_model {
        ExecutionModel::Auto | ExecutionModel::InFunction | ExecutionModel::InEdge => true,
        ExecutionModel::External | ExecutionModel::InClient => false,
    };
    let is_decided =
        cluster.config().follow_clients != Automatic::Off || place::is_placed(cluster, manifest);
    has_home && is_decided
}

/// A request of a session, or a read of a shared key, was taken by another node, or by this one.
pub(crate) fn note(
    core: &Core,
    function: &Function,
    session: &Session,
    name: &Arc<str>,
    by: Option<&NodeName>,
) {
    if counts(function, core) && session.note_taker(by) {
        function.followed.add(name);
    }
}

/// Has sessions follow their clients until stopped.
pub(crate) async fn run(core: Arc<Core>, cluster: Arc<Cluster>, stop: CancellationToken) {
    if cluster.config().follow_clients == Automatic::Off {
        return;
    }
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let seconds = last.elapsed().as_secs_f64();
        last = Instant::now();
        for function in core.functions.with_shared_keys() {
            if place::is_placed(&cluster, &function.current().manifest) {
                continue;
            }
            for name in function.followed.all() {
                let Some(session) = function.sessions.peek(&name) else {
                    function.followed.forget(&name);
                    continue;
                };
                look(&core, &cluster, &function, &session, &name, seconds);
            }
        }
    }
}

/// Looks at one session, and has it moved if that pays.
fn look(
    core: &Arc<Core>,
    cluster: &Arc<Cluster>,
    function: &Arc<Function>,
    session: &Arc<Session>,
    name: &Arc<str>,
    seconds: f64,
) {
    let Some(state) = session.state() else {
        // Not at home here any more, or not yet.
        session.forget_takers();
        return function.followed.forget(name);
    };
    if core.placed_keys.has(state.group()) {
        return;
    }
    let Some(seen) = session.look_at_takers(seconds) else {
        return function.followed.forget(name);
    };
    let known: Vec<(NodeName, Broker)> = seen
        .others
        .into_iter()
        .filter_map(|(node, rate)| {
            let way = cluster.hints().way(&node)?;
            let broker = Broker {
                rate,
                round_trip: way.round_trip,
                bandwidth: way.bandwidth,
            };
            Some((node, broker))
        })
        .collect();
    if known.is_empty() {
        // Nothing is known of the way to them yet.
        return;
    }
    let brokers: Vec<Broker> = known.iter().map(|(_, broker)| *broker).collect();
    let view = follow::Session {
        at_home: seen.at_home,
        brokers: &brokers,
        state_bytes: state.hot_bytes() as f64,
        here_for: seen.since.elapsed().as_secs_f64(),
    };
    let (chosen, candidates) = follow::follow(&view, &Settings::default());
    let candidates = candidates.iter().map(|candidate| {
        let (node, broker) = &known[candidate.broker];
        Candidate {
            node: node.clone(),
            requests_per_second: broker.rate,
            round_trip_seconds: broker.round_trip,
            bytes_per_second: broker.bandwidth,
            saves_seconds_per_second: candidate.gain,
            costs_seconds: candidate.cost,
        }
    });
    let mode = cluster.config().follow_clients;
    let to = chosen.map(|chosen| known[chosen].0.clone());
    let verdict = decisions::verdict(to.as_ref(), mode);
    let decision = Decision {
        to,
        requests_per_second_here: seen.at_home,
        state_bytes: state.hot_bytes(),
        candidates: candidates.collect(),
        ..Decision::now(cluster, &function.name, name.to_string(), verdict)
    };
    let (group, told) = (state.group(), seen.is_to_be_told);
    decisions::carry_out(core, cluster, function, group, decision, mode, told);
}

/// What was seen of who takes a session's requests, or borrows its state: so often a second.
pub(crate) struct Seen {
    since: Instant,
    pub(crate) at_home: f64,
    pub(crate) others: Vec<(NodeName, f64)>,
    pub(crate) is_to_be_told: bool,
}

impl Takers {
    /// The rates now; none if only this node takes any.
    pub(crate) fn look(&mut self, seconds: f64) -> Option<Seen> {
        let at_home = self.at_home.look(seconds);
        let mut others = Vec::with_capacity(self.others.len());
        self.others.retain_mut(|(node, taker)| {
            let rate = taker.look(seconds);
            let counts = rate >= FORGOTTEN;
            if counts {
                others.push((node.clone(), rate));
            }
            counts
        });
        if others.is_empty() {
            return None;
        }
        let is_to_be_told = self.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY);
        if is_to_be_told {
            self.told = Some(Instant::now());
        }
        Some(Seen {
            since: self.since,
            at_home,
            others,
            is_to_be_told,
        })
    }
}
