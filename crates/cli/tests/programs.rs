//! Functions that are programs: deployed, invoked, ended, on one node and on two.

#![allow(clippy::unwrap_used)]

mod common;
mod program;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::cluster::Cluster;
use common::{Connection, Node, faketime, fulmar, sha256};
use program::Folder;

#[test]
fn a_program_counts_and_its_state_outlives_the_node() {
    let mut node = Node::start(&[]);
    Folder::example().deploy(&node);
    for count in 1..=3 {
        assert_eq!(node.invoke("process-counter/a", "1"), count.to_string());
    }
    assert_eq!(node.invoke("process-counter/b", "10"), "10");
    let key = [("idempotency-key", "k")];
    let first = node.request("POST", "/fn/process-counter/a", &key, b"5");
    assert_eq!(first.text(), "8");
    node.crash_and_restart();
    let again = node.request("POST", "/fn/process-counter/a", &key, b"5");
    assert_eq!(
        (again.text().as_str(), again.header("idempotency-replayed")),
        ("8", Some("true"))
    );
    assert_eq!(node.invoke("process-counter/a", "1"), "9");
    assert_eq!(node.invoke("process-counter/b", "1"), "11");
    // What an operator writes is seen by a worker that remembers something else.
    let written = node.request(
        "PUT",
        "/admin/state/session/process-counter/a/key/count",
        &[],
        b"100",
    );
    assert!(written.status < 300, "{}", written.text());
    assert_eq!(node.invoke("process-counter/a", "1"), "101");
}

#[test]
fn the_sdk_of_python_keeps_what_it_says() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/python");
    let ran = std::process::Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-s", "tests"])
        .current_dir(sdk)
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

#[test]
fn messages_shared_keys_and_failures_are_those_of_any_function() {
    let node = Node::start(&[]);
    let body = "word, _, rest = request.body.decode().partition(' ')
if word == 'send':
    ctx.send('process-counter', b'2', session=rest)
    ctx.state['sent'] = rest.encode()
    return ctx.shared('all').increment('sent').__str__()
if word == 'fail':
    ctx.send('process-counter', b'1000', session=rest)
    ctx.state['sent'] = b'never'
    raise ValueError('as told')
if word == 'exit':
    os._exit(3)
if word == 'swap':
    swapped = ctx.shared('all').compare_and_swap('sent', b'2', b'7')
    return str(swapped) + ' ' + ctx.shared('all').get('sent').decode() + ' ' + ','.join(ctx.shared('all').keys())
print('asked for', word, flush=True)
return ' '.join([ctx.state.get('sent', b'nothing').decode(), ctx.session, ','.join(ctx.state)])";
    Folder::example().deploy(&node);
    Folder::handler(body).deploy(&node);
    assert_eq!(node.invoke("it/s", "send r"), "1");
    assert_eq!(node.invoke("it/s", "send r"), "2");
    assert_eq!(node.invoke("it/s", "swap"), "True 7 sent");
    for (body, code) in [("fail r", 500), ("exit", 500)] {
        let failed = node.request("POST", "/fn/it/s", &[], body.as_bytes());
        assert_eq!(failed.status, code, "{}", failed.text());
    }
    assert_eq!(node.invoke("it/s", "look"), "r s sent");
    node.eventually("both messages arrived, and no other", |node| {
        node.invoke("process-counter/r", "0") == "4"
    });
    let logs = fulmar(&node, &["logs", "it"]).unwrap();
    assert!(
        logs.contains("asked for look") && logs.contains("ValueError: as told"),
        "{logs}"
    );
}

#[test]
fn many_sessions_share_few_programs() {
    let node = Node::start(&[]);
    let body = "n = int(ctx.state.get('n', b'0')) + 1
ctx.state['n'] = str(n).encode()
if request.body:
    raise ValueError('as told')
return str(n) + ' ' + str(os.getpid())";
    let folder = Folder::handler(body);
    let manifest = folder.0.path().join("fulmar.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, format!("{text}[workers]\nmax = 2\n")).unwrap();
    folder.deploy(&node);
    let mut programs = BTreeSet::new();
    // More sessions than a program remembers.
    for round in 1..=3 {
        std::thread::scope(|scope| {
            let clients = (0..4).map(|client| {
                let port = node.port;
                scope.spawn(move || {
                    let mut connection = Connection::open(port);
                    let told = (0..150).map(|session| {
                        let path = format!("/fn/it/s-{client}-{session}");
                        if session % 50 == 0 {
                            let failed = connection.request("POST", &path, &[], b"fail").unwrap();
                            assert_eq!(failed.status, 500, "{}", failed.text());
                        }
                        let reply = connection.request("POST", &path, &[], b"").unwrap();
                        let text = reply.text();
                        let (count, program) = text.split_once(' ').unwrap();
                        assert_eq!(count, round.to_string(), "{path}");
                        program.to_owned()
                    });
                    told.collect::<Vec<_>>()
                })
            });
            for client in clients.collect::<Vec<_>>() {
                programs.extend(client.join().unwrap());
            }
        });
    }
    assert!(programs.len() <= 2, "{programs:?}");
}

/// Processes with a word in their environment.
fn with_environment(word: &str) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.map(|process| process.path());
    processes
        .filter(|process| {
            let environment = std::fs::read(process.join("environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(word)
        })
        .collect()
}

#[test]
fn nothing_is_left_of_programs_when_the_node_is_killed() {
    let mut node = Node::start(&[]);
    let body = "import subprocess
subprocess.Popen(['sleep', '1000'], start_new_session=True)
return os.environ['FULMAR_SOCKET']";
    Folder::handler(body).deploy(&node);
    let socket = PathBuf::from(node.invoke("it", ""));
    let run = socket.parent().unwrap().to_str().unwrap().to_owned();
    assert!(
        with_environment(&run).len() >= 2,
        "the program and what it started"
    );
    node.crash();
    node.start_again();
    node.eventually("they are ended", |_| with_environment(&run).is_empty());
    assert!(!Path::new(&run).exists());
    assert!(
        node.invoke("it", "").starts_with('/'),
        "and it starts again"
    );
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let node = Node::start(&[]);
    let program = "[process]\ncommand = [\"python3\", \"main.py\"]\n";
    let wasm = std::fs::read(common::guest("counter")).unwrap();
    node.try_deploy("counter", &wasm, program)
        .expect_problem(422, "artifact-invalid");
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let path = format!("/admin/artifacts/{}", sha256(&tar));
    let refused = node.request("PUT", &path, &[], &tar);
    refused.expect_problem(422, "artifact-invalid");
    let missing = Folder::handler("return b''");
    std::fs::write(
        missing.0.path().join("fulmar.toml"),
        "name = \"it\"\nartifact = \".\"\n[process]\ncommand = [\"no-such-program\"]\n",
    )
    .unwrap();
    missing.deploy(&node);
    let failed = node.request("POST", "/fn/it", &[], b"");
    assert!(
        failed.text().contains("no-such-program cannot be run"),
        "{}",
        failed.text()
    );
}

#[test]
fn what_crashes_runs_again_as_often_as_its_manifest_says() {
    let node = Node::start(&[]);
    let body = "ctx.state['n'] = str(ctx.attempt).encode()
ctx.send('process-counter', b'1', session='r')
if ctx.attempt < int(request.body):
    os._exit(3)
return str(ctx.attempt)";
    Folder::example().deploy(&node);
    let folder = Folder::handler(body);
    folder.add("[limits]\nattempts = 3\n");
    folder.deploy(&node);
    assert_eq!(node.invoke("it/s", "1"), "1");
    assert_eq!(node.invoke("it/s", "3"), "3");
    let failed = node.request("POST", "/fn/it/s", &[], b"4");
    failed.expect_problem(500, "function-trap");
    assert!(
        failed.text().contains("exited with status 3"),
        "{}",
        failed.text()
    );
    assert_eq!(node.invoke("it/s", "1"), "1");
    node.eventually("what was not kept was not sent", |node| {
        node.invoke("process-counter/r", "0") == "3"
    });
}

#[test]
fn whatever_crashes_again_and_again_has_to_wait() {
    let node = Node::start(&[]);
    Folder::handler("os._exit(3)").deploy(&node);
    let codes: Vec<u16> = (0..6)
        .map(|_| node.request("POST", "/fn/it", &[], b"").status)
        .collect();
    assert_eq!(codes, [500, 500, 500, 500, 500, 503]);
    let waits = node.request("POST", "/fn/it", &[], b"");
    waits.expect_problem(503, "crash-loop");
    assert!(
        waits.text().contains("exited with status 3"),
        "{}",
        waits.text()
    );
    assert!(waits.header("retry-after").is_some());
    node.eventually("the next try", |node| {
        node.request("POST", "/fn/it", &[], b"").status == 500
    });
    // Another version does not wait for what this one did.
    Folder::handler("return 'well'").deploy(&node);
    assert_eq!(node.invoke("it", ""), "well");
}

#[test]
fn what_asks_for_more_than_there_is_is_told() {
    let node = Node::start(&[]);
    let folder = Folder::handler("return 'x'");
    folder.add("[workers]\nreserved_cpu = \"1000cpu\"\n");
    folder.deploy(&node);
    let refused = node.request("POST", "/fn/it", &[], b"");
    refused.expect_problem(503, "no-room");
    assert!(
        refused.text().contains("1000cpu of CPU"),
        "{}",
        refused.text()
    );
    let bomb = Folder::handler("kept = b'x' * (300 << 20)\nreturn 'it had it'");
    bomb.deploy(&node);
    let failed = node.request("POST", "/fn/it", &[], b"");
    // Without cgroups it is refused the memory, and says so itself.
    match failed.text().contains("memory-limit") {
        true => failed.expect_problem(500, "memory-limit"),
        false => assert_eq!(failed.status, 500, "{}", failed.text()),
    }
}

#[test]
fn a_session_of_a_program_moves_between_nodes() {
    let cluster = Cluster::start(2);
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    Folder::example().deploy(n1);
    assert_eq!(n1.invoke("process-counter/a", "1"), "1");
    assert_eq!(n2.invoke("process-counter/a", "1"), "2");
    for (at, to) in ["n2", "n1", "n2"].into_iter().enumerate() {
        let wanted = serde_json::json!({ "function": "process-counter", "session": "a", "to": to });
        let body = wanted.to_string();
        let moved = n1.request("POST", "/admin/migrations", &[], body.as_bytes());
        assert!([200, 409].contains(&moved.status), "{}", moved.text());
        assert_eq!(n2.invoke("process-counter/a", "1"), (3 + at).to_string());
    }
}

#[test]
fn a_program_chooses_where_its_state_is_to_be() {
    let external = tempfile::tempdir().unwrap();
    let cluster = Cluster::with_external(2, external.path().to_str().unwrap());
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    let body = "n = int(ctx.state.get('n', b'0')) + 1
ctx.state['n'] = str(n).encode()
if request.body:
    try:
        ctx.choose_model(request.body.decode())
    except fulmar.StateError as error:
        return str(error.status) + ' ' + str(error)
return str(n)";
    let folder = Folder::handler(body);
    folder.deploy(n1);
    let becomes = |model: &str| {
        n1.eventually(model, |node| {
            let shown = node.request("GET", "/admin/sessions/it/a", &[], b"");
            shown
                .text()
                .contains(&format!("\"execution_model\":\"{model}\""))
        });
    };
    assert_eq!(n1.invoke("it/a", "external"), "1");
    becomes("external");
    assert_eq!(n2.invoke("it/a", ""), "2");
    assert_eq!(n2.invoke("it/a", "in-edge"), "3");
    becomes("in-edge");
    assert_eq!(n1.invoke("it/a", ""), "4");
    assert!(
        n1.invoke("it/a", "somewhere")
            .starts_with("400 the body is")
    );
    let fixed = Folder::handler(body);
    let manifest = fixed.0.path().join("fulmar.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let text = text.replace("\"it\"", "\"fixed\"\nexecution_model = \"in-function\"");
    std::fs::write(&manifest, text).unwrap();
    fixed.deploy(n1);
    assert!(
        n1.invoke("fixed/a", "external")
            .starts_with("409 the manifest says")
    );
}

#[test]
fn a_clock_that_jumps_forgets_nothing_and_stops_nothing() {
    let mut node = Node::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    node.stop();
    node.set_environment("LD_PRELOAD", &faketime());
    node.set_environment("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap());
    node.set_environment("FAKETIME_NO_CACHE", "1");
    node.set_environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    node.start_again();
    Folder::example().deploy(&node);
    node.deploy("counter", "counter", "");
    let functions = ["process-counter", "counter"];
    let with_key = |node: &Node, function: &str| {
        let key = [("idempotency-key", "k")];
        let path = format!("/fn/{function}/a");
        node.request("POST", &path, &key, b"1").text()
    };
    for function in functions {
        assert_eq!(with_key(&node, function), "1");
    }
    // Answers are kept for a day.
    for (count, jump) in [(2, "+50h"), (3, "-50h"), (4, "+0")] {
        std::fs::write(&clock, jump).unwrap();
        for function in functions {
            let path = format!("{function}/a");
            assert_eq!(node.invoke(&path, "1"), count.to_string(), "{jump}");
            assert_eq!(with_key(&node, function), "1", "{jump}");
            // A worker that has not known another time.
            assert_eq!(node.invoke(&format!("{function}/{jump}"), "1"), "1");
        }
    }
}
