//! Sessions that change their execution model while they are in use: with their home, at another node, with their client,
//! and back.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::cluster::Cluster;
use common::{Connection, Node, Reply};

/// A request of a session: with a token, for a model, under a key.
#[derive(Default, Clone, Copy)]
struct Ask<'a> {
    token: Option<&'a str>,
    model: Option<&'a str>,
    key: Option<&'a str>,
}

impl<'a> Ask<'a> {
    fn headers(&self) -> Vec<(&'a str, &'a str)> {
        let headers = [
            ("fulmar-state", self.token),
            ("fulmar-execution-model", self.model),
            ("idempotency-key", self.key),
        ];
        headers
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    fn send(&self, node: &Node, path: &str, body: &str) -> Reply {
        let path = format!("/fn/{path}");
        node.request("POST", &path, &self.headers(), body.as_bytes())
    }
}

fn model(model: &str) -> Ask<'_> {
    Ask {
        model: Some(model),
        ..Ask::default()
    }
}

fn carried(token: &str) -> Ask<'_> {
    Ask {
        token: Some(token),
        ..Ask::default()
    }
}

fn back(token: &str) -> Ask<'_> {
    Ask {
        token: Some(token),
        ..model("in-function")
    }
}

/// The token of an answer that counts so far.
fn token(reply: &Reply, count: &str) -> String {
    assert_eq!((reply.status, reply.text().as_str()), (200, count));
    reply.header("fulmar-state").unwrap().to_owned()
}

#[test]
fn a_session_goes_with_its_client_and_comes_back() {
    let mut node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    node.invoke("counter/a", "1");
    node.invoke("counter/a", "1");
    let left = model("in-client").send(&node, "counter/a", "1");
    assert_eq!(left.header("fulmar-execution-model"), Some("in-client"));
    let three = token(&left, "3");
    // Nobody is served from what the home has kept.
    node.invoke_fails("counter/a", "1", 409, "state-with-client");
    node.crash_and_restart();
    node.invoke_fails("counter/a", "1", 409, "state-with-client");
    let shown = node.get("/admin/sessions/counter/a").json();
    assert_eq!(shown["execution_model"], "in-client");
    let four = token(&carried(&three).send(&node, "counter/a", "1"), "4");
    let came = back(&four).send(&node, "counter/a", "1");
    assert_eq!((came.status, came.text().as_str()), (200, "5"));
    assert_eq!(came.header("fulmar-execution-model"), Some("in-function"));
    assert_eq!(came.header("fulmar-state"), None);
    assert_eq!(node.invoke("counter/a", "1"), "6");
    // What the client still has is no way over it.
    back(&four)
        .send(&node, "counter/a", "1")
        .expect_problem(409, "state-token-stale");
    node.crash_and_restart();
    back(&four)
        .send(&node, "counter/a", "1")
        .expect_problem(409, "state-token-stale");
    assert_eq!(node.invoke("counter/a", "1"), "7");
    // Neither after it has left again.
    let eight = token(&model("in-client").send(&node, "counter/a", "1"), "8");
    back(&four)
        .send(&node, "counter/a", "1")
        .expect_problem(409, "state-token-stale");
    assert_eq!(back(&eight).send(&node, "counter/a", "1").text(), "9");
}

#[test]
fn what_fails_changes_nothing() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    node.invoke("faults/s", "count 1");
    let failed = model("in-client").send(&node, "faults/s", "count-then-fail 1");
    failed.expect_problem(500, "function-failed");
    assert_eq!(node.invoke("faults/s", "count 1"), "2");
    let left = token(&model("in-client").send(&node, "faults/s", "count 1"), "3");
    let failed = back(&left).send(&node, "faults/s", "count-then-fail 1");
    failed.expect_problem(500, "function-failed");
    node.invoke_fails("faults/s", "count 1", 409, "state-with-client");
    assert_eq!(back(&left).send(&node, "faults/s", "count 1").text(), "4");
    // Keys that the client's copy has not any more are gone at home as well.
    node.invoke("faults/s", "record one");
    let left = model("in-client").send(&node, "faults/s", "len");
    let left = token(&left, "1");
    assert_eq!(back(&left).send(&node, "faults/s", "items").text(), "one");
    // What does not fit stays where it is.
    node.invoke("faults/s", "record-padded 20000");
    let large = model("in-client").send(&node, "faults/s", "len");
    large.expect_problem(507, "state-too-large");
    assert_eq!(node.invoke("faults/s", "len"), "2");
}

#[test]
fn an_answer_that_is_lost_is_there_again() {
    let mut node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    let leave = Ask {
        key: Some("leave"),
        ..model("in-client")
    };
    let first = token(&leave.send(&node, "counter/a", "1"), "1");
    node.crash_and_restart();
    assert_eq!(token(&leave.send(&node, "counter/a", "1"), "1"), first);
    let come = Ask {
        key: Some("come"),
        ..back(&first)
    };
    assert_eq!(come.send(&node, "counter/a", "1").text(), "2");
    node.crash_and_restart();
    assert_eq!(come.send(&node, "counter/a", "1").text(), "2");
    assert_eq!(node.invoke("counter/a", "1"), "3");
}

#[test]
fn a_client_that_lost_its_state_goes_on_from_the_copy() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    node.invoke("counter/a", "5");
    let six = token(&model("in-client").send(&node, "counter/a", "1"), "6");
    let path = "/admin/sessions/counter/a";
    let wanted = |model: &str| format!("{{\"execution_model\":{model:?}}}").into_bytes();
    let refused = node.request("PATCH", path, &[], &wanted("external"));
    refused.expect_problem(503, "external-store-unreachable");
    let changed = node.request("PATCH", path, &[], &wanted("in-function"));
    assert_eq!(
        (changed.status, changed.json()["changed"].as_bool()),
        (200, Some(true))
    );
    assert_eq!(node.invoke("counter/a", "1"), "7");
    back(&six)
        .send(&node, "counter/a", "1")
        .expect_problem(409, "state-token-stale");
    // Removed, it begins anew, and the old token is no way back.
    let eight = token(&model("in-client").send(&node, "counter/a", "1"), "8");
    assert_eq!(node.request("DELETE", path, &[], b"").status, 204);
    assert_eq!(node.invoke("counter/a", "1"), "1");
    back(&eight)
        .send(&node, "counter/a", "1")
        .expect_problem(409, "state-token-stale");
}

#[test]
fn messages_wait_until_it_is_back() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "[messages]\nmax_attempts = 1\n");
    let away = token(
        &model("in-client").send(&node, "faults/r", "record one"),
        "1",
    );
    node.invoke("faults/s", "send faults r 1 record two");
    let status = node.get("/admin/dead-letters").json();
    assert_eq!(status["dead_letters"], serde_json::json!([]));
    assert_eq!(back(&away).send(&node, "faults/r", "len").text(), "1");
    node.eventually("the message is there", |node| {
        node.invoke("faults/r", "items") == "one,two"
    });
}

#[test]
fn requests_choose_only_where_they_may() {
    let node = Node::start(&[]);
    node.deploy("fixed", "counter", "execution_model = \"in-function\"\n");
    node.deploy("free", "counter", "");
    let refused = model("in-client").send(&node, "fixed/a", "1");
    refused.expect_problem(400, "execution-model-refused");
    let refused = model("somewhere").send(&node, "free/a", "1");
    refused.expect_problem(400, "execution-model-refused");
    let refused = model("external").send(&node, "free/a", "1");
    refused.expect_problem(503, "external-store-unreachable");
    assert_eq!(model("in-function").send(&node, "fixed/a", "1").text(), "1");
    let not_its_own = carried("AAAA").send(&node, "fixed/a", "1");
    not_its_own.expect_problem(409, "sessions-in-the-way");
}

#[test]
fn each_model_runs_where_it_is_meant_to() {
    let cluster = Cluster::start(3);
    let [n1, n2, n3] = &cluster.nodes[..] else {
        panic!("three nodes")
    };
    n1.deploy("counter", "counter", "");
    n1.invoke("counter/a", "1");
    let at_home = Ask::default().send(n2, "counter/a", "1");
    assert_eq!((at_home.ran_at(), at_home.text().as_str()), ("n1", "2"));
    let lent = model("in-edge").send(n2, "counter/a", "1");
    assert_eq!((lent.ran_at(), lent.text().as_str()), ("n2", "3"));
    assert_eq!(lent.header("fulmar-execution-model"), Some("in-edge"));
    let left = model("in-client").send(n2, "counter/a", "1");
    assert_eq!(left.ran_at(), "n1");
    let four = token(&left, "4");
    let away = carried(&four).send(n3, "counter/a", "1");
    assert_eq!(away.ran_at(), "n3");
    let five = token(&away, "5");
    n2.invoke_fails("counter/a", "1", 409, "state-with-client");
    model("in-edge")
        .send(n2, "counter/a", "1")
        .expect_problem(409, "state-with-client");
    // Its home moves meanwhile, with the note.
    let moved = serde_json::json!({ "function": "counter", "session": "a", "to": "n2" });
    let body = moved.to_string();
    let moved = n3.request("POST", "/admin/migrations", &[], body.as_bytes());
    assert_eq!(moved.status, 200, "{}", moved.text());
    n1.invoke_fails("counter/a", "1", 409, "state-with-client");
    let came = back(&five).send(n3, "counter/a", "1");
    assert_eq!((came.ran_at(), came.text().as_str()), ("n2", "6"));
    assert_eq!(n1.invoke("counter/a", "1"), "7");
}

/// A node that remembers a session as it was lent does not take the one that was made again for it.
#[test]
fn a_session_that_was_made_again_is_not_what_was_lent() {
    let cluster = Cluster::start(2);
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    n1.deploy("counter", "counter", "");
    n1.invoke("counter/a", "10");
    let lent = model("in-edge").send(n2, "counter/a", "10");
    assert_eq!((lent.ran_at(), lent.text().as_str()), ("n2", "20"));
    let removed = n1.request("DELETE", "/admin/sessions/counter/a", &[], b"");
    assert_eq!(removed.status, 204);
    assert_eq!(n1.invoke("counter/a", "1"), "1");
    assert_eq!(n1.invoke("counter/a", "1"), "2");
    let lent = model("in-edge").send(n2, "counter/a", "1");
    assert_eq!((lent.ran_at(), lent.text().as_str()), ("n2", "3"));
}

#[test]
fn a_session_comes_back_to_where_its_client_is() {
    let cluster = Cluster::following(2, "on");
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    n1.deploy("counter", "counter", "");
    let left = model("in-client").send(n1, "counter/a", "1");
    let one = token(&left, "1");
    let came = back(&one).send(n2, "counter/a", "1");
    assert_eq!((came.ran_at(), came.text().as_str()), ("n2", "2"));
    let through_the_other = Ask::default().send(n1, "counter/a", "1");
    assert_eq!(
        (
            through_the_other.ran_at(),
            through_the_other.text().as_str()
        ),
        ("n2", "3")
    );
}

/// A worker that remembers the session as it was when it left is of no use when it comes back, also if the home counts
/// both as the same version: after as many commits as one record of the session covers.
#[test]
fn a_worker_from_before_is_not_used_again() {
    let cluster = Cluster::start(2);
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    n1.deploy("counter", "counter", "");
    let mut connection = Connection::open(n1.port);
    for _ in 0..255 {
        connection
            .request("POST", "/fn/counter/a", &[], b"1")
            .unwrap();
    }
    let left = token(&model("in-client").send(n1, "counter/a", "1"), "256");
    let away = token(&carried(&left).send(n2, "counter/a", "1"), "257");
    let came = back(&away).send(n1, "counter/a", "1");
    assert_eq!((came.ran_at(), came.text().as_str()), ("n1", "258"));
    assert_eq!(n1.invoke("counter/a", "1"), "259");
}

/// The same where others may take over, and every node has to be sure that it is still the home.
#[test]
fn sessions_that_may_be_taken_over_go_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::with_store(2, folder.path());
    let manifest = "durability = \"replicated\"\non_partition = \"takeover-after 2s\"\n";
    cluster.nodes[0].deploy("counter", "counter", manifest);
    cluster.nodes[1].invoke("counter/a", "1");
    let leave = Ask {
        key: Some("leave"),
        ..model("in-client")
    };
    let two = token(&leave.send(&cluster.nodes[0], "counter/a", "1"), "2");
    assert_eq!(
        token(&leave.send(&cluster.nodes[1], "counter/a", "1"), "2"),
        two
    );
    let three = token(
        &carried(&two).send(&cluster.nodes[0], "counter/a", "1"),
        "3",
    );
    // Its home is lost while it is away; whoever takes over knows that it is.
    cluster.nodes[1].crash();
    let survivor = &cluster.nodes[0];
    survivor.eventually("it is taken over", |node| {
        let reply = Ask::default().send(node, "counter/a", "1");
        reply.status == 409 && reply.json()["code"] == "state-with-client"
    });
    assert_eq!(back(&three).send(survivor, "counter/a", "1").text(), "4");
    assert_eq!(survivor.invoke("counter/a", "1"), "5");
    back(&three)
        .send(survivor, "counter/a", "1")
        .expect_problem(409, "state-token-stale");
}

/// Clients that change the model of their sessions all the time, through all nodes, while nodes die and sessions move.
#[test]
fn whatever_changes_every_increment_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::with_external(3, folder.path().to_str().unwrap());
    cluster.nodes[0].deploy("counter", "counter", "");
    let done = AtomicBool::new(false);
    let ports: Vec<_> = cluster.nodes.iter().map(|node| node.port).collect();
    std::thread::scope(|scope| {
        for client in 0..6_u64 {
            let (done, ports) = (&done, &ports);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(client);
                let path = format!("/fn/counter/c{client}");
                let (mut count, mut token) = (0_u64, None::<String>);
                while !done.load(Ordering::Relaxed) {
                    let wanted = ["in-function", "in-edge", "in-client", "external"];
                    let wanted = random.choice(wanted).unwrap();
                    let key = format!("k{count}");
                    // The same request until there is an answer, of whichever node.
                    let reply = loop {
                        let ask = Ask {
                            token: token.as_deref(),
                            model: Some(wanted),
                            key: Some(&key),
                        };
                        let port = *random.choice(ports).unwrap();
                        let Some(mut connection) = Connection::try_open(port) else {
                            continue;
                        };
                        match connection.request("POST", &path, &ask.headers(), b"1") {
                            Ok(reply) if reply.status == 200 => break reply,
                            Ok(reply) => assert!(
                                [429, 502, 503, 504].contains(&reply.status),
                                "{client} {wanted} {}: {}",
                                reply.status,
                                reply.text()
                            ),
                            Err(_) => {}
                        }
                    };
                    count += 1;
                    assert_eq!(reply.text(), count.to_string(), "client {client}, {wanted}");
                    token = match wanted {
                        "in-client" => reply.header("fulmar-state").map(str::to_owned).or(token),
                        _ => None,
                    };
                }
                assert!(count > 10, "client {client} got no further than {count}");
            });
        }
        for round in 0..4 {
            for client in 0..6 {
                let to = format!("n{}", 1 + (client + round) % 3);
                let session = format!("c{client}");
                let moved =
                    serde_json::json!({ "function": "counter", "session": session, "to": to });
                // It may be refused for a moment; the next round tries again.
                let body = moved.to_string();
                let at = &cluster.nodes[round % 3];
                at.request("POST", "/admin/migrations", &[], body.as_bytes());
            }
            cluster.nodes[1 + round % 2].crash_and_restart();
        }
        done.store(true, Ordering::Relaxed);
    });
}
