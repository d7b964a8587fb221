//! The model in HiGHS' terms.

use highs::{HighsModelStatus, RowProblem, Sense};

use super::{Error, Limits, Model};

pub(super) fn solve(model: &Model, limits: &Limits) -> Result<(Vec<f64>, f64), Error> {
    let mut problem = RowProblem::default();
    let choices: Vec<_> = model
        .choices
        .iter()
        .map(|choice| problem.add_integer_column(choice.cost, 0.0..=1.0))
        .collect();
    for key in &model.keys {
        let terms: Vec<_> = choices[key.clone()].iter().map(|at| (*at, 1.0)).collect();
        problem.add_row(1.0..=1.0, terms);
    }
    for (price, limit, terms) in &model.functions {
        let excess = problem.add_column(*price, 0.0..);
        let mut terms: Vec<_> = terms.iter().map(|(at, by)| (choices[*at], *by)).collect();
        terms.push((excess, -1.0));
        problem.add_row(..=*limit, terms);
    }
    for (room, terms) in &model.nodes {
        let unit = room.max(1.0);
        let terms: Vec<_> = terms
            .iter()
            .map(|(at, by)| (choices[*at], by / unit))
            .collect();
        problem.add_row(..=room / unit, terms);
    }
    let mut program = problem.optimise(Sense::Minimise);
    program.make_quiet();
    program.set_option("time_limit", limits.seconds);
    program.set_option("mip_rel_gap", limits.gap);
    program.set_option("threads", 1);
    let solved = program.solve();
    match solved.status() {
        HighsModelStatus::Infeasible => return Err(Error::Infeasible),
        HighsModelStatus::Optimal | HighsModelStatus::ReachedTimeLimit => {}
        other => return Err(Error::Solver(format!("{other:?}"))),
    }
    let values = solved.get_solution().columns()[..choices.len()].to_vec();
    if values.iter().all(|value| *value < 0.5) {
        return Err(Error::TimeUp(limits.seconds));
    }
    let objective = solved.objective_value();
    let bound = objective - solved.mip_gap().max(0.0) * objective.abs();
    Ok((values, bound))
}
