//! `cargo xtask demo`: multi-camera tracking from nothing to a picture of the tracks.

use std::path::Path;

use anyhow::Result;

use crate::steps::{self, Steps};
use crate::toolchain::ensure_wasm_target;
use crate::workspace::Workspace;
use crate::{guests, passed_on};

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let arguments = passed_on(arguments)?;
    let mut steps = Steps::new("demo", 4);
    steps.run("target for functions", || ensure_wasm_target(workspace))?;
    steps.run("fulmar", || {
        steps::run(
            workspace
                .cargo()
                .args(["build", "--release", "--package", "fulmar-cli"]),
        )?;
        Ok(String::new())
    })?;
    steps.run("functions detect and aggregate", || {
        guests::build(workspace, Path::new("examples/mvot"))
    })?;
    steps.run("multi-camera tracking", || {
        let fulmar = workspace.program("release", "fulmar")?;
        let mut command = workspace.cargo();
        command.args([
            "run",
            "--release",
            "--package",
            "mvot",
            "--",
            "demo",
            "--fulmar",
        ]);
        steps::run(command.arg(fulmar).args(arguments))?;
        Ok(String::new())
    })?;
    steps.finish();
    Ok(())
}
