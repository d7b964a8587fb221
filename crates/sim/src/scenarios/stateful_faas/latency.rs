//! Fig. 3: mean latency against the number of dedicated containers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fulmar_policy::local_state::latency::Clients;

use super::{Settings, agreement};
use crate::random::Random;
use crate::report::{Plot, Point, ResultRow, Series, Table};
use crate::stats::Summary;
use crate::{Error, Report, Run};

/// Points with a fuller pool than this are left to the formula: their queues change so slowly that
/// no reasonable number of calls gives an honest interval.
const MOST_LOAD: f64 = 0.9;

pub(super) fn run(settings: &Settings, run: &Run, report: &mut Report) -> Result<(), Error> {
    let curves: Vec<Clients> = settings
        .clients
        .iter()
        .map(|clients| Clients {
            clients: *clients,
            containers: settings.containers,
            rate: settings.rate,
            local_seconds: settings.local_seconds,
            remote_seconds: settings.remote_seconds,
        })
        .collect();
    let points: Vec<(Clients, u32)> = curves
        .iter()
        .flat_map(|curve| simulated(curve, settings.simulated_points).map(|local| (*curve, local)))
        .collect();
    let replications = settings.replications(run) as usize;
    let values = run.replicate(points.len() * replications, |job| {
        let (curve, local) = points[job / replications];
        let mut random = Random::new(run.seed, job as u64);
        Ok(simulate(
            &curve,
            local,
            settings.simulated_calls,
            &mut random,
        ))
    })?;
    let simulated: Vec<Summary> = values
        .chunks(replications.max(1))
        .map(|values| values.iter().copied().collect())
        .collect();

    let mut plot = Plot {
        title: "Mean latency against the number of dedicated containers (Fig. 3)".into(),
        x: "containers dedicated to local-state sessions".into(),
        y: "mean latency (s)".into(),
        ..Plot::default()
    };
    let mut table = Table {
        title: "Fig. 3: the best number of dedicated containers".into(),
        columns: ["clients", "best", "latency there (s)", "without any (s)"]
            .map(String::from)
            .to_vec(),
        rows: Vec::new(),
    };
    let mut inside = 0;
    for curve in &curves {
        let config = |local: u32, how: &str| {
            vec![
                ("figure", "3".to_owned()),
                ("clients", curve.clients.to_string()),
                ("local", local.to_string()),
                ("by", how.to_owned()),
            ]
        };
        let mut line = Series {
            name: format!("{} clients", curve.clients),
            ..Series::default()
        };
        for local in 0..=curve.containers.min(curve.clients) {
            // Beyond the last stable split the curve ends.
            let Ok(seconds) = curve.mean_seconds(local) else {
                continue;
            };
            line.points.push(Point {
                x: f64::from(local),
                y: seconds,
                ci95: None,
            });
            report.results.push(ResultRow {
                config: config(local, "formula"),
                metric: "mean_latency",
                unit: "s",
                mean: seconds,
                ci95: None,
                n: 1,
            });
        }
        let mut dots = Series {
            name: format!("{} simulated", curve.clients),
            dots: true,
            ..Series::default()
        };
        for ((_, local), summary) in points
            .iter()
            .zip(&simulated)
            .filter(|((other, _), _)| other.clients == curve.clients)
        {
            let formula = curve.mean_seconds(*local);
            inside += usize::from(matches!(
                (summary.ci95(), formula),
                (Some((low, high)), Ok(seconds)) if low <= seconds && seconds <= high
            ));
            dots.points.push(Point {
                x: f64::from(*local),
                y: summary.mean(),
                ci95: summary.ci95(),
            });
            report.results.push(ResultRow {
                config: config(*local, "simulation"),
                metric: "mean_latency",
                unit: "s",
                mean: summary.mean(),
                ci95: summary.ci95(),
                n: summary.n(),
            });
        }
        match curve.optimum() {
            Ok((best, seconds)) => table.rows.push(vec![
                curve.clients.to_string(),
                best.to_string(),
                format!("{seconds:.4}"),
                curve
                    .mean_seconds(0)
                    .map_or_else(|_| "unstable".into(), |seconds| format!("{seconds:.4}")),
            ]),
            Err(unstable) => report
                .notes
                .push(format!("{} clients: {unstable}", curve.clients)),
        }
        plot.series.push(line);
        if !dots.points.is_empty() {
            plot.series.push(dots);
        }
    }
    if replications > 1 {
        agreement("Fig. 3", inside, points.len(), report);
    }
    report.tables.push(table);
    report.plots.push(plot);
    Ok(())
}

/// So many splits of a curve, evenly spread over those with a bearable load.
fn simulated(curve: &Clients, count: u32) -> impl Iterator<Item = u32> + use<> {
    let offered = |local: u32| f64::from(curve.clients - local) * curve.rate * curve.remote_seconds;
    let most = (0..=curve.containers.min(curve.clients))
        .rev()
        .find(|local| {
            let servers = f64::from(curve.containers - local);
            curve.mean_seconds(*local).is_ok() && offered(*local) <= MOST_LOAD * servers
        });
    let count = if most.is_some() { count } else { 0 };
    let most = most.unwrap_or(0);
    let mut splits: Vec<u32> = (0..count)
        .map(|at| (u64::from(most) * u64::from(at) / u64::from(count.max(2) - 1)) as u32)
        .collect();
    splits.dedup();
    splits.into_iter()
}

/// Mean latency over all calls of simulated queues: what each client's calls take, weighted by how
/// many clients there are of each kind.
fn simulate(curve: &Clients, local: u32, calls: u32, random: &mut Random) -> f64 {
    let remote = curve.clients - local;
    let mut seconds = 0.0;
    if local > 0 {
        // All dedicated containers are alike, so one stands for all.
        seconds +=
            f64::from(local) * queue(1, 1.0 / curve.rate, curve.local_seconds, calls, random);
    }
    if remote > 0 {
        let gap = 1.0 / (f64::from(remote) * curve.rate);
        let servers = curve.containers - local;
        seconds += f64::from(remote) * queue(servers, gap, curve.remote_seconds, calls, random);
    }
    seconds / f64::from(curve.clients)
}

/// Mean response time of the calls after the first tenth, served in order of arrival.
fn queue(servers: u32, gap: f64, service: f64, calls: u32, random: &mut Random) -> f64 {
    // When each server is free, as bits: for positive numbers their order is the numbers' order.
    let mut free: BinaryHeap<Reverse<u64>> = (0..servers).map(|_| Reverse(0)).collect();
    let warm_up = calls / 10;
    let mut now = 0.0;
    let mut summary = Summary::default();
    for call in 0..calls + warm_up {
        now += random.exponential(gap);
        let start = free
            .pop()
            .map_or(now, |Reverse(bits)| f64::from_bits(bits).max(now));
        let done = start + random.exponential(service);
        free.push(Reverse(done.to_bits()));
        if call >= warm_up {
            summary.add(done - now);
        }
    }
    summary.mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fulmar_policy::local_state::erlang::pool_seconds;

    #[test]
    fn a_simulated_pool_takes_what_the_formula_says() {
        let expected = pool_seconds(5, 3.0, 1.2).unwrap();
        let values: Summary = (0..20)
            .map(|stream| queue(5, 1.0 / 3.0, 1.2, 20_000, &mut Random::new(3, stream)))
            .collect();
        let (low, high) = values.ci95().unwrap();
        assert!(low < expected && expected < high, "{expected} {low} {high}");
    }

    /// Little's law: mean number in the system = rate x mean time, here counted by area.
    #[test]
    fn littles_law_holds_in_the_simulated_queue() {
        let mut random = Random::new(9, 0);
        let (mut now, mut free, mut area, mut total) = (0.0_f64, 0.0_f64, 0.0, 0.0);
        let calls = 100_000;
        let mut in_system: std::collections::VecDeque<f64> = Default::default();
        for _ in 0..calls {
            let then = now + random.exponential(1.0);
            // Those that leave before the next arrival.
            let mut last = now;
            while let Some(done) = in_system.front().copied().filter(|done| *done <= then) {
                area += (done - last) * in_system.len() as f64;
                last = done;
                in_system.pop_front();
            }
            area += (then - last) * in_system.len() as f64;
            now = then;
            free = free.max(now) + random.exponential(0.7);
            total += free - now;
            in_system.push_back(free);
        }
        let (number, rate, seconds) =
            (area / now, f64::from(calls) / now, total / f64::from(calls));
        assert!(
            (number - rate * seconds).abs() < 0.02 * number,
            "{number} {}",
            rate * seconds
        );
    }
}
