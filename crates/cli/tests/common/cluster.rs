//! Some nodes as real processes that know each other.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub use super::etcd::free_ports;
use super::{Connection, Node, PATIENCE};

/// Nodes `n1`, `n2`, ... of one site; `n1` keeps the registry.
pub struct Cluster {
    pub nodes: Vec<Node>,
    folder: TempDir,
}

impl Cluster {
    /// Starts so many nodes.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, |_| String::new())
    }

    /// The same with further text of each one's configuration.
    pub fn start_with(count: usize, more: impl Fn(usize) -> String) -> Self {
        Self::start_all(count, "", more)
    }

    /// The same with further keys at the top of each one's configuration.
    pub fn start_with_top(count: usize, top: impl Fn(usize) -> String) -> Self {
        let cluster = Self::prepare(count, "", |_| String::new());
        for at in 0..count {
            let config = cluster.path().join(format!("n{}.toml", at + 1));
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(config, top(at) + &text).unwrap();
        }
        Self::run(cluster, count)
    }

    /// The same with further text at the top and at the end of each one's configuration.
    pub fn start_with_both(count: usize, top: &str, more: impl Fn(usize) -> String) -> Self {
        Self::start_all(count, top, more)
    }

    /// The same with links that can be changed.
    pub fn with_links(count: usize) -> Self {
        Self::start_all(count, "emulate_links = true\n", |_| String::new())
    }

    /// Nodes with an external store.
    pub fn with_external(count: usize, url: &str) -> Self {
        Self::start_with(count, |_| format!("[external]\nurl = {url:?}\n"))
    }

    /// The same with links that can be changed.
    pub fn with_links_and_external(count: usize, url: &str) -> Self {
        Self::start_all(count, "emulate_links = true\n", |_| {
            format!("[external]\nurl = {url:?}\n")
        })
    }

    /// Nodes whose sessions follow their clients, or only would, with links that can be changed.
    pub fn following(count: usize, follow_clients: &str) -> Self {
        let top = format!("emulate_links = true\nfollow_clients = {follow_clients:?}\n");
        Self::start_all(count, &top, |_| String::new())
    }

    /// Nodes whose sessions are placed, or only would be, with links that can be changed and further text of each one's
    /// configuration. Invocations run where they are taken: otherwise they go where the state is near, and it can stay.
    pub fn placing(count: usize, placement: &str, more: impl Fn(usize) -> String) -> Self {
        let top = format!("emulate_links = true\noffload = \"off\"\nplacement = {placement:?}\n");
        Self::start_all(count, &top, more)
    }

    /// Nodes with an etcd for a registry, and with links that can be changed.
    pub fn with_etcd(count: usize, endpoints: &[String]) -> Self {
        let cluster = Self::prepare(count, "emulate_links = true\n", |_| String::new());
        Self::run_with_etcd(cluster, count, endpoints)
    }

    /// The same with further text of each one's configuration.
    pub fn with_etcd_and(count: usize, endpoints: &[String], more: &str) -> Self {
        let cluster = Self::prepare(count, "emulate_links = true\n", |_| more.to_owned());
        Self::run_with_etcd(cluster, count, endpoints)
    }

    fn run_with_etcd(cluster: TempDir, count: usize, endpoints: &[String]) -> Self {
        for at in 1..=count {
            let config = cluster.path().join(format!("n{at}.toml"));
            let text = std::fs::read_to_string(&config).unwrap();
            let text = text.replace("embedded = \"n1\"", &format!("etcd = {endpoints:?}"));
            std::fs::write(config, text).unwrap();
        }
        Self::run(cluster, count)
    }

    /// Nodes with an object store, and with links that can be changed.
    pub fn with_store(count: usize, objects: &Path) -> Self {
        Self::start_all(count, "emulate_links = true\n", |_| {
            format!("[store]\nurl = {objects:?}\n")
        })
    }

    /// Nodes with a `[store]` of their own choice.
    pub fn with_store_text(count: usize, store: &str) -> Self {
        Self::start_all(count, "", |_| format!("[store]\n{store}\n"))
    }

    /// Nodes on several sites, with links that can be changed.
    pub fn on_sites(sites: &[&str]) -> Self {
        let cluster = Self::prepare(sites.len(), "emulate_links = true\n", |_| String::new());
        for (at, site) in sites.iter().enumerate() {
            let config = cluster.path().join(format!("n{}.toml", at + 1));
            let text = std::fs::read_to_string(&config).unwrap();
            let text = text.replace("site = \"here\"", &format!("site = {site:?}"));
            std::fs::write(config, text).unwrap();
        }
        Self::run(cluster, sites.len())
    }

    fn start_all(count: usize, top: &str, more: impl Fn(usize) -> String) -> Self {
        Self::run(Self::prepare(count, top, more), count)
    }

    /// A folder with a configuration for each node.
    fn prepare(count: usize, top: &str, more: impl Fn(usize) -> String) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports(2 * count);
        for at in 0..count {
            let data = folder.path().join(format!("n{}", at + 1));
            let config = folder.path().join(format!("n{}.toml", at + 1));
            // Most tests say themselves where sessions go.
            let mut top = top.to_owned();
            for decides in ["follow_clients", "placement"] {
                if !top.contains(decides) {
                    top += &format!("{decides} = \"off\"\n");
                }
            }
            let text = top + &text(at, &ports, &data) + &more(at);
            std::fs::write(config, text).unwrap();
        }
        folder
    }

    fn run(folder: TempDir, count: usize) -> Self {
        let begun: Vec<Node> = (1..=count)
            .map(|at| {
                let config = folder.path().join(format!("n{at}.toml"));
                Node::begin(&config, &folder.path().join(format!("n{at}")))
            })
            .collect();
        Self {
            nodes: begun.into_iter().map(Node::finish).collect(),
            folder,
        }
    }

    /// Nodes with configurations of their own.
    pub fn of_files(files: &[PathBuf]) -> Self {
        let begun: Vec<Node> = files
            .iter()
            .map(|file| Node::begin(file, &file.with_extension("data")))
            .collect();
        Self {
            nodes: begun.into_iter().map(Node::finish).collect(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Starts another `fulmar node` on a configuration and waits until it ends; what it said.
    pub fn start_in_vain(config: &Path) -> String {
        let mut started = Command::new(env!("CARGO_BIN_EXE_fulmar"))
            .args(["node", "--config"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match started.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let _ = started.kill();
        let ended = started.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(status.is_some_and(|status| !status.success()), "{said}");
        said
    }

    /// Changes the link from one node to another, if the node is there to be told.
    pub fn link(&self, from: usize, to: usize, link: &Value) {
        if let Some(mut connection) = Connection::try_open(self.nodes[from].port) {
            let path = format!("/admin/links/n{}", to + 1);
            let body = link.to_string();
            let _ = connection.request("PUT", &path, &[], body.as_bytes());
        }
    }

    /// Cuts a node off from some others, or brings it back.
    pub fn cut(&self, at: usize, others: &[usize], cut: bool) {
        let link = serde_json::json!({ "cut_out": cut, "cut_in": cut });
        for &other in others {
            self.link(at, other, &link);
            self.link(other, at, &link);
        }
    }

    /// Port on which a node listens for others.
    pub fn peer_port(&self, at: usize) -> u16 {
        let text = std::fs::read_to_string(self.config(at)).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("peer = "))
            .unwrap();
        line.trim_end_matches('"')
            .rsplit(':')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A node's configuration.
    pub fn config(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("n{}.toml", at + 1))
    }

    /// Sessions of a function that are at home on a node.
    pub fn sessions_at(&self, at: usize, function: &str) -> Vec<String> {
        let listed =
            self.nodes[at].get(&format!("/admin/sessions?function={function}&limit=10000"));
        let listed = listed.json();
        let sessions = listed["sessions"].as_array().unwrap().iter();
        sessions
            .map(|session| session["session"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn text(at: usize, ports: &[u16], data: &Path) -> String {
    let (http, peer) = (ports[2 * at], ports[2 * at + 1]);
    let known = match at {
        0 => String::new(),
        _ => format!("n1 = \"127.0.0.1:{}\"\n", ports[1]),
    };
    format!(
        "name = \"n{}\"\nsite = \"here\"\ndata = {data:?}\n\
         [listen]\nhttp = \"127.0.0.1:{http}\"\npeer = \"127.0.0.1:{peer}\"\n\
         [registry]\nembedded = \"n1\"\nlease = \"3s\"\n[peers]\n{known}",
        at + 1
    )
}
