//! Simulator of the edge-cloud continuum that decides with the very functions of `policy` that the
//! live node calls.
//!
//! A [`Scenario`] takes settings and a [`Run`], and gives a [`Report`]. Everything is deterministic
//! from the seed: same seed, same bytes of output, on any machine and any number of threads. For
//! that, random numbers come from [`random`] alone, transcendental functions from `libm`, and
//! [`Run::replicate`] gives results in the order of the replications.
//!
//! Imports `policy` and `model`; never `node`, `cluster`, `worker` or `state`.

mod error;
pub mod memory;
pub mod plan;
pub mod random;
pub mod report;
pub mod run;
pub mod scenario;
pub mod scenarios;
pub mod settings;
pub mod stats;
pub mod topology;
pub mod trace;

pub use error::Error;
pub use report::Report;
pub use run::Run;
pub use scenario::Scenario;
