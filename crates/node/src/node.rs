//! A node from start to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fulmar_cluster::{Cluster, Ending, JoinError};
use fulmar_state::external::ExternalError;
use fulmar_state::objects::{Objects, ObjectsError};
use fulmar_state::{DataDir, DataDirError, RunReleases, Store, StoreError, Writer};
use fulmar_worker::{Pool, Programs, Room, Runtime, RuntimeError, RuntimeOptions};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::admission::Admission;
use crate::arrive::Moving;
use crate::artifacts::Artifacts;
use crate::audit::Audit;
use crate::carry::StateKeys;
use crate::continuum::{self, InEffect};
use crate::core::{Core, NodeOptions};
use crate::courier::{self, Courier};
use crate::decisions::Decisions;
use crate::external::ExternalStore;
use crate::fleet::Meter;
use crate::functions::Functions;
use crate::keeper::{self, Keeper};
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::namespaces::{self, Namespaces};
use crate::surroundings::Disk;
use crate::usages::{self, Usages};
use crate::ways::Ways;
use crate::{admin, custody, deploy, follow, ingress, keys, phases, place, takeover};

/// How long programs may take to end when the node does, after they were asked to.
const WORKERS_END: std::time::Duration = std::time::Duration::from_secs(4);

/// A node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The local data store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The WebAssembly runtime cannot be set up.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; give another port with --port (0 takes a free one)"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder of the data directory.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is stored cannot be taken up.
    #[error("cannot take up what is stored: {0}")]
    Recover(fulmar_model::Problem),
    /// It cannot become one of many nodes.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The object store cannot be used.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// The external store cannot be used.
    #[error(transparent)]
    External(#[from] ExternalError),
    /// The metrics contradict each other: a fault in the node.
    #[error("cannot set up the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A running node.
pub struct Node {
    core: Arc<Core>,
    address: SocketAddr,
    peer_address: Option<SocketAddr>,
    tasks: TaskTracker,
    /// Ends the copying to the object store, for which answers may still wait when the node stops.
    copied: CancellationToken,
    /// Held as long as the node runs.
    data: DataDir,
}

impl Node {
    /// Opens the data directory, takes up what is stored there and listens.
    pub async fn start(
        data: &Path,
        listen: SocketAddr,
        options: NodeOptions,
    ) -> Result<Self, StartError> {
        let data = DataDir::open(data)?;
        let metrics = Metrics::new()?;
        let objects = options
            .cluster
            .as_ref()
            .and_then(|config| config.store.as_ref());
        let objects = objects.map(|store| Objects::open(&store.url, &store.options));
        let objects = options
            .surroundings
            .objects
            .clone()
            .or(objects.transpose()?);
        let external = options.external.as_ref();
        let external = external.map(|(url, options)| ExternalStore::open(url, options));
        let external = external.transpose()?;
        let runtime = tokio::runtime::Handle::current();
        let run_releases: RunReleases = Arc::new(move |releases| {
            runtime.spawn(async move { releases() });
        });
        let copies = objects.is_some();
        let store = match options.surroundings.disk.clone() {
            None => {
                let threads = options.threads.clone();
                Store::local(&data, metrics.clone(), run_releases, threads, copies)?
            }
            Some(Disk { engine, takes }) => {
                let writer = Writer::Task(takes);
                Store::open(engine, metrics.clone(), run_releases, writer, copies)?
            }
        };
        let runtime = match options.surroundings.runtime.clone() {
            Some(runtime) => runtime,
            None => Runtime::new(&RuntimeOptions {
                max_workers: options.max_workers,
                ..RuntimeOptions::default()
            })?,
        };
        let artifacts = Artifacts::open(data.artifacts()).map_err(|source| StartError::Io {
            path: data.artifacts(),
            source,
        })?;
        let network = &options.surroundings.network;
        let bind = |address| async move {
            let listening = async {
                let listener = network.listen(address).await?;
                let address = listener.local_addr()?;
                Ok((listener, address))
            };
            let failed = |source| StartError::Listen { address, source };
            listening.await.map_err(failed)
        };
        let (listener, address) = bind(listen).await?;
        let tasks = TaskTracker::new();
        let stopping = CancellationToken::new();
        let copied = CancellationToken::new();
        let (mut cluster, mut peers, mut peer_address) = (None, None, None);
        if let Some(config) = options.cluster.clone() {
            let (listener, peer) = bind(config.listen.peer).await?;
            let scheme = if options.tls.is_some() {
                "https"
            } else {
                "http"
            };
            let http = format!("{scheme}://{address}");
            let (network, store) = (network.clone(), store.clone());
            let joined = Cluster::join(config, peer, http, network, store, &tasks, &stopping);
            cluster = Some(joined.await?);
            peers = Some(listener);
            peer_address = Some(peer);
        }
        let instance = store.instance().await?;
        let run = data.path().join("run");
        let programs = Programs::open(options.launcher.clone(), data.path(), &instance);
        let programs = programs.map_err(|source| StartError::Io { path: run, source })?;
        let logs = Arc::new(Logs::default());
        let core = Arc::new(Core {
            store,
            cluster: cluster.clone(),
            in_effect: InEffect::default(),
            instance,
            external,
            arrivals: Moving::default(),
            departures: Moving::default(),
            data_path: Some(data.path().to_owned()),
            access: Access::default(),
            audit: Audit::open(data.path()).map_err(|source| StartError::Io {
                path: data.path().join(crate::audit::FILE),
                source,
            })?,
            state_keys: StateKeys::default(),
            artifacts,
            programs: Arc::new(programs),
            pool: Pool::new(
                options.max_workers as usize,
                Room::new(options.worker_bytes, options.worker_cpu_millis),
            ),
            meter: Meter::default(),
            runtime,
            functions: Functions::default(),
            namespaces: Namespaces::default(),
            deploying: tokio::sync::Mutex::default(),
            courier: Courier::new(options.max_deliveries),
            keeper: Keeper::default(),
            decisions: Decisions::default(),
            ways: Ways::default(),
            placed_keys: place::Placed::default(),
            usages: Usages::default(),
            models: Models::default(),
            log_sink: logs.clone(),
            logs,
            metrics,
            admission: Admission::new(&options),
            stopping,
            started: Instant::now(),
            next_invocation: 1.into(),
            options,
        });
        core.access
            .recover(&core.store)
            .map_err(StartError::Recover)?;
        // Before anybody is let in.
        match &core.cluster {
            Some(cluster) => {
                continuum::take_up_rules(&core, cluster);
                let reader = keys::Reader(Arc::downgrade(&core));
                core.store.place_keys(Arc::new(reader));
                keys::warn_of_older(&core, cluster);
            }
            None => core
                .namespaces
                .recover(&core.store)
                .map_err(StartError::Recover)?,
        }
        deploy::recover(&core).map_err(StartError::Recover)?;
        // Before anything else can send any.
        let waiting = core.courier.recover(&core)?;
        if waiting > 0 {
            tracing::info!(
                messages = waiting,
                "taking up messages that were not delivered yet"
            );
        }
        tasks.spawn(courier::settle_what_is_copied(
            core.clone(),
            core.stopping.clone(),
        ));
        if core.external.is_some() {
            tasks.spawn(courier::collect(core.clone(), core.stopping.clone()));
        }
        tasks.spawn(keeper::run(core.clone(), core.stopping.clone()));
        tasks.spawn(namespaces::run(core.clone(), core.stopping.clone()));
        if let (Some(cluster), Some(peers)) = (cluster, peers) {
            let answers = Arc::new(continuum::Answers(core.clone()));
            let ending = Ending {
                stopping: core.stopping.clone(),
                drained: copied.clone(),
            };
            cluster.serve(answers, peers, &tasks, ending);
            if let Some(objects) = objects {
                let keep = custody::keep(
                    core.clone(),
                    cluster.clone(),
                    objects.clone(),
                    copied.clone(),
                );
                tasks.spawn(keep);
                let watch = takeover::watch(
                    core.clone(),
                    cluster.clone(),
                    objects,
                    core.stopping.clone(),
                );
                tasks.spawn(watch);
            }
            tasks.spawn(usages::run(
                core.clone(),
                cluster.clone(),
                core.stopping.clone(),
            ));
            tasks.spawn(place::run(
                core.clone(),
                cluster.clone(),
                core.stopping.clone(),
            ));
            tasks.spawn(phases::run(
                core.clone(),
                cluster.clone(),
                core.stopping.clone(),
            ));
            tasks.spawn(follow::run(
                core.clone(),
                cluster.clone(),
                core.stopping.clone(),
            ));
            let follow = continuum::follow(core.clone(), cluster, core.stopping.clone());
            tasks.spawn(follow);
        }
        tasks.spawn(ingress::serve(
            core.clone(),
            listener,
            admin::router(core.clone()),
        ));
        Ok(Self {
            core,
            address,
            peer_address,
            tasks,
            copied,
            data,
        })
    }

    /// Where it listens for other nodes, if there are any.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.peer_address
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Names of the deployed functions.
    pub fn functions(&self) -> Vec<String> {
        self.core
            .functions
            .all()
            .iter()
            .map(|function| function.name.to_string())
            .collect()
    }

    /// Takes nothing new, finishes what runs, and makes everything durable.
    pub async fn stop(self) -> Result<(), StoreError> {
        self.core.stopping.cancel();
        self.tasks.close();
        let drain = async {
            let deadline = Instant::now() + self.core.options.drain_timeout;
            while self.core.admission.invocations() > 0 && Instant::now() < deadline {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            self.copied.cancel();
        };
        tokio::join!(drain, self.tasks.wait());
        while self.core.pool.drop_oldest() {}
        // Those that a call still keeps busy are ended by the next start.
        let ended = self.core.programs.ended();
        let _ = tokio::time::timeout(WORKERS_END, ended).await;
        let last = self.core.store.commits().submitted();
        Ok(self.core.store.durable(last).await?)
    }
}
