//! Tokens on a real node: who is let in, who is not, and what is written down.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Output};

use common::Node;

fn fulmar(node: &Node, token: Option<&str>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fulmar"));
    command.args(args);
    command.args(["--node", &format!("http://127.0.0.1:{}", node.port)]);
    command.env_remove("FULMAR_TOKEN");
    if let Some(token) = token {
        command.env("FULMAR_TOKEN", token);
    }
    command.output().unwrap()
}

fn create(node: &Node, by: Option<&str>, args: &[&str]) -> String {
    let made = fulmar(node, by, &[&["token", "create"], args].concat());
    let text = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{text}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// Status and code of a request.
fn ask(node: &Node, token: Option<&str>, method: &str, path: &str) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    let url = format!("http://127.0.0.1:{}{path}", node.port);
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut response = agent.run(request.body(()).unwrap()).unwrap();
    let status = response.status().as_u16();
    if status == 401 {
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
    let text = response.body_mut().read_to_string().unwrap();
    let problem: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    (
        status,
        problem["code"].as_str().unwrap_or_default().to_owned(),
    )
}

/// The part of a token that names it.
fn id(token: &str) -> &str {
    token.split('_').nth(1).unwrap()
}

#[test]
fn from_the_first_token_on_every_request_needs_one_that_covers_it() {
    let mut node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    assert_eq!(
        ask(&node, None, "POST", "/fn/counter/a").0,
        200,
        "open at first"
    );
    let first = fulmar(&node, None, &["token", "create", "--scope", "invoke"]);
    let text = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(
        !first.status.success() && text.contains("error[tokens-in-use]"),
        "{text}"
    );

    let admin = create(&node, None, &["--scope", "admin", "--label", "operator"]);
    let camera = create(
        &node,
        Some(&admin),
        &["--scope", "invoke", "--function", "count*"],
    );
    let other = create(
        &node,
        Some(&admin),
        &["--scope", "invoke", "--function", "track"],
    );
    let (camera, other, admin) = (camera.as_str(), other.as_str(), admin.as_str());
    for (token, method, path, expected) in [
        (None, "POST", "/fn/counter/a", (401, "token-required")),
        (
            Some("fulmar_00_00"),
            "POST",
            "/fn/counter/a",
            (401, "token-refused"),
        ),
        (
            Some(&admin[..admin.len() - 1]),
            "GET",
            "/admin/node",
            (401, "token-refused"),
        ),
        (Some(other), "POST", "/fn/counter/a", (403, "scope-missing")),
        (Some(admin), "POST", "/fn/counter/a", (403, "scope-missing")),
        (Some(camera), "GET", "/admin/tokens", (403, "scope-missing")),
        (
            Some(camera),
            "DELETE",
            "/admin/functions/counter",
            (403, "scope-missing"),
        ),
        (None, "GET", "/metrics", (401, "token-required")),
        (None, "GET", "/healthz", (200, "")),
        (Some(camera), "POST", "/fn/counter/a", (200, "")),
        (Some(camera), "GET", "/metrics", (200, "")),
        (Some(admin), "GET", "/admin/node", (200, "")),
    ] {
        let (status, code) = ask(&node, token, method, path);
        assert_eq!((status, code.as_str()), expected, "{method} {path}");
    }

    // Tokens are there after a crash, and gone at once when they are revoked.
    node.crash_and_restart();
    assert_eq!(ask(&node, None, "POST", "/fn/counter/a").0, 401);
    assert_eq!(ask(&node, Some(camera), "POST", "/fn/counter/a").0, 200);
    assert!(
        fulmar(&node, Some(admin), &["token", "revoke", id(camera)])
            .status
            .success()
    );
    assert_eq!(ask(&node, Some(camera), "POST", "/fn/counter/a").0, 401);
    let last = fulmar(&node, Some(admin), &["token", "revoke", id(admin)]);
    let text = String::from_utf8_lossy(&last.stderr).into_owned();
    assert!(
        !last.status.success() && text.contains("last token with the scope admin"),
        "{text}"
    );
    let listed = fulmar(&node, Some(admin), &["token", "ls"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("operator") && listed.contains(id(other)),
        "{listed}"
    );
    assert!(!listed.contains(id(camera)), "{listed}");

    // What was changed is written down, by whom, and no secret anywhere.
    let audit = std::fs::read_to_string(node.data.join("audit.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = audit
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let revoked = lines
        .iter()
        .find(|line| line["method"] == "DELETE" && line["status"] == 204);
    assert_eq!(revoked.unwrap()["token"], id(admin));
    assert!(
        lines
            .iter()
            .any(|line| line["path"] == "/admin/functions/counter")
    );
    let secret = admin.split('_').nth(2).unwrap();
    for file in walk(&node.data) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "the secret is in {}", file.display());
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let entries = entries.map(|entry| entry.path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[test]
fn refused_tokens_are_put_off_after_a_while_and_good_ones_are_not() {
    let node = Node::start(&[]);
    let admin = create(&node, None, &["--scope", "admin"]);
    let codes: Vec<(u16, String)> = (0..40)
        .map(|_| ask(&node, Some("fulmar_00_00"), "GET", "/admin/node"))
        .collect();
    assert_eq!(codes[0], (401, "token-refused".to_owned()));
    assert!(
        codes.contains(&(429, "too-many-failures".to_owned())),
        "{codes:?}"
    );
    assert_eq!(ask(&node, Some(&admin), "GET", "/admin/node").0, 200);
    // The only token may go: then the node is open again.
    assert!(
        fulmar(&node, Some(&admin), &["token", "revoke", id(&admin)])
            .status
            .success()
    );
    assert_eq!(ask(&node, None, "GET", "/admin/node").0, 200);
}

#[test]
fn beyond_this_machine_only_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fulmar"));
    command.args(["dev", "--listen", "0.0.0.0", "--port", "0", "--data"]);
    let refused = command.arg(folder.path().join("data")).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && text.contains("--insecure"),
        "{text}"
    );
}

/// An authority, a certificate of it, a node that speaks HTTPS, and a client that trusts it or not.
#[test]
fn https_with_an_authority_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ca");
    let dir = dir.to_str().unwrap();
    let fulmar = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fulmar"));
        command.args(args).env_remove("FULMAR_CA").output().unwrap()
    };
    let text = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let early = fulmar(&["ca", "issue", "n1", "--name", "localhost", "--dir", dir]);
    assert!(text(&early).contains("fulmar ca init"), "{}", text(&early));
    assert!(fulmar(&["ca", "init", "--dir", dir]).status.success());
    let again = fulmar(&["ca", "init", "--dir", dir]);
    assert!(
        text(&again).contains("must not be there yet"),
        "{}",
        text(&again)
    );
    for bad in ["ca", "../n1", ""] {
        assert!(
            !fulmar(&["ca", "issue", bad, "--name", "localhost", "--dir", dir])
                .status
                .success()
        );
    }
    let issued = fulmar(&["ca", "issue", "n1", "--name", "127.0.0.1", "--dir", dir]);
    assert!(issued.status.success(), "{}", text(&issued));
    let file = |name: &str| format!("{dir}/{name}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(file("n1.key")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);

    let node = Node::start(&["--tls-cert", &file("n1.crt"), "--tls-key", &file("n1.key")]);
    let url = format!("https://127.0.0.1:{}", node.port);
    let status = fulmar(&["status", "--node", &url, "--ca", &file("ca.crt")]);
    assert!(status.status.success(), "{}", text(&status));
    let untrusted = fulmar(&["status", "--node", &url]);
    assert!(text(&untrusted).contains("--ca"), "{}", text(&untrusted));
    // Another authority of the same name is another authority.
    let other = folder.path().join("other");
    let other = other.to_str().unwrap();
    assert!(fulmar(&["ca", "init", "--dir", other]).status.success());
    let refused = fulmar(&["status", "--node", &url, "--ca", &format!("{other}/ca.crt")]);
    assert!(
        !refused.status.success(),
        "another authority's word was taken"
    );
    // The certificate does not name this host.
    let named = fulmar(&[
        "status",
        "--node",
        &url.replace("127.0.0.1", "localhost"),
        "--ca",
        &file("ca.crt"),
    ]);
    assert!(
        !named.status.success(),
        "a certificate for another name was taken"
    );
    // Plain HTTP gets nowhere, and the node goes on.
    let plain = fulmar(&["status", "--node", &url.replace("https", "http")]);
    assert!(!plain.status.success());
    assert!(
        fulmar(&["status", "--node", &url, "--ca", &file("ca.crt")])
            .status
            .success()
    );

    let mixed = fulmar(&[
        "dev",
        "--port",
        "0",
        "--tls-cert",
        &file("n1.crt"),
        "--tls-key",
        &file("ca.key"),
        "--data",
        other,
    ]);
    assert!(
        text(&mixed).contains("do not make a server"),
        "{}",
        text(&mixed)
    );
}
