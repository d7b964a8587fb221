//! Several sites: a name means one session wherever it is used, and a site that is cut off goes on by itself.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::Connection;
use common::cluster::Cluster;

/// How many homes each session of `counter` has.
fn homes(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut homes = BTreeMap::new();
    for at in 0..cluster.nodes.len() {
        for session in cluster.sessions_at(at, "counter") {
            *homes.entry(session).or_default() += 1;
        }
    }
    homes
}

/// Waits until each shard of the directory has its owners, so that nothing new is asked of the registry.
fn settled(cluster: &Cluster, sites: usize) {
    cluster.nodes[0].eventually("all shards have owners", |_| {
        let shards = cluster.nodes.iter().map(|node| {
            let health = node.get("/admin/node").json();
            health["cluster"]["directory_shards"].as_u64().unwrap()
        });
        shards.sum::<u64>() == 256 * sites as u64
    });
}

#[test]
fn a_name_is_one_session_on_all_sites() {
    let cluster = Cluster::on_sites(&["a", "a", "b", "c"]);
    cluster.nodes[0].deploy("counter", "counter", "");
    const SESSIONS: usize = 40;
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
    let homes = homes(&cluster);
    assert_eq!(homes.len(), SESSIONS);
    assert!(homes.values().all(|count| *count == 1), "{homes:?}");
    for session in 0..SESSIONS {
        for node in &cluster.nodes {
            assert_eq!(node.invoke(&format!("counter/s{session}"), "0"), "4");
        }
    }
    // It moves from site to site, and is found from all of them.
    cluster.nodes[3].invoke("counter/moving", "1");
    for (round, to) in ["n1", "n3", "n4", "n2"].iter().enumerate() {
        let wanted = serde_json::json!({ "function": "counter", "session": "moving", "to": to });
        let body = wanted.to_string();
        let moved = cluster.nodes[round].request("POST", "/admin/migrations", &[], body.as_bytes());
        assert_eq!(moved.status, 200, "{}", moved.text());
        for node in &cluster.nodes {
            assert_eq!(node.invoke("counter/moving", "0"), "1");
        }
    }
    // Removed, it begins again wherever it is wanted next, under a higher epoch.
    let removed = cluster.nodes[2].request("DELETE", "/admin/sessions/counter/moving", &[], b"");
    assert_eq!(removed.status, 204, "{}", removed.text());
    assert_eq!(cluster.nodes[0].invoke("counter/moving", "1"), "1");
    assert_eq!(cluster.nodes[3].invoke("counter/moving", "1"), "2");
}

#[test]
fn a_site_that_is_cut_off_goes_on_and_is_found_again_afterwards() {
    let cluster = Cluster::on_sites(&["a", "a", "b", "b"]);
    cluster.nodes[0].deploy("counter", "counter", "");
    settled(&cluster, 2);
    // Where each name is known by its hash is settled as well.
    for session in ["old", "both", "new"] {
        cluster.nodes[0].invoke(&format!("counter/{session}-a"), "1");
    }
    assert_eq!(cluster.nodes[2].invoke("counter/old", "1"), "1");
    assert_eq!(cluster.nodes[0].invoke("counter/old", "1"), "2");

    for at in [2, 3] {
        cluster.cut(at, &[0, 1], true);
    }
    // Its own sessions, and new ones, at both of its nodes.
    assert_eq!(cluster.nodes[2].invoke("counter/old", "1"), "3");
    assert_eq!(cluster.nodes[3].invoke("counter/old", "1"), "4");
    for session in 0..12 {
        let path = format!("counter/new-{session}");
        assert_eq!(cluster.nodes[2].invoke(&path, "1"), "1");
        assert_eq!(cluster.nodes[3].invoke(&path, "1"), "2");
    }
    // The same name on both sides: two sessions, as neither side can know of the other.
    assert_eq!(cluster.nodes[3].invoke("counter/both", "10"), "10");
    assert_eq!(cluster.nodes[0].invoke("counter/both", "1"), "1");

    for at in [2, 3] {
        cluster.cut(at, &[0, 1], false);
    }
    // All but the one whose name the other side has used as well.
    cluster.nodes[0].eventually("the site's sessions are introduced", |_| {
        let waiting = [2, 3].map(|at: usize| {
            let health = cluster.nodes[at].get("/admin/node").json();
            health["cluster"]["sessions_not_introduced"]
                .as_u64()
                .unwrap()
        });
        waiting[0] + waiting[1] <= 1
    });
    cluster.nodes[0].eventually("the site's sessions are found again", |node| {
        (0..12).all(|session| {
            let path = format!("/fn/counter/new-{session}");
            let reply = node.request("POST", &path, &[], b"0");
            reply.status == 200 && reply.text() == "2"
        }) && node.request("POST", "/fn/counter/old", &[], b"0").text() == "4"
    });
    // Both stay, each at home on its site, and it is said.
    assert_eq!(cluster.nodes[2].invoke("counter/both", "1"), "11");
    assert_eq!(cluster.nodes[1].invoke("counter/both", "1"), "2");
    cluster.nodes[2].eventually("that the name is contested is said", |_| {
        [2, 3].iter().any(|&at| {
            let health = cluster.nodes[at].get("/admin/node").json();
            let contested = &health["cluster"]["sessions_contested"];
            contested
                .as_array()
                .unwrap()
                .iter()
                .any(|contested| contested["session"] == "both" && contested["site"] == "a")
        })
    });
}
