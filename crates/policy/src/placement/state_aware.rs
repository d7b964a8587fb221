//! Penalties against moves: improves the objective one key at a time until no move pays.
//!
//! With the excess of a function taken over all its keys, keys act on each other through few sums, one
//! for each function; a move's gain is found from the key's own accesses alone. What is left is a local
//! optimum: no single move within the storage makes the objective smaller.

use super::{LongestMoves, Placement, Problem, penalty};
use crate::view::{Access, Key, NodeIndex};

/// Weight of the access time itself, in objective per second: between placements of equal cost the
/// nearer one is taken.
const NEARER: f64 = 1e-6;
/// Rounds over all keys; each makes the objective smaller, and a handful is enough.
const ROUNDS: usize = 50;
/// Rounds before it may stop short of where no move pays; small instances need fewer.
const FEWEST_ROUNDS: usize = 12;
/// Rounds end when one gains less than this part of what the first did.
const SETTLED: f64 = 1e-3;
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
    let mut first = None;
    for round in 0..ROUNDS {
        let gained = search.improve();
        let settled = gained <= SETTLED * *first.get_or_insert(gained);
        if gained == 0.0 || (settled && round >= FEWEST_ROUNDS) {
            break;
        }
    }
    Ok(search.placement)
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    placement: Placement,
    /// From a node to each home: latency there and back, and seconds per byte; a row for each node.
    round_trips: Vec<f64>,
    per_byte: Vec<f64>,
    /// Accesses of each key: the slice from its own entry to the next one's.
    first_access: Vec<usize>,
    /// Mean data access time of each function now.
    seconds: Vec<f64>,
    /// Changes of what each function's keys can gain; a key is looked at again only after one.
    changes: Vec<u64>,
    /// Sum of the changes when each key was looked at last.
    looked_at: Vec<Option<u64>>,
    /// Bytes left on each node, and how often some were freed.
    spare: Vec<i128>,
    freed: u64,
    longest_moves: LongestMoves,
    /// By home, while a key is looked at.
    cost: Vec<f64>,
    reach: Vec<f64>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>) -> Self {
        let network = problem.network;
        let nodes = network.nodes();
        let pairs = || {
            let all = move || (0..nodes).map(NodeIndex::from);
            all().flat_map(move |at| all().map(move |home| (at, home)))
        };
        let round_trips: Vec<f64> = pairs()
            .map(|(at, home)| network.latency(at, home) + network.latency(home, at))
            .collect();
        let per_byte: Vec<f64> = pairs()
            .map(|(at, home)| 1.0 / network.bandwidth(at, home))
            .collect();
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
        let keys = problem.keys.len();
        let mut first_access = Vec::with_capacity(keys + 1);
        let mut at = 0;
        for key in 0..=keys {
            while problem
                .accesses
                .get(at)
                .is_some_and(|access| access.key.at() < key)
            {
                at += 1;
            }
            first_access.push(at);
        }
        Self {
            problem,
            placement: Placement::unchanged(problem.keys),
            longest_moves: LongestMoves::of(network),
            round_trips,
            per_byte,
            first_access,
            changes: vec![0; seconds.len()],
            looked_at: vec![None; keys],
            seconds,
            spare,
            freed: 0,
            cost: vec![0.0; nodes],
            reach: vec![0.0; nodes],
        }
    }

    fn accesses_of(&self, key: usize) -> &'a [Access] {
        &self.problem.accesses[self.first_access[key]..self.first_access[key + 1]]
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

    /// Makes every move that pays; what they gained.
    fn improve(&mut self) -> f64 {
        let mut gained = 0.0;
        for key in 0..self.problem.keys.len() {
            let accesses = self.accesses_of(key);
            if accesses.is_empty() {
                continue;
            }
            let changes = accesses
                .iter()
                .map(|access| self.changes[access.function.at()]);
            let state = Some(self.freed + changes.sum::<u64>());
            if self.looked_at[key] == state {
                continue;
            }
            self.looked_at[key] = state;
            if let Some((home, gain)) = self.best(key)
                && home != self.placement.homes[key]
                && gain > LEAST_GAIN
            {
                self.relocate(key, home);
                gained += gain;
            }
        }
        gained
    }

    /// The best home of a key with the others where they are, and what it gains over where it is.
    fn best(&mut self, key: usize) -> Option<(NodeIndex, f64)> {
        let problem = self.problem;
        let (value, now) = (&problem.keys[key], self.placement.homes[key]);
        let (bytes, nodes) = (value.size_bytes as f64, self.spare.len());
        let longest = self.longest_moves.seconds(bytes);
        // Time to move as a part of the longest move; nothing for what has to leave (eq. 17).
        let row = value.home.at() * nodes;
        let weight = match problem.may_host[value.home.at()] && longest > 0.0 {
            true => problem.move_weight / longest,
            false => 0.0,
        };
        let rows = self.round_trips[row..row + nodes]
            .iter()
            .zip(&self.per_byte[row..row + nodes]);
        for (cost, (latency, per_byte)) in self.cost.iter_mut().zip(rows) {
            *cost = weight * (latency + bytes * per_byte);
        }
        // Sorted by key, then function: each function's accesses are together.
        for of_function in self
            .accesses_of(key)
            .chunk_by(|a, b| a.function == b.function)
        {
            let at = of_function[0].function.at();
            let rate = problem.invocation_rates[at];
            self.reach.fill(0.0);
            for access in of_function {
                let row = access.node.at() * nodes;
                let rows = self.round_trips[row..row + nodes]
                    .iter()
                    .zip(&self.per_byte[row..row + nodes]);
                for (reach, (latency, per_byte)) in self.reach.iter_mut().zip(rows) {
                    *reach += access.rate * (latency + bytes * per_byte);
                }
            }
            let share = if rate > 0.0 { 1.0 / rate } else { 0.0 };
            let elsewhere = self.seconds[at] - share * self.reach[now.at()];
            let function = &problem.functions[at];
            for (cost, reach) in self.cost.iter_mut().zip(&self.reach) {
                let penalty = penalty(function, elsewhere + share * reach);
                *cost += problem.penalty_weight * penalty + NEARER * reach;
            }
        }
        let size = i128::from(value.size_bytes);
        let mut best: Option<(NodeIndex, f64)> = None;
        for (home, cost) in self.cost.iter().enumerate() {
            let gain = self.cost[now.at()] - cost;
            let has_room = home == now.at() || self.spare[home] >= size;
            if problem.may_host[home] && has_room && best.is_none_or(|(_, most)| gain > most) {
                best = Some((NodeIndex::from(home), gain));
            }
        }
        best
    }

    fn relocate(&mut self, key: usize, home: NodeIndex) {
        let problem = self.problem;
        let value: &Key = &problem.keys[key];
        let now = self.placement.homes[key];
        for access in self.accesses_of(key) {
            let at = access.function.at();
            let change = problem.seconds(access, value.size_bytes, home)
                - problem.seconds(access, value.size_bytes, now);
            let limit = problem.functions[at].slo.max_data_access_seconds;
            // Well within its SLO before and after, a function's other keys gain what they did.
            if self.seconds[at].max(self.seconds[at] + change) > limit {
                self.changes[at] += 1;
            }
            self.seconds[at] += change;
        }
        // Room matters only where somebody wanted more than there was.
        if self.spare[now.at()] < i128::from(u32::MAX) {
            self.freed += 1;
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

    /// `cargo test --release -p fulmar-policy -- --ignored --nocapture time_to_place`
    #[test]
    #[ignore = "long: prints times, for release builds"]
    fn time_to_place() {
        for (nodes, keys, functions) in [(35, 100, 20), (100, 1_000, 100), (1_000, 100_000, 1_000)]
        {
            let mut state = 7_u64;
            let mut draw = |n: usize| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                ((u128::from(state >> 11) * n as u128) >> 53) as usize
            };
            let latency = (0..nodes * nodes)
                .map(|_| 0.001 + draw(100) as f64 / 1000.0)
                .collect();
            let bandwidth = (0..nodes * nodes)
                .map(|_| 1e7 * (1 + draw(10)) as f64)
                .collect();
            let mut world = World::new(&[0.01], &[], &[0.0], 0);
            world.network = Network::new(nodes, latency, bandwidth);
            world.storage = vec![(keys / nodes + 1) as u64 * 4_000_000; nodes];
            world.functions = vec![world.functions[0].clone(); functions];
            world.keys = (0..keys)
                .map(|_| Key {
                    size_bytes: 1 + draw(1_000_000) as u64,
                    home: NodeIndex::from(draw(nodes)),
                })
                .collect();
            for key in 0..keys {
                let mut accesses: Vec<Access> = (0..4)
                    .map(|_| Access {
                        function: FunctionIndex::from(draw(functions)),
                        key: KeyIndex::from(key),
                        node: NodeIndex::from(draw(nodes)),
                        rate: draw(100) as f64 / 10.0,
                    })
                    .collect();
                accesses.sort_by_key(|access| access.function);
                world.accesses.extend(accesses);
            }
            let mut rates = vec![0.0; functions];
            for access in &world.accesses {
                rates[access.function.at()] += access.rate;
            }
            let problem = Problem {
                may_host: &vec![true; nodes],
                invocation_rates: &rates,
                ..world.problem()
            };
            let before = problem.objective(&Placement::unchanged(&world.keys));
            let started = std::time::Instant::now();
            let placement = place(&problem).unwrap();
            let took = started.elapsed();
            let after = problem.objective(&placement);
            let moved = placement.moves(&world.keys).count();
            println!(
                "{nodes} nodes, {keys} keys: {took:?}, {moved} moves, objective {before:.2} -> {after:.2}"
            );
            assert!(after <= before);
        }
    }
}
