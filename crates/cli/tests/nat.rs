//! A node that nobody can dial takes part as any other: its sessions are used, moved and sent messages from everywhere.

#![allow(clippy::unwrap_used)]

mod common;

use common::cluster::Cluster;

/// Three nodes, of which the last one says to nobody where it listens.
fn cluster() -> Cluster {
    Cluster::start_with_top(3, |at| match at {
        2 => "behind_nat = true\n".to_owned(),
        _ => String::new(),
    })
}

#[test]
fn a_node_that_nobody_can_dial_is_reached() {
    let mut cluster = cluster();
    let [n1, n2, n3] = &cluster.nodes[..] else {
        panic!("three nodes")
    };
    n1.eventually("it is reached", |node| {
        let nodes = node.get("/admin/nodes").json();
        let nodes = nodes["nodes"].as_array().unwrap().clone();
        nodes.iter().all(|node| node["reached"] == true)
    });
    let nodes = n1.get("/admin/nodes").json();
    let hidden = nodes["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["name"] == "n3");
    assert_eq!(hidden.unwrap()["peer"], "", "nobody knows an address of it");

    // Sessions at home there, used from everywhere.
    n1.deploy("faults", "guest-faults", "");
    assert_eq!(n3.invoke("faults/s", "count 1"), "1");
    assert_eq!(n1.invoke("faults/s", "count 1"), "2");
    assert_eq!(n2.invoke("faults/s", "count 1"), "3");
    assert_eq!(cluster.sessions_at(2, "faults"), ["s"]);

    // Messages to and from there.
    n1.invoke("faults/a", "send faults s 20 count 1");
    n3.eventually("they are there", |node| {
        node.invoke("faults/s", "count 0") == "23"
    });
    n3.invoke("faults/s", "send faults a 20 count 1");
    n1.eventually("they are there", |node| {
        node.invoke("faults/a", "count 0") == "20"
    });

    // Large sessions move there and back.
    n1.invoke("faults/large", "record-padded 3000000");
    for to in ["n3", "n2", "n3", "n1"] {
        let moved = serde_json::json!({ "function": "faults", "session": "large", "to": to });
        let body = moved.to_string();
        let moved = n2.request("POST", "/admin/migrations", &[], body.as_bytes());
        assert_eq!(moved.status, 200, "{}", moved.text());
        assert_eq!(n1.invoke("faults/large", "len"), "1");
    }

    // It is there again after its own end and after that of those that it called.
    cluster.nodes[2].crash_and_restart();
    let counts = |cluster: &Cluster, at: usize, count: &str| {
        cluster.nodes[at].eventually("it is there again", |node| {
            let reply = node.request("POST", "/fn/faults/s", &[], b"count 1");
            reply.status == 200 && reply.text() == count
        });
    };
    counts(&cluster, 0, "24");
    cluster.nodes[1].crash_and_restart();
    counts(&cluster, 1, "25");
    counts(&cluster, 0, "26");
}
