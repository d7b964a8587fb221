//! Workers that are containers, started by a runtime of this machine.

#![allow(clippy::unwrap_used)]

mod common;
mod programs;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Bench, settings};
use fulmar_worker::{
    Artifact, CallError, Container, FileGrant, FunctionSettings, Image, Program, Programs,
};
use programs::{eventually, keep, main_of, post, put_sdk, try_out};

/// An image that has nothing but a function in Python; the interpreter is the machine's.
struct Contained {
    folder: tempfile::TempDir,
    programs: Arc<Programs>,
    artifact: Arc<Artifact>,
}

/// Whether containers can be started here; if not, says so loudly.
fn has_runtime() -> bool {
    let found = ["crun", "runc", "youki"];
    let works = |name: &&str| {
        let version = Command::new(name).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    };
    let has = found.iter().any(works);
    if !has {
        eprintln!("SKIPPED: no OCI runtime works here; install crun");
    }
    has
}

fn granted() -> FunctionSettings {
    let usr = FileGrant {
        host: PathBuf::from("/usr"),
        guest: "/usr".to_owned(),
        writable: false,
    };
    FunctionSettings {
        files: vec![usr],
        env: vec![("GREETING".to_owned(), "hello".to_owned())],
        ..settings()
    }
}

impl Contained {
    fn handler(body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for mounted in Image::MOUNTED.into_iter().chain(["usr", "app"]) {
            std::fs::create_dir_all(root.join(mounted)).unwrap();
        }
        for name in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        std::fs::write(root.join("app/main.py"), main_of(body)).unwrap();
        put_sdk(&root.join("app"));
        let python = ["/usr/bin/python3", "/usr/local/bin/python3"];
        let python = python.into_iter().find(|path| Path::new(path).exists());
        let image = Image {
            command: [python.unwrap(), "-S", "main.py"]
                .map(str::to_owned)
                .to_vec(),
            env: vec!["GREETING=of the image".to_owned()],
            folder: "/app".to_owned(),
            user: 1000,
            group: 1000,
        };
        let launcher = vec![env!("CARGO_BIN_EXE_confine").to_owned()];
        let instance = format!("{:016x}", fastrand::u64(..));
        let programs = Arc::new(Programs::open(launcher, folder.path(), &instance).unwrap());
        let container = Container {
            program: Program {
                folder: root.clone(),
                command: Vec::new(),
                programs: programs.clone(),
            },
            root,
            image,
        };
        Self {
            folder,
            programs,
            artifact: Arc::new(Artifact::container(container)),
        }
    }

    fn left(&self) -> usize {
        let run = std::fs::read_dir(self.folder.path().join("run")).unwrap();
        run.flatten().filter(|entry| entry.path().is_dir()).count()
    }
}

#[tokio::test]
async fn a_container_answers_with_its_state() {
    if !has_runtime() {
        return;
    }
    let contained = Contained::handler(
        "n = int(ctx.state.get('n', b'0')) + int(request.body)
ctx.state['n'] = str(n).encode()
ctx.shared('bucket').increment('all', 1)
return str(n)",
    );
    let mut bench = Bench::with(&contained.artifact, granted()).await;
    assert_eq!(keep(&mut bench, post("2")).await.unwrap(), "2");
    assert_eq!(try_out(&mut bench, post("5")).await.unwrap(), "7");
    assert_eq!(keep(&mut bench, post("1")).await.unwrap(), "3");
    drop(bench);
    eventually("its folder goes with it", || contained.left() == 0).await;
}

#[tokio::test]
async fn a_container_has_what_is_granted_and_nothing_else() {
    if !has_runtime() {
        return;
    }
    let contained = Contained::handler(
        r#"
import os, socket, subprocess
def tried(what):
    try:
        return str(what())
    except OSError as error:
        return type(error).__name__
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
return " ".join([
    str(os.getuid()), str(os.getgid()), str(os.getpid()), socket.gethostname(),
    status["CapBnd"].strip(), status["CapEff"].strip(), status["NoNewPrivs"].strip(), status["Seccomp"].strip(),
    os.environ["GREETING"],
    tried(lambda: open("/app/main.py", "a")),
    tried(lambda: open("/own", "w")),
    tried(lambda: open("/tmp/own", "w").write("own")),
    tried(lambda: open("/usr/own", "w")),
    tried(lambda: sorted(os.listdir("/sys/class/net")) if os.path.exists("/sys/class/net") else "none"),
    tried(lambda: socket.create_connection(("127.0.0.1", 1))),
    tried(lambda: ",".join(name for index, name in socket.if_nameindex())),
    tried(lambda: subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "x", "/tmp"], capture_output=True).returncode),
    tried(lambda: subprocess.run(["/usr/bin/unshare", "-U", "true"], capture_output=True).returncode),
    tried(lambda: os.path.exists("/etc/passwd")),
    tried(lambda: sum(name.isdigit() for name in os.listdir("/proc"))),
])"#,
    );
    let mut bench = Bench::with(&contained.artifact, granted()).await;
    let told = try_out(&mut bench, post("")).await.unwrap();
    let expected = "1000 1000 1 f 0000000000000000 0000000000000000 1 2 hello OSError OSError 3 OSError none \
        ConnectionRefusedError lo 32 1 False 1";
    let told = told.replace("PermissionError", "OSError");
    assert_eq!(
        told,
        expected.replace("        ", ""),
        "{:?}",
        bench.lines()
    );
}

#[tokio::test]
async fn a_container_ends_with_all_that_it_has_started() {
    if !has_runtime() {
        return;
    }
    // Its first process ignores what it has no handler for.
    let contained = Contained::handler(
        "import subprocess, time
subprocess.Popen(['/usr/bin/setsid', '/usr/bin/sleep', '1000'])
time.sleep(1000)",
    );
    let mut bench = Bench::with(&contained.artifact, granted()).await;
    bench.timeout = Duration::from_millis(500);
    assert_eq!(try_out(&mut bench, post("")).await, Err(CallError::Timeout));
    let groups = std::fs::read_to_string(contained.folder.path().join("run/cgroups"));
    drop(bench);
    eventually("its folder goes with it", || contained.left() == 0).await;
    for group in groups.unwrap_or_default().lines() {
        let left = std::fs::read_dir(group).unwrap().flatten();
        assert_eq!(left.filter(|entry| entry.path().is_dir()).count(), 0);
    }
}

#[tokio::test]
async fn a_container_with_too_little_memory_says_so() {
    if !has_runtime() {
        return;
    }
    let contained = Contained::handler("kept = b'x' * (200 << 20)\nreturn 'it had it'");
    if let Some(why) = contained.programs.why_no_cgroups() {
        eprintln!("SKIPPED: this machine has no cgroups for programs: {why}");
        return;
    }
    let mut bench = Bench::with(&contained.artifact, granted()).await;
    let error = try_out(&mut bench, post("")).await.unwrap_err();
    let limit = settings().memory_bytes;
    assert_eq!(error, CallError::MemoryLimit { limit });
}

#[tokio::test]
async fn what_does_not_start_is_explained() {
    if !has_runtime() {
        return;
    }
    let contained = Contained::handler("return 'x'");
    let lines = Arc::new(common::Lines::default());
    // Without the machine's interpreter there is none.
    let starting = common::start(&contained.artifact, settings(), &lines);
    let Err(error) = starting.await else {
        panic!("it started");
    };
    assert!(error.to_string().contains("python3"), "{error}");
    eventually("its folder goes with it", || contained.left() == 0).await;
}
