//! `cargo xtask test` and `cargo xtask ci`.

use std::path::Path;

use anyhow::Result;

use crate::steps::{self, Steps};
use crate::toolchain::ensure_wasm_target;
use crate::workspace::Workspace;
use crate::{guests, no_arguments, passed_on};

/// The seeds of the simulations of whole nodes.
const SEEDS: &str = "1-5000";
/// How long each of the tests that make trouble for nodes does so.
const CHAOS_SECONDS: u32 = 1800;

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let arguments = passed_on(arguments)?;
    let mut steps = Steps::new("test", 3);
    steps.run("target for functions", || ensure_wasm_target(workspace))?;
    steps.run("functions of examples and tests", || {
        guests::build(workspace, Path::new(""))
    })?;
    steps.run("tests of the workspace", || {
        let mut counts = Counts::default();
        let mut command = workspace.cargo();
        command.args(["test", "--workspace"]).args(arguments);
        let outcome = steps::run_watched(&mut command, |line| counts.see(line));
        if outcome.is_err() {
            eprintln!("{counts}");
        }
        outcome.map(|()| counts.to_string())
    })?;
    steps.finish();
    Ok(())
}

/// What CI leaves out, optimised, since some of it prints times.
pub(crate) fn long(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let arguments = passed_on(arguments)?;
    let mut steps = Steps::new("long", 6);
    let mut ignored = |name: &str, chosen: &[&str]| {
        steps.run(name, || {
            let mut command = workspace.cargo();
            command.arg("test").args(chosen).args(arguments);
            steps::run(command.args(["--", "--ignored", "--nocapture"]))?;
            Ok(String::new())
        })
    };
    ignored(
        "ignored tests",
        &["--release", "-p", "fulmar-policy", "-p", "fulmar-sim"],
    )?;
    ignored(
        "a decision among many nodes",
        &["--release", "-p", "fulmar-node", "--lib"],
    )?;
    ignored(
        "nodes beside the simulator",
        &[
            "--profile",
            "quick",
            "-p",
            "fulmar-cli",
            "--test",
            "live_ds2p",
        ],
    )?;
    // Not for release: the rest of the crate would take longer to build than this takes.
    ignored(
        "every order of events",
        &["-p", "fulmar-node", "--test", "takeover_model"],
    )?;
    steps.run("simulated nodes", || {
        let mut command = workspace.cargo();
        command.env("FULMAR_SIMULATION_SEEDS", SEEDS);
        command.args(["test", "--profile", "quick", "-p", "fulmar-node"]);
        steps::run(command.args(["--test", "simulation"]).args(arguments))?;
        Ok(String::new())
    })?;
    steps.run("trouble for nodes", || {
        let mut command = workspace.cargo();
        command.env("FULMAR_CHAOS_SECONDS", CHAOS_SECONDS.to_string());
        command.args(["test", "-p", "fulmar-cli", "--test", "chaos"]);
        // One after the other: each keeps a small machine busy.
        steps::run(command.args(arguments).args(["--", "--test-threads", "1"]))?;
        Ok(String::new())
    })?;
    steps.finish();
    Ok(())
}

/// The CI's own list of steps is the only one.
pub(crate) fn ci(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    no_arguments(arguments)?;
    steps::run(workspace.command("bash").arg(".ci/run"))
}

/// Adds up what the test programs report.
#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn see(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let parts = result.split_once(". ").map_or(result, |(_, counts)| counts);
        for part in parts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} ignored",
            self.passed, self.failed, self.ignored
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_add_up() {
        let mut counts = Counts::default();
        counts.see("running 3 tests");
        counts.see("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.48s");
        counts
            .see("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(counts.to_string(), "4 passed, 2 failed, 1 ignored");
    }
}
