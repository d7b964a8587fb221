//! Calls to other nodes: one connection to each, made when it is needed, and made again when it breaks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fulmar_model::NodeName;
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::clock::Reading;
use crate::identity::Identity;
use crate::links::Links;
use crate::network::Network;
use crate::transport::{self, ConnectError};
use crate::tunnel::{self, Opened};
use crate::wire::{self, Chunk, NODE};

/// How often a silent connection is tried, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes in flight of one call, and of one connection.
const CALL_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A call to another node had no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// Nobody knows where the node is.
    #[error("no address of the node {0} is known")]
    Unknown(NodeName),
    /// No connection: nothing was sent.
    #[error("{node} cannot be reached: {reason}")]
    Unreachable {
        /// Whom.
        node: NodeName,
        /// Why.
        reason: String,
    },
    /// The connection broke, or the time was over: what was sent may have arrived.
    #[error("{node} did not answer: {reason}")]
    Lost {
        /// Who.
        node: NodeName,
        /// Why.
        reason: String,
    },
    /// An answer, but none of use.
    #[error("{node} refused: {reason}")]
    Refused {
        /// Who.
        node: NodeName,
        /// Why.
        reason: String,
    },
}

impl PeerError {
    /// Whether the other node certainly did nothing.
    pub fn nothing_sent(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Unreachable { .. })
    }
}

/// Other nodes, by name.
pub struct Peers {
    own: NodeName,
    network: Network,
    identity: Option<Arc<Identity>>,
    /// Addresses from the configuration: for as long as the registry knows none.
    configured: HashMap<NodeName, String>,
    advertised: RwLock<HashMap<NodeName, String>>,
    channels: Mutex<HashMap<NodeName, (String, Channel)>>,
    /// Of nodes that nobody can dial.
    tunnels: Mutex<HashMap<NodeName, Arc<Opened>>>,
    links: Option<Arc<Links>>,
}

impl Peers {
    /// No connections yet.
    pub(crate) fn new(
        own: NodeName,
        network: Network,
        identity: Option<Arc<Identity>>,
        configured: HashMap<NodeName, String>,
        links: Option<Arc<Links>>,
    ) -> Self {
        Self {
            own,
            network,
            identity,
            configured,
            advertised: RwLock::default(),
            channels: Mutex::default(),
            tunnels: Mutex::default(),
            links,
        }
    }

    /// The emulated links, if they are.
    pub fn links(&self) -> Option<&Arc<Links>> {
        self.links.as_ref()
    }

    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.clone()
    }

    /// Takes over where nodes say that they are.
    pub(crate) fn set_advertised(&self, addresses: HashMap<NodeName, String>) {
        *self.advertised.write() = addresses;
    }

    /// Whether the node can be dialled, as far as is known.
    pub(crate) fn can_dial(&self, node: &NodeName) -> bool {
        self.configured.contains_key(node) || self.advertised.read().contains_key(node)
    }

    /// A node has called and lets itself be called over that call: what goes to it.
    pub(crate) fn reached_by(
        &self,
        node: &NodeName,
        from: Streaming<Chunk>,
    ) -> ReceiverStream<Chunk> {
        let mut tunnels = self.tunnels.lock();
        let number = tunnels.get(node).map_or(1, |before| before.number + 1);
        let (opened, back) = tunnel::accept(number, from);
        tunnels.insert(node.clone(), Arc::new(opened));
        back
    }

    /// A connection to the node, which may still have to be made.
    ///
    /// # Errors
    /// When no address of the node is known.
    pub fn channel(&self, node: &NodeName) -> Result<Channel, PeerError> {
        // What is configured for a node is how it is reached from here.
        let address = match self.configured.get(node) {
            Some(address) => address.clone(),
            None => match self.advertised.read().get(node) {
                Some(address) => address.clone(),
                None => return self.by_tunnel(node),
            },
        };
        let mut channels = self.channels.lock();
        if let Some((known, channel)) = channels.get(node)
            && *known == address
        {
            return Ok(channel.clone());
        }
        let channel = self.connect(node.clone(), address.clone());
        channels.insert(node.clone(), (address, channel.clone()));
        Ok(channel)
    }

    /// A connection to a node that nobody can dial, through the tunnel that it has opened last.
    fn by_tunnel(&self, node: &NodeName) -> Result<Channel, PeerError> {
        let opened = self.tunnels.lock().get(node).cloned();
        let opened = opened.ok_or_else(|| PeerError::Unknown(node.clone()))?;
        let address = format!("tunnel {}", opened.number);
        let mut channels = self.channels.lock();
        if let Some((known, channel)) = channels.get(node)
            && *known == address
        {
            return Ok(channel.clone());
        }
        let (to, through) = (node.clone(), address.clone());
        let connector = tower::service_fn(move |_| {
            let stream = opened.take().ok_or_else(|| ConnectError {
                node: to.clone(),
                address: through.clone(),
                reason: "it is gone, and the node has not opened another one yet".to_owned(),
            });
            async move { stream.map(TokioIo::new) }
        });
        let channel = endpoint().connect_with_connector_lazy(connector);
        channels.insert(node.clone(), (address, channel.clone()));
        Ok(channel)
    }

    fn connect(&self, node: NodeName, address: String) -> Channel {
        let (identity, links) = (self.identity.clone(), self.links.clone());
        let network = self.network.clone();
        let connector = tower::service_fn(move |_| {
            let (node, address, network) = (node.clone(), address.clone(), network.clone());
            let (identity, links) = (identity.clone(), links.clone());
            async move {
                let (identity, links) = (identity.as_deref(), links.as_ref());
                let connection = transport::connect(&node, &address, &network, identity, links);
                let connection = connection.await?;
                Ok::<_, ConnectError>(TokioIo::new(connection))
            }
        });
        endpoint().connect_with_connector_lazy(connector)
    }

    /// A message with its sender and its deadline.
    pub fn request<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = self.stream_request(message);
        request.set_timeout(deadline);
        request
    }

    /// The same for calls that go on and on.
    pub fn stream_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A node's name is plain ASCII.
        if let Ok(own) = self.own.as_str().parse() {
            request.metadata_mut().insert(NODE, own);
        }
        let metadata = request.metadata_mut();
        metadata.insert(wire::CALLER_PROTOCOL, wire::PROTOCOL.into());
        request
    }

    /// Calls a node: `call` gets a client of any service, made from the channel.
    ///
    /// # Errors
    /// As [`PeerError`] tells.
    pub(crate) async fn call<T, F>(
        &self,
        node: &NodeName,
        deadline: Duration,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<T, PeerError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let channel = self.channel(node)?;
        within(deadline, call(channel))
            .await
            .map_err(|status| classify(node, &status))
    }

    /// Asks a node for its name and its protocol, and how it is.
    ///
    /// # Errors
    /// When it does not answer, or speaks a protocol of which this version knows nothing.
    pub async fn hello(&self, node: &NodeName, deadline: Duration) -> Result<Hello, PeerError> {
        let message = wire::HelloRequest {
            node: self.own.to_string(),
            protocol: wire::PROTOCOL,
        };
        let request = self.request(message, deadline);
        let reply = self
            .call(node, deadline, |channel| async move {
                wire::peer_client::PeerClient::new(channel)
                    .hello(request)
                    .await
            })
            .await?;
        let refused = |reason: String| PeerError::Refused {
            node: node.clone(),
            reason,
        };
        wire::understands(reply.oldest, reply.protocol).map_err(refused)?;
        if reply.node != node.as_str() {
            return Err(refused(format!("it calls itself {}", reply.node)));
        }
        let copying = reply.copying.map(|copying| Copying {
            is_open: copying.open,
            behind: Duration::from_millis(copying.behind_ms),
            fault: (!copying.fault.is_empty()).then_some(copying.fault),
        });
        Ok(Hello {
            copying,
            clock: (reply.unix_ms > 0).then_some(Reading {
                unix_ms: reply.unix_ms,
                kept_ms: reply.kept_ms,
            }),
        })
    }
}

/// How connections are used. The connector knows where to go; the name is only for the requests' authority.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://peer")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// How a node is, by its own words.
#[derive(Debug, Clone, Default)]
pub struct Hello {
    /// Its clock, if it says.
    pub clock: Option<Reading>,
    /// How its copy in the object store is, if it has one.
    pub copying: Option<Copying>,
}

/// How a node's copy in the object store is.
#[derive(Debug, Clone)]
pub struct Copying {
    /// Whether it is known to be the node's own.
    pub is_open: bool,
    /// For how long the oldest commit that is not copied has been waiting.
    pub behind: Duration,
    /// What is wrong with it.
    pub fault: Option<String>,
}

impl Copying {
    /// How that of this node is.
    pub fn of(store: &fulmar_state::Store) -> Option<Self> {
        let standing = store.changelog()?.standing();
        let fenced = |by| format!("{by} has taken over");
        Some(Self {
            is_open: standing.open,
            behind: standing.behind,
            fault: standing.fenced_by.map(fenced).or(standing.trouble),
        })
    }
}

/// The answer, if it comes in time.
pub(crate) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(result) => result.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {deadline:?}"
        ))),
    }
}

/// The first cause of this type.
fn cause<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What a failed call's status says, to people.
pub(crate) fn explain(status: &Status) -> String {
    match cause::<ConnectError>(status) {
        Some(error) => error.to_string(),
        None => status.message().to_owned(),
    }
}

fn classify(node: &NodeName, status: &Status) -> PeerError {
    let (node, reason) = (node.clone(), explain(status));
    if let Some(error) = cause::<ConnectError>(status) {
        let reason = error.reason.clone();
        return PeerError::Unreachable { node, reason };
    }
    match status.code() {
        tonic::Code::Unavailable
        | tonic::Code::DeadlineExceeded
        | tonic::Code::Cancelled
        | tonic::Code::Unknown
        | tonic::Code::Internal => PeerError::Lost { node, reason },
        _ => PeerError::Refused { node, reason },
    }
}
