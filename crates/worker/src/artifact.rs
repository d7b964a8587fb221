//! What is deployed of a function, ready to start workers from.

use std::fmt;

use crate::process::Program;
use crate::wasm::Mapped;

/// Which interface a function serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// `fulmar:function`: bytes in, bytes out.
    Function,
    /// `wasi:http/proxy`.
    Http,
    /// HTTP on a Unix socket.
    Program,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            World::Function => "fulmar:function",
            World::Http => "wasi:http/proxy",
            World::Program => "program",
        })
    }
}

/// What is deployed of a function: workers are started from it.
pub struct Artifact {
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Component(Mapped),
    Program(Program),
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact")
            .field("world", &self.world())
            .finish()
    }
}

impl Artifact {
    pub(crate) fn of(component: Mapped) -> Self {
        Self {
            kind: Kind::Component(component),
        }
    }

    /// A program, whose files are in place.
    pub fn program(program: Program) -> Self {
        Self {
            kind: Kind::Program(program),
        }
    }

    /// What it serves.
    pub fn world(&self) -> World {
        match &self.kind {
            Kind::Component(component) => component.pre.world(),
            Kind::Program(_) => World::Program,
        }
    }
}
