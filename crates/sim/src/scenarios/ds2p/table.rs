//! Table 3: every row by simulation, beside what the paper has.

use super::draw::{Drawn, Replay};
use super::world::{Outcome, World};
use super::{Cell, Migration, Offloading, Popularity, Settings, Workload};
use crate::random::Random;
use crate::report::{Config, QuantileRow, ResultRow, Table};
use crate::stats::{Summary, quantile};
use crate::{Error, Report, Run};

/// Table 3 of the paper (workload W1, Zipf): T, migration, offloading; penalty (10^-1 $/request), SLO
/// violations (%), migrated MB, P50 and P95 (s).
const PAPER: [(f64, Migration, Offloading, [f64; 5]); 24] = {
    use Migration::{Greedy, None, Random, StateAware};
    use Offloading::{GreedyData, GreedyLocal, SloAware};
    [
        (
            0.1,
            None,
            GreedyLocal,
            [1.7522, 61.3518, 0.0, 0.5833, 1.6209],
        ),
        (0.1, None, GreedyData, [0.0093, 5.3667, 0.0, 0.3112, 1.0684]),
        (0.1, None, SloAware, [0.0087, 5.9523, 0.0, 0.3154, 1.0630]),
        (
            0.1,
            Random,
            GreedyLocal,
            [1.2317, 69.8047, 384.0, 0.5783, 1.4500],
        ),
        (
            0.1,
            Random,
            GreedyData,
            [0.7868, 56.0006, 388.4, 0.4748, 1.2800],
        ),
        (
            0.1,
            Random,
            SloAware,
            [0.0835, 15.0189, 345.9, 0.3461, 1.1689],
        ),
        (
            0.1,
            Greedy,
            GreedyLocal,
            [1.7504, 65.7991, 254.6, 0.6242, 1.5632],
        ),
        (
            0.1,
            Greedy,
            GreedyData,
            [0.0006, 0.2587, 204.2, 0.3194, 1.0763],
        ),
        (
            0.1,
            Greedy,
            SloAware,
            [0.0005, 0.3752, 232.6, 0.2834, 1.0426],
        ),
        (
            0.1,
            StateAware,
            GreedyLocal,
            [1.4318, 53.2727, 7.4, 0.5386, 1.5652],
        ),
        (
            0.1,
            StateAware,
            GreedyData,
            [0.0015, 0.7404, 7.4, 0.3187, 1.0765],
        ),
        (
            0.1,
            StateAware,
            SloAware,
            [0.0004, 0.5055, 8.3, 0.2900, 1.0482],
        ),
        (
            0.2,
            None,
            GreedyLocal,
            [1.5213, 47.2753, 0.0, 0.6083, 1.6715],
        ),
        (0.2, None, GreedyData, [0.0000, 0.0000, 0.0, 0.3337, 1.0918]),
        (0.2, None, SloAware, [0.0000, 0.0000, 0.0, 0.3188, 1.0754]),
        (
            0.2,
            Random,
            GreedyLocal,
            [0.7323, 46.5192, 339.1, 0.5797, 1.4774],
        ),
        (
            0.2,
            Random,
            GreedyData,
            [0.5394, 38.8161, 390.4, 0.5113, 1.3215],
        ),
        (
            0.2,
            Random,
            SloAware,
            [0.0620, 11.8700, 307.5, 0.4011, 1.2429],
        ),
        (
            0.2,
            Greedy,
            GreedyLocal,
            [1.1246, 48.9581, 206.2, 0.6159, 1.5650],
        ),
        (
            0.2,
            Greedy,
            GreedyData,
            [0.0000, 0.0000, 256.3, 0.3147, 1.0715],
        ),
        (
            0.2,
            Greedy,
            SloAware,
            [0.0122, 1.4703, 225.9, 0.2928, 1.0497],
        ),
        (
            0.2,
            StateAware,
            GreedyLocal,
            [1.0295, 40.3417, 7.4, 0.5415, 1.5803],
        ),
        (
            0.2,
            StateAware,
            GreedyData,
            [0.0000, 0.0000, 7.9, 0.3131, 1.0699],
        ),
        (
            0.2,
            StateAware,
            SloAware,
            [0.0000, 0.0000, 7.5, 0.2888, 1.0473],
        ),
    ]
};

/// Name, unit, and the value of a run.
type Metric = (&'static str, &'static str, fn(&Outcome) -> f64);

/// In the order of the paper's columns, then what it leaves out.
const METRICS: [Metric; 7] = [
    ("penalty_x10", "$/request", |run| {
        10.0 * run.excess_seconds / run.completed.max(1) as f64
    }),
    ("slo_violations", "percent", |run| {
        percent(run.violations, run.completed)
    }),
    ("migrated", "MB", |run| run.moved_bytes as f64 / 1e6),
    ("p50_response", "s", |run| share(run, 0.5)),
    ("p95_response", "s", |run| share(run, 0.95)),
    ("refused", "percent", |run| {
        percent(run.refused, run.refused + run.completed)
    }),
    ("executed_at_edge", "percent", |run| {
        percent(run.on_edge, run.completed)
    }),
];

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

fn share(run: &Outcome, share: f64) -> f64 {
    match run.response_seconds.is_empty() {
        true => 0.0,
        false => quantile(&run.response_seconds, share),
    }
}

pub(super) fn run(settings: &Settings, run: &Run) -> Result<Report, Error> {
    let mut cells = Vec::new();
    for workload in &settings.workload {
        for keys in &settings.keys {
            for t_max in &settings.t_max {
                for migration in &settings.migration {
                    cells.extend(settings.offloading.iter().map(|offloading| Cell {
                        workload: *workload,
                        keys: *keys,
                        t_max: *t_max,
                        migration: *migration,
                        offloading: *offloading,
                    }));
                }
            }
        }
    }
    let replay = match &*settings.replay {
        "" => None,
        path => Some(Replay::read(path)?),
    };
    let replications = run.replications.unwrap_or(settings.replications).max(1) as usize;
    let responses = super::world::requests(settings) * (cells.len() * replications) as f64;
    crate::memory::check("keeping the response times of all runs", 8.0 * responses)?;
    let outcomes = run.replicate(cells.len() * replications, |job| {
        let (cell, replication) = (cells[job / replications], (job % replications) as u64);
        let drawn = match &replay {
            Some(replay) => replay.find(&cell, replication as usize)?,
            // The same for all policies.
            None => {
                let mut random = Random::new(run.seed, replication);
                Drawn::new(&cell, settings, &mut random)
            }
        };
        let random = Random::new(run.seed, (1 << 32) + replication);
        World::new(settings, cell, drawn, random).run()
    })?;
    let mut report = Report::default();
    let mut table = Table {
        title: "Table 3: simulated (and as printed in the paper)".into(),
        columns: [
            "workload",
            "keys",
            "T (s)",
            "migration",
            "offloading",
            "penalty (0.1 $/req)",
            "SLO violations (%)",
            "migrated (MB)",
            "P50 (s)",
            "P95 (s)",
            "refused (%)",
        ]
        .map(String::from)
        .to_vec(),
        rows: Vec::new(),
    };
    for (cell, outcomes) in cells.iter().zip(outcomes.chunks(replications)) {
        let paper = PAPER.iter().find(|(t_max, migration, offloading, _)| {
            (t_max - cell.t_max).abs() < 1e-9
                && *migration == cell.migration
                && *offloading == cell.offloading
                && cell.workload == Workload::W1
                && cell.keys == Popularity::Zipf
        });
        let mut line: Vec<String> = cell.config().into_iter().map(|(_, value)| value).collect();
        for (at, (metric, unit, value)) in METRICS.into_iter().enumerate() {
            let summary: Summary = outcomes.iter().map(value).collect();
            report.results.push(ResultRow {
                config: cell.config(),
                metric,
                unit,
                mean: summary.mean(),
                ci95: summary.ci95(),
                n: summary.n(),
            });
            let digits = [4, 2, 1, 4, 4, 1, 1][at];
            let printed = paper.and_then(|(_, _, _, values)| values.get(at));
            if at < 6 {
                line.push(match printed {
                    Some(printed) => format!("{:.digits$} ({printed:.digits$})", summary.mean()),
                    None => format!("{:.digits$}", summary.mean()),
                });
            }
        }
        table.rows.push(line);
        for share in [0.05, 0.25, 0.5, 0.75, 0.95, 0.99] {
            let values: Summary = outcomes
                .iter()
                .filter(|outcome| !outcome.response_seconds.is_empty())
                .map(|outcome| quantile(&outcome.response_seconds, share))
                .collect();
            report.quantiles.push(QuantileRow {
                config: cell.config(),
                metric: "response",
                unit: "s",
                quantile: share,
                value: values.mean(),
                n: values.n(),
            });
        }
    }
    report.tables.push(table);
    report.notes.push(
        "refused requests count neither as violations nor in the percentiles, as in the published program".into(),
    );
    Ok(report)
}

impl Cell {
    fn config(&self) -> Config {
        vec![
            ("workload", self.workload.name().into()),
            ("keys", self.keys.name().into()),
            ("t_max", self.t_max.to_string()),
            ("migration", self.migration.name().into()),
            ("offloading", self.offloading.name().into()),
        ]
    }
}
