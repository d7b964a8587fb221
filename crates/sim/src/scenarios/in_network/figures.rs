//! Runs all configurations and fills the report: means (Fig. 4), quantiles (Fig. 5), latency by
//! length of the chain (Fig. 6).

use std::collections::BTreeMap;

use super::world::{Outcome, World};
use super::{Allocation, Model, Settings};
use crate::random::Random;
use crate::report::{Config, Plot, Point, QuantileRow, ResultRow, Series, Table};
use crate::stats::{Summary, quantile};
use crate::{Error, Report, Run};

const QUANTILES: [f64; 9] = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99];

/// Jobs that are assigned alike: only our policy looks at the execution model.
struct Group<'a> {
    jobs: u32,
    allocation: Allocation,
    models: Vec<Model>,
    /// The replications' outcomes, where the details are wanted.
    kept: Vec<Vec<Outcome>>,
    /// Means of each replication by model: traffic in MB, processing and network in ms.
    means: Vec<Vec<[f64; 3]>>,
    settings: &'a Settings,
}

pub(super) fn run(settings: &Settings, world: &World<'_>, run: &Run) -> Result<Report, Error> {
    let replications = run.replications.unwrap_or(settings.replications).max(1) as usize;
    let mut groups: Vec<Group<'_>> = Vec::new();
    for jobs in &settings.jobs {
        for allocation in &settings.allocation {
            let together: Vec<Vec<Model>> = match allocation {
                Allocation::LookAhead => settings.model.iter().map(|model| vec![*model]).collect(),
                Allocation::Load | Allocation::LoadNet => vec![settings.model.clone()],
            };
            groups.extend(together.into_iter().map(|models| Group {
                jobs: *jobs,
                allocation: *allocation,
                models,
                kept: Vec::new(),
                means: Vec::new(),
                settings,
            }));
        }
    }
    let results = run.replicate(groups.len() * replications, |at| {
        let group = &groups[at / replications];
        // The same jobs in the same order for every policy.
        let stream = 1 + (u64::from(group.jobs) << 32) + (at % replications) as u64;
        let mut random = Random::new(run.seed, stream);
        let outcomes = world.replicate(group.jobs, group.allocation, group.models[0], &mut random);
        let means: Vec<[f64; 3]> = group
            .models
            .iter()
            .map(|model| means(&outcomes, *model))
            .collect();
        let keep = group.jobs == settings.detail_jobs;
        Ok((means, if keep { outcomes } else { Vec::new() }))
    })?;
    for (at, (means, outcomes)) in results.into_iter().enumerate() {
        let group = &mut groups[at / replications];
        group.means.push(means);
        if group.jobs == settings.detail_jobs {
            group.kept.push(outcomes);
        }
    }
    let mut report = Report::default();
    report.tables.push(Table {
        title: "Means per chain (Fig. 4)".into(),
        columns: [
            "jobs",
            "allocation",
            "model",
            "traffic (MB)",
            "processing (ms)",
            "network (ms)",
            "total (ms)",
        ]
        .map(String::from)
        .to_vec(),
        rows: Vec::new(),
    });
    for group in &groups {
        group.means(&mut report);
    }
    for group in groups.iter().filter(|group| !group.kept.is_empty()) {
        group.details(&mut report);
    }
    plots(settings, &mut report);
    Ok(report)
}

fn means(outcomes: &[Outcome], model: Model) -> [f64; 3] {
    let mean = |value: &dyn Fn(&Outcome) -> f64| {
        outcomes.iter().map(value).sum::<f64>() / outcomes.len().max(1) as f64
    };
    let at = place(model);
    [
        mean(&|outcome| outcome.traffic_bytes[at] / 1e6),
        mean(&|outcome| outcome.processing_seconds * 1e3),
        mean(&|outcome| outcome.network_seconds[at] * 1e3),
    ]
}

fn place(model: Model) -> usize {
    Model::ALL
        .iter()
        .position(|other| *other == model)
        .unwrap_or(0)
}

impl Group<'_> {
    fn config(&self, model: Model) -> Config {
        vec![
            ("jobs", self.jobs.to_string()),
            ("allocation", self.allocation.name().into()),
            ("model", model.name().into()),
        ]
    }

    fn means(&self, report: &mut Report) {
        for (at, model) in self.models.iter().enumerate() {
            let summary = |value: &dyn Fn(&[f64; 3]) -> f64| -> Summary {
                self.means.iter().map(|means| value(&means[at])).collect()
            };
            let rows = [
                ("traffic", "MB", summary(&|means| means[0])),
                ("processing_latency", "ms", summary(&|means| means[1])),
                ("network_latency", "ms", summary(&|means| means[2])),
                ("total_latency", "ms", summary(&|means| means[1] + means[2])),
            ];
            let mut line: Vec<String> = self
                .config(*model)
                .into_iter()
                .map(|(_, value)| value)
                .collect();
            for (metric, unit, summary) in rows {
                line.push(format!("{:.2}", summary.mean()));
                report.results.push(ResultRow {
                    config: self.config(*model),
                    metric,
                    unit,
                    mean: summary.mean(),
                    ci95: summary.ci95(),
                    n: summary.n(),
                });
            }
            report.tables[0].rows.push(line);
        }
    }

    fn details(&self, report: &mut Report) {
        for model in &self.models {
            let at = place(*model);
            let outcomes = || self.kept.iter().flatten();
            let mut totals: Vec<f64> = outcomes()
                .map(|outcome| (outcome.processing_seconds + outcome.network_seconds[at]) * 1e3)
                .collect();
            totals.sort_by(f64::total_cmp);
            for share in QUANTILES.iter().filter(|_| !totals.is_empty()) {
                report.quantiles.push(QuantileRow {
                    config: self.config(*model),
                    metric: "total_latency",
                    unit: "ms",
                    quantile: *share,
                    value: quantile(&totals, *share),
                    n: totals.len() as u64,
                });
            }
            let mut lengths: BTreeMap<u32, [Summary; 3]> = BTreeMap::new();
            for outcome in outcomes() {
                let summaries = lengths.entry(outcome.length).or_default();
                summaries[0].add(outcome.network_seconds[at] * 1e3);
                summaries[1].add(outcome.processing_seconds * 1e3);
                summaries[2].add(outcome.traffic_bytes[at] / 1e6);
            }
            for (length, summaries) in lengths {
                let mut config = self.config(*model);
                config.push(("chain_length", length.to_string()));
                let metrics = [
                    ("network_latency", "ms"),
                    ("processing_latency", "ms"),
                    ("traffic", "MB"),
                ];
                for ((metric, unit), summary) in metrics.into_iter().zip(summaries) {
                    report.results.push(ResultRow {
                        config: config.clone(),
                        metric,
                        unit,
                        mean: summary.mean(),
                        ci95: summary.ci95(),
                        n: summary.n(),
                    });
                }
            }
        }
        report.notes.push(format!(
            "quantiles and latencies by length of the chain: {} jobs, {}",
            self.settings.detail_jobs,
            self.allocation.name()
        ));
        report.notes.dedup();
    }
}

fn plots(settings: &Settings, report: &mut Report) {
    let value = |config: &Config, name: &str| {
        let found = config.iter().find(|(other, _)| *other == name);
        found.map_or_else(String::new, |(_, value)| value.clone())
    };
    for (title, x, metric, unit) in [
        ("Traffic per chain (Fig. 4)", "jobs", "traffic", "MB"),
        ("Network latency (Fig. 4)", "jobs", "network_latency", "ms"),
        (
            "Processing latency (Fig. 4)",
            "jobs",
            "processing_latency",
            "ms",
        ),
        (
            "Network latency by length of the chain (Fig. 6)",
            "chain_length",
            "network_latency",
            "ms",
        ),
    ] {
        let mut series: Vec<Series> = Vec::new();
        for allocation in &settings.allocation {
            for model in &settings.model {
                let points: Vec<Point> = report
                    .results
                    .iter()
                    .filter(|row| {
                        row.metric == metric
                            && value(&row.config, "allocation") == allocation.name()
                            && value(&row.config, "model") == model.name()
                            && value(&row.config, "chain_length").is_empty() == (x == "jobs")
                    })
                    .map(|row| Point {
                        x: value(&row.config, x).parse().unwrap_or(0.0),
                        y: row.mean,
                        ci95: row.ci95,
                    })
                    .collect();
                if !points.is_empty() {
                    series.push(Series {
                        name: format!("{} {}", model.name(), allocation.name()),
                        points,
                        dots: false,
                    });
                }
            }
        }
        report.plots.push(Plot {
            title: title.into(),
            x: x.replace('_', " "),
            y: format!("{} ({unit})", metric.replace('_', " ")),
            log_y: metric == "processing_latency",
            series,
        });
    }
    let mut series: Vec<Series> = Vec::new();
    for row in &report.quantiles {
        let name = format!(
            "{} {}",
            value(&row.config, "model"),
            value(&row.config, "allocation")
        );
        let point = Point {
            x: row.value,
            y: row.quantile,
            ci95: None,
        };
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
                dots: false,
            }),
        }
    }
    report.plots.push(Plot {
        title: "Total latency, cumulative (Fig. 5)".into(),
        x: "total latency (ms)".into(),
        y: "share of the chains".into(),
        log_y: false,
        series,
    });
}
