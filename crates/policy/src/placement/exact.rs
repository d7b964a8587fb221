//! The optimum, by a solver for mixed integer programs: an oracle for small problems.
//!
//! Equations 8 to 25 with the auxiliary variables that a program does not need left out: whether a key
//! moves from `i` to `j` follows from where it is (eqs. 10 to 12 have a constant on one side), and the
//! slack `z` of eq. 13 from the excess being no less than 0.

#[cfg(feature = "highs")]
mod highs;
mod microlp;

use super::costs::Costs;
use super::{Placement, Problem};
use crate::view::NodeIndex;

/// Which solver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// microlp, pure Rust: up to some thousands of variables.
    Microlp,
    /// HiGHS, C++: larger ones.
    #[cfg(feature = "highs")]
    Highs,
}

/// When a solver may stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Seconds of the wall clock.
    pub seconds: f64,
    /// Relative distance to the bound that is near enough.
    pub gap: f64,
}

/// The best placement that the solver found.
#[derive(Debug, Clone, PartialEq)]
pub struct Exact {
    /// The placement.
    pub placement: Placement,
    /// What it costs.
    pub objective: f64,
    /// No placement costs less.
    pub bound: f64,
}

/// Why there is no placement.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The storage does not suffice.
    #[error("no placement fits into the storage")]
    Infeasible,
    /// Time was up before a placement was found.
    #[error("no placement was found in {0} s")]
    TimeUp(f64),
    /// The solver failed.
    #[error("the solver failed: {0}")]
    Solver(String),
}

/// The cheapest placement. Keys that nobody accesses stay, unless they have to leave. The horizon is
/// not asked for.
///
/// # Errors
/// When there is no placement, or the solver finds none in time.
pub fn place(problem: &Problem<'_>, solver: Solver, limits: &Limits) -> Result<Exact, Error> {
    let model = Model::new(problem);
    let (chosen, bound) = match solver {
        Solver::Microlp => microlp::solve(&model, limits)?,
        #[cfg(feature = "highs")]
        Solver::Highs => highs::solve(&model, limits)?,
    };
    let mut placement = Placement::unchanged(problem.keys);
    for (column, value) in model.choices.iter().zip(chosen) {
        if value > 0.5 {
            placement.homes[column.key] = column.home;
        }
    }
    let objective = problem.objective(&placement);
    Ok(Exact {
        placement,
        objective,
        bound: bound.min(objective),
    })
}

/// A mixed integer program: the cheapest choice of one home for each key.
struct Model {
    /// Whether a key is on a node: 0 or 1.
    choices: Vec<Choice>,
    /// Choices of each key: exactly one is taken.
    keys: Vec<std::ops::Range<usize>>,
    /// For each function with an SLO: what a second of excess costs, the SLO in seconds, and what each
    /// choice adds to its data access time.
    functions: Vec<(f64, f64, Terms)>,
    /// For each node whose storage matters: bytes, and what each choice takes of it.
    nodes: Vec<(f64, Terms)>,
}

/// Choices and what each counts.
type Terms = Vec<(usize, f64)>;

struct Choice {
    key: usize,
    home: NodeIndex,
    cost: f64,
}

impl Model {
    fn new(problem: &Problem<'_>) -> Self {
        let costs = Costs::new(problem);
        let mut model = Self {
            choices: Vec::new(),
            keys: Vec::new(),
            functions: Vec::new(),
            nodes: Vec::new(),
        };
        let mut of_function = vec![Vec::new(); problem.functions.len()];
        let mut of_node = vec![Vec::new(); costs.nodes];
        let mut room: Vec<f64> = problem
            .storage_bytes
            .iter()
            .map(|bytes| *bytes as f64)
            .collect();
        let mut moves = vec![0.0; costs.nodes];
        let mut scratch = vec![0.0; costs.nodes];
        for (key, value) in problem.keys.iter().enumerate() {
            let bytes = value.size_bytes as f64;
            let pairs = costs.pairs_of(key);
            if pairs.is_empty() && problem.may_host[value.home.at()] {
                room[value.home.at()] -= bytes;
                continue;
            }
            let first = model.choices.len();
            costs.moves(key, &mut moves);
            for home in (0..costs.nodes).filter(|home| problem.may_host[*home]) {
                of_node[home].push((model.choices.len(), bytes));
                model.choices.push(Choice {
                    key,
                    home: NodeIndex::from(home),
                    cost: moves[home],
                });
            }
            for pair in pairs {
                let row = costs.row(key, pair, &mut scratch);
                let column = (first..).zip(&model.choices[first..]);
                of_function[costs.pair(pair).function]
                    .extend(column.map(|(at, choice)| (at, row[choice.home.at()])));
            }
            model.keys.push(first..model.choices.len());
        }
        for (function, terms) in problem.functions.iter().zip(of_function) {
            let price = problem.penalty_weight * function.slo.penalty_per_second;
            let limit = function.slo.max_data_access_seconds;
            if price > 0.0 && limit.is_finite() && !terms.is_empty() {
                model.functions.push((price, limit, terms));
            }
        }
        for (room, terms) in room.into_iter().zip(of_node) {
            let asked: f64 = terms.iter().map(|(_, bytes)| bytes).sum();
            if asked > room {
                model.nodes.push((room, terms));
            }
        }
        model
    }
}
