//! The same key, the same answer, the effects once.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Connection, Node};

const KEY: [(&str, &str); 1] = [("idempotency-key", "order-17")];

#[test]
fn a_repeated_key_gets_the_first_answer_also_after_a_crash() {
    let mut node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    let first = node.request("POST", "/fn/counter/a", &KEY, b"5");
    assert_eq!((first.status, first.text().as_str()), (200, "5"));
    assert_eq!(first.header("idempotency-replayed"), None);
    for _ in 0..3 {
        let again = node.request("POST", "/fn/counter/a", &KEY, b"5");
        assert_eq!(
            (again.text().as_str(), again.header("idempotency-replayed")),
            ("5", Some("true"))
        );
        assert_eq!(
            again.header("fulmar-invocation"),
            first.header("fulmar-invocation")
        );
    }
    node.crash_and_restart();
    let again = node.request("POST", "/fn/counter/a", &KEY, b"5");
    assert_eq!(
        (again.text().as_str(), again.header("idempotency-replayed")),
        ("5", Some("true"))
    );
    assert_eq!(node.invoke("counter/a", "1"), "6");
    // Another session, another function: another key.
    assert_eq!(
        node.request("POST", "/fn/counter/b", &KEY, b"5").text(),
        "5"
    );
}

#[test]
fn a_key_with_another_request_is_refused() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    node.request("POST", "/fn/counter/a", &KEY, b"5");
    node.request("POST", "/fn/counter/a", &KEY, b"6")
        .expect_problem(422, "idempotency-key-reused");
    assert_eq!(node.invoke("counter/a", "0"), "5");
}

#[test]
fn the_same_key_at_once_runs_once() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    node.deploy("faults", "guest-faults", "");
    for path in ["/fn/counter/a", "/fn/faults"] {
        let body: &[u8] = if path == "/fn/faults" {
            b"shared-increment b k 1"
        } else {
            b"1"
        };
        let answers: Vec<String> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| {
                        Connection::open(node.port)
                            .request("POST", path, &KEY, body)
                            .unwrap()
                            .text()
                    })
                })
                .collect();
            clients
                .into_iter()
                .map(|client| client.join().unwrap())
                .collect()
        });
        assert!(
            answers.iter().all(|answer| answer == "1"),
            "{path}: {answers:?}"
        );
    }
    assert_eq!(node.invoke("counter/a", "0"), "1");
    assert_eq!(node.invoke("faults", "shared-get b k"), "1");
}

#[test]
fn a_failure_is_not_kept_so_that_it_can_be_repeated() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    for _ in 0..2 {
        let reply = node.request("POST", "/fn/faults/a", &KEY, b"count-then-fail 1");
        reply.expect_problem(500, "function-failed");
    }
    assert_eq!(node.invoke("faults/a", "count 0"), "0");
}

#[test]
fn an_asynchronous_invocation_is_kept_until_it_is_done() {
    let mut node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    let wants = [("prefer", "respond-async"), ("idempotency-key", "job-1")];
    let accepted = node.request("POST", "/fn/faults/a", &wants, b"count 3");
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let location = accepted.header("location").unwrap().to_owned();
    let again = node.request("POST", "/fn/faults/a", &wants, b"count 3");
    assert_eq!(
        (again.status, again.header("location")),
        (202, Some(location.as_str())),
        "the key makes it one"
    );
    node.eventually("the invocation is done", |node| {
        node.get(&location).json()["status"] == "done"
    });
    assert_eq!(node.get(&format!("{location}/result")).text(), "3");
    node.crash_and_restart();
    assert_eq!(node.get(&format!("{location}/result")).text(), "3");
    assert_eq!(node.invoke("faults/a", "count 0"), "3");
    let failing = node.request(
        "POST",
        "/fn/faults/a",
        &[("prefer", "respond-async")],
        b"fail on purpose",
    );
    let location = failing.header("location").unwrap().to_owned();
    node.eventually("the invocation failed", |node| {
        node.get(&location).json()["status"] == "failed"
    });
    let status = node.get(&location).json();
    assert_eq!(status["problem"]["code"], "function-failed", "{status}");
    node.get("/invocations/1-ffff")
        .expect_problem(404, "invocation-not-found");
}

#[test]
fn an_accepted_invocation_runs_after_a_crash() {
    let mut node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    // The session is busy, so the accepted one waits when the node dies.
    let port = node.port;
    let busy = std::thread::spawn(move || {
        // Cut off by the crash.
        let _ = Connection::open(port).request("POST", "/fn/faults/a", &[], b"spin 20000");
    });
    node.eventually("the session is busy", |node| {
        node.get("/admin/node").json()["invocations"].as_u64() >= Some(1)
    });
    let accepted = node.request(
        "POST",
        "/fn/faults/a",
        &[("prefer", "respond-async")],
        b"count 3",
    );
    let location = accepted.header("location").unwrap().to_owned();
    assert_eq!(node.get(&location).json()["status"], "pending");
    node.crash_and_restart();
    busy.join().unwrap();
    node.eventually("the invocation is done", |node| {
        node.get(&location).json()["status"] == "done"
    });
    assert_eq!(node.get(&format!("{location}/result")).text(), "3");
}

#[test]
fn invocations_with_keys_and_without_sessions_share_the_workers_that_there_may_be() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "[workers]\nmax = 2\n");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let node = &node;
            scope.spawn(move || {
                let key = format!("key-{number}");
                let headers = [("idempotency-key", key.as_str())];
                let reply = node.request("POST", "/fn/faults", &headers, b"sleep 50");
                assert_eq!(reply.text(), "slept");
            });
        }
    });
    let idle = |node: &Node| {
        let metrics = node.get("/metrics").text();
        let mut lines = metrics.lines();
        lines.find_map(|line| Some(line.strip_prefix("fulmar_workers_idle ")?.to_owned()))
    };
    node.eventually("they are counted", |node| idle(node).unwrap() != "0");
    assert_eq!(idle(&node).unwrap(), "2");
}
