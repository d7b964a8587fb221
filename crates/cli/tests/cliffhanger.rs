//! `fulmar bench cliffhanger`, short: every experiment runs and has its figures. Whether they are good is for long runs on quiet
//! machines to say; what has to be right, not fast, has to be right here as well.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn run(command: &mut Command) {
    let status = command.current_dir(root()).status().unwrap();
    assert!(status.success(), "{command:?}");
}

#[test]
fn every_experiment_runs() {
    let cargo = || Command::new(env!("CARGO"));
    run(cargo()
        .args(["build", "--release", "--target", "wasm32-wasip2"])
        .args(["-p", "mvot-detect", "-p", "mvot-aggregate"])
        .args(["-p", "mvot-collect"]));
    run(cargo().args(["build", "-p", "mvot"]));
    let fulmar = Path::new(env!("CARGO_BIN_EXE_fulmar"));
    let mvot = fulmar.with_file_name("mvot");
    let folder = tempfile::tempdir().unwrap();
    let frames = folder.path().join("frames");
    let out = folder.path().join("report");
    run(Command::new(&mvot)
        .args(["generate", "--steps", "8", "--out"])
        .arg(&frames));
    run(Command::new(&mvot)
        .args(["backgrounds", "--frames"])
        .arg(&frames));
    run(Command::new(fulmar)
        .args([
            "bench",
            "cliffhanger",
            "--duration",
            "500ms",
            "--rounds",
            "1",
        ])
        .args(["--largest-state", "4MiB", "--frames"])
        .arg(&frames)
        // The same wherever it runs: packages of Python may be there or not.
        .arg("--python")
        .arg(folder.path().join("none"))
        .arg("--data")
        .arg(folder.path().join("data"))
        .arg("--out")
        .arg(&out));
    let text = std::fs::read_to_string(out.join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let report = &report["report"];
    let rows = report["results"].as_array().unwrap();
    for experiment in ["2", "3", "4", "5"] {
        let is_of = |row: &&Value| row["config"][0][1] == experiment;
        assert!(rows.iter().any(|row| is_of(&row)), "{experiment}: {rows:?}");
    }
    let finding = |claim: &str| {
        let findings = report["findings"].as_array().unwrap();
        let found = findings
            .iter()
            .find(|finding| finding["claim"].as_str().unwrap().contains(claim));
        found.unwrap_or_else(|| panic!("{claim}: {findings:?}"))["holds"].clone()
    };
    assert_eq!(finding("Nothing is lost when the node is killed"), true);
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Fig. 7") && page.contains("<svg"));
}
