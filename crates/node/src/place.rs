//! Sessions of functions that are promised short accesses to their state are placed where the promise is kept: every few
//! seconds [`fulmar_policy::placement::state_aware`] weighs what the functions' excess costs against the moves, for all
//! sessions at home here that other nodes use. Each home decides for what it has, within the room that the others say
//! they have.
//!
//! Shared keys that such functions use are placed with them. For those each home plans for the keys of all nodes, so that
//! what one plans is what all do, and moves its own.
//!
//! "Function Offloading and Data Migration for Stateful Serverless Edge Computing", section 4.2.

mod placed;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_cluster::{Automatic, Cluster};
use fulmar_model::{Group, Manifest};
use fulmar_policy::placement::{Placement, Problem, state_aware};
use fulmar_policy::view::{
    Access, Function as Profile, FunctionIndex, Key, KeyIndex, Network, NodeIndex, Slo,
};
use fulmar_state::aside;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::decisions::{self, Candidate, Decision, Promise};
use crate::functions::Function;
use crate::homes;
use crate::ways::{Around, HERE};

pub(crate) use placed::Placed;

/// Pause between two plans.
const EVERY: Duration = Duration::from_secs(5);
/// Weights of penalties and of moves (table 3).
const PENALTY_WEIGHT: f64 = 0.5;
const MOVE_WEIGHT: f64 = 0.5;
/// A move has to save within so many seconds what it takes itself; the excess of all invocations within them is what it
/// is weighed against.
const HORIZON: f64 = 60.0;
/// A move has to save this part of the waiting for a session's state: what is counted varies, and sessions are not to go
/// to and fro.
const CLEARLY: f64 = 0.2;
/// How far away nodes are taken to be of which nobody knows, in seconds.
const UNKNOWN: f64 = 10.0;

/// Whether sessions of a function are placed for what it is promised, or would be.
pub(crate) fn is_placed(cluster: &Cluster, manifest: &Manifest) -> bool {
    manifest.slo.promises_access() && cluster.config().placement != Automatic::Off
}

/// Plans and moves until stopped.
pub(crate) async fn run(core: Arc<Core>, cluster: Arc<Cluster>, stop: CancellationToken) {
    if cluster.config().placement == Automatic::Off {
        return;
    }
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let plan = Plan::look(&core, &cluster, last.elapsed().as_secs_f64());
        last = Instant::now();
        if plan.placed.is_empty() {
            continue;
        }
        // Seconds, if there are many.
        match aside::run(move || plan.solved()).await {
            Ok(Ok(solved)) => solved.carry_out(&core, &cluster),
            Ok(Err(infeasible)) => tracing::warn!(%infeasible, "sessions are not placed"),
            Err(error) => tracing::error!(%error, "the placement failed"),
        }
    }
}

/// A session or a shared key at home here that other nodes use.
struct Movable {
    function: Arc<Function>,
    group: Group,
    /// How often a second it is used here.
    at_home: f64,
    is_to_be_told: bool,
}

/// What is to be placed.
struct Plan {
    around: Arc<Around>,
    network: Network,
    /// By node.
    storage_bytes: Vec<u64>,
    may_host: Vec<bool>,
    functions: Vec<Profile>,
    /// By function, as all below.
    rates: Vec<f64>,
    placed: Vec<Movable>,
    /// Those that are placed, then shared keys that are at home elsewhere.
    keys: Vec<Key>,
    accesses: Vec<Access>,
}

impl Plan {
    /// Looks at what was used in the last so many seconds, and which shared keys are used by whom.
    fn look(core: &Core, cluster: &Cluster, seconds: f64) -> Self {
        let around = core.ways.around(cluster);
        let mut rooms = around.room_bytes.clone();
        rooms[HERE.at()] = core.keeper.room_bytes();
        let mut plan = Self {
            network: known(&around.network),
            may_host: rooms.iter().map(Option::is_some).collect(),
            storage_bytes: rooms.iter().map(|room| room.unwrap_or(0)).collect(),
            around,
            functions: Vec::new(),
            rates: Vec::new(),
            placed: Vec::new(),
            keys: Vec::new(),
            accesses: Vec::new(),
        };
        plan.may_host[HERE.at()] = true;
        for function in core.functions.all() {
            let manifest = &function.current().manifest;
            if is_placed(cluster, manifest) {
                plan.add(&function, profile(&function, manifest), seconds);
            }
        }
        plan.add_keys(core);
        for (function, rate) in plan.functions.iter_mut().zip(&plan.rates) {
            function.slo.penalty_per_second *= rate * HORIZON;
        }
        let own = plan.keys.iter().filter(|key| key.home == HERE);
        let own: u64 = own.map(|key| key.size_bytes).sum();
        let here = &mut plan.storage_bytes[HERE.at()];
        *here = here.saturating_add(own);
        plan
    }

    fn add(&mut self, function: &Arc<Function>, profile: Profile, seconds: f64) {
        let index = FunctionIndex::from(self.functions.len());
        let around = self.around.clone();
        let nodes = around.by_name();
        let mut rate = 0.0;
        for name in function.followed.all() {
            let session = function.sessions.peek(&name);
            let state = session.as_ref().and_then(|session| session.state());
            let (Some(session), Some(state)) = (&session, state) else {
                if let Some(session) = session {
                    session.forget_takers();
                }
                function.followed.forget(&name);
                continue;
            };
            let Some(seen) = session.look_at_takers(seconds) else {
                function.followed.forget(&name);
                continue;
            };
            let key = KeyIndex::from(self.keys.len());
            self.keys.push(Key {
                size_bytes: state.hot_bytes() as u64,
                home: HERE,
            });
            let others = seen.others.iter();
            let others = others.filter_map(|(node, rate)| Some((*nodes.get(node)?, *rate)));
            for (node, times) in others.chain([(HERE, seen.at_home)]) {
                rate += times;
                self.accesses.push(Access {
                    function: index,
                    key,
                    node,
                    rate: times,
                });
            }
            self.placed.push(Movable {
                function: function.clone(),
                group: state.group().clone(),
                at_home: seen.at_home,
                is_to_be_told: seen.is_to_be_told,
            });
        }
        self.functions.push(profile);
        self.rates.push(rate);
    }

    /// Adds the shared keys that functions use, those that are at home here first.
    fn add_keys(&mut self, core: &Core) {
        let around = self.around.clone();
        let nodes = around.by_name();
        let functions: HashMap<Box<str>, usize> = (self.functions.iter().enumerate())
            .map(|(at, function)| (function.name.clone(), at))
            .collect();
        let mut used: BTreeMap<Group, Used> = BTreeMap::new();
        let mut rates = vec![0.0; functions.len()];
        for (node, usages) in &*core.usages.by_node() {
            let Some(node) = nodes.get(node) else {
                continue;
            };
            for usage in usages {
                let Some(function) = functions.get(usage.function.as_str()) else {
                    continue;
                };
                rates[*function] += usage.invocations_per_second;
                for key in &usage.keys {
                    let Some(group) = key.group() else {
                        continue;
                    };
                    let used = used.entry(group).or_default();
                    used.bytes = used.bytes.max(key.bytes);
                    used.home =
                        used.home
                            .or(key.home.as_ref().and_then(|home| nodes.get(home)).copied());
                    let rate = usage.invocations_per_second * key.probability;
                    used.by.push((FunctionIndex::from(*function), *node, rate));
                }
            }
        }
        for (rate, invocations) in self.rates.iter_mut().zip(rates) {
            *rate = rate.max(invocations);
        }
        // What is at home where alone it is used costs nothing.
        used.retain(|_, used| {
            let mut nodes = used.by.iter().map(|(_, node, _)| Some(*node));
            nodes.any(|node| node != used.home)
        });
        let is_here = |group: &Group| homes::is_surely_here(core, group).unwrap_or(false);
        let (own, others): (Vec<_>, Vec<_>) =
            used.into_iter().partition(|(group, _)| is_here(group));
        let told = core.placed_keys.set(own.iter().map(|(group, _)| group));
        for ((group, used), is_to_be_told) in own.into_iter().zip(told) {
            let Some(function) = core.functions.of(&group) else {
                continue;
            };
            let here = used.by.iter().filter(|(_, node, _)| *node == HERE);
            self.placed.push(Movable {
                function,
                group,
                at_home: here.map(|(_, _, rate)| rate).sum(),
                is_to_be_told,
            });
            self.push_key(&used, HERE);
        }
        for (_, used) in others {
            // Of what is nowhere near nothing is known.
            if let Some(home) = used.home.filter(|home| *home != HERE) {
                self.push_key(&used, home);
            }
        }
    }

    fn push_key(&mut self, used: &Used, home: NodeIndex) {
        let key = KeyIndex::from(self.keys.len());
        self.keys.push(Key {
            size_bytes: used.bytes as u64,
            home,
        });
        let accesses = used.by.iter().map(|(function, node, rate)| Access {
            function: *function,
            key,
            node: *node,
            rate: *rate,
        });
        self.accesses.extend(accesses);
    }

    /// The accesses to what is placed; all are in its order.
    fn accesses_to(&self, placed: usize) -> &[Access] {
        let all = &self.accesses;
        let from = all.partition_point(|access| access.key.at() < placed);
        let to = all.partition_point(|access| access.key.at() <= placed);
        &all[from..to]
    }

    /// Seconds of waiting for what is placed in each second, if it lived there.
    fn waiting(&self, placed: usize, home: NodeIndex) -> f64 {
        let size = self.keys[placed].size_bytes as f64;
        let waits = |access: &Access| access.rate * self.network.access(access.node, home, size);
        self.accesses_to(placed).iter().map(waits).sum()
    }

    fn problem(&self) -> Problem<'_> {
        Problem {
            network: &self.network,
            storage_bytes: &self.storage_bytes,
            may_host: &self.may_host,
            functions: &self.functions,
            invocation_rates: &self.rates,
            keys: &self.keys,
            accesses: &self.accesses,
            penalty_weight: PENALTY_WEIGHT,
            move_weight: MOVE_WEIGHT,
            horizon_seconds: HORIZON,
        }
    }

    fn solved(self) -> Result<Solved, state_aware::Infeasible> {
        let problem = self.problem();
        let placement = state_aware::place(&problem)?.placement;
        let now = problem.data_seconds(&Placement::unchanged(&self.keys));
        let then = problem.data_seconds(&placement);
        let promises = (self.functions.iter().zip(now.iter().zip(&then)))
            .map(|(function, (now, then))| Promise {
                max_data_access_seconds: function.slo.max_data_access_seconds,
                now_seconds: *now,
                then_seconds: *then,
            })
            .collect();
        Ok(Solved {
            placement,
            promises,
            plan: self,
        })
    }
}

/// How a shared key is used, by function and node, so often a second.
#[derive(Default)]
struct Used {
    by: Vec<(FunctionIndex, NodeIndex, f64)>,
    bytes: f64,
    home: Option<NodeIndex>,
}

/// What one of the nodes is to be home to from now on.
struct Solved {
    plan: Plan,
    placement: Placement,
    promises: Vec<Promise>,
}

impl Solved {
    /// Begins the moves, as many as there is room for: the rest is planned anew.
    fn carry_out(self, core: &Arc<Core>, cluster: &Arc<Cluster>) {
        let mode = cluster.config().placement;
        for (at, placed) in self.plan.placed.iter().enumerate() {
            let waits_here = self.plan.waiting(at, HERE);
            let pays = |to: &NodeIndex| {
                *to != HERE && self.plan.waiting(at, *to) < waits_here * (1.0 - CLEARLY)
            };
            let to = Some(self.placement.homes[at]).filter(pays);
            let decision = self.decision(at, cluster, to);
            let (function, group) = (&placed.function, &placed.group);
            let told = placed.is_to_be_told;
            decisions::carry_out(core, cluster, function, group, decision, mode, told);
        }
    }

    fn decision(&self, at: usize, cluster: &Cluster, to: Option<NodeIndex>) -> Decision {
        let plan = &self.plan;
        let to = to.map(|to| plan.around.names[to.at()].clone());
        let placed = &plan.placed[at];
        let size = plan.keys[at].size_bytes as f64;
        let chosen = self.placement.homes[at];
        let others = (1..plan.around.names.len()).map(NodeIndex::from);
        let rate_from = |node: NodeIndex| -> f64 {
            let from = plan
                .accesses_to(at)
                .iter()
                .filter(|access| access.node == node);
            from.map(|access| access.rate).sum()
        };
        let candidates = others
            .filter(|node| *node == chosen || rate_from(*node) > 0.0)
            .map(|node| Candidate {
                node: plan.around.names[node.at()].clone(),
                requests_per_second: rate_from(node),
                round_trip_seconds: plan.network.access(HERE, node, 0.0),
                bytes_per_second: plan.network.bandwidth(HERE, node),
                saves_seconds_per_second: plan.waiting(at, HERE) - plan.waiting(at, node),
                costs_seconds: plan.network.transfer(HERE, node, size),
            });
        let function = plan
            .accesses_to(at)
            .first()
            .map(|access| access.function.at());
        let Group {
            function: name,
            session,
        } = &placed.group;
        let verdict = decisions::verdict(to.as_ref(), cluster.config().placement);
        Decision {
            to,
            requests_per_second_here: placed.at_home,
            state_bytes: plan.keys[at].size_bytes as usize,
            candidates: candidates.collect(),
            promise: function.map(|function| self.promises[function]),
            ..Decision::now(cluster, name, session.to_string(), verdict)
        }
    }
}

/// A function as the policy sees it: only what it is promised counts here.
fn profile(function: &Function, manifest: &Manifest) -> Profile {
    let slo = &manifest.slo;
    Profile {
        name: function.name.as_str().into(),
        exec_seconds: 0.0,
        memory_bytes: 0,
        input_bytes: 0.0,
        output_bytes: 0.0,
        slo: Slo {
            max_data_access_seconds: slo.max_data_access.get().as_secs_f64(),
            max_response_seconds: slo.max_response.get().as_secs_f64(),
            penalty_per_second: f64::from(slo.penalty_per_second),
        },
    }
}

/// The same ways, with numbers for those that nobody knows.
fn known(network: &Network) -> Network {
    let nodes = network.nodes();
    let pairs =
        (0..nodes * nodes).map(|at| (NodeIndex::from(at / nodes), NodeIndex::from(at % nodes)));
    let latency = pairs
        .clone()
        .map(|(from, to)| network.latency(from, to).min(UNKNOWN));
    let bandwidth = pairs.map(|(from, to)| network.bandwidth(from, to));
    Network::new(nodes, latency.collect(), bandwidth.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_is_far_and_not_infinitely_so() {
        let unknown = vec![f64::INFINITY; 4];
        let network = known(&Network::new(2, unknown.clone(), unknown));
        assert_eq!(
            network.access(NodeIndex(0), NodeIndex(1), 1e6),
            2.0 * UNKNOWN
        );
        assert_eq!(network.access(NodeIndex(1), NodeIndex(1), 1e6), 0.0);
    }
}
