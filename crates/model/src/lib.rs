//! The nouns of Fulmar: names, ids, positions in time, the manifest, problems.
//!
//! Imports nothing that does I/O; everything above may import it.

pub mod id;
pub mod manifest;
pub mod problem;
pub mod units;

pub use id::{
    Bucket, Epoch, FunctionName, Group, NameError, NodeName, SessionName, SiteName, Version,
};
pub use manifest::{Durability, ExecutionModel, Manifest, ManifestError, OnPartition};
pub use problem::{Code, Problem};
pub use units::{ByteSize, CpuAmount, Duration};
