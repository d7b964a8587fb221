//! Sessions follow their clients, if that pays, and it can be seen why.

#![allow(clippy::unwrap_used)]

mod common;

use common::Connection;
use common::cluster::Cluster;

/// Ten milliseconds away, in both directions.
fn far(cluster: &Cluster, one: usize, other: usize) {
    let link = serde_json::json!({ "latency_ms": 5.0 });
    cluster.link(one, other, &link);
    cluster.link(other, one, &link);
}

fn decisions(cluster: &Cluster, at: usize, session: &str) -> Vec<serde_json::Value> {
    let path = format!("/admin/decisions?function=counter&session={session}");
    let found = cluster.nodes[at].get(&path).json();
    found["decisions"].as_array().unwrap().clone()
}

/// Invokes a session at a node until something is so; how often.
fn until(cluster: &Cluster, at: usize, path: &str, mut is_so: impl FnMut(u64) -> bool) -> u64 {
    let mut connection = Connection::open(cluster.nodes[at].port);
    let begun = std::time::Instant::now();
    let mut count = 0;
    while !is_so(count) {
        assert!(
            begun.elapsed() < common::PATIENCE,
            "not after {count} requests"
        );
        let reply = connection.request("POST", path, &[], b"1").unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        count += 1;
    }
    count
}

#[test]
fn a_session_follows_its_client_and_comes_back_with_it() {
    let cluster = Cluster::following(3, "on");
    cluster.nodes[0].deploy("counter", "counter", "");
    far(&cluster, 0, 1);
    assert_eq!(cluster.nodes[0].invoke("counter/car", "1"), "1");
    let is_at = |at: usize| cluster.sessions_at(at, "counter") == ["car"];
    let mut count = 1;
    for (from, to) in [(0, 1), (1, 0)] {
        assert!(is_at(from));
        count += until(&cluster, to, "/fn/counter/car", |n| {
            n % 20 == 0 && n > 0 && is_at(to)
        });
        assert!(!is_at(from));
    }
    assert_eq!(
        cluster.nodes[2].invoke("counter/car", "0"),
        count.to_string()
    );
    // Whoever is asked knows why.
    let moved: Vec<_> = decisions(&cluster, 2, "car")
        .into_iter()
        .filter(|decision| decision["verdict"] == "moved")
        .map(|decision| (decision["node"].clone(), decision["to"].clone()))
        .collect();
    assert_eq!(
        moved,
        [("n1".into(), "n2".into()), ("n2".into(), "n1".into())]
    );
}

#[test]
fn what_would_be_done_is_only_remembered_when_only_that_is_wanted() {
    let cluster = Cluster::following(2, "observe");
    cluster.nodes[0].deploy("counter", "counter", "");
    far(&cluster, 0, 1);
    assert_eq!(cluster.nodes[0].invoke("counter/car", "1"), "1");
    let would = || {
        decisions(&cluster, 0, "car")
            .iter()
            .any(|decision| decision["verdict"] == "would-move" && decision["to"] == "n2")
    };
    until(&cluster, 1, "/fn/counter/car", |n| {
        n % 20 == 0 && n > 0 && would()
    });
    assert_eq!(cluster.sessions_at(0, "counter"), ["car"]);
    let remembered = decisions(&cluster, 1, "car");
    let decision = remembered.last().unwrap();
    let candidate = &decision["candidates"][0];
    assert_eq!(candidate["node"], "n2");
    assert!(
        candidate["round_trip_seconds"].as_f64().unwrap() > 0.009,
        "{decision}"
    );
}
