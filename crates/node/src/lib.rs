//! One node: takes invocations, runs them on workers, commits what they did, answers.
//!
//! The way of an invocation, each module calling the next and none calling back: [`ingress`]
//! (connections) -> [`broker`] (path, headers, body) -> [`core`] (admission) -> [`execute`] (session
//! queue, idempotency, worker, commit) -> the crates `worker` and `state` -> `broker` (response).
//! With other nodes [`route`] finds the session's home between broker and queue, [`homes`] makes sure of it
//! before the state is loaded, and [`continuum`] answers when other nodes call. Beside it: [`courier`] delivers messages, [`deploy`] changes what is deployed, [`keeper`] bounds
//! memory and disk, [`admin`] is the operator's API.

mod access;
mod accesses;
mod admin;
mod admission;
mod arrive;
mod artifacts;
mod audit;
mod body;
mod broker;
mod carry;
pub mod clock;
mod continuum;
mod core;
mod courier;
mod crashes;
mod custody;
mod decisions;
mod deploy;
mod drain;
mod execute;
mod external;
mod fleet;
mod follow;
mod functions;
pub mod headers;
mod hold;
mod homes;
mod ingress;
mod intake;
mod invocation;
mod keeper;
mod keys;
mod lend;
mod loaded;
mod logs;
mod metrics;
mod migrate;
mod models;
mod namespaces;
mod node;
mod outside;
mod phases;
mod place;
mod profile;
mod respond;
mod route;
mod schedule;
mod sessions;
pub mod surroundings;
mod takeover;
pub mod target;
pub mod tls;
mod transition;
mod usages;
mod ways;

pub use core::NodeOptions;
pub use fulmar_cluster::{ConfigError, NodeConfig};
pub use fulmar_state::Submitters;
pub use fulmar_worker::become_program;
pub use node::{Node, StartError};
