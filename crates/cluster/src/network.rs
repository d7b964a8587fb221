//! The network that a node is on: the system's TCP, or one that behaves like it, for simulations.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Where a node listens and whom it can connect to.
#[derive(Clone, Default)]
pub enum Network {
    /// The system's.
    #[default]
    System,
    /// Another.
    Simulated(Arc<dyn SimulatedNetwork>),
}

/// A network that is not the system's.
pub trait SimulatedNetwork: Send + Sync {
    /// Listens at an address.
    fn listen(
        &self,
        address: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn SimulatedListener>>>;

    /// Connects to `HOST:PORT`.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Duplex>>>;
}

/// Whoever listens on a network that is not the system's.
pub trait SimulatedListener: Send + Sync {
    /// Where.
    ///
    /// # Errors
    /// When it listens no more.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next connection, and where it is from.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Duplex>, SocketAddr)>>;
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Simulated(_) => "Simulated",
        })
    }
}

/// Connections that may wait until they are accepted, as far as the system lets them: what comes beyond it is dropped by the
/// system, and comes again a second later.
const BACKLOG: u32 = 8192;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A node that starts again is not kept by connections of its last run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Network {
    /// Listens at an address.
    ///
    /// # Errors
    /// When that is not possible there.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        Ok(match self {
            Self::System => Listener::System(listen(address)?),
            Self::Simulated(network) => Listener::Simulated(network.listen(address).await?),
        })
    }

    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn connect(&self, address: &str) -> io::Result<Stream> {
        Ok(match self {
            Self::System => Stream::of_system(TcpStream::connect(address).await?),
            Self::Simulated(network) => Stream::Simulated(network.connect(address).await?),
        })
    }
}

/// Takes connections.
pub enum Listener {
    /// On the system's network.
    System(TcpListener),
    /// On another.
    Simulated(Box<dyn SimulatedListener>),
}

impl Listener {
    /// Where.
    ///
    /// # Errors
    /// When it listens no more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(listener) => listener.local_addr(),
            Self::Simulated(listener) => listener.local_addr(),
        }
    }

    /// The next connection, and where it is from.
    ///
    /// # Errors
    /// When it cannot be taken now.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        Ok(match self {
            Self::System(listener) => {
                let (stream, from) = listener.accept().await?;
                (Stream::of_system(stream), from)
            }
            Self::Simulated(listener) => {
                let (stream, from) = listener.accept().await?;
                (Stream::Simulated(stream), from)
            }
        })
    }
}

/// A connection.
pub enum Stream {
    /// On the system's network.
    System(TcpStream),
    /// On another.
    Simulated(Box<dyn Duplex>),
}

impl Stream {
    /// A connection on which nothing waits for more to send.
    fn of_system(stream: TcpStream) -> Self {
        // One that is closed already will say so itself.
        let _ = stream.set_nodelay(true);
        Self::System(stream)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Simulated(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::System(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Simulated(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::System(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Simulated(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::System(stream) => stream.is_write_vectored(),
            Self::Simulated(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(stream) => Pin::new(stream).poll_flush(cx),
            Self::Simulated(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Simulated(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
