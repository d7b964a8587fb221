//! Hints about other nodes: how far away they are, and what the way to them carries. Measured, smoothed, and never
//! a source of truth.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_model::NodeName;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::handler::Measured;
use crate::join::Cluster;

/// Pause between two rounds of probes.
const EVERY: Duration = Duration::from_secs(1);
/// Nodes that are probed in one round; where there are more, they take turns.
const AT_ONCE: usize = 64;
/// Longest wait for an answer to a probe.
const DEADLINE: Duration = Duration::from_secs(2);
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;
/// Bytes per second where nothing was measured yet: a line of 100 Mb/s.
const BANDWIDTH: f64 = 12.5e6;
/// A transfer of fewer bytes says nothing about the bandwidth; one of as many as `MANY_BYTES` weighs as much as any.
const LEAST_BYTES: u64 = 16 << 10;
const MANY_BYTES: u64 = 256 << 10;
/// What is faster than this is not told from the round trip.
const FASTEST: f64 = 10e9;

/// What is known of the way to a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// In seconds.
    pub round_trip: f64,
    /// In bytes per second.
    pub bandwidth: f64,
}

/// What a node tells of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Told {
    /// How many bytes of state it has room for, if it says.
    pub(crate) room_bytes: Option<u64>,
    /// How many bytes of memory its workers may have, if that is bounded.
    pub(crate) worker_bytes: Option<u64>,
    /// How long functions with an SLO take there.
    pub(crate) execution_times: HashMap<String, Measured>,
    /// The ways from there to other nodes.
    pub(crate) ways: HashMap<NodeName, Way>,
}

/// What is known of all nodes and of the ways to them.
#[derive(Debug, Default)]
pub struct Hints {
    round_trips: Mutex<HashMap<NodeName, f64>>,
    /// Seconds for each byte beyond the round trip: unlike bytes a second, their mean is that of all bytes.
    paces: Mutex<HashMap<NodeName, f64>>,
    /// Who has not answered the last probe.
    silent: Mutex<HashSet<NodeName>>,
    /// What they tell.
    told: Mutex<HashMap<NodeName, Told>>,
}

fn smooth(known: &Mutex<HashMap<NodeName, f64>>, node: &NodeName, value: f64) {
    let mut known = known.lock();
    let smoothed = known.entry(node.clone()).or_insert(value);
    *smoothed += NEWEST * (value - *smoothed);
}

impl Hints {
    /// The way to a node, if it has answered.
    pub fn way(&self, node: &NodeName) -> Option<Way> {
        let round_trip = *self.round_trips.lock().get(node)?;
        let pace = self.paces.lock().get(node).copied();
        Some(Way {
            round_trip,
            bandwidth: pace.map_or(BANDWIDTH, |pace| 1.0 / pace.max(1.0 / FASTEST)),
        })
    }

    /// The ways to all nodes that have answered.
    pub(crate) fn ways(&self) -> HashMap<NodeName, Way> {
        let nodes: Vec<NodeName> = self.round_trips.lock().keys().cloned().collect();
        let ways = nodes.into_iter();
        ways.filter_map(|node| Some((node.clone(), self.way(&node)?)))
            .collect()
    }

    /// How far all nodes are that have answered, in seconds there and back.
    pub fn round_trips(&self) -> HashMap<NodeName, f64> {
        self.round_trips.lock().clone()
    }

    /// What others tell of themselves, by gossip.
    pub(crate) fn hear(&self, told: HashMap<NodeName, Told>) {
        *self.told.lock() = told;
    }

    /// Something that a node has told of itself, unless it cannot be reached: what it said is too old before long.
    fn told<T>(&self, node: &NodeName, what: impl FnOnce(&Told) -> Option<T>) -> Option<T> {
        if self.silent.lock().contains(node) {
            return None;
        }
        self.told.lock().get(node).and_then(what)
    }

    /// The way between two other nodes, as one of them has said.
    pub fn between(&self, one: &NodeName, other: &NodeName) -> Option<Way> {
        let says = |from, to| self.told(from, |told| told.ways.get(to).copied());
        says(one, other).or_else(|| says(other, one))
    }

    /// How long a function takes on each of some nodes, as they have said.
    pub fn execution_times(&self, nodes: &[NodeName], function: &str) -> Vec<Option<Measured>> {
        let time = |node| self.told(node, |told| told.execution_times.get(function).copied());
        nodes.iter().map(time).collect()
    }

    /// How many bytes of state a node has room for, as it has said.
    pub fn room_bytes(&self, node: &NodeName) -> Option<u64> {
        self.told(node, |told| told.room_bytes)
    }

    /// How many bytes of memory a node's workers may have, if it has said that there is a bound.
    pub fn worker_bytes(&self, node: &NodeName) -> Option<u64> {
        self.told(node, |told| told.worker_bytes)
    }

    /// So many bytes have gone to a node, or come from it, in so much time, which holds one round trip.
    pub(crate) fn transferred(&self, node: &NodeName, bytes: u64, took: Duration) {
        if bytes < LEAST_BYTES {
            return;
        }
        let round_trip = self.round_trips.lock().get(node).copied().unwrap_or(0.0);
        let pace = (took.as_secs_f64() - round_trip) / bytes as f64;
        let weight = bytes.min(MANY_BYTES) as f64 / MANY_BYTES as f64;
        let mut paces = self.paces.lock();
        match paces.get_mut(node) {
            Some(known) => *known += NEWEST * weight * (pace - *known),
            None => {
                let unknown = 1.0 / BANDWIDTH;
                paces.insert(node.clone(), unknown + weight * (pace - unknown));
            }
        }
    }
}

/// Probes other nodes until stopped.
pub(crate) async fn keep_probing(cluster: Arc<Cluster>, stop: CancellationToken) {
    let mut next = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let mut others = cluster.others();
        let first = next % others.len().max(1);
        others.rotate_left(first);
        others.truncate(AT_ONCE);
        next = first + others.len();
        probe(&cluster, others, DEADLINE).await;
    }
}

/// Probes some nodes.
pub(crate) async fn probe(cluster: &Arc<Cluster>, nodes: Vec<NodeName>, deadline: Duration) {
    let probes = nodes.into_iter().map(|node| {
        let cluster = cluster.clone();
        async move {
            let asked = Instant::now();
            let hints = cluster.hints();
            match cluster.peers().hello(&node, deadline).await {
                Ok(hello) => {
                    let took = asked.elapsed();
                    if let Some(said) = hello.clock {
                        clock::hear(&node, said, took);
                    }
                    smooth(&hints.round_trips, &node, took.as_secs_f64());
                    hints.silent.lock().remove(&node);
                }
                // How far it is stays so.
                Err(_) => _ = hints.silent.lock().insert(node),
            }
        }
    });
    futures_util::future::join_all(probes).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_transfers_tell_the_bandwidth_together() {
        let (hints, node) = (Hints::default(), NodeName::new("n").unwrap());
        let round_trip = 0.010;
        smooth(&hints.round_trips, &node, round_trip);
        assert_eq!(hints.way(&node).unwrap().bandwidth, BANDWIDTH);
        // A line of 1 Gb/s: 0.8 ms for each, and round trips that vary by more than that.
        for at in 0..400 {
            let varies = [0.9, 1.1][at % 2];
            let took = Duration::from_secs_f64(round_trip * varies + 100e3 / 125e6);
            hints.transferred(&node, 100_000, took);
        }
        let measured = hints.way(&node).unwrap().bandwidth;
        assert!((100e6..160e6).contains(&measured), "{measured}");
        // A large one is believed at once.
        let other = NodeName::new("other").unwrap();
        smooth(&hints.round_trips, &other, round_trip);
        hints.transferred(&other, 10 << 20, Duration::from_secs_f64(round_trip + 1.0));
        let measured = hints.way(&other).unwrap().bandwidth;
        assert!(
            (measured / (10 << 20) as f64 - 1.0).abs() < 1e-6,
            "{measured}"
        );
    }
}
