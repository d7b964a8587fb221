//! `cargo xtask cliffhanger`: the experiments of the Cliffhanger study, from nothing to a report.

use std::path::Path;

use anyhow::Result;

use crate::steps::{self, Steps};
use crate::toolchain::ensure_wasm_target;
use crate::workspace::Workspace;
use crate::{guests, passed_on};

/// Folder of the frames, relative to the top.
const FRAMES: &str = "target/cliffhanger/frames";
/// The same of what functions in Python import.
const PACKAGES: &str = "target/cliffhanger/python";

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let arguments = passed_on(arguments)?;
    let mut steps = Steps::new("cliffhanger", 6);
    steps.run("target for functions", || ensure_wasm_target(workspace))?;
    steps.run("fulmar and mvot", || {
        let mut build = workspace.cargo();
        build.args(["build", "--release", "--package", "fulmar-cli"]);
        steps::run(build.args(["--package", "mvot"]))?;
        Ok(String::new())
    })?;
    steps.run("functions", || {
        guests::build(workspace, Path::new("examples/mvot"))
    })?;
    steps.run("frames of seven cameras", || {
        let frames = workspace.root().join(FRAMES);
        if frames.join("backgrounds").is_dir() {
            return Ok("they are there".to_owned());
        }
        for verb in [
            &["generate", "--seed", "7", "--out"][..],
            &["backgrounds", "--frames"],
        ] {
            let mut mvot = std::process::Command::new(workspace.program("release", "mvot")?);
            steps::run(mvot.args(verb).arg(&frames))?;
        }
        Ok(String::new())
    })?;
    steps.run("packages for Python", || {
        let packages = workspace.root().join(PACKAGES);
        if packages.join("cv2").is_dir() {
            return Ok("they are there".to_owned());
        }
        let mut pip = std::process::Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--target"])
            .arg(packages)
            .args(["-r", "examples/mvot/detect-python/requirements.txt"])
            .arg("./sdk/python")
            .current_dir(workspace.root());
        steps::run(&mut pip)?;
        Ok(String::new())
    })?;
    steps.run("experiments", || {
        let mut bench = std::process::Command::new(workspace.program("release", "fulmar")?);
        bench.current_dir(workspace.root());
        steps::run(bench.args(["bench", "cliffhanger"]).args(arguments))?;
        Ok(String::new())
    })?;
    steps.finish();
    Ok(())
}
