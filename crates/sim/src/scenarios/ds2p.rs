//! "Function Offloading and Data Migration for Stateful Serverless Edge Computing": Table 3.

mod draw;
pub mod live;
mod machine;
mod table;
mod world;

pub use draw::{Drawn, Layout};
use serde::Deserialize;

use crate::{Error, Report, Run, Scenario};

/// See [`Settings`].
pub struct Ds2p;

/// What can be set; the scenario's file says what each is.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub workload: Vec<Workload>,
    pub keys: Vec<Popularity>,
    pub t_max: Vec<f64>,
    pub migration: Vec<Migration>,
    pub offloading: Vec<Offloading>,
    pub reading: Reading,
    pub edge_nodes: usize,
    pub size_scale: f64,
    pub replay: String,
    pub penalty_weight: f64,
    pub move_weight: f64,
    pub seconds: f64,
    pub migrate_seconds: f64,
    pub replications: u32,
}

/// Where invocations arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// All functions at all edge nodes.
    W1,
    /// Each function at one edge node.
    W2,
}

/// Which keys functions access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Popularity {
    /// A few keys are popular.
    Zipf,
    /// All alike.
    Uniform,
}

/// Who places keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Migration {
    /// Nobody.
    None,
    /// Chance.
    Random,
    /// Rate times latency.
    Greedy,
    /// The objective, near its optimum.
    StateAware,
    /// The same by a solver for integer programs, which takes longer.
    Exact,
}

/// Who chooses nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offloading {
    /// Here if there is memory.
    GreedyLocal,
    /// Where the data is.
    GreedyData,
    /// Soonest, within the SLO.
    SloAware,
}

/// How what the paper leaves open is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// As the published program does.
    Program,
    /// As the text says.
    Paper,
    /// As this platform's own nodes do, on what the program plays on: every node that executes is a candidate, what is
    /// usual stays so unless another node is clearly sooner, and workers start at once.
    Fulmar,
}

macro_rules! names {
    ($($kind:ident { $($variant:ident $name:literal)* })*) => {$(
        impl $kind {
            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    )*};
}

names! {
    Workload { W1 "w1" W2 "w2" }
    Popularity { Zipf "zipf" Uniform "uniform" }
    Migration { None "none" Random "random" Greedy "greedy" StateAware "state-aware" Exact "exact" }
    Offloading { GreedyLocal "greedy-local" GreedyData "greedy-data" SloAware "slo-aware" }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workload: vec![Workload::W1],
            keys: vec![Popularity::Zipf],
            t_max: vec![0.1, 0.2],
            migration: vec![
                Migration::None,
                Migration::Random,
                Migration::Greedy,
                Migration::StateAware,
            ],
            offloading: vec![
                Offloading::GreedyLocal,
                Offloading::GreedyData,
                Offloading::SloAware,
            ],
            reading: Reading::Program,
            edge_nodes: 5,
            size_scale: 1.0,
            replay: String::new(),
            penalty_weight: 0.5,
            move_weight: 0.5,
            seconds: 3600.0,
            migrate_seconds: 120.0,
            replications: 10,
        }
    }
}

impl Settings {
    fn layout(&self) -> Layout {
        Layout {
            edge: self.edge_nodes,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let positive = [
            ("seconds", self.seconds),
            ("migrate_seconds", self.migrate_seconds),
            ("size_scale", self.size_scale),
        ];
        let t_max = self.t_max.iter().map(|seconds| ("t_max", *seconds));
        for (key, value) in positive.into_iter().chain(t_max) {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be above 0"
                )));
            }
        }
        let weights = [
            ("penalty_weight", self.penalty_weight),
            ("move_weight", self.move_weight),
        ];
        for (key, value) in weights {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::invalid(format!(
                    "{key} is {value}; it has to be from 0 to 1"
                )));
            }
        }
        if !(1..=50).contains(&self.edge_nodes) {
            return Err(Error::invalid(format!(
                "edge_nodes is {}; it has to be from 1 to 50",
                self.edge_nodes
            )));
        }
        if self.replications == 0 {
            return Err(Error::invalid("replications is 0; it has to be at least 1"));
        }
        if !self.replay.is_empty() && (self.workload != [Workload::W1] || self.edge_nodes != 5) {
            return Err(Error::invalid(
                "scenarios to replay are for workload=w1 and edge_nodes=5 only",
            ));
        }
        Ok(())
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cell {
    workload: Workload,
    keys: Popularity,
    t_max: f64,
    migration: Migration,
    offloading: Offloading,
}

impl Scenario for Ds2p {
    type Settings = Settings;
    const NAME: &'static str = "ds2p";
    const SUMMARY: &'static str = "offloading and data migration between edge and cloud: SLO violations, penalties, moved data";
    const FILE: &'static str = include_str!("../../scenarios/ds2p.toml");

    fn run(settings: &Settings, run: &Run) -> Result<Report, Error> {
        settings.check()?;
        table::run(settings, run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, resolve};

    #[test]
    fn the_file_has_the_defaults() {
        let settings = resolve::<Ds2p>(&Sources::default()).unwrap();
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (set, says) in [
            ("t_max=0", "t_max is 0"),
            ("move_weight=2", "move_weight is 2"),
            ("edge_nodes=0", "edge_nodes is 0"),
            ("offloading=best", "unknown variant `best`"),
            ("replay=absent.json", "absent.json"),
            ("seconds=inf", "seconds is inf"),
        ] {
            let sources = Sources {
                set: vec![set.into()],
                ..Sources::default()
            };
            let text = resolve::<Ds2p>(&sources)
                .and_then(|settings| Ds2p::run(&settings, &Run::quiet(1)))
                .unwrap_err()
                .to_string();
            assert!(text.contains(says), "{set}: {text}");
        }
    }
}
