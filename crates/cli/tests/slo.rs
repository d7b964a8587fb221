//! Functions with an SLO: counted, offloaded to where an answer is expected soonest, refused where none is in time.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::cluster::Cluster;
use common::{Connection, Node, Reply};

fn post(node: &Node, path: &str, body: &str) -> Reply {
    node.request("POST", &format!("/fn/{path}"), &[], body.as_bytes())
}

/// The node that ran an invocation.
fn ran_at(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let invocation = reply.header("fulmar-invocation").unwrap();
    invocation.split('-').next().unwrap().to_owned()
}

#[test]
fn what_is_late_is_counted_and_costs_its_penalty() {
    let node = Node::start(&[]);
    let slo = "[slo]\nmax_response = \"10ms\"\npenalty_per_second = 100\n";
    node.deploy("faults", "guest-faults", slo);
    for _ in 0..3 {
        assert_eq!(post(&node, "faults/s", "sleep 30").text(), "slept");
    }
    let slo = node.get("/admin/functions/faults").json()["slo"].clone();
    assert_eq!(
        (&slo["invocations"], &slo["misses"]),
        (&3.into(), &3.into()),
        "{slo}"
    );
    // Three times at least 20 ms too late, at 100 a second.
    assert!(slo["penalty"].as_f64().unwrap() >= 6.0, "{slo}");
    let metrics = node.get("/metrics").text();
    assert!(
        metrics.contains("fulmar_slo_misses_total{function=\"faults\"} 3"),
        "{metrics}"
    );
}

#[test]
fn what_no_node_can_answer_in_time_is_refused() {
    let cluster = Cluster::with_links(2);
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    let slo = "[slo]\nmax_response = \"150ms\"\n";
    n1.deploy("strict", "guest-faults", slo);
    n1.deploy(
        "lenient",
        "guest-faults",
        &format!("{slo}best_effort = true\n"),
    );
    let far = serde_json::json!({ "latency_ms": 100.0 });
    for function in ["strict", "lenient"] {
        assert_eq!(n1.invoke(&format!("{function}/s"), "count 1"), "1");
    }
    cluster.link(0, 1, &far);
    cluster.link(1, 0, &far);
    // The state is 200 ms away, wherever it runs; once that has been noticed.
    n2.eventually("it is refused", |node| {
        let reply = post(node, "strict/s", "count 0");
        reply.status == 503 && reply.json()["code"] == "slo-unattainable"
    });
    let explained = n2.get("/admin/decisions?function=strict").json();
    let last = explained["decisions"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(last["verdict"], "refused", "{last}");
    assert_eq!(last["estimates"].as_array().unwrap().len(), 2, "{last}");
    assert!(
        last["estimates"][0]["rejected"]
            .as_str()
            .unwrap()
            .contains("late"),
        "{last}"
    );
    // At home it is in time, and best effort is made anywhere.
    assert_eq!(n1.invoke("strict/s", "count 0"), "1");
    assert_eq!(n2.invoke("lenient/s", "count 0"), "1");
}

#[test]
fn an_invocation_runs_on_the_fast_node_and_commits_at_its_home() {
    let cluster = Cluster::start_with_top(3, |at| {
        let speed_up = if at == 2 { 100.0 } else { 1.0 };
        format!("speed_up = {speed_up:?}\n")
    });
    let [n1, n2, _] = &cluster.nodes[..] else {
        panic!("three nodes")
    };
    n1.deploy("faults", "guest-faults", "[slo]\nmax_response = \"10s\"\n");
    let mut count = 0;
    let mut next = |node: &Node| {
        count += 1;
        let reply = post(node, "faults/s", "sleep-and-count 20");
        assert_eq!(reply.text(), count.to_string());
        ran_at(&reply)
    };
    assert_eq!(next(n1), "n1");
    n1.eventually("it is offloaded", |node| next(node) == "n3");
    // Asked of the node that is neither home nor fast as well.
    n2.eventually("it is offloaded", |node| next(node) == "n3");
    assert_eq!(cluster.sessions_at(0, "faults"), ["s"]);
}

/// A key without a session is remembered where it was used first, however fast another node is.
#[test]
fn a_key_without_a_session_has_its_effect_once() {
    let cluster = Cluster::start_with_top(2, |at| {
        let speed_up = if at == 1 { 100.0 } else { 1.0 };
        format!("speed_up = {speed_up:?}\n")
    });
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    n1.deploy("faults", "guest-faults", "[slo]\nmax_response = \"10s\"\n");
    let offloads = |node: &Node| ran_at(&post(node, "faults", "sleep 20")) == "n2";
    n1.eventually("it is offloaded", offloads);
    // The other node is quick in what follows, which the first one is to hear.
    for _ in 0..60 {
        post(n2, "faults", "log quickly");
    }
    n1.eventually("it is offloaded again", offloads);
    const KEYS: usize = 12;
    for key in 0..KEYS {
        let key = format!("k{key}");
        let headers = [("idempotency-key", key.as_str())];
        let body = b"send faults all 1 count 1";
        let [first, again] =
            [n1, n2].map(|node| node.request("POST", "/fn/faults", &headers, body));
        assert_eq!((first.status, again.status), (200, 200), "{}", again.text());
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
    }
    n1.eventually("all are there", |node| {
        node.invoke("faults/all", "count 0") == KEYS.to_string()
    });
}

/// One worker at a time makes a node busy; the other one helps, unless it only watches.
#[test]
fn a_busy_node_is_helped() {
    for mode in ["on", "observe"] {
        let cluster = Cluster::start_with_top(2, |_| format!("offload = {mode:?}\n"));
        let n1 = &cluster.nodes[0];
        n1.deploy(
            "faults",
            "guest-faults",
            "[slo]\nmax_response = \"60s\"\n[workers]\nmax = 1\n",
        );
        for _ in 0..5 {
            n1.invoke("faults", "sleep 20");
        }
        let helped = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let mut connection = Connection::open(n1.port);
                    for _ in 0..20 {
                        let reply = connection.request("POST", "/fn/faults", &[], b"sleep 20");
                        if ran_at(&reply.unwrap()) == "n2" {
                            helped.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let helped = helped.into_inner();
        let explained = n1.get("/admin/decisions?function=faults").text();
        match mode {
            "on" => assert!(helped > 10, "{helped}: {explained}"),
            _ => assert!(
                helped == 0 && explained.contains("would-offload"),
                "{explained}"
            ),
        }
    }
}

/// A node whose workers may have no memory runs nothing; one with little memory sends on what does not fit.
#[test]
fn what_has_no_memory_here_runs_elsewhere() {
    let memory = ["128 MiB", "0 B", "64 MiB"];
    let cluster = Cluster::start_with(3, |at| {
        format!("[limits]\nworker_memory = {:?}\n", memory[at])
    });
    let [n1, n2, _] = &cluster.nodes[..] else {
        panic!("three nodes")
    };
    let deploy = |name: &str, more: &str| {
        let manifest =
            format!("[limits]\nmemory = \"48 MiB\"\n[slo]\nmax_response = \"30s\"\n{more}");
        n1.deploy(name, "guest-faults", &manifest);
    };
    deploy("small", "");
    for _ in 0..3 {
        n1.invoke("small", "sleep 1");
    }
    // It knows by now how much memory the others have.
    n2.eventually("it is sent on", |node| {
        let reply = post(node, "small", "sleep 1");
        assert!(reply.status == 200 || reply.json()["code"] == "no-room");
        reply.status == 200 && ran_at(&reply) != "n2"
    });
    // Two at a time fit here, one there; all others are told so, or wait if they may.
    let places = |path: &'static str| -> Vec<(u16, String)> {
        std::thread::scope(|scope| {
            let asked = (0..6).map(|_| scope.spawn(move || post(n1, path, "sleep 700")));
            let asked: Vec<_> = asked.collect();
            let replies = asked.into_iter().map(|asked| asked.join().unwrap());
            replies
                .map(|reply| match reply.status {
                    200 => (200, ran_at(&reply)),
                    status => (status, reply.json()["code"].as_str().unwrap().to_owned()),
                })
                .collect()
        })
    };
    let count = |places: &[(u16, String)], what: &str| {
        places.iter().filter(|(_, place)| place == what).count()
    };
    // As soon as it is known how far the other one is.
    let mut strict = Vec::new();
    n1.eventually("the other node is asked", |_| {
        strict = places("small");
        count(&strict, "n3") > 0
    });
    let [here, there, refused] = ["n1", "n3", "slo-unattainable"].map(|what| count(&strict, what));
    assert!(
        (2..=3).contains(&here) && (1..=2).contains(&there) && refused >= 1,
        "{strict:?}"
    );
    assert_eq!(here + there + refused, 6, "{strict:?}");
    deploy("patient", "best_effort = true\n");
    n1.invoke("patient", "sleep 1");
    let patient = places("patient");
    let [here, there] = ["n1", "n3"].map(|what| count(&patient, what));
    assert!(here + there == 6 && there >= 1, "{patient:?}");
    // Without an SLO it runs where it was asked for, or nowhere.
    n1.deploy("plain", "guest-faults", "[limits]\nmemory = \"48 MiB\"\n");
    post(n2, "plain", "sleep 1").expect_problem(503, "no-room");
}
