//! Invocations of one session that are committed together: each has what it would have on its own, once.

#![allow(clippy::unwrap_used)]

mod common;
mod program;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use common::servers::Server;
use common::{Connection, Node, Reply};
use program::Folder;

/// Eight that come at the same time, and never so late that it would matter.
const EIGHT: &str = "[batch]\nmax = 8\nmax_wait = \"10s\"\n";
/// What comes at the same time, and may as well come later.
const SOME: &str = "[batch]\nmax = 8\nmax_wait = \"200ms\"\n";

/// One request from each of several clients, all at once; answers in the order of the requests.
fn at_once(node: &Node, path: &str, requests: &[(&str, Option<&str>)]) -> Vec<Reply> {
    let ready = Barrier::new(requests.len());
    std::thread::scope(|scope| {
        let clients = requests.iter().map(|&(body, key)| {
            let (ready, port) = (&ready, node.port);
            scope.spawn(move || {
                let mut connection = Connection::open(port);
                ready.wait();
                let headers: Vec<_> = key
                    .map(|key| ("idempotency-key", key))
                    .into_iter()
                    .collect();
                let path = format!("/fn/{path}");
                connection
                    .request("POST", &path, &headers, body.as_bytes())
                    .unwrap()
            })
        });
        let clients: Vec<_> = clients.collect();
        let replies = clients.into_iter().map(|client| client.join().unwrap());
        replies.collect()
    })
}

fn texts(replies: &[Reply]) -> Vec<String> {
    let mut texts: Vec<String> = replies.iter().map(Reply::text).collect();
    texts.sort();
    texts
}

/// Batches that were committed, and invocations in them.
fn batches(node: &Node) -> (String, String) {
    let metric = |name: &str| node.metric(&format!("fulmar_invocation_batch_size_{name}"));
    (metric("count"), metric("sum"))
}

/// What has to be so wherever the state is. Deployed with a manifest is the function `counts`: it adds what it gets.
fn together(node: &mut Node, deploy: impl Fn(&Node, &str)) {
    deploy(node, EIGHT);
    let replies = at_once(node, "counts/s", &[("1", None); 8]);
    let expected: Vec<String> = (1..=8).map(|n| n.to_string()).collect();
    assert_eq!(texts(&replies), expected, "each sees those before it");
    assert_eq!(batches(node), ("1".into(), "8".into()));
    // The same key twice: the second waits for the next batch, and gets the first one's answer.
    deploy(node, SOME);
    let keyed: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "g", "h"]
        .map(|key| ("10", Some(key)))
        .into();
    let replies = at_once(node, "counts/s", &keyed);
    assert_eq!(replies[6].text(), replies[7].text());
    let is_replayed = |reply: &&Reply| reply.header("idempotency-replayed") == Some("true");
    assert_eq!(replies.iter().filter(is_replayed).count(), 1);
    node.crash_and_restart();
    assert_eq!(node.invoke("counts/s", "0"), "88");
    let again = node.request("POST", "/fn/counts/s", &[("idempotency-key", "b")], b"10");
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
}

#[test]
fn what_waits_is_committed_together() {
    let mut node = Node::start(&[]);
    together(&mut node, |node, manifest| {
        node.deploy("counts", "counter", manifest);
    });
}

fn together_in(store: &str) {
    let mut node = Node::start(&["--external", store]);
    together(&mut node, |node, manifest| {
        let manifest = format!("execution_model = \"external\"\n{manifest}");
        node.deploy("counts", "counter", &manifest);
    });
}

#[test]
fn in_redis_too() {
    together_in(Server::redis().url());
}

#[test]
fn in_postgres_too() {
    together_in(Server::postgres().url());
}

#[test]
fn in_a_folder_too() {
    let folder = tempfile::tempdir().unwrap();
    together_in(folder.path().to_str().unwrap());
}

#[test]
fn by_a_program_too() {
    let mut node = Node::start(&[]);
    let folder = Folder::handler(
        "count = int(ctx.state.get('count', b'0')) + int(request.body)
ctx.state['count'] = str(count).encode()
return str(count)",
    );
    let path = folder.0.path().join("fulmar.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("\"it\"", "\"counts\"");
    together(&mut node, |node, manifest| {
        std::fs::write(&path, format!("{text}{manifest}")).unwrap();
        folder.deploy(node);
    });
}

#[test]
fn who_fails_fails_alone() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", EIGHT);
    let requests = [
        "count 1",
        "count-then-fail 100",
        "count 1",
        "set-then-trap k v",
        "count 1",
        "reject it",
        "count 1",
        "count 1",
    ];
    let replies = at_once(&node, "faults/s", &requests.map(|body| (body, None)));
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200, 500, 200, 500, 200, 400, 200, 200]);
    let counted = replies.iter().filter(|reply| reply.status == 200);
    let mut counted: Vec<String> = counted.map(Reply::text).collect();
    counted.sort();
    assert_eq!(counted, ["1", "2", "3", "4", "5"]);
    // Nobody comes to fill the batch.
    node.deploy("faults", "guest-faults", "[batch]\nmax = 8\n");
    assert_eq!(node.invoke("faults/s", "counted"), "5");
    assert_eq!(node.invoke("faults/s", "get k"), "absent");
}

#[test]
fn messages_come_in_batches() {
    let redis = Server::redis();
    for (arguments, model) in [
        (vec![], "auto"),
        (vec!["--external", redis.url()], "external"),
    ] {
        let node = Node::start(&arguments);
        let manifest = format!("execution_model = \"{model}\"\n[batch]\nmax = 64\n");
        node.deploy("faults", "guest-faults", &manifest);
        node.deploy("sends", "guest-faults", "");
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let mut connection = Connection::open(node.port);
                    for _ in 0..20 {
                        let body = b"send faults s 1 count 1";
                        let reply = connection.request("POST", "/fn/sends", &[], body).unwrap();
                        assert_eq!(reply.status, 200, "{}", reply.text());
                    }
                });
            }
        });
        node.eventually("all came", |node| {
            let counted = node.invoke("faults/s", "counted");
            assert!(counted.parse::<u64>().unwrap() <= 320, "{counted}");
            counted == "320"
        });
    }
}

#[test]
fn nothing_is_lost_or_doubled_when_the_node_is_killed() {
    let redis = Server::redis();
    for (arguments, model) in [
        (vec![], "auto"),
        (vec!["--external", redis.url()], "external"),
    ] {
        let mut node = Node::start(&arguments);
        let manifest = format!("execution_model = \"{model}\"\n[batch]\nmax = 64\n");
        node.deploy("counts", "counter", &manifest);
        let mut sent = 0;
        for round in 0..4 {
            let answered = AtomicU64::new(0);
            let unanswered: Vec<String> = std::thread::scope(|scope| {
                let clients = (0..16).map(|client| {
                    let (answered, port) = (&answered, node.port);
                    scope.spawn(move || {
                        let mut connection = Connection::open(port);
                        // Until the node is gone; its last key is then used again.
                        (0..).find_map(|n| {
                            let key = format!("{round}-{client}-{n}");
                            let headers = [("idempotency-key", key.as_str())];
                            let reply = connection.request("POST", "/fn/counts/s", &headers, b"1");
                            match reply {
                                Ok(reply) if reply.status == 200 => {
                                    answered.fetch_add(1, Ordering::Relaxed);
                                    None
                                }
                                _ => Some(key),
                            }
                        })
                    })
                });
                let clients: Vec<_> = clients.collect();
                while answered.load(Ordering::Relaxed) < 300 {
                    std::thread::yield_now();
                }
                node.crash();
                let clients = clients.into_iter();
                clients
                    .map(|client| client.join().unwrap().unwrap())
                    .collect()
            });
            node.start_again();
            for key in &unanswered {
                let headers = [("idempotency-key", key.as_str())];
                let reply = node.request("POST", "/fn/counts/s", &headers, b"1");
                assert_eq!(reply.status, 200, "{}", reply.text());
            }
            sent += answered.into_inner() + unanswered.len() as u64;
            assert_eq!(node.invoke("counts/s", "0"), sent.to_string());
        }
    }
}
