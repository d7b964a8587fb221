//! Which sessions are local-state, and how many containers they need.
//!
//! From "Stateful FaaS at the Edge": a *local-state* session has a container for itself and its
//! state next to it; *remote-state* sessions share a pool of containers and fetch their state for
//! each call. Dedicating containers helps until the pool starves ([`latency`], Fig. 3); how many are
//! needed so that hardly anybody who wants to be local has to be remote is [`provisioning`]
//! (Fig. 4); [`promotion`] decides on line, for sessions that differ.

pub mod erlang;
pub mod latency;
pub mod promotion;
pub mod provisioning;

/// A queue gets more work than it can do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{queue} is unstable: its load is {load:.4} of what it can serve, {excess:.4} too much")]
pub struct Unstable {
    /// Which queue.
    pub queue: String,
    /// Offered work over capacity; 1 and above is unstable.
    pub load: f64,
    /// How much of the capacity is missing: `load - 1`, 0 if it is just full.
    pub excess: f64,
}

impl Unstable {
    /// The queue has this load, which is 1 or more.
    pub(crate) fn new(queue: impl Into<String>, load: f64) -> Self {
        Self {
            queue: queue.into(),
            load,
            excess: load - 1.0,
        }
    }
}
