//! Workers: live instances of functions, and the pool in which they wait.
//!
//! A [`Runtime`] compiles components and maps the result as an [`Artifact`]; a [`Worker`] is one live
//! instance of it, called once per invocation with the invocation's
//! [`Transaction`](fulmar_state::Transaction), which the host functions in [`host`] read and write.
//! Imports `state` and `model`; knows nothing of HTTP servers, sessions' queues or commits.

mod artifact;
mod bindings;
mod call;
mod host;
mod logs;
mod pool;
mod room;
mod runtime;
mod settings;
mod worker;

pub use artifact::{Artifact, ArtifactError, Compiled, World};
pub use call::{Call, CallError, Reply, Request};
pub use logs::{Level, LogLine, LogSink};
pub use pool::{Holds, Key, Pool};
pub use room::{Reserved, Room};
pub use runtime::{Runtime, RuntimeError, RuntimeOptions};
pub use settings::{FileGrant, FunctionSettings};
pub use worker::Worker;
