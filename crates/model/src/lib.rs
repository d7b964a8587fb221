//! The nouns of Fulmar: names, ids, positions in time, the manifest, problems.
//!
//! Imports nothing that does I/O; everything above may import it.

pub mod id;

pub use id::{Bucket, Epoch, FunctionName, Group, NameError, SessionName, Version};
