//! The in-network scenario against what the authors' own program gave on the same files.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use fulmar_sim::scenarios;
use fulmar_sim::settings::Sources;
use fulmar_sim::{Report, Run};

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/reference");

/// A line of a file by the names of its columns.
type Line = Vec<(String, String)>;

fn field<'a>(line: &'a Line, name: &str) -> &'a str {
    &line.iter().find(|(other, _)| other == name).unwrap().1
}

fn number(line: &Line, name: &str) -> f64 {
    field(line, name).parse().unwrap()
}

fn reference(name: &str) -> Option<Vec<Line>> {
    let path = PathBuf::from(REFERENCE).join(name);
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: reference data is not there: {}", path.display());
        return None;
    };
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned));
    let head: Vec<String> = lines.next().unwrap().collect();
    Some(
        lines
            .map(|line| head.iter().cloned().zip(line).collect())
            .collect(),
    )
}

fn iiot(set: &[&str], replications: u32) -> Report {
    let files = [
        format!("topology={REFERENCE}/iiot/iiot.0"),
        format!("trace={REFERENCE}/batch_task.csv.gz"),
    ];
    let sources = Sources {
        set: files
            .into_iter()
            .chain(set.iter().map(|set| (*set).to_owned()))
            .collect(),
        ..Sources::default()
    };
    let mut run = Run::quiet(1);
    run.replications = Some(replications);
    scenarios::find("in-network")
        .unwrap()
        .run(&sources, &run)
        .unwrap()
}

fn mean(report: &Report, metric: &str, config: &[(&str, &str)]) -> Option<(f64, u64)> {
    report
        .results
        .iter()
        .find(|row| {
            row.metric == metric
                && row.config.len() == config.len()
                && config.iter().all(|(name, value)| {
                    row.config
                        .iter()
                        .any(|(other, is)| other == name && is == value)
                })
        })
        .map(|row| (row.mean, row.n))
}

/// Compares every mean of the reference for the given numbers of jobs.
fn means_agree(jobs: &str, replications: u32, tolerance: f64) {
    let Some(lines) = reference("in_network_iiot_expected.csv") else {
        return;
    };
    let report = iiot(
        &[&format!("jobs={jobs}"), "allocation=load,load+net"],
        replications,
    );
    let (mut compared, mut worst) = (0, Vec::new());
    for line in &lines {
        if !jobs.split(',').any(|jobs| jobs == field(line, "jobs")) {
            continue;
        }
        let allocation = field(line, "alloc").to_lowercase();
        let config = [
            ("jobs", field(line, "jobs")),
            ("allocation", &*allocation),
            ("model", field(line, "exec")),
        ];
        for (metric, column) in [
            ("traffic", "mean_traffic_MB"),
            ("processing_latency", "mean_proc_ms"),
            ("network_latency", "mean_net_ms"),
        ] {
            let (ours, _) = mean(&report, metric, &config).unwrap();
            let theirs = number(line, column);
            let off = (ours - theirs) / theirs;
            worst.push((off, format!("{config:?} {metric}: {ours} against {theirs}")));
            compared += 1;
        }
    }
    assert!(compared >= 24);
    worst.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
    eprintln!("{compared} means, the worst: {:?}", &worst[..3]);
    assert!(worst[0].0.abs() < tolerance, "{:?}", &worst[..8]);
}

#[test]
fn means_agree_roughly_in_few_replications() {
    means_agree("500", 20, 0.05);
}

#[test]
#[ignore = "long: 200 replications"]
fn means_agree_within_two_percent() {
    // Clients and functions are drawn once for all replications, by them and by us: two draws
    // differ by about a percent.
    means_agree("500", 200, 0.02);
}

#[test]
#[ignore = "long: 200 replications"]
fn quantiles_and_chain_lengths_agree() {
    let (Some(quantiles), Some(lengths)) = (
        reference("in_network_iiot_500jobs_quantiles_expected.csv"),
        reference("in_network_iiot_500jobs_netlat_by_chain_expected.csv"),
    ) else {
        return;
    };
    let report = iiot(&["jobs=500", "allocation=load,load+net"], 200);
    let mut worst = Vec::new();
    for line in &quantiles {
        let allocation = field(line, "alloc").to_lowercase();
        // The file also has the mean among its quantiles.
        let Ok(share) = field(line, "quantile").parse::<f64>() else {
            continue;
        };
        let Some(ours) = report.quantiles.iter().find(|row| {
            row.config[1].1 == allocation
                && row.config[2].1 == field(line, "exec")
                && (row.quantile - share).abs() < 1e-9
        }) else {
            continue;
        };
        let theirs = number(line, "total_latency_ms");
        // A few jobs make the ends, and theirs have drawn other clients than ours.
        let ends = match (0.1..=0.9).contains(&share) {
            true => 1.0,
            false => 3.0,
        };
        let off = (ours.value - theirs).abs() / theirs / ends;
        worst.push((off, format!("{line:?} {}", ours.value)));
    }
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    eprintln!("{} quantiles, the worst: {:?}", worst.len(), &worst[..2]);
    assert!(worst.len() >= 40 && worst[0].0 < 0.03, "{:?}", &worst[..8]);
    let mut worst = Vec::new();
    for line in lengths.iter().filter(|line| number(line, "n") >= 500.0) {
        let allocation = field(line, "alloc").to_lowercase();
        let config = [
            ("jobs", "500"),
            ("allocation", &*allocation),
            ("model", field(line, "exec")),
            ("chain_length", field(line, "chain_len")),
        ];
        let (ours, _) = mean(&report, "network_latency", &config).unwrap();
        let theirs = number(line, "netlat_ms");
        worst.push((
            (ours - theirs).abs() / theirs,
            format!("{config:?} {ours} {theirs}"),
        ));
    }
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    eprintln!("{} lengths, the worst: {:?}", worst.len(), &worst[..2]);
    // Of some lengths there are few different jobs, each with one client.
    let far = worst.iter().filter(|(off, _)| *off >= 0.05).count();
    assert!(
        worst.len() >= 40 && far * 20 <= worst.len(),
        "{:?}",
        &worst[..8]
    );
    assert!(worst[0].0 < 0.08, "{:?}", &worst[..8]);
}

#[test]
fn looking_ahead_beats_load_and_net() {
    if reference("in_network_iiot_expected.csv").is_none() {
        return;
    }
    let report = iiot(&["jobs=500", "allocation=load+net,look-ahead"], 10);
    for model in ["in-function", "in-client", "in-edge", "external"] {
        let total = |allocation: &str| {
            let config = [
                ("jobs", "500"),
                ("allocation", allocation),
                ("model", model),
            ];
            mean(&report, "total_latency", &config).unwrap().0
        };
        let (paper, ours) = (total("load+net"), total("look-ahead"));
        eprintln!("{model}: load+net {paper:.1} ms, look-ahead {ours:.1} ms");
        if model.starts_with("in-f") || model.starts_with("in-c") {
            assert!(ours < 0.9 * paper, "{model}: {ours} against {paper}");
        }
    }
}
