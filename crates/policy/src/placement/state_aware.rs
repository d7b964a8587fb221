//! Penalties against moves, near the optimum in time for a live system.
//!
//! Moves that pay are made one by one until none is left ([`search`]). Where there is time for it,
//! prices on the functions' excess and on the nodes' storage then give a lower bound and other
//! placements to start from ([`prices`]), and several moves pay where single ones do not ([`exchange`],
//! [`assign`]). Problems of a thousand nodes get the single moves and a bound.

mod assign;
mod exchange;
mod prices;
mod search;
mod settle;

pub use super::Infeasible;
use super::costs::Costs;
use super::{Placement, Problem};
use prices::Prices;
use search::Search;

/// A placement and how good it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// The placement.
    pub placement: Placement,
    /// What it costs.
    pub objective: f64,
    /// No placement costs less (the Lagrangian dual's value at the best prices found).
    pub bound: f64,
}

impl Placed {
    /// How much of the cost might be spared at most, from 0 to 1.
    pub fn gap(&self) -> f64 {
        match self.objective > 0.0 {
            true => ((self.objective - self.bound) / self.objective).clamp(0.0, 1.0),
            false => 0.0,
        }
    }
}

/// A placement within the storage. Keys that nobody accesses stay, unless they have to leave.
///
/// # Errors
/// When the keys that have to leave their node fit nowhere.
pub fn place(problem: &Problem<'_>) -> Result<Placed, Infeasible> {
    let costs = Costs::new(problem);
    let mut search = Search::new(&costs, Placement::unchanged(problem.keys));
    search.settle()?;
    search.improve();
    let mut starts = Starts::new(&costs, search.placement);
    let mut prices = Prices::new(&costs, &starts.best().placement);
    let mut bound = prices.bound();
    if costs.are_kept() {
        for round in 1..=prices.rounds() {
            let least = starts.best().objective;
            if least - bound <= CLOSE * least {
                break;
            }
            let (lower, placement) = prices.step(least);
            bound = bound.max(lower);
            let every = if prices.have_storage() {
                STARTS_EVERY
            } else {
                2 * STARTS_EVERY
            };
            if round % every == 0 {
                let mut search = Search::new(&costs, placement);
                // Rounding may leave no room; then this start is none.
                if search.settle().is_ok() {
                    search.improve();
                    starts.add(search.placement);
                }
            }
        }
        let starting = if prices.have_storage() { STARTS } else { 1 };
        starts.exchange(bound, starting, &prices.of_functions());
    }
    let best = starts.best();
    Ok(Placed {
        placement: best.placement.clone(),
        objective: best.objective,
        bound: bound.min(best.objective),
    })
}

/// The best placements so far, the cheapest first.
struct Starts<'a> {
    costs: &'a Costs<'a>,
    placements: Vec<Start>,
}

struct Start {
    placement: Placement,
    objective: f64,
}

impl<'a> Starts<'a> {
    fn new(costs: &'a Costs<'a>, placement: Placement) -> Self {
        let objective = costs.objective(&placement.homes);
        Self {
            costs,
            placements: vec![Start {
                placement,
                objective,
            }],
        }
    }

    fn best(&self) -> &Start {
        // There is one from the beginning.
        &self.placements[0]
    }

    /// Keeps it if it is among the best and not as good as one that is there: what is no better moves
    /// nothing.
    fn add(&mut self, placement: Placement) {
        let objective = self.costs.objective(&placement.homes);
        let is_known = |start: &Start| (start.objective - objective).abs() <= CLOSE * objective;
        if !self.placements.iter().any(is_known) {
            let at = self
                .placements
                .partition_point(|start| start.objective < objective);
            self.placements.insert(
                at,
                Start {
                    placement,
                    objective,
                },
            );
            self.placements.truncate(STARTS);
        }
    }

    /// Goes on from each with moves that pay only together, until one is as good as the bound.
    /// `prices` are what a second of each function's excess costs in the dual.
    fn exchange(&mut self, bound: f64, starts: usize, prices: &[f64]) {
        let mut from = std::mem::take(&mut self.placements);
        from.truncate(starts);
        for start in from {
            if let Some(best) = self.placements.first()
                && best.objective - bound <= CLOSE * best.objective
            {
                break;
            }
            let mut search = Search::new(self.costs, start.placement);
            search.reassign(prices);
            search.exchange();
            search.reassign(prices);
            self.add(search.placement);
        }
    }
}

/// Costs that differ by this part of them are equal.
const CLOSE: f64 = 1e-6;
/// Every so many changes of the prices, their placement is tried as a start.
const STARTS_EVERY: usize = 4;
/// So many of the best starts are gone on from.
const STARTS: usize = 4;

#[cfg(test)]
mod tests;
