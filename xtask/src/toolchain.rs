//! What a fresh machine lacks: the compiler's target for functions.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::steps;
use crate::workspace::Workspace;

/// The target that functions are built for.
pub(crate) const WASM_TARGET: &str = "wasm32-wasip2";

/// Adds [`WASM_TARGET`] to the toolchain unless it is there.
pub(crate) fn ensure_wasm_target(workspace: &Workspace) -> Result<String> {
    if has_wasm_target(workspace)? {
        return Ok(format!("{WASM_TARGET} is installed"));
    }
    steps::run(workspace.command("rustup").args(["target", "add", WASM_TARGET])).with_context(|| {
        format!("the toolchain has no target {WASM_TARGET}; install rustup (https://rustup.rs) or add the target with your package manager")
    })?;
    if !has_wasm_target(workspace)? {
        bail!(
            "rustup added {WASM_TARGET} to another toolchain than the one in use; run `rustup show`"
        );
    }
    Ok(format!("{WASM_TARGET} added"))
}

fn has_wasm_target(workspace: &Workspace) -> Result<bool> {
    let output = workspace
        .command("rustc")
        .args(["--print", "target-libdir", "--target", WASM_TARGET])
        .output()
        .context("cannot run rustc; install Rust with rustup (https://rustup.rs)")?;
    if !output.status.success() {
        bail!(
            "this rustc does not know {WASM_TARGET}: {}; update it with `rustup update`",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let directory = String::from_utf8_lossy(&output.stdout);
    let files = std::fs::read_dir(Path::new(directory.trim()));
    Ok(files.is_ok_and(|mut files| files.next().is_some()))
}
