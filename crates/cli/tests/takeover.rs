//! Nodes with an object store: what is acknowledged as replicated outlives the node, and whoever is taken over from
//! comes back as if it had lent its sessions out.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};

use common::cluster::Cluster;
use common::objects::{LOCAL, ObjectFolder, REPLICATED, counts_with, give_back, take_away};
use common::s3::S3;
use common::{Connection, Node};
use fulmar_state::Ticket;
use fulmar_state::changelog::segment::{Content, Segment};

/// Waits until a session's counter answers on a node with this number.
fn counts(node: &Node, path: &str, count: u64) {
    node.eventually(&format!("{path} is at {count}"), |node| {
        let reply = node.request("POST", &format!("/fn/{path}"), &[], b"0");
        reply.status == 200 && reply.text() == count.to_string()
    });
}

/// Three nodes with a folder for an object store; the first keeps the registry.
fn cluster() -> (ObjectFolder, Cluster) {
    let objects = ObjectFolder::new();
    let cluster = Cluster::with_store(3, &objects.path());
    (objects, cluster)
}

/// What a node's log is called at the moment.
fn stream(node: &Node) -> String {
    let health = node.get("/admin/node").json();
    health["changelog"]["prefix"].as_str().unwrap().to_owned()
}

/// Where all logs of a node are.
fn log_of(node: &Node, objects: &ObjectFolder) -> PathBuf {
    let stream = objects.path().join(stream(node));
    stream.parent().unwrap().to_owned()
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
fn sessions_of_a_node_that_is_lost_for_good_go_on_with_a_version_that_lets_them() {
    let (_objects, mut cluster) = cluster();
    cluster.nodes[0].deploy("kept", "counter", "");
    assert_eq!(cluster.nodes[1].invoke("kept/a", "5"), "5");
    cluster.nodes[0].eventually("it is copied", |node| {
        let nodes = node.get("/admin/nodes").json();
        let mut nodes = nodes["nodes"].as_array().unwrap().iter();
        let n2 = nodes.find(|node| node["name"] == "n2").unwrap();
        n2["behind_seconds"] == 0.0
    });
    cluster.nodes[1].crash();
    let waits = cluster.nodes[0].request("POST", "/fn/kept/a", &[], b"1");
    assert_eq!(waits.status, 503, "{}", waits.text());
    cluster.nodes[0].deploy("kept", "counter", LOCAL);
    counts(&cluster.nodes[2], "kept/a", 5);
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
    cluster.nodes[2].signal("-STOP");
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
    cluster.nodes[2].signal("-CONT");
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

/// Whoever reads a shared key at another node does not see what may still be lost.
#[test]
fn what_is_not_copied_yet_of_a_shared_key_is_not_shown() {
    let Some(server) = S3::start() else {
        eprintln!("skipped: moto_server, a Python package, is not installed");
        return;
    };
    let cluster = Cluster::with_store_text(2, &server.store());
    cluster.nodes[0].deploy("faults", "guest-faults", REPLICATED);
    let (home, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    assert_eq!(home.invoke("faults/a", "shared-increment b k 1"), "1");
    let look = || other.request("POST", "/fn/faults", &[], b"shared-get b k");
    assert_eq!(look().text(), "1");
    server.pause();
    std::thread::scope(|scope| {
        let (done, waits) = std::sync::mpsc::channel();
        scope.spawn(move || done.send(home.invoke("faults/a", "shared-increment b k 1")));
        home.eventually("what it has counted waits to be copied", |node| {
            node.get("/admin/node").json()["changelog"]["behind_seconds"].as_f64() > Some(0.0)
        });
        let seen = look();
        assert!(seen.status >= 500, "{}", seen.text());
        waits.try_recv().expect_err("it cannot be there yet");
        server.resume();
        assert_eq!(waits.recv().unwrap(), "2");
    });
    assert_eq!(look().text(), "2");
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
    let log = log_of(n2, &objects);
    n2.signal("-STOP");
    n1.eventually("it is taken over", |node| {
        let key = [("idempotency-key", "two")];
        let reply = node.request("POST", "/fn/counter/s", &key, b"count 1");
        reply.status == 200 && reply.text() == "2"
    });
    n1.deploy("counter", "guest-faults", "");
    // Without that it does not find out.
    take_away(&log);
    n2.signal("-CONT");
    n2.eventually("it knows the later version", |node| {
        node.get("/admin/functions/counter").json()["version"] == 2
    });
    let key = [("idempotency-key", "three")];
    let count = || n2.request("POST", "/fn/counter/s", &key, b"count 1");
    let refused = count();
    assert_eq!(refused.status, 503, "{}", refused.text());
    give_back(&log);
    n2.eventually("it counts on from there", |_| {
        let reply = count();
        reply.status == 200 && reply.text() == "3"
    });
}

/// The same with a function that is removed, and deployed again when the node is back.
#[test]
fn what_was_taken_over_of_a_removed_function_is_doubted_as_well() {
    let objects = ObjectFolder::new();
    let cluster = Cluster::with_store(2, &objects.path());
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    n1.deploy("counter", "guest-faults", REPLICATED);
    assert_eq!(n2.invoke("counter/s", "count 1"), "1");
    let (log, before) = (log_of(n2, &objects), stream(n2));
    n2.signal("-STOP");
    counts_with(n1, "counter/s", "counted", "1");
    assert_eq!(n1.invoke("counter/s", "count 1"), "2");
    let removed = n1.request("DELETE", "/admin/functions/counter", &[], b"");
    assert_eq!(removed.status, 204);
    take_away(&log);
    n2.signal("-CONT");
    n2.eventually("it knows that the function is gone", |node| {
        node.get("/admin/functions/counter").status == 404
    });
    give_back(&log);
    n2.eventually("it is back", |node| {
        let health = node.get("/admin/node").json();
        health["changelog"]["open"] == true && stream(node) != before
    });
    n1.deploy("counter", "guest-faults", REPLICATED);
    assert_eq!(n2.invoke("counter/s", "count 1"), "3");
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
    cluster.nodes[1].signal("-STOP");
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
    cluster.nodes[1].signal("-CONT");
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
