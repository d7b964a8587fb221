//! Connections between nodes: TCP, with mutual TLS where there are certificates.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fulmar_model::NodeName;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::identity::Identity;
use crate::links::Links;
use crate::network::{Duplex, Listener, Network, Stream as NetworkStream};

/// Longest wait for a connection, its handshake included.
pub const CONNECT: Duration = Duration::from_secs(3);
/// Pause after a failed accept (too many open files), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait for their handshake or to be taken.
const ACCEPTED: usize = 64;

/// A connection to a peer could not be made; whatever was to be sent was not.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot connect to {node} at {address}: {reason}")]
pub struct ConnectError {
    /// Whom.
    pub node: NodeName,
    /// Where.
    pub address: String,
    /// What went wrong.
    pub reason: String,
}

/// A connection, encrypted or not.
pub struct Connection {
    stream: Box<dyn Duplex>,
    /// The other side's certificate, if it showed one.
    certificate: Option<Arc<[u8]>>,
    /// The other side, if it is known otherwise.
    node: Option<NodeName>,
}

impl Connection {
    /// One inside a connection to a node.
    pub(crate) fn through_tunnel(stream: DuplexStream, node: NodeName) -> Self {
        Self {
            stream: Box::new(stream),
            certificate: None,
            node: Some(node),
        }
    }
}

/// What a service gets to know of the connection that a call came over.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The other side's certificate, DER; none without TLS.
    pub certificate: Option<Arc<[u8]>>,
    /// The other side, if the connection is inside one that was made to it.
    pub node: Option<NodeName>,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller {
            certificate: self.certificate.clone(),
            node: self.node.clone(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connects to a node, by way of an emulated link if there are any.
///
/// # Errors
/// When it does not answer in time, or shows a certificate that is not its own.
pub async fn connect(
    node: &NodeName,
    address: &str,
    network: &Network,
    identity: Option<&Identity>,
    links: Option<&Arc<Links>>,
) -> Result<Connection, ConnectError> {
    let failed = |reason: String| ConnectError {
        node: node.clone(),
        address: address.to_owned(),
        reason,
    };
    let connecting = async {
        let stream = network.connect(address).await;
        let stream = stream.map_err(|error| failed(error.to_string()))?;
        let stream: Box<dyn Duplex> = match links {
            Some(links) => Box::new(links.shape(node, stream)),
            None => Box::new(stream),
        };
        let Some(identity) = identity else {
            return Ok(Connection {
                stream,
                certificate: None,
                node: None,
            });
        };
        let name = Identity::server_name(node);
        let stream = TlsConnector::from(identity.client())
            .connect(name, stream)
            .await
            .map_err(|error| failed(format!("TLS: {error}")))?;
        Ok(Connection {
            stream: Box::new(stream),
            certificate: None,
            node: None,
        })
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(failed(format!("no answer within {CONNECT:?}"))),
    }
}

/// Connections from peers, handshakes done; those that fail are logged and left out. With those that come by tunnels.
pub(crate) fn incoming(
    listener: Listener,
    identity: Option<Arc<Identity>>,
    tunnels: mpsc::Receiver<Connection>,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let (accepted, connections) = mpsc::channel(ACCEPTED);
    tokio::spawn(async move {
        loop {
            let accepting = tokio::select! {
                () = stop.cancelled() => return,
                accepting = listener.accept() => accepting,
            };
            let (stream, from) = match accepting {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a peer's connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (accepted, identity) = (accepted.clone(), identity.clone());
            tokio::spawn(async move {
                if let Some(connection) = handshake(stream, from, identity.as_deref()).await {
                    // Nobody listens any more: the node stops.
                    let _ = accepted.send(Ok(connection)).await;
                }
            });
        }
    });
    let tunnels = ReceiverStream::new(tunnels).map(Ok);
    // An end of the tunnels is not the end.
    futures_util::stream::select(ReceiverStream::new(connections), tunnels)
}

async fn handshake(
    stream: NetworkStream,
    from: SocketAddr,
    identity: Option<&Identity>,
) -> Option<Connection> {
    let Some(identity) = identity else {
        return Some(Connection {
            stream: Box::new(stream),
            certificate: None,
            node: None,
        });
    };
    let accepting = TlsAcceptor::from(identity.server()).accept(stream);
    match tokio::time::timeout(CONNECT, accepting).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let certificate = certificates.and_then(|chain| chain.first());
            let certificate = certificate.map(|certificate| Arc::from(certificate.as_ref()));
            Some(Connection {
                stream: Box::new(stream),
                certificate,
                node: None,
            })
        }
        Ok(Err(error)) => {
            tracing::warn!(%from, %error, "a peer was refused: its certificate or its TLS is not good");
            None
        }
        Err(_) => {
            tracing::debug!(%from, "a peer's handshake took too long");
            None
        }
    }
}
