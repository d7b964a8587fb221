//! What can be run: settings in, report out.

use serde::de::DeserializeOwned;

use crate::{Error, Report, Run};

/// Something that can be simulated.
pub trait Scenario {
    /// What a user may set: a struct with `#[serde(deny_unknown_fields, default)]`.
    type Settings: DeserializeOwned + Default;
    /// Its name on the command line.
    const NAME: &'static str;
    /// One line for `fulmar sim list`.
    const SUMMARY: &'static str;
    /// Its scenario file with every setting at its default and a comment each: `fulmar sim show`.
    const FILE: &'static str;

    /// Runs it.
    ///
    /// # Errors
    /// When the settings, or files that they name, make no sense.
    fn run(settings: &Self::Settings, run: &Run) -> Result<Report, Error>;
}
