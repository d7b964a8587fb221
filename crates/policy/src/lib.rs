//! What Fulmar decides at run time, as pure functions: a view of the world in, a decision out.
//!
//! The live node and the simulator call the very same functions, so that what the simulator shows
//! is what the node does. Nothing here does I/O, reads a clock or draws a random number: time and
//! randomness are parameters.
//!
//! Imports `model` at most. Transcendental functions come from `libm`, so that a decision has the
//! same bits on every machine.

pub mod admission;
pub mod assignment;
pub mod estimate;
pub mod execution;
pub mod follow;
pub mod local_state;
pub mod offload;
pub mod overload;
pub mod placement;
pub mod prewarm;
pub mod scaling;
pub mod view;

pub use view::{
    Access, Function, FunctionIndex, Key, KeyIndex, Network, Node, NodeIndex, Slo, Zone,
};
