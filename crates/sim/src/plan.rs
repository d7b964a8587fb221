//! The papers' models on a user's own numbers: how many containers, which placement, what latency.
//!
//! A plan is a [`Scenario`](crate::Scenario) that simulates nothing: settings in, report out.

pub mod latency;
pub mod placement;
pub mod provision;

pub use latency::Latency;
pub use placement::PlacementPlan;
pub use provision::Provision;

use crate::Error;

/// # Errors
/// When a value is not a number above 0.
fn above_zero(values: &[(&str, f64)]) -> Result<(), Error> {
    match values
        .iter()
        .find(|(_, value)| !value.is_finite() || *value <= 0.0)
    {
        Some((key, value)) => Err(Error::invalid(format!(
            "{key} is {value}; it has to be above 0"
        ))),
        None => Ok(()),
    }
}

/// # Errors
/// When a number is 0.
fn at_least_one(values: &[(&str, u32)]) -> Result<(), Error> {
    match values.iter().find(|(_, value)| *value == 0) {
        Some((key, _)) => Err(Error::invalid(format!(
            "{key} is 0; it has to be at least 1"
        ))),
        None => Ok(()),
    }
}
