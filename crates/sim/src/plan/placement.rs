//! Where keys should live, what that costs, and how much better it could be at most.

mod view;

use fulmar_policy::placement::exact::{self, Limits, Solver};
use fulmar_policy::placement::state_aware;
use fulmar_policy::placement::{Placement, Problem};
use serde::Deserialize;
use view::View;

use crate::report::{Finding, ResultRow, Table};
use crate::{Error, Report, Run, Scenario};

/// See [`Settings`].
pub struct PlacementPlan;

/// What can be set; the file says what each is.
#[allow(missing_docs)]
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub penalty_weight: f64,
    pub move_weight: f64,
    pub horizon_seconds: f64,
    pub exact_seconds: f64,
    pub nodes: Vec<Node>,
    pub links: Vec<Link>,
    pub functions: Vec<Function>,
    pub keys: Vec<Key>,
    pub accesses: Vec<Access>,
}

/// A machine.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: String,
    pub storage_bytes: u64,
    /// Whether it may be given keys; without it, it may.
    #[serde(default = "yes")]
    pub may_host: bool,
}

fn yes() -> bool {
    true
}

/// A link, both ways.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub between: [String; 2],
    pub latency_seconds: f64,
    pub mbps: f64,
}

/// A function with an SLO.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Function {
    pub name: String,
    pub invocations_per_second: f64,
    pub max_data_access_seconds: f64,
    pub penalty_per_second: f64,
}

/// A key and where it is now.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub name: String,
    pub size_bytes: u64,
    pub home: String,
}

/// Who accesses what, from where, how often.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Access {
    pub function: String,
    pub key: String,
    pub node: String,
    pub per_second: f64,
}

impl Scenario for PlacementPlan {
    type Settings = Settings;
    const NAME: &'static str = "plan placement";
    const SUMMARY: &'static str = "where keys should live";
    const FILE: &'static str = include_str!("../../plans/placement.toml");

    fn run(settings: &Settings, _: &Run) -> Result<Report, Error> {
        let view = View::new(settings)?;
        let problem = view.problem(settings);
        let name = |node: fulmar_policy::NodeIndex| settings.nodes[node.at()].name.clone();
        let placed = state_aware::place(&problem)
            .map_err(|infeasible| Error::invalid(infeasible.describe(name)))?;
        let before = Placement::unchanged(problem.keys);
        let mut report = Report::default();
        report
            .tables
            .push(moves(settings, &problem, &placed.placement));
        report
            .tables
            .push(functions(settings, &problem, &before, &placed.placement));
        let cost = problem.objective(&before);
        for (metric, mean) in [
            ("objective_before", cost),
            ("objective", placed.objective),
            ("lower_bound", placed.bound),
        ] {
            report.results.push(ResultRow {
                config: Vec::new(),
                metric,
                unit: "weighted",
                mean,
                ci95: None,
                n: 1,
            });
        }
        let moved = placed.placement.moves(problem.keys).count();
        report.findings.push(Finding {
            claim: format!("move {moved} of {} keys", problem.keys.len()),
            holds: true,
            evidence: format!(
                "cost {cost:.4} -> {:.4}; no placement costs less than {:.4}",
                placed.objective, placed.bound
            ),
        });
        if settings.exact_seconds > 0.0 {
            let limits = Limits {
                seconds: settings.exact_seconds,
                gap: 0.0,
            };
            let optimum = exact::place(&problem, Solver::Microlp, &limits)
                .map_err(|error| Error::invalid(error.to_string()))?;
            report.findings.push(Finding {
                claim: "as good as what the solver found".into(),
                holds: placed.objective <= optimum.objective * 1.01 + 1e-9,
                evidence: format!(
                    "{:.4} against {:.4}, of which it proved {:.4}",
                    placed.objective, optimum.objective, optimum.bound
                ),
            });
        }
        Ok(report)
    }
}

/// Each key that moves.
fn moves(settings: &Settings, problem: &Problem<'_>, placement: &Placement) -> Table {
    let row = |(key, home): (fulmar_policy::KeyIndex, fulmar_policy::NodeIndex)| {
        let value = &problem.keys[key.at()];
        let bytes = value.size_bytes as f64;
        vec![
            settings.keys[key.at()].name.clone(),
            value.size_bytes.to_string(),
            settings.nodes[value.home.at()].name.clone(),
            settings.nodes[home.at()].name.clone(),
            format!("{:.3}", problem.network.access(value.home, home, bytes)),
        ]
    };
    Table {
        title: "Moves".into(),
        columns: ["key", "bytes", "from", "to", "takes (s)"]
            .map(String::from)
            .to_vec(),
        rows: placement.moves(problem.keys).map(row).collect(),
    }
}

/// Each function's mean data access time, before and after.
fn functions(
    settings: &Settings,
    problem: &Problem<'_>,
    before: &Placement,
    after: &Placement,
) -> Table {
    let then = problem.data_seconds(after);
    let rows = settings
        .functions
        .iter()
        .zip(problem.data_seconds(before))
        .zip(then);
    Table {
        title: "Mean data access time of an invocation".into(),
        columns: ["function", "SLO (s)", "now (s)", "then (s)", "within"]
            .map(String::from)
            .to_vec(),
        rows: rows
            .map(|((function, now), then)| {
                let within = then <= function.max_data_access_seconds;
                vec![
                    function.name.clone(),
                    function.max_data_access_seconds.to_string(),
                    format!("{now:.4}"),
                    format!("{then:.4}"),
                    if within { "yes" } else { "NO" }.to_owned(),
                ]
            })
            .collect(),
    }
}
