//! Shared buckets: linearizable per key, increments and swaps atomic, written with the commit.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Connection, Node};

#[test]
fn increments_by_many_sessions_add_up() {
    let mut node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    let mut sums: Vec<u64> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|client| {
                let node = &node;
                scope.spawn(move || {
                    let mut connection = Connection::open(node.port);
                    let path = format!("/fn/faults/client-{client}");
                    (0..50)
                        .map(|_| {
                            let reply = connection
                                .request("POST", &path, &[], b"shared-increment b k 1")
                                .unwrap();
                            reply.text().parse::<u64>().unwrap()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    sums.sort_unstable();
    assert_eq!(
        sums,
        (1..=800).collect::<Vec<_>>(),
        "every sum was seen once"
    );
    node.crash_and_restart();
    assert_eq!(node.invoke("faults", "shared-get b k"), "800");
}

#[test]
fn slow_and_quick_increments_both_get_through() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    std::thread::scope(|scope| {
        for n in 0..4 {
            let node = &node;
            scope.spawn(move || {
                node.invoke(
                    &format!("faults/slow-{n}"),
                    "shared-increment-slowly b k 1 50",
                )
            });
        }
        for _ in 0..100 {
            node.invoke("faults/quick", "shared-increment b k 1");
        }
    });
    assert_eq!(node.invoke("faults", "shared-get b k"), "104");
}

#[test]
fn the_operator_sees_and_sets_what_functions_see() {
    let mut node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    node.invoke("faults/s", "shared-set-pair b 1");
    assert_eq!(node.get("/admin/state/shared/b/key/left").text(), "1");
    assert_eq!(
        node.request("PUT", "/admin/state/shared/b/key/left", &[], b"2")
            .status,
        204
    );
    assert_eq!(node.invoke("faults", "shared-get b left"), "2");
    assert_eq!(
        node.get("/admin/state/shared/b/keys").json()["keys"],
        serde_json::json!(["left", "right"])
    );
    assert_eq!(
        node.get("/admin/state/shared").json()["buckets"],
        serde_json::json!(["b"])
    );
    // A session's state as well; the worker does not go on with what it remembered.
    assert_eq!(node.invoke("faults/s", "count 1"), "1");
    assert_eq!(
        node.request("PUT", "/admin/state/session/faults/s/key/count", &[], b"41")
            .status,
        204
    );
    assert_eq!(node.invoke("faults/s", "count 1"), "42");
    let exported = node.get("/admin/state-export").text();
    assert_eq!(exported.lines().count(), 3, "{exported}");
    assert_eq!(
        node.request("DELETE", "/admin/sessions/faults/s", &[], b"")
            .status,
        204
    );
    assert_eq!(node.invoke("faults/s", "count 0"), "0");
    node.get("/admin/state/shared/b/key/nothing")
        .expect_problem(404, "key-not-found");
    let imported = node.request("POST", "/admin/state-import", &[], exported.as_bytes());
    assert_eq!(imported.json()["imported"], 3, "{}", imported.text());
    assert_eq!(node.invoke("faults/s", "count 0"), "42");
    node.crash_and_restart();
    assert_eq!(node.invoke("faults/s", "count 0"), "42");
    let sessions = node.get("/admin/sessions?function=faults").json();
    assert_eq!(sessions["sessions"][0]["session"], "s", "{sessions}");
}
