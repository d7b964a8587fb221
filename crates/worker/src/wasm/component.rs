//! Components: checked, compiled, mapped.

use std::path::Path;

use wasmtime::component::{Component, InstancePre, types::ComponentItem};

use crate::wasm::bindings::function::FunctionPre;
use crate::wasm::host::Host;
use crate::wasm::runtime::Runtime;
use crate::world::World;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

/// A component cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not a component at all.
    #[error("this is not a WebAssembly component: {found}. {fix}")]
    NotAComponent {
        /// What it is.
        found: String,
        /// What to do.
        fix: &'static str,
    },
    /// A component, but damaged or of a newer standard.
    #[error("the component is not valid: {0}")]
    Invalid(String),
    /// A component that serves no world of ours.
    #[error(
        "the component exports neither `handle` of fulmar:function nor wasi:http/incoming-handler, so it cannot be invoked; it exports {exports}. Use the fulmar crate's #[fulmar::function], or build for wasi:http/proxy"
    )]
    WrongWorld {
        /// What it exports.
        exports: String,
    },
    /// Imports that nobody provides.
    #[error(
        "the component imports {imports}, which a node does not offer. It offers fulmar:function, wasi:keyvalue 0.2.0-draft and 0.2.0-draft2, wasi:config/store 0.2.0-draft and 0.2.0-rc.1, wasi:logging 0.1.0-draft, wasi:http 0.2 and WASI 0.2 (cli, clocks, filesystem, io, random, sockets)"
    )]
    UnknownImport {
        /// The imports.
        imports: String,
    },
    /// An import or export has another type than expected.
    #[error("the component does not fit: {0}")]
    Mismatch(String),
    /// The compiled form cannot be read.
    #[error("the compiled artefact cannot be loaded: {0}")]
    Load(String),
}

/// A compiled component, ready to be stored.
pub struct Compiled {
    /// The compiled form.
    pub bytes: Vec<u8>,
    /// What it serves.
    pub world: World,
}

pub(crate) enum Pre {
    Function(FunctionPre<Host>),
    Http(ProxyPre<Host>),
}

/// A compiled component, mapped and linked: instances are started from it.
pub(crate) struct Mapped {
    pub(crate) runtime: Runtime,
    pub(crate) pre: Pre,
}

impl Pre {
    /// What it serves.
    pub(crate) fn world(&self) -> World {
        match self {
            Pre::Function(_) => World::Function,
            Pre::Http(_) => World::Http,
        }
    }
}

impl Runtime {
    /// Checks and compiles a component. Takes from milliseconds to many seconds, on all cores.
    pub fn compile(&self, wasm: &[u8]) -> Result<Compiled, ArtifactError> {
        check_header(wasm)?;
        let component = Component::from_binary(self.engine(), wasm)
            .map_err(|error| ArtifactError::Invalid(format!("{error:#}")))?;
        let pre = self.link(&component)?;
        let bytes = component
            .serialize()
            .map_err(|error| ArtifactError::Invalid(format!("{error:#}")))?;
        let world = pre.world();
        Ok(Compiled { bytes, world })
    }

    /// Maps a compiled component.
    pub(crate) fn map(&self, path: &Path) -> Result<Mapped, ArtifactError> {
        // SAFETY: the file was written by this node from the output of `Runtime::compile`, into its
        // own data directory, by an atomic rename, under a name that has this engine's version and
        // settings; nobody else may write there, and the node never changes such a file.
        #[allow(unsafe_code)]
        let component = unsafe { Component::deserialize_file(self.engine(), path) };
        let component = component.map_err(|error| ArtifactError::Load(format!("{error:#}")))?;
        let pre = self.link(&component)?;
        Ok(Mapped {
            runtime: self.clone(),
            pre,
        })
    }

    fn link(&self, component: &Component) -> Result<Pre, ArtifactError> {
        let engine = self.engine();
        let ty = component.component_type();
        let exports: Vec<(String, bool)> = ty
            .exports(engine)
            .map(|(name, item)| {
                (
                    name.to_owned(),
                    matches!(item.ty, ComponentItem::ComponentFunc(_)),
                )
            })
            .collect();
        let is_function = exports
            .iter()
            .any(|(name, is_func)| name == "handle" && *is_func);
        let is_http = exports
            .iter()
            .any(|(name, _)| name.starts_with("wasi:http/incoming-handler@0.2."));
        if !is_function && !is_http {
            let names: Vec<&str> = exports.iter().map(|(name, _)| name.as_str()).collect();
            let exports = if names.is_empty() {
                "nothing".into()
            } else {
                names.join(", ")
            };
            return Err(ArtifactError::WrongWorld { exports });
        }
        let unknown: Vec<String> = ty
            .imports(engine)
            .map(|(name, _)| name.to_owned())
            .filter(|name| !is_offered(name))
            .collect();
        if !unknown.is_empty() {
            return Err(ArtifactError::UnknownImport {
                imports: unknown.join(", "),
            });
        }
        let mismatch = |error: wasmtime::Error| ArtifactError::Mismatch(format!("{error:#}"));
        let pre: InstancePre<Host> = self.linker().instantiate_pre(component).map_err(mismatch)?;
        if is_function {
            FunctionPre::new(pre).map(Pre::Function).map_err(mismatch)
        } else {
            ProxyPre::new(pre).map(Pre::Http).map_err(mismatch)
        }
    }
}

/// Interfaces that every node offers, by the start of their names.
const OFFERED: [&str; 17] = [
    "fulmar:function/context@0.1.",
    "fulmar:function/state@0.1.",
    "fulmar:function/messages@0.1.",
    "fulmar:function/placement@0.1.",
    "wasi:keyvalue/store@0.2.0-draft",
    "wasi:keyvalue/atomics@0.2.0-draft",
    "wasi:keyvalue/batch@0.2.0-draft",
    "wasi:config/store@0.2.0-",
    "wasi:logging/logging@0.1.0-draft",
    "wasi:http/types@0.2.",
    "wasi:http/outgoing-handler@0.2.",
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

fn is_offered(import: &str) -> bool {
    let of_us = OFFERED.iter().any(|offered| import.starts_with(offered));
    of_us && (import.contains("@0.1.") || import.contains("@0.2."))
}

/// Tells components from what people upload by mistake.
fn check_header(wasm: &[u8]) -> Result<(), ArtifactError> {
    let not = |found: String, fix| Err(ArtifactError::NotAComponent { found, fix });
    match wasm {
        [b'\0', b'a', b's', b'm', 0x0d, 0x00, 0x01, 0x00, ..] => Ok(()),
        [b'\0', b'a', b's', b'm', 0x01, 0x00, 0x00, 0x00, ..] => not(
            "it is a core module".into(),
            "Build for wasm32-wasip2 rather than wasm32-unknown-unknown or wasm32-wasip1, or wrap it with `wasm-tools component new`",
        ),
        [b'\0', b'a', b's', b'm', rest @ ..] if rest.len() < 4 => not(
            "the file is cut off".into(),
            "Check that the build finished and that the whole file was sent",
        ),
        [b'\0', b'a', b's', b'm', ..] => not(
            "it is WebAssembly of another version".into(),
            "Build it with current tools",
        ),
        [] => not(
            "the file is empty".into(),
            "Check the path, and that the build finished",
        ),
        other => {
            let start: Vec<String> = other
                .iter()
                .take(4)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            not(
                format!("it starts with {} instead of 00 61 73 6d", start.join(" ")),
                "Give the .wasm file that the build made, not a source or text file",
            )
        }
    }
}
