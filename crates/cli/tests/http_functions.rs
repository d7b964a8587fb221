//! Functions of `wasi:http`, made without Fulmar's SDK: what they see, what they may leave behind.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Node, Reply};

fn faults() -> Node {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-http-faults", "");
    node
}

fn post(node: &Node, path: &str) -> Reply {
    node.request("POST", &format!("/fn/faults/s{path}"), &[], b"body")
}

#[test]
fn a_function_sees_method_sub_path_query_and_body() {
    let node = faults();
    let reply = node.request("PATCH", "/fn/faults/s/echo?x=%20y", &[], b"some body");
    assert_eq!((reply.status, reply.text().as_str()), (200, "some body"));
    assert_eq!(reply.header("x-method"), Some("PATCH"));
    assert_eq!(reply.header("x-path"), Some("/echo?x=%20y"));
    assert_eq!(post(&node, "/status/418").status, 418);
    assert_eq!(post(&node, "/ignore-body").text(), "not read\n");
    assert_eq!(post(&node, "/stream/100000").body.len(), 100_000);
}

#[test]
fn what_fails_after_writing_leaves_no_trace_and_ends_at_once() {
    let node = faults();
    assert_eq!(post(&node, "/write/k/before").status, 200);
    assert_eq!(post(&node, "/500-after-write/k/after").status, 500);
    assert_eq!(post(&node, "/read/k").text(), "before");
    for trap in ["/trap-after-write/k/after", "/trap-after-response/k/after"] {
        // Less than the time-out of 30 s: a trap is known when it happens.
        let started = std::time::Instant::now();
        post(&node, trap).expect_problem(500, "function-trap");
        assert!(started.elapsed().as_secs() < 20, "{trap} took its time-out");
        assert_eq!(post(&node, "/read/k").text(), "before");
    }
}

#[test]
fn a_response_that_does_not_come_whole_is_none() {
    let node = faults();
    post(&node, "/no-response").expect_problem(500, "no-response");
    post(&node, "/half-stream/1000").expect_problem(500, "no-response");
    assert_eq!(post(&node, "/status/200").status, 200);
}

#[test]
fn a_response_without_end_is_cut_off_at_the_limit() {
    let node = Node::start(&[]);
    let limits = "[limits]\nmax_response = \"1MiB\"\ntimeout = \"20s\"\n";
    node.deploy("faults", "guest-http-faults", limits);
    post(&node, "/stream-forever").expect_problem(500, "response-too-large");
    assert_eq!(post(&node, "/status/200").status, 200);
}

/// Counts in sessions over HTTP, as the examples without the SDK do.
fn counts_durably(node: &mut Node, function: &str) {
    let ask = |node: &Node, method: &str, session: &str, body: &str| {
        let path = format!("/fn/{function}/{session}");
        let reply = node.request(method, &path, &[], body.as_bytes());
        (reply.status, reply.text())
    };
    assert_eq!(ask(node, "POST", "a", "5"), (200, "5".into()));
    assert_eq!(ask(node, "POST", "a", "-2"), (200, "3".into()));
    assert_eq!(ask(node, "GET", "a", ""), (200, "3".into()));
    assert_eq!(ask(node, "GET", "b", ""), (200, "0".into()));
    assert_eq!(ask(node, "POST", "a", "many").0, 400);
    assert_eq!(ask(node, "PUT", "a", "1").0, 405);
    node.crash_and_restart();
    assert_eq!(ask(node, "GET", "a", ""), (200, "3".into()));
    let reply = node.request("POST", &format!("/fn/{function}"), &[], b"1");
    assert!(reply.text().contains("no session"), "{}", reply.text());
}

#[test]
fn a_component_of_plain_wit_bindgen_counts_durably() {
    let mut node = Node::start(&[]);
    node.deploy("web", "counter-http", "read_only_methods = [\"GET\"]\n");
    counts_durably(&mut node, "web");
}

#[test]
fn a_component_of_componentize_py_counts_durably() {
    if Command::new("componentize-py")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED: componentize-py is not in PATH (pip install componentize-py)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let wasm = folder.path().join("python_counter.wasm");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/python-counter");
    let built = Command::new(example.join("build.sh"))
        .arg(&wasm)
        .status()
        .unwrap();
    assert!(built.success());
    let mut node = Node::start(&[]);
    let manifest = "read_only_methods = [\"GET\"]\n[limits]\nmemory = \"128MiB\"\n";
    let reply = node.try_deploy("python", &std::fs::read(&wasm).unwrap(), manifest);
    assert_eq!(reply.status, 200, "{}", reply.text());
    counts_durably(&mut node, "python");
}
