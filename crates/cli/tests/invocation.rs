//! Invoking functions: sessions, order, what is refused, what goes wrong in a function.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Connection, Node};

#[test]
fn sessions_count_apart_and_survive_a_restart() {
    let mut node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    assert_eq!(node.invoke("counter/a", "5"), "5");
    assert_eq!(node.invoke("counter/b", "1"), "1");
    assert_eq!(node.invoke("counter/a", "2"), "7");
    node.restart();
    assert_eq!(node.invoke("counter/a", "1"), "8");
    node.crash_and_restart();
    assert_eq!(node.invoke("counter/a", "1"), "9");
    assert_eq!(node.invoke("counter/b", "1"), "2");
}

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    let mut connection = Connection::open(node.port);
    let request = b"POST /fn/counter/a HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\n\r\n1";
    connection.send(&request.repeat(50)).unwrap();
    for expected in 1..=50 {
        assert_eq!(
            connection.read_reply(false).unwrap().text(),
            expected.to_string()
        );
    }
}

#[test]
fn sixteen_clients_on_one_session_lose_nothing() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut connection = Connection::open(node.port);
                let mut last = 0;
                for _ in 0..100 {
                    let sum: u64 = connection
                        .request("POST", "/fn/counter/hot", &[], b"1")
                        .unwrap()
                        .text()
                        .parse()
                        .unwrap();
                    assert!(sum > last, "{sum} after {last}");
                    last = sum;
                }
            });
        }
    });
    assert_eq!(node.invoke("counter/hot", "0"), "1600");
}

#[test]
fn odd_session_names_work_and_bad_ones_are_named() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "");
    for odd in [
        "line%203",
        "%2e%2e",
        "a%2Fb",
        "%C3%A4",
        "%F0%9F%90%A6",
        "x%3Fy%26z",
    ] {
        assert_eq!(node.invoke(&format!("counter/{odd}"), "1"), "1", "{odd}");
    }
    let longest = "x".repeat(512);
    assert_eq!(node.invoke(&format!("counter/{longest}"), "1"), "1");
    for bad in [
        "%00",
        "%ff",
        "a%0Ab",
        &"x".repeat(513),
        &"x".repeat(10 << 10),
    ] {
        node.invoke_fails(&format!("counter/{bad}"), "1", 400, "session-name-invalid");
    }
    assert_eq!(node.invoke("counter/x", "1"), "1");
}

#[test]
fn what_cannot_be_invoked_is_refused_with_a_reason() {
    let node = Node::start(&[]);
    node.deploy("counter", "counter", "[limits]\nmax_request = \"1KiB\"");
    node.invoke_fails("nobody/a", "1", 404, "function-not-found");
    node.request("GET", "/fn/counter/a", &[], b"")
        .expect_problem(405, "method-not-allowed");
    node.request("POST", "/fn/counter/a/b", &[], b"1")
        .expect_problem(404, "not-found");
    node.invoke_fails("counter/a", &"1".repeat(1025), 413, "body-too-large");
    node.get("/nowhere").expect_problem(404, "not-found");
    node.invoke_fails("counter/a", "one", 400, "rejected-by-function");
    let twice = [("idempotency-key", "a"), ("idempotency-key", "b")];
    node.request("POST", "/fn/counter/a", &twice, b"1")
        .expect_problem(400, "idempotency-key-invalid");
    // A chunked body has no length to check beforehand.
    let mut connection = Connection::open(node.port);
    connection
        .send(b"POST /fn/counter/a HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    connection
        .send(format!("800\r\n{}\r\n0\r\n\r\n", "1".repeat(2048)).as_bytes())
        .unwrap();
    connection
        .read_reply(false)
        .unwrap()
        .expect_problem(413, "body-too-large");
    assert_eq!(
        node.invoke("counter/a", "1"),
        "1",
        "and the function did not run before"
    );
}

#[test]
fn a_function_that_goes_wrong_keeps_nothing_and_the_next_invocation_works() {
    let node = Node::start(&[]);
    node.deploy(
        "faults",
        "guest-faults",
        "[limits]\ntimeout = \"500ms\"\nmemory = \"16MiB\"\nmax_response = \"64KiB\"",
    );
    node.invoke("faults/s", "set key before");
    for (input, status, code) in [
        ("trap", 500, "function-trap"),
        ("loop", 504, "function-timeout"),
        ("sleep 60000", 504, "function-timeout"),
        ("memory", 500, "memory-limit"),
        ("stack", 500, "stack-overflow"),
        ("fail on purpose", 500, "function-failed"),
        ("reject it", 400, "rejected-by-function"),
        ("reply 65537", 500, "response-too-large"),
        ("set-then-fail key after", 500, "function-failed"),
        ("set-then-trap key after", 500, "function-trap"),
        ("set-then-spin key after", 504, "function-timeout"),
    ] {
        node.invoke_fails("faults/s", input, status, code);
        assert_eq!(
            node.invoke("faults/s", "get key"),
            "before",
            "after {input}"
        );
    }
    // Typed state that a failed invocation changed is not remembered either.
    assert_eq!(node.invoke("faults/s", "count 1"), "1");
    node.invoke_fails("faults/s", "count-then-fail 5", 500, "function-failed");
    assert_eq!(node.invoke("faults/s", "count 1"), "2");
    // Without a session: the same.
    node.invoke_fails("faults", "trap", 500, "function-trap");
    assert_eq!(node.invoke("faults", "echo hello"), "hello");
    node.invoke_fails("faults", "get key", 500, "function-failed");
}

#[test]
fn a_busy_function_does_not_hold_up_others() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    node.deploy("counter", "counter", "");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let node = &node;
            scope.spawn(move || node.invoke(&format!("faults/busy-{n}"), "spin 700"));
        }
        let mut connection = Connection::open(node.port);
        for expected in 1..=50 {
            let reply = connection
                .request("POST", "/fn/counter/quick", &[], b"1")
                .unwrap();
            assert_eq!(reply.text(), expected.to_string());
        }
    });
}

#[test]
fn functions_have_no_authority_that_was_not_granted() {
    let node = Node::start_with(&[], &[("FULMAR_TEST_SECRET", "secret")]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    node.deploy("faults", "guest-faults", "");
    assert_eq!(node.invoke("faults", "env"), "");
    for path in ["/", ".", "/etc"] {
        assert!(
            node.invoke("faults", &format!("files {path}"))
                .starts_with("refused"),
            "{path}"
        );
    }
    let own = format!("connect 127.0.0.1:{}", node.port);
    assert!(node.invoke("faults", &own).starts_with("refused"));
    let host = folder.path().display();
    let granted = format!(
        "[env]\nA = \"1\"\n[config]\nk = \"v\"\n[grants]\nfiles = [{{ host = \"{host}\", guest = \"/maps\", mode = \"ro\" }}]"
    );
    node.deploy("granted", "guest-faults", &granted);
    assert_eq!(node.invoke("granted", "env"), "A=1");
    assert_eq!(node.invoke("granted", "config k"), "v");
    assert_eq!(node.invoke("granted", "files /maps"), "sees 1 entries");
}

#[test]
fn functions_know_their_invocation_and_their_lines_are_kept() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "read_only_methods = [\"GET\"]");
    let key = [("idempotency-key", "k-1")];
    let reply = node.request("POST", "/fn/faults/line%203", &key, b"context");
    let context = reply.json();
    assert_eq!(context["function"], "faults");
    assert_eq!(context["session"], "line 3");
    assert_eq!(context["idempotency_key"], "k-1");
    assert_eq!(context["attempt"], 1);
    assert_eq!(context["read_only"], false);
    assert_eq!(context["id"].as_str(), reply.header("fulmar-invocation"));
    node.invoke("faults/s", "log to the log");
    let lines = node.get("/admin/logs/faults").text();
    assert!(
        lines.contains("\"message\":\"to the log\"")
            && lines.contains("standard output: to the log"),
        "{lines}"
    );
    // Of one session: its own last lines, also when others have written since.
    node.invoke("faults/a%26b", "log of another session");
    for _ in 0..5 {
        node.invoke("faults/s", "log again");
    }
    let lines = node.get("/admin/logs/faults?session=a%26b&tail=1").text();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains("of another session"), "{lines}");
    // Declared read-only: may read, may not write.
    node.invoke("faults/s", "set key value");
    let read = node.request("GET", "/fn/faults/s", &[], b"get key");
    assert_eq!((read.status, read.text().as_str()), (200, "value"));
    let wrote = node.request("GET", "/fn/faults/s", &[], b"set key other");
    assert_eq!(wrote.status, 500, "{}", wrote.text());
    assert_eq!(node.invoke("faults/s", "get key"), "value");
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "[queue]\nmax = 2");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|_| scope.spawn(|| node.request("POST", "/fn/faults/one", &[], b"spin 300")))
            .collect();
        let replies: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect();
        let refused: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
        assert!(
            !refused.is_empty() && refused.len() < 12,
            "{} of 12 refused",
            refused.len()
        );
        for reply in refused {
            reply.expect_problem(429, "queue-full");
            assert_eq!(reply.header("retry-after"), Some("1"));
        }
    });
}
