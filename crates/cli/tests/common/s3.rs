//! A real S3 server: moto, a Python package.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::etcd::free_ports;
use super::{Connection, PATIENCE};

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
        let made = Connection::open(port).request("PUT", "/bucket", &[], b"");
        assert_eq!(made.unwrap().status, 200);
        Some(Self { server, port })
    }

    /// `[store]` of a node that uses it.
    pub fn store(&self) -> String {
        format!(
            "url = \"s3://bucket/some/prefix\"\n\
             options = {{ aws_endpoint = \"http://127.0.0.1:{}\", aws_allow_http = \"true\", \
             aws_region = \"us-east-1\", aws_access_key_id = \"id\", aws_secret_access_key = \"key\" }}",
            self.port
        )
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
