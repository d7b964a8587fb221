//! A real Redis and a real PostgreSQL, each with its data in a folder of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::etcd::free_ports;

/// Longest wait for a server.
const PATIENCE: Duration = Duration::from_secs(60);
/// Whom PostgreSQL runs as when the tests run as root, which it refuses.
const NOBODY: u32 = 65_534;

/// A running server that keeps what it has acknowledged, whatever becomes of it.
pub struct Server {
    process: Child,
    command: Command,
    port: u16,
    answers: fn(u16) -> bool,
    url: String,
    _folder: tempfile::TempDir,
}

impl Server {
    pub fn redis() -> Self {
        Self::redis_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// One that only keeps what it has acknowledged for as long as it runs.
    pub fn careless_redis() -> Self {
        Self::redis_with(&[])
    }

    fn redis_with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_ports(1)[0];
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(options)
            .args(["--save", "", "--dir"])
            .arg(folder.path());
        let url = format!("redis://127.0.0.1:{port}");
        let why = "redis-server is installed (Debian package redis-server)";
        Self::start(command, port, redis_answers, url, folder, why)
    }

    pub fn postgres() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let port = free_ports(1)[0];
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|meta| {
            use std::os::unix::fs::MetadataExt;
            meta.uid() == 0
        });
        let as_somebody = |program: &str| {
            let mut command = Command::new(postgres(program));
            if is_root {
                command.uid(NOBODY).gid(NOBODY);
            }
            command
        };
        if is_root {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let made = as_somebody("initdb")
            .args(["-A", "trust", "-U", "fulmar", "--no-sync", "-D"])
            .arg(&data)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .status()
            .expect("PostgreSQL is installed (Debian package postgresql)");
        assert!(made.success(), "initdb");
        let mut command = as_somebody("postgres");
        command
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-D"])
            .arg(&data)
            .current_dir(folder.path());
        let url = format!("postgres://fulmar@127.0.0.1:{port}/postgres");
        let why = "postgres is installed";
        Self::start(command, port, postgres_answers, url, folder, why)
    }

    fn start(
        mut command: Command,
        port: u16,
        answers: fn(u16) -> bool,
        url: String,
        folder: tempfile::TempDir,
        why: &str,
    ) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect(why);
        let server = Self {
            process,
            command,
            port,
            answers,
            url,
            _folder: folder,
        };
        server.wait();
        server
    }

    fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        // A server that listens may still be reading its own log.
        while !(self.answers)(self.port) {
            assert!(Instant::now() < deadline, "{} does not answer", self.url);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How nodes reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills it, with everything that only it knows.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts it again with what is on its disk.
    pub fn restart(&mut self) {
        self.process = self.command.spawn().unwrap();
        self.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn redis_answers(port: u16) -> bool {
    let ask = || -> std::io::Result<[u8; 5]> {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        connection.read_exact(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| &answer == b"+PONG")
}

fn postgres_answers(port: u16) -> bool {
    let asked = Command::new(postgres("pg_isready"))
        .args(["--quiet", "--host", "127.0.0.1", "--port"])
        .arg(port.to_string())
        .status();
    asked.expect("pg_isready is installed").success()
}

/// A program of PostgreSQL, which Debian keeps out of the path.
fn postgres(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let found = versions
        .flatten()
        .map(|version| version.path().join("bin").join(program))
        .find(|path| path.exists());
    found.unwrap_or_else(|| Path::new(program).to_owned())
}
