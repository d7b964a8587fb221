//! Experiment 2: state and application management (III-C, Fig. 4), at three quarters of what can be tracked.

use std::time::Duration;

use fulmar_model::{Durability, ExecutionModel, Manifest};
use fulmar_sim::report::Table;

use super::drive::{self, Seen, steady};
use super::kit::{Kind, Then};
use super::measure::{median, ms};
use super::{Bench, sound};

/// Part of what can be tracked.
const LOAD: f64 = 0.75;
/// Events of one commit, where they are batched.
const BATCH: u32 = 64;
/// Workers that are killed, and runs of an invocation whose worker is.
const KILLS: u32 = 3;
const ATTEMPTS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Internal,
    InEdge,
    External,
    ExternalBatched,
    Unmanaged,
    NoManager,
}

impl Variant {
    const ALL: [Self; 6] = [
        Self::Internal,
        Self::InEdge,
        Self::External,
        Self::ExternalBatched,
        Self::Unmanaged,
        Self::NoManager,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal (in-function)",
            Self::InEdge => "internal (in-edge)",
            Self::External => "external",
            Self::ExternalBatched => "external, batched",
            Self::Unmanaged => "unmanaged (memory)",
            Self::NoManager => "no application manager",
        }
    }

    fn is_external(self) -> bool {
        matches!(self, Self::External | Self::ExternalBatched)
    }

    fn change(self, manifest: &mut Manifest) {
        match self {
            // By default the platform decides, which is in the function on one node.
            Self::Internal | Self::NoManager => {}
            Self::InEdge => manifest.execution_model = ExecutionModel::InEdge,
            Self::Unmanaged => manifest.durability = Durability::Memory,
            Self::External | Self::ExternalBatched if manifest.name.as_str() == "detect" => {}
            Self::External => manifest.execution_model = ExecutionModel::External,
            Self::ExternalBatched => {
                manifest.execution_model = ExecutionModel::External;
                manifest.batch.max = BATCH;
            }
        }
    }

    fn then(self) -> Then {
        match self {
            Self::NoManager => Then::Answer,
            _ => Then::Aggregate,
        }
    }
}

/// Medians over the rounds.
struct Figures {
    p50: f64,
    p99: f64,
}

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let rate = bench.rate(Kind::Component, LOAD)?;
    let (url, variants) = bench.possible(2, &Variant::ALL, Variant::is_external);
    let name = |variant: &Variant| variant.name().to_owned();
    let results = bench.in_turns(2, &variants, name, |variant| {
        let external = url.as_deref().filter(|_| variant.is_external());
        let server = bench.serve(Kind::Component, external, &|manifest| {
            variant.change(manifest)
        })?;
        sound(bench.measure(&server, rate, variant.then())?)
    })?;
    let mut table = Table {
        title: format!(
            "Experiment 2: end-to-end latency by where the state is (Fig. 4), {:.1} timesteps/s",
            rate
        ),
        columns: [
            "state",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "detection p50 ms",
            "lost",
        ]
        .map(str::to_owned)
        .into(),
        rows: Vec::new(),
    };
    let mut figures = Vec::new();
    for (variant, rounds) in variants.iter().zip(&results) {
        let of = |share| -> Vec<f64> { rounds.iter().map(|seen| seen.quantile(share)).collect() };
        let (p50, p95, p99) = (of(0.5), of(0.95), of(0.99));
        let detection = rounds.iter().map(|seen| median(seen.detections.clone()));
        let lost: usize = rounds.iter().map(Seen::lost).sum();
        table.rows.push(vec![
            variant.name().to_owned(),
            ms(median(p50.clone())),
            ms(median(p95)),
            ms(median(p99.clone())),
            ms(median(detection.collect())),
            lost.to_string(),
        ]);
        bench.row(2, variant.name(), "end_to_end_p50", "s", &p50);
        bench.row(2, variant.name(), "end_to_end_p99", "s", &p99);
        figures.push((
            *variant,
            Figures {
                p50: median(p50),
                p99: median(p99),
            },
        ));
        bench.row(2, variant.name(), "lost", "timesteps", &[lost as f64]);
    }
    bench.report.tables.push(table);
    let find = |wanted: Variant| {
        let found = figures.iter().find(|(variant, _)| *variant == wanted);
        found.map(|(_, figures)| figures)
    };
    if let (Some(internal), Some(external)) = (find(Variant::Internal), find(Variant::External)) {
        bench.finding(
            "Internal state beats external state in p50 and p99 (IV-B)",
            internal.p50 < external.p50 && internal.p99 < external.p99,
            format!(
                "p50 {} against {} ms, p99 {} against {} ms",
                ms(internal.p50),
                ms(external.p50),
                ms(internal.p99),
                ms(external.p99)
            ),
        );
    }
    if let (Some(local), Some(memory)) = (find(Variant::Internal), find(Variant::Unmanaged)) {
        let more = |of: fn(&Figures) -> f64| (of(local) / of(memory) - 1.0) * 100.0;
        let (p50, p99) = (more(|figures| figures.p50), more(|figures| figures.p99));
        bench.finding(
            "Being durable costs at most 15 % over state in memory only (IV-B: which was no faster, and was lost)",
            p50 <= 15.0 && p99 <= 15.0,
            format!("p50 {p50:+.1} %, p99 {p99:+.1} %"),
        );
    }
    killed(bench, rate)?;
    match bench.kit.kinds().contains(&Kind::Program) {
        true => worker_killed(bench),
        false => Ok(()),
    }
}

/// A worker is killed on the way, again and again.
fn worker_killed(bench: &mut Bench) -> anyhow::Result<()> {
    eprintln!("experiment 2: a worker killed");
    let rate = bench.rate(Kind::Program, LOAD)?;
    let server = bench.serve(Kind::Program, None, &|manifest| {
        if manifest.is_program() {
            manifest.limits.attempts = ATTEMPTS;
        }
    })?;
    let plan = drive::Plan {
        kit: bench.kit.clone(),
        address: server.address,
        due: steady(rate, bench.seconds),
        first: 0,
        then: Then::Aggregate,
    };
    let pause = Duration::from_secs_f64(bench.seconds / f64::from(KILLS + 1));
    let (seen, killed) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| -> anyhow::Result<u32> {
            let mut killed = 0;
            for _ in 0..KILLS {
                std::thread::sleep(pause);
                killed += u32::from(server.kill_worker()?);
            }
            Ok(killed)
        });
        (drive::run(&plan), killer.join())
    });
    let Ok(killed) = killed else {
        anyhow::bail!("no worker could be killed");
    };
    let (seen, killed) = (sound(seen?)?, killed?);
    let (lost, incomplete) = (seen.lost(), seen.incomplete);
    bench.row(
        2,
        "worker killed",
        "lost_when_killed",
        "timesteps",
        &[lost as f64],
    );
    bench.finding(
        "Nothing is lost when workers are killed on the way",
        killed == KILLS && lost == 0 && incomplete == 0,
        format!(
            "{killed} killed; {lost} of {} timesteps without a result, {incomplete} without a view",
            plan.due.len()
        ),
    );
    Ok(())
}

/// The node is killed on the way, and comes back.
fn killed(bench: &mut Bench, rate: f64) -> anyhow::Result<()> {
    for variant in [Variant::Internal, Variant::Unmanaged] {
        eprintln!("experiment 2: {}, node killed", variant.name());
        let mut server =
            bench.serve(Kind::Component, None, &|manifest| variant.change(manifest))?;
        let plan = drive::Plan {
            kit: bench.kit.clone(),
            address: server.address,
            due: steady(rate, bench.seconds),
            first: 0,
            then: Then::Aggregate,
        };
        let half = Duration::from_secs_f64(bench.seconds / 2.0);
        let (seen, restarted) = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                std::thread::sleep(half);
                server.kill_and_restart()
            });
            (drive::run(&plan), killer.join())
        });
        match restarted {
            Ok(restarted) => restarted?,
            Err(_) => anyhow::bail!("the node could not be killed"),
        }
        // Without durability anything may be gone, the scene itself included.
        let (lost, incomplete) = match (seen, variant) {
            (Ok(seen), Variant::Unmanaged) => (seen.lost(), seen.incomplete),
            (Err(_), Variant::Unmanaged) => (plan.due.len(), 0),
            (seen, _) => {
                let seen = sound(seen?)?;
                (seen.lost(), seen.incomplete)
            }
        };
        bench.row(
            2,
            variant.name(),
            "lost_when_killed",
            "timesteps",
            &[lost as f64],
        );
        let evidence = format!(
            "{lost} of {} timesteps without a result, {incomplete} without a view",
            plan.due.len()
        );
        if variant == Variant::Internal {
            let claim = "Nothing is lost when the node is killed on the way";
            bench.finding(claim, lost == 0 && incomplete == 0, evidence);
        } else {
            bench.note(format!("unmanaged, node killed on the way: {evidence}"));
        }
    }
    Ok(())
}
