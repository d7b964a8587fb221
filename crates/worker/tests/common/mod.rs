//! Functions to call, and somewhere to keep what they write.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_model::{FunctionName, Group, SessionName};
use fulmar_state::{SessionState, Store, Transaction};
use fulmar_worker::{
    Artifact, Call, CallError, FunctionSettings, LogLine, LogSink, Reply, Request, Reserved,
    Runtime, RuntimeOptions, Worker,
};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One engine for all tests of a program: its pool reserves much address space.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let options = RuntimeOptions {
        max_workers: 16,
        ..RuntimeOptions::default()
    };
    Runtime::new(&options).unwrap()
});

/// The folder of the functions that the tests call, built once.
pub fn guest(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--release", "--target", "wasm32-wasip2"])
            .args(["-p", "counter", "-p", "guest-faults"])
            .args(["-p", "guest-http-faults"])
            .current_dir(&root)
            .status()
            .unwrap();
        assert!(status.success(), "building the functions failed");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        target.join("wasm32-wasip2/release")
    });
    folder.join(format!("{}.wasm", name.replace('-', "_")))
}

/// Compiles a component and maps the result, as a node does.
pub fn deploy(wasm: &[u8]) -> Arc<Artifact> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("component.cwasm");
    std::fs::write(&path, RUNTIME.compile(wasm).unwrap().bytes).unwrap();
    RUNTIME.load(&path).unwrap()
}

/// A component written as text.
pub fn text(wat: &str) -> Arc<Artifact> {
    deploy(&wat::parse_str(wat).unwrap())
}

fn deploy_guest(name: &str) -> Arc<Artifact> {
    deploy(&std::fs::read(guest(name)).unwrap())
}

/// The function of `fulmar:function` that does what its input says.
pub fn faults() -> Arc<Artifact> {
    static MAPPED: LazyLock<Arc<Artifact>> = LazyLock::new(|| deploy_guest("guest-faults"));
    MAPPED.clone()
}

/// The function of `wasi:http` that does what its path says.
pub fn http_faults() -> Arc<Artifact> {
    static MAPPED: LazyLock<Arc<Artifact>> = LazyLock::new(|| deploy_guest("guest-http-faults"));
    MAPPED.clone()
}

/// What a manifest without limits of its own gives.
pub fn settings() -> FunctionSettings {
    FunctionSettings {
        memory_bytes: 64 << 20,
        max_response_bytes: 1 << 20,
        ..FunctionSettings::default()
    }
}

/// Keeps lines: `SESSION INVOCATION LEVEL: TEXT`.
#[derive(Default)]
pub struct Lines(Mutex<Vec<String>>);

impl LogSink for Lines {
    fn log(&self, line: LogLine<'_>) {
        let session = line.session.map_or("-", SessionName::as_str);
        let (invocation, level, message) = (line.invocation, line.level, line.message);
        self.0
            .lock()
            .unwrap()
            .push(format!("{session} {invocation} {level}: {message}"));
    }
}

/// A function with one live worker and one session.
pub struct Bench {
    pub store: Arc<Store>,
    pub session: Option<Arc<SessionState>>,
    pub worker: Worker,
    pub timeout: Duration,
    pub read_only: bool,
    lines: Arc<Lines>,
    calls: u64,
}

pub fn function() -> FunctionName {
    FunctionName::new("f").unwrap()
}

pub async fn start(
    artifact: &Arc<Artifact>,
    settings: FunctionSettings,
    lines: &Arc<Lines>,
) -> Result<Worker, CallError> {
    let logs: Arc<dyn LogSink> = lines.clone();
    Worker::start(
        Reserved::default(),
        artifact,
        &function(),
        &Arc::new(settings),
        &logs,
    )
    .await
}

impl Bench {
    pub async fn of(artifact: &Arc<Artifact>) -> Self {
        Self::with(artifact, settings()).await
    }

    pub async fn with(artifact: &Arc<Artifact>, settings: FunctionSettings) -> Self {
        let lines = Arc::new(Lines::default());
        let store = Store::memory(Arc::new(()), Arc::new(|releases| releases())).unwrap();
        let group = Group {
            function: function(),
            session: SessionName::new("s").unwrap(),
        };
        Self {
            session: Some(store.load_session(&group, store.epoch()).unwrap()),
            store,
            worker: start(artifact, settings, &lines).await.unwrap(),
            timeout: PATIENCE,
            read_only: false,
            lines,
            calls: 0,
        }
    }

    /// What was logged so far.
    pub fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.0.lock().unwrap())
    }

    /// Calls the worker; gives the transaction back as the function left it.
    pub async fn run(&mut self, request: Request) -> (Transaction, Result<Reply, CallError>) {
        self.calls += 1;
        let call = Call {
            id: format!("call-{}", self.calls).into(),
            function: function(),
            session: self
                .session
                .as_ref()
                .map(|session| session.group().session.clone()),
            tag: self.session.as_ref().map_or(0, |session| session.tag()),
            goes_on: false,
            idempotency_key: Some("idem".into()),
            attempt: 3,
            deadline: Instant::now() + self.timeout,
            deadline_unix_ms: 1234,
            request,
        };
        let tx = self.store.begin(self.session.clone(), self.read_only);
        self.worker.call(call, tx).await
    }

    /// Calls with bytes; nothing that the function wrote is kept.
    pub async fn say(&mut self, input: &str) -> Result<String, CallError> {
        let (_, result) = self.run(bytes(input)).await;
        result.map(|reply| match reply {
            Reply::Bytes(bytes) => String::from_utf8(bytes.into()).unwrap(),
            Reply::Http(_) => panic!("bytes are answered with bytes"),
        })
    }

    /// Calls with an HTTP request; nothing that the function wrote is kept.
    pub async fn get(&mut self, path: &str) -> Result<http::Response<Bytes>, CallError> {
        let request = http::Request::builder()
            .uri(format!("http://node{path}"))
            .header("host", "node")
            .body(Bytes::from_static(b"body"))
            .unwrap();
        let (_, result) = self.run(Request::Http(Box::new(request))).await;
        result.map(|reply| match reply {
            Reply::Http(response) => *response,
            Reply::Bytes(_) => panic!("a request is answered with a response"),
        })
    }
}

pub fn bytes(input: &str) -> Request {
    Request::Bytes(Bytes::copy_from_slice(input.as_bytes()))
}
