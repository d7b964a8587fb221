//! The peer protocol, answered: who calls is checked, then the directory, the registry or the node
//! above is asked.

mod directory;
mod peer;
mod registry;

use std::sync::Arc;
use std::time::Duration;

use fulmar_model::NodeName;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::gossip::{self, Inbox};
use crate::handler::Handler;
use crate::identity;
use crate::join::Cluster;
use crate::network::Listener;
use crate::transport::{self, Caller};
use crate::tunnel;
use crate::wire::{self, NODE};

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
    let (inbox, gossip) = gossip::open(cluster.clone());
    tokio::spawn(gossip.keep(handler.clone(), stop.clone()));
    let identity = cluster.peers().identity();
    let connections = transport::incoming(listener, identity, tunnels, stop.clone());
    let service = Service {
        cluster,
        handler,
        inbox,
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
    inbox: Inbox,
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
