//! Sessions whose state their clients carry, on a real node.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Node, Reply};

const CARRIED: &str = "execution_model = \"in-client\"\n";

fn count(node: &Node, session: &str, token: Option<&str>) -> Reply {
    let path = format!("/fn/counter/{session}");
    let headers: Vec<(&str, &str)> = token
        .map(|token| ("fulmar-state", token))
        .into_iter()
        .collect();
    node.request("POST", &path, &headers, b"1")
}

fn token(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.header("fulmar-state").unwrap().to_owned()
}

#[test]
fn the_state_is_where_the_client_takes_it() {
    let mut node = Node::start(&[]);
    node.deploy("counter", "counter", CARRIED);
    let first = count(&node, "a", None);
    assert_eq!(first.text(), "1");
    let one = token(&first);
    let second = count(&node, "a", Some(&one));
    assert_eq!(second.text(), "2");
    let two = token(&second);
    // The node keeps nothing of it: a copy goes on from where it was made, a new session from 0.
    assert_eq!(count(&node, "a", Some(&one)).text(), "2");
    assert_eq!(count(&node, "a", None).text(), "1");
    node.crash_and_restart();
    let third = count(&node, "a", Some(&two));
    assert_eq!(third.text(), "3", "the key outlives a crash");
    let sessions = node.get("/admin/sessions/counter").text();
    assert!(!sessions.contains("\"a\""), "{sessions}");
}

#[test]
fn tokens_that_are_not_the_sessions_are_refused() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", CARRIED);
    node.deploy("other", "counter", CARRIED);
    let good = token(&count(&node, "a", None));
    count(&node, "b", Some(&good)).expect_problem(403, "state-token-refused");
    let elsewhere = node.request("POST", "/fn/other/a", &[("fulmar-state", &good)], b"1");
    elsewhere.expect_problem(403, "state-token-refused");
    let mut forged = good.clone().into_bytes();
    let last = forged.len() - 2;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    count(&node, "a", Some(&forged)).expect_problem(403, "state-token-refused");
    for cut in ["", "A", &good[..20], "not base64!"] {
        count(&node, "a", Some(cut)).expect_problem(400, "state-token-invalid");
    }
    let twice = [
        ("fulmar-state", good.as_str()),
        ("fulmar-state", good.as_str()),
    ];
    node.request("POST", "/fn/counter/a", &twice, b"1")
        .expect_problem(400, "state-token-invalid");
    // Four keys are kept.
    for _ in 0..3 {
        assert_eq!(
            node.request("POST", "/admin/state-keys/rotate", &[], b"")
                .status,
            200
        );
    }
    assert_eq!(count(&node, "a", Some(&good)).text(), "2");
    assert_eq!(
        node.request("POST", "/admin/state-keys/rotate", &[], b"")
            .status,
        200
    );
    count(&node, "a", Some(&good)).expect_problem(403, "state-key-retired");
}

#[test]
fn nobody_but_the_client_reaches_it() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", CARRIED);
    let prefer = [("prefer", "respond-async")];
    node.request("POST", "/fn/counter/a", &prefer, b"1")
        .expect_problem(409, "state-with-client");
    node.get("/admin/state/session/counter/a/key/count")
        .expect_problem(409, "state-with-client");
}

/// Where the state is cannot be changed under the sessions that there are.
#[test]
fn sessions_are_not_lost_by_a_new_deployment() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    assert_eq!(count(&node, "a", None).text(), "1");
    let wasm = std::fs::read(common::guest("counter")).unwrap();
    let refused = node.try_deploy("counter", &wasm, CARRIED);
    refused.expect_problem(409, "sessions-in-the-way");
    assert_eq!(count(&node, "a", None).text(), "2");
    // The other way round the client's state would be overlooked.
    node.deploy("carried", "counter", CARRIED);
    let reply = node.request("POST", "/fn/carried/a", &[], b"1");
    let token = token(&reply);
    node.deploy("carried", "counter", "");
    let late = node.request("POST", "/fn/carried/a", &[("fulmar-state", &token)], b"1");
    late.expect_problem(409, "sessions-in-the-way");
}

#[test]
fn repetitions_get_the_same_state_and_older_ones_are_refused_where_asked() {
    let mut node = Node::start(&[]);
    node.deploy(
        "counter",
        "counter",
        &format!("{CARRIED}anti_rollback = true\n"),
    );
    let one = token(&count(&node, "a", None));
    let again = |node: &Node| {
        let headers = [("fulmar-state", one.as_str()), ("idempotency-key", "k-1")];
        node.request("POST", "/fn/counter/a", &headers, b"1")
    };
    let first = again(&node);
    let two = token(&first);
    let repeated = again(&node);
    assert_eq!(
        (repeated.text(), token(&repeated)),
        (first.text(), two.clone())
    );
    count(&node, "a", Some(&one)).expect_problem(409, "state-token-stale");
    count(&node, "a", None).expect_problem(409, "state-token-stale");
    node.crash_and_restart();
    count(&node, "a", Some(&one)).expect_problem(409, "state-token-stale");
    assert_eq!(count(&node, "a", Some(&two)).text(), "3");
}
