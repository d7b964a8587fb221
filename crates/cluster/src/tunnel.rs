//! Nodes that nobody can dial, as behind NAT: they are reached over connections that they open.
//!
//! Such a node calls every node that it can dial, and that call carries the bytes of a connection in the other direction:
//! inside it the node answers, as it answers on connections that it accepts. When it breaks the node opens it again.
//! Two such nodes do not reach each other.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::NodeName;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::join::Cluster;
use crate::peers::PeerError;
use crate::transport::Connection;
use crate::wire::Chunk;
use crate::wire::peer_client::PeerClient;

/// Bytes between the two connections, in each direction.
const PIPE: usize = 256 << 10;
/// Bytes that go at once.
const SEGMENT: usize = 64 << 10;
/// Pause before a tunnel that broke is opened again, and between two looks for new nodes.
const AGAIN: Duration = Duration::from_millis(500);

/// The near end of a tunnel, until a connection is made through it.
pub(crate) struct Opened {
    /// Tells it from those before.
    pub(crate) number: u64,
    stream: Mutex<Option<DuplexStream>>,
}

impl Opened {
    /// The stream, once: a connection that broke takes its tunnel with it.
    pub(crate) fn take(&self) -> Option<DuplexStream> {
        self.stream.lock().take()
    }
}

/// What comes out of a stream, as the messages of a call; until the stream ends.
fn chunks(mut from: impl AsyncRead + Send + Unpin + 'static) -> ReceiverStream<Chunk> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut segment = vec![0; SEGMENT];
        while let Ok(count @ 1..) = from.read(&mut segment).await {
            let bytes = Bytes::copy_from_slice(&segment[..count]);
            if sender.send(Chunk { bytes }).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// Puts the messages of a call into a stream, until one of them ends.
async fn pour(
    mut from: impl Stream<Item = Result<Chunk, Status>> + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
) {
    while let Some(Ok(chunk)) = from.next().await {
        if to.write_all(&chunk.bytes).await.is_err() {
            return;
        }
    }
    // Whoever reads sees that it is over.
    let _ = to.shutdown().await;
}

/// A node has opened a tunnel: what goes to it, and the near end for whoever calls it.
pub(crate) fn accept(
    number: u64,
    from: impl Stream<Item = Result<Chunk, Status>> + Send + Unpin + 'static,
) -> (Opened, ReceiverStream<Chunk>) {
    let (near, far) = tokio::io::duplex(PIPE);
    let (read, write) = tokio::io::split(far);
    tokio::spawn(pour(from, write));
    let opened = Opened {
        number,
        stream: Mutex::new(Some(near)),
    };
    (opened, chunks(read))
}

/// Keeps tunnels to all nodes that can be dialled, until stopped; connections through them go to `accepted`.
pub(crate) async fn keep(
    cluster: Arc<Cluster>,
    accepted: mpsc::Sender<Connection>,
    stop: CancellationToken,
) {
    let open: Arc<Mutex<HashSet<NodeName>>> = Arc::default();
    loop {
        for node in cluster.others() {
            if cluster.peers().can_dial(&node) && open.lock().insert(node.clone()) {
                let (cluster, accepted, stop) = (cluster.clone(), accepted.clone(), stop.clone());
                let open = open.clone();
                let kept = keep_one(cluster, node.clone(), accepted).boxed();
                tokio::spawn(async move {
                    // Stopped or broken: it is not open any more.
                    let _ = stop.run_until_cancelled_owned(kept).await;
                    open.lock().remove(&node);
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Opens a tunnel to a node, and waits until it breaks.
async fn keep_one(cluster: Arc<Cluster>, node: NodeName, accepted: mpsc::Sender<Connection>) {
    let (near, far) = tokio::io::duplex(PIPE);
    let (read, write) = tokio::io::split(far);
    let answers = match call(&cluster, &node, chunks(read)).await {
        Ok(answers) => answers,
        Err(error) => {
            tracing::debug!(%node, %error, "a tunnel cannot be opened");
            return;
        }
    };
    // The certificate that it showed when it was dialled is this node's.
    let connection = Connection::through_tunnel(near, node.clone());
    if accepted.send(connection).await.is_ok() {
        tracing::debug!(%node, "reachable from there by a tunnel");
        pour(answers, write).await;
    }
}

fn call(
    cluster: &Cluster,
    node: &NodeName,
    chunks: ReceiverStream<Chunk>,
) -> BoxFuture<'static, Result<Streaming<Chunk>, PeerError>> {
    let channel = cluster.peers().channel(node);
    let request = cluster.peers().stream_request(chunks);
    let node = node.clone();
    Box::pin(async move {
        let answers = PeerClient::new(channel?).tunnel(request).await;
        let answers = answers.map_err(|status| PeerError::Unreachable {
            node,
            reason: status.to_string(),
        });
        answers.map(tonic::Response::into_inner)
    })
}
