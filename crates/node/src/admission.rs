//! Bounds what is in the node at once: invocations, over which clients are told to come back, and their bodies, which stay where
//! they are until there is room for them, in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fulmar_model::{Code, Problem};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::core::{Core, NodeOptions};

/// What room is counted in, in bytes. Smaller bodies are not counted: the invocations are.
const UNIT: usize = 1 << 10;

/// What is in the node.
pub(crate) struct Admission {
    invocations: AtomicUsize,
    bodies: Arc<Semaphore>,
    /// All that there is for bodies, in units.
    units: u32,
}

/// An invocation's place in the node, given back when dropped.
pub(crate) struct Admitted {
    core: Arc<Core>,
    body: Option<OwnedSemaphorePermit>,
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX)
}

impl Admission {
    pub(crate) fn new(options: &NodeOptions) -> Self {
        let units = units(options.max_body_bytes).max(1);
        Self {
            invocations: AtomicUsize::new(0),
            bodies: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    /// Takes a place for an invocation, or says how busy the node is.
    pub(crate) fn admit(core: &Arc<Core>) -> Result<Admitted, Problem> {
        let admitted = Admitted {
            core: core.clone(),
            body: None,
        };
        let before = core.admission.invocations.fetch_add(1, Ordering::Relaxed);
        if before >= core.options.max_invocations {
            let detail = format!(
                "{before} invocations are in the node; at most {} may be",
                core.options.max_invocations
            );
            return Err(Problem::new(Code::QueueFull, detail));
        }
        Ok(admitted)
    }

    /// Invocations in the node.
    pub(crate) fn invocations(&self) -> usize {
        self.invocations.load(Ordering::Relaxed)
    }
}

impl Admitted {
    /// Waits for room for a body of so many bytes, behind those that have asked before.
    pub(crate) async fn room_for(
        &mut self,
        bytes: usize,
        patience: Duration,
    ) -> Result<(), Problem> {
        let admission = &self.core.admission;
        let units = units(bytes).min(admission.units);
        if units == 0 {
            return Ok(());
        }
        let waiting = admission.bodies.clone().acquire_many_owned(units);
        match tokio::time::timeout(patience, waiting).await {
            Ok(Ok(permit)) => self.body = Some(permit),
            // It is never closed.
            Ok(Err(_)) => {}
            Err(_) => {
                let detail = format!("there was no room for the body for {patience:?}");
                return Err(Problem::new(Code::QueueFull, detail));
            }
        }
        Ok(())
    }

    /// Makes room for a body that is larger than was known before.
    pub(crate) fn more_room(&mut self, bytes: usize) -> Result<(), Problem> {
        let admission = &self.core.admission;
        let has = self
            .body
            .as_ref()
            .map_or(0, |body| body.num_permits() as u32);
        let more = units(bytes).min(admission.units).saturating_sub(has);
        if more == 0 {
            return Ok(());
        }
        let permit = admission.bodies.clone().try_acquire_many_owned(more);
        let full = |_| {
            let detail = "there is no room for a body whose length was not told before";
            Problem::new(Code::QueueFull, detail)
        };
        let permit = permit.map_err(full)?;
        match &mut self.body {
            Some(body) => body.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }

    /// Whether other bodies wait for room.
    pub(crate) fn others_wait(&self) -> bool {
        self.core.admission.bodies.available_permits() == 0
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let invocations = &self.core.admission.invocations;
        invocations.fetch_sub(1, Ordering::Relaxed);
    }
}
