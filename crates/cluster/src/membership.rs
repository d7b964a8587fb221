//! A node's membership: its name, its lease, and keeping both.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fulmar_state::record::Record;
use tokio_util::sync::CancellationToken;

use crate::join::{Cluster, JoinError};
use crate::registry::{RegistryError, Written};
use crate::view::{LIVE, NODES, NodeInfo, value};

/// Parts of a lease after which it is kept alive.
const KEEP_ALIVE_PARTS: u32 = 4;

impl Cluster {
    /// Makes sure that the name is this node's, and tells the others that it runs.
    pub(crate) async fn register(&self) -> Result<(), JoinError> {
        let name = self.name();
        let seen = self.view().revision();
        let snapshot = self.registry().list("").await?;
        if snapshot.revision < seen {
            let found = snapshot.revision;
            return Err(JoinError::OldRegistry { found, seen });
        }
        let find = |key: String| snapshot.entries.iter().find(|entry| entry.key == key);
        let live = find(format!("{LIVE}{name}"));
        let node = find(format!("{NODES}{name}"));
        let known = node.and_then(|entry| NodeInfo::decode(&entry.value).ok());
        if let Some(known) = known {
            if known.instance != self.info().instance {
                return Err(JoinError::NameTaken {
                    name: name.clone(),
                    instance: known.instance,
                    address: known.peer,
                    live: live.is_some(),
                });
            }
            // Each start counts, so that the same count is the same start, or a copy's.
            let is_this = known.run == self.info().run;
            if !is_this && known.starts >= self.info().starts {
                return Err(JoinError::OldData {
                    own: self.info().starts,
                    seen: known.starts,
                });
            }
        }
        let raced = || RegistryError::Unreachable("another node was quicker".into());
        let revision = node.map_or(0, |entry| entry.revision);
        let key = format!("{NODES}{name}");
        let put = self
            .registry()
            .put(&key, value(self.info()), revision, None);
        let Written::Done(_) = put.await? else {
            return Err(raced().into());
        };
        let ttl = self.config().registry.lease.get();
        let asked = Instant::now();
        let lease = self.registry().grant(ttl).await?;
        let key = format!("{LIVE}{name}");
        let instance = Bytes::from(self.info().instance.clone());
        let revision = live.map_or(0, |entry| entry.revision);
        let put = self.registry().put(&key, instance, revision, Some(lease));
        let Written::Done(_) = put.await? else {
            return Err(raced().into());
        };
        self.custody().joined(lease, asked + ttl);
        Ok(())
    }

    /// Keeps the lease alive; registers again if it ran out.
    async fn keep_alive(&self) -> Result<(), JoinError> {
        let lease = self.custody().membership.lock().lease;
        let Some(lease) = lease else {
            return self.register().await;
        };
        let asked = Instant::now();
        match self.registry().keep_alive(lease).await {
            Ok(()) => {
                let mut membership = self.custody().membership.lock();
                membership.until = Some(asked + self.config().registry.lease.get());
                membership.fault = None;
                Ok(())
            }
            Err(RegistryError::LeaseLost) => {
                self.custody().membership.lock().lease = None;
                self.register().await
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Keeps the node a member until stopped.
pub(crate) async fn stay(cluster: Arc<Cluster>, stop: CancellationToken) {
    let every = cluster.config().registry.lease.get() / KEEP_ALIVE_PARTS;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        if let Err(error) = cluster.keep_alive().await {
            tracing::warn!(%error, "the cluster may count this node as gone");
            cluster.custody().membership.lock().fault = Some(error.to_string());
        }
    }
}
