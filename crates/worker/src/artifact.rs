//! What is deployed of a function, ready to start workers from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::container::Container;
use crate::process::Program;
use crate::wasm::{ArtifactError, Mapped, Runtime};
use crate::world::World;

/// What is deployed of a function: workers are started from it.
pub struct Artifact {
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Component(Mapped),
    Program(Program),
    Container(Container),
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact")
            .field("world", &self.world())
            .finish()
    }
}

impl Artifact {
    /// A program, whose files are in place.
    pub fn program(program: Program) -> Self {
        Self {
            kind: Kind::Program(program),
        }
    }

    /// A container, whose image's files are in place.
    pub fn container(container: Container) -> Self {
        Self {
            kind: Kind::Container(container),
        }
    }

    /// What it serves.
    pub fn world(&self) -> World {
        match &self.kind {
            Kind::Component(component) => component.pre.world(),
            Kind::Program(_) | Kind::Container(_) => World::Program,
        }
    }
}

impl Runtime {
    /// Maps a compiled component that [`Runtime::compile`] made and the node stored.
    ///
    /// # Errors
    /// When it cannot be read, or does not fit.
    pub fn load(&self, path: &Path) -> Result<Arc<Artifact>, ArtifactError> {
        let kind = Kind::Component(self.map(path)?);
        Ok(Arc::new(Artifact { kind }))
    }
}
