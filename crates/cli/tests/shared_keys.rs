//! Shared buckets on many nodes: each key has a home of its own, and what is promised is what one node promises.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use common::cluster::Cluster;
use common::servers::Server;
use common::{Connection, Node, fulmar};

/// Nodes with the function of the tests.
fn cluster(count: usize) -> Cluster {
    let cluster = Cluster::start(count);
    cluster.nodes[0].deploy("faults", "guest-faults", "");
    cluster
}

/// Where a shared key of the bucket `b` is at home.
fn home(node: &Node, key: &str) -> String {
    let listed = node.get(&format!("/admin/sessions/-shared/b%2F{key}"));
    listed.json()["home"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn increments_on_all_nodes_add_up() {
    let mut cluster = cluster(3);
    let sums: Vec<u64> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let port = cluster.nodes[client % 3].port;
                scope.spawn(move || {
                    let mut connection = Connection::open(port);
                    let path = format!("/fn/faults/client-{client}");
                    (0..20)
                        .map(|_| {
                            let reply =
                                connection.request("POST", &path, &[], b"shared-increment b k 1");
                            let reply = reply.unwrap();
                            assert_eq!(reply.status, 200, "{}", reply.text());
                            reply.text().parse::<u64>().unwrap()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let sums = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        sums.collect()
    });
    let distinct: BTreeSet<u64> = sums.iter().copied().collect();
    assert_eq!(distinct, (1..=120).collect(), "every sum was seen once");
    for node in &cluster.nodes {
        assert_eq!(node.invoke("faults", "shared-get b k"), "120");
    }
    for at in 0..3 {
        cluster.nodes[at].crash();
    }
    for at in 0..3 {
        cluster.nodes[at].start_again();
    }
    for node in &cluster.nodes {
        assert_eq!(node.invoke("faults", "shared-get b k"), "120");
    }
}

#[test]
fn two_keys_and_a_session_are_one_commit_whoever_wants_them_in_which_order() {
    let mut cluster = cluster(3);
    let trouble = AtomicBool::new(true);
    let counted = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let (port, trouble) = (cluster.nodes[client % 3].port, &trouble);
                let order = ["left right", "right left"][client / 3];
                scope.spawn(move || {
                    let mut connection = Connection::open(port);
                    let path = format!("/fn/faults/client-{client}");
                    let body = format!("shared-increment-both b {order}");
                    let mut done = 0;
                    while trouble.load(Ordering::Relaxed) || done < 15 {
                        let reply = connection
                            .request("POST", &path, &[], body.as_bytes())
                            .unwrap();
                        assert_eq!(reply.status, 200, "{}", reply.text());
                        let text = reply.text();
                        let (first, second) = text.split_once(' ').unwrap();
                        assert_eq!(first, second, "both were incremented together, always");
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        // Keys that an operator moves meanwhile.
        for round in 0..12 {
            let to = format!("n{}", round % 3 + 1);
            let key = ["b/left", "b/right"][round % 2];
            let wanted = serde_json::json!({ "function": "-shared", "session": key, "to": to });
            let body = wanted.to_string();
            let node = &cluster.nodes[round % 3];
            let moved = node.request("POST", "/admin/migrations", &[], body.as_bytes());
            assert!(
                [200, 404, 409, 503].contains(&moved.status),
                "{}",
                moved.text()
            );
        }
        trouble.store(false, Ordering::Relaxed);
        let counts = clients.into_iter().map(|client| client.join().unwrap());
        counts.collect::<Vec<u64>>()
    });
    let all: u64 = counted.iter().sum();
    cluster.nodes[1].crash_and_restart();
    for node in &cluster.nodes {
        assert_eq!(node.invoke("faults", "shared-get b left"), all.to_string());
        assert_eq!(node.invoke("faults", "shared-get b right"), all.to_string());
    }
    for (client, count) in counted.iter().enumerate() {
        let path = format!("faults/client-{client}");
        assert_eq!(cluster.nodes[0].invoke(&path, "counted"), count.to_string());
    }
}

#[test]
fn swaps_are_atomic_and_failed_invocations_write_nothing() {
    let cluster = cluster(2);
    let [one, other] = &cluster.nodes[..] else {
        panic!()
    };
    assert_eq!(one.invoke("faults", "shared-swap b k - 1"), "true");
    assert_eq!(other.invoke("faults", "shared-swap b k - 2"), "false");
    assert_eq!(other.invoke("faults", "shared-swap b k 1 2"), "true");
    assert_eq!(one.invoke("faults", "shared-get b k"), "2");
    // Once each, whoever is quicker.
    let nodes = &cluster.nodes;
    let won = std::thread::scope(|scope| {
        let swap = |node: &Node| node.invoke("faults", "shared-swap b k 2 3") == "true";
        let tries: Vec<_> = (0..8)
            .map(|at| scope.spawn(move || swap(&nodes[at % 2])))
            .collect();
        tries
            .into_iter()
            .map(|won| won.join().unwrap())
            .filter(|won| *won)
            .count()
    });
    assert_eq!(won, 1);
    let reply = other.request("POST", "/fn/faults/s", &[], b"shared-increment b text x");
    assert_eq!(reply.status, 500);
    assert_eq!(one.invoke("faults", "shared-delete b k"), "deleted");
    assert_eq!(other.invoke("faults", "shared-get b k"), "absent");
    assert_eq!(other.invoke("faults", "shared-increment b k 5"), "5");
}

#[test]
fn keys_are_listed_and_kept_apart_wherever_they_are() {
    let cluster = cluster(3);
    cluster.nodes[1].deploy("shop.faults", "guest-faults", "");
    for (at, key) in ["a1", "a2", "a3", "b1", "b2"].iter().enumerate() {
        let node = &cluster.nodes[at % 3];
        node.invoke("faults", &format!("shared-increment b {key} {at}"));
        node.invoke("shop.faults", &format!("shared-increment b shop-{key} 1"));
    }
    assert_eq!(home(&cluster.nodes[0], "a2"), "n2");
    for node in &cluster.nodes {
        assert_eq!(node.invoke("faults", "shared-keys b"), "a1,a2,a3,b1,b2");
        assert_eq!(node.invoke("faults", "shared-keys b a"), "a1,a2,a3");
        assert_eq!(
            node.invoke("shop.faults", "shared-keys b shop-b"),
            "shop-b1,shop-b2"
        );
        assert_eq!(node.invoke("faults", "shared-get b shop-a1"), "absent");
    }
    cluster.nodes[0].invoke("faults", "shared-delete b a2");
    assert_eq!(
        cluster.nodes[2].invoke("faults", "shared-keys b a"),
        "a1,a3"
    );
    // The operator sees and sets the same, at any node.
    for node in &cluster.nodes {
        assert_eq!(
            fulmar(node, &["state", "get", "shared/b", "b2"]).unwrap(),
            "4"
        );
        assert_eq!(fulmar(node, &["state", "ls"]).unwrap(), "shared/b");
        let listed = fulmar(node, &["state", "ls", "shared/b", "--prefix", "b"]).unwrap();
        assert_eq!(listed, "b1\nb2");
        let in_shop = fulmar(node, &["state", "ls", "shared/b", "--namespace", "shop"]).unwrap();
        assert_eq!(in_shop.lines().count(), 5, "{in_shop}");
        let missing = fulmar(node, &["state", "get", "shared/b", "a2"]).unwrap_err();
        assert!(missing.contains("error[key-not-found]"), "{missing}");
        assert!(
            !fulmar(node, &["sessions", "ls"])
                .unwrap()
                .contains("-shared")
        );
    }
    fulmar(
        &cluster.nodes[2],
        &["state", "set", "shared/b", "b1", "set"],
    )
    .unwrap();
    assert_eq!(cluster.nodes[0].invoke("faults", "shared-get b b1"), "set");
    fulmar(&cluster.nodes[1], &["state", "delete", "shared/b", "b1"]).unwrap();
    assert_eq!(
        cluster.nodes[0].invoke("faults", "shared-get b b1"),
        "absent"
    );
    // What the nodes export, each of what it has, another cluster takes.
    let exported: Vec<String> = cluster
        .nodes
        .iter()
        .map(|node| fulmar(node, &["state", "export"]).unwrap())
        .collect();
    let exported = exported.join("\n");
    let other = self::cluster(2);
    other.nodes[0].deploy("shop.faults", "guest-faults", "");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &exported).unwrap();
    fulmar(
        &other.nodes[1],
        &["state", "import", file.path().to_str().unwrap()],
    )
    .unwrap();
    assert_eq!(other.nodes[0].invoke("faults", "shared-keys b"), "a1,a3,b2");
    assert_eq!(
        other.nodes[0].invoke("shop.faults", "shared-get b shop-a1"),
        "1"
    );
    // What stands for shared keys is no function.
    cluster.nodes[0].invoke_fails("-shared", "x", 404, "function-not-found");
    cluster.nodes[0].invoke_fails("-shared/b%2Fa1", "x", 404, "function-not-found");
    let wasm = std::fs::read(common::guest("counter")).unwrap();
    cluster.nodes[0]
        .try_deploy("-shared", &wasm, "")
        .expect_problem(422, "manifest-invalid");
    let sent = cluster.nodes[0].request("POST", "/fn/faults/s", &[], b"send -shared b/a1 1 x");
    assert_eq!(sent.status, 500, "{}", sent.text());
    let long = format!("shared-increment b {} 1", "x".repeat(600));
    let refused = cluster.nodes[0].request("POST", "/fn/faults/s", &[], long.as_bytes());
    assert!(
        refused.status == 500 && refused.text().contains("512"),
        "{}",
        refused.text()
    );
}

#[test]
fn a_key_whose_home_is_gone_waits_and_others_go_on() {
    let mut cluster = cluster(3);
    cluster.nodes[2].invoke("faults", "shared-increment b far 7");
    cluster.nodes[1].invoke("faults", "shared-increment b near 1");
    // Known before, so that nobody has to be asked where it is.
    assert_eq!(cluster.nodes[1].invoke("faults/s", "count 0"), "0");
    cluster.nodes[2].crash();
    // Its home, or who keeps the directory for it.
    let why = cluster.nodes[1].request("POST", "/fn/faults/s", &[], b"shared-get b far");
    assert_eq!(why.status, 503, "{}", why.text());
    assert!(why.text().contains("n3"), "{}", why.text());
    let listed = cluster.nodes[1].request("POST", "/fn/faults/s", &[], b"shared-keys b");
    assert_eq!(listed.status, 503, "{}", listed.text());
    let both = cluster.nodes[1].request(
        "POST",
        "/fn/faults/s",
        &[],
        b"shared-increment-both b near far",
    );
    assert_eq!(both.status, 503, "{}", both.text());
    // A message waits rather than being given up.
    cluster.nodes[1].invoke(
        "faults/s",
        "send faults r 1 shared-increment-both b near far",
    );
    assert_eq!(cluster.nodes[1].invoke("faults", "shared-get b near"), "1");
    assert_eq!(cluster.nodes[1].invoke("faults/s", "counted"), "0");
    assert_eq!(
        cluster.nodes[1].invoke("faults", "shared-increment b near 1"),
        "2"
    );
    cluster.nodes[2].start_again();
    cluster.nodes[1].eventually("its home is back", |node| {
        node.request(
            "POST",
            "/fn/faults/s",
            &[],
            b"shared-increment-both b near far",
        )
        .status
            == 200
    });
    cluster.nodes[2].eventually("the message arrives as well", |node| {
        node.invoke("faults", "shared-get b far") == "9"
    });
    assert_eq!(cluster.nodes[1].invoke("faults/r", "counted"), "1");
    assert_eq!(cluster.nodes[0].invoke("faults", "shared-get b near"), "4");
    let parked = cluster.nodes[1].get("/admin/dead-letters").json();
    assert_eq!(parked["dead_letters"].as_array().unwrap().len(), 0);
}

#[test]
fn lent_sessions_write_shared_keys_at_home_and_those_outside_not_at_all() {
    let cluster = Cluster::start(2);
    cluster.nodes[0].deploy("faults", "guest-faults", "execution_model = \"in-edge\"");
    assert_eq!(cluster.nodes[0].invoke("faults/s", "count 1"), "1");
    let both = cluster.nodes[1].invoke("faults/s", "shared-increment-both b left right");
    assert_eq!(both, "1 1");
    assert_eq!(cluster.nodes[1].invoke("faults/s", "counted"), "2");
    assert_eq!(
        cluster.nodes[1].invoke("faults/s", "shared-get b left"),
        "1"
    );
    drop(cluster);

    let redis = Server::redis();
    let outside = "execution_model = \"external\"";
    let refused = |node: &Node| {
        node.deploy("faults", "guest-faults", outside);
        node.invoke_fails(
            "faults/s",
            "shared-increment-both b left right",
            409,
            "shared-write-refused",
        );
        assert_eq!(node.invoke("faults/s", "shared-get b left"), "absent");
        assert_eq!(
            node.invoke("faults/s", "counted"),
            "0",
            "nothing of it was kept"
        );
        assert_eq!(
            node.invoke("faults", "shared-increment b left 1"),
            "1",
            "without a session it can"
        );
    };
    refused(&Node::start(&["--external", redis.url()]));
    let redis = Server::redis();
    refused(&Cluster::with_external(2, redis.url()).nodes[1]);
}

/// Ten milliseconds away, in both directions.
fn far(cluster: &Cluster, one: usize, other: usize) {
    let link = serde_json::json!({ "latency_ms": 5.0 });
    cluster.link(one, other, &link);
    cluster.link(other, one, &link);
}

#[test]
fn a_key_moves_to_where_it_is_read() {
    let cluster = Cluster::following(2, "on");
    cluster.nodes[0].deploy("faults", "guest-faults", "");
    cluster.nodes[0].invoke("faults", "shared-increment b k 7");
    assert_eq!(home(&cluster.nodes[1], "k"), "n1");
    far(&cluster, 0, 1);
    let mut connection = Connection::open(cluster.nodes[1].port);
    cluster.nodes[0].eventually("it moves to its reader", |node| {
        let reply = connection
            .request("POST", "/fn/faults", &[], b"shared-get b k")
            .unwrap();
        assert_eq!(reply.text(), "7");
        home(node, "k") == "n2"
    });
    let told = cluster.nodes[1]
        .get("/admin/decisions?function=-shared&session=b%2Fk")
        .json();
    let verdicts: Vec<&str> = told["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|decision| decision["verdict"].as_str())
        .collect();
    assert!(verdicts.contains(&"moved"), "{told}");
    assert_eq!(cluster.nodes[0].invoke("faults", "shared-get b k"), "7");
}

#[test]
fn an_invocation_runs_where_its_shared_keys_are_if_it_is_answered_sooner_there() {
    let cluster = Cluster::with_links(2);
    let [n1, n2] = &cluster.nodes[..] else {
        panic!()
    };
    let slo = "[slo]\nmax_response = \"10s\"\n";
    n1.deploy("faults", "guest-faults", slo);
    for key in ["left", "right"] {
        n2.invoke("faults", &format!("shared-set-padded b {key} 1000"));
    }
    far(&cluster, 0, 1);
    let ask = |node: &Node| {
        let reply = node.request("POST", "/fn/faults", &[], b"shared-get-all b left right");
        assert_eq!(reply.text(), "2000");
        let invocation = reply.header("fulmar-invocation").unwrap();
        invocation.split('-').next().unwrap().to_owned()
    };
    n1.eventually("the way is measured", |node| {
        let nodes = node.get("/admin/nodes").json();
        nodes["nodes"][1]["round_trip_seconds"].as_f64() > Some(0.009)
    });
    // What it uses is found out here first.
    assert_eq!(ask(n1), "n1");
    n1.eventually("it is offloaded", |node| ask(node) == "n2");
    let shown = n1.get("/admin/functions/faults").json()["shared_keys"].clone();
    let left = &shown.as_array().unwrap()[0];
    assert_eq!(
        (&left["bucket"], left["bytes"].as_f64()),
        (&"b".into(), Some(1000.0)),
        "{shown}"
    );
    let told = n1.get("/admin/decisions?function=faults").json();
    let offloaded = told["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|decision| decision["verdict"] == "offloaded");
    let estimates = &offloaded.unwrap()["estimates"];
    let data = |at: usize| estimates[at]["data_seconds"].as_f64().unwrap();
    assert!(data(0) > 0.0 && data(1) == 0.0, "{told}");
}
