//! `fulmar sim`, as scripts call it.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn fulmar(args: &[&str], out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(args)
        .arg("--out")
        .arg(out)
        .output()
        .unwrap()
}

const SHORT: &[&str] = &[
    "sim",
    "run",
    "stateful-faas",
    "--replications",
    "2",
    "--set",
    "clients=60",
    "--set",
    "simulated_calls=500",
    "--set",
    "most_clients=12",
    "--set",
    "simulated_slots=500",
    "--set",
    "shifts=1",
];

#[test]
fn a_run_writes_the_same_bytes_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let files = |name: &str, threads: &str| {
        let out = folder.path().join(name);
        let ran = fulmar(&[SHORT, &["--threads", threads]].concat(), &out);
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        assert!(String::from_utf8_lossy(&ran.stdout).contains("Fig. 3"));
        ["results.csv", "quantiles.csv", "report.json", "report.html"]
            .map(|file| std::fs::read_to_string(out.join(file)).unwrap())
    };
    let one = files("one", "1");
    assert_eq!(one, files("two", "2"));
    assert!(
        one[0].starts_with("scenario,figure,clients,local,by"),
        "{}",
        one[0]
    );
    assert!(one[3].starts_with("<!doctype html>"));
}

#[test]
fn nonsense_ends_with_code_2_and_says_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "scenario = \"stateful-faas\"\nclientz = [1]\n").unwrap();
    let file = file.to_str().unwrap();
    for (args, says) in [
        (vec!["sim", "run", "nothing"], "there are: "),
        (vec!["sim", "run", "absent.toml"], "absent.toml"),
        (vec!["sim", "run", file], "line 2: unknown field `clientz`"),
        (
            vec!["sim", "run", "stateful-faas", "--set", "rate=0"],
            "above 0",
        ),
        (
            vec!["sim", "run", "stateful-faas", "--set", "rat=0"],
            "there is no such setting",
        ),
    ] {
        let ran = fulmar(&args, &folder.path().join("out"));
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
    }
}

#[test]
fn every_scenarios_file_can_be_shown_and_run_from() {
    let bin = env!("CARGO_BIN_EXE_fulmar");
    let listed = Command::new(bin).args(["sim", "list"]).output().unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    assert!(names.lines().count() > 0);
    for line in names.lines() {
        let name = line.split_whitespace().next().unwrap();
        let shown = Command::new(bin)
            .args(["sim", "show", name])
            .output()
            .unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(text.contains(&format!("scenario = \"{name}\"")), "{text}");
    }
}
