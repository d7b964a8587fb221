//! The nodes: real processes on this machine, with what they store in a folder that goes with them, and with the ways
//! between them as they are between base stations, a factory and a data centre.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fulmar_model::ExecutionModel;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The function that all of it runs: `examples/twin`, built for release.
const TWIN: &[u8] = include_bytes!("twin.wasm");
/// Longest wait for a node.
const PATIENCE: Duration = Duration::from_secs(60);

/// A time in which little goes to the cloud and back when nothing is to do, and how little that is.
const CALM: Duration = Duration::from_secs(1);
const CALM_BYTES: u64 = 4000;

/// Name and site; the first is the cloud.
pub(super) const NODES: [(&str, &str); 7] = [
    ("cloud", "cloud"),
    ("road-1", "road"),
    ("road-2", "road"),
    ("road-3", "road"),
    ("plant-1", "plant"),
    ("plant-2", "plant"),
    ("plant-3", "plant"),
];
/// The external store among the links of a node.
const STORE: &str = "external-store";

/// Milliseconds in one direction, and bytes a second, between two sites.
fn way(one: &str, other: &str) -> (f64, f64) {
    match (one, other) {
        ("cloud", STORE) | (STORE, "cloud") => (0.25, 125e6),
        ("cloud" | STORE, _) | (_, "cloud" | STORE) => (20.0, 6.25e6),
        ("road", "road") => (7.5, 12.5e6),
        ("plant", "plant") => (3.0, 125e6),
        _ => (15.0, 12.5e6),
    }
}

/// A running node.
struct Node {
    name: &'static str,
    site: &'static str,
    process: Child,
    url: String,
}

/// All nodes; they end with it.
pub(super) struct Continuum {
    nodes: Vec<Node>,
    folder: PathBuf,
    agent: ureq::Agent,
}

impl Continuum {
    /// Starts the nodes and waits until all of them know each other.
    pub(super) fn start() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("fulmar-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let mut continuum = Self {
            nodes: Vec::new(),
            folder,
            agent: agent(),
        };
        let mut registry = String::new();
        for (name, site) in NODES {
            let process = begin(&continuum.folder, name, site, &registry)?;
            continuum.nodes.push(Node {
                name,
                site,
                process,
                url: String::new(),
            });
            if name == "cloud" {
                registry = format!("127.0.0.1:{}", continuum.wait_for(0)?);
            }
        }
        for at in 1..NODES.len() {
            continuum.wait_for(at)?;
        }
        Ok(continuum)
    }

    /// Waits until a node is ready; its port for other nodes.
    fn wait_for(&mut self, at: usize) -> anyhow::Result<u64> {
        let node = &mut self.nodes[at];
        let file = self.folder.join(format!("{}.ports", node.name));
        let log = self.folder.join(format!("{}.log", node.name));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read_to_string(&file)
                && let Ok(ports) = serde_json::from_str::<Value>(&text)
                && let (Some(http), Some(peer)) = (ports["http"].as_u64(), ports["peer"].as_u64())
            {
                node.url = format!("http://127.0.0.1:{http}");
                return Ok(peer);
            }
            if let Some(status) = node.process.try_wait()? {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("the node {} ended with {status}:\n{said}", node.name);
            }
            if Instant::now() > deadline {
                bail!("the node {} was not ready within {PATIENCE:?}", node.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where a node listens.
    pub(super) fn url(&self, name: &str) -> &str {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.map_or("", |node| &node.url)
    }

    /// Deploys the function under a model, as `twin-MODEL`.
    pub(super) fn deploy(&self, model: ExecutionModel) -> anyhow::Result<()> {
        let digest: String = Sha256::digest(TWIN)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let cloud = self.url("cloud");
        self.put(&format!("{cloud}/admin/artifacts/{digest}"), TWIN)?;
        let name = function(model);
        let manifest =
            format!("name = {name:?}\nartifact = \"twin.wasm\"\nexecution_model = \"{model}\"\n");
        let body = json!({ "manifest": manifest, "artifact": digest }).to_string();
        let path = format!("{cloud}/admin/functions/{name}");
        self.put(&path, body.as_bytes())
    }

    /// Has every node run the function once, so that nothing is compiled or made for the first time later.
    pub(super) fn warm_up(&self, model: ExecutionModel) -> anyhow::Result<()> {
        for node in &self.nodes {
            let path = format!("{}/fn/{}/warm-{}", node.url, function(model), node.name);
            let mut response = self.agent.post(&path).send(&b"sensor\n1"[..])?;
            let text = response.body_mut().read_to_string()?;
            if !response.status().is_success() {
                bail!("{path}: {text}");
            }
        }
        Ok(())
    }

    /// Waits until the nodes have told each other what there is to tell, so that only what is played is counted.
    pub(super) fn settle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut before = self.cloud_bytes()?;
        loop {
            std::thread::sleep(CALM);
            let now = self.cloud_bytes()?;
            if now - before < CALM_BYTES || Instant::now() > deadline {
                return Ok(());
            }
            before = now;
        }
    }

    /// Makes the ways between the nodes what they are.
    pub(super) fn shape(&self) -> anyhow::Result<()> {
        for from in &self.nodes {
            let others = self.nodes.iter().filter(|to| to.name != from.name);
            let ways = others.map(|to| (to.name, way(from.site, to.site)));
            for (to, (latency_ms, bytes_per_second)) in ways.chain([(STORE, way(from.site, STORE))])
            {
                let link =
                    json!({ "latency_ms": latency_ms, "bytes_per_second": bytes_per_second });
                let path = format!("{}/admin/links/{to}", from.url);
                self.put(&path, link.to_string().as_bytes())?;
            }
        }
        Ok(())
    }

    /// Bytes that have gone between the edge and the cloud so far, the external store included.
    pub(super) fn cloud_bytes(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for node in &self.nodes {
            let text = self
                .agent
                .get(format!("{}/admin/links", node.url))
                .call()?
                .body_mut()
                .read_to_string()?;
            let links: Value = serde_json::from_str(&text)?;
            for link in links["links"].as_array().into_iter().flatten() {
                let to = link["to"].as_str().unwrap_or_default();
                let is_between = match node.name {
                    "cloud" => to != STORE,
                    _ => to == "cloud" || to == STORE,
                };
                if is_between {
                    bytes += link["bytes_out"].as_u64().unwrap_or(0);
                    bytes += link["bytes_in"].as_u64().unwrap_or(0);
                }
            }
        }
        Ok(bytes)
    }

    fn put(&self, url: &str, body: &[u8]) -> anyhow::Result<()> {
        let mut response = self.agent.put(url).send(body)?;
        if !response.status().is_success() {
            bail!("{url}: {}", response.body_mut().read_to_string()?);
        }
        Ok(())
    }
}

impl Drop for Continuum {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Whatever is left of them is of no use: their folder goes as well.
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The name of the function under a model.
pub(super) fn function(model: ExecutionModel) -> String {
    format!("twin-{model}")
}

/// Whoever talks to the nodes.
pub(super) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into()
}

fn begin(folder: &Path, name: &str, site: &str, registry: &str) -> anyhow::Result<Child> {
    let zone = if name == "cloud" { "cloud" } else { "edge" };
    let peers = match registry {
        "" => String::new(),
        address => format!("[peers]\ncloud = {address:?}\n"),
    };
    let config = format!(
        "name = {name:?}\nsite = {site:?}\nzone = {zone:?}\ndata = {:?}\nspeed_up = 1.0\nemulate_links = true\n\
         [listen]\nhttp = \"127.0.0.1:0\"\npeer = \"127.0.0.1:0\"\n\
         [registry]\nembedded = \"cloud\"\n\
         [external]\nurl = {:?}\n{peers}",
        folder.join(name),
        folder.join("external-store"),
    );
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, config)?;
    let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
    Command::new(std::env::current_exe()?)
        .args(["node", "--log", "warn", "--config"])
        .arg(&path)
        .arg("--ports-file")
        .arg(folder.join(format!("{name}.ports")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start the node {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a change of the source: `cargo xtask guests`, copy `target/wasm32-wasip2/release/twin.wasm` to here, and set
    /// this.
    const BUILT_FROM: &str = "0c25a1300765676e462bd9679a11876b7f791833599df6950c0f99969cb78bef";

    #[test]
    fn the_component_is_built_from_the_source_that_there_is() {
        let source = include_bytes!("../../../../examples/twin/src/lib.rs");
        let digest = Sha256::digest(source);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, BUILT_FROM);
    }

    #[test]
    fn the_cloud_is_the_furthest_from_everywhere() {
        for (one, other) in [("road", "road"), ("plant", "plant"), ("road", "plant")] {
            assert!(way(one, other).0 < way(one, "cloud").0);
        }
        assert_eq!(way("road", "cloud"), way("cloud", "road"));
        assert_eq!(way("road", STORE), way("road", "cloud"));
    }
}
