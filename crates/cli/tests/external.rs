//! Sessions in an external store: a real Redis, a real PostgreSQL, a folder. Any node runs their invocations; nothing is
//! lost or happens twice, whatever dies.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use common::cluster::Cluster;
use common::servers::Server;
use common::{Connection, Node, Reply};

const EXTERNAL: &str = "execution_model = \"external\"\n";

fn post(node: &Node, path: &str, key: &str, body: &str) -> Reply {
    let headers = [("idempotency-key", key)];
    node.request("POST", &format!("/fn/{path}"), &headers, body.as_bytes())
}

/// What every store has to show on one node.
fn one_node(url: &str) {
    let mut node = Node::start(&["--external", url]);
    node.deploy("counter", "counter", EXTERNAL);
    for count in 1..=5 {
        assert_eq!(node.invoke("counter/line-3", "1"), count.to_string());
    }
    node.crash_and_restart();
    assert_eq!(node.invoke("counter/line-3", "1"), "6");
    // The same key, the same answer, also after a restart.
    assert_eq!(post(&node, "counter/line-3", "k", "10").text(), "16");
    node.crash_and_restart();
    let again = post(&node, "counter/line-3", "k", "10");
    assert_eq!((again.status, again.text().as_str()), (200, "16"));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    post(&node, "counter/line-3", "k", "11").expect_problem(422, "idempotency-key-reused");
    // A failed invocation leaves nothing.
    node.deploy("faults", "guest-faults", EXTERNAL);
    node.invoke("faults/s", "count 3");
    node.invoke_fails("faults/s", "count-then-fail 5", 500, "function-failed");
    assert_eq!(node.invoke("faults/s", "count 0"), "3");

    // Operators see it, change it, take it along, remove it.
    let listed = node.get("/admin/sessions?function=counter").json();
    assert_eq!(listed["sessions"][0]["session"], "line-3");
    let keys = node.get("/admin/state/session/counter/line-3/keys").json();
    let key = keys["keys"][0].as_str().unwrap().to_owned();
    let path = format!("/admin/state/session/counter/line-3/key/{key}");
    assert_eq!(node.get(&path).text(), "16");
    assert_eq!(node.request("PUT", &path, &[], b"40").status, 204);
    assert_eq!(node.invoke("counter/line-3", "2"), "42");
    let exported = node.get("/admin/state-export").text();
    assert!(exported.contains("line-3"), "{exported}");
    let removed = node.request("DELETE", "/admin/sessions/counter/line-3", &[], b"");
    assert_eq!(removed.status, 204);
    assert_eq!(node.invoke("counter/line-3", "1"), "1");

    // It stays where it is: what another model would not find is not given up silently.
    let wasm = std::fs::read(common::guest("counter")).unwrap();
    let refused = node.try_deploy("counter", &wasm, "");
    refused.expect_problem(409, "sessions-in-the-way");
}

#[test]
fn redis_keeps_sessions() {
    one_node(Server::redis().url());
}

#[test]
fn postgres_keeps_sessions() {
    one_node(Server::postgres().url());
}

#[test]
fn a_folder_keeps_sessions() {
    let folder = tempfile::tempdir().unwrap();
    one_node(folder.path().to_str().unwrap());
}

#[test]
fn every_node_runs_them_and_no_count_is_lost() {
    let server = Server::redis();
    let cluster = Cluster::with_external(3, server.url());
    cluster.nodes[0].deploy("counter", "counter", EXTERNAL);
    let acknowledged = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for node in &cluster.nodes {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut connection = Connection::open(node.port);
                    for _ in 0..50 {
                        let path = "/fn/counter/shared";
                        let reply = connection.request("POST", path, &[], b"1").unwrap();
                        match reply.status {
                            200 => _ = acknowledged.fetch_add(1, Ordering::Relaxed),
                            // Six at once on one session: some may be told to come back.
                            _ => reply.expect_problem(429, "queue-full"),
                        }
                    }
                });
            }
        }
    });
    let acknowledged = acknowledged.into_inner();
    assert!(acknowledged > 100, "{acknowledged}");
    for node in &cluster.nodes {
        assert_eq!(node.invoke("counter/shared", "0"), acknowledged.to_string());
    }
    // The same key at another node gets the same answer.
    let first = post(&cluster.nodes[0], "counter/keyed", "k", "5");
    let again = post(&cluster.nodes[2], "counter/keyed", "k", "5");
    assert_eq!((first.text(), again.text()), ("5".into(), "5".into()));
    assert_eq!(cluster.nodes[1].invoke("counter/keyed", "0"), "5");
    // The directory, and so the registry, hears nothing of them.
    let moved = serde_json::json!({ "function": "counter", "session": "shared", "to": "n2" });
    let body = moved.to_string();
    let moved = cluster.nodes[0].request("POST", "/admin/migrations", &[], body.as_bytes());
    moved.expect_problem(404, "session-not-found");
}

#[test]
fn asynchronous_invocations_run_once() {
    let server = Server::redis();
    let cluster = Cluster::with_external(2, server.url());
    cluster.nodes[0].deploy("counter", "counter", EXTERNAL);
    let headers = [("prefer", "respond-async"), ("idempotency-key", "a")];
    let ids: Vec<String> = cluster
        .nodes
        .iter()
        .map(|node| {
            let accepted = node.request("POST", "/fn/counter/s", &headers, b"7");
            assert_eq!(accepted.status, 202, "{}", accepted.text());
            accepted.json()["id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
    cluster.nodes[1].eventually("it has run", |node| {
        let result = node.get(&format!("/invocations/{}/result", ids[0]));
        result.status == 200 && result.text() == "7"
    });
    assert_eq!(cluster.nodes[1].invoke("counter/s", "0"), "7");
}

#[test]
fn while_the_store_is_away_nothing_is_acknowledged_and_nothing_is_lost() {
    let mut server = Server::redis();
    let node = Node::start(&["--external", server.url()]);
    node.deploy("counter", "counter", EXTERNAL);
    node.deploy("local", "counter", "");
    assert_eq!(node.invoke("counter/s", "1"), "1");
    server.kill();
    node.eventually("the node notices", |node| {
        let reply = node.request("POST", "/fn/counter/new", &[], b"1");
        reply.status == 503 && reply.json()["code"] == "external-store-unreachable"
    });
    let reply = node.request("POST", "/fn/counter/s", &[], b"1");
    assert!(
        ["external-store-unreachable", "outcome-unknown"]
            .contains(&reply.json()["code"].as_str().unwrap()),
        "{}",
        reply.text()
    );
    assert_eq!(node.invoke("local/s", "1"), "1");
    server.restart();
    node.eventually("it goes on", |node| {
        node.request("POST", "/fn/counter/s", &[], b"0").status == 200
    });
    assert_eq!(node.invoke("counter/s", "1"), "2");
}

/// Senders and receivers in the store and on nodes, in all combinations, with a node that keeps dying.
#[test]
fn messages_from_and_to_the_store_arrive_once_and_in_order() {
    let server = Server::redis();
    let mut cluster = Cluster::with_external(2, server.url());
    cluster.nodes[0].deploy("outside", "guest-faults", EXTERNAL);
    cluster.nodes[0].deploy("inside", "guest-faults", "");
    const ROUNDS: u64 = 4;
    const EACH: u64 = 10;
    let ways = [
        ("outside/a", "outside/from-outside"),
        ("outside/b", "inside/from-outside"),
        ("inside/c", "outside/from-inside"),
    ];
    for round in 0..ROUNDS {
        for n in 0..EACH {
            for (from, to) in ways {
                let (function, session) = to.split_once('/').unwrap();
                let command = format!("count-and-tell-to {function} {session} m");
                // Another node every time: whoever sends next finds what the one before has left.
                let node = &cluster.nodes[(n % 2) as usize];
                let count = node.invoke(from, &command);
                assert_eq!(count, (round * EACH + n + 1).to_string());
            }
        }
        cluster.nodes[1].crash();
        cluster.nodes[1].start_again();
    }
    let expected: Vec<String> = (1..=ROUNDS * EACH).map(|n| format!("m:{n}")).collect();
    for (_, to) in ways {
        cluster.nodes[0].eventually("all are there", |node| {
            node.invoke(to, "len") == (ROUNDS * EACH).to_string()
        });
        assert_eq!(cluster.nodes[0].invoke(to, "items"), expected.join(","));
    }
}

/// Who has no session cannot tell what it has got before, and gets it once nevertheless.
#[test]
fn messages_to_no_session_arrive_once() {
    let server = Server::redis();
    let mut cluster = Cluster::with_external(2, server.url());
    cluster.nodes[0].deploy("outside", "guest-faults", EXTERNAL);
    cluster.nodes[0].deploy("inside", "guest-faults", "");
    const ROUNDS: usize = 3;
    const EACH: usize = 10;
    for round in 0..ROUNDS {
        for n in 0..EACH {
            let node = &cluster.nodes[n % 2];
            let command = format!("send inside - 1 send inside all 1 record {round}-{n}");
            node.invoke("outside/a", &command);
        }
        cluster.nodes[1].crash();
        cluster.nodes[1].start_again();
    }
    let all = (ROUNDS * EACH).to_string();
    cluster.nodes[0].eventually("all are there", |node| {
        node.invoke("inside/all", "len") == all
    });
    let items = cluster.nodes[0].invoke("inside/all", "items");
    let mut items: Vec<&str> = items.split(',').collect();
    items.sort_unstable();
    items.dedup();
    assert_eq!(items.len(), ROUNDS * EACH);
}

/// Two nodes with an object store as well, to take over from each other.
fn with_objects(objects: &Path, url: &str) -> Cluster {
    Cluster::start_with(2, |_| {
        format!("[store]\nurl = {objects:?}\n[external]\nurl = {url:?}\n")
    })
}

/// Takes the object store away.
fn take_away(objects: &Path) {
    std::fs::rename(objects, objects.with_extension("away")).unwrap();
    std::fs::write(objects, "not a folder").unwrap();
}

fn bring_back(objects: &Path) {
    std::fs::remove_file(objects).unwrap();
    std::fs::rename(objects.with_extension("away"), objects).unwrap();
}

const REPLICATED: &str = "durability = \"replicated\"\non_partition = \"takeover-after 1s\"\n";
const TELL: &str = "count-and-tell-to outside r m";

/// A message reaches the external store only when what it rests on is as safe as its sender has to be.
#[test]
fn nothing_is_told_that_may_still_be_lost() {
    let server = Server::redis();
    let folder = tempfile::tempdir().unwrap();
    let objects = folder.path().join("objects");
    let cluster = with_objects(&objects, server.url());
    cluster.nodes[0].deploy("outside", "guest-faults", EXTERNAL);
    cluster.nodes[0].deploy("inside", "guest-faults", REPLICATED);
    assert_eq!(cluster.nodes[0].invoke("inside/s", "count 0"), "0");
    assert_eq!(cluster.nodes[1].invoke("outside/r", "len"), "0");
    take_away(&objects);
    let headers = [("idempotency-key", "k")];
    let tell = || cluster.nodes[0].request("POST", "/fn/inside/s", &headers, TELL.as_bytes());
    tell().expect_problem(503, "object-store-unreachable");
    assert_eq!(cluster.nodes[1].invoke("outside/r", "len"), "0");
    bring_back(&objects);
    cluster.nodes[0].eventually("it is acknowledged", |_| tell().status == 200);
    cluster.nodes[1].eventually("it is told", |node| {
        node.invoke("outside/r", "items") == "m:1"
    });
}

/// That a message was delivered is remembered for as long as somebody may take over from its sender and send it again.
#[test]
fn what_a_taker_sends_again_is_delivered_once() {
    let mut server = Server::redis();
    let folder = tempfile::tempdir().unwrap();
    let objects = folder.path().join("objects");
    let mut cluster = with_objects(&objects, server.url());
    cluster.nodes[0].deploy("outside", "guest-faults", EXTERNAL);
    cluster.nodes[0].deploy("inside", "guest-faults", REPLICATED);
    assert_eq!(cluster.nodes[0].invoke("outside/r", "len"), "0");
    // Sent and copied, and delivered when that cannot be copied any more.
    server.kill();
    assert_eq!(cluster.nodes[1].invoke("inside/s", TELL), "1");
    take_away(&objects);
    server.restart();
    let received = |node: &Node| node.request("POST", "/fn/outside/r", &[], b"items").text();
    cluster.nodes[0].eventually("it is delivered", |node| received(node) == "m:1");
    cluster.nodes[1].eventually("its sender knows", |node| pending(node) == "0");
    cluster.nodes[1].crash();
    bring_back(&objects);
    cluster.nodes[0].eventually("the sender is taken over", |node| {
        node.request("POST", "/fn/inside/s", &[], b"count 0").text() == "1"
    });
    cluster.nodes[0].eventually("it is sent again", |node| {
        node.metric("fulmar_messages_delivered_total") != "0" && pending(node) == "0"
    });
    assert_eq!(received(&cluster.nodes[0]), "m:1");
}

fn pending(node: &Node) -> String {
    node.metric("fulmar_messages_pending")
}

/// Messages of a session are not lost with it.
#[test]
fn a_session_is_not_removed_before_what_it_has_sent_is_on_its_way() {
    let server = Server::redis();
    let node = Node::start(&["--external", server.url()]);
    node.deploy("outside", "guest-faults", EXTERNAL);
    // To no session, of a function that is not there yet.
    node.invoke("outside/s", "send inside - 1 log m");
    let remove = || node.request("DELETE", "/admin/sessions/outside/s", &[], b"");
    remove().expect_problem(429, "queue-full");
    node.deploy("inside", "guest-faults", "");
    node.eventually("it is delivered", |node| pending(node) == "0");
    node.eventually("it is removed", |_| remove().status == 204);
}

#[test]
fn a_second_store_under_the_same_function_is_refused() {
    let (one, other) = (Server::redis(), Server::redis());
    let urls = [one.url(), other.url()];
    let cluster = Cluster::start_with(2, |at| format!("[external]\nurl = {:?}\n", urls[at]));
    cluster.nodes[0].deploy("counter", "counter", EXTERNAL);
    assert_eq!(cluster.nodes[0].invoke("counter/s", "1"), "1");
    let refused =
        cluster.nodes[1].invoke_fails("counter/s", "1", 503, "external-store-unreachable");
    assert!(refused.text().contains("[external]"), "{}", refused.text());
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let node = Node::start(&[]);
    let wasm = std::fs::read(common::guest("counter")).unwrap();
    let refused = node.try_deploy("counter", &wasm, EXTERNAL);
    refused.expect_problem(422, "manifest-invalid");
    assert!(refused.text().contains("--external"), "{}", refused.text());
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(&["--external", folder.path().to_str().unwrap()]);
    let both = format!("{EXTERNAL}on_partition = \"takeover-after 30s\"\n");
    let refused = node.try_deploy("counter", &wasm, &both);
    refused.expect_problem(422, "manifest-invalid");
    // Sessions that nodes keep are not left behind.
    node.deploy("counter", "counter", "");
    node.invoke("counter/s", "1");
    let refused = node.try_deploy("counter", &wasm, EXTERNAL);
    refused.expect_problem(409, "sessions-in-the-way");
}
