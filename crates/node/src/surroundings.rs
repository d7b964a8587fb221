//! What a node runs on: the machine, or, in simulations, what behaves like one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fulmar_cluster::Network;
use fulmar_state::engine::Engine;
use fulmar_state::objects::Objects;
use fulmar_worker::Runtime;

/// What a node runs on; by default the machine, with what the node's configuration names.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// Where it listens and connects to others.
    pub network: Network,
    /// Instead of the local data store in the data directory.
    pub disk: Option<Disk>,
    /// Instead of the object store that the configuration names.
    pub objects: Option<Objects>,
    /// Shared with other nodes of the process.
    pub runtime: Option<Runtime>,
}

/// A disk in memory, which survives the node.
#[derive(Clone)]
pub struct Disk {
    /// What is on it.
    pub engine: Arc<dyn Engine>,
    /// How long the next write takes.
    pub takes: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}
