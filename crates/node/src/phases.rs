//! Which sessions have their state with their workers, and which in the external store: with more sessions in use than
//! workers, those that gain most by it keep a worker of their own.
//!
//! The local-state and remote-state phases of "Stateful FaaS at the Edge", triggered by the network:
//! [`fulmar_policy::local_state::promotion`] decides every few seconds about the sessions at home here whose functions leave
//! the choice (`execution_model = "auto"`) and that this node has run. What a session's requests, its function, or an
//! operator have chosen counts as the application's wish.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_cluster::{Automatic, Cluster};
use fulmar_model::{Durability, ExecutionModel, Group, SessionName};
use fulmar_policy::estimate::Smoothed;
use fulmar_policy::local_state::Unstable;
use fulmar_policy::local_state::promotion::{self, Options, Plan, Session, Wish};
use fulmar_state::aside;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::decisions::{Decision, Latency};
use crate::transition::{self, Away};
use crate::{external, outside, route};

/// Pause between two plans.
const EVERY: Duration = Duration::from_secs(5);
/// Time within which a change has to pay for itself, in seconds.
const HORIZON: f64 = 60.0;
/// Least relative improvement of the mean latency for any change that nobody asked for.
const MARGIN: f64 = 0.1;
/// Weight of the last seconds' requests.
const NEWEST: f64 = 0.5;
/// Fewer requests per second are as good as none.
const IDLE: f64 = 0.05;
/// Round trips to the store that an invocation there takes: to read, and to commit.
const ROUND_TRIPS: f64 = 2.0;
/// Round trips for which a change holds a session up: closed or opened, copied, noted.
const HELD_ROUND_TRIPS: f64 = 5.0;

/// Plans and changes until stopped.
pub(crate) async fn run(core: Arc<Core>, cluster: Arc<Cluster>, stop: CancellationToken) {
    let mode = cluster.config().local_state;
    if mode == Automatic::Off || core.external.is_none() {
        return;
    }
    let mut rates = HashMap::new();
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let seconds = last.elapsed().as_secs_f64();
        last = Instant::now();
        let seen = look(&core, &mut rates, seconds);
        // With a worker for each of them, and none in the store, there is nothing to decide.
        let is_enough = seen.len() <= core.options.max_workers as usize;
        let Some(first) = seen.first() else { continue };
        if is_enough && seen.iter().all(|seen| seen.is_local) {
            continue;
        }
        let round_trip = match external::round_trip(&core, &first.group).await {
            Ok(round_trip) => round_trip,
            Err(problem) => {
                tracing::debug!(%problem, "sessions keep their execution models");
                continue;
            }
        };
        let containers = core.options.max_workers;
        let sessions: Vec<Session> = seen
            .iter()
            .map(|seen| seen.as_measured(round_trip))
            .collect();
        let planned = aside::run(move || {
            let options = Options {
                containers,
                transition_seconds: HELD_ROUND_TRIPS * round_trip,
                horizon_seconds: HORIZON,
                margin: MARGIN,
            };
            (promotion::plan(&sessions, &options), sessions)
        });
        match planned.await {
            Ok((plan, sessions)) => carry_out(&core, &cluster, mode, &seen, &sessions, &plan),
            Err(error) => tracing::error!(%error, "the plan of execution models failed"),
        }
    }
}

/// A session at home here that this node has run of late.
struct Seen {
    group: Group,
    /// Requests per second.
    rate: f64,
    /// Seconds of work for each.
    work: f64,
    is_local: bool,
    wish: Wish,
}

impl Seen {
    fn as_measured(&self, round_trip: f64) -> Session {
        Session {
            rate: self.rate,
            local_seconds: self.work,
            remote_seconds: self.work + ROUND_TRIPS * round_trip,
            is_local: self.is_local,
            wish: self.wish,
        }
    }
}

/// Looks at what was used in the last so many seconds.
fn look(core: &Core, rates: &mut HashMap<Group, Smoothed>, seconds: f64) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut known = std::mem::take(rates);
    for function in core.functions.all() {
        let deployed = function.current();
        // How durable an answer is the store decides there: nobody gives up what was asked for.
        let is_replicated = deployed.manifest.durability == Durability::Replicated;
        if !deployed.may_be_in_store(core) || is_replicated {
            continue;
        }
        let Some(work) = function.profile.work_seconds() else {
            continue;
        };
        for is_local in [true, false] {
            let kept = function.kept(is_local);
            for name in kept.names() {
                let Some(session) = kept.peek(&name) else {
                    continue;
                };
                let count = f64::from(session.take_used());
                let Ok(name) = SessionName::new(&name) else {
                    continue;
                };
                let group = route::group(&function.name, &name);
                let rate = known.remove(&group);
                let mut rate = rate.unwrap_or_else(|| Smoothed::new(NEWEST));
                let per_second = rate.see(count / seconds);
                let is_here = match is_local {
                    true => session.state().is_some(),
                    false => matches!(transition::away(core, &group), Ok(Some(Away::InStore(_)))),
                };
                if per_second < IDLE || !is_here {
                    continue;
                }
                rates.insert(group.clone(), rate);
                seen.push(Seen {
                    wish: wish(core, &group),
                    group,
                    rate: per_second,
                    work,
                    is_local,
                });
            }
        }
    }
    seen
}

fn wish(core: &Core, group: &Group) -> Wish {
    match transition::chosen(core, group) {
        Ok(Some(ExecutionModel::InFunction | ExecutionModel::InEdge)) => Wish::Local,
        Ok(Some(ExecutionModel::External)) => Wish::Remote,
        _ => Wish::None,
    }
}

fn carry_out(
    core: &Arc<Core>,
    cluster: &Cluster,
    mode: Automatic,
    seen: &[Seen],
    sessions: &[Session],
    plan: &Plan,
) {
    let expected = |mean: &Result<f64, Unstable>| mean.as_ref().ok().copied();
    let latency = Latency {
        workers: core.options.max_workers,
        sessions: sessions.len(),
        now_seconds: expected(&plan.before),
        then_seconds: expected(&plan.after),
    };
    let local = plan.promote.iter().map(|at| (at, ExecutionModel::Auto));
    let remote = plan.demote.iter().map(|at| (at, ExecutionModel::External));
    // Those that go make room for those that come.
    for (at, model) in remote.chain(local) {
        let Seen { group, rate, .. } = &seen[*at];
        let verdict = match mode {
            Automatic::On => "changed",
            _ => "would-change",
        };
        let mut decision = Decision {
            model: Some(model),
            requests_per_second_here: *rate,
            latency: Some(latency),
            ..Decision::now(cluster, &group.function, group.session.to_string(), verdict)
        };
        if mode != Automatic::On {
            core.decisions.remember(decision);
            continue;
        }
        let Some(permit) = core.decisions.begin() else {
            // Their turn comes.
            return;
        };
        let (core, group) = (core.clone(), group.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let changed = match model {
                ExecutionModel::External => outside::go(&core, &group).await,
                _ => outside::come_back(&core, &group).await,
            };
            if let Err(problem) = changed {
                decision.verdict = "failed";
                decision.error = Some(problem.to_string());
            }
            core.decisions.remember(decision);
        });
    }
}
