//! Where each key lives.
//!
//! "Function Offloading and Data Migration for Stateful Serverless Edge Computing", section 4.2: the
//! penalties of functions whose data is too far away against the time that moves take. [`random`] and
//! [`greedy`] are the paper's baselines; [`state_aware`] comes near the optimum in time for a live
//! system, and says how near; [`exact`] is the optimum, for small problems, to judge it by.

mod costs;
#[cfg(feature = "exact")]
pub mod exact;
pub mod greedy;
pub mod random;
pub mod state_aware;

use crate::view::{Access, Function, Key, KeyIndex, Network, NodeIndex};
use costs::Costs;

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
    /// Who accesses what from where, sorted by key, then function.
    pub accesses: &'a [Access],
    /// Weight of the penalties (`w_p`).
    pub penalty_weight: f64,
    /// Weight of the moves (`w_m`).
    pub move_weight: f64,
    /// A move has to save as many seconds of access within so many seconds as it takes itself, or it
    /// is not made; infinite asks for no more than that the objective gets smaller.
    pub horizon_seconds: f64,
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

    /// Mean data access time of an invocation of each function, in seconds (eq. 8, with rates in the
    /// place of probabilities, over all nodes).
    pub fn data_seconds(&self, placement: &Placement) -> Vec<f64> {
        Costs::new(self).data_seconds(&placement.homes)
    }

    /// Penalties and moves of a placement, weighted (eqs. 13 to 17): a function's excess is how much
    /// its mean data access time in all is over its SLO.
    pub fn objective(&self, placement: &Placement) -> f64 {
        Costs::new(self).objective(&placement.homes)
    }
}

/// There is no room for all keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Infeasible {
    /// Bytes of the keys that no node has room for.
    pub missing_bytes: u64,
    /// Nodes that may have keys, and how many bytes each has left.
    pub nodes: Vec<(NodeIndex, u64)>,
}

impl std::fmt::Display for Infeasible {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |node: NodeIndex| format!("node {}", node.0);
        out.write_str(&self.describe(name))
    }
}

impl std::error::Error for Infeasible {}

impl Infeasible {
    /// Nodes named at most; the rest are counted.
    const NAMED: usize = 8;

    /// The text, with the nodes' names.
    pub fn describe(&self, name: impl Fn(NodeIndex) -> String) -> String {
        let mut nodes = self.nodes.clone();
        nodes.sort_by_key(|(node, left)| (std::cmp::Reverse(*left), *node));
        let mut named: Vec<String> = nodes
            .iter()
            .take(Self::NAMED)
            .map(|(node, left)| format!("{} ({left} bytes left)", name(*node)))
            .collect();
        if let Some(more) = nodes
            .len()
            .checked_sub(Self::NAMED)
            .filter(|more| *more > 0)
        {
            named.push(format!("{more} more"));
        }
        match named.is_empty() {
            true => format!(
                "there is no room for {} bytes of keys: no node may have any",
                self.missing_bytes
            ),
            false => format!(
                "there is no room for {} bytes of keys on {}",
                self.missing_bytes,
                named.join(", ")
            ),
        }
    }
}

/// What a function pays for a mean data access time (eq. 15).
fn penalty(function: &Function, seconds: f64) -> f64 {
    let excess = seconds - function.slo.max_data_access_seconds;
    function.slo.penalty_per_second * excess.max(0.0)
}
