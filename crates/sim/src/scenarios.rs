//! The built-in scenarios, one folder or file each, and the list of them.

pub mod cliffhanger;
pub mod ds2p;
pub mod in_network;
pub mod stateful_faas;
pub mod use_cases;

use crate::settings::{self, Sources};
use crate::{Error, Report, Run, Scenario};

/// A scenario whose kind of settings nobody has to know.
pub struct Entry {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Its file with every default.
    pub file: &'static str,
    run: fn(&Sources, &Run) -> Result<Report, Error>,
}

impl Entry {
    const fn of<S: Scenario>() -> Self {
        Self {
            name: S::NAME,
            summary: S::SUMMARY,
            file: S::FILE,
            run: |sources, run| S::run(&settings::resolve::<S>(sources)?, run),
        }
    }

    /// Runs it with the settings of `sources`.
    ///
    /// # Errors
    /// When a setting, or a file that one names, makes no sense.
    pub fn run(&self, sources: &Sources, run: &Run) -> Result<Report, Error> {
        (self.run)(sources, run)
    }
}

/// All of them.
pub const ALL: &[Entry] = &[
    Entry::of::<cliffhanger::Cliffhanger>(),
    Entry::of::<ds2p::Ds2p>(),
    Entry::of::<in_network::InNetwork>(),
    Entry::of::<use_cases::SmartFactory>(),
    Entry::of::<use_cases::SmartVehicle>(),
    Entry::of::<stateful_faas::StatefulFaas>(),
];

/// The scenario of this name.
///
/// # Errors
/// When there is none; the text lists those that there are.
pub fn find(name: &str) -> Result<&'static Entry, Error> {
    ALL.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|entry| entry.name).collect();
        Error::invalid(format!(
            "there is no scenario {name:?}; there are: {} (or give a .toml file)",
            names.join(", ")
        ))
    })
}
