//! Prices on what keys share, so that each can be placed for itself.
//!
//! The Lagrangian dual of the placement: a function's excess gets a price between 0 and what it costs,
//! a byte of a node's storage gets a price from 0 on. With all prices given, each key has a cheapest
//! home, and what these cost together is a lower bound; prices follow what the placement asks for
//! too much (subgradients with Polyak's step).

use super::super::Placement;
use super::super::costs::Costs;
use crate::view::{Function, NodeIndex};

/// Changes of the prices at most, and numbers that they may look at in all.
const MOST_ROUNDS: usize = 120;
const WORK: usize = 24_000_000;
/// Without a better bound for so many rounds the steps get shorter.
const PATIENCE: usize = 4;

pub(super) struct Prices<'a> {
    costs: &'a Costs<'a>,
    /// Of each function, as a part of what its excess costs: from 0 to 1.
    excess: Vec<f64>,
    /// Of each node, for a key of mean size.
    storage: Vec<f64>,
    mean_bytes: f64,
    /// Storage without the keys that nobody accesses.
    room: Vec<f64>,
    step: f64,
    best: f64,
    since_best: usize,
    cost: Vec<f64>,
    scratch: Vec<f64>,
}

impl<'a> Prices<'a> {
    /// Prices that fit a good placement: what is over its limit costs.
    pub(super) fn new(costs: &'a Costs<'a>, placement: &Placement) -> Self {
        let problem = costs.problem;
        let mut seconds = vec![0.0; problem.functions.len()];
        let mut room: Vec<f64> = problem
            .storage_bytes
            .iter()
            .map(|bytes| *bytes as f64)
            .collect();
        for (key, home) in placement.homes.iter().enumerate() {
            let pairs = costs.pairs_of(key);
            if pairs.is_empty() && problem.may_host[problem.keys[key].home.at()] {
                room[home.at()] -= problem.keys[key].size_bytes as f64;
            }
            for pair in pairs {
                seconds[costs.pair(pair).function] += costs.seconds(key, pair, *home);
            }
        }
        let excess = seconds
            .iter()
            .zip(problem.functions)
            .map(|(seconds, function)| {
                let is_over = super::super::penalty(function, *seconds) > 0.0;
                f64::from(u8::from(is_over))
            })
            .collect();
        let bytes: f64 = problem.keys.iter().map(|key| key.size_bytes as f64).sum();
        Self {
            costs,
            excess,
            storage: vec![0.0; costs.nodes],
            mean_bytes: (bytes / problem.keys.len().max(1) as f64).max(1.0),
            room,
            step: 1.0,
            best: f64::NEG_INFINITY,
            since_best: 0,
            cost: vec![0.0; costs.nodes],
            scratch: vec![0.0; costs.nodes],
        }
    }

    /// Whether any node's storage has a price: whether room is short.
    pub(super) fn have_storage(&self) -> bool {
        self.storage.iter().any(|price| *price > 0.0)
    }

    /// What a second of each function's excess costs at these prices.
    pub(super) fn of_functions(&self) -> Vec<f64> {
        let problem = self.costs.problem;
        let weight = |function: &Function| problem.penalty_weight * function.slo.penalty_per_second;
        let functions = problem.functions.iter().map(weight);
        functions
            .zip(&self.excess)
            .map(|(weight, price)| weight * price)
            .collect()
    }

    /// How many steps there is time for.
    pub(super) fn rounds(&self) -> usize {
        (WORK / self.costs.size().max(1)).min(MOST_ROUNDS)
    }

    /// The lower bound at these prices.
    pub(super) fn bound(&mut self) -> f64 {
        self.relax(&mut |_, _| {})
    }

    /// The lower bound at these prices and the placement that they make; then changes the prices.
    /// `least` is what the best placement known costs.
    pub(super) fn step(&mut self, least: f64) -> (f64, Placement) {
        let costs = self.costs;
        let problem = costs.problem;
        let mut placement = Placement::unchanged(problem.keys);
        let bound = self.relax(&mut |key, home| placement.homes[key] = home);
        if bound > self.best {
            (self.best, self.since_best) = (bound, 0);
        } else {
            self.since_best += 1;
            if self.since_best >= PATIENCE {
                (self.step, self.since_best) = (self.step * 0.5, 0);
            }
        }
        // What the placement asks for too much, in the prices' units.
        let mut over = vec![0.0; self.excess.len()];
        let mut full: Vec<f64> = self
            .room
            .iter()
            .map(|room| -room / self.mean_bytes)
            .collect();
        for (key, home) in placement.homes.iter().enumerate() {
            let pairs = costs.pairs_of(key);
            if !pairs.is_empty() {
                full[home.at()] += problem.keys[key].size_bytes as f64 / self.mean_bytes;
            }
            for pair in pairs {
                over[costs.pair(pair).function] += costs.seconds(key, pair, *home);
            }
        }
        for (over, function) in over.iter_mut().zip(problem.functions) {
            let weight = problem.penalty_weight * function.slo.penalty_per_second;
            *over = match weight > 0.0 && function.slo.max_data_access_seconds.is_finite() {
                true => weight * (*over - function.slo.max_data_access_seconds),
                false => 0.0,
            };
        }
        // Prices at their ends do not go further.
        for (over, price) in over.iter_mut().zip(&self.excess) {
            if (*price <= 0.0 && *over < 0.0) || (*price >= 1.0 && *over > 0.0) {
                *over = 0.0;
            }
        }
        for (full, price) in full.iter_mut().zip(&self.storage) {
            if *price <= 0.0 && *full < 0.0 {
                *full = 0.0;
            }
        }
        let square: f64 = over.iter().chain(&full).map(|change| change * change).sum();
        if square > 0.0 {
            let length = self.step * (least - bound).max(0.0) / square;
            for (price, over) in self.excess.iter_mut().zip(&over) {
                *price = (*price + length * over).clamp(0.0, 1.0);
            }
            for (price, full) in self.storage.iter_mut().zip(&full) {
                *price = (*price + length * full).max(0.0);
            }
        }
        (bound, placement)
    }

    /// What all keys cost on their cheapest homes at these prices, less what the prices grant.
    fn relax(&mut self, chosen: &mut dyn FnMut(usize, NodeIndex)) -> f64 {
        let costs = self.costs;
        let problem = costs.problem;
        let mut total = 0.0;
        for key in 0..problem.keys.len() {
            let pairs = costs.pairs_of(key);
            if pairs.is_empty() {
                continue;
            }
            costs.moves(key, &mut self.cost);
            for pair in pairs {
                let at = costs.pair(pair).function;
                let function = &problem.functions[at];
                let price =
                    self.excess[at] * problem.penalty_weight * function.slo.penalty_per_second;
                if price > 0.0 {
                    let row = costs.row(key, pair, &mut self.scratch);
                    for (cost, seconds) in self.cost.iter_mut().zip(row) {
                        *cost += price * seconds;
                    }
                }
            }
            let size = problem.keys[key].size_bytes as f64 / self.mean_bytes;
            let mut least: Option<(usize, f64)> = None;
            for (home, (cost, price)) in self.cost.iter().zip(&self.storage).enumerate() {
                let cost = cost + price * size;
                if problem.may_host[home] && least.is_none_or(|(_, least)| cost < least) {
                    least = Some((home, cost));
                }
            }
            if let Some((home, cost)) = least {
                total += cost;
                chosen(key, NodeIndex::from(home));
            }
        }
        for (price, function) in self.excess.iter().zip(problem.functions) {
            if *price > 0.0 {
                total -= price
                    * problem.penalty_weight
                    * function.slo.penalty_per_second
                    * function.slo.max_data_access_seconds;
            }
        }
        for ((price, room), may_host) in self.storage.iter().zip(&self.room).zip(problem.may_host) {
            if *price > 0.0 && *may_host {
                total -= price * room / self.mean_bytes;
            }
        }
        total
    }
}
