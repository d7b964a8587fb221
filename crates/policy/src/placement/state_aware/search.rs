//! Moves that pay, made until none is left.
//!
//! With the excess of a function taken over all its keys, keys act on each other through few sums, one
//! for each function; a move's gain is found from the key's own accesses alone.

use super::super::costs::Costs;
use super::super::{Placement, penalty};
use crate::view::NodeIndex;

/// Weight of the access time itself, in objective per second: between placements of equal cost the
/// nearer one is taken.
const NEARER: f64 = 1e-6;
/// Rounds over all keys; each makes the objective smaller, and a handful is enough.
const ROUNDS: usize = 50;
/// Rounds before it may stop short of where no move pays.
const FEWEST_ROUNDS: usize = 12;
const FEWEST_ROUNDS_OF_MANY: usize = 2;
/// Rounds end when one gains less than this part of what the first did.
const SETTLED: f64 = 1e-3;
/// Bytes on one node beyond which nobody counts (1 EiB).
const MOST_ROOM: u64 = 1 << 60;
/// Least gain that is worth a move: below it is rounding.
pub(super) const LEAST_GAIN: f64 = 1e-12;

pub(super) struct Search<'a> {
    pub(super) costs: &'a Costs<'a>,
    pub(super) placement: Placement,
    /// Mean data access time of each function now.
    pub(super) seconds: Vec<f64>,
    /// Changes of what each function's keys can gain; a key is looked at again only after one.
    changes: Vec<u64>,
    /// Sum of the changes when each key was looked at last.
    looked_at: Vec<Option<u64>>,
    /// Whether it would rather have been where there was no room.
    denied: Vec<bool>,
    /// Bytes left on each node, and how often some were freed.
    pub(super) spare: Vec<i64>,
    freed: u64,
    /// By home, for the key that was weighed last.
    pub(super) cost: Vec<f64>,
    /// The same: seconds of access in a second, where a horizon asks for them.
    access: Vec<f64>,
    scratch: Vec<f64>,
}

impl<'a> Search<'a> {
    pub(super) fn new(costs: &'a Costs<'a>, placement: Placement) -> Self {
        let problem = costs.problem;
        let mut seconds = vec![0.0; problem.functions.len()];
        let mut spare: Vec<i64> = problem
            .storage_bytes
            .iter()
            .map(|bytes| (*bytes).min(MOST_ROOM) as i64)
            .collect();
        for (key, home) in placement.homes.iter().enumerate() {
            spare[home.at()] -= problem.keys[key].size_bytes.min(MOST_ROOM) as i64;
            for pair in costs.pairs_of(key) {
                seconds[costs.pair(pair).function] += costs.seconds(key, pair, *home);
            }
        }
        Self {
            changes: vec![0; seconds.len()],
            looked_at: vec![None; problem.keys.len()],
            denied: vec![false; problem.keys.len()],
            seconds,
            spare,
            freed: 0,
            cost: vec![0.0; costs.nodes],
            access: vec![0.0; costs.nodes],
            scratch: vec![0.0; costs.nodes],
            placement,
            costs,
        }
    }

    pub(super) fn size(&self, key: usize) -> i64 {
        self.costs.problem.keys[key].size_bytes.min(MOST_ROOM) as i64
    }

    /// Whether a key may move: somebody accesses it, or it has to leave.
    pub(super) fn is_free(&self, key: usize) -> bool {
        let problem = self.costs.problem;
        let has_to_leave = || !problem.may_host[problem.keys[key].home.at()];
        !self.costs.pairs_of(key).is_empty() || has_to_leave()
    }

    /// Makes every move that pays.
    pub(super) fn improve(&mut self) {
        let fewest = match self.costs.are_kept() {
            true => FEWEST_ROUNDS,
            false => FEWEST_ROUNDS_OF_MANY,
        };
        let mut first = None;
        for round in 0..ROUNDS {
            let gained = self.improve_once();
            let settled = gained <= SETTLED * *first.get_or_insert(gained);
            if gained == 0.0 || (settled && round >= fewest) {
                break;
            }
        }
    }

    /// One round over all keys; what it gained.
    fn improve_once(&mut self) -> f64 {
        let mut gained = 0.0;
        for key in 0..self.placement.homes.len() {
            let pairs = self.costs.pairs_of(key);
            if pairs.is_empty() {
                continue;
            }
            let changes = pairs.map(|pair| self.changes[self.costs.pair(pair).function]);
            // Room matters to those only who wanted more than there was.
            let freed = if self.denied[key] { self.freed } else { 0 };
            let state = Some(freed + changes.sum::<u64>());
            if self.looked_at[key] == state {
                continue;
            }
            self.weigh(key);
            let now = self.placement.homes[key];
            let Some((home, gain)) = self.cheapest(key, None) else {
                continue;
            };
            let least = self.cost.iter().copied().fold(f64::INFINITY, f64::min);
            let is_denied = least < self.cost[home.at()];
            self.looked_at[key] = match is_denied == self.denied[key] {
                true => state,
                false => None,
            };
            self.denied[key] = is_denied;
            if home != now && gain > LEAST_GAIN {
                self.relocate(key, home);
                gained += gain;
            }
        }
        gained
    }

    /// Fills `cost`: what the key costs on each home with the others where they are, room aside;
    /// infinite where it may not be.
    pub(super) fn weigh(&mut self, key: usize) {
        let (costs, problem) = (self.costs, self.costs.problem);
        let now = self.placement.homes[key];
        let has_horizon = problem.horizon_seconds.is_finite();
        costs.moves(key, &mut self.cost);
        if has_horizon {
            self.access.fill(0.0);
        }
        for pair in costs.pairs_of(key) {
            let row = costs.row(key, pair, &mut self.scratch);
            let at = costs.pair(pair).function;
            let rate = problem.invocation_rates[at];
            let function = &problem.functions[at];
            let elsewhere = self.seconds[at] - row[now.at()];
            let over = elsewhere - function.slo.max_data_access_seconds;
            let weight = problem.penalty_weight * function.slo.penalty_per_second;
            let nearer = NEARER * rate;
            for (cost, seconds) in self.cost.iter_mut().zip(row) {
                *cost += weight * (over + seconds).max(0.0) + nearer * seconds;
            }
            if has_horizon {
                for (access, seconds) in self.access.iter_mut().zip(row) {
                    *access += rate * seconds;
                }
            }
        }
        if has_horizon {
            self.bar_what_does_not_pay(key);
        }
    }

    /// Homes whose nearness does not make up for the move within the horizon.
    fn bar_what_does_not_pay(&mut self, key: usize) {
        let home = self.costs.problem.keys[key].home;
        for node in (0..self.cost.len()).map(NodeIndex::from) {
            let saved = self.access[home.at()] - self.access[node.at()];
            let needed = self.costs.move_seconds(key, node);
            let pays = needed == 0.0 || saved * self.costs.problem.horizon_seconds >= needed;
            if !pays {
                self.cost[node.at()] = f64::INFINITY;
            }
        }
    }

    /// The best home of a key but one that has room, with the others where they are, and what it gains
    /// over where it is.
    pub(super) fn best_elsewhere(
        &mut self,
        key: usize,
        without: NodeIndex,
    ) -> Option<(NodeIndex, f64)> {
        self.weigh(key);
        self.cheapest(key, Some(without))
    }

    /// Of equals the key's own home, else the first.
    fn cheapest(&self, key: usize, without: Option<NodeIndex>) -> Option<(NodeIndex, f64)> {
        let (size, now) = (self.size(key), self.placement.homes[key]);
        let stays = self.cost[now.at()];
        let without = without.map_or(usize::MAX, NodeIndex::at);
        let mut best = (usize::MAX, f64::INFINITY);
        if without != now.at() && stays.is_finite() {
            best = (now.at(), stays);
        }
        for (home, (cost, spare)) in self.cost.iter().zip(&self.spare).enumerate() {
            if *cost < best.1 && *spare >= size && home != without {
                best = (home, *cost);
            }
        }
        let stays = if stays.is_finite() { stays } else { f64::MAX };
        (best.0 != usize::MAX).then(|| (NodeIndex::from(best.0), stays - best.1))
    }

    pub(super) fn relocate(&mut self, key: usize, home: NodeIndex) {
        let problem = self.costs.problem;
        let now = self.placement.homes[key];
        for pair in self.costs.pairs_of(key) {
            let at = self.costs.pair(pair).function;
            let change = self.costs.seconds(key, pair, home) - self.costs.seconds(key, pair, now);
            let function = &problem.functions[at];
            // Well within its SLO before and after, a function's other keys gain what they did.
            if penalty(function, self.seconds[at].max(self.seconds[at] + change)) > 0.0 {
                self.changes[at] += 1;
            }
            self.seconds[at] += change;
        }
        self.freed += 1;
        let size = self.size(key);
        self.spare[now.at()] += size;
        self.spare[home.at()] -= size;
        self.placement.homes[key] = home;
    }
}
