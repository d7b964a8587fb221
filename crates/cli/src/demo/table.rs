//! What came of it: each model in figures, and `auto` against the best of the others.

use fulmar_model::ExecutionModel;
use serde_json::{Value, json};

use super::board::Answered;
use super::play::Played;
use super::script::Phase;
use crate::output;

/// What came of one model.
pub(super) struct Outcome {
    pub(super) model: ExecutionModel,
    pub(super) wrong: u64,
    answers: Vec<Answered>,
    cloud_bytes: u64,
}

/// Mean and 99th percentile, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Latency {
    mean: f64,
    p99: f64,
}

impl Latency {
    fn of(mut ms: Vec<f64>) -> Self {
        ms.sort_by(f64::total_cmp);
        let at = (ms.len() * 99).div_ceil(100).saturating_sub(1);
        Self {
            mean: ms.iter().sum::<f64>() / ms.len().max(1) as f64,
            p99: ms.get(at).copied().unwrap_or(0.0),
        }
    }

    fn text(self) -> String {
        format!("{:.1} / {:.1}", self.mean, self.p99)
    }

    fn json(self) -> Value {
        json!({ "mean_ms": self.mean, "p99_ms": self.p99 })
    }
}

impl Outcome {
    pub(super) fn new(model: ExecutionModel) -> Self {
        Self {
            model,
            wrong: 0,
            answers: Vec::new(),
            cloud_bytes: 0,
        }
    }

    pub(super) fn add(&mut self, played: Played) {
        self.answers.extend(played.answers);
        self.wrong += played.wrong;
    }

    pub(super) fn with_cloud_bytes(self, cloud_bytes: u64) -> Self {
        Self {
            cloud_bytes,
            ..self
        }
    }

    fn latency(&self, phase: Option<Phase>) -> Latency {
        let answers = self.answers.iter();
        let meant = answers.filter(|answer| phase.is_none_or(|phase| answer.phase == phase));
        Latency::of(
            meant
                .map(|answer| answer.took.as_secs_f64() * 1000.0)
                .collect(),
        )
    }

    fn late(&self) -> usize {
        self.answers.iter().filter(|answer| answer.is_late).count()
    }

    /// The outcome as JSON.
    pub(super) fn row(&self) -> Value {
        let phases = Phase::ALL.iter();
        let phases: serde_json::Map<String, Value> = phases
            .map(|&phase| (phase.name().to_owned(), self.latency(Some(phase)).json()))
            .collect();
        json!({
            "model": self.model,
            "requests": self.answers.len(),
            "phases": phases,
            "whole": self.latency(None).json(),
            "slo_misses": self.late(),
            "cloud_bytes": self.cloud_bytes,
            "wrong": self.wrong,
        })
    }
}

/// Prints the table.
pub(super) fn print(json: bool, outcomes: &[Outcome]) {
    if json {
        let rows: Vec<Value> = outcomes.iter().map(Outcome::row).collect();
        return output::value(&Value::Array(rows));
    }
    let mut rows = Vec::new();
    for outcome in outcomes {
        let mut row = json!({
            "model": outcome.model,
            "whole_run": outcome.latency(None).text(),
            "slo_misses": outcome.late(),
            "cloud_kB": outcome.cloud_bytes / 1000,
        });
        for phase in Phase::ALL {
            row[phase.name()] = outcome.latency(Some(phase)).text().into();
        }
        rows.push(row);
    }
    println!("\nmean / 99th percentile in ms, the same input for each\n");
    let columns = [
        "model",
        "cruising",
        "parking",
        "calm",
        "failing",
        "whole_run",
        "slo_misses",
        "cloud_kB",
    ];
    output::rows(false, &rows, &columns);
    if let Some(text) = verdict(outcomes) {
        println!("\n{text}");
    }
}

/// `auto` against the best fixed model over the whole run, and against `external` in what goes to the cloud.
fn verdict(outcomes: &[Outcome]) -> Option<String> {
    let (auto, fixed) = outcomes.split_first()?;
    let mean = |outcome: &&Outcome| outcome.latency(None).mean;
    let best = fixed.iter().min_by(|a, b| mean(a).total_cmp(&mean(b)))?;
    let external = fixed
        .iter()
        .find(|outcome| outcome.model == ExecutionModel::External)?;
    let (ours, theirs) = (auto.latency(None), best.latency(None));
    let change = |ours: f64, theirs: f64| (ours / theirs - 1.0) * 100.0;
    Some(format!(
        "auto against {}, the best fixed model: mean {:+.0} %, 99th percentile {:+.0} %; to the cloud {:.0} % of what external sends",
        best.model,
        change(ours.mean, theirs.mean),
        change(ours.p99, theirs.p99),
        auto.cloud_bytes as f64 / external.cloud_bytes.max(1) as f64 * 100.0,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_is_the_last_of_a_hundred_but_one() {
        let latency = Latency::of((1..=100).rev().map(f64::from).collect());
        assert_eq!((latency.mean, latency.p99), (50.5, 99.0));
        assert_eq!(
            Latency::of(vec![3.0]),
            Latency {
                mean: 3.0,
                p99: 3.0
            }
        );
    }
}
