//! Experiment 1: provisioned concurrency (III-B, Fig. 3), near what can be tracked at most. How many workers, and with CPU of their
//! own or not: is what the platform does by itself as good as the best of what one could have said?

use fulmar_model::manifest::Workers;
use fulmar_model::{CpuAmount, Manifest};
use fulmar_sim::report::Table;

use super::drive::Seen;
use super::kit::{Kind, Then};
use super::measure::{median, ms, quantile};
use super::{Bench, sound};

/// Part of what can be tracked.
const LOAD: f64 = 0.95;
/// How far from the best variant the default may be.
const AIM: f64 = 1.1;

/// How the workers of `detect` are provided.
#[derive(Debug, Clone)]
struct Variant {
    name: String,
    /// So many; none: as the platform thinks.
    workers: Option<u32>,
    /// CPU that each has for itself, in thousandths.
    reserved_millis: u32,
}

fn variants(kind: Kind) -> Vec<Variant> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u32;
    let variant = |name: String, workers, reserved_millis| Variant {
        name,
        workers,
        reserved_millis,
    };
    let fewer = cores.div_ceil(2);
    let mut variants = vec![
        variant("default".to_owned(), None, 0),
        variant(format!("{fewer} unreserved"), Some(fewer), 0),
        variant(format!("{cores} unreserved"), Some(cores), 0),
        variant(format!("{} unreserved", 4 * cores), Some(4 * cores), 0),
    ];
    if kind != Kind::Component {
        let all = variant(format!("{cores} reserved, 1 CPU each"), Some(cores), 1000);
        let half = format!("{} reserved, half a CPU each", 2 * cores);
        variants.extend([all, variant(half, Some(2 * cores), 500)]);
    }
    variants
}

impl Variant {
    fn change(&self, manifest: &mut Manifest) {
        if manifest.name.as_str() != "detect" {
            return;
        }
        manifest.workers = Workers::default();
        let Some(workers) = self.workers else {
            return;
        };
        manifest.workers.max = workers;
        if manifest.is_program() {
            manifest.workers.min = workers;
            manifest.workers.reserved_cpu = CpuAmount::from_millis(self.reserved_millis);
        }
    }
}

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in bench.kit.kinds() {
        of_kind(bench, kind)?;
    }
    Ok(())
}

fn of_kind(bench: &mut Bench, kind: Kind) -> anyhow::Result<()> {
    let rate = bench.rate(kind, LOAD)?;
    let variants = variants(kind);
    let name = |variant: &Variant| format!("{}, {}", kind.name(), variant.name);
    let results = bench.in_turns(1, &variants, name, |variant| {
        let server = bench.serve(kind, None, &|manifest| variant.change(manifest))?;
        let seen = sound(bench.measure(&server, rate, Then::Aggregate)?)?;
        let alive = server.workers("detect")?["alive"].as_u64();
        Ok((seen, alive))
    })?;
    let mut table = Table {
        title: format!(
            "Experiment 1: provisioned concurrency, {} (Fig. 3), {rate:.1} timesteps/s",
            kind.name()
        ),
        columns: [
            "workers of detect",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "detection p50 ms",
            "detection p99 ms",
            "workers at the end",
            "lost",
        ]
        .map(str::to_owned)
        .into(),
        rows: Vec::new(),
    };
    let mut figures = Vec::new();
    for (variant, rounds) in variants.iter().zip(&results) {
        let of = |share| -> Vec<f64> {
            let rounds = rounds.iter();
            rounds.map(|(seen, _)| seen.quantile(share)).collect()
        };
        let detection = |share| {
            let rounds = rounds.iter().map(|(seen, _)| {
                let mut seconds = seen.detections.clone();
                seconds.sort_by(f64::total_cmp);
                quantile(&seconds, share)
            });
            ms(median(rounds.collect()))
        };
        let (p50, p95, p99) = (of(0.5), of(0.95), of(0.99));
        let alive = rounds.iter().filter_map(|(_, alive)| *alive).next_back();
        let lost: usize = rounds.iter().map(|(seen, _)| Seen::lost(seen)).sum();
        let full_name = name(variant);
        bench.row(1, &full_name, "end_to_end_p50", "s", &p50);
        bench.row(1, &full_name, "end_to_end_p99", "s", &p99);
        let (p50, p99) = (median(p50), median(p99));
        table.rows.push(vec![
            variant.name.clone(),
            ms(p50),
            ms(median(p95)),
            ms(p99),
            detection(0.5),
            detection(0.99),
            alive.map_or_else(String::new, |alive| alive.to_string()),
            lost.to_string(),
        ]);
        figures.push((p50, p99));
    }
    bench.report.tables.push(table);
    let best = |of: fn(&(f64, f64)) -> f64| figures.iter().map(of).fold(f64::INFINITY, f64::min);
    let (best_p50, best_p99) = (best(|figures| figures.0), best(|figures| figures.1));
    let (p50, p99) = figures[0];
    bench.finding(
        format!(
            "{}: what the platform does by itself is within 10 % of the best variant's p50 and p99 (IV-A)",
            kind.name()
        ),
        p50 <= AIM * best_p50 && p99 <= AIM * best_p99,
        format!(
            "p50 {} against {} ms, p99 {} against {} ms",
            ms(p50),
            ms(best_p50),
            ms(p99),
            ms(best_p99)
        ),
    );
    Ok(())
}
