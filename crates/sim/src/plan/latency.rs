//! Mean latency against the number of dedicated containers, and the best number.

use fulmar_policy::local_state::latency::Clients;
use serde::Deserialize;

use crate::report::{Finding, Plot, Point, ResultRow, Series, Table};
use crate::{Error, Report, Run, Scenario};

/// See [`Settings`].
pub struct Latency;

/// What can be set; the file says what each is.
#[allow(missing_docs)]
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub clients: u32,
    pub containers: u32,
    pub rate: f64,
    pub local_seconds: f64,
    pub remote_seconds: f64,
}

/// Rows of the table at most.
const ROWS: usize = 12;

impl Scenario for Latency {
    type Settings = Settings;
    const NAME: &'static str = "plan latency";
    const SUMMARY: &'static str = "how many containers to dedicate to single sessions";
    const FILE: &'static str = include_str!("../../plans/latency.toml");

    fn run(settings: &Settings, _: &Run) -> Result<Report, Error> {
        super::above_zero(&[
            ("rate", settings.rate),
            ("local_seconds", settings.local_seconds),
            ("remote_seconds", settings.remote_seconds),
        ])?;
        super::at_least_one(&[
            ("clients", settings.clients),
            ("containers", settings.containers),
        ])?;
        let clients = Clients {
            clients: settings.clients,
            containers: settings.containers,
            rate: settings.rate,
            local_seconds: settings.local_seconds,
            remote_seconds: settings.remote_seconds,
        };
        let (best, least) = clients
            .optimum()
            .map_err(|error| Error::invalid(error.to_string()))?;
        let stable: Vec<(u32, f64)> = (0..=clients.containers.min(clients.clients))
            .filter_map(|local| Some((local, clients.mean_seconds(local).ok()?)))
            .collect();
        let mut report = Report::default();
        let every = stable.len().div_ceil(ROWS);
        let shown = |at: usize, local: u32| at.is_multiple_of(every) || local == best;
        report.tables.push(Table {
            title: "Mean latency by the number of dedicated containers".into(),
            columns: ["dedicated", "shared", "mean latency (s)"]
                .map(String::from)
                .to_vec(),
            rows: stable
                .iter()
                .enumerate()
                .filter(|(at, (local, _))| shown(*at, *local))
                .map(|(_, (local, seconds))| {
                    let mark = if *local == best { " <- best" } else { "" };
                    vec![
                        local.to_string(),
                        (clients.containers - local).to_string(),
                        format!("{seconds:.4}{mark}"),
                    ]
                })
                .collect(),
        });
        report.results = stable
            .iter()
            .map(|(local, seconds)| ResultRow {
                config: vec![("local", local.to_string())],
                metric: "mean_latency",
                unit: "s",
                mean: *seconds,
                ci95: None,
                n: 1,
            })
            .collect();
        let point = |(local, seconds): &(u32, f64)| Point {
            x: f64::from(*local),
            y: *seconds,
            ci95: None,
        };
        report.plots.push(Plot {
            title: format!(
                "{} clients, {} containers",
                clients.clients, clients.containers
            ),
            x: "dedicated containers".into(),
            y: "mean latency (s)".into(),
            log_y: false,
            series: vec![Series {
                name: "mean latency".into(),
                points: stable.iter().map(point).collect(),
                dots: false,
            }],
        });
        let none = clients.mean_seconds(0);
        report.findings.push(Finding {
            claim: format!("dedicate {best} of {} containers", clients.containers),
            holds: true,
            evidence: match none {
                Ok(none) => format!("mean latency {least:.4} s, without any {none:.4} s"),
                Err(error) => format!("mean latency {least:.4} s; without any, {error}"),
            },
        });
        Ok(report)
    }
}
