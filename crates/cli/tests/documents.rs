//! The commands that README and docs show: each runs here as it stands there, on a real node.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Node, cluster};

/// Commands that other checks run, or that need what a test cannot have, with the reason.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "cargo xtask demo",
        "the test of multi-camera tracking runs the same",
    ),
    ("cargo xtask test", "runs this test"),
    (
        "cargo build --release --package fulmar-cli",
        "built for this test already",
    ),
    (
        "target/release/fulmar dev",
        "the node is started by the test, on a free port",
    ),
    ("rustup target add", "done before any test"),
    (
        "bench/compare.sh",
        "needs other servers and an idle machine",
    ),
    (
        "fulmar bench closed --help",
        "in the reference of the command line",
    ),
    (
        "examples/python-counter/build.sh",
        "needs componentize-py; the tests of HTTP functions build it if it is there",
    ),
    ("fulmar deploy examples/python-counter", "as above"),
    (
        "curl -X POST --data 5 http://127.0.0.1:7400/fn/python-counter/alice",
        "as above",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The contents of a page's fenced blocks of one language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match &mut open {
            None if line.trim() == format!("```{language}") => open = Some(String::new()),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}

/// A page's commands, each with what its comment says that it prints.
fn commands(page: &str) -> Vec<(String, Option<String>)> {
    blocks(page, "sh")
        .iter()
        .flat_map(|block| block.lines())
        .filter(|line| !line.trim().is_empty())
        .map(|line| match line.split_once("    # ") {
            Some((command, says)) => {
                let printed = says.split(',').next().unwrap_or(says).trim();
                (command.trim().to_owned(), Some(printed.to_owned()))
            }
            None => (
                line.split("  # ").next().unwrap_or(line).trim().to_owned(),
                None,
            ),
        })
        .filter(|(command, _)| {
            let elsewhere = ELSEWHERE
                .iter()
                .find(|(other, _)| command.starts_with(other));
            if let Some((_, why)) = elsewhere {
                eprintln!("not here: {command} ({why})");
            }
            elsewhere.is_none()
        })
        .collect()
}

/// Runs a page's commands as one script in a folder; what a comment says is printed, is.
fn run(page: &str, folder: &Path, before_building: &str) {
    let node = Node::start(&[]);
    let program = Path::new(env!("CARGO_BIN_EXE_fulmar"));
    let mut script = String::from("set -euo pipefail\n");
    let commands = commands(page);
    assert!(!commands.is_empty(), "{page} shows no commands");
    for (at, (command, _)) in commands.iter().enumerate() {
        if command.starts_with("cargo build") {
            script += before_building;
        }
        let command = command.replace("127.0.0.1:7400", &format!("127.0.0.1:{}", node.port));
        script += &format!("echo \"<{at}>\"\n{command}\n");
    }
    let path = std::env::var("PATH").unwrap();
    let ran = Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder)
        .env(
            "PATH",
            format!("{}:{path}", program.parent().unwrap().display()),
        )
        .env("FULMAR_NODE", format!("http://127.0.0.1:{}", node.port))
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{page}:\n{script}\n{out}\n{err}");
    for (at, (command, printed)) in commands.iter().enumerate() {
        let Some(printed) = printed else { continue };
        let after = out.split_once(&format!("<{at}>\n")).unwrap().1;
        // An answer ends without a line of its own.
        let before_next = after.split(&format!("<{}>", at + 1)).next().unwrap();
        assert_eq!(before_next.trim(), printed, "{page}: {command}");
    }
}

#[test]
fn readme() {
    run("README.md", &root(), "");
}

#[test]
fn namespaces() {
    run("docs/namespaces.md", &root(), "");
}

#[test]
fn programs() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["examples", "sdk"] {
        std::os::unix::fs::symlink(root().join(name), folder.path().join(name)).unwrap();
    }
    run("docs/functions-programs.md", folder.path(), "");
}

#[test]
fn getting_started() {
    let folder = tempfile::tempdir().unwrap();
    // Shared with the test of `fulmar new`, so that the SDK is built once.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new");
    std::fs::create_dir_all(&target).unwrap();
    let link = format!("ln -s {} target\n", target.display());
    run("docs/getting-started.md", folder.path(), &link);
}

/// The nodes of the page about many nodes, with its certificates and its commands.
#[test]
fn many_nodes() {
    let page = "docs/cluster.md";
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_fulmar")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", program.display());
    let ports: Vec<String> = cluster::free_ports(6).iter().map(u16::to_string).collect();
    let shown = ["7400", "7401", "7410", "7411", "7420", "7421"];
    let with_ports = |text: &str| {
        let ports = shown.iter().zip(&ports);
        ports.fold(text.to_owned(), |text, (shown, port)| {
            text.replace(shown, port)
        })
    };
    let bash = |script: &str| {
        let ran = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &with_ports(script)])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("FULMAR_CA", "ca/ca.crt")
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{script}\n{err}");
        String::from_utf8(ran.stdout).unwrap()
    };
    bash(&blocks(page, "sh").concat());
    let files = blocks(page, "toml");
    let [cloud, edge] = &files[..] else {
        panic!("{page} shows {} files", files.len())
    };
    let other = edge.replace("edge-1", "edge-2").replace("741", "742");
    let written: Vec<PathBuf> = [("cloud", cloud), ("edge-1", edge), ("edge-2", &other)]
        .iter()
        .map(|(name, text)| {
            let file = folder.path().join(format!("{name}.toml"));
            std::fs::write(&file, with_ports(text)).unwrap();
            file
        })
        .collect();
    let _nodes = cluster::Cluster::of_files(&written);
    common::guest("counter");
    std::os::unix::fs::symlink(root().join("examples"), folder.path().join("examples")).unwrap();
    let listed = bash("fulmar nodes ls --json --node https://127.0.0.1:7400");
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
    let commands = &blocks(page, "text")[0];
    assert!(commands.contains("sessions move"), "{commands}");
    bash(commands);
    let shown = bash("fulmar sessions show counter line-3 --node https://127.0.0.1:7420");
    assert!(shown.contains("\"home\": \"cloud\""), "{shown}");
}

#[test]
fn every_other_page_shows_known_commands_only() {
    for page in ["docs/functions-any-language.md", "docs/benchmarks.md"] {
        assert_eq!(commands(page), [], "{page}");
    }
    let shown: Vec<String> = commands("docs/functions-rust.md")
        .into_iter()
        .map(|(command, _)| command)
        .collect();
    let started: Vec<String> = commands("docs/getting-started.md")
        .into_iter()
        .map(|(command, _)| command)
        .collect();
    for command in shown {
        assert!(started.contains(&command), "{command} is run nowhere");
    }
}

#[test]
fn manifests_are_valid() {
    for page in [
        "docs/configuration.md",
        "docs/functions-any-language.md",
        "docs/functions-programs.md",
    ] {
        let blocks = blocks(page, "toml");
        assert!(!blocks.is_empty(), "{page} shows no manifest");
        for block in blocks {
            if let Err(error) = fulmar_model::Manifest::parse(&block, page) {
                panic!("{page}: {error}\n{block}");
            }
        }
    }
}
