//! A real S3 server: moto, a Python package.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::etcd::free_ports;

/// Longest wait for the server.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server with a bucket.
pub struct S3 {
    server: Child,
    port: u16,
}

impl S3 {
    /// Starts it; none if it is not installed.
    pub fn start() -> Option<Self> {
        let port = free_ports(1)[0];
        let server = Command::new("moto_server")
            .args(["-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the S3 server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let make = b"PUT /bucket HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        connection.write_all(make).unwrap();
        let mut made = String::new();
        connection.read_to_string(&mut made).unwrap();
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        Some(Self { server, port })
    }

    /// What it is called by whoever uses it.
    pub const URL: &str = "s3://bucket/some/prefix";

    /// How it is used.
    pub fn options(&self) -> BTreeMap<String, String> {
        let options = [
            ("aws_endpoint", &*format!("http://127.0.0.1:{}", self.port)),
            ("aws_allow_http", "true"),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "id"),
            ("aws_secret_access_key", "key"),
        ];
        let owned = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
        owned.into()
    }

    /// Lets everybody wait who asks for anything.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Answers again.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let server = self.server.id().to_string();
        let sent = Command::new("kill").args([signal, &server]).status();
        assert!(sent.unwrap().success());
    }

    /// `[store]` of a node that uses it.
    pub fn store(&self) -> String {
        let options = self.options();
        let options: Vec<String> = options
            .iter()
            .map(|(key, value)| format!("{key} = {value:?}"))
            .collect();
        format!(
            "url = {:?}\noptions = {{ {} }}",
            Self::URL,
            options.join(", ")
        )
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
