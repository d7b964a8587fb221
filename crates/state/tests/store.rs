//! The store through its public interface: any sequence of commits, failures, evictions and restarts
//! leaves what a plain map would hold; nothing is released before it is durable.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use fulmar_model::{Bucket, Durability, FunctionName, Group, SessionName};
use fulmar_state::engine::{Engine, EngineError, Table, Visit, Write};
use fulmar_state::memory_engine::MemoryEngine;
use fulmar_state::{
    Bookkeeping, DataDir, RunReleases, SessionState, Store, StoreFailure, Submitters, Writer,
};
use proptest::prelude::*;

fn uncounted() -> Arc<Submitters> {
    Arc::new(Submitters::uncounted())
}

fn inline() -> RunReleases {
    Arc::new(|releases| releases())
}

fn group() -> Group {
    Group {
        function: FunctionName::new("f").unwrap(),
        session: SessionName::new("s").unwrap(),
    }
}

fn load(store: &Store) -> Arc<SessionState> {
    store.load_session(&group(), store.epoch()).unwrap()
}

/// Commits and waits; says whether it is durable.
fn commit(
    store: &Arc<Store>,
    session: &Arc<SessionState>,
    writes: &[(String, Option<Vec<u8>>)],
) -> Result<(), StoreFailure> {
    let mut tx = store.begin(Some(session.clone()), false);
    for (key, value) in writes {
        match value {
            Some(value) => tx
                .set(Bucket::Session, key, Bytes::from(value.clone()))
                .unwrap(),
            None => tx.delete(Bucket::Session, key).unwrap(),
        }
    }
    let (done, durable) = mpsc::channel();
    let Ok(prepared) = store.prepare(tx, 0) else {
        panic!("nothing shared was written")
    };
    let release = Box::new(move |result| done.send(result).unwrap());
    // What the release hears is what counts.
    let _ = prepared.commit(Durability::Local, Bookkeeping::default(), 1, release);
    durable.recv().unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(u8, Option<usize>)>),
    Abort(Vec<(u8, Option<usize>)>),
    Evict,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let writes = || {
        proptest::collection::vec(
            (0_u8..12, proptest::option::weighted(0.7, 0_usize..3000)),
            0..6,
        )
    };
    let step = prop_oneof![
        6 => writes().prop_map(Step::Commit),
        2 => writes().prop_map(Step::Abort),
        1 => Just(Step::Evict),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..40)
}

/// Large enough, for some cases, that the session is not loaded whole.
fn value(size: usize, large: bool) -> Vec<u8> {
    vec![b'x'; if large { size * 40 } else { size }]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_session_is_a_map_across_failures_evictions_and_restarts(steps in steps(), large in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let mut dir = Some(DataDir::open(folder.path()).unwrap());
        let mut store = Some(Store::local(dir.as_ref().unwrap(), Arc::new(()), inline(), uncounted(), false).unwrap());
        let mut session = load(store.as_ref().unwrap());
        let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut version = session.version();
        let named = |writes: Vec<(u8, Option<usize>)>| -> Vec<(String, Option<Vec<u8>>)> {
            writes.into_iter().map(|(key, size)| (format!("k{key:02}"), size.map(|size| value(size, large)))).collect()
        };
        for step in steps {
            let opened = store.as_ref().unwrap();
            match step {
                Step::Commit(writes) => {
                    let writes = named(writes);
                    commit(opened, &session, &writes).unwrap();
                    for (key, value) in writes {
                        match value {
                            Some(value) => model.insert(key, value),
                            None => model.remove(&key),
                        };
                    }
                }
                Step::Abort(writes) => {
                    let mut tx = opened.begin(Some(session.clone()), false);
                    for (key, value) in named(writes) {
                        match value {
                            Some(value) => tx.set(Bucket::Session, &key, value.into()).unwrap(),
                            None => tx.delete(Bucket::Session, &key).unwrap(),
                        }
                    }
                    tx.abort();
                }
                Step::Evict => session = load(opened),
                Step::Restart => {
                    drop((store.take(), dir.take()));
                    // The session's state holds the engine: it goes with the worker that used it.
                    let memory = Store::memory(Arc::new(()), inline()).unwrap();
                    session = load(&memory);
                    drop((memory, session));
                    dir = Some(DataDir::open(folder.path()).unwrap());
                    store = Some(Store::local(dir.as_ref().unwrap(), Arc::new(()), inline(), uncounted(), false).unwrap());
                    session = load(store.as_ref().unwrap());
                }
            }
            let opened = store.as_ref().unwrap();
            let mut tx = opened.begin(Some(session.clone()), true);
            let keys = tx.list_keys(Bucket::Session, "", None, 100).unwrap();
            prop_assert_eq!(&keys, &model.keys().cloned().collect::<Vec<_>>());
            for key in keys {
                let stored = tx.get(Bucket::Session, &key).unwrap().unwrap();
                prop_assert!(stored == model[&key], "{key} differs");
            }
            prop_assert!(session.version() >= version, "versions only grow");
            version = session.version();
        }
    }
}

/// A memory engine whose writes fail on demand.
#[derive(Default)]
struct Failing {
    inner: MemoryEngine,
    fails: AtomicBool,
}

impl Engine for Failing {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        self.inner.scan(table, prefix, after, visit)
    }

    fn write(&self, writes: &[Write<'_>], sync: bool) -> Result<(), EngineError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(EngineError("told to fail".into()));
        }
        self.inner.write(writes, sync)
    }

    fn approximate_len(&self, table: Table) -> usize {
        self.inner.approximate_len(table)
    }

    fn sync(&self) -> Result<(), EngineError> {
        if self.fails.load(Ordering::SeqCst) {
            Err(EngineError("told to fail".into()))
        } else {
            Ok(())
        }
    }
}

#[test]
fn after_a_failed_write_nothing_is_released_as_durable_any_more() {
    let engine = Arc::new(Failing::default());
    let store = Store::open(
        engine.clone(),
        Arc::new(()),
        inline(),
        Writer::Thread(uncounted()),
        false,
    )
    .unwrap();
    let session = load(&store);
    let write = |value: &str| vec![("k".to_owned(), Some(value.as_bytes().to_vec()))];
    commit(&store, &session, &write("kept")).unwrap();
    engine.fails.store(true, Ordering::SeqCst);
    commit(&store, &session, &write("lost")).unwrap_err();
    // The engine works again, but what was lost in between must not be followed by anything.
    engine.fails.store(false, Ordering::SeqCst);
    commit(&store, &session, &write("after")).unwrap_err();
    assert!(store.commits().has_failed());
    let stored = engine.get(Table::State, b"f\0s\0k").unwrap();
    assert_eq!(stored.as_deref(), Some(&b"kept"[..]));
}

#[test]
fn a_read_waits_until_what_it_saw_is_durable() {
    let store = Store::memory(Arc::new(()), inline()).unwrap();
    let session = load(&store);
    let mut tx = store.begin(Some(session.clone()), false);
    tx.set(Bucket::Session, "k", "v".into()).unwrap();
    let Ok(prepared) = store.prepare(tx, 0) else {
        panic!("nothing shared was written")
    };
    // Not synced on its own, so only a read that asks for it makes it durable.
    let committed = prepared
        .commit(
            Durability::Memory,
            Bookkeeping::default(),
            1,
            Box::new(|_| {}),
        )
        .unwrap();
    let tx = store.begin(Some(session), true);
    let Ok(prepared) = store.prepare(tx, 0) else {
        panic!("nothing was written")
    };
    let (done, durable) = mpsc::channel();
    let release = Box::new(move |result| done.send(result).unwrap());
    prepared
        .commit(Durability::Local, Bookkeeping::default(), 1, release)
        .unwrap();
    durable.recv().unwrap().unwrap();
    assert!(store.commits().durable() >= committed.ticket);
}

/// A session that is removed and made again: what is remembered of the removal does not hide what came after, and no
/// version comes back.
#[test]
fn a_session_that_is_made_again_is_another_one() {
    let store = Store::memory(Arc::new(()), inline()).unwrap();
    let put = [("k".to_owned(), Some(b"1".to_vec()))];
    let first = load(&store);
    commit(&store, &first, &put).unwrap();
    let version = first.version();
    assert_eq!(
        store.session_record(&group()).unwrap().unwrap().epoch,
        store.epoch()
    );
    let mut removal = Bookkeeping::default();
    removal.delete(Table::Sessions, &fulmar_state::key::session(&group()));
    removal.delete_raw(
        Table::State,
        &[&fulmar_state::key::session_state(&group())[..], b"k"].concat(),
    );
    let (done, removed) = std::sync::mpsc::channel();
    let release = Box::new(move |result| done.send(result).unwrap());
    store.commit_bookkeeping(removal, release).unwrap();
    removed.recv().unwrap().unwrap();
    assert_eq!(store.session_record(&group()).unwrap(), None);
    let again = load(&store);
    commit(&store, &again, &put).unwrap();
    assert!(again.version() > version);
    assert!(store.session_record(&group()).unwrap().is_some());
}

#[test]
fn shared_increments_conflict_instead_of_losing_one() {
    let store = Store::memory(Arc::new(()), inline()).unwrap();
    let begin = || {
        let mut tx = store.begin(None, false);
        let sum = tx.increment(Bucket::Shared("b"), "k", 1).unwrap();
        (tx, sum)
    };
    let ((first, one), (second, also_one)) = (begin(), begin());
    assert_eq!((one, also_one), (1, 1), "neither sees the other yet");
    let Ok(prepared) = store.prepare(first, 0) else {
        panic!("the first is alone")
    };
    prepared
        .commit(
            Durability::Memory,
            Bookkeeping::default(),
            1,
            Box::new(|_| {}),
        )
        .unwrap();
    assert!(
        store.prepare(second, 0).is_err(),
        "the second has to run again"
    );
    assert_eq!(begin().1, 2);
}
