//! The workload of "Function Offloading and Data Migration for Stateful Serverless Edge Computing", scaled down, on nodes
//! that really run with links between them that are emulated, beside what the simulator makes of the same.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::cluster::Cluster;
use common::{Connection, Node};
use fulmar_sim::scenarios::ds2p::live::{self, Function, Played};
use fulmar_sim::scenarios::ds2p::{Drawn, Migration, Offloading, Reading, Settings};

/// Requests that are on their way at once, at most.
const CLIENTS: usize = 160;
const BUCKET: &str = "ds2p";

/// What is played.
struct Scale {
    edge_nodes: usize,
    /// How large keys are, against the paper's.
    size_scale: f64,
    /// Longest access to all keys that is promised, in seconds.
    t_max: f64,
    /// Before anything is counted, and while it is, in seconds.
    warm_up: f64,
    measured: f64,
}

impl Scale {
    fn settings(&self, migration: Migration) -> Settings {
        Settings {
            t_max: vec![self.t_max],
            migration: vec![migration],
            offloading: vec![Offloading::SloAware],
            reading: Reading::Fulmar,
            edge_nodes: self.edge_nodes,
            size_scale: self.size_scale,
            seconds: 1200.0,
            // As often as nodes look.
            migrate_seconds: 5.0,
            ..Settings::default()
        }
    }
}

/// Nodes as they are drawn: those at the edge, those in the cloud, and the data store, which executes nothing.
fn start(drawn: &Drawn, placement: &str) -> Cluster {
    let layout = drawn.layout;
    let top = format!(
        "emulate_links = true\nspeed_up = 1.0\nplacement = {placement:?}\nfollow_clients = \"off\"\n"
    );
    let cluster = Cluster::start_with_both(layout.nodes(), &top, |node| {
        let memory = live::memory_mb(drawn, node);
        format!("[limits]\nclient_timeout = \"1h\"\nworker_memory = \"{memory} MiB\"\n")
    });
    for from in 0..layout.nodes() {
        for to in (0..layout.nodes()).filter(|to| *to != from) {
            let one_way = |from, to| drawn.latency_seconds[from * layout.nodes() + to];
            let round_trip = one_way(from, to) + one_way(to, from);
            let link = serde_json::json!({
                "latency_ms": 500.0 * round_trip,
                "bytes_per_second": layout.bandwidth(from, to),
            });
            cluster.link(from, to, &link);
        }
    }
    cluster
}

/// Puts the keys into the data store.
fn store_keys(cluster: &Cluster, drawn: &Drawn) {
    let store = &cluster.nodes[drawn.layout.executing()];
    let mut used: Vec<usize> = drawn
        .accesses
        .iter()
        .flatten()
        .map(|(key, _)| *key)
        .collect();
    used.sort_unstable();
    used.dedup();
    for key in used {
        let value = vec![b'x'; drawn.size_bytes[key] as usize];
        let path = format!("/admin/state/shared/{BUCKET}/key/k{key}");
        let reply = store.request("PUT", &path, &[], &value);
        assert_eq!(reply.status, 204, "{}", reply.text());
    }
}

/// A request of a client.
struct Request {
    edge: usize,
    function: &'static str,
    body: String,
    due: Instant,
}

/// What a client got.
struct Response {
    took: Duration,
    /// The node that ran it; none if it was refused.
    ran_at: Option<String>,
}

/// Sends requests as they are due; ends when there are no more.
fn client(ports: &[u16], requests: &Mutex<mpsc::Receiver<Request>>) -> Vec<Response> {
    let mut connections: Vec<Option<Connection>> = ports.iter().map(|_| None).collect();
    let mut responses = Vec::new();
    loop {
        let next = requests.lock().unwrap().recv();
        let Ok(request) = next else {
            return responses;
        };
        let connection =
            connections[request.edge].get_or_insert_with(|| Connection::open(ports[request.edge]));
        let path = format!("/fn/{}", request.function);
        let reply = connection.request("POST", &path, &[], request.body.as_bytes());
        let reply = reply.unwrap();
        let invocation = reply.header("fulmar-invocation").map(str::to_owned);
        assert!(
            reply.status == 200 || reply.json()["code"] == "slo-unattainable",
            "{}",
            reply.text()
        );
        responses.push(Response {
            took: request.due.elapsed(),
            ran_at: (reply.status == 200)
                .then(|| invocation.unwrap().split('-').next().unwrap().to_owned()),
        });
    }
}

/// Sends what arrives at the edge for so many seconds; what came of it.
fn drive(cluster: &Cluster, drawn: &Drawn, functions: &[Function], seconds: f64) -> Vec<Response> {
    let ports: Vec<u16> = (0..drawn.layout.edge)
        .map(|at| cluster.nodes[at].port)
        .collect();
    let (send, receive) = mpsc::channel();
    let receive = Arc::new(Mutex::new(receive));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| client(&ports, &receive)))
            .collect();
        let begun = Instant::now();
        for edge in 0..drawn.layout.edge {
            for (function, accesses) in functions.iter().zip(&drawn.accesses) {
                let send = send.clone();
                scope.spawn(move || {
                    let mut at = 0.0;
                    loop {
                        at += exponential(1.0 / function.rate);
                        if at > seconds {
                            return;
                        }
                        let due = begun + Duration::from_secs_f64(at);
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        let request = Request {
                            edge,
                            function: function.name,
                            body: body(function, accesses),
                            due,
                        };
                        send.send(request).unwrap();
                    }
                });
            }
        }
        drop(send);
        let clients = clients.into_iter();
        clients.flat_map(|client| client.join().unwrap()).collect()
    })
}

fn exponential(mean: f64) -> f64 {
    -mean * (1.0 - fastrand::f64()).ln()
}

/// What an invocation does: reads some keys, and takes its time.
fn body(function: &Function, accesses: &[(usize, f64)]) -> String {
    let millis = (1000.0 * exponential(function.exec_seconds)).round();
    let mut body = format!("get-all-and-sleep {millis} {BUCKET}");
    for (key, probability) in accesses {
        if fastrand::f64() < *probability {
            body += &format!(" k{key}");
        }
    }
    body
}

/// How many invocations have reached their keys too late so far, on all nodes.
fn violations(nodes: &[Node], functions: &[Function]) -> u64 {
    let of = |node: &Node| -> u64 {
        let misses = functions.iter().map(|function| {
            let shown = node.get(&format!("/admin/functions/{}", function.name));
            shown.json()["slo"]["data_misses"].as_u64().unwrap()
        });
        misses.sum()
    };
    nodes.iter().map(of).sum()
}

/// Has nodes play it.
fn play(scale: &Scale, drawn: &Drawn, migration: Migration) -> Played {
    let functions = live::functions(&scale.settings(migration));
    let placement = match migration {
        Migration::None => "off",
        _ => "on",
    };
    let cluster = start(drawn, placement);
    let nodes = &cluster.nodes;
    store_keys(&cluster, drawn);
    for function in &functions {
        let manifest = format!(
            "[limits]\nmemory = \"{} MiB\"\n[workers]\nmax = 1000\n[slo]\nmax_data_access = \"{}ms\"\n",
            function.memory_mb,
            (1000.0 * scale.t_max) as u64,
        );
        nodes[0].deploy(function.name, "guest-faults", &manifest);
    }
    drive(&cluster, drawn, &functions, scale.warm_up);
    let before = violations(nodes, &functions);
    let responses = drive(&cluster, drawn, &functions, scale.measured);
    let violations = violations(nodes, &functions) - before;
    let store = format!("n{}", drawn.layout.nodes());
    let is_at_store = |response: &&Response| response.ran_at.as_ref() == Some(&store);
    assert!(
        responses.iter().find(is_at_store).is_none(),
        "it has no memory for workers"
    );
    let edge: Vec<String> = (1..=drawn.layout.edge).map(|at| format!("n{at}")).collect();
    let answered = responses
        .iter()
        .filter_map(|response| Some((response.took, response.ran_at.as_ref()?)));
    let on_edge = answered
        .clone()
        .filter(|(_, ran_at)| edge.contains(ran_at))
        .count();
    let mut took: Vec<Duration> = answered.map(|(took, _)| took).collect();
    took.sort_unstable();
    let share = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64();
    Played {
        completed: took.len() as u64,
        refused: (responses.len() - took.len()) as u64,
        violations,
        on_edge: on_edge as u64,
        p50: share(0.5),
        p95: share(0.95),
    }
}

/// In percent of those that were answered.
fn percent(part: u64, played: &Played) -> f64 {
    100.0 * part as f64 / played.completed.max(1) as f64
}

fn print(what: &str, played: &Played) {
    let offered = played.completed + played.refused;
    println!(
        "{what:<12} {:>7} answered, {:>5.1} % refused, {:>5.2} % SLO violations, {:>5.1} % at the edge, P50 {:>6.1} ms, P95 {:>7.1} ms",
        played.completed,
        100.0 * played.refused as f64 / offered.max(1) as f64,
        percent(played.violations, played),
        percent(played.on_edge, played),
        1000.0 * played.p50,
        1000.0 * played.p95,
    );
}

/// Plays it on nodes and in the simulator.
fn compare(scale: &Scale, migration: Migration, seed: u64) -> (Played, Played) {
    let settings = scale.settings(migration);
    let drawn = live::draw(&settings, seed).unwrap();
    let simulated = live::simulate(&settings, drawn.clone(), seed).unwrap();
    let live = play(scale, &drawn, migration);
    println!("{migration:?}, seed {seed}:");
    print("simulated", &simulated);
    print("live", &live);
    (simulated, live)
}

/// What comes of it is counted, and nothing is lost: here only for some seconds, on nodes that are not built for speed.
#[test]
fn the_workload_runs_on_nodes() {
    let scale = Scale {
        edge_nodes: 1,
        size_scale: 0.01,
        t_max: 0.05,
        warm_up: 8.0,
        measured: 5.0,
    };
    let (simulated, live) = compare(&scale, Migration::StateAware, 1);
    assert!(live.completed > 0, "{live:?}");
    assert!(live.violations <= live.completed, "{live:?}");
    // Nobody sleeps for less than was asked for.
    assert!(live.p50 > simulated.p50 / 2.0, "{live:?} {simulated:?}");
}

/// `FULMAR_SEEDS` names the draws.
#[test]
#[ignore = "long: minutes for each of several draws, on an idle machine, for release builds"]
fn the_simulator_predicts_what_nodes_do() {
    let scale = Scale {
        edge_nodes: 2,
        size_scale: 0.1,
        t_max: 0.05,
        warm_up: 30.0,
        measured: 120.0,
    };
    let seeds = std::env::var("FULMAR_SEEDS").unwrap_or("1 2 3".into());
    let mut wrong = Vec::new();
    for seed in seeds.split(' ').map(|seed| seed.parse().unwrap()) {
        for migration in [Migration::None, Migration::StateAware] {
            let (simulated, live) = compare(&scale, migration, seed);
            let violations = |played: &Played| percent(played.violations, played);
            let points = violations(&live) - violations(&simulated);
            let p50 = live.p50 / simulated.p50 - 1.0;
            println!("violations {points:+.2} points, P50 {:+.1} %", 100.0 * p50);
            if points.abs() > 3.0 || p50.abs() > 0.15 {
                wrong.push((seed, migration));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
