//! The policy beside what users choose between today.

use super::world::{Calls, Outcome, Strategy, World};
use super::{Settings, Words};
use crate::report::{Finding, QuantileRow, ResultRow, Table};
use crate::stats::{Summary, quantile};
use crate::{Error, Report, Run};

const STRATEGIES: [(Strategy, &str); 3] = [
    (Strategy::Remote, "always remote-state"),
    (Strategy::Pinned, "pinned local-state"),
    (Strategy::Policy, "policy"),
];

/// Name, unit, and the value of a run.
type Metric = (&'static str, &'static str, fn(&Settings, &Outcome) -> f64);

const METRICS: [Metric; 8] = [
    ("calm_slo", "percent", |_, run| kept(&run.calm)),
    ("calm_latency", "s", |_, run| mean(&run.calm)),
    ("strict_slo", "percent", |_, run| kept(&run.strict)),
    ("strict_latency", "s", |_, run| mean(&run.strict)),
    ("dedicated", "containers", |settings, run| {
        run.dedicated_seconds / settings.seconds
    }),
    ("store_traffic", "MB/s", |settings, run| {
        run.store_bytes / 1e6 / settings.seconds
    }),
    ("transitions", "count", |_, run| f64::from(run.transitions)),
    ("migrations", "count", |_, run| f64::from(run.migrations)),
];

fn kept(calls: &Calls) -> f64 {
    100.0 * calls.within_slo as f64 / calls.calls.max(1) as f64
}

fn mean(calls: &Calls) -> f64 {
    calls.latencies.iter().copied().collect::<Summary>().mean()
}

pub(super) fn run(settings: &Settings, words: Words, run: &Run) -> Result<Report, Error> {
    let replications = run.replications.unwrap_or(settings.replications).max(1) as usize;
    let outcomes = run.replicate(STRATEGIES.len() * replications, |job| {
        let (strategy, _) = STRATEGIES[job / replications];
        let replication = (job % replications) as u64;
        Ok(World::new(settings, strategy, run.seed, replication).run())
    })?;
    let mut report = Report::default();
    let heads = METRICS.map(|(metric, unit, _)| format!("{} ({unit})", words.of(metric)));
    let mut table = Table {
        title: "Sessions within their SLO, and what it takes".into(),
        columns: std::iter::once("strategy".to_owned())
            .chain(heads)
            .collect(),
        rows: Vec::new(),
    };
    let mut means = Vec::new();
    for ((_, name), outcomes) in STRATEGIES.iter().zip(outcomes.chunks(replications)) {
        let config = vec![("strategy", (*name).to_owned())];
        let mut row = vec![(*name).to_owned()];
        let mut of_strategy = Vec::new();
        for (metric, unit, value) in METRICS {
            let summary: Summary = outcomes.iter().map(|run| value(settings, run)).collect();
            row.push(format!("{:.4}", summary.mean()));
            of_strategy.push(summary.mean());
            report.results.push(ResultRow {
                config: config.clone(),
                metric,
                unit,
                mean: summary.mean(),
                ci95: summary.ci95(),
                n: summary.n(),
            });
        }
        table.rows.push(row);
        means.push(of_strategy);
        for (metric, calls) in [
            ("calm_latency", (|run| &run.calm) as fn(&Outcome) -> &Calls),
            ("strict_latency", |run| &run.strict),
        ] {
            for share in [0.5, 0.95, 0.99] {
                let values = outcomes.iter().map(calls).filter(|calls| calls.calls > 0);
                let values: Summary = values
                    .map(|calls| quantile(&calls.latencies, share))
                    .collect();
                report.quantiles.push(QuantileRow {
                    config: config.clone(),
                    metric,
                    unit: "s",
                    quantile: share,
                    value: values.mean(),
                    n: values.n(),
                });
            }
        }
    }
    report.tables.push(table);
    report.findings = findings(words, &means);
    Ok(report)
}

impl Words {
    /// A metric in the words of the use case.
    fn of(self, metric: &str) -> String {
        let text = metric
            .replace("calm", self.calm)
            .replace("strict", self.strict);
        text.replace('_', " ").replace(" slo", " within SLO")
    }
}

fn findings(words: Words, means: &[Vec<f64>]) -> Vec<Finding> {
    let at = |metric: &str| {
        METRICS
            .iter()
            .position(|(name, ..)| *name == metric)
            .unwrap_or(0)
    };
    let [remote, pinned, policy] =
        [0, 1, 2].map(|strategy| move |metric: &str| means[strategy][at(metric)]);
    vec![
        Finding {
            claim: format!("with its state far away, {} misses its SLO", words.strict),
            holds: remote("strict_slo") < 50.0,
            evidence: format!("{:.1} % of the calls within it", remote("strict_slo")),
        },
        Finding {
            claim: format!(
                "the policy keeps the SLO of {} where neither alternative does as well",
                words.strict
            ),
            holds: policy("strict_slo") > remote("strict_slo")
                && policy("strict_slo") > pinned("strict_slo"),
            evidence: format!(
                "{:.1} %; always remote-state {:.1} %, pinned {:.1} %",
                policy("strict_slo"),
                remote("strict_slo"),
                pinned("strict_slo")
            ),
        },
        Finding {
            claim: format!("and that of {} is kept as well", words.calm),
            holds: policy("calm_slo") > 99.0,
            evidence: format!("{:.2} % of the calls within it", policy("calm_slo")),
        },
        Finding {
            claim: "it needs far fewer containers for single sessions than pinning".into(),
            holds: policy("dedicated") < 0.5 * pinned("dedicated"),
            evidence: format!(
                "{:.1} on average, pinned {:.1}",
                policy("dedicated"),
                pinned("dedicated")
            ),
        },
        Finding {
            claim: "and less traffic to the store than remote-state".into(),
            holds: policy("store_traffic") < remote("store_traffic"),
            evidence: format!(
                "{:.2} MB/s, always remote-state {:.2} MB/s",
                policy("store_traffic"),
                remote("store_traffic")
            ),
        },
    ]
}
