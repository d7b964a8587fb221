//! How many workers a function has that are programs: as many as what comes needs, and no more.

#![allow(clippy::unwrap_used)]

mod common;
mod program;

use common::{Connection, Node};
use program::Folder;
use serde_json::Value;

/// What the node tells of the workers of the function `it`.
fn workers(node: &Node) -> Value {
    let shown = node.request("GET", "/admin/functions/it", &[], b"");
    let shown: Value = serde_json::from_str(&shown.text()).unwrap();
    shown["workers"].clone()
}

fn alive(node: &Node) -> u64 {
    workers(node)["alive"].as_u64().unwrap()
}

/// So many sessions at once, each so often; the most workers that were seen meanwhile.
fn at_once(node: &Node, sessions: usize, times: usize) -> u64 {
    let mut most = 0;
    std::thread::scope(|scope| {
        let clients = (0..sessions).map(|session| {
            let port = node.port;
            scope.spawn(move || {
                let mut connection = Connection::open(port);
                for _ in 0..times {
                    let path = format!("/fn/it/s-{session}");
                    let reply = connection.request("POST", &path, &[], b"").unwrap();
                    assert_eq!(reply.status, 200, "{}", reply.text());
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        while clients.iter().any(|client| !client.is_finished()) {
            most = most.max(alive(node));
        }
    });
    most
}

#[test]
fn workers_come_as_they_are_needed_and_go_again() {
    let node = Node::start(&[]);
    let folder = Folder::handler("return str(os.getpid())");
    folder.add("[workers]\nidle_ttl = \"200ms\"\n");
    folder.deploy(&node);
    assert_eq!(alive(&node), 0, "{}", workers(&node));
    let first = node.invoke("it/a", "");
    assert_eq!(
        node.invoke("it/b", ""),
        first,
        "one is enough for one at a time"
    );
    let told = workers(&node);
    assert_eq!(told["alive"], 1, "{told}");
    assert!(
        told["why"].as_str().unwrap().contains("as many as"),
        "{told}"
    );
    node.eventually("it goes when nobody needs it", |node| alive(node) == 0);
}

#[test]
fn some_are_always_there() {
    let node = Node::start(&[]);
    let folder = Folder::handler("os._exit(1) if request.body else None\nreturn str(os.getpid())");
    folder.add("[workers]\nmin = 2\nidle_ttl = \"50ms\"\n");
    folder.deploy(&node);
    node.eventually("before anybody comes", |node| alive(node) == 2);
    let failed = node.request("POST", "/fn/it", &[], b"x");
    assert_eq!(failed.status, 500);
    node.eventually("one takes the place of another", |node| {
        let told = workers(node);
        told["alive"] == 2 && told["idle"] == 2
    });
    assert!(workers(&node)["why"].as_str().is_some());
}

#[test]
fn those_that_are_always_there_outlive_a_burst() {
    let node = Node::start(&[]);
    let folder = Folder::handler("import time\ntime.sleep(0.05)\nreturn str(os.getpid())");
    folder.add("[workers]\nmin = 1\nmax = 8\nidle_ttl = \"200ms\"\n");
    folder.deploy(&node);
    node.eventually("one is there", |node| alive(node) == 1);
    assert!(at_once(&node, 16, 10) > 1);
    let last = node.invoke("it/last", "");
    node.eventually("only one stays", |node| {
        let alive = alive(node);
        assert!(alive >= 1, "{}", workers(node));
        alive == 1
    });
    assert_eq!(
        node.invoke("it/last", ""),
        last,
        "the one that was used last"
    );
}

#[test]
fn who_waits_for_something_else_gets_company() {
    let node = Node::start(&[]);
    // Waits, and computes nothing.
    let folder = Folder::handler("import time\ntime.sleep(0.2)\nreturn 'well'");
    folder.add("[workers]\nmax = 12\n");
    folder.deploy(&node);
    let most = at_once(&node, 24, 6);
    assert!((6..=12).contains(&most), "{most}: {}", workers(&node));
}

#[test]
fn more_than_the_cpus_can_use_do_not_come() {
    let node = Node::start(&[]);
    let folder = Folder::handler(
        "import time
until = time.process_time() + 0.02
while time.process_time() < until:
    pass
return 'well'",
    );
    folder.add("[queue]\nmax_wait = \"1m\"\n");
    folder.deploy(&node);
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    let most = at_once(&node, 32, 8);
    let told = workers(&node);
    // Of the first nobody knows what they compute.
    assert!(most <= 6 * cpus, "{most}: {told}");
}

#[test]
fn who_is_stuck_does_not_hold_up_others() {
    let node = Node::start(&[]);
    let folder = Folder::handler("import time\ntime.sleep(float(request.body))\nreturn 'well'");
    folder.deploy(&node);
    assert_eq!(node.invoke("it/a", "0"), "well");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let mut connection = Connection::open(node.port);
            connection
                .request("POST", "/fn/it/slow", &[], b"5")
                .unwrap()
        });
        node.eventually("it runs", |node| workers(node)["idle"] == 0);
        assert_eq!(node.invoke("it/b", "0"), "well");
        assert!(!slow.is_finished(), "it did not wait for it");
        assert_eq!(slow.join().unwrap().status, 200);
    });
}

#[test]
fn what_comes_is_refused_early_when_there_is_too_much_of_it() {
    let node = Node::start(&[]);
    let folder = Folder::handler(
        "import time
time.sleep(0.02)
if request.body:
    ctx.send('it', b'', session=request.body.decode())
ctx.state['n'] = str(int(ctx.state.get('n', b'0')) + 1).encode()
return ctx.state['n']",
    );
    folder.add("[workers]\nmax = 2\n");
    folder.deploy(&node);
    node.invoke("it/before", "");
    // Clients that come again at once, whatever they are told.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(3);
    let outcomes = std::thread::scope(|scope| {
        let clients = (0..40).map(|client| {
            let port = node.port;
            scope.spawn(move || {
                let mut connection = Connection::open(port);
                let (mut done, mut refused) = (0, 0);
                while std::time::Instant::now() < until {
                    let path = format!("/fn/it/s-{client}");
                    // The first of each sends a message as well: those are never refused.
                    let body: &[u8] = if done == 0 { b"sum" } else { b"" };
                    let reply = connection.request("POST", &path, &[], body).unwrap();
                    match reply.status {
                        200 => done += 1,
                        429 => {
                            reply.expect_problem(429, "overloaded");
                            assert!(reply.header("retry-after").is_some());
                            refused += 1;
                        }
                        other => panic!("{other}: {}", reply.text()),
                    }
                }
                (done, refused)
            })
        });
        let clients: Vec<_> = clients.collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect::<Vec<_>>()
    });
    let sum = |of: fn(&(u64, u64)) -> u64| outcomes.iter().map(of).sum::<u64>();
    let (done, refused) = (sum(|outcome| outcome.0), sum(|outcome| outcome.1));
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");
    let senders = outcomes.iter().filter(|outcome| outcome.0 > 0).count();
    node.eventually("every message arrived", |node| {
        let stored = node.request("GET", "/admin/state/session/it/sum/key/n", &[], b"");
        stored.text() == senders.to_string()
    });
    assert!(node.invoke("it/after", "") == "1", "it is over");
}

#[test]
fn components_refuse_early_as_well_when_there_is_too_much() {
    let node = Node::start(&[]);
    node.deploy("it", "guest-faults", "");
    node.deploy("other", "counter", "");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(3);
    let outcomes = std::thread::scope(|scope| {
        let clients = (0..40).map(|_| {
            let port = node.port;
            scope.spawn(move || {
                let mut connection = Connection::open(port);
                let (mut done, mut refused) = (0, 0);
                while std::time::Instant::now() < until {
                    let reply = connection
                        .request("POST", "/fn/it", &[], b"spin 20")
                        .unwrap();
                    match reply.status {
                        200 => done += 1,
                        429 => {
                            reply.expect_problem(429, "overloaded");
                            assert!(reply.header("retry-after").is_some());
                            refused += 1;
                        }
                        other => panic!("{other}: {}", reply.text()),
                    }
                    // Who computes little is not refused for what another function does.
                    let reply = connection.request("POST", "/fn/other/a", &[], b"1");
                    assert_eq!(reply.unwrap().status, 200);
                }
                (done, refused)
            })
        });
        let clients: Vec<_> = clients.collect();
        let clients = clients.into_iter().map(|client| client.join().unwrap());
        clients.collect::<Vec<_>>()
    });
    let sum = |of: fn(&(u64, u64)) -> u64| outcomes.iter().map(of).sum::<u64>();
    let (done, refused) = (sum(|outcome| outcome.0), sum(|outcome| outcome.1));
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");
    let counted = node.invoke("other/a", "0");
    assert_eq!(counted, (done + refused).to_string());
    let reply = node.request("POST", "/fn/it", &[], b"spin 20");
    assert_eq!(reply.status, 200, "it is over");
}

#[test]
fn components_have_no_more_workers_than_the_cpus_can_use() {
    let node = Node::start(&[]);
    node.deploy("it", "guest-faults", "[queue]\nmax_wait = \"30s\"\n");
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut connection = Connection::open(node.port);
                for _ in 0..4 {
                    let reply = connection.request("POST", "/fn/it", &[], b"spin 20");
                    assert_eq!(reply.unwrap().text(), "spun");
                }
            });
        }
    });
    let idle = |node: &Node| {
        let metrics = node.get("/metrics").text();
        let mut lines = metrics.lines();
        let told = lines.find_map(|line| line.strip_prefix("fulmar_workers_idle "));
        told.unwrap().parse::<usize>().unwrap()
    };
    node.eventually("they are counted", |node| idle(node) > 0);
    let cpus = std::thread::available_parallelism().unwrap().get();
    // Of the first nobody knows that they compute.
    assert!(idle(&node) <= 8 * cpus, "{}", idle(&node));
}

#[test]
fn functions_that_nobody_uses_are_not_in_memory() {
    let mut node = Node::start(&[]);
    let more = "[workers]\nidle_ttl = \"100ms\"\n";
    for name in ["one", "other"] {
        node.deploy(name, "counter", more);
    }
    let compiled = |node: &Node| {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", node.id()));
        maps.unwrap().matches(".cwasm").count()
    };
    assert_eq!(node.invoke("one/a", "1"), "1");
    assert!(compiled(&node) > 0);
    node.crash_and_restart();
    assert_eq!(compiled(&node), 0);
    assert_eq!(node.invoke("one/a", "1"), "2");
    assert!(compiled(&node) > 0);
    node.eventually("nobody uses it", |node| compiled(node) == 0);
    assert_eq!(node.invoke("one/a", "1"), "3");
}
