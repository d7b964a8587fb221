//! Deploying: what is refused and why, and what a new version changes.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Node, guest, sha256};

#[test]
fn what_is_not_a_component_is_refused_by_name() {
    let node = Node::start(&[]);
    let whole = std::fs::read(guest("counter")).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0xff);
    for (bytes, expected) in [
        (&b""[..], "the file is empty"),
        (b"fn main() {}", "starts with 66 6e 20 6d"),
        (b"\0asm\x01\0\0\0", "core module"),
        (&whole[..whole.len() / 2], "not valid"),
        (&damaged, "not valid"),
        (b"\0asm\x0d\0\x01\0", "exports neither"),
    ] {
        let reply = node.try_deploy("bad", bytes, "");
        reply.expect_problem(422, "artifact-invalid");
        assert!(
            reply.text().contains(expected),
            "{expected:?} is missing in {}",
            reply.text()
        );
    }
    let reply = node.request(
        "PUT",
        &format!("/admin/artifacts/{}", "0".repeat(64)),
        &[],
        &whole,
    );
    reply.expect_problem(422, "artifact-invalid");
    node.request("PUT", "/admin/artifacts/abc", &[], &whole)
        .expect_problem(400, "bad-request");
    assert_eq!(
        node.get("/admin/functions").json()["functions"],
        serde_json::json!([])
    );
}

#[test]
fn a_bad_manifest_names_the_line() {
    let node = Node::start(&[]);
    let wasm = std::fs::read(guest("counter")).unwrap();
    for (manifest, expected) in [
        ("[limits]\nmemroy = \"1MiB\"", "fulmar.toml:4"),
        ("[limits]\nmemory = \"lots\"", "fulmar.toml:4"),
        ("durability = \"eternal\"", "fulmar.toml:3"),
        ("on_partition = \"takeover-after 30h\"", "fulmar.toml:3"),
        ("[unheard]\nof = 1", "fulmar.toml:3"),
        ("name = 3", "fulmar.toml"),
    ] {
        let reply = node.try_deploy("counter", &wasm, manifest);
        reply.expect_problem(422, "manifest-invalid");
        assert!(
            reply.text().contains(expected),
            "{expected:?} is missing in {}",
            reply.text()
        );
    }
}

#[test]
fn a_new_version_takes_new_invocations_and_running_ones_finish() {
    let mut node = Node::start(&[]);
    node.deploy("it", "guest-faults", "");
    assert_eq!(node.invoke("it/s", "count 5"), "5");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| node.invoke("it/other", "spin 500"));
        node.eventually("it runs", |node| {
            node.get("/admin/node").json()["invocations"].as_u64() >= Some(1)
        });
        node.deploy("it", "counter", "");
        // The same session, the same state, the new code.
        assert_eq!(node.invoke("it/s", "1"), "6");
        assert_eq!(running.join().unwrap(), "spun");
    });
    let shown = node.get("/admin/functions/it").json();
    assert_eq!(
        (shown["version"].as_u64(), shown["world"].as_str()),
        (Some(2), Some("fulmar:function")),
        "{shown}"
    );
    // The same again changes nothing.
    node.deploy("it", "counter", "");
    assert_eq!(node.get("/admin/functions/it").json()["version"], 2);
    node.restart();
    assert_eq!(node.invoke("it/s", "1"), "7");
    assert_eq!(
        node.request("DELETE", "/admin/functions/it", &[], b"")
            .status,
        204
    );
    node.invoke_fails("it/s", "1", 404, "function-not-found");
}

#[test]
fn artefacts_are_kept_by_digest_and_compiled_once() {
    let mut node = Node::start(&[]);
    let wasm = std::fs::read(guest("counter")).unwrap();
    let digest = sha256(&wasm);
    let path = format!("/admin/artifacts/{digest}");
    assert_eq!(node.request("HEAD", &path, &[], b"").status, 404);
    node.deploy("counter", "counter", "");
    let compiled = || {
        let files = std::fs::read_dir(node.data.join("artifacts")).unwrap();
        let of_kind = files
            .map(|file| file.unwrap())
            .find(|file| file.file_name().to_string_lossy().ends_with(".cwasm"));
        of_kind.unwrap().metadata().unwrap().modified().unwrap()
    };
    let before = compiled();
    node.deploy("another", "counter", "");
    assert_eq!(compiled(), before);
    node.restart();
    assert_eq!(node.invoke("another/a", "1"), "1");
}

#[test]
fn a_component_made_with_the_standard_tools_alone_runs() {
    let mut node = Node::start(&[]);
    node.deploy("web", "counter-http", "");
    let reply = node.request("POST", "/fn/web/a/add?x=1", &[], b"5");
    assert_eq!((reply.status, reply.text().as_str()), (200, "5"));
    assert_eq!(node.request("POST", "/fn/web/a/add", &[], b"2").text(), "7");
    assert_eq!(node.request("POST", "/fn/web/b/add", &[], b"2").text(), "2");
    node.crash_and_restart();
    assert_eq!(node.request("POST", "/fn/web/a/add", &[], b"0").text(), "7");
    assert_eq!(
        node.get("/admin/functions/web").json()["world"],
        "wasi:http/proxy"
    );
}
