//! The data directory: in use, of a newer format, full, failing. And crashes under load.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Connection, Node};

/// Starts a node that is expected to refuse to.
fn start_and_end(data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(["dev", "--port", "0", "--data"])
        .arg(data)
        .output()
        .unwrap()
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let node = Node::start(&[]);
    let output = start_and_end(&node.data);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("in use by another fulmar"),
        "{error}"
    );
    assert!(
        error.contains(&node.id().to_string()),
        "names the process: {error}"
    );
}

#[test]
fn a_data_directory_of_a_newer_format_is_refused() {
    let mut node = Node::start(&[]);
    node.stop();
    std::fs::write(node.data.join("FORMAT"), "99\n").unwrap();
    let output = start_and_end(&node.data);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("format 99"),
        "{error}"
    );
}

#[test]
fn a_full_disk_refuses_before_anything_is_lost() {
    let node = Node::start(&["--reserve-disk", "1000000TiB"]);
    node.eventually("the node noticed", |node| node.get("/readyz").status == 507);
    node.get("/readyz").expect_problem(507, "storage-full");
    let wasm = std::fs::read(common::guest("counter")).unwrap();
    node.try_deploy("counter", &wasm, "")
        .expect_problem(507, "storage-full");
    assert_eq!(node.get("/healthz").status, 200, "it lives");
}

/// A library that makes fdatasync and fsync fail once the file named in FAIL_SYNC exists.
fn failing_sync_library(folder: &Path) -> PathBuf {
    let source = folder.join("fail.c");
    std::fs::write(
        &source,
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <errno.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
         static int fails(void) { const char *f = getenv(\"FAIL_SYNC\"); return f && access(f, F_OK) == 0; }\n\
         int fdatasync(int fd) { if (fails()) { errno = EIO; return -1; } return ((int (*)(int))dlsym(RTLD_NEXT, \"fdatasync\"))(fd); }\n\
         int fsync(int fd) { if (fails()) { errno = EIO; return -1; } return ((int (*)(int))dlsym(RTLD_NEXT, \"fsync\"))(fd); }\n",
    )
    .unwrap();
    let library = folder.join("fail.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .status()
        .unwrap();
    assert!(status.success());
    library
}

#[test]
fn a_failing_fsync_ends_acknowledging_and_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let library = failing_sync_library(folder.path());
    let trigger = folder.path().join("fail-now");
    let environment = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAIL_SYNC", trigger.to_str().unwrap()),
    ];
    let mut node = Node::start_with(&[], &environment);
    node.deploy("counter", "counter", "");
    assert_eq!(node.invoke("counter/a", "5"), "5");
    std::fs::write(&trigger, "").unwrap();
    node.invoke_fails("counter/a", "1", 503, "storage-failed");
    node.invoke_fails("counter/a", "1", 503, "storage-failed");
    node.get("/readyz").expect_problem(503, "storage-failed");
    // The disk is well again, but what the kernel dropped is unknown: only a restart may go on.
    std::fs::remove_file(&trigger).unwrap();
    node.invoke_fails("counter/a", "1", 503, "storage-failed");
    node.crash_and_restart();
    let sum: u64 = node.invoke("counter/a", "0").parse().unwrap();
    assert!(
        sum == 5 || sum == 6,
        "the one in doubt may have been stored: {sum}"
    );
}

#[test]
fn memory_durability_answers_without_the_disk_and_is_kept_by_a_clean_stop() {
    let mut node = Node::start(&[]);
    node.deploy("counter", "counter", "durability = \"memory\"");
    for expected in 1..=100 {
        assert_eq!(node.invoke("counter/a", "1"), expected.to_string());
    }
    node.restart();
    assert_eq!(node.invoke("counter/a", "1"), "101");
}

#[test]
fn hot_sessions_are_let_go_and_come_back() {
    let node = Node::start(&["--hot-memory", "1MiB"]);
    node.deploy("faults", "guest-faults", "");
    for n in 0..200 {
        node.invoke(&format!("faults/s{n}"), "record-padded 20000");
    }
    node.eventually("memory is within its budget", |node| {
        let metrics = node.get("/metrics").text();
        let hot = metrics
            .lines()
            .find_map(|line| line.strip_prefix("fulmar_sessions_hot_bytes "));
        hot.is_some_and(|bytes| bytes.parse::<u64>().unwrap() <= 1 << 20)
    });
    for n in 0..200 {
        assert_eq!(node.invoke(&format!("faults/s{n}"), "len"), "1");
    }
}

#[test]
fn a_session_larger_than_memory_works() {
    let mut node = Node::start(&["--hot-memory", "1MiB"]);
    node.deploy("faults", "guest-faults", "");
    for n in 1..=40 {
        assert_eq!(
            node.invoke("faults/large", "record-padded 500000"),
            n.to_string()
        );
    }
    node.crash_and_restart();
    assert_eq!(node.invoke("faults/large", "record-padded 500000"), "41");
    assert_eq!(node.invoke("faults/large", "len"), "41");
    let shown = node.get("/admin/sessions/faults/large").json();
    assert_eq!(shown["keys"], 42, "{shown}");
}

/// Clients count on sessions of their own and send each count on; the node is killed again and
/// again. Afterwards: nothing acknowledged is lost, nothing is there twice, messages neither.
fn soak(kills: usize) {
    const CLIENTS: usize = 8;
    let mut node = Node::start(&[]);
    node.deploy("faults", "guest-faults", "");
    // Last acknowledged, and sent without an answer since.
    let mut acknowledged = [0_u64; CLIENTS];
    let mut in_doubt = [0_u64; CLIENTS];
    for kill in 0..kills {
        let stop = AtomicBool::new(false);
        let port = node.port;
        std::thread::scope(|scope| {
            for (client, (acknowledged, in_doubt)) in
                acknowledged.iter_mut().zip(&mut in_doubt).enumerate()
            {
                let stop = &stop;
                scope.spawn(move || {
                    let (path, body) = (
                        format!("/fn/faults/client-{client}"),
                        format!("count-and-tell heard-{client} m"),
                    );
                    let mut connection = Connection::open(port);
                    while !stop.load(Ordering::Relaxed) {
                        match connection.request("POST", &path, &[], body.as_bytes()) {
                            Ok(reply) if reply.status == 200 => {
                                let count: u64 = reply.text().parse().unwrap();
                                let possible = *acknowledged + 1..=*acknowledged + 1 + *in_doubt;
                                assert!(
                                    possible.contains(&count),
                                    "client {client}: {count} is not in {possible:?}"
                                );
                                (*acknowledged, *in_doubt) = (count, 0);
                            }
                            Ok(reply) => panic!("client {client}: {}", reply.text()),
                            Err(_) => {
                                *in_doubt += 1;
                                return;
                            }
                        }
                    }
                });
            }
            // Long enough for some hundred commits, at a different point of the work each time.
            std::thread::sleep(Duration::from_millis(40 + (kill as u64 * 37) % 90));
            node.crash();
            stop.store(true, Ordering::Relaxed);
        });
        node.start_again();
    }
    for client in 0..CLIENTS {
        let count: u64 = node
            .invoke(&format!("faults/client-{client}"), "count 0")
            .parse()
            .unwrap();
        let possible = acknowledged[client]..=acknowledged[client] + in_doubt[client];
        assert!(
            possible.contains(&count),
            "client {client}: {count} is not in {possible:?}"
        );
        let heard = format!("faults/heard-{client}");
        node.eventually("every message is there", |node| {
            node.invoke(&heard, "len") == count.to_string()
        });
        let expected: Vec<String> = (1..=count).map(|n| format!("m:{n}")).collect();
        assert_eq!(
            node.invoke(&heard, "items"),
            expected.join(","),
            "client {client}"
        );
    }
    eprintln!(
        "{kills} kills: {} acknowledged, none lost, none twice",
        acknowledged.iter().sum::<u64>()
    );
}

#[test]
fn kills_under_load_lose_and_double_nothing() {
    let kills = std::env::var("FULMAR_SOAK_KILLS").map_or(10, |kills| kills.parse().unwrap());
    soak(kills);
}
