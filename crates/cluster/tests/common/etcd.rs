//! A real etcd.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports that nobody listens on, from below those that the system gives to connections.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 100) as u16 * 100;
    let candidates = std::iter::repeat_with(|| {
        20_000 + (first - 20_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000
    });
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    candidates.filter(is_free).take(count).collect()
}

/// A running etcd of some members, each with its data in memory as far as the system allows.
pub struct Etcd {
    members: Vec<Child>,
    ports: Vec<u16>,
    _folder: tempfile::TempDir,
}

impl Etcd {
    pub fn start(members: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports(2 * members);
        let (clients, peers) = ports.split_at(members);
        let cluster: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(at, port)| format!("m{at}=http://127.0.0.1:{port}"))
            .collect();
        let members = (0..members).map(|at| {
            let client = format!("http://127.0.0.1:{}", clients[at]);
            let peer = format!("http://127.0.0.1:{}", peers[at]);
            Command::new("etcd")
                .args(["--name", &format!("m{at}"), "--data-dir"])
                .arg(folder.path().join(at.to_string()))
                .args([
                    "--listen-client-urls",
                    &client,
                    "--advertise-client-urls",
                    &client,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer,
                    "--initial-advertise-peer-urls",
                    &peer,
                ])
                .args(["--initial-cluster", &cluster.join(",")])
                .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("etcd is installed (Debian package etcd-server)")
        });
        Self {
            members: members.collect(),
            ports: clients.to_vec(),
            _folder: folder,
        }
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.ports
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}"))
            .collect()
    }

    pub fn kill(&mut self, member: usize) {
        self.members[member].kill().unwrap();
        self.members[member].wait().unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}
