//! `node.toml`: who a node is, where it listens and whom it knows.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use fulmar_model::{ByteSize, CpuAmount, Duration, NodeName, SiteName};
use serde::Deserialize;

/// The configuration of a node. Every key that is not named here is an error.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name of the node, unlike every other: lower-case letters, digits and inner hyphens.
    pub name: NodeName,
    /// Nodes that share a LAN have the same.
    pub site: SiteName,
    /// Where the node is.
    #[serde(default)]
    pub zone: Zone,
    /// Folder that holds everything the node stores, relative to this file.
    #[serde(default = "default_data")]
    pub data: PathBuf,
    /// How fast the node computes, against the reference machine; measured at start if not given.
    pub speed_up: Option<f64>,
    /// Where to listen.
    #[serde(default)]
    pub listen: Listen,
    /// Where others find it, if not where it listens.
    #[serde(default)]
    pub advertise: Advertise,
    /// No other node can dial this one, which then keeps connections open over which they reach it.
    #[serde(default)]
    pub behind_nat: bool,
    /// Other nodes and their peer addresses, `HOST:PORT`; at least the one with the embedded registry.
    #[serde(default)]
    pub peers: BTreeMap<NodeName, String>,
    /// The registry.
    pub registry: RegistryConfig,
    /// The object store.
    pub store: Option<StoreConfig>,
    /// The external store.
    pub external: Option<StoreConfig>,
    /// Certificates.
    pub tls: Option<Tls>,
    /// Let go without certificates and tokens although it can be reached from other machines.
    #[serde(default)]
    pub insecure: bool,
    /// What the node may use.
    #[serde(default)]
    pub limits: Limits,
    /// Whether sessions at home here move to the nodes that take their requests.
    #[serde(default)]
    pub follow_clients: Automatic,
    /// Whether invocations of functions with an SLO run on the node that is expected to answer soonest.
    #[serde(default)]
    pub offload: Automatic,
    /// Whether sessions at home here move to where their functions' `max_data_access` is kept.
    #[serde(default)]
    pub placement: Automatic,
    /// Whether sessions at home here go to the external store, and come back, when there are more of them than workers.
    #[serde(default)]
    pub local_state: Automatic,
    /// Shape the links to other nodes as `fulmar nodes link` says, for demonstrations and tests on one
    /// machine.
    #[serde(default)]
    pub emulate_links: bool,
}

fn default_data() -> PathBuf {
    "./.fulmar".into()
}

/// Where a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Zone {
    /// Near the clients, small.
    #[default]
    Edge,
    /// Far and large.
    Cloud,
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Edge => "edge",
            Self::Cloud => "cloud",
        })
    }
}

/// `[listen]`: where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// For clients.
    pub http: SocketAddr,
    /// For other nodes.
    pub peer: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 7400)),
            peer: SocketAddr::from(([127, 0, 0, 1], 7401)),
        }
    }
}

/// `[advertise]`: where others find the node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Advertise {
    /// Clients, as a URL.
    pub http: Option<String>,
    /// Other nodes, as `HOST:PORT`.
    pub peer: Option<String>,
}

/// Whether the platform does something by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Automatic {
    /// It does, if it pays.
    #[default]
    On,
    /// What would be done is only remembered.
    Observe,
    /// Nobody looks.
    Off,
}

/// `[registry]`: which one; exactly one of `embedded` and `etcd`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// The node that keeps it in its local data store.
    pub embedded: Option<NodeName>,
    /// Members of an etcd cluster, `https://HOST:PORT`, or `http://` on this machine.
    pub etcd: Option<Vec<String>>,
    /// Certificates of the authority that etcd's members have theirs from.
    pub ca: Option<PathBuf>,
    /// What the node shows etcd, if that asks for it, with its key.
    pub cert: Option<PathBuf>,
    /// That key.
    pub key: Option<PathBuf>,
    /// As whom the node speaks to etcd, if that has users.
    pub user: Option<String>,
    /// The user's password, in a file.
    pub password_file: Option<PathBuf>,
    /// What all keys in etcd begin with.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// A node that is silent for so long counts as gone.
    #[serde(default = "default_lease")]
    pub lease: Duration,
}

/// `[store]`: the object store that everything is copied to which the node commits. `[external]`: the store that keeps
/// the sessions of functions with `execution_model = "external"`; besides object stores `redis://HOST:PORT`,
/// `rediss://HOST:PORT` and `postgres://USER@HOST/DATABASE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, or a folder that all nodes see, relative to
    /// this file. The same for all nodes. Credentials come from the environment, as for the cloud's own tools.
    pub url: String,
    /// What those tools read from the environment, in lower case; more than what is there.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

fn default_prefix() -> String {
    "/fulmar/".into()
}

fn default_lease() -> Duration {
    Duration::from_millis(10_000)
}

/// `[tls]`: certificates, as PEM files relative to this file. For peers and for clients.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificates of the authority that all nodes trust.
    pub ca: PathBuf,
    /// The node's certificate chain, for `NAME.node.fulmar` and the names that clients use.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// `[limits]`: what the node may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory for hot sessions; above it idle ones are let go.
    pub hot_memory: ByteSize,
    /// Room on the disk below which invocations are refused.
    pub reserve_disk: ByteSize,
    /// Live workers at once.
    pub max_workers: u32,
    /// Memory for all of them, of which each takes the memory limit of its function. Without it only their number is
    /// bounded; a node with 0 runs no functions, and keeps state for others.
    pub worker_memory: Option<ByteSize>,
    /// CPU that workers may have reserved together; all of the machine's if it is not given.
    pub worker_cpu: Option<CpuAmount>,
    /// Time that a client has to send a request's head, and between two parts of its body.
    pub client_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hot_memory: ByteSize(64 << 20),
            reserve_disk: ByteSize(64 << 20),
            max_workers: 2000,
            worker_memory: None,
            worker_cpu: None,
            client_timeout: Duration::from_millis(10_000),
        }
    }
}

/// Which registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryChoice {
    /// Kept by this node.
    Here,
    /// Kept by another node.
    At(NodeName),
    /// Members of an etcd cluster.
    Etcd(Vec<String>),
}

impl RegistryConfig {
    /// How etcd is spoken to.
    fn check_etcd(&self, insecure: bool) -> Result<(), String> {
        let members = self.etcd.as_deref().unwrap_or_default();
        let is_safe = |member: &String| member.starts_with("https://");
        let has_tls = [&self.ca, &self.cert, &self.key]
            .iter()
            .any(|file| file.is_some());
        if has_tls && (members.is_empty() || !members.iter().all(is_safe)) {
            return Err(
                "[registry] has certificates, and not all members of etcd begin with https://"
                    .into(),
            );
        }
        if self.ca.is_none() && members.iter().any(is_safe) {
            return Err(
                "[registry] etcd is at https://, which needs `ca`, the authority's certificates"
                    .into(),
            );
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err("[registry] needs both `cert` and `key`, or none".into());
        }
        if self.user.is_some() != self.password_file.is_some()
            || (self.user.is_some() && members.is_empty())
        {
            return Err("[registry] needs `etcd`, `user` and `password_file` together".into());
        }
        let is_far = |member: &&String| !is_safe(member) && !is_on_this_machine(member);
        match members.iter().find(is_far) {
            Some(member) if !insecure => Err(format!(
                "[registry] etcd at {member} would be spoken to in the clear, keys and hashes included\n  fix: use https:// with `ca`, or insecure = true where the network itself is safe"
            )),
            _ => Ok(()),
        }
    }
}

fn is_on_this_machine(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file, or no text.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not as expected.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
}

impl NodeConfig {
    /// Reads a file; paths in it are relative to it.
    ///
    /// # Errors
    /// When it cannot be read, or says something that makes no sense.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let invalid = |reason: String| ConfigError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let mut config: Self = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        config.check().map_err(invalid)?;
        let base = path.parent().unwrap_or(Path::new("."));
        config.data = base.join(&config.data);
        for store in [&mut config.store, &mut config.external]
            .into_iter()
            .flatten()
        {
            if !store.url.contains("://") {
                store.url = base.join(&store.url).to_string_lossy().into_owned();
            }
        }
        let registry = &mut config.registry;
        for file in [
            &mut registry.ca,
            &mut registry.cert,
            &mut registry.key,
            &mut registry.password_file,
        ]
        .into_iter()
        .flatten()
        {
            *file = base.join(&*file);
        }
        if let Some(tls) = &mut config.tls {
            for file in [&mut tls.ca, &mut tls.cert, &mut tls.key] {
                *file = base.join(&*file);
            }
        }
        Ok(config)
    }

    /// What no single key can be blamed for.
    fn check(&self) -> Result<(), String> {
        let registry = &self.registry;
        match (&registry.embedded, &registry.etcd) {
            (Some(_), Some(_)) => {
                return Err("[registry] has both `embedded` and `etcd`; give one of them".into());
            }
            (None, None) => {
                return Err("[registry] needs `embedded = \"NODE\"`, the node that keeps it, or `etcd = [\"http://HOST:PORT\"]`".into());
            }
            (Some(host), None) if *host != self.name && !self.peers.contains_key(host) => {
                return Err(format!(
                    "the registry is at {host}, and [peers] does not say where that is; add {host} = \"HOST:PORT\" there"
                ));
            }
            (None, Some(members)) if members.is_empty() => {
                return Err("[registry] etcd names no member".into());
            }
            _ => {}
        }
        registry.check_etcd(self.insecure)?;
        if self.behind_nat && registry.embedded.as_ref() == Some(&self.name) {
            return Err("behind_nat: nobody could reach the registry that this node keeps; let another node keep it".into());
        }
        if self.peers.contains_key(&self.name) {
            return Err(format!("[peers] names {} itself; leave it out", self.name));
        }
        if registry.lease < Duration::from_millis(2_000) {
            return Err(format!(
                "[registry] lease is {}; at least 2s are needed, for a busy node may be late",
                registry.lease
            ));
        }
        if let Some(speed_up) = self.speed_up
            && !(speed_up.is_finite() && speed_up > 0.0)
        {
            return Err(format!("speed_up is {speed_up}; it has to be above 0"));
        }
        let is_open = |address: &SocketAddr| !address.ip().is_loopback();
        if self.tls.is_none()
            && !self.insecure
            && (is_open(&self.listen.http) || is_open(&self.listen.peer))
        {
            return Err("[listen] is open to other machines, and there is no [tls]: tokens and data would go over the network in the clear\n  fix: give [tls] (`fulmar ca` makes certificates), or insecure = true where the network itself is safe".into());
        }
        Ok(())
    }

    /// Which registry.
    pub fn registry(&self) -> RegistryChoice {
        match (&self.registry.embedded, &self.registry.etcd) {
            (_, Some(members)) => RegistryChoice::Etcd(members.clone()),
            (Some(host), None) if *host != self.name => RegistryChoice::At(host.clone()),
            _ => RegistryChoice::Here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NodeConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        NodeConfig::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_small_file_is_enough() {
        let config = read("name = \"a\"\nsite = \"s\"\nregistry.embedded = \"a\"").unwrap();
        assert_eq!(config.registry(), RegistryChoice::Here);
        assert_eq!(config.zone, Zone::Edge);
        assert!(config.data.ends_with(".fulmar"));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let base = "name = \"a\"\nsite = \"s\"\n";
        for (text, said) in [
            ("", "registry"),
            ("[registry]", "embedded"),
            ("[registry]\nembedded = \"b\"", "[peers] does not say where"),
            ("[registry]\netcd = []", "no member"),
            (
                "[registry]\netcd = [\"http://10.0.0.1:2379\"]",
                "in the clear",
            ),
            ("[registry]\netcd = [\"https://e:2379\"]", "needs `ca`"),
            (
                "[registry]\netcd = [\"http://[::1]:2379\"]\nca = \"ca.crt\"",
                "begin with https",
            ),
            (
                "[registry]\netcd = [\"https://e:2379\"]\nca = \"ca.crt\"\nkey = \"k\"",
                "both `cert` and `key`",
            ),
            (
                "[registry]\netcd = [\"http://localhost:2379\"]\nuser = \"u\"",
                "password_file",
            ),
            ("[registry]\nembedded = \"a\"\netcd = [\"x\"]", "both"),
            (
                "[registry]\nembedded = \"a\"\nlease = \"1s\"",
                "at least 2s",
            ),
            ("nmae = 1\n[registry]\nembedded = \"a\"", "nmae"),
            ("speed_up = -1.0\n[registry]\nembedded = \"a\"", "above 0"),
            (
                "[registry]\nembedded = \"a\"\n[listen]\npeer = \"0.0.0.0:1\"",
                "in the clear",
            ),
            (
                "behind_nat = true\n[registry]\nembedded = \"a\"",
                "let another node keep it",
            ),
            (
                "[registry]\nembedded = \"a\"\n[peers]\na = \"x:1\"",
                "itself",
            ),
        ] {
            let error = read(&format!("{base}{text}")).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(
            read("name = \"A\"\nsite = \"s\"")
                .unwrap_err()
                .contains("a-z")
        );
    }
}
