//! What all parts of a node share: the state, the workers, the functions, the limits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fulmar_cluster::{Cluster, NodeConfig};
use fulmar_model::{Code, Problem};
use fulmar_state::{Store, Submitters, Ticket};
use fulmar_worker::{LogSink, Pool, Programs, Runtime};
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::admission::Admission;
use crate::arrive::Moving;
use crate::artifacts::Artifacts;
use crate::audit::Audit;
use crate::carry::StateKeys;
use crate::continuum::InEffect;
use crate::courier::Courier;
use crate::decisions::Decisions;
use crate::execute::storage_failed;
use crate::external::ExternalStore;
use crate::fleet::Meter;
use crate::functions::Functions;
use crate::invocation::InvocationId;
use crate::keeper::Keeper;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::namespaces::Namespaces;
use crate::place;
use crate::surroundings::Surroundings;
use crate::usages::Usages;
use crate::ways::Ways;

/// Limits of a node; the defaults suit a machine with 512 MB.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Memory for hot sessions, in bytes; above it idle ones are let go.
    pub hot_bytes: usize,
    /// Room on the disk, in bytes, below which invocations are refused.
    pub reserve_disk_bytes: u64,
    /// Time that a client has to send its request's head.
    pub header_timeout: Duration,
    /// Time that a client has to begin with its body, and between two parts of it.
    pub body_timeout: Duration,
    /// Time that running invocations have to finish when the node stops.
    pub drain_timeout: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// Invocations at once, waiting ones included.
    pub max_invocations: usize,
    /// Request bodies held at once, in bytes; others wait for their turn where they are.
    pub max_body_bytes: usize,
    /// Live workers at once.
    pub max_workers: u32,
    /// Memory for all of them, in bytes, of which each takes as much as its function may use; none for no bound.
    pub worker_bytes: Option<u64>,
    /// CPU that workers may have reserved together, in thousandths of one; none for no bound.
    pub worker_cpu_millis: Option<u32>,
    /// What becomes a program, confined: the beginning of a command of which the rest is given; empty for a node that runs none.
    pub launcher: Vec<String>,
    /// Messages delivered at once.
    pub max_deliveries: usize,
    /// The runtime's threads, if its hooks count the idle ones.
    pub threads: Arc<Submitters>,
    /// How to speak TLS; none for plain HTTP.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// URL and options of the external store.
    pub external: Option<(String, BTreeMap<String, String>)>,
    /// How to be one of many nodes; none to be alone.
    pub cluster: Option<NodeConfig>,
    /// What it runs on.
    pub surroundings: Surroundings,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            hot_bytes: 64 << 20,
            reserve_disk_bytes: 64 << 20,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            max_invocations: 20_000,
            max_body_bytes: 64 << 20,
            max_workers: 2_000,
            worker_bytes: None,
            worker_cpu_millis: cpu_millis(),
            launcher: Vec::new(),
            max_deliveries: 1024,
            threads: Arc::new(Submitters::uncounted()),
            tls: None,
            external: None,
            cluster: None,
            surroundings: Surroundings::default(),
        }
    }
}

/// All CPU that this process may use.
fn cpu_millis() -> Option<u32> {
    let count = std::thread::available_parallelism().ok()?;
    u32::try_from(count.get() * 1000).ok()
}

/// What all parts of a node share.
pub(crate) struct Core {
    pub(crate) options: NodeOptions,
    pub(crate) store: Arc<Store>,
    /// The other nodes; none when the node is alone.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Which change of the registry is in effect here.
    pub(crate) in_effect: InEffect,
    /// What tells this node's data directory from all others.
    pub(crate) instance: String,
    /// The external store; none if none is configured.
    pub(crate) external: Option<ExternalStore>,
    pub(crate) arrivals: Moving,
    pub(crate) departures: Moving,
    /// The data directory; none when everything is in memory.
    pub(crate) data_path: Option<PathBuf>,
    pub(crate) access: Access,
    pub(crate) audit: Audit,
    pub(crate) state_keys: StateKeys,
    pub(crate) artifacts: Artifacts,
    pub(crate) programs: Arc<Programs>,
    pub(crate) runtime: Runtime,
    pub(crate) pool: Pool,
    /// How busy the machine is.
    pub(crate) meter: Meter,
    pub(crate) functions: Functions,
    pub(crate) namespaces: Namespaces,
    /// Held while what is deployed changes.
    pub(crate) deploying: tokio::sync::Mutex<()>,
    pub(crate) courier: Courier,
    pub(crate) keeper: Keeper,
    pub(crate) logs: Arc<Logs>,
    pub(crate) decisions: Decisions,
    pub(crate) ways: Ways,
    pub(crate) placed_keys: place::Placed,
    pub(crate) usages: Usages,
    pub(crate) models: Models,
    /// The same, as workers see it.
    pub(crate) log_sink: Arc<dyn LogSink>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admission: Admission,
    /// Set when the node stops taking new work.
    pub(crate) stopping: CancellationToken,
    pub(crate) started: Instant,
    pub(crate) next_invocation: AtomicU64,
}

impl Core {
    /// An identifier for a new invocation.
    pub(crate) fn next_id(&self) -> InvocationId {
        InvocationId {
            epoch: self.store.epoch().0,
            number: self.next_invocation.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The identifier as text; among other nodes with the name of this one.
    pub(crate) fn id_text(&self, id: InvocationId) -> String {
        match &self.cluster {
            None => id.to_string(),
            Some(cluster) => format!("{}-{id}", cluster.name()),
        }
    }

    /// Waits until a commit is durable.
    pub(crate) async fn durable(&self, ticket: Ticket) -> Result<(), Problem> {
        let durable = self.store.durable(ticket).await;
        durable.map_err(|failure| storage_failed(&failure))
    }

    /// Why nothing may be run now, if so.
    pub(crate) fn refuses_writes(&self) -> Option<Problem> {
        if self.store.commits().has_failed() {
            let failure = self.store.commits().failure();
            return Some(failure.map_or_else(
                || Problem::new(Code::StorageFailed, "a write failed"),
                |failure| storage_failed(&failure),
            ));
        }
        self.keeper.disk_is_full().then(|| {
            let reserve = self.options.reserve_disk_bytes;
            Problem::new(
                Code::StorageFull,
                format!("less than {reserve} bytes are free where the data directory is"),
            )
        })
    }
}
