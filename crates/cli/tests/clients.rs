//! Clients that are slow, go away, or send nonsense.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Connection, Node};

#[test]
fn a_client_that_never_finishes_its_request_is_cut_off() {
    let node = Node::start(&["--client-timeout", "300ms"]);
    node.deploy("counter", "counter", "");
    // The head.
    let mut slow = Connection::open(node.port);
    slow.send(b"POST /fn/counter/a HTTP/1.1\r\nhost: t\r\n")
        .unwrap();
    assert!(
        slow.read_reply(false)
            .map_or(true, |reply| reply.status == 408),
        "closed or told"
    );
    // The body.
    let mut slow = Connection::open(node.port);
    slow.send(b"POST /fn/counter/a HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\n1")
        .unwrap();
    slow.read_reply(false)
        .unwrap()
        .expect_problem(408, "body-timeout");
    assert_eq!(node.invoke("counter/a", "1"), "1", "neither ran");
}

#[test]
fn a_client_that_goes_away_half_way_leaves_all_or_nothing() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    for _ in 0..20 {
        let mut gone = Connection::open(node.port);
        gone.send(b"POST /fn/faults/a HTTP/1.1\r\nhost: t\r\ncontent-length: 7\r\n\r\ncount 1")
            .unwrap();
        drop(gone);
        let mut gone = Connection::open(node.port);
        gone.send(b"POST /fn/faults/a HTTP/1.1\r\nhost: t\r\ncontent-length: 7\r\n\r\ncou")
            .unwrap();
        drop(gone);
    }
    let count: u64 = node.invoke("faults/a", "count 0").parse().unwrap();
    assert!(count <= 20, "{count}");
    // One that is gone while its invocation runs: it runs to its end.
    let mut gone = Connection::open(node.port);
    gone.send(b"POST /fn/faults/b HTTP/1.1\r\nhost: t\r\ncontent-length: 8\r\n\r\nspin 300")
        .unwrap();
    node.eventually("it runs", |node| {
        node.get("/admin/node").json()["invocations"].as_u64() >= Some(1)
    });
    drop(gone);
    assert_eq!(node.invoke("faults/b", "count 1"), "1");
}

#[test]
fn a_client_that_is_refused_while_it_sends_gets_its_answer() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    for (path, status, code) in [
        ("/fn/nobody/a", 404, "function-not-found"),
        ("/admin/state/nothing/b", 400, "bad-request"),
    ] {
        let mut connection = Connection::open(node.port);
        let body = vec![0; 2 << 20];
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        connection.send(head.as_bytes()).unwrap();
        connection
            .read_reply(false)
            .unwrap()
            .expect_problem(status, code);
        // What it goes on sending is taken, and its next request as well.
        connection.send(&body).unwrap();
        let next = connection.request("POST", "/fn/counter/a", &[], b"0");
        assert_eq!(next.unwrap().text(), "0");
    }
}

#[test]
fn nonsense_is_answered_or_closed_and_harms_nobody() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    let long_path = format!(
        "POST /fn/{} HTTP/1.1\r\nhost: t\r\n\r\n",
        "x".repeat(100_000)
    );
    for nonsense in [
        &b"\x00\x01\x02\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"POST /fn/counter/a HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /fn/counter/a HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /fn/counter/a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        long_path.as_bytes(),
    ] {
        let mut connection = Connection::open(node.port);
        connection.send(nonsense).unwrap();
        if let Ok(reply) = connection.read_reply(false) {
            assert!(
                reply.status >= 400,
                "{}: {}",
                String::from_utf8_lossy(nonsense),
                reply.status
            );
        }
    }
    assert_eq!(node.invoke("counter/a", "1"), "1");
}

#[test]
fn the_node_tells_how_it_is() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    node.invoke("counter/a", "1");
    assert_eq!(node.get("/healthz").json()["status"], "ok");
    assert_eq!(node.get("/readyz").json()["status"], "ready");
    let metrics = node.get("/metrics").text();
    for name in [
        "fulmar_invocations_total 1",
        "fulmar_invocation_execute_seconds_count 1",
        "fulmar_invocation_commit_seconds_count 1",
        "fulmar_commit_sync_seconds_count",
        "fulmar_commit_batch_commits_count",
        "fulmar_sessions_hot",
        "fulmar_workers_idle",
        "fulmar_invocations_queued",
        "fulmar_dead_letters 0",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    assert_eq!(node.get("/admin/node").json()["storage"], "ok");
}

/// More than a node holds at once, in bodies of 1 MiB.
const TOO_MANY: usize = 100;
const MIB: usize = 1 << 20;

#[test]
fn more_bodies_than_there_is_room_for_wait_and_are_taken() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    let mut body = b"spin 5".to_vec();
    body.resize(MIB, b' ');
    std::thread::scope(|scope| {
        for _ in 0..TOO_MANY {
            scope.spawn(|| {
                let mut connection = Connection::open(node.port);
                let reply = connection.request("POST", "/fn/faults/a", &[], &body);
                assert_eq!(reply.unwrap().text(), "spun");
            });
        }
    });
}

#[test]
fn who_is_slow_does_not_keep_the_room_of_others() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    let head = |length| {
        format!("POST /fn/faults/a HTTP/1.1\r\nhost: t\r\ncontent-length: {length}\r\n\r\n")
    };
    let slow = (0..TOO_MANY).map(|_| {
        let mut connection = Connection::open(node.port);
        connection.send(head(MIB).as_bytes()).unwrap();
        connection.send(&[b' '; 1000]).unwrap();
        connection
    });
    let slow: Vec<Connection> = slow.collect();
    let mut body = b"echo well".to_vec();
    body.resize(MIB, b' ');
    let reply = Connection::open(node.port).request("POST", "/fn/faults/a", &[], &body);
    assert_eq!(reply.unwrap().status, 200);
    // Those that had the room were told to come back; some may have got it later, and have it still.
    let mut told = 0;
    for mut connection in slow.into_iter().take(30) {
        if let Ok(reply) = connection.read_reply(false) {
            told += u32::from(reply.status == 429);
        }
    }
    assert!(told > 0);
}
