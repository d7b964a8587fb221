//! "Cliffhanger": the object-tracking pipeline on one edge server, its findings named one by one.

mod cpu;
mod findings;
mod plant;

use serde::Deserialize;

use crate::{Error, Report, Run, Scenario};

/// See [`Settings`].
pub struct Cliffhanger;

/// What can be set; the scenario's file says what each is.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub cpus: f64,
    pub cameras: u32,
    pub detect_cpu_seconds: f64,
    pub detect_spread: f64,
    pub parallel_share: f64,
    pub sharing_overhead: f64,
    pub wait_seconds: f64,
    pub outage_seconds: f64,
    pub outage_every_seconds: f64,
    pub aggregate_cpu_seconds: f64,
    pub aggregate_wait_seconds: f64,
    pub start_cpu_seconds: f64,
    pub start_wait_seconds: f64,
    pub frames_per_second: f64,
    pub cold_frames_per_second: f64,
    pub instances: u32,
    pub more_instances: u32,
    pub seconds: f64,
    pub cold_seconds: f64,
    pub replications: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cpus: 64.0,
            cameras: 7,
            detect_cpu_seconds: 7.0,
            detect_spread: 0.3,
            parallel_share: 0.15,
            sharing_overhead: 0.13,
            wait_seconds: 1.5,
            outage_seconds: 8.0,
            outage_every_seconds: 60.0,
            aggregate_cpu_seconds: 0.01,
            aggregate_wait_seconds: 0.3,
            start_cpu_seconds: 12.0,
            start_wait_seconds: 2.0,
            frames_per_second: 1.0,
            cold_frames_per_second: 0.75,
            instances: 60,
            more_instances: 100,
            seconds: 900.0,
            cold_seconds: 400.0,
            replications: 10,
        }
    }
}

/// Who starts workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scaler {
    /// All are there from the beginning.
    Provisioned,
    /// One for each invocation in flight, as today's platforms do.
    PerInvocation,
    /// [`fulmar_policy::scaling`].
    Policy,
}

/// One configuration of the experiments.
#[derive(Debug, Clone, PartialEq)]
struct Setup {
    experiment: &'static str,
    name: String,
    instances: u32,
    /// CPUs that each instance has to itself; none if all share all.
    reserved_cpus: Option<f64>,
    /// Detection and aggregation in the same instances, behind one queue.
    shared: bool,
    scaler: Scaler,
    flow_control: bool,
    /// How long the cameras' link is down in each period, in seconds.
    outage_seconds: f64,
    frames_per_second: f64,
    seconds: f64,
}

/// How much faster a job of which a share runs in parallel is on so many CPUs (Amdahl).
fn speed_up(parallel_share: f64, cpus: f64) -> f64 {
    1.0 / (1.0 - parallel_share + parallel_share / cpus)
}

impl Settings {
    fn check(&self) -> Result<(), Error> {
        let positive = [
            ("cpus", self.cpus),
            ("detect_cpu_seconds", self.detect_cpu_seconds),
            ("aggregate_cpu_seconds", self.aggregate_cpu_seconds),
            ("start_cpu_seconds", self.start_cpu_seconds),
            ("frames_per_second", self.frames_per_second),
            ("cold_frames_per_second", self.cold_frames_per_second),
            ("outage_every_seconds", self.outage_every_seconds),
            ("seconds", self.seconds),
            ("cold_seconds", self.cold_seconds),
        ];
        for (key, value) in positive {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be above 0"
                )));
            }
        }
        let not_negative = [
            ("wait_seconds", self.wait_seconds),
            ("outage_seconds", self.outage_seconds),
            ("sharing_overhead", self.sharing_overhead),
            ("aggregate_wait_seconds", self.aggregate_wait_seconds),
            ("start_wait_seconds", self.start_wait_seconds),
        ];
        for (key, value) in not_negative {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be 0 or above"
                )));
            }
        }
        for (key, value) in [
            ("detect_spread", self.detect_spread),
            ("parallel_share", self.parallel_share),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be from 0 to below 1"
                )));
            }
        }
        let counts = [
            ("cameras", self.cameras),
            ("instances", self.instances),
            ("more_instances", self.more_instances),
            ("replications", self.replications),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Error::invalid(format!(
                "{key} is 0; it has to be at least 1"
            )));
        }
        // Everything that the CPUs do in a second; beyond 1 nothing ever settles.
        let frames =
            f64::from(self.cameras) * self.frames_per_second.max(self.cold_frames_per_second);
        let load = frames * (self.detect_cpu_seconds + self.aggregate_cpu_seconds) / self.cpus;
        if load >= 1.0 {
            return Err(Error::invalid(format!(
                "the CPUs are unstable: their load is {load:.4} of what they can do, {:.4} too much",
                load - 1.0
            )));
        }
        // Every detection's time is kept, in each of a dozen configurations.
        let kept = 8.0 * frames * self.seconds.max(self.cold_seconds);
        let runs = 12.0 * f64::from(self.replications);
        crate::memory::check("keeping the times of all detections", kept * runs)
    }
}

impl Scenario for Cliffhanger {
    type Settings = Settings;
    const NAME: &'static str = "cliffhanger";
    const SUMMARY: &'static str =
        "object tracking on one edge server: reserved or shared CPUs, cold starts, flow control";
    const FILE: &'static str = include_str!("../../scenarios/cliffhanger.toml");

    fn run(settings: &Settings, run: &Run) -> Result<Report, Error> {
        settings.check()?;
        findings::run(settings, run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, resolve};

    #[test]
    fn the_file_has_the_defaults() {
        let settings = resolve::<Cliffhanger>(&Sources::default()).unwrap();
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (set, says) in [
            ("cpus=0", "cpus is 0"),
            ("parallel_share=1", "parallel_share is 1"),
            ("cameras=0", "cameras is 0"),
            ("cpus=45", "load is 1.0904 of what they can do"),
            ("wait_seconds=nan", "wait_seconds is NaN"),
        ] {
            let sources = Sources {
                set: vec![set.into()],
                ..Sources::default()
            };
            let text = resolve::<Cliffhanger>(&sources)
                .and_then(|settings| Cliffhanger::run(&settings, &Run::quiet(1)))
                .unwrap_err()
                .to_string();
            assert!(text.contains(says), "{set}: {text}");
        }
    }
}
