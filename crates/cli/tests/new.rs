//! `fulmar new`: what it makes builds, passes its own tests, and runs.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::Node;

fn fulmar(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("new")
}

/// Builds what it needs beside the other tests, so that the next run has it; for release only, as
/// the component does, so that the SDK's macros are built once.
fn cargo(folder: &Path, arguments: &[&str]) {
    let status = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", target())
        .status()
        .unwrap();
    assert!(status.success(), "cargo {arguments:?}: {status}");
}

#[test]
fn a_new_function_builds_and_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let made = fulmar(folder.path(), &["new", "rust", "hello-world"]);
    assert!(made.status.success(), "{made:?}");
    let function = folder.path().join("hello-world");
    cargo(&function, &["test", "--release", "--quiet"]);
    let for_wasm = ["build", "--release", "--target", "wasm32-wasip2", "--quiet"];
    cargo(&function, &for_wasm);
    let component = "target/wasm32-wasip2/release/hello_world.wasm";
    std::fs::create_dir_all(function.join(component).parent().unwrap()).unwrap();
    std::fs::copy(
        target().join(component.trim_start_matches("target/")),
        function.join(component),
    )
    .unwrap();

    let node = Node::start(&[]);
    let address = format!("http://127.0.0.1:{}", node.port);
    let deployed = fulmar(&function, &["--node", &address, "deploy", "."]);
    assert!(deployed.status.success(), "{deployed:?}");
    assert!(
        node.invoke("hello-world/world", "good morning")
            .contains("new here")
    );
    assert!(
        node.invoke("hello-world/world", "hi")
            .contains("good morning")
    );
    node.invoke_fails("hello-world/world", "", 400, "rejected-by-function");
}

#[test]
fn a_folder_with_something_in_it_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("mine")).unwrap();
    std::fs::write(folder.path().join("mine/notes"), "precious").unwrap();
    let refused = fulmar(folder.path(), &["new", "rust", "mine"]);
    assert!(!refused.status.success());
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(
        text.contains("not empty") && text.contains("--path"),
        "{text}"
    );
    assert_eq!(
        std::fs::read_dir(folder.path().join("mine"))
            .unwrap()
            .count(),
        1
    );
}
