//! Nodes with an object store: what is acknowledged as replicated outlives the node, and whoever is taken over from
//! comes back as if it had lent its sessions out.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::cluster::Cluster;
use common::s3::S3;
use common::{Connection, Node, PATIENCE};
use fulmar_state::changelog::segment::{Content, Segment};
use fulmar_state::engine::Engine;
use fulmar_state::fjall_engine::FjallEngine;
use fulmar_state::{Table, Ticket};

const REPLICATED: &str = "durability = \"replicated\"\non_partition = \"takeover-after 1s\"\n";
const LOCAL: &str = "on_partition = \"takeover-after 1s\"\n";

/// An object store that can go away.
struct ObjectFolder(tempfile::TempDir);

impl ObjectFolder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("objects")
    }

    fn go_away(&self) {
        take_away(&self.path());
    }

    fn come_back(&self) {
        give_back(&self.path());
    }
}

/// Puts a file where a folder was: every request fails.
fn take_away(folder: &Path) {
    std::fs::rename(folder, folder.with_extension("away")).unwrap();
    std::fs::write(folder, "not a folder").unwrap();
}

fn give_back(folder: &Path) {
    std::fs::remove_file(folder).unwrap();
    std::fs::rename(folder.with_extension("away"), folder).unwrap();
}

/// Three nodes with a folder for an object store; the first keeps the registry.
fn cluster() -> (ObjectFolder, Cluster) {
    let objects = ObjectFolder::new();
    let cluster = Cluster::with_store(3, &objects.path());
    (objects, cluster)
}

fn signal(node: &Node, name: &str) {
    let pid = node.id().to_string();
    let status = Command::new("kill").args([name, &pid]).status().unwrap();
    assert!(status.success());
}

/// Waits until a session answers on a node as it is to.
fn counts_with(node: &Node, path: &str, body: &str, answer: &str) {
    node.eventually(&format!("{path} says {answer}"), |node| {
        let reply = node.request("POST", &format!("/fn/{path}"), &[], body.as_bytes());
        reply.status == 200 && reply.text() == answer
    });
}

/// Waits until a session's counter answers on a node with this number.
fn counts(node: &Node, path: &str, count: u64) {
    node.eventually(&format!("{path} is at {count}"), |node| {
        let reply = node.request("POST", &format!("/fn/{path}"), &[], b"0");
        reply.status == 200 && reply.text() == count.to_string()
    });
}

fn uncopied(data: &Path) -> Vec<String> {
    let files = std::fs::read_dir(data).unwrap();
    let names = files.map(|file| file.unwrap().path());
    let files = names.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("uncopied-")
    });
    files
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

#[test]
fn sessions_of_a_lost_node_go_on_elsewhere_with_all_that_was_acknowledged() {
    let (_objects, mut cluster) = cluster();
    cluster.nodes[0].deploy("counter", "counter", REPLICATED);
    cluster.nodes[0].deploy("kept", "counter", "durability = \"replicated\"\n");
    for session in 0..30 {
        let value = session.to_string();
        assert_eq!(
            cluster.nodes[1].invoke(&format!("counter/s{session}"), &value),
            value
        );
    }
    assert_eq!(cluster.nodes[1].invoke("kept/a", "5"), "5");
    let key = [("idempotency-key", "k-1")];
    let first = cluster.nodes[1].request("POST", "/fn/counter/s7", &key, b"100");
    assert_eq!(first.text(), "107");
    // As if the machine had burnt down.
    cluster.nodes[1].crash();
    for session in [0, 3, 29] {
        counts(&cluster.nodes[2], &format!("counter/s{session}"), session);
    }
    let again = cluster.nodes[2].request("POST", "/fn/counter/s7", &key, b"100");
    assert_eq!(
        (again.text().as_str(), again.header("idempotency-replayed")),
        ("107", Some("true"))
    );
    for session in 0..30 {
        let expected = session + 1 + if session == 7 { 100 } else { 0 };
        let answer = cluster.nodes[0].invoke(&format!("counter/s{session}"), "1");
        assert_eq!(answer, expected.to_string());
    }
    // Who is to be waited for is waited for.
    cluster.nodes[0].invoke_fails("kept/a", "1", 503, "home-unreachable");
    let nodes = cluster.nodes[0].get("/admin/nodes").json();
    let lost = nodes["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["name"] == "n2");
    assert!(lost.unwrap()["taken_over_by"].is_string(), "{nodes}");

    // It comes back, and asks.
    cluster.nodes[1].start_again();
    counts(&cluster.nodes[0], "kept/a", 5);
    for session in 0..30 {
        let expected = session + 2 + if session == 7 { 100 } else { 0 };
        let path = format!("counter/s{session}");
        cluster.nodes[1].eventually("the session is found where it is", |node| {
            let health = node.get("/admin/node").json();
            health["changelog"]["open"] == true
        });
        assert_eq!(cluster.nodes[1].invoke(&path, "1"), expected.to_string());
    }
    assert!(cluster.sessions_at(1, "counter").is_empty());
    // New ones begin there again, and outlive it again.
    assert_eq!(cluster.nodes[1].invoke("counter/new", "9"), "9");
    cluster.nodes[1].crash();
    counts(&cluster.nodes[2], "counter/new", 9);
}

#[test]
fn an_s3_server_keeps_what_was_acknowledged() {
    let Some(server) = S3::start() else {
        eprintln!("skipped: moto_server, a Python package, is not installed");
        return;
    };
    let mut cluster = Cluster::with_store_text(3, &server.store());
    cluster.nodes[0].deploy("counter", "counter", REPLICATED);
    assert_eq!(cluster.nodes[1].invoke("counter/a", "7"), "7");
    assert_eq!(cluster.nodes[0].invoke("counter/a", "1"), "8");
    cluster.nodes[1].crash();
    counts(&cluster.nodes[2], "counter/a", 8);
    cluster.nodes[1].start_again();
    counts(&cluster.nodes[1], "counter/a", 8);
}

#[test]
fn a_node_that_was_only_asleep_serves_nothing_that_was_taken_over() {
    let (_objects, cluster) = cluster();
    cluster.nodes[0].deploy("counter", "counter", LOCAL);
    assert_eq!(cluster.nodes[2].invoke("counter/a", "1"), "1");
    cluster.nodes[2].eventually("all is copied", |node| {
        node.get("/admin/node").json()["changelog"]["behind_commits"] == 0
    });
    signal(&cluster.nodes[2], "-STOP");
    counts(&cluster.nodes[1], "counter/a", 1);
    assert_eq!(cluster.nodes[1].invoke("counter/a", "10"), "11");
    // What waits in its sockets is answered when it wakes up: not from what it believes to have.
    let port = cluster.nodes[2].port;
    let sleeping = std::thread::spawn(move || {
        let mut connection = Connection::open(port);
        let reply = connection
            .request("POST", "/fn/counter/a", &[], b"100")
            .unwrap();
        (reply.status, reply.text())
    });
    signal(&cluster.nodes[2], "-CONT");
    let (status, text) = sleeping.join().unwrap();
    let expected = match status {
        200 => {
            assert_eq!(text, "111");
            111
        }
        503 | 504 => 11,
        _ => panic!("{status} {text}"),
    };
    counts(&cluster.nodes[2], "counter/a", expected);
    counts(&cluster.nodes[0], "counter/a", expected);
}

#[test]
fn what_was_not_copied_is_put_aside_and_never_merged() {
    let (objects, mut cluster) = cluster();
    cluster.nodes[0].deploy("counter", "counter", LOCAL);
    assert_eq!(cluster.nodes[2].invoke("counter/a", "1"), "1");
    cluster.nodes[2].eventually("all is copied", |node| {
        node.get("/admin/node").json()["changelog"]["behind_commits"] == 0
    });
    // The object store is gone for a moment: what is acknowledged then is only here.
    objects.go_away();
    assert_eq!(cluster.nodes[2].invoke("counter/a", "1000"), "1001");
    cluster.nodes[2].crash();
    objects.come_back();
    counts(&cluster.nodes[1], "counter/a", 1);
    assert_eq!(cluster.nodes[1].invoke("counter/a", "1"), "2");
    cluster.nodes[2].start_again();
    let data = cluster.nodes[2].data.clone();
    cluster.nodes[2].eventually("what was not copied is put aside", |_| {
        uncopied(&data).iter().any(|file| {
            // 1001 in base64.
            file.lines()
                .any(|line| line.contains("counter") && line.contains("MTAwMQ=="))
        })
    });
    counts(&cluster.nodes[2], "counter/a", 2);
    counts(&cluster.nodes[0], "counter/a", 2);
}

#[test]
fn without_the_object_store_replicated_functions_wait_and_local_ones_go_on() {
    let (objects, cluster) = cluster();
    cluster.nodes[0].deploy("counter", "counter", REPLICATED);
    cluster.nodes[0].deploy("local", "counter", "");
    assert_eq!(cluster.nodes[2].invoke("counter/a", "1"), "1");
    assert_eq!(cluster.nodes[2].invoke("local/a", "1"), "1");
    objects.go_away();
    let key = [("idempotency-key", "k")];
    let reply = cluster.nodes[2].request("POST", "/fn/counter/a", &key, b"1");
    reply.expect_problem(503, "object-store-unreachable");
    assert_eq!(cluster.nodes[2].invoke("local/a", "1"), "2");
    let health = cluster.nodes[2].get("/admin/node").json();
    assert_ne!(health["changelog"]["object_store"], "ok", "{health}");
    objects.come_back();
    cluster.nodes[2].eventually("it is answered, once", |node| {
        let reply = node.request("POST", "/fn/counter/a", &key, b"1");
        reply.status == 200 && reply.text() == "2"
    });
    assert_eq!(cluster.nodes[2].invoke("counter/a", "0"), "2");
}

/// While the object store takes its time, what has to be there waits and nothing else does.
#[test]
fn a_slow_object_store_is_waited_for_by_replicated_functions_alone() {
    let Some(server) = S3::start() else {
        eprintln!("skipped: moto_server, a Python package, is not installed");
        return;
    };
    let cluster = Cluster::with_store_text(2, &server.store());
    cluster.nodes[0].deploy("counter", "counter", REPLICATED);
    cluster.nodes[0].deploy("local", "counter", "");
    let node = &cluster.nodes[0];
    assert_eq!(node.invoke("counter/a", "1"), "1");
    assert_eq!(node.invoke("local/a", "1"), "1");
    server.pause();
    std::thread::scope(|scope| {
        let (done, waits) = std::sync::mpsc::channel();
        scope.spawn(move || done.send(node.invoke("counter/a", "1")));
        for count in 2..20 {
            assert_eq!(node.invoke("local/a", "1"), count.to_string());
        }
        waits.try_recv().expect_err("it cannot be there yet");
        server.resume();
        assert_eq!(waits.recv().unwrap(), "2");
    });
}

#[test]
fn messages_and_accepted_invocations_of_a_lost_node_are_delivered_once() {
    let (_objects, mut cluster) = cluster();
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
    let deadline = std::time::Instant::now() + PATIENCE;
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
            true => signal(&cluster.nodes[1], "-STOP"),
            false => cluster.nodes[1].crash(),
        }
        objects.come_back();
        cluster.nodes[0].eventually("the receiver is taken over", |node| received(node) == "0");
        match is_asleep {
            true => signal(&cluster.nodes[1], "-CONT"),
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
    signal(n2, "-STOP");
    give_back(log);
    n1.eventually("the sender is taken over, and sends anew", |node| {
        send(node.port).is_ok_and(|reply| reply.status == 200 && reply.text() == "1")
    });
    n1.eventually("that is delivered", |node| received(node) == "1");
    // Without that it does not find out.
    take_away(log);
    signal(n2, "-CONT");
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

/// A node wakes after its session was taken over from it, and learns of a version of the function that nobody takes over
/// before it learns of that.
#[test]
fn a_later_version_that_stays_with_its_nodes_does_not_hide_a_takeover() {
    let objects = ObjectFolder::new();
    let cluster = Cluster::with_store(2, &objects.path());
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    n1.deploy("counter", "guest-faults", REPLICATED);
    assert_eq!(n2.invoke("counter/s", "count 1"), "1");
    let health = n2.get("/admin/node").json();
    let log = health["changelog"]["prefix"].as_str().unwrap();
    let log = objects.path().join(log);
    let log = log.parent().unwrap();
    signal(n2, "-STOP");
    n1.eventually("it is taken over", |node| {
        let key = [("idempotency-key", "two")];
        let reply = node.request("POST", "/fn/counter/s", &key, b"count 1");
        reply.status == 200 && reply.text() == "2"
    });
    n1.deploy("counter", "guest-faults", "");
    // Without that it does not find out.
    take_away(log);
    signal(n2, "-CONT");
    n2.eventually("it knows the later version", |node| {
        node.get("/admin/functions/counter").json()["version"] == 2
    });
    let key = [("idempotency-key", "three")];
    let count = || n2.request("POST", "/fn/counter/s", &key, b"count 1");
    let refused = count();
    assert_eq!(refused.status, 503, "{}", refused.text());
    give_back(log);
    n2.eventually("it counts on from there", |_| {
        let reply = count();
        reply.status == 200 && reply.text() == "3"
    });
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

#[test]
fn a_node_that_stops_answers_what_waits_for_the_object_store() {
    let (_objects, mut cluster) = cluster();
    cluster.nodes[0].deploy("faults", "guest-faults", REPLICATED);
    assert_eq!(cluster.nodes[2].invoke("faults/s", "count 1"), "1");
    let port = cluster.nodes[2].port;
    let invocations = |node: &Node| {
        let metrics = node.get("/metrics").text();
        let mut lines = metrics.lines();
        let line = lines.find_map(|line| line.strip_prefix("fulmar_invocations_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let ask = |body: &'static [u8]| {
        std::thread::spawn(move || {
            let reply = Connection::open(port).request("POST", "/fn/faults/s", &[], body);
            let reply = reply.unwrap();
            (reply.status, reply.text())
        })
    };
    let before = invocations(&cluster.nodes[2]);
    let sleeping = ask(b"sleep 1000");
    cluster.nodes[2].eventually("one runs", |node| invocations(node) == before + 1);
    let waiting = ask(b"count 1");
    cluster.nodes[2].eventually("one waits", |node| invocations(node) == before + 2);
    cluster.nodes[2].stop();
    assert_eq!(sleeping.join().unwrap().0, 200);
    assert_eq!(waiting.join().unwrap(), (200, "2".to_owned()));
}

#[test]
fn what_a_node_doubts_is_settled_after_a_restart_without_being_asked_for() {
    let (objects, mut cluster) = cluster();
    let manifest = "durability = \"replicated\"\non_partition = \"takeover-after 1h\"\n";
    cluster.nodes[0].deploy("faults", "guest-faults", manifest);
    cluster.nodes[1].invoke("faults/r", "record 0");
    cluster.nodes[2].invoke("faults/s", "count 0");
    let health = cluster.nodes[2].get("/admin/node").json();
    let objects = objects.path();
    let log = objects.join(health["changelog"]["prefix"].as_str().unwrap());
    // Its next log cannot be begun yet.
    let obstacle = log.with_file_name("00000002");
    std::fs::write(&obstacle, "in the way").unwrap();
    // The receiver's node sleeps, so that what is sent to it waits.
    signal(&cluster.nodes[1], "-STOP");
    assert_eq!(
        cluster.nodes[2].invoke("faults/s", "count-and-tell r m"),
        "1"
    );
    fence(&log);
    cluster.nodes[2].eventually("it knows that it was taken over from", |node| {
        let reply = node.request("POST", "/fn/faults/s", &[], b"count 1");
        let health = node.get("/admin/node").json();
        reply.status != 200 && health["changelog"]["stream"] == 2
    });
    cluster.nodes[2].crash();
    std::fs::remove_file(&obstacle).unwrap();
    cluster.nodes[2].start_again();
    signal(&cluster.nodes[1], "-CONT");
    cluster.nodes[0].eventually("the message comes", |node| {
        let reply = node.request("POST", "/fn/faults/r", &[], b"items");
        reply.text() == "0,m:1"
    });
}

/// Ends a log as whoever takes over does.
fn fence(log: &Path) {
    loop {
        let names = std::fs::read_dir(log.join("log")).unwrap();
        let names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
        let last = names.filter_map(|name| name.parse::<u64>().ok()).max();
        let sequence = last.unwrap() + 1;
        let fence = Segment {
            stream: 1,
            sequence,
            run: 0,
            first: Ticket(0),
            last: Ticket(0),
            content: Content::Fence("n2".into()),
        };
        let path = log.join("log").join(format!("{sequence:016}"));
        let created = std::fs::File::create_new(path);
        // Its owner may have been quicker.
        if let Ok(mut file) = created {
            return file.write_all(&fence.encode()).unwrap();
        }
    }
}
