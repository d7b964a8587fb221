//! The experiments, and what came out of each beside what the paper found.

use super::plant::{Outcome, Plant};
use super::{Scaler, Settings, Setup};
use crate::random::Random;
use crate::report::{Finding, Plot, Point, QuantileRow, ResultRow, Series, Table};
use crate::stats::{Summary, quantile};
use crate::{Error, Report, Run};

/// Part of a run in which nothing is measured yet, with all instances there.
const WARM_UP: f64 = 0.2;
/// Converged: from then on the mean over so many steps is no more than so many times that of the last
/// quarter.
const SETTLED_STEPS: usize = 20;
const SETTLED: f64 = 1.15;

/// Name, unit, and the value of a run.
type Metric = (&'static str, &'static str, fn(&Setup, &Outcome) -> f64);

const METRICS: [Metric; 8] = [
    ("end_to_end", "s", |setup, run| mean(&latencies(setup, run))),
    ("end_to_end_p95", "s", |setup, run| {
        share(&latencies(setup, run), 0.95)
    }),
    ("detection", "s", |_, run| mean(&run.detect_seconds)),
    ("converged", "s", converged),
    ("growth", "ratio", growth),
    ("cold_starts", "count", |_, run| f64::from(run.cold_starts)),
    ("cold_start_cpu", "s", |_, run| run.cold_cpu_seconds),
    ("cpu", "percent", |_, run| 100.0 * run.cpu_share),
];

/// Latencies of the steps after the warm-up, ascending; of all steps where starting is the subject.
fn latencies(setup: &Setup, run: &Outcome) -> Vec<f64> {
    let from = match setup.scaler {
        Scaler::Provisioned => WARM_UP * setup.seconds,
        _ => 0.0,
    };
    let steps = run.steps.iter().filter(|(sent, _)| *sent >= from);
    let mut latencies: Vec<f64> = steps.map(|(_, seconds)| *seconds).collect();
    latencies.sort_by(f64::total_cmp);
    latencies
}

fn mean(values: &[f64]) -> f64 {
    values.iter().copied().collect::<Summary>().mean()
}

fn share(sorted: &[f64], share: f64) -> f64 {
    match sorted.is_empty() {
        true => 0.0,
        false => quantile(sorted, share),
    }
}

/// Mean latency of the steps sent in a part of the run, and finished.
fn between(setup: &Setup, run: &Outcome, from: f64, to: f64) -> f64 {
    let within = |sent: f64| sent >= from * setup.seconds && sent < to * setup.seconds;
    let steps = run.steps.iter().filter(|(sent, _)| within(*sent));
    mean(&steps.map(|(_, seconds)| *seconds).collect::<Vec<_>>())
}

/// When latency had settled, in seconds from the beginning.
fn converged(setup: &Setup, run: &Outcome) -> f64 {
    let limit = SETTLED * between(setup, run, 0.75, 1.0);
    let is_late = |steps: &&[(f64, f64)]| {
        let sum: f64 = steps.iter().map(|(_, seconds)| *seconds).sum();
        sum > limit * SETTLED_STEPS as f64
    };
    let late = run.steps.windows(SETTLED_STEPS).rev().find(is_late);
    late.map_or(0.0, |steps| steps[SETTLED_STEPS - 1].0)
}

/// Latency of the last quarter over that of the second: far above 1 if the queue grows for ever.
fn growth(setup: &Setup, run: &Outcome) -> f64 {
    let second = between(setup, run, 0.25, 0.5);
    match second > 0.0 {
        // Steps that were not even finished by the end have waited for the whole rest of the run.
        true if run.unfinished as f64 > 0.25 * run.steps.len() as f64 => 10.0,
        true => between(setup, run, 0.75, 1.0) / second,
        false => 10.0,
    }
}

fn setups(settings: &Settings) -> Vec<Setup> {
    let (few, many) = (settings.instances, settings.more_instances);
    let warm = |instances: u32, kind: &str, reserved_cpus, shared, flow_control| Setup {
        experiment: "IV-A",
        name: format!("{instances} {kind}"),
        instances,
        reserved_cpus,
        shared,
        scaler: Scaler::Provisioned,
        flow_control,
        outage_seconds: settings.outage_seconds,
        frames_per_second: settings.frames_per_second,
        seconds: settings.seconds,
    };
    let cold = |instances: u32, kind: &str, reserved_cpus, scaler| Setup {
        experiment: "IV-C",
        name: format!("{instances} {kind}"),
        instances,
        reserved_cpus,
        shared: false,
        scaler,
        flow_control: false,
        outage_seconds: 0.0,
        frames_per_second: settings.cold_frames_per_second,
        seconds: settings.cold_seconds,
    };
    vec![
        warm(few, "reserved dedicated", Some(1.0), false, false),
        warm(
            few / 2,
            "reserved dedicated, 2 CPUs each",
            Some(2.0),
            false,
            false,
        ),
        warm(few, "unreserved dedicated", None, false, false),
        warm(many, "unreserved dedicated", None, false, false),
        warm(few, "unreserved shared", None, true, false),
        warm(many, "unreserved shared", None, true, false),
        warm(few, "unreserved shared, flow control", None, true, true),
        warm(many, "unreserved shared, flow control", None, true, true),
        cold(few, "reserved dedicated", Some(1.0), Scaler::PerInvocation),
        cold(few, "unreserved dedicated", None, Scaler::PerInvocation),
        cold(many, "unreserved dedicated", None, Scaler::PerInvocation),
        cold(
            many,
            "unreserved dedicated, scaling policy",
            None,
            Scaler::Policy,
        ),
    ]
}

pub(super) fn run(settings: &Settings, run: &Run) -> Result<Report, Error> {
    let setups = setups(settings);
    let replications = run.replications.unwrap_or(settings.replications).max(1) as usize;
    let outcomes = run.replicate(setups.len() * replications, |job| {
        // The same frames for all.
        let random = Random::new(run.seed, (job % replications) as u64);
        Ok(Plant::new(settings, &setups[job / replications], random).run())
    })?;
    let all: Vec<(&Setup, &[Outcome])> = setups.iter().zip(outcomes.chunks(replications)).collect();
    let mut report = Report::default();
    for (setup, outcomes) in &all {
        rows(&mut report, setup, outcomes);
    }
    for experiment in ["IV-A", "IV-C"] {
        let of_experiment = || {
            all.iter()
                .filter(|(setup, _)| setup.experiment == experiment)
        };
        report.tables.push(table(experiment, of_experiment()));
        report.plots.push(over_time(experiment, of_experiment()));
    }
    report.plots.push(limits(&all));
    report.findings = findings(settings, &all);
    report.notes.push(
        "that an overloaded platform restarts all instances (IV-C) is not modelled: the paper does not know why it does".into(),
    );
    Ok(report)
}

fn rows(report: &mut Report, setup: &Setup, outcomes: &[Outcome]) {
    let config = vec![
        ("experiment", setup.experiment.into()),
        ("configuration", setup.name.clone()),
    ];
    for (metric, unit, value) in METRICS {
        let summary: Summary = outcomes.iter().map(|run| value(setup, run)).collect();
        report.results.push(ResultRow {
            config: config.clone(),
            metric,
            unit,
            mean: summary.mean(),
            ci95: summary.ci95(),
            n: summary.n(),
        });
    }
    for at in [0.05, 0.25, 0.5, 0.75, 0.95, 0.99] {
        let values: Summary = outcomes
            .iter()
            .map(|run| share(&latencies(setup, run), at))
            .collect();
        report.quantiles.push(QuantileRow {
            config: config.clone(),
            metric: "end_to_end",
            unit: "s",
            quantile: at,
            value: values.mean(),
            n: values.n(),
        });
    }
}

fn table<'a>(experiment: &str, all: impl Iterator<Item = &'a (&'a Setup, &'a [Outcome])>) -> Table {
    let mut columns = vec!["configuration".to_owned()];
    columns.extend(METRICS.map(|(metric, unit, _)| format!("{metric} ({unit})").replace('_', " ")));
    Table {
        title: match experiment {
            "IV-A" => "IV-A: all instances there from the beginning, load near the maximum".into(),
            _ => "IV-C: no instances at the beginning, three quarters of the load".into(),
        },
        columns,
        rows: all
            .map(|(setup, outcomes)| {
                let value = |metric: &Metric| format!("{:.2}", of(setup, outcomes, metric));
                let cells = METRICS.iter().map(value);
                std::iter::once(setup.name.clone()).chain(cells).collect()
            })
            .collect(),
    }
}

fn of(setup: &Setup, outcomes: &[Outcome], (_, _, value): &Metric) -> f64 {
    let summary: Summary = outcomes.iter().map(|run| value(setup, run)).collect();
    summary.mean()
}

/// End-to-end latency over time, of the first replication.
fn over_time<'a>(
    experiment: &str,
    all: impl Iterator<Item = &'a (&'a Setup, &'a [Outcome])>,
) -> Plot {
    let series = |(setup, outcomes): &(&Setup, &[Outcome])| Series {
        name: setup.name.clone(),
        points: outcomes.first().map_or_else(Vec::new, |run| {
            let steps = run.steps.iter().step_by(5);
            steps
                .map(|(sent, seconds)| Point {
                    x: *sent,
                    y: *seconds,
                    ci95: None,
                })
                .collect()
        }),
        dots: false,
    };
    Plot {
        title: format!("{experiment}: end-to-end latency over time"),
        x: "sent (s)".into(),
        y: "end-to-end latency (s)".into(),
        log_y: true,
        series: all.map(series).collect(),
    }
}

/// What the concurrency limit does over time.
fn limits(all: &[(&Setup, &[Outcome])]) -> Plot {
    let with = all.iter().filter(|(setup, _)| setup.flow_control);
    Plot {
        title: "IV-A: the adaptive concurrency limit over time".into(),
        x: "time (s)".into(),
        y: "detections in flight at most".into(),
        log_y: false,
        series: with
            .map(|(setup, outcomes)| Series {
                name: setup.name.clone(),
                points: outcomes.first().map_or_else(Vec::new, |run| {
                    let points = run.limits.iter().step_by(5);
                    points
                        .map(|(now, limit)| Point {
                            x: *now,
                            y: f64::from(*limit),
                            ci95: None,
                        })
                        .collect()
                }),
                dots: false,
            })
            .collect(),
    }
}

fn findings(settings: &Settings, all: &[(&Setup, &[Outcome])]) -> Vec<Finding> {
    let value = |experiment: &str, name: &str, metric: &str| -> f64 {
        let found = all
            .iter()
            .find(|(setup, _)| setup.experiment == experiment && setup.name == name);
        let metric = METRICS.iter().find(|(known, ..)| *known == metric);
        match (found, metric) {
            (Some((setup, outcomes)), Some(metric)) => of(setup, outcomes, metric),
            _ => f64::NAN,
        }
    };
    let (few, many) = (settings.instances, settings.more_instances);
    let compare =
        |claim: &str, experiment: &str, less: String, more: String, metric: &str, unit: &str| {
            let (a, b) = (
                value(experiment, &less, metric),
                value(experiment, &more, metric),
            );
            Finding {
                claim: format!("{experiment}: {claim}"),
                holds: a < b,
                evidence: format!("{less}: {a:.2} {unit}, {more}: {b:.2} {unit}"),
            }
        };
    let reserved = format!("{few} reserved dedicated");
    let wide = format!("{} reserved dedicated, 2 CPUs each", few / 2);
    let few_own = format!("{few} unreserved dedicated");
    let many_own = format!("{many} unreserved dedicated");
    let few_shared = format!("{few} unreserved shared");
    let many_shared = format!("{many} unreserved shared");
    let few_limited = format!("{few} unreserved shared, flow control");
    let many_limited = format!("{many} unreserved shared, flow control");
    let policy = format!("{many} unreserved dedicated, scaling policy");
    let latency = |claim: &str, less: &str, more: &str| {
        compare(claim, "IV-A", less.into(), more.into(), "end_to_end", "s")
    };
    let starting = |claim: &str, less: &str, more: &str, metric: &str, unit: &str| {
        compare(claim, "IV-C", less.into(), more.into(), metric, unit)
    };
    let grows = value("IV-A", &wide, "growth");
    vec![
        latency(
            "reserved resources interfere with parallel processing",
            &few_own,
            &reserved,
        ),
        Finding {
            claim: "IV-A: half as many instances with 2 CPUs each cannot keep up".into(),
            holds: grows > 1.5,
            evidence: format!(
                "{wide}: latency grows {grows:.2}-fold from the second quarter to the last"
            ),
        },
        latency(
            "more concurrency leads to lower latency",
            &many_own,
            &few_own,
        ),
        latency(
            "a queue shared with detection holds the aggregator up",
            &few_own,
            &few_shared,
        ),
        latency(
            "more shared instances hold it up less",
            &many_shared,
            &few_shared,
        ),
        latency(
            "rate limiting improves performance",
            &few_limited,
            &few_shared,
        ),
        latency(
            "with it, many shared instances do better than few without",
            &many_limited,
            &few_shared,
        ),
        starting(
            "reserved CPUs take longer to work off the queue",
            &few_own,
            &reserved,
            "converged",
            "s",
        ),
        starting(
            "more concurrency means more cold starts",
            &few_own,
            &many_own,
            "cold_starts",
            "starts",
        ),
        starting(
            "cold starts take up precious CPU",
            &few_own,
            &many_own,
            "cold_start_cpu",
            "CPU s",
        ),
        starting(
            "fewer instances converge faster",
            &few_own,
            &many_own,
            "converged",
            "s",
        ),
        starting(
            "ours: the scaling policy starts fewer",
            &policy,
            &many_own,
            "cold_starts",
            "starts",
        ),
        starting(
            "ours: and converges faster",
            &policy,
            &many_own,
            "converged",
            "s",
        ),
    ]
}
