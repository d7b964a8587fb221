//! "Stateful FaaS at the Edge": Figs. 3 and 4 by formula and by simulation, and the on-line policy
//! that the paper argues for against every static split.

mod latency;
mod online;
mod provisioning;

use serde::Deserialize;

use crate::{Error, Report, Run, Scenario};

/// See [`Settings`].
pub struct StatefulFaas;

/// What can be set; the scenario's file says what each is.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub containers: u32,
    pub rate: f64,
    pub local_seconds: f64,
    pub remote_seconds: f64,
    pub clients: Vec<u32>,
    pub simulated_points: u32,
    pub simulated_calls: u32,
    pub local_share: Vec<f64>,
    pub max_refused: f64,
    pub fewest_clients: u32,
    pub most_clients: u32,
    pub simulated_slots: u32,
    pub sessions: u32,
    pub busy_share: f64,
    pub busy_factor: f64,
    pub shift_seconds: f64,
    pub shifts: u32,
    pub decide_seconds: f64,
    pub transition_seconds: f64,
    pub horizon_seconds: f64,
    pub replications: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            containers: 40,
            rate: 0.075,
            local_seconds: 1.0,
            remote_seconds: 3.0,
            clients: vec![40, 50, 60, 70, 80, 90, 100, 110, 120],
            simulated_points: 5,
            simulated_calls: 40_000,
            local_share: vec![0.2, 0.3, 0.4],
            max_refused: 0.01,
            fewest_clients: 5,
            most_clients: 100,
            simulated_slots: 20_000,
            sessions: 80,
            busy_share: 0.25,
            busy_factor: 4.0,
            shift_seconds: 1800.0,
            shifts: 6,
            decide_seconds: 30.0,
            transition_seconds: 2.0,
            horizon_seconds: 600.0,
            replications: 10,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<(), Error> {
        let positive = [
            ("rate", self.rate),
            ("local_seconds", self.local_seconds),
            ("remote_seconds", self.remote_seconds),
            ("busy_factor", self.busy_factor),
            ("shift_seconds", self.shift_seconds),
            ("decide_seconds", self.decide_seconds),
            ("horizon_seconds", self.horizon_seconds),
        ];
        for (key, value) in positive {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be a number above 0"
                )));
            }
        }
        if !self.transition_seconds.is_finite() || self.transition_seconds < 0.0 {
            let value = self.transition_seconds;
            return Err(Error::invalid(format!(
                "transition_seconds is {value}; it has to be 0 or more"
            )));
        }
        let shares = self.local_share.iter().map(|share| ("local_share", *share));
        let others = [
            ("busy_share", self.busy_share),
            ("max_refused", self.max_refused),
        ];
        for (key, share) in shares.chain(others) {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::invalid(format!(
                    "{key} is {share}; it has to be from 0 to 1"
                )));
            }
        }
        let counts = [
            ("containers", self.containers),
            ("fewest_clients", self.fewest_clients),
            ("sessions", self.sessions),
            ("shifts", self.shifts),
            ("replications", self.replications),
        ];
        for (key, count) in counts
            .into_iter()
            .chain(self.clients.iter().map(|n| ("clients", *n)))
        {
            if count == 0 {
                return Err(Error::invalid(format!(
                    "{key} is 0; it has to be at least 1"
                )));
            }
        }
        if self.most_clients < self.fewest_clients {
            return Err(Error::invalid(format!(
                "most_clients is {} and fewest_clients {}: there is nothing in between",
                self.most_clients, self.fewest_clients
            )));
        }
        // The on-line comparison keeps every call's latency, for a dozen splits.
        let seconds = self.shift_seconds * f64::from(self.shifts);
        let calls = f64::from(self.sessions) * self.rate * self.busy_factor * seconds;
        let kept = 8.0 * calls * 12.0 * f64::from(self.replications);
        crate::memory::check("keeping the latencies of all calls", kept)
    }

    fn replications(&self, run: &Run) -> u32 {
        run.replications.unwrap_or(self.replications).max(1)
    }
}

impl Scenario for StatefulFaas {
    type Settings = Settings;
    const NAME: &'static str = "stateful-faas";
    const SUMMARY: &'static str =
        "local- or remote-state sessions: latency, containers needed, on-line promotion";
    const FILE: &'static str = include_str!("../../scenarios/stateful-faas.toml");

    fn run(settings: &Settings, run: &Run) -> Result<Report, Error> {
        settings.check()?;
        let mut report = Report::default();
        latency::run(settings, run, &mut report)?;
        provisioning::run(settings, run, &mut report)?;
        online::run(settings, run, &mut report)?;
        Ok(report)
    }
}

/// Says whether the confidence intervals of simulated points contain the formula's values: of
/// intervals of 95 % some may miss.
fn agreement(figure: &str, inside: usize, points: usize, report: &mut Report) {
    if points > 0 {
        report.findings.push(crate::report::Finding {
            claim: format!("{figure}: the simulation agrees with the formula"),
            holds: inside * 10 >= points * 8,
            evidence: format!(
                "{inside} of {points} confidence intervals of 95 % contain the formula's value"
            ),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, resolve};

    #[test]
    fn the_file_has_the_defaults() {
        let settings = resolve::<StatefulFaas>(&Sources::default()).unwrap();
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (set, says) in [
            ("rate=-1", "rate is -1"),
            ("local_share=0.2,1.5", "local_share is 1.5"),
            ("containers=0", "containers is 0"),
            ("rate=nan", "rate is NaN"),
            ("most_clients=2", "nothing in between"),
        ] {
            let sources = Sources {
                set: vec![set.into()],
                ..Sources::default()
            };
            let settings = resolve::<StatefulFaas>(&sources).unwrap();
            let error = StatefulFaas::run(&settings, &Run::quiet(1))
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{set}: {error}");
        }
    }
}
