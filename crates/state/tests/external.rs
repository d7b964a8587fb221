//! What every external store promises: asked of a folder, a real Redis, a real PostgreSQL, and a real S3 server.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::s3::S3;
use common::servers::Server;
use fulmar_model::{Epoch, FunctionName, Group, SessionName, Version};
use fulmar_state::external::{CLOSED, Change, Closed, External, Outcome, Unsent};
use fulmar_state::record::{Address, IdempotencyRecord, MessageRecord, StoredReply, StoredRequest};

const NOW: u64 = 4_000_000_000_000;

fn group(session: &str) -> Group {
    Group {
        function: FunctionName::new("f").unwrap(),
        session: SessionName::new(session).unwrap(),
    }
}

fn answer(invocation: &str, expires_unix_ms: u64) -> IdempotencyRecord {
    IdempotencyRecord {
        request: [7; 32],
        invocation: invocation.to_owned(),
        reply: StoredReply {
            status: 200,
            headers: Vec::new(),
            body: b"hello".to_vec(),
        },
        expires_unix_ms,
    }
}

fn message(body: &str) -> Unsent {
    let address = |session: &str| Address {
        function: FunctionName::new("f").unwrap(),
        session: Some(SessionName::new(session).unwrap()),
    };
    let message = MessageRecord {
        from: Some(address("a")),
        to: address("b"),
        request: StoredRequest {
            method: "POST".into(),
            path: "/".into(),
            headers: Vec::new(),
            body: body.into(),
        },
        invocation: None,
        idempotency_key: None,
        attempts: 0,
        error: String::new(),
        at_unix_ms: NOW,
    };
    Unsent {
        by: "node".to_owned(),
        message,
    }
}

fn silent(group: &Group, base: Version) -> Change<'_> {
    Change {
        group,
        base,
        next: Version(base.0 + 1),
        writes: &[],
        messages: &[],
        answers: &[],
        now_unix_ms: NOW,
    }
}

async fn write(
    store: &External,
    group: &Group,
    base: u64,
    writes: &[(&str, Option<&str>)],
) -> Outcome {
    let writes: Vec<_> = writes
        .iter()
        .map(|(key, value)| {
            let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
            ((*key).to_owned(), value)
        })
        .collect();
    let change = Change {
        writes: &writes,
        ..silent(group, Version(base))
    };
    store.commit(&change).await.unwrap()
}

async fn entries(store: &External, group: &Group) -> (u64, BTreeMap<String, Bytes>) {
    let kept = store.load(group).await.unwrap();
    (kept.version.0, kept.entries.into_iter().collect())
}

/// What every store promises.
async fn keeps_its_promises(store: &External, other: &External) {
    let ready = store.prepare().await.unwrap();
    assert!(ready.caveats.is_empty(), "{ready:?}");
    assert_eq!(ready.identity.len(), 32);
    assert_eq!(other.prepare().await.unwrap(), ready);

    versions(store, other).await;
    answers(store, other).await;
    closing(store, other).await;
    messages(store, other).await;
    sessions(store).await;
    contended(store, other).await;
}

async fn versions(store: &External, other: &External) {
    let session = group("line/3: Ärger=100%");
    assert_eq!(entries(store, &session).await, (0, BTreeMap::new()));
    let first = write(store, &session, 0, &[("x", Some("1")), ("y", Some(""))]).await;
    assert_eq!(first, Outcome::Committed(Version(1)));
    // Somebody who has not seen that gets nowhere, and leaves nothing.
    assert_eq!(
        write(other, &session, 0, &[("x", Some("2"))]).await,
        Outcome::Conflict
    );
    let second = write(other, &session, 1, &[("x", None), ("z", Some("3"))]).await;
    assert_eq!(second, Outcome::Committed(Version(2)));
    assert_eq!(
        write(store, &session, 1, &[("x", Some("4"))]).await,
        Outcome::Conflict
    );
    let expected = [("y", ""), ("z", "3")].map(|(key, value)| (key.to_owned(), value.into()));
    assert_eq!(entries(store, &session).await, (2, expected.into()));
    // Whoever only reads is told whether what was read still holds, and changes nothing.
    let read = store.commit(&silent(&session, Version(2))).await.unwrap();
    assert_eq!(read, Outcome::Committed(Version(2)));
    let stale = store.commit(&silent(&session, Version(1))).await.unwrap();
    assert_eq!(stale, Outcome::Conflict);
    let unknown = store.commit(&silent(&group("nobody"), Version(0))).await;
    assert_eq!(unknown.unwrap(), Outcome::Committed(Version(0)));
    // Values are bytes, keys are any text.
    let binary: Vec<u8> = (0..=255).collect();
    let writes = [("ключ 'k\" \\".to_owned(), Some(Bytes::from(binary.clone())))];
    let change = Change {
        writes: &writes,
        ..silent(&session, Version(2))
    };
    assert_eq!(
        store.commit(&change).await.unwrap(),
        Outcome::Committed(Version(3))
    );
    let (_, kept) = entries(other, &session).await;
    assert_eq!(kept["ключ 'k\" \\"], binary);
}

async fn answers(store: &External, other: &External) {
    let session = group("answers");
    let writes = [("n".to_owned(), Some(Bytes::from_static(b"1")))];
    let first = [("key".to_owned(), answer("one", NOW + 1000))];
    let change = Change {
        writes: &writes,
        answers: &first,
        ..silent(&session, Version(0))
    };
    assert_eq!(
        store.commit(&change).await.unwrap(),
        Outcome::Committed(Version(1))
    );
    // Whatever else it would do, the same key gets the same answer, and nothing happens.
    let second = answer("two", NOW + 1000);
    let both = ["new", "key"].map(|key| (key.to_owned(), second.clone()));
    let again = Change {
        answers: &both,
        base: Version(0),
        ..change.clone()
    };
    assert_eq!(
        other.commit(&again).await.unwrap(),
        Outcome::Replay(first[0].1.clone())
    );
    let found = other.answered(&session, &["new", "key"], NOW).await;
    assert_eq!(found.unwrap(), [None, Some(first[0].1.clone())]);
    assert_eq!(other.answered(&session, &[], NOW).await.unwrap(), []);
    assert_eq!(entries(other, &session).await.0, 1);
    // Without a write answers are kept as well, and the version stays.
    let silent_answers = ["silent", "quiet"].map(|key| (key.to_owned(), second.clone()));
    let silent_change = Change {
        answers: &silent_answers,
        ..silent(&session, Version(1))
    };
    assert_eq!(
        store.commit(&silent_change).await.unwrap(),
        Outcome::Committed(Version(1))
    );
    assert_eq!(
        store.commit(&silent_change).await.unwrap(),
        Outcome::Replay(second.clone())
    );
    let forget = async |keys: &[&str]| {
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        store.forget(&session, &keys).await.unwrap();
    };
    forget(&["silent", "nothing"]).await;
    let found = store.answered(&session, &["silent", "quiet"], NOW).await;
    assert_eq!(found.unwrap(), [None, Some(second)]);
    forget(&[]).await;
    forget(&["quiet", "key"]).await;
    let found = store.answered(&session, &["quiet", "key"], NOW).await;
    assert_eq!(found.unwrap(), [None, None]);
    let kept = store.keep_answers(&session, &first, NOW).await;
    kept.unwrap();
    let forever = answer("delivery", u64::MAX);
    let delivered = [("\u{1}delivery".to_owned(), forever.clone())];
    let change = Change {
        answers: &delivered,
        ..silent(&session, Version(1))
    };
    store.commit(&change).await.unwrap();
    store.tidy(NOW).await.unwrap();
    let found = store.answered(&session, &["\u{1}delivery"], NOW).await;
    assert_eq!(found.unwrap(), [Some(forever.clone())]);
    // All of them together, and those that were given elsewhere.
    let elsewhere: Vec<_> = (0..600)
        .map(|n| (format!("elsewhere-{n}"), answer("three", NOW + 2000)))
        .chain([("\u{1}other".to_owned(), forever.clone())])
        .collect();
    store.keep_answers(&session, &[], NOW).await.unwrap();
    other.keep_answers(&session, &elsewhere, NOW).await.unwrap();
    let mut expected: BTreeMap<_, _> = elsewhere.into_iter().collect();
    expected.extend(first);
    expected.insert("\u{1}delivery".to_owned(), forever);
    let all = store.answers(&session, NOW).await.unwrap();
    assert_eq!(all.into_iter().collect::<BTreeMap<_, _>>(), expected);
    expected.retain(|_, record| record.expires_unix_ms == u64::MAX);
    let later = store.answers(&session, NOW + 3000).await.unwrap();
    assert_eq!(later.into_iter().collect::<BTreeMap<_, _>>(), expected);
    let nobody = group("nobody");
    assert_eq!(store.answers(&nobody, NOW).await.unwrap(), Vec::new());
    let given = [("key".to_owned(), answer("one", NOW + 1000))];
    store.keep_answers(&nobody, &given, NOW).await.unwrap();
    assert_eq!(entries(other, &nobody).await.0, 0);
    assert_eq!(other.answers(&nobody, NOW).await.unwrap(), given);
}

async fn closing(store: &External, other: &External) {
    let session = group("closed");
    let by = Closed {
        stay: u64::MAX,
        epoch: Epoch(17),
    };
    let closed = [
        (CLOSED.to_owned(), Some(by.value())),
        ("n".to_owned(), Some(Bytes::from_static(b"1"))),
    ];
    let change = Change {
        writes: &closed,
        ..silent(&session, Version(0))
    };
    store.commit(&change).await.unwrap();
    let kept = other.load(&session).await.unwrap();
    assert_eq!(kept.closed, Some(by));
    assert_eq!(kept.entries, [("n".to_owned(), Bytes::from_static(b"1"))]);
    let opened = [(CLOSED.to_owned(), None)];
    let change = Change {
        writes: &opened,
        ..silent(&session, Version(1))
    };
    store.commit(&change).await.unwrap();
    let kept = other.load(&session).await.unwrap();
    assert_eq!((kept.closed, kept.entries.len()), (None, 1));
}

async fn messages(store: &External, other: &External) {
    let session = group("sender");
    assert_eq!(store.unsent(100).await.unwrap(), []);
    let both = [message("one"), message("two")];
    let change = Change {
        messages: &both,
        ..silent(&session, Version(0))
    };
    assert_eq!(
        store.commit(&change).await.unwrap(),
        Outcome::Committed(Version(1))
    );
    let more = [message("three")];
    let change = Change {
        messages: &more,
        ..silent(&session, Version(1))
    };
    assert_eq!(
        store.commit(&change).await.unwrap(),
        Outcome::Committed(Version(2))
    );
    assert_eq!(
        other.unsent(100).await.unwrap(),
        std::slice::from_ref(&session)
    );
    let found = other.messages(&session).await.unwrap();
    let (ids, found): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    assert_eq!(found, [both[0].clone(), both[1].clone(), more[0].clone()]);
    other.taken(&session, &ids[..2]).await.unwrap();
    assert_eq!(
        store.unsent(100).await.unwrap(),
        std::slice::from_ref(&session)
    );
    assert_eq!(store.messages(&session).await.unwrap().len(), 1);
    // State is not touched by it.
    assert_eq!(
        write(store, &session, 2, &[("a", Some("1"))]).await,
        Outcome::Committed(Version(3))
    );
    other.taken(&session, &ids[2..]).await.unwrap();
    assert_eq!(store.unsent(100).await.unwrap(), []);
    assert_eq!(entries(store, &session).await.0, 3);
}

async fn sessions(store: &External) {
    let listed = FunctionName::new("listed").unwrap();
    for at in [3, 1, 2] {
        let session = Group {
            function: listed.clone(),
            session: SessionName::new(&format!("s/{at}")).unwrap(),
        };
        write(store, &session, 0, &[("x", Some("1"))]).await;
    }
    let names = store.sessions(&listed, None, 2).await.unwrap();
    assert_eq!(names, ["s/1", "s/2"]);
    let names = store.sessions(&listed, Some("s/2"), 2).await.unwrap();
    assert_eq!(names, ["s/3"]);
    let second = Group {
        function: listed.clone(),
        session: SessionName::new("s/2").unwrap(),
    };
    store.remove(&second).await.unwrap();
    store.remove(&second).await.unwrap();
    assert_eq!(entries(store, &second).await, (0, BTreeMap::new()));
    let names = store.sessions(&listed, None, 10).await.unwrap();
    assert_eq!(names, ["s/1", "s/3"]);
}

/// Many writers, none of which loses what another one wrote.
async fn contended(store: &External, other: &External) {
    const EACH: u64 = 10;
    let session = group("contended");
    let session = &session;
    let one = async |store: &External| {
        for _ in 0..EACH {
            loop {
                let (version, entries) = entries(store, session).await;
                let count: u64 = entries
                    .get("n")
                    .map_or(0, |n| std::str::from_utf8(n).unwrap().parse().unwrap());
                let next = (count + 1).to_string();
                if let Outcome::Committed(_) =
                    write(store, session, version, &[("n", Some(&next))]).await
                {
                    break;
                }
            }
        }
    };
    tokio::join!(one(store), one(store), one(other), one(other));
    let (version, entries) = entries(other, session).await;
    assert_eq!(entries["n"], (4 * EACH).to_string());
    assert_eq!(version, 4 * EACH);
}

fn open(url: &str) -> External {
    External::open(url, &BTreeMap::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_its_promises() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap();
    keeps_its_promises(&open(url), &open(url)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_its_promises() {
    let mut server = Server::redis();
    let store = open(server.url());
    keeps_its_promises(&store, &open(server.url())).await;
    // What it has acknowledged survives it, and the connection finds it again.
    let session = group("survivor");
    write(&store, &session, 0, &[("x", Some("1"))]).await;
    server.kill();
    assert!(store.load(&session).await.is_err());
    server.restart();
    assert_eq!(eventually(&store, &session).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_its_promises() {
    let mut server = Server::postgres();
    let store = open(server.url());
    let other = open(server.url());
    keeps_its_promises(&store, &other).await;
    let session = group("survivor");
    write(&store, &session, 0, &[("x", Some("1"))]).await;
    server.kill();
    assert!(store.load(&session).await.is_err());
    server.restart();
    assert_eq!(eventually(&store, &session).await, 1);
}

/// The version of a session, once a server that was started again answers.
async fn eventually(store: &External, session: &Group) -> u64 {
    for _ in 0..200 {
        if let Ok(kept) = store.load(session).await {
            return kept.version.0;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the server does not come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_server_keeps_its_promises() {
    let Some(server) = S3::start() else {
        println!("moto_server is not installed: skipped");
        return;
    };
    let open = || External::open(S3::URL, &server.options()).unwrap();
    keeps_its_promises(&open(), &open()).await;
}

#[tokio::test]
async fn what_could_lose_writes_is_said() {
    // As it comes from the package: nothing is synced before it is acknowledged.
    let server = Server::careless_redis();
    let caveats = open(server.url()).prepare().await.unwrap().caveats;
    assert!(
        caveats.iter().any(|caveat| caveat.contains("append-only")),
        "{caveats:?}"
    );
}

#[tokio::test]
async fn what_is_no_store_is_said() {
    for url in ["gopher://x", "redis://", "postgres://host:port/x"] {
        let error = External::open(url, &BTreeMap::new())
            .err()
            .map(|error| error.to_string());
        assert!(
            error
                .as_deref()
                .is_some_and(|error| error.contains("redis://HOST")),
            "{url} {error:?}"
        );
    }
    let nobody = open("redis://127.0.0.1:1");
    let error = nobody.prepare().await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}
