//! Workers: live instances of functions, and the pool in which they wait.
//!
//! A [`Runtime`] compiles components and maps the result as an [`Artifact`]; a [`Worker`] is one live
//! instance of it, called once per invocation with the invocation's
//! [`Transaction`](fulmar_state::Transaction), which the host functions in [`host`] read and write.
//! Imports `state` and `model`; knows nothing of HTTP servers, sessions' queues or commits.

mod artifact;
mod call;
mod cgroup;
mod compute;
mod container;
mod launch;
mod logs;
mod pool;
mod process;
mod programs;
mod room;
mod running;
mod settings;
mod wasm;
mod worker;
mod world;

pub use artifact::Artifact;
pub use call::{Call, CallError, Reply, Request};
pub use cgroup::{Spent, Used};
pub use container::{Container, Image};
pub use launch::{LaunchError, become_program};
pub use logs::{Level, LogLine, LogSink};
pub use pool::{Holds, Key, Pool};
pub use process::Program;
pub use programs::Programs;
pub use room::{Need, Reserved, Room};
pub use settings::{Cpu, FileGrant, FunctionSettings};
pub use wasm::{ArtifactError, Compiled, Runtime, RuntimeError, RuntimeOptions};
pub use worker::Worker;
pub use world::World;
