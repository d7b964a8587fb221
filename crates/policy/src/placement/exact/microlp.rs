//! The model in microlp's terms.

use std::time::Duration;

use microlp::{ComparisonOp, OptimizationDirection, Problem, SolveOptions, Variable};

use super::{Error, Limits, Model};

pub(super) fn solve(model: &Model, limits: &Limits) -> Result<(Vec<f64>, f64), Error> {
    let mut problem = Problem::new(OptimizationDirection::Minimize);
    let choices: Vec<Variable> = model
        .choices
        .iter()
        .map(|choice| problem.add_binary_var(choice.cost))
        .collect();
    for key in &model.keys {
        let terms: Vec<(Variable, f64)> =
            choices[key.clone()].iter().map(|at| (*at, 1.0)).collect();
        problem.add_constraint(&terms, ComparisonOp::Eq, 1.0);
    }
    for (price, limit, terms) in &model.functions {
        let excess = problem.add_var(*price, (0.0, f64::INFINITY));
        let mut terms: Vec<(Variable, f64)> =
            terms.iter().map(|(at, by)| (choices[*at], *by)).collect();
        terms.push((excess, -1.0));
        problem.add_constraint(&terms, ComparisonOp::Le, *limit);
    }
    for (room, terms) in &model.nodes {
        // In parts of the node, which keeps coefficients near 1.
        let unit = room.max(1.0);
        let terms: Vec<(Variable, f64)> = terms
            .iter()
            .map(|(at, by)| (choices[*at], by / unit))
            .collect();
        problem.add_constraint(&terms, ComparisonOp::Le, room / unit);
    }
    let mut options = SolveOptions::default();
    options.time_limit = Some(Duration::from_secs_f64(limits.seconds));
    options.mip_gap = limits.gap;
    let outcome = problem.solve_with(options).map_err(|error| match error {
        microlp::Error::Infeasible => Error::Infeasible,
        other => Error::Solver(other.to_string()),
    })?;
    let Some(solution) = outcome.solution() else {
        return Err(Error::TimeUp(limits.seconds));
    };
    let bound = solution.stats().best_bound.unwrap_or(f64::NEG_INFINITY);
    let values = choices.iter().map(|at| solution.var_value(*at)).collect();
    Ok((values, bound))
}
