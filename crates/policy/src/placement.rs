//! Where each key lives.
//!
//! "Function Offloading and Data Migration for Stateful Serverless Edge Computing", section 4.2: the
//! penalties of functions whose data is too far away against the time that moves take. [`random`] and
//! [`greedy`] are the paper's baselines; [`state_aware`] improves the objective move by move, within
//! the nodes' storage.

pub mod greedy;
pub mod random;
pub mod state_aware;

use crate::view::{Access, Function, Key, KeyIndex, Network, NodeIndex};

/// What is to be placed, and what it costs.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Between the nodes.
    pub network: &'a Network,
    /// Room for keys on each node, in bytes (`S_j`), those that are there included.
    pub storage_bytes: &'a [u64],
    /// Whether a node may be given keys at all.
    pub may_host: &'a [bool],
    /// Who has an SLO.
    pub functions: &'a [Function],
    /// Invocations per second of each function, on all nodes together.
    pub invocation_rates: &'a [f64],
    /// What is placed.
    pub keys: &'a [Key],
    /// Who accesses what from where, sorted by key.
    pub accesses: &'a [Access],
    /// Weight of the penalties (`w_p`).
    pub penalty_weight: f64,
    /// Weight of the moves (`w_m`).
    pub move_weight: f64,
}

/// A node for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// By key.
    pub homes: Vec<NodeIndex>,
}

impl Placement {
    /// Everything where it is: the baseline *none*.
    pub fn unchanged(keys: &[Key]) -> Self {
        Self {
            homes: keys.iter().map(|key| key.home).collect(),
        }
    }

    /// Keys that are to move.
    pub fn moves<'a>(
        &'a self,
        keys: &'a [Key],
    ) -> impl Iterator<Item = (KeyIndex, NodeIndex)> + 'a {
        let differs = |(at, (home, key)): (usize, (&NodeIndex, &Key))| {
            (*home != key.home).then_some((KeyIndex::from(at), *home))
        };
        self.homes.iter().zip(keys).enumerate().filter_map(differs)
    }
}

impl Problem<'_> {
    /// The accesses of a key.
    fn accesses_of(&self, key: usize) -> &[Access] {
        let start = self
            .accesses
            .partition_point(|access| access.key.at() < key);
        let end = self
            .accesses
            .partition_point(|access| access.key.at() <= key);
        &self.accesses[start..end]
    }

    /// Seconds of data access that a key on `home` adds to each invocation of the accessing function
    /// on average (eq. 8, with rates in the place of probabilities, over all nodes).
    fn seconds(&self, access: &Access, bytes: u64, home: NodeIndex) -> f64 {
        let rate = self.invocation_rates[access.function.at()];
        if rate <= 0.0 {
            return 0.0;
        }
        access.rate / rate * self.network.access(access.node, home, bytes as f64)
    }

    /// Penalties and moves of a placement, weighted (eqs. 13 to 17): a function's excess is how much
    /// its mean data access time in all is over its SLO.
    pub fn objective(&self, placement: &Placement) -> f64 {
        let mut seconds = vec![0.0; self.functions.len()];
        for access in self.accesses {
            let key = access.key.at();
            let bytes = self.keys[key].size_bytes;
            seconds[access.function.at()] += self.seconds(access, bytes, placement.homes[key]);
        }
        let penalties: f64 = self
            .functions
            .iter()
            .zip(&seconds)
            .map(|(function, seconds)| penalty(function, *seconds))
            .sum();
        let longest = LongestMoves::of(self.network);
        let moves: f64 = self
            .keys
            .iter()
            .zip(&placement.homes)
            .map(|(key, home)| {
                let longest = longest.seconds(key.size_bytes as f64);
                self.move_cost(key, *home, longest)
            })
            .sum();
        self.penalty_weight * penalties + self.move_weight * moves
    }

    /// Time to move a key as a part of the longest move that it could make (eqs. 9 and 17); a key that
    /// has to leave its home moves at no cost.
    fn move_cost(&self, key: &Key, home: NodeIndex, longest: f64) -> f64 {
        if home == key.home || !self.may_host[key.home.at()] || longest <= 0.0 {
            return 0.0;
        }
        self.network.access(key.home, home, key.size_bytes as f64) / longest
    }
}

/// The longest move that a key of a given size could make, between any two nodes.
#[derive(Debug, Clone)]
struct LongestMoves(
    /// Latency there and back, and seconds per byte; no other pair of nodes is longer in both.
    Vec<(f64, f64)>,
);

impl LongestMoves {
    fn of(network: &Network) -> Self {
        let nodes = || (0..network.nodes()).map(NodeIndex::from);
        let mut pairs: Vec<(f64, f64)> = nodes()
            .flat_map(|a| nodes().map(move |b| (a, b)))
            .map(|(a, b)| {
                let latency = network.latency(a, b) + network.latency(b, a);
                (latency, 1.0 / network.bandwidth(a, b))
            })
            .collect();
        pairs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
        let mut longest: Vec<(f64, f64)> = Vec::new();
        for pair in pairs {
            if longest.last().is_none_or(|(_, most)| pair.1 > *most) {
                longest.push(pair);
            }
        }
        Self(longest)
    }

    /// Seconds that it takes (eq. 9 at its largest).
    fn seconds(&self, bytes: f64) -> f64 {
        let times = self
            .0
            .iter()
            .map(|(latency, per_byte)| latency + bytes * per_byte);
        times.fold(0.0, f64::max)
    }
}

/// What a function pays for a mean data access time (eq. 15).
fn penalty(function: &Function, seconds: f64) -> f64 {
    let excess = seconds - function.slo.max_data_access_seconds;
    function.slo.penalty_per_second * excess.max(0.0)
}
