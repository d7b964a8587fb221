//! Experiment 5: state size (III-B, Fig. 7). The aggregator keeps everything; what is looked at is the time between its
//! events, of which seven come at once, as its state grows.

use fulmar_model::{ByteSize, ExecutionModel, Manifest};
use fulmar_sim::report::{Plot, Point, Series, Table};
use serde_json::json;

use super::drive::{self, steady};
use super::kit::{Kind, Then};
use super::measure::{median, ms};
use super::{Bench, sound};

/// Consecutive events that a mean and a minimum are of, as in the study.
const WINDOW: usize = 20;
/// Timesteps a second while it is measured: seven events at once, and calm in between.
const PER_SECOND: f64 = 10.0;
/// Events of one commit, where they are batched.
const BATCH: u32 = 64;
/// Views of a request that fills the state, and detections in each: about a mebibyte as stored.
const VIEWS: u64 = 8;
const DETECTIONS: u64 = 11_000;
/// State in an external store is filled no further: all of it is read by whoever uses it first.
const EXTERNAL_MAX: u64 = 64 << 20;
/// How much longer the shortest times may be with the largest state than with the smallest.
const AIM: f64 = 1.2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Internal,
    External,
    ExternalBatched,
}

impl Variant {
    const ALL: [Self; 3] = [Self::Internal, Self::External, Self::ExternalBatched];

    fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
            Self::ExternalBatched => "external, batched",
        }
    }

    fn is_external(self) -> bool {
        self != Self::Internal
    }

    fn change(self, manifest: &mut Manifest) {
        if manifest.name.as_str() != "collect" {
            return;
        }
        if self.is_external() {
            manifest.execution_model = ExecutionModel::External;
        }
        if self == Self::ExternalBatched {
            manifest.batch.max = BATCH;
        }
    }
}

/// What was seen with a state of some size.
struct AtSize {
    bytes: u64,
    /// Of the windows' minima.
    shortest: f64,
    /// Of the windows' means.
    mean: f64,
    p50: f64,
}

pub(super) fn run(bench: &mut Bench, largest: u64) -> anyhow::Result<()> {
    let (url, variants) = bench.possible(5, &Variant::ALL, Variant::is_external);
    let name = |variant: &Variant| variant.name().to_owned();
    let results = bench.in_turns(5, &variants, name, |variant| {
        let external = url.as_deref().filter(|_| variant.is_external());
        let largest = match variant.is_external() {
            true => largest.min(EXTERNAL_MAX),
            false => largest,
        };
        grow(bench, *variant, external, largest)
    })?;
    let mut table = Table {
        title:
            "Experiment 5: time between events of the aggregator, by the size of its state (Fig. 7)"
                .into(),
        columns: [
            "state",
            "size",
            "rolling minimum ms",
            "rolling mean ms",
            "end to end p50 ms",
        ]
        .map(str::to_owned)
        .into(),
        rows: Vec::new(),
    };
    let mut plot = Plot {
        title: "Experiment 5: rolling minimum and mean of 20 events (Fig. 7)".into(),
        x: "state, MiB".into(),
        y: "ms".into(),
        log_y: true,
        series: Vec::new(),
    };
    for (variant, rounds) in variants.iter().zip(&results) {
        let mut lines = [("minimum", Vec::new()), ("mean", Vec::new())];
        let mut shortest = Vec::new();
        for at in 0..rounds.first().map_or(0, Vec::len) {
            let of = |value: fn(&AtSize) -> f64| {
                median(rounds.iter().map(|sizes| value(&sizes[at])).collect())
            };
            let bytes = rounds[0][at].bytes;
            let (minimum, mean) = (of(|sized| sized.shortest), of(|sized| sized.mean));
            table.rows.push(vec![
                variant.name().to_owned(),
                ByteSize(bytes).to_string(),
                format!("{:.3}", minimum * 1e3),
                ms(mean),
                ms(of(|sized| sized.p50)),
            ]);
            for ((_, points), value) in lines.iter_mut().zip([minimum, mean]) {
                points.push(Point {
                    x: bytes as f64 / f64::from(1 << 20),
                    y: value * 1e3,
                    ci95: None,
                });
            }
            shortest.push((bytes, minimum));
        }
        for (what, points) in lines {
            plot.series.push(Series {
                name: format!("{}, {what}", variant.name()),
                points,
                dots: false,
            });
        }
        if let (Some((small, first)), Some((large, last))) = (shortest.first(), shortest.last()) {
            bench.row(5, variant.name(), "rolling_minimum", "s", &[*last]);
            bench.finding(
                format!(
                    "{}: the rolling minimum at {} is within {AIM} of that at {} (IV-E: the study's grew with the state)",
                    variant.name(),
                    ByteSize(*large),
                    ByteSize(*small)
                ),
                last / first <= AIM,
                format!("{:.3} against {:.3} ms: {:.2}", last * 1e3, first * 1e3, last / first),
            );
        }
    }
    bench.report.tables.push(table);
    bench.report.plots.push(plot);
    Ok(())
}

/// Lets the state grow, and measures at 1 MiB and at each size that is four times as large.
fn grow(
    bench: &Bench,
    variant: Variant,
    external: Option<&str>,
    largest: u64,
) -> anyhow::Result<Vec<AtSize>> {
    let server = bench.serve(Kind::Component, external, &|manifest| {
        variant.change(manifest)
    })?;
    server.open_scene(&bench.kit, true)?;
    let mut sizes: Vec<u64> = (0..)
        .map(|n| (1 << 20) << (2 * n))
        .take_while(|size| *size < largest)
        .collect();
    sizes.push(largest);
    let (mut kept, mut first) = (0, 0);
    let mut measured = Vec::new();
    for bytes in sizes {
        while kept < bytes {
            let views = VIEWS.min((bytes - kept).div_ceil(1 << 20));
            let fill = json!({ "request": "fill", "views": views, "detections": DETECTIONS });
            server.ask("collect", &fill)?;
            kept += views << 20;
        }
        let seconds = bench.seconds / 4.0;
        let plan = drive::Plan {
            kit: bench.kit.clone(),
            address: server.address,
            due: steady(PER_SECOND, seconds.max(2.0)),
            first,
            then: Then::Collect,
        };
        first += plan.due.len() as u64;
        let seen = sound(drive::run(&plan)?)?;
        let windows = || seen.between.windows(WINDOW);
        let shortest = windows().map(|window| window.iter().copied().fold(f64::INFINITY, f64::min));
        let mean = windows().map(|window| window.iter().sum::<f64>() / WINDOW as f64);
        measured.push(AtSize {
            bytes,
            shortest: median(shortest.collect()),
            mean: median(mean.collect()),
            p50: seen.quantile(0.5),
        });
    }
    Ok(measured)
}
