//! The use cases of "Stateful FaaS at the Edge", section IV: sessions that need their state near for a
//! while, and do not mind for the rest of the time.

mod compare;
mod world;

use serde::Deserialize;

use crate::{Error, Report, Run, Scenario};

/// Cars that drive from cell to cell and park; see [`Settings`].
pub struct SmartVehicle;

/// Robotic arms that now and then need watching closely; see [`Settings`].
pub struct SmartFactory;

/// What can be set; the scenarios' files say what each is.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub sessions: u32,
    pub nodes: u32,
    pub containers: u32,
    pub calm_rate: f64,
    pub calm_slo_seconds: f64,
    pub calm_seconds: f64,
    pub strict_rate: f64,
    pub strict_slo_seconds: f64,
    pub strict_seconds: f64,
    pub move_seconds: f64,
    pub moves_when_strict: bool,
    pub exec_seconds: f64,
    pub message_bytes: f64,
    pub state_bytes: f64,
    pub access_seconds: f64,
    pub access_mbps: f64,
    pub hop_seconds: f64,
    pub edge_mbps: f64,
    pub store_seconds: f64,
    pub store_mbps: f64,
    pub start_seconds: f64,
    pub decide_seconds: f64,
    pub horizon_seconds: f64,
    pub seconds: f64,
    pub replications: u32,
}

/// One thing that the two use cases call by different names.
#[derive(Debug, Clone, Copy)]
struct Words {
    calm: &'static str,
    strict: &'static str,
}

impl Settings {
    fn check(&self) -> Result<(), Error> {
        let positive = [
            ("calm_rate", self.calm_rate),
            ("calm_slo_seconds", self.calm_slo_seconds),
            ("calm_seconds", self.calm_seconds),
            ("strict_rate", self.strict_rate),
            ("strict_slo_seconds", self.strict_slo_seconds),
            ("strict_seconds", self.strict_seconds),
            ("exec_seconds", self.exec_seconds),
            ("access_mbps", self.access_mbps),
            ("edge_mbps", self.edge_mbps),
            ("store_mbps", self.store_mbps),
            ("decide_seconds", self.decide_seconds),
            ("horizon_seconds", self.horizon_seconds),
            ("seconds", self.seconds),
        ];
        let not_negative = [
            ("move_seconds", self.move_seconds),
            ("message_bytes", self.message_bytes),
            ("state_bytes", self.state_bytes),
            ("access_seconds", self.access_seconds),
            ("hop_seconds", self.hop_seconds),
            ("store_seconds", self.store_seconds),
            ("start_seconds", self.start_seconds),
        ];
        for (key, value) in positive {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be above 0"
                )));
            }
        }
        for (key, value) in not_negative {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be 0 or above"
                )));
            }
        }
        let counts = [
            ("sessions", self.sessions),
            ("nodes", self.nodes),
            ("containers", self.containers),
            ("replications", self.replications),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Error::invalid(format!(
                "{key} is 0; it has to be at least 1"
            )));
        }
        // All sessions remote-state, none of them strict: what the pools have to bear at least.
        let sessions = f64::from(self.sessions) / f64::from(self.nodes);
        let load = sessions * self.calm_rate * self.remote_seconds() / f64::from(self.containers);
        if load >= 1.0 {
            return Err(Error::invalid(format!(
                "the containers of a node are unstable: their load is {load:.4} of what they can serve, {:.4} too much",
                load - 1.0
            )));
        }
        // Every call's latency is kept, under each of three strategies.
        let calls = f64::from(self.sessions) * self.calm_rate.max(self.strict_rate) * self.seconds;
        let kept = 8.0 * calls * 3.0 * f64::from(self.replications);
        crate::memory::check("keeping the latencies of all calls", kept)
    }

    /// How long a remote-state call keeps its container: state read, function executed, state written.
    fn remote_seconds(&self) -> f64 {
        self.exec_seconds + 2.0 * self.store_access_seconds()
    }

    /// There and back, with the state one way.
    fn store_access_seconds(&self) -> f64 {
        2.0 * self.store_seconds + 8e-6 * self.state_bytes / self.store_mbps
    }

    /// From the client to its node and back.
    fn client_seconds(&self) -> f64 {
        2.0 * self.access_seconds + 2.0 * 8e-6 * self.message_bytes / self.access_mbps
    }
}

impl Scenario for SmartVehicle {
    type Settings = Vehicles;
    const NAME: &'static str = "smart-vehicle";
    const SUMMARY: &'static str =
        "cars drive from cell to cell and park: state follows when it has to be near";
    const FILE: &'static str = include_str!("../../scenarios/smart-vehicle.toml");

    fn run(settings: &Vehicles, run: &Run) -> Result<Report, Error> {
        settings.0.check()?;
        let words = Words {
            calm: "driving",
            strict: "parking",
        };
        compare::run(&settings.0, words, run)
    }
}

impl Scenario for SmartFactory {
    type Settings = Arms;
    const NAME: &'static str = "smart-factory";
    const SUMMARY: &'static str =
        "robotic arms that are watched closely while they behave abnormally";
    const FILE: &'static str = include_str!("../../scenarios/smart-factory.toml");

    fn run(settings: &Arms, run: &Run) -> Result<Report, Error> {
        settings.0.check()?;
        let words = Words {
            calm: "normal",
            strict: "abnormal",
        };
        compare::run(&settings.0, words, run)
    }
}

macro_rules! defaults_from_its_file {
    ($($settings:ident of $scenario:ident)*) => {$(
        /// The settings of this use case, which differ in their defaults only.
        #[derive(Debug, Clone, Deserialize, PartialEq)]
        #[serde(transparent)]
        pub struct $settings(Settings);

        impl Default for $settings {
            fn default() -> Self {
                // A test reads each built-in file.
                crate::settings::resolve::<$scenario>(&crate::settings::Sources::default())
                    .expect("the built-in file has every setting")
            }
        }
    )*};
}

defaults_from_its_file! {
    Vehicles of SmartVehicle
    Arms of SmartFactory
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, resolve};

    #[test]
    fn nonsense_is_refused_by_name() {
        for (set, says) in [
            ("calm_rate=0", "calm_rate is 0"),
            ("access_seconds=-1", "access_seconds is -1"),
            ("nodes=0", "nodes is 0"),
            ("store_mbps=nan", "store_mbps is NaN"),
            ("containers=1", "the containers of a node are unstable"),
        ] {
            let sources = Sources {
                set: vec![set.into()],
                ..Sources::default()
            };
            let vehicles = resolve::<SmartVehicle>(&sources)
                .and_then(|settings| SmartVehicle::run(&settings, &Run::quiet(1)));
            let text = vehicles.unwrap_err().to_string();
            assert!(text.contains(says), "{set}: {text}");
        }
        assert_ne!(Vehicles::default().0, Arms::default().0);
    }
}
