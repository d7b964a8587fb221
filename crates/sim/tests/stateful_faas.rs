//! Figs. 3 and 4 against what the authors' own programs printed.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use fulmar_policy::local_state::latency::Clients;
use fulmar_policy::local_state::provisioning::Demand;
use fulmar_sim::Run;
use fulmar_sim::scenarios;
use fulmar_sim::settings::Sources;

/// Lines of a file of the reference data, or nothing, loudly.
fn reference(name: &str) -> Option<Vec<Vec<String>>> {
    let path = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../shared/reference"
    ))
    .join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(
            text.lines()
                .map(|line| line.split(',').map(str::to_owned).collect())
                .collect(),
        ),
        Err(error) => {
            eprintln!("SKIPPED: no reference data at {}: {error}", path.display());
            None
        }
    }
}

/// As C++ prints a number by default: six significant digits, no trailing zeros.
fn six_digits(value: f64) -> String {
    let whole = value.abs().log10().floor() as i32 + 1;
    let decimals = (6 - whole.max(i32::from(value < 1.0))).clamp(0, 12) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[test]
fn mean_latency_equals_every_printed_digit() {
    let Some(lines) = reference("stateful_faas_fig3_expected.csv") else {
        return;
    };
    let mut compared = 0;
    for line in &lines[1..] {
        let local: u32 = line[0].parse().unwrap();
        for (column, expected) in lines[0].iter().zip(line).skip(1) {
            let clients = Clients {
                clients: column.trim_start_matches('N').parse().unwrap(),
                containers: 40,
                rate: 0.075,
                local_seconds: 1.0,
                remote_seconds: 3.0,
            };
            match clients.mean_seconds(local) {
                Ok(seconds) => {
                    let expected = six_digits(expected.parse().unwrap());
                    assert_eq!(six_digits(seconds), expected, "{column} {local}");
                }
                Err(unstable) => assert_eq!(expected, "", "{column} {local}: {unstable}"),
            }
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared}");
}

#[test]
fn containers_needed_equal_every_printed_digit() {
    let Some(lines) = reference("stateful_faas_fig4_20pct_expected.csv") else {
        return;
    };
    for line in &lines[1..] {
        let clients: u32 = line[0].parse().unwrap();
        let demand = Demand {
            clients,
            local_share: 0.2,
            rate: 0.075,
            remote_seconds: 3.0,
            max_refused: 0.01,
        };
        let containers = demand.least_containers().unwrap();
        assert_eq!(containers.to_string(), line[1], "{clients} clients");
        let per_client = f64::from(containers) / f64::from(clients);
        let printed: f64 = line[2].parse().unwrap();
        assert!((per_client - printed).abs() < 5e-7, "{clients} clients");
    }
    assert!(lines.len() > 90);
}

/// The paper's text gives the values near 100 clients: 0.47, 0.55, 0.64.
#[test]
fn the_other_curves_end_where_the_paper_says() {
    for (local_share, paper) in [(0.2, 0.47), (0.3, 0.55), (0.4, 0.64)] {
        let near: Vec<f64> = (95..=100)
            .map(|clients| {
                let demand = Demand {
                    clients,
                    local_share,
                    rate: 0.075,
                    remote_seconds: 3.0,
                    max_refused: 0.01,
                };
                f64::from(demand.least_containers().unwrap()) / f64::from(clients)
            })
            .collect();
        assert!(
            near.iter().any(|value| (value - paper).abs() < 0.006),
            "{local_share}: {near:?} against {paper}"
        );
    }
}

fn short(threads: usize, seed: u64) -> fulmar_sim::Report {
    let set = [
        "clients=60,90",
        "simulated_points=3",
        "simulated_calls=4000",
        "most_clients=30",
        "simulated_slots=4000",
        "sessions=60",
        "shifts=3",
        "replications=5",
    ];
    let sources = Sources {
        set: set.map(String::from).to_vec(),
        ..Sources::default()
    };
    let mut run = Run::quiet(seed);
    run.threads = threads;
    scenarios::find("stateful-faas")
        .unwrap()
        .run(&sources, &run)
        .unwrap()
}

#[test]
fn the_same_seed_gives_the_same_report_on_any_number_of_threads() {
    let one = short(1, 7);
    assert_eq!(one, short(2, 7));
    assert_ne!(one, short(2, 8));
    one.check().unwrap();
}

#[test]
fn simulation_agrees_with_the_formulas_and_the_policy_wins() {
    for finding in short(2, 1).findings {
        assert!(finding.holds, "{}: {}", finding.claim, finding.evidence);
    }
}
