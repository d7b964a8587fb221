//! What a function runs, in memory for as long as it is used: many functions are deployed, and few run.

use std::sync::Arc;

use fulmar_worker::{Artifact, World};
use parking_lot::Mutex;

/// Sweeps without use after which it goes: to load it again takes a tenth of a millisecond.
const IDLE_SWEEPS: u32 = 30;

/// An artefact that may have to be loaded again.
pub(crate) struct Loaded {
    world: World,
    slot: Mutex<Slot>,
}

struct Slot {
    artifact: Option<Arc<Artifact>>,
    idle_sweeps: u32,
}

impl Loaded {
    /// Of an artefact that was loaded for its deployment.
    pub(crate) fn new(artifact: Arc<Artifact>) -> Self {
        Self {
            world: artifact.world(),
            slot: Mutex::new(Slot {
                artifact: Some(artifact),
                idle_sweeps: 0,
            }),
        }
    }

    /// What it serves.
    pub(crate) fn world(&self) -> World {
        self.world
    }

    /// What is in memory, if it is.
    pub(crate) fn get(&self) -> Option<Arc<Artifact>> {
        let mut slot = self.slot.lock();
        slot.idle_sweeps = 0;
        slot.artifact.clone()
    }

    /// Keeps what was loaded again.
    pub(crate) fn keep(&self, artifact: Arc<Artifact>) {
        self.slot.lock().artifact = Some(artifact);
    }

    /// Lets go what nobody has used for a while; its workers keep what they need of it.
    pub(crate) fn sweep(&self) {
        let mut slot = self.slot.lock();
        slot.idle_sweeps += 1;
        if slot.idle_sweeps >= IDLE_SWEEPS {
            slot.artifact = None;
        }
    }

    /// Lets it go at once.
    pub(crate) fn let_go(&self) {
        self.slot.lock().artifact = None;
    }
}
