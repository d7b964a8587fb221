//! What a key costs on each node: the coefficients of the objective, computed once for each problem.

use super::Problem;
use crate::view::{Access, NodeIndex};

/// Rows are kept when there are at most so many numbers in them; beyond, they are computed when
/// they are needed, from far less memory.
const KEPT_NUMBERS: usize = 4 << 20;

/// A function that accesses a key, from whatever nodes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub(super) function: usize,
    first_access: usize,
    accesses: usize,
}

/// Coefficients of the objective, a row over all homes for each key and function that accesses it.
pub(super) struct Costs<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) nodes: usize,
    /// From a node to each home: latency there and back, and seconds per byte; a row for each node.
    round_trips: Vec<f64>,
    per_byte: Vec<f64>,
    longest_moves: LongestMoves,
    pairs: Vec<Pair>,
    /// Pairs of each key: from its own entry to the next one's.
    first_pair: Vec<usize>,
    /// Nodes that may not have keys.
    barred: Vec<usize>,
    /// All rows, if they are kept; and what moving each key costs.
    rows: Vec<f64>,
    moves: Vec<f64>,
}

impl<'a> Costs<'a> {
    pub(super) fn new(problem: &'a Problem<'a>) -> Self {
        let network = problem.network;
        let nodes = network.nodes();
        let cells = || {
            let all = move || (0..nodes).map(NodeIndex::from);
            all().flat_map(move |at| all().map(move |home| (at, home)))
        };
        let round_trip = |(at, home): (NodeIndex, NodeIndex)| {
            network.latency(at, home) + network.latency(home, at)
        };
        let mut costs = Self {
            problem,
            nodes,
            round_trips: cells().map(round_trip).collect(),
            per_byte: cells()
                .map(|(at, home)| 1.0 / network.bandwidth(at, home))
                .collect(),
            longest_moves: LongestMoves::of(problem),
            pairs: Vec::new(),
            first_pair: Vec::with_capacity(problem.keys.len() + 1),
            barred: (0..nodes).filter(|node| !problem.may_host[*node]).collect(),
            rows: Vec::new(),
            moves: Vec::new(),
        };
        let mut at = 0;
        for key in 0..problem.keys.len() {
            costs.first_pair.push(costs.pairs.len());
            let of_key = &problem.accesses[at..];
            let accesses = of_key.iter().take_while(|access| access.key.at() == key);
            let of_key = &of_key[..accesses.count()];
            // Sorted by key, then function: each function's accesses are together.
            for of_function in of_key.chunk_by(|a, b| a.function == b.function) {
                costs.pairs.push(Pair {
                    function: of_function[0].function.at(),
                    first_access: at,
                    accesses: of_function.len(),
                });
                at += of_function.len();
            }
        }
        costs.first_pair.push(costs.pairs.len());
        if costs.size() <= KEPT_NUMBERS {
            let mut rows = vec![0.0; costs.pairs.len() * nodes];
            let mut moves = vec![0.0; problem.keys.len() * nodes];
            for key in 0..problem.keys.len() {
                for pair in costs.pairs_of(key) {
                    costs.fill(key, pair, &mut rows[pair * nodes..(pair + 1) * nodes]);
                }
                costs.add_moves(key, &mut moves[key * nodes..(key + 1) * nodes]);
            }
            (costs.rows, costs.moves) = (rows, moves);
        }
        costs
    }

    /// Whether going over all rows is cheap.
    pub(super) fn are_kept(&self) -> bool {
        !self.moves.is_empty()
    }

    /// Numbers in all rows together.
    pub(super) fn size(&self) -> usize {
        (self.pairs.len() + self.problem.keys.len()) * self.nodes
    }

    /// The functions that access a key: their rows' places.
    pub(super) fn pairs_of(&self, key: usize) -> std::ops::Range<usize> {
        self.first_pair[key]..self.first_pair[key + 1]
    }

    pub(super) fn pair(&self, pair: usize) -> Pair {
        self.pairs[pair]
    }

    /// Seconds of data access that the key adds to each invocation of the function on average, by home
    /// (eq. 8, with rates in the place of probabilities). `scratch` is as long as there are nodes.
    pub(super) fn row<'s>(&'s self, key: usize, pair: usize, scratch: &'s mut [f64]) -> &'s [f64] {
        if self.are_kept() {
            return &self.rows[pair * self.nodes..(pair + 1) * self.nodes];
        }
        self.fill(key, pair, scratch);
        scratch
    }

    fn fill(&self, key: usize, pair: usize, row: &mut [f64]) {
        let bytes = self.problem.keys[key].size_bytes as f64;
        row.fill(0.0);
        for access in self.accesses(pair) {
            let share = self.share(access);
            for (cell, (latency, per_byte)) in row.iter_mut().zip(self.links(access.node)) {
                *cell += share * (latency + bytes * per_byte);
            }
        }
    }

    /// One number of a row.
    pub(super) fn seconds(&self, key: usize, pair: usize, home: NodeIndex) -> f64 {
        if self.are_kept() {
            return self.rows[pair * self.nodes + home.at()];
        }
        let bytes = self.problem.keys[key].size_bytes as f64;
        let at = |access: &Access| {
            let cell = access.node.at() * self.nodes + home.at();
            self.share(access) * (self.round_trips[cell] + bytes * self.per_byte[cell])
        };
        self.accesses(pair).iter().map(at).sum()
    }

    fn accesses(&self, pair: usize) -> &'a [Access] {
        let pair = self.pairs[pair];
        &self.problem.accesses[pair.first_access..pair.first_access + pair.accesses]
    }

    fn share(&self, access: &Access) -> f64 {
        let rate = self.problem.invocation_rates[access.function.at()];
        if rate > 0.0 { access.rate / rate } else { 0.0 }
    }

    /// Latency there and back and seconds per byte from a node to each home.
    fn links(&self, node: NodeIndex) -> impl Iterator<Item = (&f64, &f64)> {
        let row = node.at() * self.nodes..(node.at() + 1) * self.nodes;
        self.round_trips[row.clone()]
            .iter()
            .zip(&self.per_byte[row])
    }

    /// What moving a key to each home costs: its time as a part of the longest move that it could
    /// make (eqs. 9 and 17), weighted; infinite where it may not be. A key that has to leave its home
    /// moves at no cost.
    pub(super) fn moves(&self, key: usize, cost: &mut [f64]) {
        if self.are_kept() {
            cost.copy_from_slice(&self.moves[key * self.nodes..(key + 1) * self.nodes]);
        } else {
            cost.fill(0.0);
            self.add_moves(key, cost);
        }
    }

    fn add_moves(&self, key: usize, cost: &mut [f64]) {
        let value = &self.problem.keys[key];
        let bytes = value.size_bytes as f64;
        let longest = self.longest_moves.seconds(bytes);
        if self.problem.may_host[value.home.at()] && longest > 0.0 {
            let weight = self.problem.move_weight / longest;
            for (cell, (latency, per_byte)) in cost.iter_mut().zip(self.links(value.home)) {
                *cell += weight * (latency + bytes * per_byte);
            }
        }
        for node in &self.barred {
            cost[*node] = f64::INFINITY;
        }
    }

    /// Seconds that moving a key takes (eq. 9); none if it has to move.
    pub(super) fn move_seconds(&self, key: usize, home: NodeIndex) -> f64 {
        let value = &self.problem.keys[key];
        if home == value.home || !self.problem.may_host[value.home.at()] {
            return 0.0;
        }
        self.problem
            .network
            .access(value.home, home, value.size_bytes as f64)
    }

    /// Mean data access time of an invocation of each function, in seconds.
    pub(super) fn data_seconds(&self, homes: &[NodeIndex]) -> Vec<f64> {
        let mut seconds = vec![0.0; self.problem.functions.len()];
        for (key, home) in homes.iter().enumerate() {
            for pair in self.pairs_of(key) {
                seconds[self.pairs[pair].function] += self.seconds(key, pair, *home);
            }
        }
        seconds
    }

    /// Penalties and moves of a placement, weighted (eqs. 13 to 17): a function's excess is how much
    /// its mean data access time in all is over its SLO.
    pub(super) fn objective(&self, homes: &[NodeIndex]) -> f64 {
        let problem = self.problem;
        let seconds = self.data_seconds(homes);
        let mut moves = 0.0;
        for (key, home) in homes.iter().enumerate() {
            let longest = self
                .longest_moves
                .seconds(problem.keys[key].size_bytes as f64);
            if longest > 0.0 {
                moves += self.move_seconds(key, *home) / longest;
            }
        }
        let penalties: f64 = problem
            .functions
            .iter()
            .zip(&seconds)
            .map(|(function, seconds)| super::penalty(function, *seconds))
            .sum();
        problem.penalty_weight * penalties + problem.move_weight * moves
    }
}

/// The longest move that a key of a given size could make, between any two nodes.
#[derive(Debug, Clone)]
struct LongestMoves(
    /// Latency there and back, and seconds per byte; no other pair of nodes is longer in both.
    Vec<(f64, f64)>,
);

impl LongestMoves {
    fn of(problem: &Problem<'_>) -> Self {
        let network = problem.network;
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
