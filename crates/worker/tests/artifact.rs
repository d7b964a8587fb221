//! What is accepted as a function, and what the error of the rest says.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Lines, RUNTIME, guest, settings, start, text};
use fulmar_worker::{ArtifactError, CallError, FunctionSettings, World};

fn refusal(wasm: &[u8]) -> String {
    match RUNTIME.compile(wasm) {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

fn component(wat: &str) -> Vec<u8> {
    wat::parse_str(wat).unwrap()
}

#[test]
fn what_is_no_component_is_named() {
    let whole = std::fs::read(guest("guest-faults")).unwrap();
    for (wasm, expected) in [
        (
            component("(module)").as_slice(),
            "it is a core module. Build for wasm32-wasip2",
        ),
        (b"", "the file is empty"),
        (b"\0asm\x0d", "the file is cut off"),
        (b"\0asm\x07\0\0\0", "WebAssembly of another version"),
        (b"fn main() {}", "it starts with 66 6e 20 6d"),
        (b"x", "it starts with 78 instead"),
        (&whole[..whole.len() / 2], "the component is not valid"),
        (&whole[..8], "exports nothing"),
    ] {
        let refusal = refusal(wasm);
        assert!(
            refusal.contains(expected),
            "{expected:?} is not in {refusal:?}"
        );
    }
}

#[test]
fn no_damage_to_a_component_makes_it_panic() {
    let whole = std::fs::read(guest("counter")).unwrap();
    // Compiling takes time; most damage is found before.
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        let _ = RUNTIME.compile(&damaged);
        let _ = RUNTIME.compile(&whole[..at]);
    }
}

#[test]
fn an_import_that_is_not_offered_is_named() {
    let refused = refusal(&component(
        r#"(component
            (import "acme:mail/sender@1.0.0" (instance))
            (import "wasi:cli/environment@0.3.0" (instance))
            (core module $m)
            (core instance $i (instantiate $m))
            (instance $handler)
            (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#,
    ));
    assert!(
        refused.contains("imports acme:mail/sender@1.0.0, wasi:cli/environment@0.3.0, which"),
        "{refused}"
    );
    assert!(refused.contains("It offers fulmar:function"), "{refused}");
}

#[test]
fn an_import_of_another_type_is_named() {
    let refused = refusal(&component(
        r#"(component
            (import "wasi:config/store@0.2.0-draft" (instance
                (export "get" (func (param "key" u32) (result u32)))))
            (instance $handler)
            (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#,
    ));
    assert!(
        refused.contains("wasi:config/store@0.2.0-draft"),
        "{refused}"
    );
}

#[test]
fn a_component_of_no_world_is_told_what_it_exports() {
    let refused = refusal(&component(
        r#"(component (instance $i) (export "acme:tool/run" (instance $i)))"#,
    ));
    assert!(refused.contains("it exports acme:tool/run"), "{refused}");
    // The right name, another type.
    let refused = refusal(&component(
        r#"(component
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i "f")))
            (export "handle" (func $f)))"#,
    ));
    assert!(refused.contains("does not fit"), "{refused}");
}

#[test]
fn the_world_is_known_before_anything_runs() {
    for (name, world) in [
        ("guest-faults", World::Function),
        ("guest-http-faults", World::Http),
    ] {
        let compiled = RUNTIME
            .compile(&std::fs::read(guest(name)).unwrap())
            .unwrap();
        assert_eq!(compiled.world, world, "{name}");
    }
}

#[test]
fn a_compiled_file_that_is_not_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.cwasm");
    for content in [b"".as_slice(), b"garbage", b"\x7fELF and so on"] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(RUNTIME.load(&path), Err(ArtifactError::Load(_))));
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(RUNTIME.load(&path), Err(ArtifactError::Load(_))));
}

#[test]
fn compatibility_is_the_same_for_the_same_engine() {
    let again = fulmar_worker::Runtime::new(&fulmar_worker::RuntimeOptions {
        max_workers: 2,
        ..Default::default()
    })
    .unwrap();
    assert_eq!(RUNTIME.compatibility(), again.compatibility());
    assert_eq!(again.allocation(), "pooling");
}

#[tokio::test]
async fn a_component_that_is_larger_than_its_memory_limit_does_not_start() {
    let artifact = text(
        r#"(component
            (core module $m (memory 1024))
            (core instance $i (instantiate $m))
            (instance $handler)
            (core module $h (func (export "handle") (param i32 i32)))
            (core instance $hi (instantiate $h))
            (import "wasi:http/types@0.2.0" (instance $types
                (export "incoming-request" (type (sub resource)))
                (export "response-outparam" (type (sub resource)))))
            (alias export $types "incoming-request" (type $request))
            (alias export $types "response-outparam" (type $out))
            (func $handle (param "request" (own $request)) (param "response-out" (own $out))
                (canon lift (core func $hi "handle")))
            (instance $real (export "handle" (func $handle)))
            (export "wasi:http/incoming-handler@0.2.0" (instance $real)))"#,
    );
    let limit = 1 << 20;
    let few = FunctionSettings {
        memory_bytes: limit,
        ..settings()
    };
    let started = start(&artifact, few, &Arc::new(Lines::default())).await;
    assert_eq!(started.err(), Some(CallError::MemoryLimit { limit }));
}

#[tokio::test]
async fn workers_beyond_the_engines_room_are_refused_and_room_comes_back() {
    let runtime = fulmar_worker::Runtime::new(&fulmar_worker::RuntimeOptions {
        max_workers: 1,
        ..Default::default()
    })
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counter.cwasm");
    let wasm = std::fs::read(guest("counter")).unwrap();
    std::fs::write(&path, runtime.compile(&wasm).unwrap().bytes).unwrap();
    let artifact = runtime.load(&path).unwrap();
    let lines = Arc::new(Lines::default());
    let mut workers = Vec::new();
    let refused = loop {
        match start(&artifact, settings(), &lines).await {
            Ok(worker) => workers.push(worker),
            Err(error) => break error,
        }
        assert!(workers.len() < 1000, "the pool has no end");
    };
    assert_eq!(refused, CallError::NoRoom);
    workers.pop();
    assert!(start(&artifact, settings(), &lines).await.is_ok());
}
