//! The interfaces that no function of the tests uses, called as the engine would call them.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fulmar_model::{FunctionName, Group, SessionName};
use fulmar_state::{Store, Transaction};
use wasmtime::component::Resource;

use super::Host;
use super::keyvalue::{Bucket, PAGE};
use crate::call::{Call, Request};
use crate::logs::{Level, LineStream, LogLine, LogSink, Writer};
use crate::settings::FunctionSettings;
use crate::wasm::bindings::offered::wasi::keyvalue0_2_0_draft as draft1;
use crate::wasm::bindings::offered::wasi::keyvalue0_2_0_draft2 as draft2;
use crate::wasm::bindings::offered::wasi::{config0_2_0_draft, config0_2_0_rc_1};

#[derive(Default)]
struct Lines(parking_lot::Mutex<Vec<String>>);

impl LogSink for Lines {
    fn log(&self, line: LogLine<'_>) {
        let text = format!("{} {}: {}", line.invocation, line.level, line.message);
        self.0.lock().push(text);
    }
}

fn function() -> FunctionName {
    FunctionName::new("f").unwrap()
}

/// A host in the middle of an invocation.
fn invoked(session: bool, read_only: bool) -> Host {
    let settings = FunctionSettings {
        config: [("key".to_owned(), "value".to_owned())].into(),
        ..FunctionSettings::default()
    };
    let logs: Arc<dyn LogSink> = Arc::new(Lines::default());
    let mut host = Host::new(&function(), &Arc::new(settings), &logs).unwrap();
    let session = session.then(|| SessionName::new("s").unwrap());
    host.begin(&call(session.clone()), transaction(session, read_only));
    host
}

fn call(session: Option<SessionName>) -> Call {
    Call {
        id: "i".into(),
        function: function(),
        session,
        tag: 0,
        goes_on: false,
        idempotency_key: None,
        attempt: 1,
        deadline: Instant::now() + Duration::from_secs(60),
        deadline_unix_ms: 0,
        request: Request::Bytes(bytes::Bytes::new()),
    }
}

fn transaction(session: Option<SessionName>, read_only: bool) -> Transaction {
    let store = Store::memory(Arc::new(()), Arc::new(|releases| releases())).unwrap();
    let session = session.map(|session| {
        let function = function();
        store
            .load_session(&Group { function, session }, store.epoch())
            .unwrap()
    });
    store.begin(session, read_only)
}

/// What nothing has to be waited for.
fn now<T>(call: impl Future<Output = T>) -> T {
    match pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits"),
    }
}

/// Handles are given away with each call.
fn again(handle: &Resource<Bucket>) -> Resource<Bucket> {
    Resource::new_borrow(handle.rep())
}

#[test]
fn both_drafts_of_keyvalue_see_the_same_buckets() {
    let mut host = invoked(true, false);
    let host = &mut host;
    for name in ["session", "shared-by-all"] {
        let old = draft1::store::Host::open(host, name.into())
            .unwrap()
            .unwrap();
        let new = draft2::store::Host::open(host, name.into())
            .unwrap()
            .unwrap();
        draft1::store::HostBucket::set(host, again(&old), "k".into(), b"v".to_vec())
            .unwrap()
            .unwrap();
        let seen = now(draft2::store::HostBucket::get(
            host,
            again(&new),
            "k".into(),
        ));
        assert_eq!(
            seen.unwrap().unwrap().as_deref(),
            Some(b"v".as_slice()),
            "{name}"
        );
        assert!(
            now(draft1::store::HostBucket::exists(
                host,
                again(&old),
                "k".into()
            ))
            .unwrap()
            .unwrap()
        );
        draft2::store::HostBucket::delete(host, again(&new), "k".into())
            .unwrap()
            .unwrap();
        assert!(
            !now(draft2::store::HostBucket::exists(
                host,
                again(&new),
                "k".into()
            ))
            .unwrap()
            .unwrap()
        );
        assert_eq!(
            now(draft1::atomics::Host::increment(
                host,
                again(&old),
                "n".into(),
                5
            ))
            .unwrap()
            .unwrap(),
            5
        );
        assert_eq!(
            now(draft2::atomics::Host::increment(
                host,
                again(&new),
                "n".into(),
                -2
            ))
            .unwrap()
            .unwrap(),
            3
        );
        draft1::store::HostBucket::drop(host, old).unwrap();
        draft2::store::HostBucket::drop(host, new).unwrap();
    }
    assert!(host.table.is_empty(), "handles were dropped");
}

#[test]
fn batches_tell_absent_keys_in_the_way_of_their_draft() {
    let mut host = invoked(true, false);
    let host = &mut host;
    let bucket = draft1::store::Host::open(host, "session".into())
        .unwrap()
        .unwrap();
    let (a, b) = (
        ("a".to_owned(), b"1".to_vec()),
        ("b".to_owned(), b"2".to_vec()),
    );
    draft2::batch::Host::set_many(host, again(&bucket), vec![a.clone(), b.clone()])
        .unwrap()
        .unwrap();
    let keys = || vec!["a".to_owned(), "none".into(), "b".into()];
    let old = now(draft1::batch::Host::get_many(host, again(&bucket), keys()))
        .unwrap()
        .unwrap();
    assert_eq!(old, [Some(a), None, Some(b)]);
    let new = now(draft2::batch::Host::get_many(host, again(&bucket), keys()))
        .unwrap()
        .unwrap();
    assert_eq!(new[1], ("none".to_owned(), None));
    assert_eq!(new[2], ("b".to_owned(), Some(b"2".to_vec())));
    draft1::batch::Host::delete_many(host, again(&bucket), keys())
        .unwrap()
        .unwrap();
    let left = now(draft2::store::HostBucket::list_keys(host, bucket, None))
        .unwrap()
        .unwrap();
    assert!(left.keys.is_empty() && left.cursor.is_none());
}

#[test]
fn listing_goes_on_where_the_page_before_ended() {
    let mut host = invoked(true, false);
    let host = &mut host;
    let bucket = draft1::store::Host::open(host, "session".into())
        .unwrap()
        .unwrap();
    let all: Vec<String> = (0..2 * PAGE + 1).map(|n| format!("{n:06}")).collect();
    let pairs = all.iter().map(|key| (key.clone(), vec![1])).collect();
    draft1::batch::Host::set_many(host, again(&bucket), pairs)
        .unwrap()
        .unwrap();

    let (mut cursor, mut seen) = (None, Vec::new());
    loop {
        let page = now(draft2::store::HostBucket::list_keys(
            host,
            again(&bucket),
            cursor,
        ))
        .unwrap()
        .unwrap();
        seen.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, all);

    let (mut cursor, mut seen) = (None, Vec::new());
    loop {
        let page = now(draft1::store::HostBucket::list_keys(
            host,
            again(&bucket),
            cursor,
        ))
        .unwrap()
        .unwrap();
        seen.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, all);
    let beyond = now(draft1::store::HostBucket::list_keys(
        host,
        again(&bucket),
        Some(u64::MAX),
    ));
    assert!(beyond.unwrap().unwrap().keys.is_empty());
}

#[test]
fn a_swap_that_lost_gives_a_handle_that_has_seen_the_winner() {
    let mut host = invoked(true, false);
    let host = &mut host;
    let bucket = draft2::store::Host::open(host, "b".into())
        .unwrap()
        .unwrap();
    let cas = now(draft2::atomics::HostCas::new(
        host,
        again(&bucket),
        "k".into(),
    ))
    .unwrap()
    .unwrap();
    let borrowed = Resource::new_borrow(cas.rep());
    assert_eq!(
        draft2::atomics::HostCas::current(host, borrowed)
            .unwrap()
            .unwrap(),
        None
    );
    draft2::store::HostBucket::set(host, again(&bucket), "k".into(), b"winner".to_vec())
        .unwrap()
        .unwrap();
    let lost = draft2::atomics::Host::swap(host, cas, b"loser".to_vec()).unwrap();
    let Err(draft2::atomics::CasError::CasFailed(retry)) = lost else {
        panic!("the value had changed");
    };
    let borrowed = Resource::new_borrow(retry.rep());
    let seen = draft2::atomics::HostCas::current(host, borrowed)
        .unwrap()
        .unwrap();
    assert_eq!(seen.as_deref(), Some(b"winner".as_slice()));
    assert!(
        draft2::atomics::Host::swap(host, retry, b"second".to_vec())
            .unwrap()
            .is_ok()
    );
    let now = now(draft2::store::HostBucket::get(host, bucket, "k".into()))
        .unwrap()
        .unwrap();
    assert_eq!(now.as_deref(), Some(b"second".as_slice()));
}

#[test]
fn what_keyvalue_refuses_has_the_error_of_the_standard() {
    let mut host = invoked(false, false);
    let without = draft1::store::Host::open(&mut host, "session".into()).unwrap();
    assert!(matches!(without, Err(draft1::store::Error::NoSuchStore)));
    let without = draft2::store::Host::open(&mut host, "session".into()).unwrap();
    assert!(matches!(without, Err(draft2::store::Error::NoSuchStore)));
    let nameless = draft2::store::Host::open(&mut host, String::new()).unwrap();
    assert!(matches!(nameless, Err(draft2::store::Error::Other(_))));
    assert!(
        draft1::store::Host::open(&mut host, "shared".into())
            .unwrap()
            .is_ok()
    );

    let mut host = invoked(true, true);
    let host = &mut host;
    let bucket = draft1::store::Host::open(host, "session".into())
        .unwrap()
        .unwrap();
    let write = draft1::store::HostBucket::set(host, again(&bucket), "k".into(), vec![]).unwrap();
    assert!(matches!(write, Err(draft1::store::Error::AccessDenied)));
    let write = now(draft2::atomics::Host::increment(
        host,
        again(&bucket),
        "k".into(),
        1,
    ))
    .unwrap();
    assert!(matches!(write, Err(draft2::store::Error::AccessDenied)));
    let huge = now(draft1::atomics::Host::increment(
        host,
        bucket,
        "k".into(),
        u64::MAX,
    ))
    .unwrap();
    assert!(matches!(huge, Err(draft1::store::Error::Other(_))));
}

#[test]
fn handles_have_an_end() {
    let mut host = invoked(true, false);
    let refused = (0..=super::MAX_HANDLES)
        .find_map(|_| draft1::store::Host::open(&mut host, "session".into()).err());
    assert!(
        refused.is_some(),
        "a trap, rather than all memory of the node"
    );
}

#[test]
fn nothing_is_reachable_while_a_worker_starts() {
    let logs: Arc<dyn LogSink> = Arc::new(Lines::default());
    let mut host = Host::new(&function(), &Arc::default(), &logs).unwrap();
    let host = &mut host;
    let bucket = draft1::store::Host::open(host, "b".into())
        .unwrap()
        .unwrap();
    let read = now(draft1::store::HostBucket::get(host, bucket, "k".into())).unwrap();
    assert!(matches!(read, Err(draft1::store::Error::Other(_))));
}

#[test]
fn both_versions_of_config_answer_from_the_manifest() {
    let mut host = invoked(false, false);
    let old = config0_2_0_draft::store::Host::get(&mut host, "key".into())
        .unwrap()
        .unwrap();
    let new = config0_2_0_rc_1::store::Host::get(&mut host, "key".into())
        .unwrap()
        .unwrap();
    assert_eq!(
        (old.as_deref(), new.as_deref()),
        (Some("value"), Some("value"))
    );
    assert_eq!(
        config0_2_0_rc_1::store::Host::get(&mut host, "none".into())
            .unwrap()
            .unwrap(),
        None
    );
    let all = config0_2_0_draft::store::Host::get_all(&mut host)
        .unwrap()
        .unwrap();
    assert_eq!(all, [("key".to_owned(), "value".to_owned())]);
}

#[test]
fn output_is_cut_into_lines_and_ends_with_the_invocation() {
    use wasmtime_wasi::p2::OutputStream;

    let lines = Arc::new(Lines::default());
    let writer = Writer::new(lines.clone(), function());
    let mut stream = LineStream::new(writer.clone(), Level::Info);
    writer.begin(None, "one".into());
    for part in ["a\nb", "c\r\n", "unfinished"] {
        stream.write(part.into()).unwrap();
    }
    stream.end_line();
    stream.end_line();
    writer.begin(None, "two".into());
    stream.write("d\n".into()).unwrap();
    let expected = [
        "one info: a",
        "one info: bc",
        "one info: unfinished",
        "two info: d",
    ];
    assert_eq!(*lines.0.lock(), expected);
}
