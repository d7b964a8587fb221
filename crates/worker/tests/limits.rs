//! What a program may use of the machine, with all that it starts.

#![allow(clippy::unwrap_used)]

mod common;
mod programs;

use std::path::PathBuf;
use std::time::Duration;

use common::{Bench, settings};
use fulmar_worker::{CallError, Cpu, FunctionSettings};
use programs::{Script, eventually, post, try_out};

/// Whether workers are bounded as a whole; if not, says so loudly.
fn has_cgroups(script: &Script) -> bool {
    let why = script.programs.why_no_cgroups();
    if let Some(why) = why {
        eprintln!("SKIPPED: this machine has no cgroups for programs: {why}");
    }
    why.is_none()
}

#[tokio::test]
async fn a_memory_bomb_ends_its_worker_and_says_why() {
    for bomb in [
        "kept = b'x' * (200 << 20)",
        // Not by itself.
        "import subprocess, sys
child = subprocess.run([sys.executable, '-S', '-c', 'kept = bytes(200 << 20).replace(bytes(1), bytes([1]))'])
import time
time.sleep(0 if child.returncode == 0 else 1000)",
    ] {
        let script = Script::handler(&format!("{bomb}\nreturn 'it had it'"));
        if !has_cgroups(&script) {
            return;
        }
        let neighbour = Script::handler("return 'alive'");
        let mut beside = Bench::of(&neighbour.artifact).await;
        let mut bench = Bench::of(&script.artifact).await;
        bench.timeout = Duration::from_secs(5);
        let error = try_out(&mut bench, post("")).await.unwrap_err();
        let limit = settings().memory_bytes;
        let is_told = error == CallError::MemoryLimit { limit };
        // Of the first version only the process ends that wanted too much; then its parent waits.
        assert!(is_told || (bomb.contains("child") && error == CallError::Timeout), "{error}");
        assert_eq!(try_out(&mut beside, post("")).await.unwrap(), "alive");
        drop(bench);
        eventually("its folder goes with it", || script.left() == 0).await;
    }
}

#[tokio::test]
async fn without_cgroups_each_process_is_bounded() {
    // Its own limit: what it may have for itself.
    let script = Script::handler(
        "import resource
return str(resource.getrlimit(resource.RLIMIT_DATA)[0])",
    );
    let is_bounded = has_cgroups(&script);
    let mut bench = Bench::of(&script.artifact).await;
    let limit = try_out(&mut bench, post("")).await.unwrap();
    match is_bounded {
        true => assert_eq!(limit, "-1", "its cgroup bounds it"),
        false => assert_eq!(limit, settings().memory_bytes.to_string()),
    }
}

#[tokio::test]
async fn reserved_cpu_is_all_that_a_worker_gets() {
    let script = Script::handler(
        "import time
until = time.monotonic() + 1.5
before = time.process_time()
while time.monotonic() < until:
    pass
return str(time.process_time() - before)",
    );
    if !has_cgroups(&script) {
        return;
    }
    let reserved = FunctionSettings {
        cpu: Cpu::Reserved { millis: 100 },
        ..settings()
    };
    let mut bench = Bench::with(&script.artifact, reserved).await;
    let used: f64 = try_out(&mut bench, post(""))
        .await
        .unwrap()
        .parse()
        .unwrap();
    // A tenth, and what is left of the period in which it began.
    assert!(used < 0.45, "{used} s of 1.5 s");
}

#[tokio::test]
async fn whatever_it_starts_ends_with_it() {
    // Away from it in all ways that there are, but for its cgroup or its environment.
    let script = Script::handler(
        "import subprocess
child = subprocess.Popen(['setsid', '--fork', 'sleep', '1000'])
child.wait()
print('started', flush=True)
return 'started'",
    );
    let mut bench = Bench::of(&script.artifact).await;
    assert_eq!(try_out(&mut bench, post("")).await.unwrap(), "started");
    let of_script = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let mut all = all.filter_map(|process| std::fs::read(process.path().join("environ")).ok());
        let own = script.folder.path().to_str().unwrap().as_bytes().to_owned();
        all.any(|environment| environment.windows(own.len()).any(|part| part == own))
    };
    assert!(of_script(), "it runs");
    drop(bench);
    eventually("all ends", || !of_script()).await;
    eventually("its folder goes", || script.left() == 0).await;
    if let Some(listed) = cgroups(&script) {
        let left = |folder: &PathBuf| {
            let entries = std::fs::read_dir(folder).unwrap().flatten();
            entries.filter(|entry| entry.path().is_dir()).count()
        };
        eventually("its cgroups go", || {
            listed.iter().map(left).sum::<usize>() == 0
        })
        .await;
        drop(script);
        assert!(listed.iter().all(|folder| !folder.exists()));
    }
}

fn cgroups(script: &Script) -> Option<Vec<PathBuf>> {
    let listed = std::fs::read_to_string(script.folder.path().join("run/cgroups")).ok()?;
    Some(listed.lines().map(PathBuf::from).collect())
}
