//! Many nodes: a function deployed on one is live on all, and a session has one home, found from everywhere.

#![allow(clippy::unwrap_used)]

mod common;

use common::Connection;
use common::cluster::Cluster;

#[test]
fn a_session_has_one_home_and_is_found_from_everywhere() {
    let cluster = Cluster::start(3);
    let [n1, n2, n3] = &cluster.nodes[..] else {
        unreachable!()
    };
    n2.deploy("counter", "counter", "");
    for round in 0..4 {
        for (at, node) in cluster.nodes.iter().enumerate() {
            let count = 3 * round + at + 1;
            assert_eq!(node.invoke("counter/a", "1"), count.to_string());
        }
    }
    // The node that took the first request is home.
    assert_eq!(cluster.sessions_at(0, "counter"), ["a"]);
    assert!(cluster.sessions_at(1, "counter").is_empty());
    assert_eq!(n3.invoke("counter/b", "5"), "5");
    assert_eq!(n1.invoke("counter/b", "1"), "6");
    assert_eq!(cluster.sessions_at(2, "counter"), ["b"]);

    // From the record of the other node, whoever is asked.
    let key = [("idempotency-key", "k-1")];
    let first = n2.request("POST", "/fn/counter/a", &key, b"1");
    let again = n3.request("POST", "/fn/counter/a", &key, b"1");
    assert_eq!(first.text(), again.text());
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(
        first.header("fulmar-invocation"),
        again.header("fulmar-invocation")
    );
    assert!(
        first
            .header("fulmar-invocation")
            .unwrap()
            .starts_with("n1-")
    );

    let prefer = [("prefer", "respond-async")];
    let accepted = n2.request("POST", "/fn/counter/b", &prefer, b"10");
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let location = accepted.header("location").unwrap().to_owned();
    n1.eventually("the asynchronous invocation is done", |n1| {
        n1.get(&location).json()["status"] == "done"
    });
    assert_eq!(n1.get(&format!("{location}/result")).text(), "16");

    n3.request("DELETE", "/admin/functions/counter", &[], b"");
    for node in &cluster.nodes {
        node.invoke_fails("counter/a", "1", 404, "function-not-found");
    }
}

#[test]
fn many_sessions_at_once_from_every_node_have_one_home_each() {
    let cluster = Cluster::start(3);
    cluster.nodes[0].deploy("counter", "counter", "");
    const SESSIONS: usize = 60;
    std::thread::scope(|scope| {
        for node in &cluster.nodes {
            scope.spawn(|| {
                let mut connection = Connection::open(node.port);
                for session in 0..SESSIONS {
                    let path = format!("/fn/counter/s{session}");
                    let reply = connection.request("POST", &path, &[], b"1").unwrap();
                    assert_eq!(reply.status, 200, "{}", reply.text());
                }
            });
        }
    });
    let mut homes: Vec<String> = (0..3)
        .flat_map(|at| cluster.sessions_at(at, "counter"))
        .collect();
    homes.sort();
    let mut wanted: Vec<String> = (0..SESSIONS).map(|session| format!("s{session}")).collect();
    wanted.sort();
    assert_eq!(homes, wanted);
    for session in 0..SESSIONS {
        assert_eq!(
            cluster.nodes[1].invoke(&format!("counter/s{session}"), "0"),
            "3"
        );
    }
}

#[test]
fn a_home_that_is_gone_is_waited_for_and_comes_back_with_everything() {
    let mut cluster = Cluster::start(3);
    cluster.nodes[0].deploy("counter", "counter", "");
    assert_eq!(cluster.nodes[2].invoke("counter/a", "7"), "7");
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "8");
    cluster.nodes[2].crash();
    let reply = cluster.nodes[1].request("POST", "/fn/counter/a", &[], b"1");
    assert!([503, 504].contains(&reply.status), "{}", reply.text());
    cluster.nodes[1].invoke_fails("counter/a", "1", 503, "home-unreachable");
    // Others go on.
    assert_eq!(cluster.nodes[1].invoke("counter/b", "1"), "1");
    cluster.nodes[2].start_again();
    cluster.nodes[1].eventually("the session answers again", |node| {
        node.request("POST", "/fn/counter/a", &[], b"0").text() == "8"
    });
}

#[test]
fn nodes_go_on_without_the_registry_also_after_a_restart() {
    let mut cluster = Cluster::start(3);
    cluster.nodes[0].deploy("counter", "counter", "");
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "1");
    assert_eq!(cluster.nodes[2].invoke("counter/a", "1"), "2");
    cluster.nodes[0].crash();
    assert_eq!(cluster.nodes[2].invoke("counter/a", "1"), "3");
    cluster.nodes[1].crash_and_restart();
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "4");
    cluster.nodes[2].eventually("the way to the home is found again", |node| {
        node.request("POST", "/fn/counter/a", &[], b"0").text() == "4"
    });
    let health = cluster.nodes[1].get("/admin/node").json();
    assert_eq!(health["cluster"]["registry"], "not reached", "{health}");
    cluster.nodes[0].start_again();
    cluster.nodes[1].eventually("the registry is followed again", |node| {
        node.get("/admin/node").json()["cluster"]["registry"] == "followed"
    });
    cluster.nodes[0].deploy("other", "counter", "");
    assert_eq!(cluster.nodes[1].invoke("other/x", "2"), "2");
}

#[test]
fn messages_reach_sessions_of_other_nodes_once_and_in_order_whoever_crashes() {
    let mut cluster = Cluster::start(3);
    cluster.nodes[0].deploy("faults", "guest-faults", "");
    // The receiver is at home on the third node, the sender on the second.
    cluster.nodes[2].invoke("faults/r", "record 0");
    for round in 0..6 {
        for n in 0..20 {
            let count = (round * 20 + n + 1).to_string();
            assert_eq!(
                cluster.nodes[1].invoke("faults/s", "count-and-tell r m"),
                count
            );
        }
        cluster.nodes[1 + round % 2].crash_and_restart();
    }
    cluster.nodes[2].eventually("all are there", |node| {
        node.request("POST", "/fn/faults/r", &[], b"len").text() == "121"
    });
    let mut expected = vec!["0".to_owned()];
    expected.extend((1..=120).map(|n| format!("m:{n}")));
    assert_eq!(
        cluster.nodes[2].invoke("faults/r", "items"),
        expected.join(",")
    );
    assert_eq!(cluster.sessions_at(2, "faults"), ["r"]);
}

/// Moves a session, asked of any node.
fn move_to(node: &common::Node, function: &str, session: &str, to: &str) -> common::Reply {
    let body = serde_json::json!({ "function": function, "session": session, "to": to });
    node.request(
        "POST",
        "/admin/migrations",
        &[],
        body.to_string().as_bytes(),
    )
}

#[test]
fn a_session_moves_while_it_is_in_use_and_loses_and_doubles_nothing() {
    let cluster = Cluster::start(3);
    cluster.nodes[0].deploy("counter", "counter", "");
    cluster.nodes[0].invoke("counter/a", "1");
    let key = [("idempotency-key", "before")];
    let before = cluster.nodes[0]
        .request("POST", "/fn/counter/a", &key, b"1")
        .text();
    let done = std::sync::atomic::AtomicBool::new(false);
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let clients: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| {
                let done = &done;
                scope.spawn(move || {
                    let mut connection = Connection::open(node.port);
                    let mut count = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let reply = connection
                            .request("POST", "/fn/counter/a", &[], b"1")
                            .unwrap();
                        assert_eq!(reply.status, 200, "{}", reply.text());
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for round in 0..12 {
            let to = format!("n{}", (round + 1) % 3 + 1);
            let moved = move_to(&cluster.nodes[round % 2], "counter", "a", &to);
            assert_eq!(moved.status, 200, "{}", moved.text());
            assert_eq!(moved.json()["moved"], true);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    let total = 2 + counts.iter().sum::<usize>();
    assert_eq!(cluster.nodes[1].invoke("counter/a", "0"), total.to_string());
    // What was answered before it moved is answered the same after it.
    let again = cluster.nodes[2].request("POST", "/fn/counter/a", &key, b"1");
    assert_eq!(
        (again.text(), again.header("idempotency-replayed")),
        (before, Some("true"))
    );
    assert_eq!(cluster.sessions_at(0, "counter"), ["a"]);
    cluster.nodes[0].eventually("nothing is left elsewhere", |_| {
        cluster.sessions_at(1, "counter").is_empty() && cluster.sessions_at(2, "counter").is_empty()
    });
    // Seen, and removed, from any node.
    let shown = cluster.nodes[1].get("/admin/sessions/counter/a").json();
    assert_eq!(shown["home"], "n1", "{shown}");
    let removed = cluster.nodes[2].request("DELETE", "/admin/sessions/counter/a", &[], b"");
    assert_eq!(removed.status, 204, "{}", removed.text());
    cluster.nodes[2]
        .get("/admin/sessions/counter/a")
        .expect_problem(404, "session-not-found");
    assert_eq!(cluster.nodes[2].invoke("counter/a", "3"), "3");
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "4");
}

#[test]
fn a_large_session_moves_whole() {
    let cluster = Cluster::start(2);
    cluster.nodes[0].deploy("faults", "guest-faults", "");
    let put = |key: usize, length: usize| {
        let path = format!("/admin/state/session/faults/s/key/k{key}");
        let value = vec![b'a' + (key % 26) as u8; length];
        let reply = cluster.nodes[1].request("PUT", &path, &[], &value);
        assert!(reply.status < 300, "{}", reply.text());
    };
    cluster.nodes[0].invoke("faults/s", "record first");
    for key in 0..40 {
        put(key, 100_000 + key);
    }
    for (to, from) in [("n2", 0), ("n1", 1), ("n2", 0)] {
        let moved = move_to(&cluster.nodes[0], "faults", "s", to);
        assert_eq!(moved.status, 200, "{}", moved.text());
        put(7, 200_000);
        for key in [0, 7, 39] {
            let path = format!("/admin/state/session/faults/s/key/k{key}");
            let found = cluster.nodes[from].get(&path);
            let length = if key == 7 { 200_000 } else { 100_000 + key };
            assert_eq!((found.status, found.body.len()), (200, length));
        }
        assert_eq!(cluster.nodes[from].invoke("faults/s", "items"), "first");
    }
}

#[test]
fn a_session_stays_when_the_other_node_cannot_take_it() {
    let mut cluster = Cluster::start(3);
    cluster.nodes[0].deploy("counter", "counter", "");
    cluster.nodes[1].invoke("counter/a", "5");
    move_to(&cluster.nodes[0], "counter", "a", "n9").expect_problem(404, "node-not-found");
    move_to(&cluster.nodes[0], "counter", "b", "n1").expect_problem(404, "session-not-found");
    cluster.nodes[2].crash();
    move_to(&cluster.nodes[0], "counter", "a", "n3").expect_problem(409, "migration-failed");
    assert_eq!(cluster.nodes[0].invoke("counter/a", "1"), "6");
    cluster.nodes[1].crash_and_restart();
    cluster.nodes[0].eventually("it is as it was", |node| {
        node.request("POST", "/fn/counter/a", &[], b"0").text() == "6"
    });
    cluster.nodes[2].start_again();
    cluster.nodes[1].eventually("it moves after all", |node| {
        move_to(node, "counter", "a", "n3").status == 200
    });
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "7");
    assert_eq!(cluster.sessions_at(2, "counter"), ["a"]);
}

#[test]
fn tokens_and_keys_of_carried_state_are_those_of_all_nodes() {
    let cluster = Cluster::start(2);
    let [n1, n2] = &cluster.nodes[..] else {
        unreachable!()
    };
    n1.deploy("counter", "counter", "execution_model = \"in-client\"\n");
    let carry = |node: &common::Node, state: &str| {
        let reply = node.request("POST", "/fn/counter/a", &[("fulmar-state", state)], b"1");
        assert_eq!(reply.status, 200, "{}", reply.text());
        (
            reply.text(),
            reply.header("fulmar-state").unwrap().to_owned(),
        )
    };
    let first = n1.request("POST", "/fn/counter/a", &[], b"1");
    let mut state = first.header("fulmar-state").unwrap().to_owned();
    for round in 0..6 {
        let node = &cluster.nodes[round % 2];
        let (count, next) = carry(node, &state);
        assert_eq!(count, (round + 2).to_string());
        state = next;
        let rotated = node.request("POST", "/admin/state-keys/rotate", &[], b"");
        assert_eq!(rotated.status, 200, "{}", rotated.text());
    }
    let wanted = br#"{"scopes":["admin","invoke"]}"#;
    let made = n2.request("POST", "/admin/tokens", &[], wanted).json();
    let bearer = format!("Bearer {}", made["token"].as_str().unwrap());
    n1.request("POST", "/fn/counter/b", &[], b"1")
        .expect_problem(401, "token-required");
    let good = [("authorization", bearer.as_str())];
    assert_eq!(n1.request("POST", "/fn/counter/b", &good, b"1").status, 200);
    let path = format!("/admin/tokens/{}", made["id"].as_str().unwrap());
    assert_eq!(n1.request("DELETE", &path, &good, b"").status, 204);
    assert_eq!(n2.request("POST", "/fn/counter/b", &[], b"1").status, 200);
}

#[test]
fn in_edge_the_state_goes_to_the_invocations_and_nothing_is_lost_or_doubled() {
    let cluster = Cluster::start(3);
    cluster.nodes[0].deploy("counter", "counter", "execution_model = \"in-edge\"\n");
    cluster.nodes[0].deploy("faults", "guest-faults", "execution_model = \"in-edge\"\n");
    cluster.nodes[0].invoke("counter/a", "1");
    let reply = cluster.nodes[1].request("POST", "/fn/counter/a", &[], b"1");
    assert_eq!(reply.text(), "2");
    // It ran where it was taken; its state is where it was.
    let reply = cluster.nodes[1].request("POST", "/fn/counter/a", &[], b"1");
    assert_eq!(reply.text(), "3");
    assert!(
        reply
            .header("fulmar-invocation")
            .unwrap()
            .starts_with("n2-"),
        "{reply:?}"
    );
    assert_eq!(cluster.sessions_at(0, "counter"), ["a"]);

    const EACH: usize = 60;
    std::thread::scope(|scope| {
        for node in &cluster.nodes {
            for client in 0..2 {
                scope.spawn(move || {
                    let mut connection = Connection::open(node.port);
                    for n in 0..EACH {
                        let key = format!("{}-{client}-{n}", node.port);
                        let key = [("idempotency-key", key.as_str())];
                        let reply = connection
                            .request("POST", "/fn/counter/a", &key, b"1")
                            .unwrap();
                        assert_eq!(reply.status, 200, "{}", reply.text());
                        if n % 10 == 0 {
                            let again = connection
                                .request("POST", "/fn/counter/a", &key, b"1")
                                .unwrap();
                            assert_eq!(again.text(), reply.text());
                            assert_eq!(again.header("idempotency-replayed"), Some("true"));
                        }
                    }
                });
            }
        }
        for round in 0..6 {
            let moved = move_to(
                &cluster.nodes[0],
                "counter",
                "a",
                &format!("n{}", (round + 1) % 3 + 1),
            );
            assert_eq!(moved.status, 200, "{}", moved.text());
        }
    });
    let total = 3 + 6 * EACH;
    for node in &cluster.nodes {
        assert_eq!(node.invoke("counter/a", "0"), total.to_string());
    }

    // Messages leave with the commit at the home.
    cluster.nodes[2].invoke("faults/s", "record x");
    for n in 1..=20 {
        assert_eq!(
            cluster.nodes[1].invoke("faults/s", "count-and-tell r m"),
            n.to_string()
        );
    }
    cluster.nodes[0].eventually("all are there", |node| {
        node.invoke("faults/r", "len") == "20"
    });
    let expected: Vec<String> = (1..=20).map(|n| format!("m:{n}")).collect();
    assert_eq!(
        cluster.nodes[0].invoke("faults/r", "items"),
        expected.join(",")
    );
    // What fails leaves nothing behind, here or there.
    cluster.nodes[1].invoke_fails("faults/s", "set-then-trap k v", 500, "function-trap");
    assert_eq!(cluster.nodes[1].invoke("faults/s", "items"), "x");
}

#[test]
fn a_node_is_drained_of_its_sessions() {
    let cluster = Cluster::start(3);
    cluster.nodes[0].deploy("counter", "counter", "");
    const SESSIONS: usize = 200;
    for session in 0..SESSIONS {
        cluster.nodes[1].invoke(&format!("counter/s{session}"), "2");
    }
    let wanted = br#"{"to":"n3"}"#;
    let drained = cluster.nodes[0]
        .request("POST", "/admin/nodes/n2/drain", &[], wanted)
        .json();
    assert_eq!(
        (&drained["moved"], &drained["failed"]),
        (&SESSIONS.into(), &0.into()),
        "{drained}"
    );
    cluster.nodes[1].eventually("nothing is left", |_| {
        cluster.sessions_at(1, "counter").is_empty()
    });
    assert_eq!(cluster.sessions_at(2, "counter").len(), SESSIONS);
    for session in 0..SESSIONS {
        assert_eq!(
            cluster.nodes[1].invoke(&format!("counter/s{session}"), "0"),
            "2"
        );
    }
    let refused = cluster.nodes[0].request("POST", "/admin/nodes/n2/drain", &[], br#"{"to":"n2"}"#);
    refused.expect_problem(400, "bad-request");
}

#[test]
fn sessions_on_any_node_are_in_the_way_of_state_that_clients_carry() {
    let cluster = Cluster::start(2);
    cluster.nodes[0].deploy("counter", "counter", "");
    cluster.nodes[0].invoke("counter/a", "1");
    let wasm = std::fs::read(common::guest("counter")).unwrap();
    for (node, keeper) in [(0, "this node"), (1, "n1")] {
        let model = "execution_model = \"in-client\"\n";
        let refused = cluster.nodes[node].try_deploy("counter", &wasm, model);
        refused.expect_problem(409, "sessions-in-the-way");
        assert!(refused.text().contains(keeper), "{}", refused.text());
    }
    // Nothing was changed anywhere.
    for (at, node) in cluster.nodes.iter().enumerate() {
        assert_eq!(node.invoke("counter/a", "1"), (at + 2).to_string());
    }
}

#[test]
fn a_session_has_one_home_also_when_whoever_moved_it_went_away() {
    let cluster = Cluster::with_links(2);
    cluster.nodes[0].deploy("counter", "counter", "");
    let slow = serde_json::json!({ "latency_ms": 60.0 });
    cluster.link(0, 1, &slow);
    for step in 0..10 {
        let session = format!("s{step}");
        let path = format!("counter/{session}");
        cluster.nodes[0].invoke(&path, "1");
        let wanted = serde_json::json!({ "function": "counter", "session": session, "to": "n2" });
        let body = wanted.to_string();
        let mut asking = Connection::open(cluster.nodes[0].port);
        let head = format!(
            "POST /admin/migrations HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        asking.send(format!("{head}{body}").as_bytes()).unwrap();
        // Gone at another moment of the move each time.
        std::thread::sleep(std::time::Duration::from_millis(40 * step));
        drop(asking);
        for count in 2..8 {
            assert_eq!(
                cluster.nodes[count % 2].invoke(&path, "1"),
                count.to_string(),
                "{session}"
            );
        }
    }
}

#[test]
fn two_moves_of_a_large_session_at_once_lose_nothing() {
    let cluster = Cluster::start(3);
    cluster.nodes[0].deploy("counter", "counter", "");
    cluster.nodes[0].invoke("counter/a", "1");
    for key in 0..20 {
        let path = format!("/admin/state/session/counter/a/key/k{key}");
        let put = cluster.nodes[0].request("PUT", &path, &[], &vec![b'x'; 200_000]);
        assert!(put.status < 300, "{}", put.text());
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut connection = Connection::open(cluster.nodes[1].port);
            let mut count = 1;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let reply = connection
                    .request("POST", "/fn/counter/a", &[], b"1")
                    .unwrap();
                count += 1;
                assert_eq!((reply.status, reply.text()), (200, count.to_string()));
            }
            count
        });
        for _ in 0..4 {
            std::thread::scope(|movers| {
                for to in ["n1", "n2", "n3"] {
                    // One of them may find that it has gone; all that counts is the counter.
                    movers.spawn(|| move_to(&cluster.nodes[0], "counter", "a", to));
                }
            });
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        client.join().unwrap()
    });
    assert_eq!(cluster.nodes[2].invoke("counter/a", "0"), count.to_string());
}

/// Others follow the registry by calls that never end: a node that stops ends them.
#[test]
fn the_node_with_the_registry_stops_while_others_follow_it() {
    let mut cluster = Cluster::start(2);
    cluster.nodes[0].deploy("counter", "counter", "");
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "1");
    cluster.nodes[0].stop();
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "2");
}
