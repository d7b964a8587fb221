//! Functions of `fulmar:function`: what they can do, and how they end.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, bytes, faults, settings};
use fulmar_model::Bucket;
use fulmar_worker::{CallError, FunctionSettings};

#[tokio::test]
async fn a_call_answers_and_the_worker_is_called_again() {
    let mut bench = Bench::of(&faults()).await;
    assert_eq!(bench.say("echo hello").await.unwrap(), "hello");
    assert_eq!(bench.say("echo again").await.unwrap(), "again");
    assert!(!bench.worker.is_poisoned());
}

#[tokio::test]
async fn the_function_sees_its_invocation() {
    let mut bench = Bench::of(&faults()).await;
    let seen = bench.say("context").await.unwrap();
    for part in [
        r#""id":"call-1""#,
        r#""function":"f""#,
        r#""session":"s""#,
        r#""idempotency_key":"idem""#,
        r#""attempt":3"#,
        r#""read_only":false"#,
    ] {
        assert!(seen.contains(part), "{part} is not in {seen}");
    }
    bench.session = None;
    let seen = bench.say("context").await.unwrap();
    assert!(seen.contains(r#""session":null"#), "{seen}");
}

#[tokio::test]
async fn what_it_writes_and_sends_is_in_the_transaction() {
    let mut bench = Bench::of(&faults()).await;
    let (mut tx, answer) = bench.run(bytes("set k v")).await;
    answer.unwrap();
    assert_eq!(tx.get(Bucket::Session, "k").unwrap().unwrap(), "v");
    drop(tx);
    assert_eq!(bench.say("get k").await.unwrap(), "absent", "not committed");

    let (tx, answer) = bench.run(bytes("send other there 2 body-{n}")).await;
    answer.unwrap();
    assert!(!tx.is_clean());
    drop(tx);

    let (mut tx, answer) = bench.run(bytes("shared-increment b n 5")).await;
    answer.unwrap();
    assert_eq!(tx.get(Bucket::Shared("b"), "n").unwrap().unwrap(), "5");
}

#[tokio::test]
async fn state_that_is_not_there_for_it_is_refused() {
    let mut bench = Bench::of(&faults()).await;
    bench.read_only = true;
    let refused = bench.say("set k v").await.unwrap_err();
    assert!(refused.to_string().contains("read-only"), "{refused}");

    let mut bench = Bench::of(&faults()).await;
    bench.session = None;
    let refused = bench.say("set k v").await.unwrap_err();
    assert!(refused.to_string().contains("no session"), "{refused}");

    let mut bench = Bench::of(&faults()).await;
    let refused = bench.say("shared-get  k").await.unwrap_err();
    assert!(refused.to_string().contains("empty"), "{refused}");
}

#[tokio::test]
async fn each_way_to_fail_has_its_error_and_poisons_the_worker() {
    let small = FunctionSettings {
        memory_bytes: 8 << 20,
        ..settings()
    };
    let short = Duration::from_millis(50);
    let max = settings().max_response_bytes;
    let too_large = format!("reply {}", max + 1);
    let limit = small.memory_bytes;
    for (input, timeout, expected) in [
        ("reject no", PATIENCE, CallError::Rejected("no".into())),
        ("fail no", PATIENCE, CallError::Failed("no".into())),
        ("loop", short, CallError::Timeout),
        ("sleep 60000", short, CallError::Timeout),
        ("set-then-spin k v", short, CallError::Timeout),
        ("memory", PATIENCE, CallError::MemoryLimit { limit }),
        ("stack", PATIENCE, CallError::StackOverflow),
        (
            &too_large,
            PATIENCE,
            CallError::ResponseTooLarge { limit: max },
        ),
    ] {
        let mut bench = Bench::with(&faults(), small.clone()).await;
        bench.timeout = timeout;
        let started = Instant::now();
        assert_eq!(bench.say(input).await, Err(expected), "{input}");
        assert!(started.elapsed() < PATIENCE / 2, "{input}");
        assert!(bench.worker.is_poisoned(), "{input}");
        assert!(
            matches!(bench.say("echo hello").await, Err(CallError::Trap(_))),
            "a worker that failed is not called again"
        );
    }
    let mut bench = Bench::of(&faults()).await;
    let Err(CallError::Trap(text)) = bench.say("trap").await else {
        panic!("a panic is a trap");
    };
    assert!(text.contains("unreachable"), "{text}");
    let lines = bench.lines().join("\n");
    assert!(lines.contains("s call-1 error: told to panic"), "{lines}");
}

#[tokio::test]
async fn a_call_that_is_dropped_half_way_poisons_the_worker() {
    let mut bench = Bench::of(&faults()).await;
    {
        let call = bench.say("sleep 60000");
        let cut = tokio::time::timeout(Duration::from_millis(20), call).await;
        assert!(cut.is_err());
    }
    assert!(bench.worker.is_poisoned());
}

#[tokio::test]
async fn a_function_in_a_loop_lets_others_run() {
    let mut bench = Bench::of(&faults()).await;
    bench.timeout = Duration::from_millis(300);
    // One thread: the timer fires only if the loop yields.
    let timer = tokio::time::timeout(PATIENCE, tokio::time::sleep(Duration::from_millis(20)));
    let (looped, waited) = tokio::join!(bench.say("loop"), async {
        timer.await.unwrap();
        Instant::now()
    });
    assert_eq!(looped, Err(CallError::Timeout));
    assert!(waited < Instant::now() - Duration::from_millis(50));
}

#[tokio::test]
async fn a_refused_allocation_that_was_survived_is_not_the_next_calls_fault() {
    let limit = 4 << 20;
    let artifact = common::text(&grow_then_trap());
    let few = FunctionSettings {
        memory_bytes: limit,
        ..settings()
    };
    let mut bench = Bench::with(&artifact, few).await;
    assert_eq!(bench.say("").await.unwrap(), "", "asks for too much");
    let Err(CallError::Trap(text)) = bench.say("x").await else {
        panic!("traps for a reason of its own");
    };
    assert!(text.contains("unreachable"), "{text}");
}

/// With no input: asks for 64 MiB, and answers nothing whether it got it or not. With input: traps.
fn grow_then_trap() -> String {
    r#"(component
        (core module $m
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
            (func (export "handle") (param i32 i32) (result i32)
                (if (local.get 1) (then unreachable))
                (drop (memory.grow (i32.const 1024)))
                i32.const 64))
        (core instance $i (instantiate $m))
        (type $failure' (variant (case "rejected" string) (case "failed" string)))
        (export $failure "failure" (type $failure'))
        (func $handle (param "input" (list u8)) (result (result (list u8) (error $failure)))
            (canon lift (core func $i "handle") (memory $i "memory")
                (realloc (func $i "cabi_realloc"))))
        (export "handle" (func $handle)))"#
        .into()
}

#[tokio::test]
async fn it_has_no_authority_but_what_its_settings_give() {
    let mut bench = Bench::of(&faults()).await;
    assert_eq!(bench.say("env").await.unwrap(), "");
    assert_eq!(bench.say("config k").await.unwrap(), "absent");
    for attempt in ["files /", "files .", "connect 127.0.0.1:80"] {
        let answer = bench.say(attempt).await.unwrap();
        assert!(answer.starts_with("refused"), "{attempt}: {answer}");
    }

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let given = FunctionSettings {
        env: vec![("NAME".into(), "value".into())],
        config: [("k".into(), "v".into())].into(),
        files: vec![fulmar_worker::FileGrant {
            host: folder.path().into(),
            guest: "/given".into(),
            writable: false,
        }],
        ..settings()
    };
    let mut bench = Bench::with(&faults(), given).await;
    assert_eq!(bench.say("env").await.unwrap(), "NAME=value");
    assert_eq!(bench.say("config k").await.unwrap(), "v");
    assert_eq!(bench.say("files /given").await.unwrap(), "sees 1 entries");
    for attempt in ["files /", "files /given/.."] {
        let answer = bench.say(attempt).await.unwrap();
        assert!(answer.starts_with("refused"), "{attempt}: {answer}");
    }
}

#[tokio::test]
async fn lines_name_their_invocation() {
    let mut bench = Bench::of(&faults()).await;
    bench.say("log one").await.unwrap();
    bench.say("log two").await.unwrap();
    assert_eq!(
        bench.lines(),
        [
            "s call-1 info: one",
            "s call-1 info: standard output: one",
            "s call-2 info: two",
            "s call-2 info: standard output: two",
        ]
    );
}
