//! Workers that are programs: their life, their state, what they do wrong.

#![allow(clippy::unwrap_used)]

mod common;
mod programs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Bench, Lines, settings, start};
use fulmar_model::{Bucket, Group, SessionName};
use fulmar_state::SessionState;
use fulmar_worker::{CallError, Holds, Reply, Request};
use programs::{Script, commit, eventually, keep, post, try_out};
use proptest::prelude::*;

const COUNTER: &str = "n = int(ctx.state.get('n', b'0')) + int(request.body)\nctx.state['n'] = str(n).encode()\nreturn str(n)";

#[tokio::test]
async fn a_program_answers_with_its_state() {
    let script = Script::handler(COUNTER);
    let mut bench = Bench::of(&script.artifact).await;
    for _ in 0..3 {
        assert_eq!(try_out(&mut bench, post("2")).await.unwrap(), "2");
    }
    assert_eq!(keep(&mut bench, post("2")).await.unwrap(), "2");
    assert_eq!(keep(&mut bench, post("3")).await.unwrap(), "5");
    assert_eq!(try_out(&mut bench, post("1")).await.unwrap(), "6");
    assert_eq!(keep(&mut bench, post("10")).await.unwrap(), "15");
    // Somebody else writes.
    let mut tx = bench.store.begin(bench.session.clone(), false);
    tx.set(Bucket::Session, "n", "100".into()).unwrap();
    commit(&bench, tx);
    assert_eq!(keep(&mut bench, post("1")).await.unwrap(), "101");
    drop(bench);
    eventually("its folder goes with it", || script.left() == 0).await;
}

#[tokio::test]
async fn answers_without_a_body_keep_what_was_written() {
    let script = Script::handler(
        "n = int(ctx.state.get('n', b'0')) + 1
ctx.state['n'] = str(n).encode()
return fulmar.Response(request.method + str(n), 204 if request.body else 200)",
    );
    let mut bench = Bench::of(&script.artifact).await;
    assert_eq!(keep(&mut bench, post("")).await.unwrap(), "POST1");
    for (method, body, status, expected) in [
        ("POST", "x", 204, ""),
        ("HEAD", "", 200, ""),
        ("GET", "", 200, "GET4"),
    ] {
        let request = http::Request::builder().method(method).uri("http://node/");
        let request = request.body(Bytes::from_static(body.as_bytes())).unwrap();
        let (tx, result) = bench.run(Request::Http(Box::new(request))).await;
        let Ok(Reply::Http(response)) = result else {
            panic!("{method}: {result:?}");
        };
        assert_eq!(response.status(), status);
        assert_eq!(&response.body()[..], expected.as_bytes());
        commit(&bench, tx);
        let tag = bench.session.as_ref().unwrap().tag();
        bench.worker.committed(tag);
    }
}

/// A server of HTTP that knows nothing of Fulmar.
const PLAIN: &str = r#"
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = (self.path + " " + self.headers["fulmar-session"] + " ").encode() + body
        self.send_response(201)
        self.send_header("content-length", str(len(answer)))
        self.send_header("x-own", "yes")
        self.end_headers()
        self.wfile.write(answer)
    def address_string(self):
        return ""
class Server(socketserver.UnixStreamServer):
    pass
Server(os.environ["FULMAR_SOCKET"], Handler).serve_forever()
"#;

#[tokio::test]
async fn any_server_of_http_is_a_function() {
    let script = Script::new(PLAIN);
    let mut bench = Bench::of(&script.artifact).await;
    for _ in 0..2 {
        let (_, result) = bench.run(post("hello")).await;
        let Ok(Reply::Http(response)) = result else {
            panic!("{result:?}");
        };
        assert_eq!(response.status(), 201);
        assert_eq!(response.headers()["x-own"], "yes");
        assert_eq!(&response.body()[..], b"/path?query s hello");
    }
}

#[tokio::test]
async fn a_program_that_does_not_serve_is_explained() {
    let script =
        Script::new("import sys\nprint('too bad', file=sys.stderr)\nraise SystemExit(3)\n");
    let error = script.fails_to_start().await;
    assert!(error.contains("exited with status 3"), "{error}");
    assert!(error.contains("\"too bad\""), "{error}");
    let script = Script::of(
        tempfile::tempdir().unwrap(),
        vec!["no-such-program".to_owned()],
    );
    let error = script.fails_to_start().await;
    assert!(error.contains("no-such-program"), "{error}");
}

#[tokio::test]
async fn a_program_that_never_listens_is_given_up() {
    let script = Script::new("import time\ntime.sleep(1000)\n");
    let error = script.fails_to_start().await;
    assert!(
        error.contains("did not listen on FULMAR_SOCKET within"),
        "{error}"
    );
    eventually("its folder goes with it", || script.left() == 0).await;
}

/// Answers what is no HTTP.
const GARBAGE: &str = r#"
import os, socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["FULMAR_SOCKET"])
listener.listen()
connection, _ = listener.accept()
connection.recv(100)
connection.sendall(bytes(range(256)))
time.sleep(1000)
"#;

#[tokio::test]
async fn garbage_is_no_answer() {
    let script = Script::new(GARBAGE);
    let mut bench = Bench::of(&script.artifact).await;
    let error = try_out(&mut bench, post("")).await.unwrap_err();
    assert!(error.to_string().contains("not HTTP/1.1"), "{error}");
    assert!(bench.worker.is_poisoned());
}

#[tokio::test]
async fn what_a_program_does_wrong_is_an_error() {
    let script = Script::handler(
        "import os
file = open(os.environ['TMPDIR'] + '/large', 'wb')
file.seek(1 << 30)
try:
    file.write(b'x')
    file.flush()
except OSError as error:
    return os.strerror(error.errno)",
    );
    let mut bench = Bench::of(&script.artifact).await;
    let told = try_out(&mut bench, post("")).await.unwrap();
    assert_eq!(told, "File too large", "a gigabyte is the most");
    for (body, expected) in [
        ("import os\nos._exit(7)", "exited with status 7"),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
            "signal 9",
        ),
        ("return fulmar.Response(b'x' * (2 << 20))", "more than"),
    ] {
        let script = Script::handler(body);
        let mut bench = Bench::of(&script.artifact).await;
        let error = try_out(&mut bench, post("")).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(bench.worker.is_poisoned());
    }
}

#[tokio::test]
async fn a_program_that_hangs_is_cut_off_and_ended_with_its_children() {
    let script = Script::handler(
        "import signal, subprocess, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nchild = subprocess.Popen(['sleep', '1000'])\nprint(child.pid, flush=True)\ntime.sleep(1000)",
    );
    let mut bench = Bench::of(&script.artifact).await;
    bench.timeout = Duration::from_secs(1);
    let error = try_out(&mut bench, post("")).await.unwrap_err();
    assert_eq!(error, CallError::Timeout);
    let lines = bench.lines();
    let child = lines[0].rsplit(' ').next().unwrap().to_owned();
    let child = PathBuf::from(format!("/proc/{child}"));
    assert!(child.exists());
    drop(bench);
    // It is nobody's child any more, and may wait for whoever collects those.
    let runs =
        || std::fs::read_to_string(child.join("stat")).is_ok_and(|stat| !stat.contains(") Z "));
    eventually("what it has started ends", || !runs()).await;
    eventually("its folder goes with it", || script.left() == 0).await;
}

#[tokio::test]
async fn a_program_has_what_is_granted_and_nothing_else() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    let mut node = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    // A service of the machine; whoever is not root has none there.
    let service = format!("/run/fulmar-test-{}", node.id());
    let listener = std::os::unix::net::UnixListener::bind(&service);
    let attempt = format!(
        r#"
import os, socket, subprocess
def tried(what):
    try:
        return str(what())
    except Exception as error:
        return type(error).__name__
return " ".join([
    tried(lambda: open({secret:?}).read()),
    tried(lambda: open({secret:?} + "2", "w")),
    tried(lambda: open("main.py", "a")),
    tried(lambda: open(os.environ["TMPDIR"] + "/own", "w").write("own")),
    tried(lambda: socket.socket(socket.AF_INET)),
    tried(lambda: socket.socket(socket.AF_UNIX).family.name),
    tried(lambda: os.kill({pid}, 9)),
    tried(lambda: os.listdir("/proc/{pid}")),
    tried(lambda: subprocess.run(["mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True).returncode),
    tried(lambda: subprocess.run(["unshare", "-U", "true"], capture_output=True).returncode),
    tried(lambda: os.environ.get("CARGO_MANIFEST_DIR")),
    tried(lambda: open("/dev/null", "w").write("x")),
    tried(lambda: socket.socket(socket.AF_UNIX).connect({service:?})),
])
"#,
        pid = node.id()
    );
    let script = Script::handler(&attempt);
    let mut bench = Bench::of(&script.artifact).await;
    let told = try_out(&mut bench, post("")).await.unwrap();
    let expected = "PermissionError PermissionError PermissionError 3 PermissionError AF_UNIX \
        PermissionError PermissionError 32 1 None 1 FileNotFoundError";
    assert_eq!(told, expected, "{:?}", bench.lines());
    if listener.is_ok() {
        std::fs::remove_file(&service).unwrap();
    }
    assert!(node.try_wait().unwrap().is_none(), "it lives");
    node.kill().unwrap();
    node.wait().unwrap();
    // What is granted it has.
    let granted = fulmar_worker::FunctionSettings {
        network: true,
        files: vec![fulmar_worker::FileGrant {
            host: outside.path().to_owned(),
            guest: outside.path().to_string_lossy().into_owned(),
            writable: false,
        }],
        ..settings()
    };
    let mut bench = Bench::with(&script.artifact, granted).await;
    let told = try_out(&mut bench, post("")).await.unwrap();
    assert!(
        told.starts_with("s PermissionError PermissionError 3 <socket"),
        "{told}"
    );
}

#[tokio::test]
async fn what_an_invocation_leaves_behind_is_no_part_of_the_next() {
    let script = Script::handler(
        "import os, threading, time
if request.body == b'leave':
    def later():
        while not os.path.exists(os.environ['TMPDIR'] + '/go'):
            time.sleep(0.001)
        for _ in range(20):
            try:
                ctx.shared('session').set('late', b'1')
            except Exception as error:
                last = str(error)
        with open(os.environ['TMPDIR'] + '/doing', 'w') as told:
            told.write(last)
        os.rename(os.environ['TMPDIR'] + '/doing', os.environ['TMPDIR'] + '/done')
    threading.Thread(target=later).start()
    return 'left'
open(os.environ['TMPDIR'] + '/go', 'w')
while not os.path.exists(os.environ['TMPDIR'] + '/done'):
    time.sleep(0.001)
return open(os.environ['TMPDIR'] + '/done').read() + ' ' + ','.join(ctx.state)",
    );
    let mut bench = Bench::of(&script.artifact).await;
    assert_eq!(keep(&mut bench, post("leave")).await.unwrap(), "left");
    let told = keep(&mut bench, post("")).await.unwrap();
    assert!(
        told.contains("does not run") && told.ends_with(' '),
        "{told}"
    );
}

/// What happens to a session and its worker.
#[derive(Debug, Clone)]
enum Step {
    /// An invocation that sets a key, or deletes it; kept or taken back.
    Write {
        key: u8,
        value: Option<u16>,
        is_kept: bool,
    },
    /// Somebody else does.
    Other { key: u8, value: Option<u16> },
    /// Another session.
    Session(u8),
    /// Another worker.
    Restart,
    /// The session's state is let go and loaded again.
    Evict,
}

fn step() -> impl Strategy<Value = Step> {
    let write = || (0..4_u8, proptest::option::weighted(0.7, 0..1000_u16));
    prop_oneof![
        6 => (write(), proptest::bool::weighted(0.8)).prop_map(|((key, value), is_kept)| Step::Write { key, value, is_kept }),
        2 => write().prop_map(|(key, value)| Step::Other { key, value }),
        2 => (0..3_u8).prop_map(Step::Session),
        1 => Just(Step::Restart),
        1 => Just(Step::Evict),
    ]
}

/// Does what it is told to one key, and tells all of what it sees then.
const DIARY: &str = "word = request.body.decode().split()
if word[1:]:
    ctx.state[word[0]] = word[1].encode()
elif word[0] in ctx.state:
    del ctx.state[word[0]]
return ' '.join(key + '=' + value.decode() for key, value in sorted(ctx.state.items()))";

/// A session as it is stored.
async fn load(bench: &Bench, name: &str) -> Arc<SessionState> {
    let store = &bench.store;
    store.durable(store.commits().submitted()).await.unwrap();
    let group = Group {
        function: common::function(),
        session: SessionName::new(name).unwrap(),
    };
    store.load_session(&group, store.epoch()).unwrap()
}

async fn same_as_one_long_lived_worker(steps: Vec<Step>) {
    let script = Script::handler(DIARY);
    let mut bench = Bench::of(&script.artifact).await;
    bench.session = Some(load(&bench, "s-0").await);
    let lines = Arc::new(Lines::default());
    let mut all: BTreeMap<u8, BTreeMap<String, u16>> = BTreeMap::new();
    let mut at = 0;
    for step in steps {
        let expected = all.entry(at).or_default();
        match step {
            Step::Session(name) => {
                at = name;
                bench.session = Some(load(&bench, &format!("s-{name}")).await);
            }
            Step::Write {
                key,
                value,
                is_kept,
            } => {
                let key = format!("key-{key}");
                let body = match value {
                    Some(value) => format!("{key} {value}"),
                    None => key.clone(),
                };
                let before = expected.clone();
                match value {
                    Some(value) => _ = expected.insert(key, value),
                    None => _ = expected.remove(&key),
                }
                let seen = match is_kept {
                    true => keep(&mut bench, post(&body)).await.unwrap(),
                    false => try_out(&mut bench, post(&body)).await.unwrap(),
                };
                let told = expected.iter().map(|(key, value)| format!("{key}={value}"));
                assert_eq!(seen, told.collect::<Vec<_>>().join(" "));
                if !is_kept {
                    *expected = before;
                }
            }
            Step::Other { key, value } => {
                let key = format!("key-{key}");
                let mut tx = bench.store.begin(bench.session.clone(), false);
                match value {
                    Some(value) => {
                        let text = value.to_string();
                        tx.set(Bucket::Session, &key, text.into()).unwrap();
                        expected.insert(key, value);
                    }
                    None => {
                        tx.delete(Bucket::Session, &key).unwrap();
                        expected.remove(&key);
                    }
                }
                commit(&bench, tx);
            }
            Step::Restart => {
                let starting = start(&script.artifact, settings(), &lines);
                bench.worker = starting.await.unwrap();
            }
            Step::Evict => {
                let name = bench.session.take().unwrap().group().session.clone();
                bench.session = Some(load(&bench, name.as_str()).await);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_state_is_that_of_one_long_lived_worker(
        steps in proptest::collection::vec(step(), 1..30)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(same_as_one_long_lived_worker(steps));
    }
}
