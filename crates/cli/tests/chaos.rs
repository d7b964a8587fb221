//! Nodes that are killed, paused, cut off from each other, in one direction or both, and asked to move sessions, at
//! random and under load: every increment is counted once, the answers are those of one counter, and the message that each
//! increment sends is delivered once.
//!
//! `FULMAR_CHAOS_SECONDS=1800 cargo test -p fulmar-cli --test chaos` is the long form, of which `cargo xtask long`
//! takes care; `FULMAR_CHAOS_SEED` repeats a run's choices.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../node/tests/common/counter.rs"]
mod counter;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Connection;
use common::cluster::Cluster;
use common::etcd::Etcd;
use common::servers::Server;
use counter::{Answered, Choices, check};

const SESSIONS: usize = 6;
const CLIENTS: usize = 6;

/// Increments until told to stop, each under a key of its own, until it is answered; and looks now and then.
fn client(at: usize, ports: &[u16], shares: bool, done: &AtomicBool) -> Vec<Answered> {
    let mut choices = Choices(at as u64);
    let mut answered = Vec::new();
    let mut connection: Option<Connection> = None;
    while !done.load(Ordering::Relaxed) {
        let session = choices.below(SESSIONS);
        let key = format!("{at}-{}", answered.len());
        let path = format!("/fn/counter/s{session}");
        if choices.below(4) == 0 {
            let port = ports[choices.below(ports.len())];
            answered.extend(look(session, port, &path));
        }
        let body = match shares {
            false => format!("count-and-pass receiver r{session}"),
            true => format!(
                "count-share-and-pass receiver r{session} b {}",
                shared(session)
            ),
        };
        let asked = Instant::now();
        let mut said = String::new();
        let value = loop {
            assert!(
                asked.elapsed() < common::PATIENCE,
                "no answer for {path} {key}: {said}"
            );
            let port = ports[choices.below(ports.len())];
            let reply = match connection
                .take()
                .map_or_else(|| Connection::try_open(port), Some)
            {
                None => Err(std::io::ErrorKind::ConnectionRefused.into()),
                Some(mut open) => {
                    let headers = [("idempotency-key", key.as_str())];
                    let reply = open.request("POST", &path, &headers, body.as_bytes());
                    connection = reply.is_ok().then_some(open);
                    reply
                }
            };
            match reply {
                Ok(reply) if reply.status == 200 => break reply.text().parse().unwrap(),
                // Not now, or nobody knows: the key makes it safe to ask again.
                Ok(reply) if reply.status >= 500 => {
                    connection = None;
                    said = format!("{port}: {}", reply.text());
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(reply) => panic!("{}", reply.text()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        answered.push(Answered {
            session,
            is_look: false,
            asked,
            answered: Instant::now(),
            value,
        });
    }
    answered
}

/// The shared key that counts with a session.
fn shared(session: usize) -> String {
    format!("k{}", session % 2)
}

/// What a counter is at, if that can be found out now.
fn look(session: usize, port: u16, path: &str) -> Option<Answered> {
    let asked = Instant::now();
    let reply = Connection::try_open(port)?.request("GET", path, &[], b"counted");
    let reply = reply.ok().filter(|reply| reply.status == 200)?;
    Some(Answered {
        session,
        is_look: true,
        asked,
        answered: Instant::now(),
        value: reply.text().parse().unwrap(),
    })
}

/// Gives two paths each other's content, at once.
fn exchange(one: &Path, other: &Path) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

/// A while, now and then for so long that others take over.
fn away(choices: &mut Choices, longest_ms: usize, is_taken_over: bool) {
    let long = is_taken_over && choices.below(2) == 0;
    let ms = choices.below(longest_ms) + if long { 5000 } else { 0 };
    std::thread::sleep(Duration::from_millis(ms as u64));
}

/// Waits until a receiver has got so many messages, for as long as more arrive; never more than that.
fn all_arrive(cluster: &Cluster, session: usize, count: usize) {
    let path = format!("/fn/receiver/r{session}");
    let (mut most, mut said, mut since) = (0, String::new(), Instant::now());
    while most < count {
        let reply = cluster.nodes[0].request("POST", &path, &[], b"count 0");
        if reply.status == 200 {
            let arrived = reply.text().parse().unwrap();
            assert!(
                arrived <= count,
                "session {session}: {arrived} of {count} messages"
            );
            if arrived > most {
                (most, since) = (arrived, Instant::now());
            }
        }
        said = reply.text();
        if since.elapsed() > common::PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if most < count {
        for node in &cluster.nodes {
            let pending = node.metric("fulmar_messages_pending");
            let parked = node.get("/admin/dead-letters").text();
            eprintln!("{}: {pending} messages wait, parked: {parked}", node.port);
        }
        panic!("session {session}: {most} of {count} messages, {said}");
    }
}

/// Where what the nodes need is.
#[derive(Default)]
struct Around<'a> {
    /// Instead of an embedded registry. One of its members dies half-way.
    etcd: Option<Etcd>,
    /// It is gone now and then, and nodes are gone for so long that others take over.
    objects: Option<&'a Path>,
    /// It is killed now and then.
    external: Option<Server>,
    /// Shared keys count with the sessions.
    shares: bool,
}

/// Makes trouble for nodes whose counters have one execution model, and those that hear of what they count another.
fn chaos(model: &str, receiver: &str, around: Around) {
    let Around {
        mut etcd,
        objects,
        mut external,
        shares,
    } = around;
    // A takeover takes some seconds.
    let short = if objects.is_some() { 20 } else { 8 };
    let seconds = std::env::var("FULMAR_CHAOS_SECONDS").map_or(short, |text| text.parse().unwrap());
    let seed = std::env::var("FULMAR_CHAOS_SEED").map_or(11, |text| text.parse().unwrap());
    eprintln!("FULMAR_CHAOS_SEED={seed} FULMAR_CHAOS_SECONDS={seconds} {model}");
    let mut choices = Choices(seed);
    let mut cluster = match (&etcd, objects, &external) {
        (Some(etcd), _, _) => {
            let mut stores = String::new();
            if let Some(objects) = objects {
                stores += &format!("[store]\nurl = {objects:?}\n");
            }
            if let Some(external) = &external {
                stores += &format!("[external]\nurl = {:?}\n", external.url());
            }
            Cluster::with_etcd_and(3, &etcd.endpoints(), &stores)
        }
        // Sessions move by themselves as well.
        (None, _, None) => Cluster::following(3, "on"),
        (None, _, Some(external)) => Cluster::with_links_and_external(3, external.url()),
    };
    let changes_models = [model, receiver].contains(&"auto");
    for (function, model) in [("counter", model), ("receiver", receiver)] {
        let mut manifest =
            format!("execution_model = \"{model}\"\nread_only_methods = [\"GET\"]\n");
        if objects.is_some() {
            manifest += "durability = \"replicated\"\non_partition = \"takeover-after 1s\"\n";
        }
        cluster.nodes[0].deploy(function, "guest-faults", &manifest);
    }
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
    let done = AtomicBool::new(false);
    let mut survivors = None;
    let (mut kills, mut pauses, mut cuts, mut moves, mut outages) = (0, 0, 0, 0, 0);
    let mut changes = 0;
    let answers: Vec<Answered> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|at| {
                let (ports, done) = (&ports, &done);
                scope.spawn(move || client(at, ports, shares, done))
            })
            .collect();
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            if until.duration_since(Instant::now()) < Duration::from_secs(seconds) / 2
                && let Some(mut members) = etcd.take()
            {
                members.kill(choices.below(3));
                survivors = Some(members);
            }
            let node = choices.below(3);
            match choices.below(8) {
                0 => {
                    cluster.nodes[node].crash();
                    away(&mut choices, 300, objects.is_some());
                    cluster.nodes[node].start_again();
                    kills += 1;
                }
                1 => {
                    cluster.nodes[node].signal("-STOP");
                    away(&mut choices, 400, objects.is_some());
                    cluster.nodes[node].signal("-CONT");
                    pauses += 1;
                }
                2 => {
                    let other = (node + 1 + choices.below(2)) % 3;
                    let ways = [(true, true), (true, false), (false, true)];
                    let (cut_out, cut_in) = ways[choices.below(3)];
                    let cut = serde_json::json!({ "cut_out": cut_out, "cut_in": cut_in });
                    cluster.link(node, other, &cut);
                    if cut_out && cut_in {
                        cluster.link(other, node, &cut);
                    }
                    // Now and then for longer than a silent connection lives.
                    let longest = if choices.below(6) == 0 { 7000 } else { 600 };
                    std::thread::sleep(Duration::from_millis(choices.below(longest) as u64));
                    cluster.link(node, other, &serde_json::json!({}));
                    cluster.link(other, node, &serde_json::json!({}));
                    cuts += 1;
                }
                3 if let Some(objects) = objects => {
                    // A file where the folder was: every request fails.
                    let aside = objects.with_extension("aside");
                    std::fs::write(&aside, "not a folder").unwrap();
                    exchange(objects, &aside);
                    away(&mut choices, 500, false);
                    exchange(objects, &aside);
                    outages += 1;
                }
                3 if let Some(external) = &mut external => {
                    external.kill();
                    away(&mut choices, 300, false);
                    external.restart();
                    outages += 1;
                }
                _ => {
                    let (function, session) =
                        [("counter", "s"), ("receiver", "r")][choices.below(2)];
                    let session = format!("{session}{}", choices.below(SESSIONS));
                    let (function, session) = match shares && choices.below(2) == 0 {
                        true => ("-shared", format!("b/{}", shared(choices.below(SESSIONS)))),
                        false => (function, session),
                    };
                    let mut connection = Connection::open(cluster.nodes[node].port);
                    if changes_models && choices.below(2) == 0 {
                        let models = ["external", "in-edge", "auto"];
                        let wanted =
                            serde_json::json!({ "execution_model": models[choices.below(3)] });
                        let path = format!("/admin/sessions/{function}/{session}");
                        let body = wanted.to_string();
                        let asked = connection.request("PATCH", &path, &[], body.as_bytes());
                        changes += u32::from(asked.is_ok_and(|reply| {
                            reply.status == 200 && reply.json()["changed"] == true
                        }));
                        continue;
                    }
                    let to = format!("n{}", choices.below(3) + 1);
                    let wanted = serde_json::json!({
                        "function": function, "session": session, "to": to,
                    });
                    let body = wanted.to_string();
                    let asked =
                        connection.request("POST", "/admin/migrations", &[], body.as_bytes());
                    moves += u32::from(asked.is_ok_and(|reply| reply.status == 200));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    let looks = answers.iter().filter(|answer| answer.is_look).count();
    eprintln!(
        "{} increments, {looks} looks, {kills} kills, {pauses} pauses, {cuts} cuts, {moves} moves, {changes} changes of the model, {outages} outages of a store",
        answers.len() - looks
    );
    let happened = moves > 0 || (objects.is_some() && kills + pauses > 0);
    assert!(answers.len() > 100 && happened, "too little happened");
    for session in 0..SESSIONS {
        check(session, &answers);
        let count = answers
            .iter()
            .filter(|answer| answer.session == session && !answer.is_look)
            .count();
        cluster.nodes[0].eventually("the session answers", |node| {
            let reply = node.request("POST", &format!("/fn/counter/s{session}"), &[], b"count 0");
            reply.status == 200 && reply.text() == count.to_string()
        });
        all_arrive(&cluster, session, count);
    }
    for key in (0..SESSIONS).map(shared).filter(|_| shares) {
        let increments = answers.iter().filter(|answer| !answer.is_look);
        let of_key = increments.filter(|answer| shared(answer.session) == key);
        let path = format!("/admin/state/shared/b/key/{key}");
        assert_eq!(
            cluster.nodes[0].get(&path).text(),
            of_key.count().to_string()
        );
    }
    drop(survivors);
}

#[test]
fn in_function_every_increment_counts_once_whatever_happens_to_the_nodes() {
    chaos("in-function", "in-function", Around::default());
}

#[test]
fn in_edge_every_increment_counts_once_whatever_happens_to_the_nodes() {
    chaos("in-edge", "in-edge", Around::default());
}

#[test]
fn shared_keys_count_with_the_sessions_whatever_happens_to_the_nodes() {
    let around = Around {
        shares: true,
        ..Around::default()
    };
    chaos("in-function", "in-function", around);
}

#[test]
fn with_etcd_every_increment_counts_once_also_when_a_member_dies() {
    let etcd = Some(Etcd::start(3));
    let around = Around {
        etcd,
        ..Around::default()
    };
    chaos("in-function", "in-edge", around);
}

#[test]
fn in_an_external_store_every_increment_counts_once_also_when_it_dies() {
    for (model, receiver) in [("external", "in-function"), ("in-function", "external")] {
        let external = Some(Server::redis());
        let around = Around {
            external,
            ..Around::default()
        };
        chaos(model, receiver, around);
    }
}

/// Sessions that go to the external store and come back all the time.
#[test]
fn whatever_the_models_every_increment_counts_once() {
    let external = Some(Server::redis());
    let around = Around {
        external,
        ..Around::default()
    };
    chaos("auto", "auto", around);
}

#[test]
fn with_an_object_store_whatever_the_models_every_increment_counts_once() {
    with_an_object_store("auto", "auto", Some(Server::redis()));
}

fn with_an_object_store(model: &str, receiver: &str, external: Option<Server>) {
    let folder = tempfile::tempdir().unwrap();
    let objects = folder.path().join("objects");
    let around = Around {
        etcd: Some(Etcd::start(3)),
        objects: Some(&objects),
        external,
        shares: false,
    };
    chaos(model, receiver, around);
}

#[test]
fn with_an_object_store_every_increment_counts_once_whoever_takes_over() {
    with_an_object_store("in-function", "in-function", None);
}

#[test]
fn with_an_object_store_lent_state_counts_once_whoever_takes_over() {
    with_an_object_store("in-edge", "in-edge", None);
}
