//! Messages of sessions that other nodes take over: delivered once, whoever knows of it, and without an effect if what
//! they were sent with does not count.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::cluster::Cluster;
use common::objects::{LOCAL, ObjectFolder, REPLICATED, counts_with, give_back, take_away};
use common::{Connection, Node, PATIENCE};
use fulmar_state::Table;
use fulmar_state::engine::Engine;
use fulmar_state::fjall_engine::FjallEngine;

#[test]
fn messages_and_accepted_invocations_of_a_lost_node_are_delivered_once() {
    let objects = ObjectFolder::new();
    let mut cluster = Cluster::with_store(3, &objects.path());
    cluster.nodes[0].deploy("faults", "guest-faults", REPLICATED);
    // The receiver is at home on the first node, the sender on the third.
    cluster.nodes[0].invoke("faults/r", "record 0");
    let link = serde_json::json!({ "cut_out": true, "cut_in": false });
    for n in 1..=20 {
        if n == 10 {
            // From here on what it sends waits in its outbox.
            cluster.link(2, 0, &link);
        }
        let mut connection = Connection::open(cluster.nodes[2].port);
        let reply = connection
            .request("POST", "/fn/faults/s", &[], b"count-and-tell r m")
            .unwrap();
        assert_eq!((reply.status, reply.text()), (200, n.to_string()));
    }
    let prefer = [("prefer", "respond-async")];
    let accepted = cluster.nodes[2].request("POST", "/fn/faults/s", &prefer, b"count-and-tell r m");
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    cluster.nodes[2].crash();
    let received = |node: &Node| node.request("POST", "/fn/faults/r", &[], b"items").text();
    let mut expected = vec!["0".to_owned()];
    expected.extend((1..=21).map(|n| format!("m:{n}")));
    let expected = expected.join(",");
    cluster.nodes[0].eventually("all messages have come", |node| received(node) == expected);
    cluster.nodes[2].start_again();
    cluster.nodes[2].eventually("it is back", |node| {
        node.get("/admin/node").json()["changelog"]["open"] == true
    });
    let deadline = Instant::now() + PATIENCE;
    while cluster.nodes[2]
        .get("/metrics")
        .text()
        .lines()
        .any(|line| line.starts_with("fulmar_messages_pending ") && !line.ends_with(" 0"))
    {
        assert!(
            std::time::Instant::now() < deadline,
            "messages stay pending"
        );
        std::thread::yield_now();
    }
    assert_eq!(received(&cluster.nodes[1]), expected);
}

/// A message was delivered elsewhere, its sender never heard of that, and its receiver came to where the sender is.
#[test]
fn a_message_is_delivered_once_also_to_a_receiver_that_came_with_it() {
    let objects = ObjectFolder::new();
    let mut cluster = Cluster::with_store(2, &objects.path());
    for function in ["sender", "receiver"] {
        cluster.nodes[0].deploy(function, "guest-faults", REPLICATED);
    }
    assert_eq!(cluster.nodes[0].invoke("sender/s", "count 0"), "0");
    assert_eq!(cluster.nodes[1].invoke("receiver/r", "count 0"), "0");
    let received = |node: &Node| node.request("POST", "/fn/receiver/r", &[], b"count 0");
    let pending = |node: &Node| node.metric("fulmar_messages_pending");
    for count in ["1", "2"] {
        let sent = cluster.nodes[0].invoke("sender/s", "count-and-pass receiver r");
        assert_eq!(sent, count);
        cluster.nodes[1].eventually("it has arrived", |node| received(node).text() == count);
        if count == "1" {
            cluster.nodes[0].eventually("its sender knows", |node| pending(node) == "0");
            cluster.link(0, 1, &serde_json::json!({ "cut_in": true }));
        }
    }
    cluster.nodes[1].crash();
    cluster.nodes[0].eventually("its sender knows", |node| pending(node) == "0");
    assert_eq!(received(&cluster.nodes[0]).text(), "2");
}

/// Two nodes; on the second a session that sends and one that receives, of functions with these manifests.
fn with_a_receiver(sender: &str, receiver: &str) -> (ObjectFolder, Cluster) {
    let objects = ObjectFolder::new();
    let cluster = Cluster::with_store(2, &objects.path());
    cluster.nodes[0].deploy("sender", "guest-faults", sender);
    cluster.nodes[0].deploy("receiver", "guest-faults", receiver);
    cluster.nodes[1].invoke("sender/s", "count 0");
    cluster.nodes[1].invoke("receiver/r", "count 0");
    (objects, cluster)
}

/// How many messages it has got, as a node says.
fn received(node: &Node) -> String {
    let reply = node.request("POST", "/fn/receiver/r", &[], b"count 0");
    reply.text()
}

/// A receiver remembers what it has got on its sender's node for as long as whoever takes over there may not know, and
/// send it again.
#[test]
fn what_was_delivered_on_the_senders_node_is_not_delivered_again_by_a_taker() {
    let (objects, mut cluster) = with_a_receiver(REPLICATED, "");
    // The message is copied while its receiver is busy, and delivered when nothing can be copied any more.
    let taken = cluster.nodes[1].metric("fulmar_invocations_total");
    let port = cluster.nodes[1].port;
    let busy = std::thread::spawn(move || {
        Connection::open(port).request("POST", "/fn/receiver/r", &[], b"sleep 1500")
    });
    cluster.nodes[1].eventually("it is busy", |node| {
        node.metric("fulmar_invocations_total") != taken
    });
    let sent = cluster.nodes[1].invoke("sender/s", "count-and-pass receiver r");
    assert_eq!(sent, "1");
    objects.go_away();
    assert_eq!(busy.join().unwrap().unwrap().status, 200);
    cluster.nodes[1].eventually("it is delivered", |node| received(node) == "1");
    cluster.nodes[1].crash();
    objects.come_back();
    // The receiver waits for its node, and knows there what the taker of the sender does not.
    cluster.nodes[0].eventually("the sender is taken over", |node| {
        let reply = node.request("POST", "/fn/sender/s", &[], b"count-and-pass receiver r");
        reply.text() == "2"
    });
    cluster.nodes[1].start_again();
    cluster.nodes[0].eventually("both are delivered", |node| {
        node.metric("fulmar_messages_pending") == "0" && received(node).as_str() >= "2"
    });
    assert_eq!(received(&cluster.nodes[0]), "2");
}

/// What a session has sent with a commit that is not copied yet must not have had its effect anywhere when the session is
/// taken over as it was before: it is sent anew.
#[test]
fn what_was_sent_with_a_commit_that_a_taker_does_not_know_has_no_effect() {
    let (objects, mut cluster) = with_a_receiver(REPLICATED, "");
    objects.go_away();
    let send = |port: u16| {
        let key = [("idempotency-key", "one")];
        let body = b"count-and-pass receiver r";
        Connection::open(port).request("POST", "/fn/sender/s", &key, body)
    };
    let port = cluster.nodes[1].port;
    let sending = std::thread::spawn(move || send(port).map(|reply| reply.status));
    // It waits for its commit to be copied, and is not delivered meanwhile.
    cluster.nodes[1].eventually("it is sent", |node| {
        node.metric("fulmar_messages_pending") == "1" || received(node) != "0"
    });
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_millis(500) {
        assert_eq!(received(&cluster.nodes[1]), "0", "delivered too early");
    }
    cluster.nodes[1].crash();
    assert_ne!(sending.join().unwrap().ok(), Some(200));
    objects.come_back();
    cluster.nodes[0].eventually("the sender is taken over", |node| {
        send(node.port).is_ok_and(|reply| reply.status == 200 && reply.text() == "1")
    });
    cluster.nodes[1].start_again();
    cluster.nodes[0].eventually("it is delivered", |node| {
        node.metric("fulmar_messages_pending") == "0" && received(node).as_str() >= "1"
    });
    cluster.nodes[1].eventually("nothing more comes", |node| {
        node.metric("fulmar_messages_pending") == "0"
    });
    assert_eq!(received(&cluster.nodes[0]), "1");
}

/// The other way round: its receiver is taken over as it was before it got the message, and its sender is not.
#[test]
fn what_was_delivered_with_a_commit_that_a_taker_does_not_know_is_delivered_again() {
    for is_asleep in [false, true] {
        let (objects, mut cluster) = with_a_receiver("", LOCAL);
        cluster.nodes[1].eventually("all is copied", |node| {
            node.get("/admin/node").json()["changelog"]["behind_commits"] == 0
        });
        objects.go_away();
        let sent = cluster.nodes[1].invoke("sender/s", "count-and-pass receiver r");
        assert_eq!(sent, "1");
        cluster.nodes[1].eventually("it is delivered", |node| received(node) == "1");
        match is_asleep {
            true => cluster.nodes[1].signal("-STOP"),
            false => cluster.nodes[1].crash(),
        }
        objects.come_back();
        cluster.nodes[0].eventually("the receiver is taken over", |node| received(node) == "0");
        match is_asleep {
            true => cluster.nodes[1].signal("-CONT"),
            false => cluster.nodes[1].start_again(),
        }
        cluster.nodes[0].eventually("it is delivered", |node| received(node) == "1");
        cluster.nodes[1].eventually("nothing more comes", |node| {
            node.metric("fulmar_messages_pending") == "0"
        });
        assert_eq!(received(&cluster.nodes[0]), "1");
    }
}

/// What waits for its delivery on the sender's own node to be copied holds up nothing that goes elsewhere.
#[test]
fn messages_to_one_session_do_not_wait_for_those_to_another() {
    let (objects, cluster) = with_a_receiver("", LOCAL);
    cluster.nodes[0].deploy("other", "guest-faults", "");
    cluster.nodes[0].invoke("other/o", "count 0");
    objects.go_away();
    assert_eq!(
        cluster.nodes[1].invoke("sender/s", "count-and-pass receiver r"),
        "1"
    );
    cluster.nodes[1].eventually("it is delivered", |node| received(node) == "1");
    assert_eq!(
        cluster.nodes[1].invoke("sender/s", "count-and-pass other o"),
        "2"
    );
    counts_with(&cluster.nodes[0], "other/o", "count 0", "1");
    objects.come_back();
}

/// A session comes back to a node that does not know yet that it was taken over from: what it has sent there with a commit
/// that was not copied stays without effect.
#[test]
fn a_session_does_not_come_back_to_a_node_that_believes_to_be_its_home() {
    let (objects, cluster) = with_a_receiver(REPLICATED, "");
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    let migrate = |function: &str, session: &str, to: &str| {
        let wanted =
            serde_json::json!({ "function": function, "session": session, "to": to }).to_string();
        n1.request("POST", "/admin/migrations", &[], wanted.as_bytes())
    };
    assert_eq!(migrate("receiver", "r", "n1").status, 200);
    let send = |port: u16| {
        let key = [("idempotency-key", "one")];
        let body = b"count-and-pass receiver r";
        Connection::open(port).request("POST", "/fn/sender/s", &key, body)
    };
    // Its own log, so that the other one goes on.
    let health = n2.get("/admin/node").json();
    let log = objects
        .path()
        .join(health["changelog"]["prefix"].as_str().unwrap());
    let log = log.parent().unwrap();
    take_away(log);
    let port = n2.port;
    let sending = std::thread::spawn(move || send(port).map(|reply| reply.status));
    n2.eventually("it is sent", |node| {
        node.metric("fulmar_messages_pending") == "1"
    });
    n2.signal("-STOP");
    give_back(log);
    n1.eventually("the sender is taken over, and sends anew", |node| {
        send(node.port).is_ok_and(|reply| reply.status == 200 && reply.text() == "1")
    });
    n1.eventually("that is delivered", |node| received(node) == "1");
    // Without that it does not find out.
    take_away(log);
    n2.signal("-CONT");
    n1.eventually("the other node is seen again", |node| {
        let nodes = node.get("/admin/nodes").json();
        let mut nodes = nodes["nodes"].as_array().unwrap().iter();
        nodes.any(|node| node["name"] == "n2" && node["live"] == true)
    });
    let refused = migrate("sender", "s", "n2");
    assert!(refused.text().contains("taken over"), "{}", refused.text());
    give_back(log);
    assert_ne!(sending.join().unwrap().ok(), Some(200));
    n2.eventually("nothing waits any more", |node| {
        node.metric("fulmar_messages_pending") == "0"
    });
    assert_eq!(received(n1), "1");
    n1.eventually("it comes back later", |_| {
        migrate("sender", "s", "n2").status == 200
    });
    assert_eq!(send(n2.port).unwrap().text(), "1");
}

/// What says that messages were delivered goes when their sender will not send them again, also if another node has taken
/// over from it once.
#[test]
fn receipts_go_also_after_a_takeover() {
    const MESSAGES: u64 = 60;
    let objects = ObjectFolder::new();
    let mut cluster = Cluster::with_store(2, &objects.path());
    cluster.nodes[0].deploy("sender", "guest-faults", LOCAL);
    cluster.nodes[0].deploy("receiver", "guest-faults", "");
    cluster.nodes[0].invoke("receiver/r", "count 0");
    assert_eq!(cluster.nodes[1].invoke("sender/s", "count 1"), "1");
    cluster.nodes[1].eventually("all is copied", |node| {
        node.get("/admin/node").json()["changelog"]["behind_commits"] == 0
    });
    cluster.nodes[1].crash();
    counts_with(&cluster.nodes[0], "sender/s", "count 0", "1");
    cluster.nodes[1].start_again();
    cluster.nodes[1].eventually("it is back", |node| {
        node.get("/admin/node").json()["changelog"]["stream"] == 2
    });
    for sent in 1..=MESSAGES {
        let count = cluster.nodes[1].invoke("sender/new", "count-and-pass receiver r");
        assert_eq!(count, sent.to_string());
        cluster.nodes[1].eventually("it is delivered", |node| {
            node.metric("fulmar_messages_pending") == "0"
        });
    }
    counts_with(
        &cluster.nodes[0],
        "receiver/r",
        "count 0",
        &MESSAGES.to_string(),
    );
    cluster.nodes[0].stop();
    let engine = FjallEngine::open(&cluster.nodes[0].data.join("store")).unwrap();
    let mut receipts = 0;
    engine
        .scan(Table::Idempotency, b"receiver\0r\0", None, &mut |_, _| {
            receipts += 1;
            true
        })
        .unwrap();
    assert!((1..MESSAGES / 2).contains(&receipts), "{receipts} are kept");
}
