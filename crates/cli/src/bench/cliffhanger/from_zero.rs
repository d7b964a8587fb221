//! Experiment 3: no provisioned concurrency (III-B, Fig. 5). Nothing has run before the first frame; how long until latency is
//! what it is otherwise? Also a burst of ten times as much, and on and off as from a motion detector.

use std::time::Duration;

use fulmar_model::Manifest;
use fulmar_sim::report::{Plot, Point, Series, Table};

use super::cpu::Cpu;
use super::drive::{Seen, steady};
use super::kit::{Kind, Then};
use super::measure::{median, ms, quantile};
use super::{Bench, sound};

/// Part of what can be tracked.
const LOAD: f64 = 0.75;
/// Before and after the burst; ten times as much is more than can be tracked, whatever is done.
const CALM_LOAD: f64 = 0.3;
const BURST: f64 = 10.0;
const BURST_SECONDS: f64 = 1.0;
/// On and off, each for so long, as a part of the run.
const ON: f64 = 0.1;
/// How far from the provisioned run's p95 latency is stable.
const STABLE: f64 = 1.2;
/// Within so many seconds it has to be.
const AIM: f64 = 2.0;
const AIM_OF_PROGRAMS: f64 = 10.0;
/// CPU below this, while frames wait, is what the study saw when all instances were restarted.
const IDLE_CPU: f64 = 0.05;
/// A while whose latencies are looked at, and the step from one to the next, in seconds.
const WHILE: f64 = 2.0;
const STEP: f64 = 0.25;
/// Part of the later whiles that have to be within the limit as well.
const NEARLY_ALL: f64 = 0.9;
/// Parts of a second that latencies are shown by.
const BIN: f64 = 0.5;

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut table = Table {
        title: "Experiment 3: from zero to stable (Fig. 5)".to_owned(),
        columns: [
            "detect",
            "timesteps/s",
            "provisioned p95 of 2 s, ms",
            "first result ms",
            "p95 from then on ms",
            "stable after s",
        ]
        .map(str::to_owned)
        .into(),
        rows: Vec::new(),
    };
    for kind in bench.kit.kinds() {
        let row = of_kind(bench, kind)?;
        table.rows.push(row);
    }
    bench.report.tables.push(table);
    burst(bench)
}

/// How it is with one kind of `detect`: a row of the table.
fn of_kind(bench: &mut Bench, kind: Kind) -> anyhow::Result<Vec<String>> {
    let rate = bench.rate(kind, LOAD)?;
    let seconds = bench.seconds;
    let (mut provisioned, mut from_zero) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        eprintln!("experiment 3, round {}: {}", round + 1, kind.name());
        let server = bench.serve(kind, None, &provision)?;
        let seen = bench.measure(&server, rate, Then::Aggregate)?;
        provisioned.push(sound(seen)?);
        drop(server);
        let server = bench.serve(kind, None, &|_| {})?;
        let cpu = Cpu::watch();
        let seen = bench.drive(&server, steady(rate, seconds))?;
        from_zero.push((seen, cpu.stop()));
    }
    let usual = median(provisioned.iter().map(usual_p95).collect());
    let stable: Vec<f64> = from_zero
        .iter()
        .map(|(seen, _)| stable_from(seen, 0.0, 0.95, usual * STABLE))
        .collect();
    let first = from_zero
        .iter()
        .map(|(seen, _)| seen.steps[0].1.unwrap_or(f64::INFINITY));
    let first = median(first.collect());
    let after = median(stable.clone());
    let then = from_zero
        .iter()
        .map(|(seen, _)| quantile(&seen.latencies(after), 0.95));
    let then = match after.is_finite() {
        true => ms(median(then.collect())),
        false => "never stable".to_owned(),
    };
    let finite: Vec<f64> = stable.into_iter().filter(|s| s.is_finite()).collect();
    bench.row(3, kind.name(), "stable_after", "s", &finite);
    let aim = match kind {
        Kind::Component => AIM,
        Kind::Program | Kind::Container => AIM_OF_PROGRAMS,
    };
    bench.finding(
        format!(
            "{}: stable within {aim} s after the start from nothing (the study: minutes)",
            kind.name()
        ),
        after <= aim,
        format!(
            "{after:.2} s until p95 stays within {STABLE} of {} ms",
            ms(usual)
        ),
    );
    let idle = from_zero
        .iter()
        .map(|(_, cpu)| cpu.longest_below(IDLE_CPU, seconds));
    let idle = idle.fold(0.0, f64::max);
    bench.finding(
        format!(
            "{}: CPU use does not drop to zero on the way (the study: all instances restarted)",
            kind.name()
        ),
        idle < 1.0,
        format!(
            "at most {idle:.1} s in a row below {:.0} %",
            IDLE_CPU * 100.0
        ),
    );
    if let Some((seen, cpu)) = from_zero.first() {
        let lines = [("from zero", seen), ("provisioned", &provisioned[0])];
        let name = kind.name();
        let title = format!("Experiment 3: latency from zero, {name} (Fig. 5, top)");
        bench.report.plots.push(latency_plot(&title, &lines));
        let title = format!("Experiment 3: CPU of the machine, {name} (Fig. 5, bottom)");
        bench.report.plots.push(cpu.plot(&title));
    }
    on_and_off(bench, kind, rate, usual)?;
    Ok(vec![
        kind.name().to_owned(),
        format!("{rate:.1}"),
        ms(usual),
        ms(first),
        then,
        format!("{after:.2}"),
    ])
}

/// What the 95th percentiles of a while are within in nearly all of a run.
fn usual_p95(seen: &Seen) -> f64 {
    let end = seen.steps.last().map_or(0.0, |(due, _)| *due) - WHILE;
    let starts = (0..).map(|n| f64::from(n) * STEP);
    let starts = starts.take_while(|start| *start <= end.max(0.0));
    let mut whiles: Vec<f64> = starts
        .filter_map(|start| within(seen, start, 0.95))
        .collect();
    whiles.sort_by(f64::total_cmp);
    quantile(&whiles, NEARLY_ALL)
}

/// What is provisioned is there before the first frame.
fn provision(manifest: &mut Manifest) {
    if manifest.is_program() {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        manifest.workers.min = (cores as u32).min(manifest.workers.max);
    }
}

/// A quantile of the timesteps that were due within a while from then on; infinite if one is lost, none if there are none.
fn within(seen: &Seen, from: f64, share: f64) -> Option<f64> {
    let due = |due: &f64| (from..from + WHILE).contains(due);
    let took = seen.steps.iter().filter(|(at, _)| due(at));
    let mut took: Vec<f64> = took
        .map(|(_, took)| took.unwrap_or(f64::INFINITY))
        .collect();
    took.sort_by(f64::total_cmp);
    (!took.is_empty()).then(|| quantile(&took, share))
}

/// From when on, in seconds, a quantile is within the limit: in the while that begins then, and in nearly all later ones;
/// infinite if never.
fn stable_from(seen: &Seen, from: f64, share: f64, limit: f64) -> f64 {
    let end = seen.steps.last().map_or(0.0, |(due, _)| *due) - WHILE;
    let starts = (0..).map(|n| from + f64::from(n) * STEP);
    let starts = starts.take_while(|start| *start <= end);
    let is_fine = |start: f64| within(seen, start, share).is_none_or(|found| found <= limit);
    let fine: Vec<(f64, bool)> = starts.map(|start| (start, is_fine(start))).collect();
    let rests = (0..fine.len()).map(|at| &fine[at..]);
    let is_stable = |rest: &&[(f64, bool)]| {
        let count = rest.iter().filter(|(_, is_fine)| *is_fine).count();
        rest[0].1 && count as f64 >= NEARLY_ALL * rest.len() as f64
    };
    let first = rests.filter(|rest| is_stable(rest)).map(|rest| rest[0].0);
    first.fold(f64::INFINITY, f64::min)
}

fn burst(bench: &mut Bench) -> anyhow::Result<()> {
    let kind = Kind::Component;
    let calm = bench.rate(kind, CALM_LOAD)?;
    let seconds = bench.seconds.max(8.0);
    let at = seconds / 4.0;
    let mut due = steady(calm, at);
    let shift = |times: Vec<Duration>, by: f64| {
        let by = Duration::from_secs_f64(by);
        times.into_iter().map(move |time| time + by)
    };
    due.extend(shift(steady(calm * BURST, BURST_SECONDS), at));
    due.extend(shift(
        steady(calm, seconds - at - BURST_SECONDS),
        at + BURST_SECONDS,
    ));
    eprintln!("experiment 3: burst");
    let server = bench.serve(kind, None, &|_| {})?;
    bench.drive(&server, steady(calm, 2.0))?;
    server.open_scene(&bench.kit, false)?;
    let seen = bench.drive(&server, due)?;
    let before = within(&seen, at - WHILE, 0.5).unwrap_or_default();
    let end = at + BURST_SECONDS;
    let recovered = stable_from(&seen, end, 0.5, before * STABLE) - end;
    // Whatever is done, the surplus takes this long to be worked off.
    let surplus = bench.rate(kind, 1.0).map(|most| {
        let extra = (calm * BURST - most).max(0.0) * BURST_SECONDS;
        extra / (most - calm)
    })?;
    let finite: Vec<f64> = [recovered].into_iter().filter(|s| s.is_finite()).collect();
    bench.row(3, "component", "recovered_after_burst", "s", &finite);
    bench.finding(
        format!("After a second of ten times as much: all is tracked, and latency is back when the surplus is worked off ({surplus:.1} s) and 2 s later at most"),
        seen.lost() == 0 && recovered <= surplus + AIM,
        format!("{} of {} timesteps lost, {} frames turned away on the way, back after {recovered:.1} s", seen.lost(), seen.steps.len(), seen.turned_away),
    );
    let title = "Experiment 3: latency before and after a burst";
    bench
        .report
        .plots
        .push(latency_plot(title, &[("burst", &seen)]));
    Ok(())
}

fn on_and_off(bench: &mut Bench, kind: Kind, rate: f64, usual: f64) -> anyhow::Result<()> {
    let period = bench.seconds * ON;
    let rounds = (1.0 / ON / 2.0) as u32;
    let due = (0..rounds).flat_map(|round| {
        let start = Duration::from_secs_f64(f64::from(round) * 2.0 * period);
        steady(rate, period)
            .into_iter()
            .map(move |time| start + time)
    });
    eprintln!("experiment 3: {}, on and off", kind.name());
    let server = bench.serve(kind, None, &|_| {})?;
    let seen = bench.drive(&server, due.collect())?;
    let p95 = seen.quantile(0.95);
    bench.row(3, kind.name(), "on_and_off_p95", "s", &[p95]);
    bench.note(format!(
        "experiment 3, {}, on and off every {period:.1} s: p95 {} ms (all the time: {} ms), {} timesteps lost",
        kind.name(),
        ms(p95),
        ms(usual),
        seen.lost()
    ));
    Ok(())
}

/// Medians of half seconds.
fn latency_plot(title: &str, lines: &[(&str, &Seen)]) -> Plot {
    let line = |(name, seen): &(&str, &Seen)| {
        let end = seen.steps.last().map_or(0.0, |(due, _)| *due);
        let bins = (end / BIN).ceil() as u32;
        let point = |bin: u32| {
            let from = f64::from(bin) * BIN;
            let steps = seen.steps.iter();
            let took = steps.filter(|(due, _)| (from..from + BIN).contains(due));
            let took: Vec<f64> = took.filter_map(|(_, took)| *took).collect();
            (!took.is_empty()).then(|| Point {
                x: from,
                y: median(took) * 1e3,
                ci95: None,
            })
        };
        Series {
            name: (*name).to_owned(),
            points: (0..bins).filter_map(point).collect(),
            dots: false,
        }
    };
    Plot {
        title: title.to_owned(),
        x: "s".into(),
        y: "end to end, ms".into(),
        log_y: true,
        series: lines.iter().map(line).collect(),
    }
}
