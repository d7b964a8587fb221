//! What a decision is taken from: the nodes around this one, how fast each runs the function, how far it is from there
//! to the session's state.

use std::sync::Arc;

use fulmar_cluster::{Cluster, Measured};
use fulmar_model::manifest::Slo;
use fulmar_model::{Manifest, NodeName, SessionName};
use fulmar_policy::execution;
use fulmar_policy::offload::{Arrival, Estimate, Rejection, Rule};
use fulmar_policy::view::{self, NodeIndex};
use parking_lot::Mutex;
use serde::Serialize;

use crate::core::Core;
use crate::functions::{self, Deployed, Function};
use crate::homes;
use crate::route::{self, Place};
use crate::ways::{Around, HERE};

/// Fixed time of handing an invocation on, in seconds, measured over loopback.
const OVERHEAD: f64 = 170e-6;

/// What was expected of a node, for people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Expected {
    node: NodeName,
    response_seconds: f64,
    data_seconds: f64,
    /// Why it is out of the question.
    rejected: Option<String>,
}

/// What one decision is taken from.
pub(super) struct World {
    around: Arc<Around>,
    /// Speed of each node for this function: executions a second.
    speed: Vec<f64>,
    /// Seconds that an access to the session's state takes on each node.
    data: Vec<f64>,
    /// The home of the session, if it has one.
    pub(super) home: Option<NodeIndex>,
    /// Whether it uses shared keys.
    pub(super) uses_keys: bool,
}

impl World {
    /// None if nobody knows how long the function takes, or the session's home is too far to be looked at.
    pub(super) fn around(
        core: &Core,
        cluster: &Cluster,
        function: &Function,
        deployed: &Deployed,
        session: Option<&SessionName>,
    ) -> Option<Self> {
        let around = core.ways.around(cluster);
        let has_home = !deployed.is_external();
        let home = match session.filter(|_| has_home) {
            None => None,
            Some(session) => match route::of_session(core, function, session) {
                // A session that is nowhere begins here.
                Place::Here => Some(HERE),
                Place::There(home) => {
                    let at = around.names.iter().position(|name| *name == home)?;
                    Some(NodeIndex::from(at))
                }
            },
        };
        let name = function.name.as_str();
        let mut execution = cluster.hints().execution_times(&around.names, name);
        execution[HERE.at()] = function.profile.execution();
        let distances = function.distances.from(&around, || {
            let keys = shared_keys(core, cluster, function, &around);
            distances(&around, &keys)
        });
        let mut world = Self::of(around, &execution, function.profile.best_seconds(), home)?;
        for (seconds, keys) in world.data.iter_mut().zip(&*distances) {
            *seconds += keys;
        }
        world.uses_keys = !distances.is_empty();
        Some(world)
    }

    /// The same from how long the function takes on each node, as far as that is known, and took here at best.
    fn of(
        around: Arc<Around>,
        execution: &[Option<Measured>],
        best_here: Option<f64>,
        home: Option<NodeIndex>,
    ) -> Option<Self> {
        // Where it never ran it takes what it takes here when nothing is in the way, by the speed of the nodes.
        let elsewhere = best_here.map(|best| best * around.speed_up[HERE.at()]);
        let measured = execution
            .iter()
            .map(|known| known.map(|Measured { mean, error }| execution::Measured { mean, error }));
        let measured: Vec<_> = measured.collect();
        let seconds = execution::expected_seconds(&measured, &around.speed_up, elsewhere)?;
        let speed = seconds.iter().map(|seconds| 1.0 / seconds.max(1e-9));
        let speed = speed.collect();
        let nodes = (0..around.names.len()).map(NodeIndex::from);
        let access = |node| home.map_or(0.0, |home| around.network.access(node, home, 0.0));
        Some(Self {
            speed,
            data: nodes.map(access).collect(),
            home,
            uses_keys: false,
            around,
        })
    }

    pub(super) fn name(&self, node: NodeIndex) -> NodeName {
        self.around.names[node.at()].clone()
    }

    /// What each node is expected to take, without those that have said that they have no memory for another worker.
    pub(super) fn estimates(
        &self,
        core: &Core,
        function: &Function,
        manifest: &Manifest,
        full: &[NodeName],
    ) -> Vec<Estimate> {
        let need = functions::need(manifest);
        let rooms = Rooms {
            memory: need.bytes,
            fits_here: core.pool.fits(need),
            full,
        };
        let bytes = function.profile.bytes();
        self.expect(function.name.as_str(), bytes, &manifest.slo, &rooms)
    }

    fn expect(&self, name: &str, bytes: (f64, f64), slo: &Slo, rooms: &Rooms<'_>) -> Vec<Estimate> {
        let seconds = |duration: fulmar_model::Duration| duration.get().as_secs_f64();
        let (input_bytes, output_bytes) = bytes;
        let profile = view::Function {
            name: name.into(),
            // What a node says of itself already holds how fast and how busy it is.
            exec_seconds: 1.0,
            memory_bytes: rooms.memory,
            input_bytes,
            output_bytes,
            slo: view::Slo {
                max_data_access_seconds: seconds(slo.max_data_access),
                max_response_seconds: seconds(slo.max_response),
                penalty_per_second: f64::from(slo.penalty_per_second),
            },
        };
        // What has no room commits nothing.
        let is_full = |node: &NodeIndex| self.around.room_bytes[node.at()] == Some(0);
        // What is too large for a node's workers never runs there; how many run is the node's own business.
        let holds_a_worker = |node: &NodeIndex| {
            let total = self.around.worker_bytes[node.at()];
            total.is_none_or(|total| total >= rooms.memory)
                && !rooms.full.contains(&self.around.names[node.at()])
        };
        let others = (1..self.speed.len()).map(NodeIndex::from);
        let candidates: Vec<NodeIndex> = others
            .filter(holds_a_worker)
            .filter(|node| !is_full(node) || self.home == Some(*node))
            .collect();
        let arrival = Arrival {
            here: HERE,
            function: &profile,
            network: &self.around.network,
            speed_up: &self.speed,
            data_seconds: &self.data,
            remote_bytes: &self.data,
            candidates: &candidates,
            closest_cloud: None,
            fits_here: rooms.fits_here,
            overhead_seconds: OVERHEAD,
            wait_seconds: &[],
            cold_start_seconds: &[],
            may_offload: true,
        };
        arrival.decide(Rule::SloAware).estimates
    }

    /// The same for people.
    pub(super) fn expected(&self, estimates: &[Estimate]) -> Vec<Expected> {
        let expected = estimates.iter().map(|estimate| Expected {
            node: self.name(estimate.node),
            response_seconds: estimate.response_seconds,
            data_seconds: estimate.data_seconds,
            rejected: estimate.rejected.map(|rejection| match rejection {
                Rejection::DataTooFar(by) => {
                    format!("the session's state is too far by {:.1} ms", by * 1000.0)
                }
                Rejection::TooSlow(by) => format!("late by {:.1} ms", by * 1000.0),
                Rejection::NoMemory => "no memory for another worker".to_owned(),
            }),
        });
        expected.collect()
    }
}

/// Where there is memory for a worker.
struct Rooms<'a> {
    /// How much it needs, in bytes.
    memory: u64,
    fits_here: bool,
    /// Those that had none.
    full: &'a [NodeName],
}

/// How far a function's shared keys are from each node, as of the view of the nodes that was put together last: it is asked
/// for by every decision, and there may be many keys and nodes.
#[derive(Debug, Default)]
pub(crate) struct Distances(Mutex<Option<Table>>);

/// Distances by node, and the nodes.
type Table = (Arc<Around>, Arc<[f64]>);

impl Distances {
    /// In seconds for all accesses of an invocation on average (eq. 3), by node; empty without keys.
    fn from(&self, around: &Arc<Around>, look: impl FnOnce() -> Vec<f64>) -> Arc<[f64]> {
        let mut last = self.0.lock();
        if let Some((of, distances)) = &*last
            && Arc::ptr_eq(of, around)
        {
            return distances.clone();
        }
        let distances: Arc<[f64]> = look().into();
        *last = Some((around.clone(), distances.clone()));
        distances
    }
}

fn distances(around: &Around, keys: &[SharedKey]) -> Vec<f64> {
    if keys.is_empty() {
        return Vec::new();
    }
    let nodes = (0..around.names.len()).map(NodeIndex::from);
    nodes
        .map(|node| {
            let accesses = keys.iter();
            accesses
                .map(|key| key.probability * around.network.access(node, key.home, key.bytes))
                .sum()
        })
        .collect()
}

/// A shared key that a function uses.
struct SharedKey {
    probability: f64,
    bytes: f64,
    home: NodeIndex,
}

/// The shared keys that a function uses, as far as it is known where they are.
fn shared_keys(
    core: &Core,
    cluster: &Cluster,
    function: &Function,
    around: &Around,
) -> Vec<SharedKey> {
    let used = core.usages.of(core, cluster, function);
    let keys = used.iter().filter_map(|shared| {
        let key = &shared.access.key;
        let at = |home: &NodeName| around.names.iter().position(|name| name == home);
        let home = match cluster.directory().cached(key) {
            Some(home) => at(&home.node)?,
            None if homes::is_surely_here(core, key).ok()? => HERE.at(),
            None => at(shared.home.as_ref()?)?,
        };
        Some(SharedKey {
            probability: shared.access.probability,
            bytes: shared.access.bytes,
            home: home.into(),
        })
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Instant;

    use fulmar_policy::view::Network;

    use super::*;

    /// `cargo test --release -p fulmar-node --lib -- --ignored --nocapture time_to_decide`
    #[test]
    #[ignore = "long: prints a time, for release builds"]
    fn time_to_decide_among_100_nodes() {
        const NODES: usize = 100;
        const ROUNDS: u32 = 20_000;
        let name = |at: usize| NodeName::new(&format!("edge-{at}")).unwrap();
        let latency = (0..NODES * NODES).map(|at| 0.001 + (at % 37) as f64 * 1e-3);
        let around = Arc::new(Around {
            names: (0..NODES).map(name).collect(),
            network: Network::new(NODES, latency.collect(), vec![1e7; NODES * NODES]),
            room_bytes: vec![Some(1 << 30); NODES],
            worker_bytes: vec![None; NODES],
            speed_up: (0..NODES).map(|at| 1.0 + (at % 5) as f64).collect(),
        });
        // As nodes say it: every second one has run the function.
        let seconds = Measured {
            mean: 0.002,
            error: 1e-4,
        };
        let told: HashMap<NodeName, HashMap<String, Measured>> = (0..NODES)
            .map(|at| (name(at), HashMap::from([("counter".to_owned(), seconds)])))
            .filter(|(name, _)| name.as_str().ends_with(['0', '2', '4', '6', '8']))
            .collect();
        let slo = Slo {
            max_response: fulmar_model::Duration::from_millis(20),
            ..Slo::default()
        };
        let started = Instant::now();
        for round in 0..ROUNDS {
            let time = |node| told.get(node)?.get("counter").copied();
            let execution: Vec<Option<Measured>> = around.names.iter().map(time).collect();
            let home = Some(NodeIndex::from(round as usize % NODES));
            let world = World::of(around.clone(), &execution, Some(0.002), home).unwrap();
            let rooms = Rooms {
                memory: 64 << 20,
                fits_here: true,
                full: &[],
            };
            let estimates = world.expect("counter", (100.0, 100.0), &slo, &rooms);
            let estimates = std::hint::black_box(estimates);
            assert!(estimates.len() == NODES);
        }
        println!("{:?} for a decision", started.elapsed() / ROUNDS);
        // Whenever the view of the nodes is put together anew.
        let keys = (0..10_000).map(|at| SharedKey {
            probability: 0.01,
            bytes: 1000.0,
            home: NodeIndex::from(at % NODES),
        });
        let keys: Vec<SharedKey> = keys.collect();
        let started = Instant::now();
        let all = std::hint::black_box(distances(&around, &keys));
        println!("{:?} for the distances of 10,000 keys", started.elapsed());
        assert!(all.len() == NODES);
    }
}
