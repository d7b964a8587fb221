//! Where keys are: what follows from it, and how it changes now and then.

use fulmar_policy::placement::exact::{self, Limits, Solver};
use fulmar_policy::placement::{
    Placement, Problem, greedy, random as random_placement, state_aware,
};
use fulmar_policy::{Access, FunctionIndex, Key, KeyIndex, NodeIndex};

use super::{FUNCTIONS, KEYS, Migration, World};
use crate::Error;

/// The solver proves the optimum of problems of this size in much less.
const EXACT_LIMITS: Limits = Limits {
    seconds: 600.0,
    gap: 0.0,
};
/// On the platform's own nodes a move has to save within so many seconds what it takes itself, and this part of the waiting
/// for its key.
const HORIZON_SECONDS: f64 = 60.0;
const CLEARLY: f64 = 0.2;

impl World<'_> {
    /// What follows from where keys are.
    pub(super) fn keys_moved(&mut self) {
        let (nodes, executing) = (self.layout().nodes(), self.layout().executing());
        let mean = |accesses: &[(usize, f64)], node: NodeIndex| -> f64 {
            accesses
                .iter()
                .map(|(key, probability)| {
                    let bytes = self.drawn.size_bytes[*key] as f64;
                    probability * self.network.access(node, self.homes[*key], bytes)
                })
                .sum()
        };
        self.data_seconds = self
            .drawn
            .accesses
            .iter()
            .map(|accesses| {
                (0..nodes)
                    .map(|node| mean(accesses, NodeIndex::from(node)))
                    .collect()
            })
            .collect();
        let bytes = |accesses: &[(usize, f64)], node: NodeIndex| -> f64 {
            let remote = accesses.iter().filter(|(key, _)| self.homes[*key] != node);
            remote
                .map(|(key, p)| p * self.drawn.size_bytes[*key] as f64)
                .sum()
        };
        self.remote_bytes = self
            .drawn
            .accesses
            .iter()
            .map(|accesses| {
                (0..nodes)
                    .map(|node| bytes(accesses, NodeIndex::from(node)))
                    .collect()
            })
            .collect();
        self.candidates = self
            .drawn
            .accesses
            .iter()
            .map(|accesses| {
                let mut nodes: Vec<NodeIndex> =
                    accesses.iter().map(|(key, _)| self.homes[*key]).collect();
                nodes.retain(|node| node.at() < executing);
                nodes.sort_unstable();
                nodes.dedup();
                nodes
            })
            .collect();
    }

    pub(super) fn migrate(&mut self) -> Result<(), Error> {
        let every = self.settings.migrate_seconds;
        for (rate, count) in self.rates.iter_mut().zip(&mut self.counted) {
            rate.see(f64::from(std::mem::take(count)) / every);
        }
        let counted = self.invocation_rates.iter_mut().zip(&mut self.invocations);
        let invocation_rates: Vec<f64> = counted
            .map(|(rate, count)| rate.see(f64::from(std::mem::take(count)) / every))
            .collect();
        let mut accesses = Vec::new();
        for key in 0..KEYS {
            for function in 0..FUNCTIONS.len() {
                for node in 0..self.layout().nodes() {
                    let rate = self.rates[self.slot(function, key, node)].value();
                    if rate > 0.0 {
                        accesses.push(Access {
                            function: FunctionIndex::from(function),
                            key: KeyIndex::from(key),
                            node: NodeIndex::from(node),
                            rate,
                        });
                    }
                }
            }
        }
        // Only keys that anybody has: the others have no size in a file.
        let used = |key: usize| {
            self.drawn
                .accesses
                .iter()
                .flatten()
                .any(|(other, _)| *other == key)
        };
        let keys: Vec<Key> = (0..KEYS)
            .map(|key| Key {
                size_bytes: if used(key) {
                    self.drawn.size_bytes[key]
                } else {
                    0
                },
                home: self.homes[key],
            })
            .collect();
        let nodes = self.layout().nodes();
        let mut may_host = vec![true; nodes];
        // The platform's own nodes leave it to the objective.
        may_host[self.layout().executing()] = self.is_own();
        let mut functions = self.functions.clone();
        let horizon_seconds = match self.is_own() {
            true => HORIZON_SECONDS,
            false => f64::INFINITY,
        };
        if self.is_own() {
            for (function, rate) in functions.iter_mut().zip(&invocation_rates) {
                function.slo.penalty_per_second *= rate * HORIZON_SECONDS;
            }
        }
        let problem = Problem {
            network: &self.network,
            storage_bytes: &vec![u64::MAX; nodes],
            may_host: &may_host,
            functions: &functions,
            invocation_rates: &invocation_rates,
            keys: &keys,
            accesses: &accesses,
            penalty_weight: self.settings.penalty_weight,
            move_weight: self.settings.move_weight,
            horizon_seconds,
        };
        let (mut placement, moved) = match self.cell.migration {
            Migration::None => (Placement::unchanged(&keys), None),
            Migration::Random => {
                let (placement, moved) =
                    random_placement::place(&problem, &mut || self.random.unit());
                (placement, Some(moved))
            }
            Migration::Greedy => (greedy::place(&problem), None),
            Migration::StateAware => (
                state_aware::place(&problem)
                    .map_err(|error| Error::invalid(error.to_string()))?
                    .placement,
                None,
            ),
            Migration::Exact => (
                exact::place(&problem, Solver::Microlp, &EXACT_LIMITS)
                    .map_err(|error| Error::invalid(error.to_string()))?
                    .placement,
                None,
            ),
        };
        if self.is_own() {
            // Only what clearly pays moves.
            let waiting = |key: usize, home: NodeIndex| -> f64 {
                let all = accesses.iter().filter(|access| access.key.at() == key);
                let bytes = keys[key].size_bytes as f64;
                all.map(|access| access.rate * self.network.access(access.node, home, bytes))
                    .sum()
            };
            for (key, home) in placement.homes.iter_mut().enumerate() {
                let here = keys[key].home;
                if waiting(key, *home) >= waiting(key, here) * (1.0 - CLEARLY) {
                    *home = here;
                }
            }
        }
        let moves = || {
            placement
                .moves(&keys)
                .map(|(key, _)| keys[key.at()].size_bytes)
                .sum()
        };
        self.outcome.moved_bytes += moved.unwrap_or_else(moves);
        self.homes = placement.homes;
        self.keys_moved();
        Ok(())
    }
}
