//! The changelog through its public interface: what was acknowledged as replicated is in the object store,
//! whatever becomes of the node; whoever has ended a log is the only one to go on with it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fulmar_model::{Bucket, Durability, FunctionName, Group, SessionName};
use fulmar_state::changelog::restore::{self, RestoreError, Restored};
use fulmar_state::changelog::ship::{self, Ended, ShipError};
use fulmar_state::engine::{Engine, Table};
use fulmar_state::memory_engine::MemoryEngine;
use fulmar_state::objects::Objects;
use fulmar_state::{Bookkeeping, Cause, DataDir, Store, StoreFailure, Submitters, key};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const INSTANCE: &str = "abc";

fn group(session: usize) -> Group {
    Group {
        function: FunctionName::new("f").unwrap(),
        session: SessionName::new(&format!("s{session}")).unwrap(),
    }
}

/// A node's store, with the task that copies it.
struct Node {
    store: Arc<Store>,
    stop: CancellationToken,
    shipping: JoinHandle<Result<Ended, ShipError>>,
    _data: DataDir,
}

impl Node {
    fn start(folder: &Path, objects: &Objects) -> Self {
        let data = DataDir::open(&folder.join("data")).unwrap();
        let threads = Arc::new(Submitters::uncounted());
        let releases = Arc::new(|releases: Box<dyn FnOnce() + Send>| releases());
        let store = Store::local(&data, Arc::new(()), releases, threads, true).unwrap();
        let stop = CancellationToken::new();
        let log = store.changelog().unwrap().clone();
        let opened = log.clone();
        tokio::spawn(async move {
            opened.ready().await;
            opened.open();
        });
        let (objects, instance) = (objects.clone(), INSTANCE.to_owned());
        let shipping = ship::ship(store.clone(), log, objects, instance, stop.clone());
        Self {
            shipping: tokio::spawn(shipping),
            store,
            stop,
            _data: data,
        }
    }

    /// As after `kill -9`: nothing that is under way comes to its end.
    async fn crash(self) {
        self.shipping.abort();
        let _ = self.shipping.await;
    }

    async fn commit(&self, session: usize, value: &str) -> Result<(), StoreFailure> {
        self.commit_at(Durability::Replicated, session, value).await
    }

    async fn commit_at(
        &self,
        durability: Durability,
        session: usize,
        value: &str,
    ) -> Result<(), StoreFailure> {
        let state = self
            .store
            .load_session(&group(session), self.store.epoch())
            .unwrap();
        let mut tx = self.store.begin(Some(state), false);
        let value = Bytes::copy_from_slice(value.as_bytes());
        tx.set(Bucket::Session, "key", value).unwrap();
        let (done, settled) = oneshot::channel();
        let release = Box::new(move |result| {
            let _ = done.send(result);
        });
        {
            let Ok(prepared) = self.store.prepare(tx, 0) else {
                panic!("nothing shared was written")
            };
            // What the release hears is what counts.
            let _ = prepared.commit(durability, Bookkeeping::default(), 1, release);
        }
        settled.await.unwrap()
    }
}

async fn take(objects: &Objects, engine: &MemoryEngine) -> Result<Restored, RestoreError> {
    restore::take(objects, INSTANCE, 1, "taker", engine).await
}

fn value(engine: &dyn Engine, session: usize) -> Option<String> {
    let path = [key::session_state(&group(session)), b"key".to_vec()].concat();
    let value = engine.get(Table::State, &path).unwrap()?;
    Some(String::from_utf8(value.to_vec()).unwrap())
}

fn folder() -> (tempfile::TempDir, Objects) {
    let folder = tempfile::tempdir().unwrap();
    let objects = Objects::open(
        folder.path().join("objects").to_str().unwrap(),
        &BTreeMap::new(),
    )
    .unwrap();
    (folder, objects)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_in_the_object_store_across_crashes() {
    let (folder, objects) = folder();
    for run in 0..5 {
        let node = Node::start(folder.path(), &objects);
        let commits = (0..40).map(|session| {
            let (node, value) = (&node, format!("run {run}"));
            async move { node.commit(session % 10, &value).await.unwrap() }
        });
        futures_util::future::join_all(commits).await;
        // Acknowledged without it, and not waited for.
        node.commit_at(Durability::Local, 11, &format!("run {run}"))
            .await
            .unwrap();
        node.crash().await;
    }
    let engine = MemoryEngine::default();
    let restored = take(&objects, &engine).await.unwrap();
    assert_eq!(restored.by, "taker");
    for session in 0..10 {
        assert_eq!(value(&engine, session).as_deref(), Some("run 4"));
    }
    // That of an earlier run was copied by the next one.
    let tail = value(&engine, 11).unwrap();
    assert!(["run 3", "run 4"].contains(&&*tail), "{tail}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => _ = std::fs::copy(entry.path(), to).unwrap(),
        }
    }
}

/// In the very moment in which it is acknowledged, whatever else is committed in the same batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_acknowledged_is_there_at_once() {
    const TIMES: usize = 100;
    let (folder, objects) = folder();
    let node = Arc::new(Node::start(folder.path(), &objects));
    let (there, copies) = (folder.path().join("objects"), folder.path().join("copies"));
    // Others do not wait for the object store, and are in every batch.
    let stop = CancellationToken::new();
    let others: Vec<_> = (1..4)
        .map(|session| {
            let (node, stop) = (node.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let committed = node.commit_at(Durability::Memory, session, "other");
                    committed.await.unwrap();
                }
            })
        })
        .collect();
    for time in 0..TIMES {
        let state = node.store.load_session(&group(0), node.store.epoch());
        let mut tx = node.store.begin(Some(state.unwrap()), false);
        let value = Bytes::from(time.to_string());
        tx.set(Bucket::Session, "key", value).unwrap();
        let (done, settled) = oneshot::channel();
        let (there, copied) = (there.clone(), copies.join(time.to_string()));
        let release = Box::new(move |result: Result<(), StoreFailure>| {
            copy(&there, &copied);
            let _ = done.send(result);
        });
        let Ok(prepared) = node.store.prepare(tx, 0) else {
            panic!("nothing shared was written")
        };
        let _ = prepared.commit(Durability::Replicated, Bookkeeping::default(), 1, release);
        settled.await.unwrap().unwrap();
    }
    stop.cancel();
    for other in others {
        other.await.unwrap();
    }
    for time in 0..TIMES {
        let copied = copies.join(time.to_string());
        let objects = Objects::open(copied.to_str().unwrap(), &BTreeMap::new()).unwrap();
        let engine = MemoryEngine::default();
        take(&objects, &engine).await.unwrap();
        assert_eq!(value(&engine, 0), Some(time.to_string()), "time {time}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_takeover_nothing_is_acknowledged_and_the_tail_is_told() {
    let (folder, objects) = folder();
    let mut node = Node::start(folder.path(), &objects);
    node.commit(1, "before").await.unwrap();
    let engine = MemoryEngine::default();
    let restored = take(&objects, &engine).await.unwrap();
    assert_eq!(value(&engine, 1).as_deref(), Some("before"));
    let refused = node.commit(1, "after").await.unwrap_err();
    assert_eq!(refused.cause, Cause::Fenced);
    assert_eq!(
        (&mut node.shipping).await.unwrap().unwrap(),
        Ended::Fenced {
            by: "taker".into(),
            last: restored.last
        }
    );
    let log = node.store.changelog().unwrap();
    assert_eq!(log.prove().await.unwrap_err().cause, Cause::Fenced);
    let mut tail = Vec::new();
    ship::uncopied(&node.store, &mut |_, writes| {
        tail.extend(
            writes
                .iter()
                .filter_map(|write| write.value.map(<[u8]>::to_vec)),
        );
        Ok(())
    })
    .unwrap();
    assert!(tail.iter().any(|value| value == b"after"), "{tail:?}");
    // Whoever comes next finds the same, and who was first.
    let again = MemoryEngine::default();
    let found = restore::take(&objects, INSTANCE, 1, "late", &again)
        .await
        .unwrap();
    assert_eq!(found, restored);

    // It goes on in a log of its own.
    ship::close(&node.store).unwrap();
    drop(node);
    let node = Node::start(folder.path(), &objects);
    node.commit(2, "again").await.unwrap();
    assert_eq!(ship::stream(&node.store).unwrap(), Some(2));
    let second = MemoryEngine::default();
    restore::take(&objects, INSTANCE, 2, "taker", &second)
        .await
        .unwrap();
    assert_eq!(value(&second, 2).as_deref(), Some("again"));
    assert_eq!(value(&second, 1).as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_a_gap_and_a_foreign_copy_are_noticed() {
    let (folder, objects) = folder();
    let node = Node::start(folder.path(), &objects);
    node.commit(1, "one").await.unwrap();
    node.commit(1, "two").await.unwrap();
    node.stop.cancel();
    assert_eq!(node.shipping.await.unwrap().unwrap(), Ended::Stopped);
    drop((node.store, node._data));
    let name = |sequence: u64| format!("{INSTANCE}/00000001/log/{sequence:016}");
    let engine = MemoryEngine::default();
    let mut last = 0;
    while objects.get(&name(last + 1)).await.unwrap().is_some() {
        last += 1;
    }
    assert!(last >= 2, "{last}");
    let kept = objects.get(&name(last - 1)).await.unwrap().unwrap();
    objects.delete(&name(last - 1)).await.unwrap();
    let error = take(&objects, &engine).await.unwrap_err();
    assert!(matches!(error, RestoreError::Lost(_)), "{error}");
    let mut damaged = kept.to_vec();
    damaged[20] ^= 1;
    objects.put(&name(last - 1), damaged.into()).await.unwrap();
    let error = take(&objects, &engine).await.unwrap_err();
    assert!(matches!(error, RestoreError::Damaged { .. }), "{error}");
    objects.put(&name(last - 1), kept).await.unwrap();
    take(&objects, &engine).await.unwrap();
    assert_eq!(value(&engine, 1).as_deref(), Some("two"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_object_store_is_said_and_what_waits_goes_out_later() {
    let (folder, objects) = folder();
    let node = Node::start(folder.path(), &objects);
    node.commit(1, "before").await.unwrap();
    // A file where the folder was: every request fails.
    let (there, away) = (folder.path().join("objects"), folder.path().join("away"));
    std::fs::rename(&there, &away).unwrap();
    std::fs::write(&there, "not a folder").unwrap();
    let refused = node.commit(1, "meanwhile").await.unwrap_err();
    assert_eq!(refused.cause, Cause::ObjectStore);
    let log = node.store.changelog().unwrap();
    assert!(log.trouble().is_some() && log.standing().trouble.is_some());
    node.commit_at(Durability::Local, 2, "local").await.unwrap();
    std::fs::remove_file(&there).unwrap();
    std::fs::rename(&away, &there).unwrap();
    node.commit(3, "after").await.unwrap();
    assert!(log.trouble().is_none());
    let engine = MemoryEngine::default();
    take(&objects, &engine).await.unwrap();
    assert_eq!(value(&engine, 1).as_deref(), Some("meanwhile"));
    assert_eq!(value(&engine, 2).as_deref(), Some("local"));
    assert_eq!(value(&engine, 3).as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_base_replaces_the_log_before_it() {
    let (folder, objects) = folder();
    let node = Node::start(folder.path(), &objects);
    let large = "x".repeat(4 << 20);
    for round in 0..24 {
        node.commit(round % 3, &format!("{round} {large}"))
            .await
            .unwrap();
    }
    let current = || async {
        let bytes = objects
            .get(&format!("{INSTANCE}/00000001/base/current"))
            .await;
        let base: serde_json::Value = serde_json::from_slice(&bytes.unwrap().unwrap()).unwrap();
        base["sequence"].as_u64().unwrap()
    };
    while current().await == 0 {
        node.commit(4, "more").await.unwrap();
    }
    let first = format!("{INSTANCE}/00000001/log/{:016}", 1);
    while objects.size(&first).await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    let engine = MemoryEngine::default();
    take(&objects, &engine).await.unwrap();
    for session in 0..3 {
        assert!(
            value(&engine, session)
                .unwrap()
                .starts_with(&format!("{} ", 21 + session))
        );
    }
}
