//! What every registry promises: asked of the embedded one and of a real etcd.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::etcd::Etcd;
use fulmar_cluster::config::RegistryConfig;
use fulmar_cluster::registry::embedded::Embedded;
use fulmar_cluster::registry::etcd::{Access, Etcd as EtcdRegistry};
use fulmar_cluster::registry::{Change, Registry, RegistryError, Written};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

/// Far more than any of this takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn done(written: Written) -> u64 {
    match written {
        Written::Done(revision) => revision,
        Written::Conflict(present) => panic!("not written: {present:?} is in the way"),
    }
}

async fn next(changes: &mut fulmar_cluster::registry::Changes) -> Vec<Change> {
    let next = tokio::time::timeout(PATIENCE, changes.next()).await;
    next.expect("a change in time").unwrap().unwrap()
}

/// etcd, once its members have found each other.
async fn connect(etcd: &Etcd, prefix: &str) -> EtcdRegistry {
    let registry = EtcdRegistry::connect(&etcd.endpoints(), prefix, &Access::default())
        .await
        .unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while let Err(error) = registry.list("").await {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    registry
}

/// Writes only over what the writer saw; every change is seen, in order; leases take their keys along.
async fn keeps_its_promises(registry: &dyn Registry) {
    let start = registry.list("").await.unwrap().revision;
    let mut changes = registry.watch(start).await.unwrap();
    let one = Bytes::from_static(b"1");
    let two = Bytes::from_static(b"2");

    let first = done(registry.put("a/x", one.clone(), 0, None).await.unwrap());
    match registry.put("a/x", two.clone(), 0, None).await.unwrap() {
        Written::Conflict(Some(present)) => {
            assert_eq!((present.value, present.revision), (one.clone(), first));
        }
        other => panic!("{other:?}"),
    }
    let second = done(registry.put("a/x", two.clone(), first, None).await.unwrap());
    assert!(second > first);
    done(registry.put("b", one.clone(), 0, None).await.unwrap());
    let listed = registry.list("a/").await.unwrap();
    assert_eq!(listed.entries.len(), 1);
    assert_eq!(
        (&listed.entries[0].key[..], &listed.entries[0].value),
        ("a/x", &two)
    );
    assert_eq!(
        registry.delete("a/x", first).await.unwrap(),
        Written::Conflict(Some(listed.entries[0].clone()))
    );
    done(registry.delete("a/x", second).await.unwrap());
    assert_eq!(
        registry
            .put("a/x", one.clone(), second, None)
            .await
            .unwrap(),
        Written::Conflict(None)
    );

    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(next(&mut changes).await);
    }
    let what: Vec<_> = seen
        .iter()
        .map(|change| (&change.key[..], change.value.clone()))
        .collect();
    assert_eq!(
        what,
        [
            ("a/x", Some(one.clone())),
            ("a/x", Some(two)),
            ("b", Some(one.clone())),
            ("a/x", None)
        ]
    );
    assert!(
        seen.windows(2)
            .all(|pair| pair[0].revision < pair[1].revision)
    );
    let mut later = registry.watch(seen[1].revision).await.unwrap();
    assert_eq!(next(&mut later).await[0].key, "b");

    let lease = registry.grant(Duration::from_secs(2)).await.unwrap();
    done(
        registry
            .put("live", one.clone(), 0, Some(lease))
            .await
            .unwrap(),
    );
    registry.keep_alive(lease).await.unwrap();
    assert_eq!(next(&mut changes).await[0].key, "live");
    let gone = next(&mut changes).await;
    assert_eq!((&gone[0].key[..], &gone[0].value), ("live", &None));
    assert!(matches!(
        registry.keep_alive(lease).await,
        Err(RegistryError::LeaseLost)
    ));
    assert!(matches!(
        registry.put("late", one, 0, Some(lease)).await,
        Err(RegistryError::LeaseLost)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_registry() {
    let folder = tempfile::tempdir().unwrap();
    let store = common::store(folder.path());
    let registry = Embedded::open(store.clone()).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(registry.clone().run(stop.clone()));
    keeps_its_promises(&registry).await;
    let before = registry.list("").await.unwrap();
    stop.cancel();
    running.await.unwrap();
    drop(registry);
    let again = Embedded::open(store).unwrap();
    assert_eq!(again.list("").await.unwrap(), before);
    // What was before is known as a whole, not change by change.
    let mut changes = again.watch(1).await.unwrap();
    assert!(matches!(
        changes.next().await,
        Some(Err(RegistryError::Compacted(1)))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd() {
    let etcd = Etcd::start(1);
    let registry = connect(&etcd, "/fulmar/").await;
    keeps_its_promises(&registry).await;
    let elsewhere = connect(&etcd, "/other/").await;
    assert!(elsewhere.list("").await.unwrap().entries.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_with_three_members_of_which_one_dies() {
    let mut etcd = Etcd::start(3);
    let registry = Arc::new(connect(&etcd, "/fulmar/").await);
    let mut revision = done(registry.put("k", Bytes::new(), 0, None).await.unwrap());
    etcd.kill(0);
    let deadline = std::time::Instant::now() + PATIENCE;
    for round in 0..20 {
        let value = Bytes::from(format!("{round}"));
        // A write whose answer was lost may have happened: what is there now tells.
        loop {
            assert!(std::time::Instant::now() < deadline);
            match registry.put("k", value.clone(), revision, None).await {
                Ok(Written::Done(new)) => {
                    revision = new;
                    break;
                }
                Ok(Written::Conflict(Some(present))) if present.value == value => {
                    revision = present.revision;
                    break;
                }
                Ok(other) => panic!("{other:?}"),
                Err(RegistryError::Unreachable(_)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(registry.list("k").await.unwrap().entries[0].value, "19");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_was_compacted_is_read_again_as_a_whole() {
    let etcd = Etcd::start(1);
    let registry = connect(&etcd, "/fulmar/").await;
    let mut revision = 0;
    for _ in 0..5 {
        revision = done(
            registry
                .put("k", Bytes::new(), revision, None)
                .await
                .unwrap(),
        );
    }
    let client = etcd_client::Client::connect(etcd.endpoints(), None)
        .await
        .unwrap();
    client
        .kv_client()
        .compact(revision as i64, None)
        .await
        .unwrap();
    let mut changes = registry.watch(1).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, changes.next())
        .await
        .unwrap();
    assert!(
        matches!(first, Some(Err(RegistryError::Compacted(1)))),
        "{first:?}"
    );
    assert_eq!(registry.list("").await.unwrap().revision, revision);
}

#[tokio::test]
async fn an_etcd_with_users_lets_in_who_knows_a_password() {
    let etcd = Etcd::start(1);
    connect(&etcd, "/f/").await;
    let mut root = etcd_client::Client::connect(etcd.endpoints(), None)
        .await
        .unwrap();
    root.user_add("root", "secret", None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.auth_enable().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let as_root = |password: &str| {
        std::fs::write(&file, password).unwrap();
        let config = format!("etcd = []\nuser = \"root\"\npassword_file = {file:?}\n");
        let config: RegistryConfig = toml::from_str(&config).unwrap();
        Access::read(&config).unwrap()
    };
    let endpoints = etcd.endpoints();
    let (right, wrong) = (as_root("secret\n"), as_root("wrong"));
    let known = EtcdRegistry::connect(&endpoints, "/f/", &right).await;
    let known = known.unwrap();
    done(
        known
            .put("a", Bytes::from_static(b"1"), 0, None)
            .await
            .unwrap(),
    );
    let stranger = EtcdRegistry::connect(&endpoints, "/f/", &wrong).await;
    assert!(matches!(stranger, Err(RegistryError::Refused(_))));
    let nobody = EtcdRegistry::connect(&endpoints, "/f/", &Access::default()).await;
    let listed = nobody.unwrap().list("").await;
    assert!(
        matches!(listed, Err(RegistryError::Refused(_))),
        "{listed:?}"
    );
}
