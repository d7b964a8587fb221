//! How many containers are needed so that hardly anybody who wants its state local is refused.

use fulmar_policy::local_state::provisioning::Demand;
use serde::Deserialize;

use crate::report::{Finding, Plot, Point, ResultRow, Series, Table};
use crate::{Error, Report, Run, Scenario};

/// See [`Settings`].
pub struct Provision;

/// What can be set; the file says what each is.
#[allow(missing_docs)]
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub clients: u32,
    pub local_share: f64,
    pub rate: f64,
    pub remote_seconds: f64,
    pub max_refused: f64,
}

/// Numbers of clients around the user's own: parts of it.
const AROUND: [f64; 8] = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0];

impl Scenario for Provision {
    type Settings = Settings;
    const NAME: &'static str = "plan provision";
    const SUMMARY: &'static str = "how many containers are needed";
    const FILE: &'static str = include_str!("../../plans/provision.toml");

    fn run(settings: &Settings, _: &Run) -> Result<Report, Error> {
        super::above_zero(&[
            ("rate", settings.rate),
            ("remote_seconds", settings.remote_seconds),
            ("max_refused", settings.max_refused),
        ])?;
        super::at_least_one(&[("clients", settings.clients)])?;
        for (key, value) in [
            ("local_share", settings.local_share),
            ("max_refused", settings.max_refused),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be from 0 to 1"
                )));
            }
        }
        let demand = |clients: u32| Demand {
            clients,
            local_share: settings.local_share,
            rate: settings.rate,
            remote_seconds: settings.remote_seconds,
            max_refused: settings.max_refused,
        };
        let needed = |clients: u32| {
            demand(clients).least_containers().ok_or_else(|| {
                Error::invalid(format!(
                    "with {clients} clients no number of containers keeps refusals to {}: that all containers are just taken counts as refused",
                    settings.max_refused
                ))
            })
        };
        let containers = needed(settings.clients)?;
        let mut report = Report::default();
        let mut table = Table {
            title: "Containers by the number of clients".into(),
            columns: ["clients", "containers", "per client"]
                .map(String::from)
                .to_vec(),
            rows: Vec::new(),
        };
        let mut line = Series {
            name: format!("{} % of the time local", 100.0 * settings.local_share),
            ..Series::default()
        };
        for part in AROUND {
            let clients = (f64::from(settings.clients) * part).round().min(1e6) as u32;
            // Few clients may not be served as asked; the user's own number was.
            let Ok(containers) = needed(clients.max(1)) else {
                continue;
            };
            let per_client = f64::from(containers) / f64::from(clients.max(1));
            table.rows.push(vec![
                clients.to_string(),
                containers.to_string(),
                format!("{per_client:.4}"),
            ]);
            report.results.push(ResultRow {
                config: vec![("clients", clients.to_string())],
                metric: "containers",
                unit: "count",
                mean: f64::from(containers),
                ci95: None,
                n: 1,
            });
            line.points.push(Point {
                x: f64::from(clients),
                y: per_client,
                ci95: None,
            });
        }
        report.tables.push(table);
        report.plots.push(Plot {
            title: "Containers per client".into(),
            x: "clients".into(),
            y: "containers per client".into(),
            log_y: false,
            series: vec![line],
        });
        report.findings.push(Finding {
            claim: format!(
                "provide {containers} containers for {} clients",
                settings.clients
            ),
            holds: true,
            evidence: format!(
                "{:.4} per client; {:.4} for ever more clients",
                f64::from(containers) / f64::from(settings.clients),
                demand(settings.clients).limit_per_client()
            ),
        });
        Ok(report)
    }
}
