//! Experiment 4: minimum overhead (III-B, Fig. 6). Frames of one pixel at which nobody looks, so that the aggregator is what
//! takes time; as many as it takes.

use fulmar_model::{Durability, ExecutionModel, Manifest};
use fulmar_sim::report::Table;

use super::Bench;
use super::flood::{self, Flood};
use super::kit::Kind;
use super::measure::median;

/// Events of one commit, where they are batched.
const BATCH: u32 = 256;
/// What the study got on 64 virtual CPUs: internal, and external with batches.
const STUDY: f64 = 700.0;
/// What Fulmar is to do on two cores.
const AIM: f64 = 20_000.0;
const AIM_OF_BATCHES: f64 = 20.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Internal,
    InternalBatched,
    Unmanaged,
    External,
    ExternalBatched,
}

impl Variant {
    const ALL: [Self; 5] = [
        Self::Internal,
        Self::InternalBatched,
        Self::Unmanaged,
        Self::External,
        Self::ExternalBatched,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::InternalBatched => "internal, batched",
            Self::Unmanaged => "unmanaged (memory)",
            Self::External => "external",
            Self::ExternalBatched => "external, batched",
        }
    }

    fn is_external(self) -> bool {
        matches!(self, Self::External | Self::ExternalBatched)
    }

    fn change(self, manifest: &mut Manifest) {
        if self == Self::Unmanaged {
            manifest.durability = Durability::Memory;
        }
        if manifest.name.as_str() != "collect" {
            return;
        }
        if self.is_external() {
            manifest.execution_model = ExecutionModel::External;
        }
        if matches!(self, Self::InternalBatched | Self::ExternalBatched) {
            manifest.batch.max = BATCH;
        }
    }
}

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let (url, variants) = bench.possible(4, &Variant::ALL, Variant::is_external);
    let name = |variant: &Variant| variant.name().to_owned();
    let results = bench.in_turns(4, &variants, name, |variant| {
        let external = url.as_deref().filter(|_| variant.is_external());
        let server = bench.serve(Kind::Component, external, &|manifest| {
            variant.change(manifest)
        })?;
        // The first one finds everything cold.
        flood::pixels(&bench.kit, &server, bench.seconds.min(1.0))?;
        flood::pixels(&bench.kit, &server, bench.seconds)
    })?;
    let mut table = Table {
        title: "Experiment 4: events/s through the aggregator, frames of one pixel (Fig. 6)".into(),
        columns: ["state", "events/s", "of the study's"]
            .map(str::to_owned)
            .into(),
        rows: Vec::new(),
    };
    let mut rates = Vec::new();
    for (variant, rounds) in variants.iter().zip(&results) {
        let per_second: Vec<f64> = rounds.iter().map(Flood::per_second).collect();
        bench.row(4, variant.name(), "events", "1/s", &per_second);
        let rate = median(per_second);
        rates.push((*variant, rate));
        let study = match variant {
            Variant::Internal | Variant::InternalBatched | Variant::ExternalBatched => STUDY,
            Variant::External => STUDY / 10.0,
            Variant::Unmanaged => 0.0,
        };
        let of_study = match study > 0.0 {
            true => format!("{:.0} x", rate / study),
            false => String::new(),
        };
        table.rows.push(vec![
            variant.name().to_owned(),
            format!("{rate:.0}"),
            of_study,
        ]);
    }
    bench.report.tables.push(table);
    let rate = |wanted: Variant| {
        let found = rates.iter().find(|(variant, _)| *variant == wanted);
        found.map(|(_, rate)| *rate)
    };
    if let Some(internal) = rate(Variant::Internal) {
        bench.finding(
            "Internal state, durable: 20,000 events/s (the study: 700 on 64 virtual CPUs)",
            internal >= AIM,
            format!("{internal:.0} events/s"),
        );
    }
    if let (Some(one), Some(batched)) = (rate(Variant::External), rate(Variant::ExternalBatched)) {
        bench.finding(
            "External state in batches: 20 times as many events as one by one (the study: 10 times)",
            batched >= AIM_OF_BATCHES * one,
            format!("{batched:.0} against {one:.0} events/s: {:.1} times", batched / one),
        );
    }
    Ok(())
}
