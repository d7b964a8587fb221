//! The demonstration as a user sees it: what it prints, what it records, what it leaves behind. How fast anything is is not
//! looked at here.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

const MODELS: [&str; 5] = ["auto", "in-function", "in-edge", "external", "in-client"];

#[test]
fn it_plays_the_same_with_every_model_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record.jsonl");
    let played = Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(["demo", "--seconds", "2", "--json", "--record"])
        .arg(&record)
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&played.stderr);
    assert!(played.status.success(), "{said}");
    let outcomes: Value = serde_json::from_slice(&played.stdout).unwrap();
    let outcomes = outcomes.as_array().unwrap();
    let models: Vec<&str> = outcomes
        .iter()
        .map(|outcome| outcome["model"].as_str().unwrap())
        .collect();
    assert_eq!(models, MODELS);
    for outcome in outcomes {
        assert_eq!(outcome["wrong"], 0, "{outcome}");
        assert_eq!(outcome["requests"], outcomes[0]["requests"]);
    }
    let bytes = |at: usize| outcomes[at]["cloud_bytes"].as_u64().unwrap();
    // What nodes tell each other is more the longer it takes, and here that may be long.
    assert!(
        bytes(0) < bytes(3),
        "auto {} B, external {} B",
        bytes(0),
        bytes(3)
    );

    let lines = std::fs::read_to_string(&record).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let answers = |model: &str| -> Vec<&Value> {
        let is_meant = |line: &&Value| line["kind"] == "answer" && line["model"] == model;
        lines.iter().filter(is_meant).collect()
    };
    let count = outcomes[0]["requests"].as_u64().unwrap() as usize;
    for model in MODELS {
        assert_eq!(answers(model).len(), count, "{model}");
    }
    // Where the state is, in each phase of the car's day.
    for answer in answers("auto") {
        let expected = match answer["phase"].as_str().unwrap() {
            "cruising" => "in-client",
            _ => "in-function",
        };
        assert_eq!(answer["execution_model"], expected, "{answer}");
    }
    // What is lent, kept elsewhere or carried runs where it is taken: the car at all three nodes.
    for model in ["in-edge", "external", "in-client"] {
        let mut nodes: Vec<&str> = answers(model)
            .iter()
            .filter(|answer| answer["client"] == "car-7" && answer["phase"] == "cruising")
            .map(|answer| answer["node"].as_str().unwrap())
            .collect();
        nodes.dedup();
        // The first request of a session makes its home, wherever it is taken.
        assert_eq!(nodes, ["road-1", "road-2", "road-3"], "{model}");
    }
    // Nothing is left: no process, no folder.
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
