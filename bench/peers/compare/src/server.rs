//! Starting and stopping a server: all its processes, on loopback.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::process;
use crate::setup::Setup;
use crate::target::Target;

/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(90);
/// How long it may take to end.
const STOP: Duration = Duration::from_secs(20);
/// Pause between two looks at something that is not there yet.
const LOOK: Duration = Duration::from_millis(2);
/// How long an idle server is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);
/// Connections to PostgreSQL.
const POSTGRES_CONNECTIONS: &str = "32";

/// A running server. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    target: Target,
    port: u16,
    /// In the order in which they were started.
    children: Vec<Child>,
    /// From starting the first process to the first answer with a status of 2xx.
    pub(crate) to_first_response: Duration,
}

/// Gives statuses of 400 and above as errors; gives up after ten seconds.
pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .into()
}

/// The body that answers a POST.
pub(crate) fn post(agent: &ureq::Agent, url: &str, body: &str) -> anyhow::Result<String> {
    let mut response = agent
        .post(url)
        .header("content-type", "application/json")
        .send(body)
        .with_context(|| format!("POST {url}"))?;
    ensure!(response.status().is_success(), "{}", response.status());
    Ok(response.body_mut().read_to_string()?)
}

impl Server {
    /// Starts a server and waits until it counts. `is_new`: with an empty folder, in which whatever is
    /// done once is done.
    pub(crate) fn start(setup: &Setup, target: Target, is_new: bool) -> anyhow::Result<Self> {
        let data = setup.data(target);
        if is_new && target == Target::Postgres {
            create_database(&data)?;
        }
        let mut server = Self {
            target,
            port: setup.port,
            children: Vec::new(),
            to_first_response: Duration::ZERO,
        };
        let start = Instant::now();
        server.launch(setup, &data)?;
        if is_new {
            server.do_once(setup)?;
        }
        server.wait_for("its first answer", |server| {
            let url = server.url(&target.counter_path().replace("{k}", "ready"));
            post(&agent(), &url, "0").map(drop)
        })?;
        server.to_first_response = start.elapsed();
        Ok(server)
    }

    fn launch(&mut self, setup: &Setup, data: &Path) -> anyhow::Result<()> {
        let front = format!("127.0.0.1:{}", self.port);
        let (second, third) = (self.port + 1, self.port + 2);
        match self.target {
            Target::Fulmar => {
                let mut command = guarded(&setup.fulmar);
                command.args(["dev", "--port", &self.port.to_string(), "--log", "warn"]);
                command.arg("--data").arg(data);
                self.spawn(setup, command)
            }
            Target::Axum => {
                let mut command = guarded(&setup.axum_peer());
                command.args([&front, "echo"]);
                self.spawn(setup, command)
            }
            Target::Redis => {
                let mut command = guarded(Path::new("redis-server"));
                command.args(["--port", &second.to_string(), "--bind", "127.0.0.1"]);
                command.args(["--save", "", "--appendonly", "yes"]);
                command.args(["--appendfsync", "always", "--dir"]).arg(data);
                self.spawn(setup, command)?;
                self.wait_for_port(second)?;
                let mut command = guarded(&setup.axum_peer());
                command.args([&front, "redis", &format!("redis://127.0.0.1:{second}")]);
                self.spawn(setup, command)
            }
            Target::Postgres => {
                let mut command = as_postgres(&Setup::postgres("postgres"));
                command.arg("-D").arg(data);
                for setting in [
                    &format!("port={second}"),
                    "listen_addresses=127.0.0.1",
                    "unix_socket_directories=",
                    "shared_buffers=512MB",
                    "max_wal_size=4GB",
                    "synchronous_commit=on",
                    "fsync=on",
                ] {
                    command.args(["-c", setting]);
                }
                self.spawn(setup, command)?;
                self.wait_for("PostgreSQL", |_| {
                    let port = second.to_string();
                    let status = Command::new(Setup::postgres("pg_isready"))
                        .args(["-q", "-h", "127.0.0.1", "-p", &port])
                        .status()?;
                    ensure!(status.success(), "pg_isready: {status}");
                    Ok(())
                })?;
                let mut command = guarded(&setup.axum_peer());
                let config = format!("host=127.0.0.1 port={second} user=postgres dbname=postgres");
                command.args([&front, "postgres", &config, POSTGRES_CONNECTIONS]);
                self.spawn(setup, command)
            }
            Target::Workerd => {
                let mut command = guarded(&setup.workerd()?);
                let store = format!("store={}", data.display());
                let socket = format!("http={front}");
                command.args(["serve", "--directory-path", &store]);
                command.args(["--socket-addr", &socket]);
                command.arg(setup.bench.join("peers/workerd/config.capnp"));
                self.spawn(setup, command)
            }
            Target::Restate | Target::Restate2 => {
                let mut command = guarded(&setup.restate_server()?);
                command.args(["--no-logo", "--bind-ip", "127.0.0.1", "--base-dir"]);
                command.arg(data);
                command.env("RESTATE_INGRESS__BIND_ADDRESS", &front);
                command.env("RESTATE_ADMIN__BIND_ADDRESS", admin(self.port));
                command.env("RESTATE_BIND_ADDRESS", format!("127.0.0.1:{third}"));
                command.env("RESTATE_LISTEN_MODE", "tcp");
                command.env("RESTATE_LOG_FILTER", "warn");
                command.env("RESTATE_DISABLE_TELEMETRY", "true");
                command.env("DO_NOT_TRACK", "1");
                if self.target == Target::Restate2 {
                    command.env("RESTATE_DEFAULT_NUM_PARTITIONS", "2");
                }
                self.spawn(setup, command)?;
                let mut command = guarded(&setup.restate_counter());
                command.arg(service(self.port));
                self.spawn(setup, command)
            }
        }
    }

    /// What is kept in the server's folder: deployments.
    fn do_once(&mut self, setup: &Setup) -> anyhow::Result<()> {
        match self.target {
            Target::Fulmar => {
                self.wait_for_port(self.port)?;
                for function in ["counter.wasm", "five.wasm"] {
                    let output = Command::new(&setup.fulmar)
                        .args(["deploy", "--node", &self.url("")])
                        .arg(setup.functions.join(function))
                        .output()?;
                    ensure!(
                        output.status.success(),
                        "{}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                }
                Ok(())
            }
            Target::Restate | Target::Restate2 => self.wait_for("its registration", |server| {
                let url = format!("http://{}/deployments", admin(server.port));
                let body = format!(
                    r#"{{"uri":"http://{}/","force":true}}"#,
                    service(server.port)
                );
                post(&agent(), &url, &body).map(drop)
            }),
            _ => Ok(()),
        }
    }

    fn spawn(&mut self, setup: &Setup, mut command: Command) -> anyhow::Result<()> {
        let name = format!("{}-{}.log", self.target, self.children.len());
        let log = File::options()
            .append(true)
            .create(true)
            .open(setup.logs().join(name))?;
        let child = command
            .current_dir(setup.data(self.target))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        self.children.push(child);
        Ok(())
    }

    /// Tries until it works, as long as all processes live.
    fn wait_for(
        &mut self,
        what: &str,
        mut attempt: impl FnMut(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + START;
        loop {
            let error = match attempt(self) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            for child in &mut self.children {
                if let Some(status) = child.try_wait()? {
                    bail!("a process ended with {status} before {what}");
                }
            }
            if Instant::now() > end {
                return Err(error.context(format!("{what} did not come in {START:?}")));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn wait_for_port(&mut self, port: u16) -> anyhow::Result<()> {
        self.wait_for("its port", |_| {
            std::net::TcpStream::connect(("127.0.0.1", port))?;
            Ok(())
        })
    }

    /// Address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Whether it has counters to check.
    pub(crate) fn counts(&self) -> bool {
        self.target != Target::Axum
    }

    /// Its processes; their children belong to it, too.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// Memory of all its processes when nothing happens.
    pub(crate) fn idle_bytes(&self) -> anyhow::Result<u64> {
        std::thread::sleep(SETTLE);
        process::memory_bytes(&self.pids())
    }

    /// Stops it in good order, what was started last first.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        while let Some(mut child) = self.children.pop() {
            // PostgreSQL waits for its clients on SIGTERM.
            let signal = match self.target {
                Target::Postgres => Signal::INT,
                _ => Signal::TERM,
            };
            kill_process(pid(&child)?, signal)?;
            let end = Instant::now() + STOP;
            while child.try_wait()?.is_none() {
                if Instant::now() > end {
                    child.kill()?;
                    child.wait()?;
                    bail!("{} did not stop in {STOP:?}", self.target);
                }
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for id in process::tree(&self.pids()) {
            if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                // It may have ended.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

fn pid(child: &Child) -> anyhow::Result<Pid> {
    Pid::from_raw(child.id().try_into()?).context("a process without an id")
}

fn admin(port: u16) -> String {
    format!("127.0.0.1:{}", port + 1)
}

/// Where Restate finds the counter.
fn service(port: u16) -> String {
    format!("127.0.0.1:{}", port + 3)
}

/// A command that ends with this program, however that ends.
fn guarded(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A command as the user postgres, if this is root: PostgreSQL refuses root.
fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return guarded(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn create_database(data: &Path) -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        let status = Command::new("chown").arg("postgres:").arg(data).status()?;
        ensure!(status.success(), "chown: {status}");
    }
    let output = as_postgres(&Setup::postgres("initdb"))
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-D",
        ])
        .arg(data)
        .current_dir("/")
        .output()
        .context("cannot start initdb")?;
    ensure!(
        output.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
