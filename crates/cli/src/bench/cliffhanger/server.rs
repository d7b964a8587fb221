//! A node for one variant of an experiment: a process of its own, on an empty data directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fulmar_model::Manifest;
use serde_json::Value;

use super::kit::{Kind, Kit};
use crate::bench::request::resolve;
use crate::client::{Client, Target, segment};
use crate::deploy::{self, registry::Options};

/// Longest wait for a node.
const PATIENCE: Duration = Duration::from_secs(60);
/// The session of `aggregate` or `collect`.
pub(super) const SCENE: &str = "plaza";

/// Where a node has its artefacts, compiled ones as well.
const ARTIFACTS: &str = "data/artifacts";

/// A running node. It ends, and its data goes, when it is dropped.
pub(super) struct Server {
    process: Child,
    folder: PathBuf,
    external: Option<String>,
    pub(super) address: SocketAddr,
    client: Client,
}

impl Server {
    /// Starts a node with its data in this folder, which is made, and with the artefacts that others had before.
    pub(super) fn start(
        folder: &Path,
        artifacts: &Path,
        external: Option<&str>,
    ) -> anyhow::Result<Self> {
        let _ = std::fs::remove_dir_all(folder);
        copy_files(artifacts, &folder.join(ARTIFACTS))?;
        let (process, url) = begin(folder, external, 0)?;
        Ok(Self {
            process,
            folder: folder.to_owned(),
            external: external.map(str::to_owned),
            address: resolve(&url)?.1,
            client: Target::local(url).client()?,
        })
    }

    /// Kills the node, and starts it again at its address with what is on the disk.
    pub(super) fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        let port = self.address.port();
        (self.process, _) = begin(&self.folder, self.external.as_deref(), port)?;
        Ok(())
    }

    /// Kills a worker of a function that is a program; false if there is none.
    pub(super) fn kill_worker(&self) -> anyhow::Result<bool> {
        let node = self.process.id().to_string();
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            // Those that have ended meanwhile have no files any more.
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            let line = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
            // After the name, which is in brackets: state, parent.
            let parent = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1));
            if parent == Some(node.as_str()) && line.contains("main.py") {
                let pid = path.file_name().context("a process without a number")?;
                let killed = Command::new("kill").arg("-9").arg(pid).status()?;
                return Ok(killed.success());
            }
        }
        Ok(false)
    }

    /// Deploys a function of the kit, with changes to its manifest.
    pub(super) fn deploy(
        &self,
        kit: &Kit,
        function: &str,
        kind: Kind,
        change: impl FnOnce(&mut Manifest),
    ) -> anyhow::Result<()> {
        let (mut manifest, files) = kit.function(function, kind)?;
        change(&mut manifest);
        deploy::to_node(&self.client, &manifest, &files, &Options::default()).map(drop)
    }

    /// What the node tells of a function's workers.
    pub(super) fn workers(&self, function: &str) -> anyhow::Result<Value> {
        let path = format!("/admin/functions/{function}");
        Ok(self.client.json("GET", &path, None)?["workers"].take())
    }

    /// Keeps the artefacts that it has, compiled, for nodes that come later.
    pub(super) fn keep_artifacts(&self, artifacts: &Path) -> anyhow::Result<()> {
        copy_files(&self.folder.join(ARTIFACTS), artifacts)
    }

    /// Has the scene ready for frames; `collect` keeps everything if it is to.
    pub(super) fn open_scene(&self, kit: &Kit, keep: bool) -> anyhow::Result<()> {
        for (key, value) in kit.records(SCENE) {
            let path = format!("/admin/state/shared/mvot/key/{}", segment(&key));
            self.client.call("PUT", &path, Some(&value))?;
        }
        for (function, request) in kit.open_scene(keep) {
            self.ask(function, &request)?;
        }
        Ok(())
    }

    /// Invokes a function on the scene.
    pub(super) fn ask(&self, function: &str, request: &Value) -> anyhow::Result<Value> {
        let body = request.to_string();
        let path = format!("/fn/{function}/{SCENE}");
        self.client.json("POST", &path, Some(body.as_bytes()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // With SIGTERM it ends its programs as well.
        let pid = self.process.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status();
        let until = Instant::now() + PATIENCE / 4;
        while told.is_ok() && matches!(self.process.try_wait(), Ok(None)) && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Whatever is left of it is of no use.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Copies the files of a folder that are not there yet into another, which is made.
fn copy_files(from: &Path, to: &Path) -> anyhow::Result<()> {
    for folder in [from, to] {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for file in std::fs::read_dir(from)? {
        let file = file?;
        let copy = to.join(file.file_name());
        if file.file_type()?.is_file() && !copy.exists() {
            std::fs::copy(file.path(), &copy)
                .with_context(|| format!("cannot write {}", copy.display()))?;
        }
    }
    Ok(())
}

/// Starts the process and waits until it is ready: where it listens.
fn begin(folder: &Path, external: Option<&str>, port: u16) -> anyhow::Result<(Child, String)> {
    let ports = folder.join("ports");
    let _ = std::fs::remove_file(&ports);
    let log = folder.join("log");
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["dev", "--log", "warn", "--max-workers", "2000", "--data"])
        .arg(folder.join("data"))
        .args(["--port", &port.to_string(), "--ports-file"])
        .arg(&ports);
    if let Some(url) = external {
        command.args(["--external", url]);
    }
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log)?)
        .spawn()
        .context("cannot start a node")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read_to_string(&ports)
            && let Ok(known) = serde_json::from_str::<Value>(&text)
            && let Some(port) = known["http"].as_u64()
        {
            return Ok((process, format!("http://127.0.0.1:{port}")));
        }
        if let Some(status) = process.try_wait()? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("the node ended with {status}:\n{said}");
        }
        if Instant::now() > deadline {
            let _ = process.kill();
            bail!("the node was not ready within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
