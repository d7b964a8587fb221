//! The nodes around this one and the ways between them, put together from hints for those who decide.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_cluster::Cluster;
use fulmar_model::NodeName;
use fulmar_policy::view::{Network, NodeIndex};
use parking_lot::Mutex;

/// Nodes that one decision looks at besides this one: the closest.
const MAX_CANDIDATES: usize = 100;
/// Hints change once a second.
const FRESH: Duration = Duration::from_millis(500);
/// This node.
pub(crate) const HERE: NodeIndex = NodeIndex(0);

/// The nodes around this one and the ways between them, as last put together.
#[derive(Debug, Default)]
pub(crate) struct Ways(Mutex<Option<(Instant, Arc<Around>)>>);

/// The nodes around this one.
#[derive(Debug)]
pub(crate) struct Around {
    /// This node first, then the others, the closest first.
    pub(crate) names: Vec<NodeName>,
    /// Infinitely far apart is what nobody has said anything of.
    pub(crate) network: Network,
    /// How many bytes of state each of the others has room for, if it has said.
    pub(crate) room_bytes: Vec<Option<u64>>,
    /// How many bytes of memory the workers of each may have, if that is bounded.
    pub(crate) worker_bytes: Vec<Option<u64>>,
    /// Against the reference machine.
    pub(crate) speed_up: Vec<f64>,
}

impl Ways {
    /// Not older than half a second.
    pub(crate) fn around(&self, cluster: &Cluster) -> Arc<Around> {
        let mut last = self.0.lock();
        if let Some((made, around)) = &*last
            && made.elapsed() < FRESH
        {
            return around.clone();
        }
        let around = Arc::new(Around::look(cluster));
        *last = Some((Instant::now(), around.clone()));
        around
    }
}

impl Around {
    /// The nodes by their names.
    pub(crate) fn by_name(&self) -> HashMap<&NodeName, NodeIndex> {
        let names = self.names.iter().enumerate();
        names
            .map(|(at, name)| (name, NodeIndex::from(at)))
            .collect()
    }

    fn look(cluster: &Cluster) -> Self {
        let hints = cluster.hints();
        let round_trips = hints.round_trips();
        let members = cluster.view().members();
        let mut others: Vec<(&NodeName, f64)> = members
            .iter()
            .filter(|member| member.live && member.name != *cluster.name())
            .filter_map(|member| Some((&member.name, *round_trips.get(&member.name)?)))
            .collect();
        others.sort_by(|one, other| one.1.total_cmp(&other.1));
        others.truncate(MAX_CANDIDATES);
        let mut names = vec![cluster.name().clone()];
        names.extend(others.iter().map(|(name, _)| (*name).clone()));
        let speed_up = |name: &NodeName| {
            let member = members.iter().find(|member| member.name == *name);
            let thousandths = member.map_or(1000, |member| member.info.speed_up_thousandths);
            thousandths.max(1) as f64 / 1000.0
        };
        let nodes = names.len();
        let mut latency = vec![f64::INFINITY; nodes * nodes];
        for node in 0..nodes {
            latency[node * nodes + node] = 0.0;
        }
        let mut bandwidth = vec![f64::INFINITY; nodes * nodes];
        for from in 0..nodes {
            for to in 0..nodes {
                let way = match (from, to) {
                    (from, to) if from == to => continue,
                    (0, other) | (other, 0) => hints.way(&names[other]),
                    _ => hints.between(&names[from], &names[to]),
                };
                if let Some(way) = way {
                    latency[from * nodes + to] = way.round_trip / 2.0;
                    bandwidth[from * nodes + to] = way.bandwidth;
                }
            }
        }
        Self {
            speed_up: names.iter().map(speed_up).collect(),
            worker_bytes: names.iter().map(|name| hints.worker_bytes(name)).collect(),
            room_bytes: names.iter().map(|name| hints.room_bytes(name)).collect(),
            network: Network::new(nodes, latency, bandwidth),
            names,
        }
    }
}
