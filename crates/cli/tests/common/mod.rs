//! A real node as a real process, and a plain client for it.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

pub mod cluster;
#[path = "../../../cluster/tests/common/etcd.rs"]
pub mod etcd;
pub mod images;
pub mod objects;
#[path = "../../../state/tests/common/s3.rs"]
pub mod s3;
#[path = "../../../state/tests/common/servers.rs"]
pub mod servers;

/// Longest that anything may take here before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What gives a process another time, where Debian and its like put it.
pub fn faketime() -> String {
    let lib = std::fs::read_dir("/usr/lib").unwrap();
    let found = lib
        .map(|folder| folder.unwrap().path().join("faketime/libfaketime.so.1"))
        .find(|file| file.exists());
    let found = found.expect("the Debian package faketime is installed");
    found.to_str().unwrap().to_owned()
}

/// The components that the tests deploy, built once.
pub fn guest(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--release", "--target", "wasm32-wasip2"])
            .args(["-p", "counter", "-p", "counter-http"])
            .args(["-p", "guest-faults", "-p", "guest-http-faults"])
            .current_dir(&root)
            .status()
            .unwrap();
        assert!(status.success(), "building the test components failed");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        target.join("wasm32-wasip2/release")
    });
    folder.join(format!("{}.wasm", name.replace('-', "_")))
}

/// A running node. Killed when dropped.
pub struct Node {
    child: Child,
    pub port: u16,
    pub data: PathBuf,
    _folder: Option<tempfile::TempDir>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Node {
    /// Starts a node on a fresh data directory.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// The same with environment variables.
    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let arguments: Vec<String> = arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        let environment: Vec<(String, String)> = environment
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (child, port) = launch(&data, 0, &arguments, &environment);
        Self {
            child,
            port,
            data,
            _folder: Some(folder),
            arguments,
            environment,
        }
    }

    /// A node among others, started and not waited for: it may need them.
    fn begin(config: &Path, data: &Path) -> Self {
        let arguments = vec![
            "node".into(),
            "--config".into(),
            config.display().to_string(),
        ];
        let ports = data.with_extension("ports");
        let child = Command::new(env!("CARGO_BIN_EXE_fulmar"))
            .args(&arguments)
            .arg("--ports-file")
            .arg(&ports)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            port: 0,
            data: data.to_owned(),
            _folder: None,
            arguments,
            environment: Vec::new(),
        }
    }

    /// Waits until it is ready.
    fn finish(mut self) -> Self {
        let ports = self.data.with_extension("ports");
        let deadline = Instant::now() + PATIENCE;
        while self.port == 0 {
            assert!(self.child.try_wait().unwrap().is_none(), "the node ended");
            assert!(Instant::now() < deadline, "the node did not become ready");
            if let Ok(text) = std::fs::read_to_string(&ports) {
                let ports: Value = serde_json::from_str(&text).unwrap();
                self.port = u16::try_from(ports["http"].as_u64().unwrap()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self
    }

    /// Kills the node as a power cut would, and starts it again.
    pub fn crash_and_restart(&mut self) {
        self.crash();
        (self.child, self.port) = launch(&self.data, 0, &self.arguments, &self.environment);
    }

    /// The same at its old address, for clients that go on with it.
    pub fn crash_and_come_back(&mut self) {
        self.crash();
        let port = self.port;
        (self.child, self.port) = launch(&self.data, port, &self.arguments, &self.environment);
    }

    /// Starts the node again after [`Node::crash`].
    pub fn start_again(&mut self) {
        (self.child, self.port) = launch(&self.data, 0, &self.arguments, &self.environment);
    }

    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, as `kill` does: `-STOP`, `-CONT`.
    pub fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        let status = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// Stops the node with SIGTERM; it has to exit with 0.
    pub fn stop(&mut self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the node does not stop");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "the node stopped with {status}");
    }

    pub fn restart(&mut self) {
        self.stop();
        (self.child, self.port) = launch(&self.data, 0, &self.arguments, &self.environment);
    }

    /// A metric without labels; 0 if there is none of this name.
    pub fn metric(&self, name: &str) -> String {
        let metrics = self.get("/metrics").text();
        let found = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or("0").to_owned()
    }

    /// With a variable of the environment from the next start on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Deploys a component with further manifest text.
    pub fn deploy(&self, name: &str, component: &str, manifest: &str) {
        let wasm = std::fs::read(guest(component)).unwrap();
        let reply = self.try_deploy(name, &wasm, manifest);
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    pub fn try_deploy(&self, name: &str, wasm: &[u8], manifest: &str) -> Reply {
        let digest = sha256(wasm);
        let reply = self.request("PUT", &format!("/admin/artifacts/{digest}"), &[], wasm);
        if reply.status != 200 {
            return reply;
        }
        let manifest = format!("name = {name:?}\nartifact = \"x.wasm\"\n{manifest}");
        let body = serde_json::json!({ "manifest": manifest, "artifact": digest }).to_string();
        self.request(
            "PUT",
            &format!("/admin/functions/{name}"),
            &[],
            body.as_bytes(),
        )
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        Connection::open(self.port)
            .request(method, path, headers, body)
            .unwrap()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"")
    }

    /// Invokes and expects success.
    pub fn invoke(&self, path: &str, body: &str) -> String {
        let reply = self.request("POST", &format!("/fn/{path}"), &[], body.as_bytes());
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text());
        reply.text()
    }

    /// Invokes and expects a problem with this code and status.
    pub fn invoke_fails(&self, path: &str, body: &str, status: u16, code: &str) -> Reply {
        let reply = self.request("POST", &format!("/fn/{path}"), &[], body.as_bytes());
        reply.expect_problem(status, code);
        reply
    }

    /// Asks until the answer is as expected: for effects that come on their own.
    pub fn eventually(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It ends its programs; nobody else would.
        let workers = std::fs::read_dir(self.data.join("run"));
        let has_workers = workers.is_ok_and(|mut workers| workers.next().is_some());
        if has_workers && matches!(self.child.try_wait(), Ok(None)) {
            let pid = self.child.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
            let until = Instant::now() + PATIENCE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the command line against a node; what it printed, or why it failed.
pub fn fulmar(node: &Node, args: &[&str]) -> Result<String, String> {
    let ran = Command::new(env!("CARGO_BIN_EXE_fulmar"))
        .args(args)
        .args(["--node", &format!("http://127.0.0.1:{}", node.port)])
        .output()
        .unwrap();
    match ran.status.success() {
        true => Ok(String::from_utf8(ran.stdout).unwrap().trim().to_owned()),
        false => Err(String::from_utf8(ran.stderr).unwrap()),
    }
}

/// Starts `fulmar dev`, or `fulmar node` if that is what the arguments begin with; its address is in its
/// configuration then.
fn launch(
    data: &Path,
    port: u16,
    arguments: &[String],
    environment: &[(String, String)],
) -> (Child, u16) {
    let ports = data.with_extension("ports");
    // A file of an earlier start would name its port.
    let _ = std::fs::remove_file(&ports);
    let mut command = Command::new(env!("CARGO_BIN_EXE_fulmar"));
    if arguments.first().is_none_or(|first| first != "node") {
        command.args(["dev", "--port", &port.to_string(), "--data"]);
        // Relative, as it is if nobody says anything.
        command.arg(data.file_name().unwrap());
        command.current_dir(data.parent().unwrap());
    }
    let child = command
        .args(arguments)
        .arg("--ports-file")
        .arg(&ports)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(child, &ports)
}

/// Waits until a node has written where it listens.
fn wait_for(mut child: Child, ports: &Path) -> (Child, u16) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read_to_string(ports) {
            let ports: Value = serde_json::from_str(&text).unwrap();
            return (
                child,
                u16::try_from(ports["http"].as_u64().unwrap()).unwrap(),
            );
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the node ended with {status} before it was ready");
        }
        assert!(Instant::now() < deadline, "the node did not become ready");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// The node that ran the invocation.
    pub fn ran_at(&self) -> &str {
        assert_eq!(self.status, 200, "{}", self.text());
        let invocation = self.header("fulmar-invocation").unwrap();
        invocation.split('-').next().unwrap()
    }

    pub fn expect_problem(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status, self.json()["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.text()
        );
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
    }
}

/// One keep-alive connection.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// None if nobody listens.
    pub fn try_open(port: u16) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(Self(BufReader::new(stream)))
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Reply> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut whole = format!("{head}\r\n").into_bytes();
        whole.extend_from_slice(body);
        // A node that refuses early may close before it has read everything: its answer counts.
        let sent = self.send(&whole);
        self.read_reply(method == "HEAD")
            .or_else(|error| sent.and(Err(error)))
    }

    pub fn read_reply(&mut self, headless: bool) -> std::io::Result<Reply> {
        let bad =
            |text: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, text.to_owned());
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| bad(&line))?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut reply = Reply {
            status,
            headers,
            body: Vec::new(),
        };
        if headless {
            return Ok(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                line.clear();
                self.0.read_line(&mut line)?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(|_| bad(&line))?;
                let mut chunk = vec![0; size + 2];
                self.0.read_exact(&mut chunk)?;
                if size == 0 {
                    return Ok(reply);
                }
                reply.body.extend_from_slice(&chunk[..size]);
            }
        }
        let length = reply
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        reply.body = vec![0; length];
        self.0.read_exact(&mut reply.body)?;
        Ok(reply)
    }
}
