//! Multi-camera tracking on a real node, from generated frames to the accuracy of the tracks.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use common::Node;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The program `mvot`; its functions are built with it.
fn mvot() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = BUILT.get_or_init(|| {
        for arguments in [
            &[
                "build",
                "--release",
                "--target",
                "wasm32-wasip2",
                "-p",
                "mvot-detect",
                "-p",
                "mvot-aggregate",
            ][..],
            &["build", "-p", "mvot"],
        ] {
            let status = Command::new(env!("CARGO"))
                .args(arguments)
                .current_dir(root())
                .status()
                .unwrap();
            assert!(status.success(), "cargo {arguments:?}");
        }
        // Beside the binary under test.
        Path::new(env!("CARGO_BIN_EXE_fulmar")).with_file_name("mvot")
    });
    Command::new(program)
}

fn summary(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("summary.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Timesteps in the order in which their tracks were written.
fn timesteps(folder: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(folder.join("tracks.jsonl")).unwrap();
    let step = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["step"].as_u64().unwrap()
    };
    text.lines().map(step).collect()
}

fn check_accuracy(summary: &Value) {
    for measure in ["mota", "idf1"] {
        let value = summary["accuracy"][measure].as_f64().unwrap();
        assert!(value > 0.8, "{measure} is {value}");
    }
}

#[test]
fn people_are_tracked_and_a_missing_camera_stalls_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for without in [&[][..], &["--without", "c3"]] {
        let ran = mvot()
            .args(["demo", "--steps", "12", "--fps", "4", "--fulmar"])
            .arg(env!("CARGO_BIN_EXE_fulmar"))
            .arg("--out")
            .arg(folder.path())
            .args(without)
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        let summary = summary(&folder.path().join("results"));
        assert_eq!(summary["timesteps"], 12);
        check_accuracy(&summary);
        let steps = timesteps(&folder.path().join("results"));
        assert!(steps.is_sorted(), "{steps:?}");
    }
}

#[test]
fn a_node_that_is_killed_in_mid_run_loses_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let frames = folder.path().join("frames");
    let made = mvot()
        .args(["generate", "--steps", "16", "--out"])
        .arg(&frames)
        .status()
        .unwrap();
    assert!(made.success());
    let mut node = Node::start(&[]);
    let out = folder.path().join("results");
    let mut run = mvot()
        .args([
            "run",
            "--deploy",
            "--fps",
            "4",
            "--timeout-ms",
            "20000",
            "--node",
        ])
        .arg(format!("http://127.0.0.1:{}", node.port))
        .arg("--frames")
        .arg(&frames)
        .arg("--out")
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    node.eventually("some timesteps are in the scene's state", |node| {
        assert!(
            run.try_wait().unwrap().is_none(),
            "it ended before the node was killed"
        );
        let metrics = node.get("/metrics").text();
        metrics.lines().any(|line| {
            line.strip_prefix("fulmar_invocations_total ")
                .is_some_and(|count| count.parse::<f64>().unwrap() > 40.0)
        })
    });
    node.crash_and_come_back();
    let ran = run.wait_with_output().unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let summary = summary(&out);
    assert_eq!(summary["timesteps"], 16);
    assert_eq!(
        summary["complete"], 16,
        "every frame counted, once: {summary}"
    );
    assert_eq!(summary["live"]["failed"], 0);
    assert_eq!(summary["live"]["repeated"], 0, "{summary}");
    check_accuracy(&summary);
}
