//! What it takes to start a program, confined, until its first answer; and what a call takes then.
//!
//! `cargo bench -p fulmar-worker --bench programs`.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Bench, settings};
use fulmar_worker::{
    Artifact, Container, FileGrant, FunctionSettings, Image, Program, Programs, Request,
};

const STARTS: usize = 200;
const CALLS: usize = 5000;
/// With `ctx.state` in use, as functions have it.
const HANDLER: &str = "import fulmar
def handle(request, ctx):
    ctx.state['n'] = request.body
    return request.body
fulmar.serve(handle)
";

fn post() -> Request {
    let request = http::Request::post("http://node/").body(Bytes::from_static(b"hello"));
    Request::Http(Box::new(request.unwrap()))
}

fn percentiles(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!("{name}: p50 {:?}, p99 {:?}", at(0.5), at(0.99));
}

async fn measure(name: &str, artifact: &Arc<Artifact>, settings: FunctionSettings) {
    let mut starts = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let started = Instant::now();
        let mut bench = Bench::with(artifact, settings.clone()).await;
        bench.run(post()).await.1.unwrap();
        starts.push(started.elapsed());
    }
    percentiles(&format!("{name}, start and first call"), starts);
    let mut bench = Bench::with(artifact, settings).await;
    let mut calls = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let started = Instant::now();
        bench.run(post()).await.1.unwrap();
        calls.push(started.elapsed());
    }
    percentiles(&format!("{name}, call"), calls);
}

fn main() {
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/python/src/fulmar");
    std::fs::create_dir(folder.path().join("fulmar")).unwrap();
    for file in std::fs::read_dir(sdk).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let to = folder.path().join("fulmar").join(path.file_name().unwrap());
            std::fs::copy(&path, to).unwrap();
        }
    }
    std::fs::write(folder.path().join("main.py"), HANDLER).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_echo"), folder.path().join("echo")).unwrap();
    let launcher = vec![env!("CARGO_BIN_EXE_confine").to_owned()];
    let programs = Programs::open(launcher, folder.path(), "bench").unwrap();
    let programs = Arc::new(programs);
    let program = |command: &[&str]| {
        let program = Program {
            folder: folder.path().to_owned(),
            command: command.iter().map(|text| (*text).to_owned()).collect(),
            programs: programs.clone(),
        };
        Arc::new(Artifact::program(program))
    };
    // An image of nothing but that binary; the libraries that it is linked with are the machine's.
    let root = folder.path().join("root");
    for made in Image::MOUNTED.into_iter().chain(["usr"]) {
        std::fs::create_dir_all(root.join(made)).unwrap();
    }
    for name in ["lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).unwrap();
    }
    std::fs::copy(env!("CARGO_BIN_EXE_echo"), root.join("echo")).unwrap();
    let container = Artifact::container(Container {
        image: Image {
            command: vec!["/echo".to_owned()],
            ..Image::default()
        },
        program: Program {
            folder: root.clone(),
            command: Vec::new(),
            programs: programs.clone(),
        },
        root,
    });
    let usr = FileGrant {
        host: "/usr".into(),
        guest: "/usr".to_owned(),
        writable: false,
    };
    let granted = FunctionSettings {
        files: vec![usr],
        ..settings()
    };
    tokio.block_on(async {
        measure("a binary", &program(&["./echo"]), settings()).await;
        let python = program(&["python3", "main.py"]);
        measure("Python", &python, settings()).await;
        measure("a container", &Arc::new(container), granted).await;
    });
}
