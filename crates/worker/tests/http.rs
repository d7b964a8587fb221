//! Functions of `wasi:http/proxy`: what they answer, and how they end.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, bytes, faults, http_faults, text};
use fulmar_model::Bucket;
use fulmar_worker::{CallError, Request, World};

#[tokio::test]
async fn a_request_is_answered_and_the_worker_is_called_again() {
    let mut bench = Bench::of(&http_faults()).await;
    for _ in 0..3 {
        let response = bench.get("/echo?a=b").await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-path"], "/echo?a=b");
        assert_eq!(response.body(), "body");
    }
    assert_eq!(
        bench.get("/stream/300000").await.unwrap().body().len(),
        300_000
    );
    assert_eq!(bench.get("/status/503").await.unwrap().status(), 503);
}

#[tokio::test]
async fn what_it_writes_is_in_the_transaction() {
    let mut bench = Bench::of(&http_faults()).await;
    let request = http::Request::builder()
        .uri("http://node/write/k/v")
        .header("host", "node")
        .body(bytes::Bytes::new())
        .unwrap();
    let (mut tx, answer) = bench.run(Request::Http(Box::new(request))).await;
    answer.unwrap();
    assert_eq!(tx.get(Bucket::Session, "k").unwrap().unwrap(), "v");
}

#[tokio::test]
async fn each_way_to_fail_is_known_when_it_happens() {
    let max = common::settings().max_response_bytes;
    for (path, expected) in [
        ("/no-response", CallError::NoResponse),
        ("/half-stream/1000", CallError::NoResponse),
        (
            "/stream-forever",
            CallError::ResponseTooLarge { limit: max },
        ),
    ] {
        let mut bench = Bench::of(&http_faults()).await;
        let started = Instant::now();
        assert_eq!(bench.get(path).await.unwrap_err(), expected, "{path}");
        assert!(started.elapsed() < PATIENCE / 2, "{path}");
        assert!(bench.worker.is_poisoned(), "{path}");
    }
    for path in ["/trap-after-write/k/v", "/trap-after-response/k/v"] {
        let mut bench = Bench::of(&http_faults()).await;
        let started = Instant::now();
        assert!(
            matches!(bench.get(path).await, Err(CallError::Trap(_))),
            "{path}"
        );
        assert!(started.elapsed() < PATIENCE / 2, "{path}");
    }
}

#[tokio::test]
async fn a_response_that_is_kept_back_is_none() {
    // Returns with the response's handle still in its table.
    let artifact = text(
        r#"(component
            (import "wasi:http/types@0.2.0" (instance $types
                (export "incoming-request" (type (sub resource)))
                (export "response-outparam" (type (sub resource)))))
            (alias export $types "incoming-request" (type $request))
            (alias export $types "response-outparam" (type $out))
            (core module $m (func (export "handle") (param i32 i32)))
            (core instance $i (instantiate $m))
            (func $handle (param "request" (own $request)) (param "response-out" (own $out))
                (canon lift (core func $i "handle")))
            (instance $handler (export "handle" (func $handle)))
            (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#,
    );
    assert_eq!(artifact.world(), World::Http);
    let mut bench = Bench::of(&artifact).await;
    let started = Instant::now();
    assert_eq!(bench.get("/").await.unwrap_err(), CallError::NoResponse);
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "not by its time-out"
    );
}

#[tokio::test]
async fn bytes_and_requests_are_not_mixed_up() {
    let mut bench = Bench::of(&http_faults()).await;
    let refused = bench.run(bytes("x")).await.1.unwrap_err();
    assert!(matches!(refused, CallError::Rejected(_)), "{refused}");
    let mut bench = Bench::of(&faults()).await;
    let refused = bench.get("/").await.unwrap_err();
    assert!(matches!(refused, CallError::Rejected(_)), "{refused}");
}
