//! "In-Network Computing with Function as a Service at the Edge": Figs. 4, 5 and 6.

mod figures;
mod world;

use serde::Deserialize;

use crate::random::Random;
use crate::topology::Topology;
use crate::{Error, Report, Run, Scenario, trace};
use world::World;

/// See [`Settings`].
pub struct InNetwork;

/// What can be set; the scenario's file says what each is.
#[allow(missing_docs)]
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub topology: String,
    pub trace: String,
    pub jobs: Vec<u32>,
    pub allocation: Vec<Allocation>,
    pub model: Vec<Model>,
    pub functions: u32,
    pub client_models: Vec<String>,
    pub gpu_models: Vec<String>,
    pub cloud_seconds: f64,
    pub cloud_mbps: f64,
    pub sites: u32,
    pub machines: u32,
    pub pool: u32,
    pub longest_chain: u32,
    pub detail_jobs: u32,
    pub replications: u32,
}

/// Who decides where a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Allocation {
    /// Least processing time.
    #[serde(rename = "load")]
    Load,
    /// Least processing and transfer time.
    #[serde(rename = "load+net")]
    LoadNet,
    /// All steps of a job together.
    #[serde(rename = "look-ahead")]
    LookAhead,
}

/// Where a step's state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// In the cloud.
    External,
    /// On the central node.
    InEdge,
    /// Where the step runs.
    InFunction,
    /// With the client.
    InClient,
}

impl Allocation {
    fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::LoadNet => "load+net",
            Self::LookAhead => "look-ahead",
        }
    }
}

impl Model {
    const ALL: [Self; 4] = [
        Self::External,
        Self::InEdge,
        Self::InFunction,
        Self::InClient,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::InEdge => "in-edge",
            Self::InFunction => "in-function",
            Self::InClient => "in-client",
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            topology: "iiot".into(),
            trace: String::new(),
            jobs: vec![100, 200, 300, 400, 500],
            allocation: vec![Allocation::Load, Allocation::LoadNet, Allocation::LookAhead],
            model: Model::ALL.to_vec(),
            functions: 10,
            client_models: texts(&["rpi3b+", "nvidia_jetson_tx2"]),
            gpu_models: texts(&["nvidia_jetson_tx2"]),
            cloud_seconds: 0.06,
            cloud_mbps: 50.0,
            sites: 8,
            machines: 9,
            pool: 2000,
            longest_chain: 12,
            detail_jobs: 500,
            replications: 200,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<(), Error> {
        let counts = [
            ("functions", self.functions),
            ("machines", self.machines),
            ("sites", self.sites),
            ("pool", self.pool),
            ("replications", self.replications),
        ];
        for (key, count) in counts
            .into_iter()
            .chain(self.jobs.iter().map(|n| ("jobs", *n)))
        {
            if count == 0 {
                return Err(Error::invalid(format!(
                    "{key} is 0; it has to be at least 1"
                )));
            }
        }
        if !self.cloud_seconds.is_finite() || self.cloud_seconds < 0.0 {
            let value = self.cloud_seconds;
            return Err(Error::invalid(format!(
                "cloud_seconds is {value}; it has to be 0 or more"
            )));
        }
        if !self.cloud_mbps.is_finite() || self.cloud_mbps <= 0.0 {
            let value = self.cloud_mbps;
            return Err(Error::invalid(format!(
                "cloud_mbps is {value}; it has to be above 0"
            )));
        }
        let empty = [
            ("jobs", self.jobs.is_empty()),
            ("allocation", self.allocation.is_empty()),
            ("model", self.model.is_empty()),
        ];
        match empty.into_iter().find(|(_, empty)| *empty) {
            Some((key, _)) => Err(Error::invalid(format!("{key} is empty; give at least one"))),
            None => Ok(()),
        }
    }
}

impl Scenario for InNetwork {
    type Settings = Settings;
    const NAME: &'static str = "in-network";
    const SUMMARY: &'static str =
        "chains with state on a network of small machines: four execution models, three policies";
    const FILE: &'static str = include_str!("../../scenarios/in-network.toml");

    fn run(settings: &Settings, run: &Run) -> Result<Report, Error> {
        settings.check()?;
        if settings.topology == "iiot" || settings.topology == "urban" {
            let nodes = f64::from(settings.sites) * (f64::from(settings.machines) + 1.0);
            crate::memory::check("the generated topology", Topology::bytes(nodes))?;
        }
        let mut random = Random::new(run.seed, 0);
        let topology = match &*settings.topology {
            "iiot" => Topology::iiot(settings.sites, settings.machines, &mut random)?,
            "urban" => Topology::urban(settings.sites, settings.machines, &mut random)?,
            prefix => Topology::read(prefix)?,
        };
        let jobs = match &*settings.trace {
            "" => trace::generate(settings.pool, settings.longest_chain, &mut random),
            path => trace::read(path.as_ref())?,
        };
        let world = World::new(settings, &topology, &jobs, &mut random)?;
        figures::run(settings, &world, run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, resolve};

    #[test]
    fn the_file_has_the_defaults() {
        let settings = resolve::<InNetwork>(&Sources::default()).unwrap();
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let run = |set: &str| {
            let sources = Sources {
                set: vec![set.into()],
                ..Sources::default()
            };
            let settings = resolve::<InNetwork>(&sources)?;
            InNetwork::run(&settings, &Run::quiet(1))
        };
        for (set, says) in [
            ("jobs=0", "jobs is 0"),
            ("jobs=100000", "jobs is 100000"),
            ("allocation=best", "unknown variant `best`"),
            ("cloud_mbps=0", "cloud_mbps is 0"),
            ("topology=absent", "absent.nodes"),
            ("trace=absent.csv", "absent.csv"),
            ("client_models=abacus", "no machine"),
        ] {
            let text = run(set).unwrap_err().to_string();
            assert!(text.contains(says), "{set}: {text}");
        }
    }
}
