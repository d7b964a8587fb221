//! Single sessions whose state goes to the external store while they are in use, and comes back.

#![allow(clippy::unwrap_used)]

mod common;

use common::cluster::Cluster;
use common::servers::Server;
use common::{Node, Reply};

fn set_model(node: &Node, session: &str, model: &str) -> Reply {
    let wanted = serde_json::json!({ "execution_model": model }).to_string();
    let path = format!("/admin/sessions/{session}");
    node.request("PATCH", &path, &[], wanted.as_bytes())
}

/// Sets the model, which is another one.
fn change(node: &Node, session: &str, model: &str) {
    let reply = set_model(node, session, model);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["changed"], true, "{}", reply.text());
}

fn post(node: &Node, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    node.request("POST", &format!("/fn/{path}"), headers, body.as_bytes())
}

fn shown(node: &Node, session: &str) -> serde_json::Value {
    node.get(&format!("/admin/sessions/{session}")).json()
}

/// What every store has to show on one node.
fn one_node(url: &str) {
    let mut node = Node::start(&["--external", url]);
    node.deploy("counter", "counter", "");
    node.deploy("faults", "guest-faults", "");
    let keyed = [("idempotency-key", "before")];
    assert_eq!(post(&node, "counter/a", &keyed, "5").text(), "5");
    change(&node, "counter/a", "external");
    assert_eq!(
        set_model(&node, "counter/a", "external").json()["changed"],
        false
    );
    assert_eq!(shown(&node, "counter/a")["execution_model"], "external");
    assert_eq!(shown(&node, "counter/a")["keys"], 1);
    assert_eq!(node.invoke("counter/a", "1"), "6");
    node.crash_and_restart();
    assert_eq!(node.invoke("counter/a", "1"), "7");
    // What was answered at home is answered there, and the other way round.
    let again = post(&node, "counter/a", &keyed, "5");
    assert_eq!((again.status, again.text().as_str()), (200, "5"));
    let there = [("idempotency-key", "there")];
    assert_eq!(post(&node, "counter/a", &there, "1").text(), "8");
    let soon = [("prefer", "respond-async"), ("idempotency-key", "soon")];
    let accepted = post(&node, "counter/a", &soon, "1");
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    assert_eq!(post(&node, "counter/a", &soon, "1").text(), accepted.text());
    let kept = post(&node, "counter/a", &soon[1..], "1");
    assert_eq!((kept.status, kept.text()), (202, accepted.text()));
    node.eventually("the accepted one runs, once", |node| {
        node.invoke("counter/a", "0") == "9"
    });

    // Operators see it, change it, take it along.
    let keys = node.get("/admin/state/session/counter/a/keys").json();
    let path = format!(
        "/admin/state/session/counter/a/key/{}",
        keys["keys"][0].as_str().unwrap()
    );
    assert_eq!(node.get(&path).text(), "9");
    assert_eq!(node.request("PUT", &path, &[], b"40").status, 204);
    assert_eq!(node.invoke("counter/a", "1"), "41");
    let listed = node.get("/admin/sessions?function=counter").json();
    assert_eq!(listed["sessions"][0]["execution_model"], "external");
    assert_eq!(node.get("/admin/state-export").text().lines().count(), 1);
    let wasm = std::fs::read(common::guest("counter")).unwrap();
    let in_client = node.try_deploy("counter", &wasm, "execution_model = \"in-client\"\n");
    in_client.expect_problem(409, "sessions-in-the-way");

    change(&node, "counter/a", "in-function");
    assert_eq!(node.invoke("counter/a", "1"), "42");
    node.crash_and_restart();
    assert_eq!(post(&node, "counter/a", &keyed, "5").text(), "5");
    assert_eq!(post(&node, "counter/a", &there, "1").text(), "8");
    assert_eq!(node.invoke("counter/a", "1"), "43");
    assert_eq!(shown(&node, "counter/a")["execution_model"], "in-function");
    change(&node, "counter/a", "auto");
    assert_eq!(shown(&node, "counter/a")["execution_model"], "auto");

    // Again, with less, and by a request; what was there before is not there.
    node.invoke("faults/s", "record one");
    node.invoke("faults/s", "record two");
    let goes = [("fulmar-execution-model", "external")];
    let went = post(&node, "faults/s", &goes, "len");
    assert_eq!(went.header("fulmar-execution-model"), Some("in-function"));
    node.eventually("it goes to the store", |node| {
        shown(node, "faults/s")["execution_model"] == "external"
    });
    let there = post(&node, "faults/s", &goes, "record three");
    assert_eq!(there.header("fulmar-execution-model"), Some("external"));
    let back = [("fulmar-execution-model", "in-function")];
    let came = post(&node, "faults/s", &back, "items");
    assert_eq!(came.text(), "one,two,three");
    assert_eq!(came.header("fulmar-execution-model"), Some("in-function"));
    // A failed invocation leaves nothing.
    change(&node, "faults/s", "external");
    node.invoke_fails("faults/s", "count-then-fail 5", 500, "function-failed");
    assert_eq!(node.invoke("faults/s", "count 0"), "0");
    // With its client, by way of its home, and from there to the store.
    let with_client = [("fulmar-execution-model", "in-client")];
    let left = post(&node, "faults/s", &with_client, "count 1");
    assert_eq!((left.status, left.text().as_str()), (200, "1"));
    let token = left.header("fulmar-state").unwrap().to_owned();
    let came = [
        ("fulmar-execution-model", "external"),
        ("fulmar-state", &token),
    ];
    assert_eq!(post(&node, "faults/s", &came, "count 1").text(), "2");
    node.eventually("it goes to the store again", |node| {
        shown(node, "faults/s")["execution_model"] == "external"
    });
    post(&node, "faults/s", &came, "count 1").expect_problem(409, "state-token-stale");
    assert_eq!(node.invoke("faults/s", "items"), "one,two,three");
    // Removed, and new.
    assert_eq!(
        node.request("DELETE", "/admin/sessions/faults/s", &[], b"")
            .status,
        204
    );
    assert_eq!(node.invoke("faults/s", "len"), "0");
    node.invoke("faults/s", "record four");
    change(&node, "faults/s", "external");
    assert_eq!(node.invoke("faults/s", "items"), "four");
}

#[test]
fn redis_takes_sessions() {
    one_node(Server::redis().url());
}

#[test]
fn postgres_takes_sessions() {
    one_node(Server::postgres().url());
}

#[test]
fn a_folder_takes_sessions() {
    let folder = tempfile::tempdir().unwrap();
    one_node(folder.path().to_str().unwrap());
}

#[test]
fn every_node_runs_what_is_in_the_store_and_asks_the_home_when_it_is_not() {
    let server = Server::redis();
    let cluster = Cluster::with_external(3, server.url());
    let [n1, n2, n3] = &cluster.nodes[..] else {
        panic!("three nodes")
    };
    n1.deploy("counter", "counter", "");
    n1.invoke("counter/a", "1");
    // Asked of any node.
    change(n2, "counter/a", "external");
    // The home tells where it is, and from then on it is not asked.
    assert_eq!(post(n3, "counter/a", &[], "1").ran_at(), "n1");
    assert_eq!(post(n3, "counter/a", &[], "1").ran_at(), "n3");
    assert_eq!(n2.invoke("counter/a", "1"), "4");
    let keyed = [("idempotency-key", "k")];
    assert_eq!(post(n2, "counter/a", &keyed, "1").text(), "5");
    change(n3, "counter/a", "in-function");
    assert_eq!(post(n3, "counter/a", &keyed, "1").text(), "5");
    let at_home = post(n2, "counter/a", &[], "1");
    assert_eq!((at_home.ran_at(), at_home.text().as_str()), ("n1", "6"));
    // Its home moves while it is in the store.
    change(n1, "counter/a", "external");
    assert_eq!(n3.invoke("counter/a", "1"), "7");
    let moved = serde_json::json!({ "function": "counter", "session": "a", "to": "n2" });
    let body = moved.to_string();
    let moved = n1.request("POST", "/admin/migrations", &[], body.as_bytes());
    assert_eq!(moved.status, 200, "{}", moved.text());
    assert_eq!(n1.invoke("counter/a", "1"), "8");
    change(n3, "counter/a", "auto");
    for node in [n1, n2, n3] {
        assert_eq!(post(node, "counter/a", &[], "1").ran_at(), "n2");
    }
    assert_eq!(n1.invoke("counter/a", "0"), "11");
}

/// An operator writes a key of a session in the store while other nodes run it.
#[test]
fn an_operators_write_gets_through_whoever_changes_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::with_external(2, folder.path().to_str().unwrap());
    let [one, other] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    one.deploy("faults", "guest-faults", "");
    one.invoke("faults/s", "count 1");
    change(one, "faults/s", "external");
    let done = std::sync::atomic::AtomicBool::new(false);
    let counted = std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let mut counted = 1;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                other.invoke("faults/s", "count 1");
                counted += 1;
            }
            counted
        });
        let path = "/admin/state/session/faults/s/key/noted";
        let written: Vec<u16> = (0..50)
            .map(|at: u32| {
                one.request("PUT", path, &[], at.to_string().as_bytes())
                    .status
            })
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(written, [204; 50]);
        assert_eq!(one.get(path).text(), "49");
        counting.join().unwrap()
    });
    assert_eq!(one.invoke("faults/s", "count 0"), counted.to_string());
}

/// What was chosen for a session holds at every node.
#[test]
fn a_session_that_is_in_edge_is_lent_to_whoever_takes_its_requests() {
    let cluster = Cluster::start(2);
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    n1.deploy("counter", "counter", "");
    n1.invoke("counter/a", "1");
    change(n2, "counter/a", "in-edge");
    assert_eq!(shown(n2, "counter/a")["execution_model"], "in-edge");
    assert_eq!(post(n2, "counter/a", &[], "1").ran_at(), "n1");
    let lent = post(n2, "counter/a", &[], "1");
    assert_eq!((lent.ran_at(), lent.text().as_str()), ("n2", "3"));
}

/// What a function chooses counts with its commit, wherever it runs.
#[test]
fn a_function_chooses_where_its_state_is_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::with_external(2, folder.path().to_str().unwrap());
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    let becomes = |model: &str| {
        n1.eventually(model, |node| shown(node, "f/a")["execution_model"] == model);
    };
    n1.deploy("f", "guest-faults", "");
    n1.deploy(
        "fixed",
        "guest-faults",
        "execution_model = \"in-function\"\n",
    );
    assert_eq!(n1.invoke("f/a", "count-and-choose external"), "1");
    becomes("external");
    // The other node has been told where it is, and runs it itself.
    assert_eq!(n2.invoke("f/a", "count 1"), "2");
    let failed = n2.request("POST", "/fn/f/a", &[], b"count-and-choose auto fail");
    failed.expect_problem(500, "function-failed");
    assert_eq!(n2.invoke("f/a", "count 1"), "3");
    becomes("external");
    let chosen = post(n2, "f/a", &[], "count-and-choose in-edge");
    assert_eq!((chosen.ran_at(), chosen.text().as_str()), ("n2", "4"));
    becomes("in-edge");
    n2.eventually("it is lent", |node| {
        post(node, "f/a", &[], "len").ran_at() == "n2"
    });
    let chosen = post(n2, "f/a", &[], "count-and-choose auto");
    assert_eq!((chosen.ran_at(), chosen.text().as_str()), ("n2", "5"));
    becomes("auto");
    let refused = n1.request("POST", "/fn/fixed/a", &[], b"count-and-choose external");
    refused.expect_problem(500, "function-failed");
    assert!(
        refused.text().contains("execution_model"),
        "{}",
        refused.text()
    );
    n1.request("POST", "/fn/f", &[], b"count-and-choose external")
        .expect_problem(500, "function-failed");
}

/// More sessions than workers: the one that is used most keeps a worker of its own, the others share what is left.
#[test]
fn with_more_sessions_than_workers_the_least_used_go_to_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::placing(1, "off", |_| {
        format!(
            "[external]\nurl = {:?}\n[limits]\nmax_workers = 2\n",
            folder.path()
        )
    });
    let node = &cluster.nodes[0];
    node.deploy("f", "guest-faults", "");
    // The store is far away.
    let far = serde_json::json!({ "latency_ms": 10.0 }).to_string();
    let linked = node.request("PUT", "/admin/links/external-store", &[], far.as_bytes());
    assert!(linked.status < 300, "{}", linked.text());
    // One session works for ten milliseconds at a time, most of the time; the others now and then.
    let mut counts = [0_u32; 4];
    let mut invoke = |at: usize, times: u32| {
        for _ in 0..times {
            counts[at] += 1;
            assert_eq!(
                node.invoke(&format!("f/s{at}"), "sleep-and-count 10"),
                counts[at].to_string()
            );
        }
    };
    let models = || -> Vec<String> {
        let shown = (0..4).map(|at| shown(node, &format!("f/s{at}")));
        shown
            .map(|shown| {
                shown["execution_model"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    };
    node.eventually("the others go", |_| {
        for at in [0, 1, 0, 2, 0, 3] {
            invoke(at, if at == 0 { 3 } else { 1 });
        }
        models() == ["auto", "external", "external", "external"]
    });
    let told = node.get("/admin/decisions?function=f").text();
    assert!(told.contains("\"changed\""), "{told}");
    // When another one is used most they change places.
    node.eventually("they change places", |_| {
        for at in [1, 2, 1, 3, 1] {
            invoke(at, if at == 1 { 6 } else { 1 });
        }
        models()[1] == "auto"
    });
    for at in 0..4 {
        invoke(at, 1);
    }
}

/// Messages from and to a session that changes its model all the time.
#[test]
fn messages_arrive_once_and_in_order_whatever_changes() {
    let server = Server::redis();
    let cluster = Cluster::with_external(2, server.url());
    cluster.nodes[0].deploy("a", "guest-faults", "");
    cluster.nodes[0].deploy("b", "guest-faults", "");
    const ROUNDS: u64 = 8;
    const EACH: u64 = 5;
    let ways = [
        ("a/x", "b/from-x"),
        ("a/y", "b/from-y"),
        ("a/z", "b/from-z"),
    ];
    let there = ["a/x", "b/from-y", "a/z", "b/from-z"];
    for (from, to) in ways {
        cluster.nodes[0].invoke(from, "count 0");
        cluster.nodes[1].invoke(to, "count 1");
    }
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            let nodes = &cluster.nodes;
            for (from, to) in ways {
                scope.spawn(move || {
                    let (function, session) = to.split_once('/').unwrap();
                    for n in 0..EACH {
                        let command = format!("count-and-tell-to {function} {session} m");
                        let count = nodes[(n % 2) as usize].invoke(from, &command);
                        assert_eq!(count, (round * EACH + n + 1).to_string());
                    }
                });
            }
            let model = ["external", "auto"][(round % 2) as usize];
            for session in there {
                scope.spawn(move || {
                    nodes[1].eventually("it goes", |node| {
                        let reply = set_model(node, session, model);
                        // What it has sent has to be delivered first.
                        assert!([200, 409].contains(&reply.status), "{}", reply.text());
                        reply.status == 200
                    });
                });
            }
        });
    }
    let expected: Vec<String> = (1..=ROUNDS * EACH).map(|n| format!("m:{n}")).collect();
    for (_, to) in ways {
        cluster.nodes[0].eventually("all are there", |node| {
            node.invoke(to, "len") == (ROUNDS * EACH).to_string()
        });
        assert_eq!(cluster.nodes[0].invoke(to, "items"), expected.join(","));
    }
}

#[test]
fn while_the_store_is_away_sessions_stay_where_they_are() {
    let mut server = Server::redis();
    let node = Node::start(&["--external", server.url()]);
    node.deploy("counter", "counter", "");
    node.invoke("counter/in", "1");
    node.invoke("counter/out", "1");
    change(&node, "counter/out", "external");
    server.kill();
    set_model(&node, "counter/in", "external").expect_problem(503, "external-store-unreachable");
    assert_eq!(node.invoke("counter/in", "1"), "2");
    set_model(&node, "counter/out", "auto").expect_problem(503, "external-store-unreachable");
    server.restart();
    node.eventually("it goes on", |node| {
        post(node, "counter/out", &[], "0").status == 200
    });
    assert_eq!(node.invoke("counter/out", "1"), "2");
    change(&node, "counter/in", "external");
    assert_eq!(node.invoke("counter/in", "1"), "3");
}

/// A session that has gone to the store, whose home is then lost.
#[test]
fn whoever_takes_over_knows_where_the_state_is() {
    let server = Server::redis();
    let folder = tempfile::tempdir().unwrap();
    let objects = folder.path();
    let mut cluster = Cluster::start_with(2, |_| {
        format!(
            "[store]\nurl = {objects:?}\n[external]\nurl = {:?}\n",
            server.url()
        )
    });
    let manifest = "durability = \"replicated\"\non_partition = \"takeover-after 2s\"\n";
    cluster.nodes[0].deploy("counter", "counter", manifest);
    for session in ["there", "back"] {
        let session = format!("counter/{session}");
        cluster.nodes[1].invoke(&session, "1");
        change(&cluster.nodes[0], &session, "external");
        assert_eq!(cluster.nodes[1].invoke(&session, "1"), "2");
    }
    change(&cluster.nodes[0], "counter/back", "auto");
    assert_eq!(cluster.nodes[1].invoke("counter/back", "1"), "3");
    cluster.nodes[1].crash();
    let survivor = &cluster.nodes[0];
    survivor.eventually("they are taken over", |node| {
        post(node, "counter/there", &[], "0").status == 200
            && post(node, "counter/back", &[], "0").status == 200
    });
    assert_eq!(survivor.invoke("counter/there", "1"), "3");
    assert_eq!(survivor.invoke("counter/back", "1"), "4");
    survivor.eventually("its home is another", |node| {
        shown(node, "counter/there")["home"] == "n1"
    });
    change(survivor, "counter/there", "auto");
    assert_eq!(survivor.invoke("counter/there", "1"), "4");
}

#[test]
fn what_cannot_go_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(&["--external", folder.path().to_str().unwrap()]);
    node.deploy("counter", "counter", "");
    node.deploy("fixed", "counter", "execution_model = \"in-function\"\n");
    set_model(&node, "counter/nobody", "external").expect_problem(404, "session-not-found");
    node.invoke("counter/a", "1");
    node.invoke("fixed/a", "1");
    set_model(&node, "counter/a", "somewhere").expect_problem(400, "execution-model-refused");
    set_model(&node, "counter/a", "in-client").expect_problem(400, "execution-model-refused");
    set_model(&node, "fixed/a", "external").expect_problem(400, "execution-model-refused");
    let alone = Node::start(&[]);
    alone.deploy("counter", "counter", "");
    alone.invoke("counter/a", "1");
    set_model(&alone, "counter/a", "external").expect_problem(503, "external-store-unreachable");
    let goes = [("fulmar-execution-model", "external")];
    post(&alone, "counter/a", &goes, "1").expect_problem(503, "external-store-unreachable");
}
