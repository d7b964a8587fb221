//! The store for external state: the one that was named, or a Redis that keeps what it acknowledges.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Longest wait for Redis.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store, which ends with this if it was started for it.
pub(super) struct Store {
    url: String,
    started: Option<Child>,
}

impl Store {
    /// The store of this URL, or else Redis; none if it is not installed.
    pub(super) fn find(url: Option<&str>, data: &Path) -> anyhow::Result<Option<Self>> {
        if let Some(url) = url {
            return Ok(Some(Self {
                url: url.to_owned(),
                started: None,
            }));
        }
        let folder = data.join("redis");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let started = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args([
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--save",
                "",
            ])
            .arg("--dir")
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("cannot start redis-server"),
        };
        let mut store = Self {
            url: format!("redis://127.0.0.1:{port}"),
            started: Some(process),
        };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = store.started.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = ended {
                bail!("redis-server ended with {status}");
            }
            if Instant::now() > deadline {
                bail!("redis-server does not listen");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Some(store))
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What to call it in a report: passwords are nobody's business.
    pub(super) fn kind(&self) -> &str {
        match self.url.split_once("://") {
            Some((scheme, _)) => scheme,
            None => "a folder",
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(process) = &mut self.started {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
