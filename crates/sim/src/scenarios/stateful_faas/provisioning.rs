//! Fig. 4: containers per client so that hardly anybody who wants to be local-state is not.

use fulmar_policy::local_state::provisioning::Demand;

use super::{Settings, agreement};
use crate::random::Random;
use crate::report::{Plot, Point, ResultRow, Series, Table};
use crate::stats::Summary;
use crate::{Error, Report, Run};

/// Mean slots that a client keeps wanting to be local-state.
const MEAN_LOCAL_SLOTS: f64 = 2.0;
/// Simulated points of a curve, evenly spread.
const POINTS: u32 = 5;

pub(super) fn run(settings: &Settings, run: &Run, report: &mut Report) -> Result<(), Error> {
    let demand = |clients: u32, local_share: f64| Demand {
        clients,
        local_share,
        rate: settings.rate,
        remote_seconds: settings.remote_seconds,
        max_refused: settings.max_refused,
    };
    let mut plot = Plot {
        title: "Containers per client (Fig. 4)".into(),
        x: "clients".into(),
        y: "containers per client".into(),
        ..Plot::default()
    };
    let mut table = Table {
        title: "Fig. 4: containers needed".into(),
        columns: [
            "time as local-state",
            "clients",
            "containers",
            "per client",
            "limit per client",
        ]
        .map(String::from)
        .to_vec(),
        rows: Vec::new(),
    };
    let span = settings.most_clients - settings.fewest_clients;
    let mut points = Vec::new();
    for local_share in &settings.local_share {
        let mut line = Series {
            name: format!("{} %", local_share * 100.0),
            ..Series::default()
        };
        for clients in settings.fewest_clients..=settings.most_clients {
            let demand = demand(clients, *local_share);
            let Some(containers) = demand.least_containers() else {
                report.notes.push(format!(
                    "{clients} clients at {} %: no number of containers is enough, since exactly full counts as refused",
                    local_share * 100.0
                ));
                continue;
            };
            let per_client = f64::from(containers) / f64::from(clients);
            line.points.push(Point {
                x: f64::from(clients),
                y: per_client,
                ci95: None,
            });
            for (metric, unit, mean) in [
                ("containers", "count", f64::from(containers)),
                ("containers_per_client", "ratio", per_client),
            ] {
                report.results.push(ResultRow {
                    config: config(clients, *local_share, "formula"),
                    metric,
                    unit,
                    mean,
                    ci95: None,
                    n: 1,
                });
            }
            if clients == settings.most_clients {
                table.rows.push(vec![
                    line.name.clone(),
                    clients.to_string(),
                    containers.to_string(),
                    format!("{per_client:.4}"),
                    format!("{:.4}", demand.limit_per_client()),
                ]);
            }
            let step = (span / POINTS).max(1);
            if (clients - settings.fewest_clients) % step == step - 1
                && settings.simulated_slots > 0
            {
                points.push((demand, demand.most_dedicated(containers).unwrap_or(0)));
            }
        }
        plot.series.push(line);
    }
    let replications = settings.replications(run) as usize;
    let values = run.replicate(points.len() * replications, |job| {
        let (demand, dedicated) = points[job / replications];
        // Streams of their own, far from those of the other experiments.
        let mut random = Random::new(run.seed, (1 << 40) + job as u64);
        Ok(refused(
            &demand,
            dedicated,
            settings.simulated_slots,
            &mut random,
        ))
    })?;
    let mut inside = 0;
    for ((demand, dedicated), values) in points.iter().zip(values.chunks(replications)) {
        let simulated: Summary = values.iter().copied().collect();
        let formula = demand.refused(*dedicated);
        inside += usize::from(
            simulated
                .ci95()
                .is_some_and(|(low, high)| low <= formula && formula <= high),
        );
        for (how, mean, ci95, n) in [
            ("formula", formula, None, 1),
            (
                "simulation",
                simulated.mean(),
                simulated.ci95(),
                simulated.n(),
            ),
        ] {
            report.results.push(ResultRow {
                config: config(demand.clients, demand.local_share, how),
                metric: "refused",
                unit: "probability",
                mean,
                ci95,
                n,
            });
        }
    }
    if replications > 1 {
        agreement("Fig. 4", inside, points.len(), report);
    }
    report.tables.push(table);
    report.plots.push(plot);
    Ok(())
}

fn config(clients: u32, local_share: f64, how: &str) -> crate::report::Config {
    vec![
        ("figure", "4".to_owned()),
        ("clients", clients.to_string()),
        ("local_share", local_share.to_string()),
        ("by", how.to_owned()),
    ]
}

/// Clients that change between wanting and not wanting, each a two-state Markov chain: how often
/// all dedicated containers are taken while anybody wants one.
fn refused(demand: &Demand, dedicated: u32, slots: u32, random: &mut Random) -> f64 {
    let share = demand.local_share;
    // In balance: share * leaves = (1 - share) * joins.
    let leaves = 1.0 / MEAN_LOCAL_SLOTS;
    let joins = (share * leaves / (1.0 - share).max(f64::MIN_POSITIVE)).min(1.0);
    let mut wants: Vec<bool> = (0..demand.clients).map(|_| random.chance(share)).collect();
    let (mut anybody, mut full) = (0_u32, 0_u32);
    for _ in 0..slots {
        let mut local = 0;
        for want in &mut wants {
            *want = match *want {
                true => !random.chance(leaves),
                false => random.chance(joins),
            };
            local += u32::from(*want);
        }
        anybody += u32::from(local > 0);
        full += u32::from(local > 0 && local >= dedicated);
    }
    f64::from(full) / f64::from(anybody.max(1))
}
