//! Many keys change places at once: the cheapest assignment of keys to the places that keys have now.
//!
//! With the price of each function's excess taken as it is, places cost what they cost whoever else
//! moves, and the best permutation is an assignment problem (Hungarian method, in the form with
//! potentials). Where nodes are full and keys large, single moves and short chains do not get there.

use super::search::{LEAST_GAIN, Search};
use crate::view::NodeIndex;

/// Keys at most: the time grows with their number's cube.
const MOST_KEYS: usize = 160;

impl Search<'_> {
    /// Puts keys where the cheapest assignment has them, as long as that ends in something better.
    /// `prices` are what a second of each function's excess costs in the dual: a function that is near
    /// its limit counts in part.
    pub(super) fn reassign(&mut self, prices: &[f64]) {
        let as_it_is: Vec<f64> = self
            .costs
            .problem
            .functions
            .iter()
            .zip(&self.seconds)
            .map(|(function, seconds)| {
                let is_over = super::super::penalty(function, *seconds) > 0.0;
                let price = self.costs.problem.penalty_weight * function.slo.penalty_per_second;
                if is_over { price } else { 0.0 }
            })
            .collect();
        self.reassign_at(&as_it_is);
        self.reassign_at(prices);
    }

    fn reassign_at(&mut self, slopes: &[f64]) {
        let keys: Vec<usize> = (0..self.placement.homes.len())
            .filter(|key| self.is_free(*key))
            .collect();
        if keys.len() > MOST_KEYS {
            return;
        }
        let mut least = self.costs.objective(&self.placement.homes);
        loop {
            let Some(homes) = self.assignment(&keys, slopes) else {
                return;
            };
            let mut placement = self.placement.clone();
            for (key, home) in keys.iter().zip(homes) {
                placement.homes[*key] = home;
            }
            // Places are counted as if no other key on the node took more: repaired where that fails.
            let mut other = Search::new(self.costs, placement);
            if other.settle().is_err() {
                return;
            }
            other.improve();
            let cost = self.costs.objective(&other.placement.homes);
            if cost >= least - LEAST_GAIN {
                return;
            }
            least = cost;
            *self = other;
        }
    }

    /// A home for each key; none if there is no assignment.
    fn assignment(&mut self, keys: &[usize], slopes: &[f64]) -> Option<Vec<NodeIndex>> {
        let problem = self.costs.problem;
        // The place that each key leaves, and what is spare on each node.
        let mut places: Vec<(NodeIndex, i64)> = Vec::new();
        for key in keys {
            let home = self.placement.homes[*key];
            if problem.may_host[home.at()] {
                places.push((home, self.size(*key) + self.spare[home.at()].max(0)));
            }
        }
        for (node, spare) in self.spare.iter().enumerate() {
            if problem.may_host[node] && *spare > 0 {
                places.push((NodeIndex::from(node), *spare));
            }
        }
        if places.len() < keys.len() {
            return None;
        }
        let mut cost = Vec::with_capacity(keys.len() * places.len());
        let mut row = vec![0.0; self.costs.nodes];
        let mut scratch = vec![0.0; self.costs.nodes];
        for key in keys {
            self.costs.moves(*key, &mut row);
            for pair in self.costs.pairs_of(*key) {
                let slope = slopes[self.costs.pair(pair).function];
                if slope > 0.0 {
                    let seconds = self.costs.row(*key, pair, &mut scratch);
                    for (cell, seconds) in row.iter_mut().zip(seconds) {
                        *cell += slope * seconds;
                    }
                }
            }
            let size = self.size(*key);
            cost.extend(places.iter().map(|(node, room)| match *room >= size {
                true => row[node.at()],
                false => f64::INFINITY,
            }));
        }
        let chosen = cheapest(keys.len(), places.len(), &cost)?;
        Some(chosen.into_iter().map(|place| places[place].0).collect())
    }
}

/// A different column for each row, so that the sum of `cost[row * columns + column]` is least; none
/// if there is none of finite cost. There are at least as many columns as rows.
fn cheapest(rows: usize, columns: usize, cost: &[f64]) -> Option<Vec<usize>> {
    // Column 0 and row 0 stand for none.
    let mut of_rows = vec![0.0; rows + 1];
    let mut of_columns = vec![0.0; columns + 1];
    let mut row_of = vec![0; columns + 1];
    for row in 1..=rows {
        let mut least = vec![f64::INFINITY; columns + 1];
        let mut came_from = vec![0; columns + 1];
        let mut is_used = vec![false; columns + 1];
        row_of[0] = row;
        let mut column = 0;
        // The shortest way from the row to a column that is free.
        while row_of[column] != 0 {
            is_used[column] = true;
            let at = row_of[column];
            let costs = &cost[(at - 1) * columns..at * columns];
            let (mut step, mut next) = (f64::INFINITY, 0);
            for other in 1..=columns {
                if is_used[other] {
                    continue;
                }
                let reduced = costs[other - 1] - of_rows[at] - of_columns[other];
                if reduced < least[other] {
                    (least[other], came_from[other]) = (reduced, column);
                }
                if least[other] < step {
                    (step, next) = (least[other], other);
                }
            }
            if step.is_infinite() {
                return None;
            }
            for other in 0..=columns {
                if is_used[other] {
                    of_rows[row_of[other]] += step;
                    of_columns[other] -= step;
                } else {
                    least[other] -= step;
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[came_from[column]];
            column = came_from[column];
        }
    }
    let mut chosen = vec![0; rows];
    for (column, row) in row_of.iter().enumerate().skip(1) {
        if *row != 0 {
            chosen[row - 1] = column - 1;
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The least sum, by trying everything.
    fn least(rows: usize, columns: usize, cost: &[f64], row: usize, used: &mut Vec<bool>) -> f64 {
        if row == rows {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for column in 0..columns {
            if !used[column] {
                used[column] = true;
                let rest = least(rows, columns, cost, row + 1, used);
                best = best.min(cost[row * columns + column] + rest);
                used[column] = false;
            }
        }
        best
    }

    #[test]
    fn what_cannot_be_assigned_is_said() {
        let none = [1.0, f64::INFINITY, 2.0, f64::INFINITY];
        assert_eq!(cheapest(2, 2, &none), None);
        assert_eq!(cheapest(1, 2, &[3.0, 2.0]), Some(vec![1]));
    }

    proptest! {
        #[test]
        fn no_assignment_is_cheaper(
            rows in 1_usize..5, more in 0_usize..3, cost in prop::collection::vec(0.0_f64..9.0, 35),
        ) {
            let columns = rows + more;
            let chosen = cheapest(rows, columns, &cost).unwrap();
            let sum: f64 = chosen.iter().enumerate().map(|(row, at)| cost[row * columns + at]).sum();
            let expected = least(rows, columns, &cost, 0, &mut vec![false; columns]);
            prop_assert!((sum - expected).abs() < 1e-9, "{sum} {expected}");
            let different: std::collections::BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!(different.len(), rows);
        }
    }
}
