//! What every node answers.

use bytes::Bytes;
use fulmar_model::{Code, Epoch, Problem, Version};
use fulmar_state::record::{MessageRecord, Record};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, caller, group};
use crate::clock;
use crate::handler::{Delivered, Delivery, StageHead};
use crate::lending;
use crate::peers::Copying;
use crate::wire::{
    self, CatchUpReply, CatchUpRequest, Chunk, CommitReply, CommitRequest, DeliverReply,
    DeliverRequest, FetchArtifactRequest, ForwardReply, ForwardRequest, GossipReply, GossipRequest,
    HelloReply, HelloRequest, LoadReply, LoadRequest, SettleReply, SettleRequest, StagePart,
    StageReply,
};

/// Bytes of an artefact that go at once.
const CHUNK: usize = 256 << 10;

#[tonic::async_trait]
impl wire::peer_server::Peer for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        caller(&request)?;
        let clock = clock::read();
        Ok(Response::new(HelloReply {
            node: self.cluster.name().to_string(),
            protocol: wire::PROTOCOL,
            oldest: wire::OLDEST_PROTOCOL,
            copying: Copying::of(self.cluster.store()).map(|copying| wire::Copying {
                open: copying.is_open,
                behind_ms: copying.behind.as_millis() as u64,
                fault: copying.fault.unwrap_or_default(),
            }),
            unix_ms: clock.unix_ms,
            kept_ms: clock.kept_ms,
        }))
    }

    async fn gossip(
        &self,
        request: Request<GossipRequest>,
    ) -> Result<Response<GossipReply>, Status> {
        let from = caller(&request)?;
        let heard = self.inbox.take(&from, &request.into_inner().message);
        heard.map_err(Status::invalid_argument)?;
        Ok(Response::new(GossipReply {}))
    }

    async fn forward(
        &self,
        request: Request<ForwardRequest>,
    ) -> Result<Response<ForwardReply>, Status> {
        let from = caller(&request)?;
        let message = request.into_inner();
        let mut forwarded = http::Request::builder()
            .method(message.method.as_str())
            .uri(message.uri)
            .body(message.body)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        *forwarded.headers_mut() = wire::http_headers(message.headers)
            .map_err(|_| Status::invalid_argument("a header is not one of HTTP"))?;
        let answer = self.handler.forward(&from, forwarded).await;
        let (head, body) = answer.response.into_parts();
        let headers = head.headers.iter().map(|(name, value)| wire::Header {
            name: name.as_str().to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        });
        let (moved_to, moved_epoch) = match answer.moved {
            Some((node, epoch)) => (node.to_string(), epoch.0),
            None => (String::new(), 0),
        };
        Ok(Response::new(ForwardReply {
            status: head.status.as_u16().into(),
            headers: headers.collect(),
            body,
            moved_to,
            moved_epoch,
        }))
    }

    async fn deliver(
        &self,
        request: Request<DeliverRequest>,
    ) -> Result<Response<DeliverReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let bad = |what: &str| Status::invalid_argument(format!("{what} is not as expected"));
        let key = |bytes: &[u8]| <[u8; 12]>::try_from(bytes).map_err(|_| bad("the message's key"));
        let delivery = Delivery {
            instance: message.instance,
            key: key(&message.key)?,
            settled: match message.settled_to.is_empty() {
                true => [0; 12]..key(&message.settled_below)?,
                false => key(&message.settled_from)?..key(&message.settled_to)?,
            },
            message: MessageRecord::decode(&message.message)
                .map_err(|error| Status::invalid_argument(error.to_string()))?,
            epoch: Epoch(message.epoch),
        };
        let mut reply = DeliverReply::default();
        match self.handler.deliver(delivery).await {
            Delivered::Done(answer) => {
                reply.reply = answer
                    .map(|answer| answer.encode().into())
                    .unwrap_or_default();
            }
            Delivered::Failed(problem) => reply.problem = problem.to_json().into(),
            Delivered::Moved(to) => {
                let moved = Problem::new(Code::SessionMoved, "the session is elsewhere");
                reply.problem = moved.to_json().into();
                if let Some((node, epoch)) = to {
                    (reply.moved_to, reply.moved_epoch) = (node.to_string(), epoch.0);
                }
            }
        }
        Ok(Response::new(reply))
    }

    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadReply>, Status> {
        let from = caller(&request)?;
        let group = group(request.into_inner().group)?;
        let reply = lending::lend(&*self.handler, &from, &group).await;
        Ok(Response::new(reply))
    }

    async fn commit(
        &self,
        request: Request<CommitRequest>,
    ) -> Result<Response<CommitReply>, Status> {
        let from = caller(&request)?;
        let mut message = request.into_inner();
        let group = group(message.group.take())?;
        let reply = lending::take_back(&*self.handler, &from, group, message).await?;
        Ok(Response::new(reply))
    }

    async fn stage(
        &self,
        request: Request<Streaming<StagePart>>,
    ) -> Result<Response<StageReply>, Status> {
        let from = caller(&request)?;
        let mut parts = request.into_inner();
        let first = parts.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("the copy is empty"))?;
        let head = first
            .head
            .ok_or_else(|| Status::invalid_argument("the copy does not say of what it is"))?;
        let head = StageHead {
            group: group(head.group)?,
            epoch: Epoch(head.epoch),
            attempt: head.attempt,
            first: head.first,
            last: head.last.then_some(Version(head.version)),
        };
        let rest = parts.map(|part| match part {
            Ok(part) => wire::staged(part.entries),
            Err(status) => Err(status.message().to_owned()),
        });
        let entries = futures_util::stream::iter([wire::staged(first.entries)]).chain(rest);
        match self.handler.stage(&from, head, entries.boxed()).await {
            Ok(()) => Ok(Response::new(StageReply {})),
            Err(problem) => Err(Status::failed_precondition(problem.to_string())),
        }
    }

    async fn settle(
        &self,
        request: Request<SettleRequest>,
    ) -> Result<Response<SettleReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let group = group(message.group)?;
        let epoch = Epoch(message.epoch);
        let (attempt, arrived) = (message.attempt, message.arrived);
        self.handler.settle(&group, epoch, attempt, arrived).await;
        Ok(Response::new(SettleReply {}))
    }

    type TunnelStream = BoxStream<'static, Result<Chunk, Status>>;

    async fn tunnel(
        &self,
        request: Request<Streaming<Chunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let from = caller(&request)?;
        let peers = self.cluster.peers();
        let back = peers.reached_by(&from, request.into_inner());
        // What runs by way of it is to finish.
        let back = back.take_until(self.ending.drained.clone().cancelled_owned());
        Ok(Response::new(back.map(Ok).boxed()))
    }

    type FetchArtifactStream = BoxStream<'static, Result<Chunk, Status>>;

    async fn fetch_artifact(
        &self,
        request: Request<FetchArtifactRequest>,
    ) -> Result<Response<Self::FetchArtifactStream>, Status> {
        caller(&request)?;
        let digest = request.into_inner().digest;
        let bytes = self.handler.artifact(&digest).await;
        let bytes = bytes.ok_or_else(|| Status::not_found(format!("no artefact {digest}")))?;
        let chunks = futures_util::stream::unfold(bytes, |mut rest| async move {
            if rest.is_empty() {
                return None;
            }
            let bytes = rest.split_to(rest.len().min(CHUNK));
            Some((Ok(Chunk { bytes }), rest))
        });
        Ok(Response::new(chunks.boxed()))
    }

    async fn catch_up(
        &self,
        request: Request<CatchUpRequest>,
    ) -> Result<Response<CatchUpReply>, Status> {
        caller(&request)?;
        let revision = request.into_inner().revision;
        match self.handler.catch_up(revision).await {
            Ok(()) => Ok(Response::new(CatchUpReply {})),
            Err(problem) => Err(Status::failed_precondition(problem.to_string())),
        }
    }
}
