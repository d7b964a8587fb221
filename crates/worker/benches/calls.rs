//! What a call into a function costs in process: on a live worker, and on a fresh one.
//!
//! `cargo bench -p fulmar-worker`. The function is `examples/counter`: it reads and writes one key of
//! its session. Each call has a transaction of its own, which is taken back.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bench, Lines, RUNTIME, bytes, deploy, faults, guest, http_faults, settings, start};
use criterion::{Criterion, criterion_group, criterion_main};

/// Workers that are alive together when their memory is counted.
const LIVE: usize = 1000;

fn calls(criterion: &mut Criterion) {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let wasm = std::fs::read(guest("counter")).unwrap();
    let counter = deploy(&wasm);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counter.cwasm");
    std::fs::write(&path, RUNTIME.compile(&wasm).unwrap().bytes).unwrap();

    let mut bench = tokio.block_on(Bench::of(&counter));
    criterion.bench_function("warm call, counter", |b| {
        b.iter(|| tokio.block_on(bench.run(bytes("1"))).1.unwrap());
    });
    let mut bench = tokio.block_on(Bench::of(&faults()));
    criterion.bench_function("warm call, no state", |b| {
        b.iter(|| tokio.block_on(bench.run(bytes("echo x"))).1.unwrap());
    });
    let mut bench = tokio.block_on(Bench::of(&http_faults()));
    criterion.bench_function("warm call, wasi:http", |b| {
        b.iter(|| tokio.block_on(bench.get("/echo")).unwrap());
    });
    let mut bench = tokio.block_on(Bench::of(&counter));
    let lines = Arc::new(Lines::default());
    criterion.bench_function("fresh worker and first call, artefact in memory", |b| {
        b.iter(|| {
            tokio.block_on(async {
                bench.worker = start(&counter, settings(), &lines).await.unwrap();
                bench.run(bytes("1")).await.1.unwrap()
            })
        });
    });
    criterion.bench_function("fresh worker and first call, artefact on disk", |b| {
        b.iter(|| {
            tokio.block_on(async {
                let artifact = RUNTIME.load(&path).unwrap();
                bench.worker = start(&artifact, settings(), &lines).await.unwrap();
                bench.run(bytes("1")).await.1.unwrap()
            })
        });
    });
}

/// Not a time, so outside of criterion's statistics: printed once.
fn memory(_: &mut Criterion) {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counter.cwasm");
    let runtime = fulmar_worker::Runtime::new(&fulmar_worker::RuntimeOptions::default()).unwrap();
    let wasm = std::fs::read(guest("counter")).unwrap();
    std::fs::write(&path, runtime.compile(&wasm).unwrap().bytes).unwrap();
    let counter = runtime.load(&path).unwrap();
    let mut bench = tokio.block_on(Bench::of(&counter));
    let lines = Arc::new(Lines::default());
    let mut live = Vec::with_capacity(LIVE);
    let (before, started) = (resident_bytes(), Instant::now());
    for _ in 0..LIVE {
        tokio.block_on(async {
            let fresh = start(&counter, settings(), &lines).await.unwrap();
            live.push(std::mem::replace(&mut bench.worker, fresh));
            bench.run(bytes("1")).await.1.unwrap();
        });
    }
    let took: Duration = started.elapsed() / LIVE as u32;
    let each = resident_bytes().saturating_sub(before) / LIVE;
    println!("{LIVE} live workers: {each} bytes each; {took:?} to start one more and call it");
    black_box(live);
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

criterion_group!(benches, calls, memory);
criterion_main!(benches);
