//! Sessions of functions that are promised short accesses to their state go where the promise is kept, and it can be seen
//! why.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::Connection;
use common::cluster::Cluster;
use serde_json::Value;

const PROMISED: &str = "execution_model = \"in-edge\"\n[slo]\nmax_data_access = \"30ms\"\n";

/// So many milliseconds away, in both directions.
fn far(cluster: &Cluster, one: usize, other: usize, latency_ms: f64) {
    let link = serde_json::json!({ "latency_ms": latency_ms });
    cluster.link(one, other, &link);
    cluster.link(other, one, &link);
}

/// A session on the first of three nodes, and the other two near each other and far from there.
fn near_and_far(placement: &str) -> Cluster {
    let cluster = Cluster::placing(3, placement, |_| String::new());
    cluster.nodes[0].deploy("counter", "counter", PROMISED);
    assert_eq!(cluster.nodes[0].invoke("counter/a", "1"), "1");
    far(&cluster, 0, 1, 40.0);
    far(&cluster, 0, 2, 40.0);
    far(&cluster, 1, 2, 1.0);
    cluster
}

/// Counts at some nodes, in turns, until something is so; how often.
fn until(cluster: &Cluster, at: &[usize], path: &str, mut is_so: impl FnMut() -> bool) -> u64 {
    let connections = at
        .iter()
        .map(|at| Connection::open(cluster.nodes[*at].port));
    let mut connections: Vec<Connection> = connections.collect();
    let begun = Instant::now();
    let mut count = 0;
    while count % 20 != 0 || count == 0 || !is_so() {
        assert!(begun.elapsed() < common::PATIENCE, "not after {count}");
        let connection = &mut connections[count as usize % at.len()];
        let reply = connection.request("POST", path, &[], b"1").unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        count += 1;
    }
    count
}

/// What a node has decided.
fn decisions(cluster: &Cluster, node: &str, verdict: &str) -> Vec<Value> {
    let found = cluster.nodes[0].get("/admin/decisions?function=counter");
    let found = found.json()["decisions"].as_array().unwrap().clone();
    let are_so = found.into_iter();
    are_so
        .filter(|decision| decision["node"] == node && decision["verdict"] == verdict)
        .collect()
}

#[test]
fn state_goes_to_where_the_promise_is_kept() {
    let cluster = near_and_far("on");
    let went = || (1..3).any(|at| !cluster.sessions_at(at, "counter").is_empty());
    let count = until(&cluster, &[1], "/fn/counter/a", went);
    let moved = decisions(&cluster, "n1", "moved");
    assert_eq!(moved.len(), 1, "{moved:?}");
    // Near enough is good enough: between those two it is two milliseconds.
    let home = moved[0]["to"].as_str().unwrap();
    assert!(["n2", "n3"].contains(&home), "{home}");
    let promise = |key: &str| moved[0]["promise"][key].as_f64().unwrap();
    assert_eq!(promise("max_data_access_seconds"), 0.03);
    assert!(promise("now_seconds") > 0.03 && promise("then_seconds") < 0.03);
    let other = if home == "n2" { 2 } else { 1 };
    let near = || !decisions(&cluster, home, "stays").is_empty();
    let more = until(&cluster, &[other], "/fn/counter/a", near);
    assert!(decisions(&cluster, home, "moved").is_empty());
    let total = 1 + count + more;
    assert_eq!(cluster.nodes[0].invoke("counter/a", "0"), total.to_string());
}

/// Between two nodes that use it there is one that would do for both.
#[test]
fn state_goes_between_those_who_use_it_if_there_is_room() {
    for has_room in [true, false] {
        let cluster = Cluster::placing(4, "on", |at| match (at, has_room) {
            (1, false) => "[limits]\nreserve_disk = \"1000 GiB\"\n".to_owned(),
            _ => String::new(),
        });
        cluster.nodes[0].deploy("counter", "counter", PROMISED);
        assert_eq!(cluster.nodes[0].invoke("counter/a", "1"), "1");
        for other in 1..4 {
            far(&cluster, 0, other, 60.0);
        }
        far(&cluster, 1, 2, 2.0);
        far(&cluster, 1, 3, 2.0);
        far(&cluster, 2, 3, 50.0);
        // It may go to one of them first, before it is known how far others are from each other.
        let arrived = || match has_room {
            true => !cluster.sessions_at(1, "counter").is_empty(),
            false => (2..4).any(|at| {
                let node = format!("n{}", at + 1);
                let stays = decisions(&cluster, &node, "stays");
                stays.iter().any(|stays| {
                    let candidates = stays["candidates"].as_array().unwrap();
                    let far = |far: &Value| far["round_trip_seconds"].as_f64() > Some(0.09);
                    candidates.iter().any(far)
                })
            }),
        };
        until(&cluster, &[2, 3], "/fn/counter/a", arrived);
        assert_eq!(
            cluster.sessions_at(1, "counter").len(),
            usize::from(has_room)
        );
    }
}

#[test]
fn what_would_be_done_is_only_remembered_when_only_that_is_wanted() {
    let cluster = near_and_far("observe");
    let would = || !decisions(&cluster, "n1", "would-move").is_empty();
    until(&cluster, &[1], "/fn/counter/a", would);
    assert_eq!(cluster.sessions_at(0, "counter"), ["a"]);
}

/// A key goes to whoever reads it, if that is promised; one that is near enough stays.
#[test]
fn shared_keys_go_to_where_the_promise_is_kept() {
    let cluster = Cluster::placing(3, "on", |_| String::new());
    let [n1, n2, n3] = &cluster.nodes[..] else {
        panic!("three nodes")
    };
    // Two, since what is promised is the mean over all keys of a function.
    for reader in ["reader", "neighbour"] {
        let promise = "[slo]\nmax_data_access = \"30ms\"\n";
        n1.deploy(reader, "guest-faults", promise);
    }
    n1.deploy("writer", "guest-faults", "");
    for key in ["far", "near"] {
        let written = n1.invoke("writer", &format!("shared-set-padded b {key} 1000"));
        assert_eq!(written, "set");
    }
    far(&cluster, 0, 1, 40.0);
    far(&cluster, 1, 2, 40.0);
    far(&cluster, 0, 2, 2.0);
    let decided = |verdict: &str, key: &str| {
        let found = n1.get("/admin/decisions?function=-shared").json();
        let found = found["decisions"].as_array().unwrap().clone();
        let session = format!("b/{key}");
        let is_it = |decision: &&Value| {
            decision["verdict"] == verdict && decision["session"] == session.as_str()
        };
        found.iter().find(is_it).cloned()
    };
    n2.eventually("it is near", |node| {
        let begun = Instant::now();
        assert_eq!(node.invoke("reader", "shared-get-all b far"), "1000");
        let took = begun.elapsed().as_secs_f64();
        assert_eq!(n3.invoke("neighbour", "shared-get-all b near"), "1000");
        decided("moved", "far").is_some() && took < 0.03
    });
    let moved = decided("moved", "far").unwrap();
    assert_eq!(moved["node"], "n1");
    let promise = |key: &str| moved["promise"][key].as_f64().unwrap();
    assert!(promise("now_seconds") > 0.03 && promise("then_seconds") < 0.03);
    n3.eventually("the other one stays", |node| {
        assert_eq!(node.invoke("neighbour", "shared-get-all b near"), "1000");
        decided("stays", "near").is_some()
    });
    assert!(decided("moved", "near").is_none());
}
