//! Messages: sent with the commit, delivered once, in order; given up and tried again.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::cluster::Cluster;
use common::{Connection, Node};

#[test]
fn messages_arrive_once_and_in_order() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    node.invoke("faults/sender", "send faults receiver 200 record {n}");
    node.eventually("all are there", |node| {
        node.invoke("faults/receiver", "len") == "200"
    });
    let expected: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!(node.invoke("faults/receiver", "items"), expected.join(","));
}

#[test]
fn a_failed_invocation_sends_nothing() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    node.invoke_fails("faults/s", "send faults r many", 500, "function-failed");
    node.invoke_fails("faults/s", "send faults ", 400, "rejected-by-function");
    node.invoke("faults/s", "send faults r 1 record last");
    node.eventually("the last is there", |node| {
        node.invoke("faults/r", "len") == "1"
    });
}

#[test]
fn a_sender_and_its_messages_survive_crashes_together() {
    let mut node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    for round in 0..5 {
        for n in 0..40 {
            assert_eq!(
                node.invoke("faults/s", "count-and-tell r m"),
                (round * 40 + n + 1).to_string()
            );
        }
        node.crash_and_restart();
    }
    node.eventually("all are there", |node| {
        node.invoke("faults/r", "len") == "200"
    });
    let expected: Vec<String> = (1..=200).map(|n| format!("m:{n}")).collect();
    assert_eq!(node.invoke("faults/r", "items"), expected.join(","));
}

#[test]
fn a_delivery_that_fails_is_tried_again_with_its_attempt() {
    let node = Node::start(&[]);
    node.deploy(
        "faults",
        "guest-faults",
        "[messages]\nbackoff_initial = \"1ms\"\nbackoff_max = \"5ms\"",
    );
    node.invoke("faults/s", "send faults r 1 attempt 3");
    node.eventually("it was delivered", |node| {
        node.invoke("faults/r", "items") == "attempt 3"
    });
    assert_eq!(
        node.get("/admin/dead-letters").json()["dead_letters"],
        serde_json::json!([])
    );
}

#[test]
fn what_keeps_failing_is_parked_shown_retried_and_dropped() {
    let mut node = Node::start(&[]);
    node.deploy(
        "faults",
        "guest-faults",
        "[messages]\nmax_attempts = 3\nbackoff_initial = \"1ms\"\nbackoff_max = \"2ms\"",
    );
    node.invoke("faults/s", "send faults r 1 fail always");
    node.invoke("faults/s", "send faults r 1 record behind-it");
    let parked = |node: &Node| {
        node.get("/admin/dead-letters").json()["dead_letters"]
            .as_array()
            .unwrap()
            .clone()
    };
    node.eventually("it is parked", |node| parked(node).len() == 1);
    node.eventually("those behind it go on", |node| {
        node.invoke("faults/r", "items") == "behind-it"
    });
    let letter = parked(&node).remove(0);
    assert_eq!(letter["attempts"], 3);
    assert_eq!(letter["from"]["session"], "s");
    assert_eq!(letter["to"]["session"], "r");
    assert!(
        letter["error"].as_str().unwrap().contains("always"),
        "{letter}"
    );
    node.crash_and_restart();
    assert_eq!(parked(&node).len(), 1);
    let id = letter["id"].as_str().unwrap();
    assert_eq!(
        node.request("POST", &format!("/admin/dead-letters/{id}/retry"), &[], b"")
            .status,
        204
    );
    node.eventually("it is parked again", |node| {
        let letters = parked(node);
        letters.len() == 1 && letters[0]["id"] != letter["id"]
    });
    let id = parked(&node)[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        node.request("DELETE", &format!("/admin/dead-letters/{id}"), &[], b"")
            .status,
        204
    );
    assert!(parked(&node).is_empty());
    node.request("DELETE", &format!("/admin/dead-letters/{id}"), &[], b"")
        .expect_problem(404, "dead-letter-not-found");
}

#[test]
fn a_rejected_message_is_parked_at_once() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    node.invoke("faults/s", "send faults r 1 reject it");
    node.eventually("it is parked", |node| {
        let letters = node.get("/admin/dead-letters").json();
        letters["dead_letters"][0]["attempts"] == 1
    });
}

/// What is sent while a node that was just started takes up what was left is delivered once as well.
#[test]
fn messages_that_are_sent_during_a_start_arrive_once() {
    const LEFT: usize = 2000;
    const ROUNDS: usize = 4;
    let mut cluster = Cluster::start(1);
    cluster.nodes[0].deploy("sender", "guest-faults", "");
    cluster.nodes[0].deploy("receiver", "guest-faults", "");
    let port = cluster.nodes[0].port;
    let mut sent = 0;
    for round in 0..ROUNDS {
        let left = format!("send receiver r {LEFT} count 1");
        cluster.nodes[0].invoke(&format!("sender/before-{round}"), &left);
        cluster.nodes[0].crash();
        let started = AtomicBool::new(false);
        let during: usize = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|client| {
                    let started = &started;
                    scope.spawn(move || {
                        let path = format!("/fn/sender/{round}-{client}");
                        let mut sent = 0;
                        let mut open = None;
                        while !started.load(Ordering::Relaxed) {
                            open = open.or_else(|| Connection::try_open(port));
                            let Some(connection) = &mut open else {
                                continue;
                            };
                            let body = b"count-and-pass receiver r";
                            match connection.request("POST", &path, &[], body) {
                                Ok(reply) if reply.status == 200 => sent += 1,
                                _ => open = None,
                            }
                        }
                        sent
                    })
                })
                .collect();
            cluster.nodes[0].start_again();
            started.store(true, Ordering::Relaxed);
            clients
                .into_iter()
                .map(|client| client.join().unwrap())
                .sum()
        });
        sent += LEFT + during;
        cluster.nodes[0].eventually("all are delivered", |node| {
            node.metric("fulmar_messages_pending") == "0"
        });
        assert_eq!(
            cluster.nodes[0].invoke("receiver/r", "count 0"),
            sent.to_string()
        );
    }
}
