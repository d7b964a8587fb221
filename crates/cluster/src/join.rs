//! A node in the cluster: from joining to leaving.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_model::NodeName;
use fulmar_state::{Store, StoreError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ConfigError, NodeConfig, RegistryChoice};
use crate::custody::Custody;
use crate::directory::Directory;
use crate::handler::Handler;
use crate::hints::{self, Hints};
use crate::identity::{Identity, IdentityError};
use crate::membership;
use crate::network::{Listener, Network};
use crate::peers::Peers;
use crate::registry::embedded::Embedded;
use crate::registry::etcd::{Access, Etcd};
use crate::registry::remote::Remote;
use crate::registry::{Entry, Registry, RegistryError, Written};
use crate::serve::Ending;
use crate::view::{self, NODES, NodeInfo, View};

/// Pause before the registry is tried again while a node joins.
const RETRY: Duration = Duration::from_millis(500);
/// A node that has been a member waits so long for the registry before it starts without.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for the others' first answers.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// Pause between two looks at the directory.
const TIDY: Duration = Duration::from_secs(2);

/// A node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file that its configuration names cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The local data store cannot be read or written.
    #[error("the local data store: {0}")]
    Store(String),
    /// The registry does not want it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Another node has its name.
    #[error(
        "the name {name} belongs to another node (instance {instance}, {}, peer address {address:?}); give this node another name, or, if its data directory is lost for good, remove the old one with `fulmar nodes forget {name}`",
        if *.live { "running" } else { "not running" }
    )]
    NameTaken {
        /// The name.
        name: NodeName,
        /// Whose it is.
        instance: String,
        /// Where that one is.
        address: String,
        /// Whether that one is running.
        live: bool,
    },
    /// The data directory is older than what the cluster has seen of it.
    #[error(
        "this is start {own} of the data directory, and the cluster has seen start {seen} of it before: it is an old copy, which must not serve what has changed since; use the newer one"
    )]
    OldData {
        /// Which start of this data directory it is.
        own: u64,
        /// The last one that was seen.
        seen: u64,
    },
    /// The registry is older than what the node has seen of it.
    #[error(
        "the registry is at revision {found}, and this node has seen {seen}: it was restored from a backup, or is another registry; who owns what may be wrong in it. Restore it from a later backup, or remove the node's data directory if it is to join another cluster"
    )]
    OldRegistry {
        /// The registry's last change.
        found: u64,
        /// The last change seen.
        seen: u64,
    },
    /// Stopped while joining.
    #[error("stopped before the registry could be reached: {0}")]
    Stopped(String),
}

impl From<StoreError> for JoinError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// A node as a member of its cluster.
pub struct Cluster {
    config: NodeConfig,
    info: NodeInfo,
    peers: Arc<Peers>,
    registry: Arc<dyn Registry>,
    embedded: Option<Embedded>,
    view: Arc<View>,
    directory: Directory,
    store: Arc<Store>,
    custody: Arc<Custody>,
    hints: Hints,
}

/// How it stands with the cluster, as seen by this node.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Whether the registry is followed at this moment.
    pub registry: bool,
    /// Whether others count this node as running.
    pub lease: bool,
    /// Why it is no member, if so.
    pub fault: Option<String>,
}

/// How fast this machine computes, in thousandths of the reference machine: the best of some short
/// runs, so that what else runs counts little.
fn measure() -> u64 {
    /// Rounds in a second on the reference machine, one core of a 2.5 GHz server.
    const REFERENCE: f64 = 6.2e8;
    const ROUNDS: u32 = 200_000;
    let best = (0..8)
        .map(|seed: u64| {
            let started = Instant::now();
            let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
            for round in 0..ROUNDS {
                hash = (hash ^ u64::from(round)).wrapping_mul(0x0100_0000_01b3);
            }
            std::hint::black_box(hash);
            started.elapsed()
        })
        .min()
        .unwrap_or(Duration::from_millis(1));
    let rounds = f64::from(ROUNDS) / best.as_secs_f64().max(1e-9);
    ((rounds / REFERENCE * 1000.0) as u64).max(1)
}

impl Cluster {
    /// Joins: reaches the registry, makes sure that the name is this node's, and begins to follow. A node
    /// that has been a member and cannot reach the registry starts with what it knew then.
    ///
    /// `peer` is where the node listens for others.
    ///
    /// # Errors
    /// As [`JoinError`] tells.
    pub async fn join(
        config: NodeConfig,
        peer: std::net::SocketAddr,
        http: String,
        network: Network,
        store: Arc<Store>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, JoinError> {
        let instance = store.instance().await?;
        let tls = config.tls.as_ref();
        let identity = tls
            .map(|tls| Identity::load(&config.name, &tls.ca, &tls.cert, &tls.key))
            .transpose()?;
        let configured = config.peers.clone().into_iter().collect();
        let peers = Arc::new(Peers::new(
            config.name.clone(),
            network,
            identity.map(Arc::new),
            configured,
            config.emulate_links.then(Arc::default),
        ));
        let embedded = match config.registry() {
            RegistryChoice::Here => Some(Embedded::open(store.clone())?),
            _ => None,
        };
        let registry = open(&config, &peers, embedded.as_ref(), stop).await?;
        let view = Arc::new(View::kept(&store)?);
        let speed_up = config.speed_up.map(|times| (times * 1000.0) as u64);
        let info = NodeInfo {
            instance,
            starts: store.epoch().0,
            run: fastrand::u64(..),
            site: config.site.clone(),
            zone: config.zone.to_string(),
            peer: match (config.behind_nat, &config.advertise.peer) {
                (true, _) => String::new(),
                (false, Some(address)) => address.clone(),
                (false, None) => peer.to_string(),
            },
            http: config.advertise.http.clone().unwrap_or(http),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            speed_up_thousandths: speed_up.unwrap_or_else(measure),
        };
        let custody = Arc::new(Custody::new(store.clone()));
        let cluster = Arc::new(Self {
            directory: Directory::open(
                config.name.clone(),
                config.site.clone(),
                view.clone(),
                registry.clone(),
                peers.clone(),
                store.clone(),
                custody.clone(),
            )?,
            config,
            info,
            peers,
            registry,
            embedded,
            view,
            store,
            custody,
            hints: Hints::default(),
        });
        if let Some(embedded) = &cluster.embedded {
            tasks.spawn(embedded.clone().run(stop.clone()));
        }
        cluster.become_member(stop).await?;
        tasks.spawn(view::follow(
            cluster.view.clone(),
            cluster.registry.clone(),
            cluster.peers.clone(),
            cluster.store.clone(),
            stop.clone(),
        ));
        tasks.spawn(membership::stay(cluster.clone(), stop.clone()));
        tasks.spawn(keep_directory(cluster.clone(), stop.clone()));
        let mut connected = cluster.view.subscribe();
        if cluster.custody.membership.lock().fault.is_none() {
            // The registry just answered, so that the first look at the whole of it is near.
            let whole = connected.wait_for(|revision| *revision > 0);
            let _ = tokio::time::timeout(PATIENCE, whole).await;
        }
        // Before anything is done by a clock that may be wrong.
        hints::probe(&cluster, cluster.others(), FIRST_PROBE).await;
        tasks.spawn(hints::keep_probing(cluster.clone(), stop.clone()));
        Ok(cluster)
    }

    /// Registers, trying again while the registry cannot be reached; goes on without it if it can.
    async fn become_member(&self, stop: &CancellationToken) -> Result<(), JoinError> {
        let started = Instant::now();
        let was_member = self.view.member(self.name()).is_some();
        loop {
            let error = match self.register().await {
                Ok(()) => return Ok(()),
                // A lease that ran out while it was to be used: the way is slow.
                Err(JoinError::Registry(
                    error @ (RegistryError::Unreachable(_) | RegistryError::LeaseLost),
                )) => error,
                Err(error) => return Err(error),
            };
            if was_member && started.elapsed() > PATIENCE {
                tracing::warn!(%error, "starting without the registry, with what was known when it was last followed");
                self.custody.membership.lock().fault = Some(error.to_string());
                return Ok(());
            }
            tracing::info!(%error, "waiting for the registry");
            tokio::select! {
                () = stop.cancelled() => return Err(JoinError::Stopped(error.to_string())),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Answers peers until stopped.
    pub fn serve(
        self: &Arc<Self>,
        handler: Arc<dyn Handler>,
        listener: Listener,
        tasks: &TaskTracker,
        ending: Ending,
    ) {
        tasks.spawn(crate::serve::serve(self.clone(), handler, listener, ending));
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.config.name
    }

    /// What the node says of itself.
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// The node's configuration.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// What the registry says.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Who is home to what.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Calls to other nodes.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Whether this node may still speak for what it has.
    pub fn custody(&self) -> &Custody {
        &self.custody
    }

    /// What is known of the ways to other nodes.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    pub(crate) fn registry(&self) -> &dyn Registry {
        &*self.registry
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn embedded(&self) -> Option<&Embedded> {
        self.embedded.as_ref()
    }

    /// Other nodes that are running.
    pub fn others(&self) -> Vec<NodeName> {
        let members = self.view.members().into_iter();
        let others = members.filter(|member| member.live && member.name != *self.name());
        others.map(|member| member.name).collect()
    }

    /// How it stands with the cluster.
    pub fn standing(&self) -> Standing {
        let membership = self.custody.membership.lock();
        Standing {
            registry: self.view.is_connected(),
            lease: membership.is_alive(),
            fault: membership.fault.clone(),
        }
    }

    /// Writes a key of the registry, whatever it is now: `change` gets its value and gives the new one
    /// (none: deletes it). What is written is seen in the view when this comes back.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn update(
        &self,
        key: &str,
        mut change: impl FnMut(Option<&Bytes>) -> Option<Bytes> + Send,
    ) -> Result<u64, RegistryError> {
        loop {
            let snapshot = self.registry.list(key).await?;
            let present = snapshot.entries.into_iter().find(|entry| entry.key == key);
            let expected = present.as_ref().map_or(0, |entry| entry.revision);
            let written = match change(present.as_ref().map(|entry| &entry.value)) {
                Some(value) => {
                    let written = self
                        .registry
                        .put(key, value.clone(), expected, None)
                        .await?;
                    if let Written::Done(revision) = written {
                        self.view.learn(Entry {
                            key: key.to_owned(),
                            value,
                            revision,
                        });
                    }
                    written
                }
                None if expected == 0 => return Ok(snapshot.revision),
                None => self.registry.delete(key, expected).await?,
            };
            if let Written::Done(revision) = written {
                return Ok(revision);
            }
        }
    }

    /// Removes a node from the registry, so that another may take its name.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn forget(&self, node: &NodeName) -> Result<(), RegistryError> {
        let revision = self.update(&format!("{NODES}{node}"), |_| None).await?;
        self.view.has(revision, PATIENCE).await;
        Ok(())
    }
}

async fn open(
    config: &NodeConfig,
    peers: &Arc<Peers>,
    embedded: Option<&Embedded>,
    stop: &CancellationToken,
) -> Result<Arc<dyn Registry>, JoinError> {
    let members = match (config.registry(), embedded) {
        (RegistryChoice::Here, Some(embedded)) => return Ok(Arc::new(embedded.clone())),
        (RegistryChoice::At(host), _) => return Ok(Arc::new(Remote::new(peers.clone(), host))),
        (RegistryChoice::Etcd(members), _) => members,
        (RegistryChoice::Here, None) => Vec::new(),
    };
    let access = Access::read(&config.registry)?;
    loop {
        match Etcd::connect(&members, &config.registry.prefix, &access).await {
            Ok(etcd) => return Ok(Arc::new(etcd)),
            Err(error) => {
                tracing::info!(%error, "waiting for etcd");
                tokio::select! {
                    () = stop.cancelled() => return Err(JoinError::Stopped(error.to_string())),
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}

/// Sees to it that the directory's shards have owners and its names are known to other sites, until stopped.
async fn keep_directory(cluster: Arc<Cluster>, stop: CancellationToken) {
    loop {
        // Nodes that are started together see each other by then.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TIDY) => {}
        }
        if cluster.view.is_connected()
            && let Err(error) = cluster.directory.claim_part().await
        {
            tracing::debug!(%error, "shards of the directory are left without owners for now");
        }
        cluster.directory.introduce_provisional().await;
    }
}
