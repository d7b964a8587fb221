//! The embedded registry of another node, over the peer protocol.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::NodeName;
use futures_util::StreamExt;
use tonic::transport::Channel;

use super::{
    Change, Changes, Entry, LeaseId, Registry, RegistryError, Revision, Snapshot, Written,
};
use crate::peers::{Peers, within};
use crate::wire::registry_client::RegistryClient;
use crate::wire::{
    self, DeleteRequest, GrantRequest, KeepAliveRequest, ListRequest, PutRequest, WatchRequest,
};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// The registry of another node.
pub struct Remote {
    peers: Arc<Peers>,
    host: NodeName,
}

fn failed(status: tonic::Status) -> RegistryError {
    match status.code() {
        tonic::Code::FailedPrecondition => RegistryError::LeaseLost,
        tonic::Code::Internal | tonic::Code::Unimplemented | tonic::Code::PermissionDenied => {
            RegistryError::Refused(status.message().to_owned())
        }
        _ => RegistryError::Unreachable(crate::peers::explain(&status)),
    }
}

fn written(reply: wire::PutReply) -> Written {
    match reply.done {
        true => Written::Done(reply.revision),
        false => Written::Conflict(reply.present.map(Entry::from)),
    }
}

impl From<wire::Entry> for Entry {
    fn from(entry: wire::Entry) -> Self {
        Self {
            key: entry.key,
            value: entry.value,
            revision: entry.revision,
        }
    }
}

impl From<Entry> for wire::Entry {
    fn from(entry: Entry) -> Self {
        Self {
            key: entry.key,
            value: entry.value,
            revision: entry.revision,
        }
    }
}

impl From<wire::Change> for Change {
    fn from(change: wire::Change) -> Self {
        Self {
            key: change.key,
            value: change.value,
            revision: change.revision,
        }
    }
}

impl From<Change> for wire::Change {
    fn from(change: Change) -> Self {
        Self {
            key: change.key,
            value: change.value,
            revision: change.revision,
        }
    }
}

impl Remote {
    /// The registry that `host` keeps.
    pub fn new(peers: Arc<Peers>, host: NodeName) -> Self {
        Self { peers, host }
    }

    fn client(&self) -> Result<RegistryClient<Channel>, RegistryError> {
        let channel = self
            .peers
            .channel(&self.host)
            .map_err(|error| RegistryError::Unreachable(error.to_string()))?;
        Ok(RegistryClient::new(channel))
    }
}

#[tonic::async_trait]
impl Registry for Remote {
    async fn list(&self, prefix: &str) -> Result<Snapshot, RegistryError> {
        let prefix = prefix.to_owned();
        let request = self.peers.request(ListRequest { prefix }, DEADLINE);
        let reply = within(DEADLINE, self.client()?.list(request))
            .await
            .map_err(failed)?;
        Ok(Snapshot {
            entries: reply.entries.into_iter().map(Entry::from).collect(),
            revision: reply.revision,
        })
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Revision,
        lease: Option<LeaseId>,
    ) -> Result<Written, RegistryError> {
        let message = PutRequest {
            key: key.to_owned(),
            value,
            expected,
            lease: lease.map_or(0, |lease| lease.0),
        };
        let request = self.peers.request(message, DEADLINE);
        let reply = within(DEADLINE, self.client()?.put(request)).await;
        reply.map(written).map_err(failed)
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Written, RegistryError> {
        let key = key.to_owned();
        let request = self
            .peers
            .request(DeleteRequest { key, expected }, DEADLINE);
        let reply = within(DEADLINE, self.client()?.delete(request)).await;
        reply.map(written).map_err(failed)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        let ttl_ms = ttl.as_millis() as u64;
        let request = self.peers.request(GrantRequest { ttl_ms }, DEADLINE);
        let reply = within(DEADLINE, self.client()?.grant(request)).await;
        reply.map(|reply| LeaseId(reply.lease)).map_err(failed)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), RegistryError> {
        let lease = lease.0;
        let request = self.peers.request(KeepAliveRequest { lease }, DEADLINE);
        let reply = within(DEADLINE, self.client()?.keep_alive(request)).await;
        match reply.map_err(failed)?.alive {
            true => Ok(()),
            false => Err(RegistryError::LeaseLost),
        }
    }

    async fn watch(&self, after: Revision) -> Result<Changes, RegistryError> {
        // The stream goes on for as long as the connection does; only its beginning has a deadline.
        let request = self.peers.stream_request(WatchRequest { after });
        let stream = within(DEADLINE, self.client()?.watch(request))
            .await
            .map_err(failed)?;
        let stream = stream.map(move |reply| {
            let reply = reply.map_err(failed)?;
            match reply.compacted {
                true => Err(RegistryError::Compacted(after)),
                false => Ok(reply.changes.into_iter().map(Change::from).collect()),
            }
        });
        Ok(stream.boxed())
    }
}
