//! Penalties against moves: improves the objective one key at a time until no move pays.
//!
//! With the excess of a function taken over all its keys, keys act on each other through few sums, one
//! for each function; a move's gain is found from the key's own accesses alone. What is left is a local
//! optimum: no single move within the storage makes the objective smaller.

use super::{Placement, Problem, penalty};
use crate::view::{Key, NodeIndex};

/// Weight of the access time itself, in objective per second: between placements of equal cost the
/// nearer one is taken.
const NEARER: f64 = 1e-6;
/// Rounds over all keys; each makes the objective smaller, and a handful is enough.
const ROUNDS: usize = 50;
/// Least gain that is worth a move: below it is rounding.
const LEAST_GAIN: f64 = 1e-12;

/// There is no room for all keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no room for {missing_bytes} bytes of keys on any of the {nodes} nodes that may have keys"
)]
pub struct Infeasible {
    /// Bytes that fit nowhere.
    pub missing_bytes: u64,
    /// Nodes that may have keys.
    pub nodes: usize,
}

/// A placement within the storage, better by every move that was made. Keys that nobody accesses stay,
/// unless they have to leave.
///
/// # Errors
/// When the keys that have to leave their node fit nowhere.
pub fn place(problem: &Problem<'_>) -> Result<Placement, Infeasible> {
    let mut search = Search::new(problem);
    search.settle()?;
    for _ in 0..ROUNDS {
        if !search.improve() {
            break;
        }
    }
    Ok(search.placement)
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    placement: Placement,
    /// Mean data access time of each function now.
    seconds: Vec<f64>,
    /// Bytes left on each node.
    spare: Vec<i128>,
    /// Of each key.
    longest_move: Vec<f64>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>) -> Self {
        let placement = Placement::unchanged(problem.keys);
        let mut seconds = vec![0.0; problem.functions.len()];
        for access in problem.accesses {
            let key = &problem.keys[access.key.at()];
            seconds[access.function.at()] += problem.seconds(access, key.size_bytes, key.home);
        }
        let mut spare: Vec<i128> = problem
            .storage_bytes
            .iter()
            .map(|bytes| i128::from(*bytes))
            .collect();
        for key in problem.keys {
            spare[key.home.at()] -= i128::from(key.size_bytes);
        }
        Self {
            problem,
            placement,
            seconds,
            spare,
            longest_move: problem
                .keys
                .iter()
                .map(|key| problem.longest_move(key))
                .collect(),
        }
    }

    /// Gives each key that cannot stay the best home that has room, the largest first.
    fn settle(&mut self) -> Result<(), Infeasible> {
        let may_host = self.problem.may_host;
        let mut leaving: Vec<usize> = (0..self.problem.keys.len())
            .filter(|key| !may_host[self.placement.homes[*key].at()])
            .collect();
        leaving.sort_by_key(|key| std::cmp::Reverse(self.problem.keys[*key].size_bytes));
        let mut missing_bytes = 0;
        for key in leaving {
            match self.best(key) {
                Some((home, _)) => self.relocate(key, home),
                None => missing_bytes += self.problem.keys[key].size_bytes,
            }
        }
        if missing_bytes > 0 {
            let nodes = may_host.iter().filter(|may| **may).count();
            return Err(Infeasible {
                missing_bytes,
                nodes,
            });
        }
        Ok(())
    }

    /// Makes every move that pays; whether there was one.
    fn improve(&mut self) -> bool {
        let mut improved = false;
        for key in 0..self.problem.keys.len() {
            if self.problem.accesses_of(key).is_empty() {
                continue;
            }
            if let Some((home, gain)) = self.best(key)
                && home != self.placement.homes[key]
                && gain > LEAST_GAIN
            {
                self.relocate(key, home);
                improved = true;
            }
        }
        improved
    }

    /// The best home of a key with the others where they are, and what it gains over where it is.
    fn best(&self, key: usize) -> Option<(NodeIndex, f64)> {
        let now = self.placement.homes[key];
        let bytes = i128::from(self.problem.keys[key].size_bytes);
        let cost_now = self.cost(key, now);
        let mut best: Option<(NodeIndex, f64)> = None;
        for home in (0..self.spare.len()).map(NodeIndex::from) {
            let has_room = home == now || self.spare[home.at()] >= bytes;
            if self.problem.may_host[home.at()] && has_room {
                let gain = cost_now - self.cost(key, home);
                if best.is_none_or(|(_, most)| gain > most) {
                    best = Some((home, gain));
                }
            }
        }
        best
    }

    /// The part of the objective that depends on where a key is.
    fn cost(&self, key: usize, home: NodeIndex) -> f64 {
        let problem = self.problem;
        let (value, now) = (&problem.keys[key], self.placement.homes[key]);
        let mut nearness = 0.0;
        let mut penalties = 0.0;
        // Sorted by key, then function: each function's accesses are together.
        let accesses = problem.accesses_of(key);
        for of_function in accesses.chunk_by(|a, b| a.function == b.function) {
            let at = of_function[0].function.at();
            let (mut there, mut here) = (0.0, 0.0);
            for access in of_function {
                there += problem.seconds(access, value.size_bytes, home);
                here += problem.seconds(access, value.size_bytes, now);
                nearness += access.rate
                    * problem
                        .network
                        .access(access.node, home, value.size_bytes as f64);
            }
            penalties += penalty(&problem.functions[at], self.seconds[at] - here + there);
        }
        let moving = problem.move_cost(value, home, self.longest_move[key]);
        problem.penalty_weight * penalties + problem.move_weight * moving + NEARER * nearness
    }

    fn relocate(&mut self, key: usize, home: NodeIndex) {
        let problem = self.problem;
        let value: &Key = &problem.keys[key];
        let now = self.placement.homes[key];
        for access in problem.accesses_of(key) {
            let change = problem.seconds(access, value.size_bytes, home)
                - problem.seconds(access, value.size_bytes, now);
            self.seconds[access.function.at()] += change;
        }
        self.spare[now.at()] += i128::from(value.size_bytes);
        self.spare[home.at()] -= i128::from(value.size_bytes);
        self.placement.homes[key] = home;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Access, Function, FunctionIndex, KeyIndex, Network, Slo};
    use proptest::prelude::*;

    /// A small world from plain numbers: two functions, four nodes of which the last only stores.
    struct World {
        network: Network,
        storage: Vec<u64>,
        functions: Vec<Function>,
        keys: Vec<Key>,
        accesses: Vec<Access>,
    }

    const NODES: usize = 4;

    impl World {
        fn new(latencies: &[f64], sizes: &[u64], rates: &[f64], storage: u64) -> Self {
            let latency: Vec<f64> = (0..NODES * NODES)
                .map(|at| latencies[at % latencies.len()])
                .collect();
            let function = |name: &str| Function {
                name: name.into(),
                exec_seconds: 0.1,
                memory_bytes: 1,
                input_bytes: 0.0,
                output_bytes: 0.0,
                slo: Slo {
                    max_data_access_seconds: 0.05,
                    max_response_seconds: f64::INFINITY,
                    penalty_per_second: 100.0,
                },
            };
            let keys: Vec<Key> = sizes
                .iter()
                .map(|size_bytes| Key {
                    size_bytes: *size_bytes,
                    home: NodeIndex(3),
                })
                .collect();
            let mut accesses = Vec::new();
            for key in 0..keys.len() {
                for function in 0..2 {
                    for node in 0..3 {
                        accesses.push(Access {
                            function: FunctionIndex(function),
                            key: KeyIndex::from(key),
                            node: NodeIndex(node),
                            rate: rates
                                [(key * 6 + function as usize * 3 + node as usize) % rates.len()],
                        });
                    }
                }
            }
            Self {
                network: Network::new(NODES, latency, vec![1e7; NODES * NODES]),
                storage: vec![storage; NODES],
                functions: vec![function("f"), function("g")],
                keys,
                accesses,
            }
        }

        fn problem(&self) -> Problem<'_> {
            Problem {
                network: &self.network,
                storage_bytes: &self.storage,
                may_host: &[true, true, true, false],
                functions: &self.functions,
                invocation_rates: &[10.0, 5.0],
                keys: &self.keys,
                accesses: &self.accesses,
                penalty_weight: 0.5,
                move_weight: 0.5,
            }
        }
    }

    #[test]
    fn a_key_goes_where_it_is_used() {
        let mut world = World::new(&[0.05], &[1000], &[0.0], 1 << 20);
        world.accesses[1].rate = 8.0;
        assert_eq!(place(&world.problem()).unwrap().homes, [NodeIndex(1)]);
    }

    #[test]
    fn too_little_room_is_said() {
        let world = World::new(&[0.01], &[1000, 2000], &[1.0], 1500);
        let error = place(&world.problem()).unwrap_err();
        assert_eq!(error.missing_bytes, 2000);
    }

    proptest! {
        #[test]
        fn placements_fit_and_are_stable(
            latencies in prop::collection::vec(0.001_f64..0.1, 7..16),
            sizes in prop::collection::vec(1_u64..1_000_000, 1..12),
            rates in prop::collection::vec(0.0_f64..10.0, 5..30),
            storage in 800_000_u64..4_000_000,
        ) {
            let mut world = World::new(&latencies, &sizes, &rates, storage);
            let Ok(placement) = place(&world.problem()) else { return Ok(()) };
            let mut used = [0; NODES];
            for (home, size) in placement.homes.iter().zip(&sizes) {
                used[home.at()] += size;
            }
            prop_assert!(used.iter().all(|used| *used <= storage));
            prop_assert_eq!(used[3], 0);
            let cost = world.problem().objective(&placement);
            // Placing again on the result moves nothing.
            for (key, home) in world.keys.iter_mut().zip(&placement.homes) {
                key.home = *home;
            }
            let again = place(&world.problem()).unwrap();
            prop_assert_eq!(again.moves(&world.keys).count(), 0);
            // Single keys elsewhere are not better.
            let problem = world.problem();
            for (key, size) in sizes.iter().enumerate() {
                for home in 0..3 {
                    let mut other = placement.clone();
                    other.homes[key] = NodeIndex(home);
                    if used[home as usize] + size <= storage {
                        prop_assert!(problem.objective(&other) >= cost - 1e-3);
                    }
                }
            }
        }
    }
}
