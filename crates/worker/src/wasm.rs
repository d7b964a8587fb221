//! Workers that are instances of WebAssembly components.

mod bindings;
mod component;
pub(crate) mod host;
mod instance;
mod runtime;

pub(crate) use component::Mapped;
pub use component::{ArtifactError, Compiled};
pub(crate) use instance::Instance;
pub use runtime::{Runtime, RuntimeError, RuntimeOptions};
