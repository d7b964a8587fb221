//! What the node with the embedded registry answers.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::{Service, caller};
use crate::registry::embedded::Embedded;
use crate::registry::{LeaseId, Registry, RegistryError, Written};
use crate::wire::{
    self, DeleteRequest, GrantReply, GrantRequest, KeepAliveReply, KeepAliveRequest, ListReply,
    ListRequest, PutReply, PutRequest, WatchReply, WatchRequest,
};

fn refused(error: RegistryError) -> Status {
    match error {
        RegistryError::LeaseLost => Status::failed_precondition(error.to_string()),
        RegistryError::Unreachable(_) => Status::unavailable(error.to_string()),
        RegistryError::Refused(_) | RegistryError::Compacted(_) => {
            Status::internal(error.to_string())
        }
    }
}

fn written(written: Written) -> PutReply {
    match written {
        Written::Done(revision) => PutReply {
            done: true,
            revision,
            present: None,
        },
        Written::Conflict(present) => PutReply {
            done: false,
            revision: 0,
            present: present.map(wire::Entry::from),
        },
    }
}

impl Service {
    fn embedded(&self) -> Result<&Embedded, Status> {
        let name = self.cluster.name();
        let none = || Status::permission_denied(format!("{name} does not keep the registry"));
        self.cluster.embedded().ok_or_else(none)
    }
}

#[tonic::async_trait]
impl wire::registry_server::Registry for Service {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        caller(&request)?;
        let prefix = request.into_inner().prefix;
        let snapshot = self.embedded()?.list(&prefix).await.map_err(refused)?;
        Ok(Response::new(ListReply {
            entries: snapshot
                .entries
                .into_iter()
                .map(wire::Entry::from)
                .collect(),
            revision: snapshot.revision,
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let lease = (message.lease > 0).then_some(LeaseId(message.lease));
        let registry = self.embedded()?;
        let put = registry
            .put(&message.key, message.value, message.expected, lease)
            .await;
        put.map(written).map(Response::new).map_err(refused)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<PutReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let registry = self.embedded()?;
        let deleted = registry.delete(&message.key, message.expected).await;
        deleted.map(written).map(Response::new).map_err(refused)
    }

    async fn grant(&self, request: Request<GrantRequest>) -> Result<Response<GrantReply>, Status> {
        caller(&request)?;
        let ttl = Duration::from_millis(request.into_inner().ttl_ms);
        let LeaseId(lease) = self.embedded()?.grant(ttl).await.map_err(refused)?;
        Ok(Response::new(GrantReply { lease }))
    }

    async fn keep_alive(
        &self,
        request: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveReply>, Status> {
        caller(&request)?;
        let lease = LeaseId(request.into_inner().lease);
        let alive = match self.embedded()?.keep_alive(lease).await {
            Ok(()) => true,
            Err(RegistryError::LeaseLost) => false,
            Err(error) => return Err(refused(error)),
        };
        Ok(Response::new(KeepAliveReply { alive }))
    }

    type WatchStream = BoxStream<'static, Result<WatchReply, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        caller(&request)?;
        let after = request.into_inner().after;
        let changes = self.embedded()?.watch(after).await.map_err(refused)?;
        let replies = changes.map(|changes| match changes {
            Ok(changes) => Ok(WatchReply {
                compacted: false,
                changes: changes.into_iter().map(wire::Change::from).collect(),
            }),
            Err(RegistryError::Compacted(_)) => Ok(WatchReply {
                compacted: true,
                changes: Vec::new(),
            }),
            Err(error) => Err(refused(error)),
        });
        let replies = replies.take_until(self.ending.stopping.clone().cancelled_owned());
        Ok(Response::new(replies.boxed()))
    }
}
