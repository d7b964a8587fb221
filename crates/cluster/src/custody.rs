//! Custody: whether this node may still speak for what it has, which logs of which nodes count, and who has taken
//! over from whom.
//!
//! A node whose lease is alive, and which has proven since it got it that its log is its own, may: whoever takes
//! over waits for the lease, ends the log, and looks for the lease again. A node without a lease proves it each
//! time. A node that copies nothing cannot be taken over from, and always may.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fulmar_model::NodeName;
use fulmar_state::record::Record;
use fulmar_state::{Store, StoreFailure};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::join::Cluster;
use crate::registry::{LeaseId, RegistryError};
use crate::view::{LIVE, value};

/// Prefix of the keys that say where nodes' logs are.
const LOGS: &str = "log/";
/// Prefix of the keys that say who has taken over.
const TAKEOVERS: &str = "takeover/";

/// Where a node's log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// The data directory.
    pub instance: String,
    /// Which of its logs.
    pub stream: u64,
}

/// Who takes over from a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeoverRecord {
    /// Up to the end of this log.
    pub log: LogRecord,
    /// Whoever does.
    pub by: NodeName,
    /// Whether invocations that the node had accepted for functions without a session are theirs now.
    pub adopted: bool,
    /// Whether the node has come back before that.
    pub returned: bool,
}

impl Record for LogRecord {}
impl Record for TakeoverRecord {}

/// A node's membership, as it sees it.
#[derive(Default)]
pub(crate) struct Membership {
    pub(crate) lease: Option<LeaseId>,
    /// Until when others certainly count this node as running.
    pub(crate) until: Option<Instant>,
    /// Under which lease the log was proven to be this node's.
    proven: Option<LeaseId>,
    /// Why it is no member, if so.
    pub(crate) fault: Option<String>,
}

impl Membership {
    pub(crate) fn is_alive(&self) -> bool {
        self.until.is_some_and(|until| until > Instant::now())
    }
}

/// Whether this node may still speak for what it has.
pub struct Custody {
    store: Arc<Store>,
    pub(crate) membership: Mutex<Membership>,
    leases: watch::Sender<Option<LeaseId>>,
}

impl Custody {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            membership: Mutex::default(),
            leases: watch::Sender::new(None),
        }
    }

    /// The node has got a lease.
    pub(crate) fn joined(&self, lease: LeaseId, until: Instant) {
        *self.membership.lock() = Membership {
            lease: Some(lease),
            until: Some(until),
            ..Membership::default()
        };
        self.leases.send_replace(Some(lease));
    }

    /// Hears of every new lease, under which the log is still to be proven to be this node's.
    pub fn leases(&self) -> watch::Receiver<Option<LeaseId>> {
        self.leases.subscribe()
    }

    /// Whether it may, as far as can be said without asking anybody.
    pub fn is_sure(&self) -> bool {
        if self.store.changelog().is_none() {
            return true;
        }
        let membership = self.membership.lock();
        membership.is_alive() && membership.lease.is_some() && membership.proven == membership.lease
    }

    /// Makes sure that it may: that it was so at some moment after the call.
    ///
    /// # Errors
    /// When another node has taken over, or that cannot be found out.
    pub async fn sure(&self) -> Result<(), StoreFailure> {
        match self.store.changelog() {
            Some(changelog) if !self.is_sure() => changelog.prove().await,
            _ => Ok(()),
        }
    }

    /// The log was proven to be this node's, after it had got this lease.
    pub fn proven(&self, lease: LeaseId) {
        self.membership.lock().proven = Some(lease);
    }

    /// Nothing is proven any more.
    pub fn doubt(&self) {
        self.membership.lock().proven = None;
    }
}

fn read<R: Record>(bytes: Option<&Bytes>) -> Option<R> {
    bytes.and_then(|bytes| R::decode(bytes).ok())
}

impl Cluster {
    /// Where a node's log is, if it has one, as last heard.
    pub fn log_of(&self, node: &NodeName) -> Option<LogRecord> {
        let entry = self.view().get(&format!("{LOGS}{node}"))?;
        read(Some(&entry.value))
    }

    /// Where a node's log is, by the registry itself.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn find_log(&self, node: &NodeName) -> Result<Option<LogRecord>, RegistryError> {
        let key = format!("{LOGS}{node}");
        let found = self.registry().list(&key).await?;
        let entry = found.entries.into_iter().find(|entry| entry.key == key);
        Ok(read(entry.map(|entry| entry.value).as_ref()))
    }

    /// Who has taken over from a node, as last heard.
    pub fn takeover_of(&self, node: &NodeName) -> Option<TakeoverRecord> {
        let entry = self.view().get(&format!("{TAKEOVERS}{node}"))?;
        read(Some(&entry.value))
    }

    /// Tells the others where this node's log is.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn publish_log(&self, stream: u64) -> Result<(), RegistryError> {
        let record = LogRecord {
            instance: self.info().instance.clone(),
            stream,
        };
        let key = format!("{LOGS}{}", self.name());
        self.update(&key, |_| Some(value(&record))).await?;
        Ok(())
    }

    /// Changes who takes over from a node; what it is afterwards. `change` leaves the record as it is by giving it
    /// back.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn update_takeover(
        &self,
        node: &NodeName,
        mut change: impl FnMut(Option<TakeoverRecord>) -> Option<TakeoverRecord> + Send,
    ) -> Result<Option<TakeoverRecord>, RegistryError> {
        let mut outcome = None;
        self.update(&format!("{TAKEOVERS}{node}"), |present| {
            outcome = change(read(present));
            outcome.as_ref().map(value)
        })
        .await?;
        Ok(outcome)
    }

    /// Whether a node's lease is alive, by the registry itself.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn is_live(&self, node: &NodeName) -> Result<bool, RegistryError> {
        let key = format!("{LIVE}{node}");
        let found = self.registry().list(&key).await?;
        Ok(found.entries.iter().any(|entry| entry.key == key))
    }
}
