//! The peer protocol, answered: who calls is checked, then the directory, the registry or the node
//! above is asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::{Code, Epoch, NodeName, Problem, SiteName, Version};
use fulmar_state::record::{MessageRecord, Record};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::clock;
use crate::directory::{Answer, DirectoryError, Home, Question};
use crate::handler::{Delivered, Delivery, Handler, StageHead};
use crate::identity;
use crate::join::Cluster;
use crate::lending;
use crate::network::Listener;
use crate::peers::Copying;
use crate::registry::embedded::Embedded;
use crate::registry::{LeaseId, Registry, RegistryError, Written};
use crate::transport::{self, Caller};
use crate::tunnel;
use crate::wire::{
    self, AskReply, AskRequest, CatchUpReply, CatchUpRequest, Chunk, CommitReply, CommitRequest,
    DeleteRequest, DeliverReply, DeliverRequest, FetchArtifactRequest, ForwardReply,
    ForwardRequest, GrantReply, GrantRequest, HelloReply, HelloRequest, HomesOfReply,
    HomesOfRequest, IntroduceReply, IntroduceRequest, KeepAliveReply, KeepAliveRequest, ListReply,
    ListRequest, LoadReply, LoadRequest, NODE, PutReply, PutRequest, SettleReply, SettleRequest,
    StagePart, StageReply, WatchReply, WatchRequest, ask_request,
};

/// Bytes of an artefact that go at once.
const CHUNK: usize = 256 << 10;
/// Connections by tunnels that wait to be taken.
const TUNNELS: usize = 64;
/// Calls at once of one connection.
const MAX_CALLS: u32 = 4096;
/// How often a silent connection is tried, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// When a node ends.
#[derive(Clone)]
pub struct Ending {
    /// It takes nothing new.
    pub stopping: CancellationToken,
    /// All that ran is finished.
    pub drained: CancellationToken,
}

/// Answers peers until stopped.
pub(crate) async fn serve(
    cluster: Arc<Cluster>,
    handler: Arc<dyn Handler>,
    listener: Listener,
    ending: Ending,
) {
    let stop = ending.stopping.clone();
    let (by_tunnel, tunnels) = mpsc::channel(TUNNELS);
    if cluster.config().behind_nat {
        tokio::spawn(tunnel::keep(cluster.clone(), by_tunnel, stop.clone()));
    }
    let identity = cluster.peers().identity();
    let connections = transport::incoming(listener, identity, tunnels, stop.clone());
    let service = Service {
        cluster,
        handler,
        ending,
    };
    let peer = wire::peer_server::PeerServer::new(service.clone())
        .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(wire::MAX_MESSAGE_BYTES);
    let directory = wire::directory_server::DirectoryServer::new(service.clone());
    let registry = wire::registry_server::RegistryServer::new(service);
    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .add_service(peer)
        .add_service(directory)
        .add_service(registry)
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "peers are no longer answered");
    }
}

#[derive(Clone)]
struct Service {
    cluster: Arc<Cluster>,
    handler: Arc<dyn Handler>,
    /// Answers that would never end end with it: whoever waits for all answers would wait for them.
    ending: Ending,
}

/// Who calls: the name in the call's metadata, which has to be the one in the certificate. It has to speak a protocol
/// that this version knows.
fn caller<T>(request: &Request<T>) -> Result<NodeName, Status> {
    let protocol = request.metadata().get(wire::CALLER_PROTOCOL);
    let protocol = protocol.map_or(Some(1), |protocol| protocol.to_str().ok()?.parse().ok());
    let protocol = protocol.ok_or_else(|| Status::invalid_argument("no protocol has this name"))?;
    // Whether it understands this version it finds out itself.
    wire::understands(0, protocol).map_err(Status::failed_precondition)?;
    let refused = |detail: String| Status::permission_denied(detail);
    let name = request
        .metadata()
        .get(NODE)
        .and_then(|name| name.to_str().ok())
        .and_then(|name| NodeName::new(name).ok())
        .ok_or_else(|| refused(format!("the call does not say in {NODE} who makes it")))?;
    let certificate = request
        .extensions()
        .get::<Caller>()
        .and_then(|caller| caller.certificate.clone());
    let caller = request.extensions().get::<Caller>();
    if let Some(node) = caller.and_then(|caller| caller.node.as_ref())
        && *node != name
    {
        return Err(refused(format!("the connection is to {node}, not {name}")));
    }
    if let Some(certificate) = certificate
        && !identity::is_for(&CertificateDer::from(&certificate[..]), &name)
    {
        return Err(refused(format!("the certificate is not for {name}")));
    }
    Ok(name)
}

fn group(group: Option<wire::Group>) -> Result<fulmar_model::Group, Status> {
    let group = group.ok_or_else(|| Status::invalid_argument("the call names no session"))?;
    group
        .try_into()
        .map_err(|error: fulmar_model::NameError| Status::invalid_argument(error.to_string()))
}

fn node(name: &str) -> Result<NodeName, Status> {
    NodeName::new(name).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl wire::peer_server::Peer for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        caller(&request)?;
        let known = match request.into_inner().round_trips {
            true => self.cluster.hints().ways(),
            false => Default::default(),
        };
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
            functions: self
                .handler
                .execution_times()
                .into_iter()
                .map(|(function, time)| wire::FunctionTime {
                    function,
                    seconds: time.mean,
                    error: time.error,
                })
                .collect(),
            round_trips: known
                .into_iter()
                .map(|(node, way)| wire::RoundTrip {
                    node: node.to_string(),
                    seconds: way.round_trip,
                    bandwidth: way.bandwidth,
                })
                .collect(),
            unix_ms: clock.unix_ms,
            kept_ms: clock.kept_ms,
            room_bytes: self.handler.room_bytes(),
            worker_bytes: self.handler.worker_bytes(),
        }))
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

fn question(question: Option<ask_request::Question>) -> Result<Question, Status> {
    let home = |name: &str, epoch: u64| -> Result<Home, Status> {
        Ok(Home {
            node: node(name)?,
            epoch: Epoch(epoch),
        })
    };
    match question {
        Some(ask_request::Question::Find(find)) => Ok(Question::Find {
            claimant: match find.claimant.as_str() {
                "" => None,
                name => Some(node(name)?),
            },
        }),
        Some(ask_request::Question::Relocate(relocate)) => Ok(Question::Relocate {
            from: home(&relocate.from, relocate.epoch)?,
            to: node(&relocate.to)?,
        }),
        Some(ask_request::Question::Forget(forget)) => Ok(Question::Forget {
            home: home(&forget.home, forget.epoch)?,
        }),
        None => Err(Status::invalid_argument("the call asks nothing")),
    }
}

fn unavailable(error: DirectoryError) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl wire::directory_server::Directory for Service {
    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let group = group(message.group)?;
        let question = question(message.question)?;
        let answer = self.cluster.directory().answer(&group, &question).await;
        let mut reply = AskReply::default();
        match answer.map_err(unavailable)? {
            Answer::NotOwner => reply.not_owner = true,
            Answer::AtSite(site) => reply.at_site = site.to_string(),
            Answer::Home(None) => {}
            Answer::Home(Some(home)) => {
                reply.home = home.node.to_string();
                reply.epoch = home.epoch.0;
            }
        }
        Ok(Response::new(reply))
    }

    async fn introduce(
        &self,
        request: Request<IntroduceRequest>,
    ) -> Result<Response<IntroduceReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let group = group(message.group)?;
        let site = SiteName::new(&message.site)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let directory = self.cluster.directory();
        let introduced = directory.introduced(&group, &site, message.claim).await;
        let introduced = introduced.map_err(unavailable)?;
        Ok(Response::new(IntroduceReply {
            not_owner: introduced.is_none(),
            site: introduced
                .flatten()
                .map(|site| site.to_string())
                .unwrap_or_default(),
        }))
    }

    type HomesOfStream = BoxStream<'static, Result<HomesOfReply, Status>>;

    async fn homes_of(
        &self,
        request: Request<HomesOfRequest>,
    ) -> Result<Response<Self::HomesOfStream>, Status> {
        caller(&request)?;
        let node = node(&request.into_inner().node)?;
        let homes = self.cluster.directory().homes_of(&node).await;
        let homes = homes.map_err(unavailable)?;
        let parts: Vec<_> = homes
            .chunks(GROUPS_AT_ONCE)
            .map(|some| {
                let groups = some.iter().map(|(group, epoch)| wire::GroupAt {
                    group: Some(group.into()),
                    epoch: epoch.0,
                });
                Ok(HomesOfReply {
                    groups: groups.collect(),
                })
            })
            .collect();
        Ok(Response::new(futures_util::stream::iter(parts).boxed()))
    }
}

/// Groups in one part of a list.
const GROUPS_AT_ONCE: usize = 1000;

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
