//! Programs to call.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_model::Durability;
use fulmar_state::{Bookkeeping, Transaction};
use fulmar_worker::{Artifact, CallError, Holds, Program, Programs, Reply, Request};

use crate::common::{Bench, Lines, settings, start};

/// A program in Python that uses the SDK: `body` is the handler's.
pub struct Script {
    pub folder: tempfile::TempDir,
    pub artifact: Arc<Artifact>,
    pub programs: Arc<Programs>,
}

pub fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/python/src")
}

/// The SDK, as `pip install --target` puts it into a folder.
pub fn put_sdk(folder: &Path) {
    let (sdk, own) = (python().join("fulmar"), folder.join("fulmar"));
    std::fs::create_dir(&own).unwrap();
    for file in std::fs::read_dir(sdk).unwrap() {
        let file = file.unwrap();
        if file.path().is_file() {
            std::fs::copy(file.path(), own.join(file.file_name())).unwrap();
        }
    }
}

pub fn main_of(body: &str) -> String {
    let body = body.replace('\n', "\n    ");
    format!("import fulmar\n\ndef handle(request, ctx):\n    {body}\n\nfulmar.serve(handle)\n")
}

impl Script {
    pub fn new(source: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("main.py"), source).unwrap();
        put_sdk(folder.path());
        let command = ["python3", "-S", "main.py"].map(str::to_owned).to_vec();
        Self::of(folder, command)
    }

    pub fn handler(body: &str) -> Self {
        Self::new(&main_of(body))
    }

    pub fn of(folder: tempfile::TempDir, command: Vec<String>) -> Self {
        let launcher = vec![env!("CARGO_BIN_EXE_confine").to_owned()];
        let instance = format!("{:016x}", fastrand::u64(..));
        let programs = Arc::new(Programs::open(launcher, folder.path(), &instance).unwrap());
        let program = Program {
            folder: folder.path().to_owned(),
            command,
            programs: programs.clone(),
        };
        Self {
            folder,
            artifact: Arc::new(Artifact::program(program)),
            programs,
        }
    }

    pub async fn fails_to_start(&self) -> String {
        let lines = Arc::new(Lines::default());
        match start(&self.artifact, settings(), &lines).await {
            Ok(_) => panic!("it started"),
            Err(error) => error.to_string(),
        }
    }

    /// Workers' folders that are left.
    pub fn left(&self) -> usize {
        let run = std::fs::read_dir(self.folder.path().join("run"));
        let entries = run.into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().is_dir()).count()
    }
}

pub fn commit(bench: &Bench, tx: Transaction) {
    let Ok(prepared) = bench.store.prepare(tx, 0) else {
        panic!("nobody else writes");
    };
    let bookkeeping = Bookkeeping::default();
    let release = Box::new(|_| {});
    prepared
        .commit(Durability::Memory, bookkeeping, 0, release)
        .unwrap();
}

/// Calls, and commits what was written.
pub async fn keep(bench: &mut Bench, request: Request) -> Result<String, CallError> {
    let (tx, result) = bench.run(request).await;
    let reply = result?;
    commit(bench, tx);
    bench
        .worker
        .committed(bench.session.as_ref().unwrap().tag());
    Ok(text(reply))
}

/// Calls, and takes back what was written.
pub async fn try_out(bench: &mut Bench, request: Request) -> Result<String, CallError> {
    let (_, result) = bench.run(request).await;
    result.map(text)
}

pub fn text(reply: Reply) -> String {
    match reply {
        Reply::Http(response) => String::from_utf8(response.body().to_vec()).unwrap(),
        Reply::Bytes(_) => panic!("a request is answered with a response"),
    }
}

pub fn post(body: &str) -> Request {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let request = http::Request::post("http://node/path?query").body(body);
    Request::Http(Box::new(request.unwrap()))
}

pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
