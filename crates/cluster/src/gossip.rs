//! Gossip: what nodes tell of themselves goes from node to node, each telling a few others what it has heard.
//!
//! `chitchat` decides who tells whom and what the other lacks; its messages are calls of the peer protocol, so that they
//! are encrypted, have a known sender, and reach nodes behind NAT. Nothing rests on what is heard: it may be old, and a
//! node tells of others what it likes.

mod words;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use chitchat::transport::{Socket, Transport};
use chitchat::{
    ChitchatConfig, ChitchatId, ChitchatMessage, Deserializable, FailureDetectorConfig,
    Serializable, spawn_chitchat,
};
use fulmar_model::NodeName;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::directory::spread;
use crate::handler::Handler;
use crate::hints::Told;
use crate::join::Cluster;
use crate::wire::GossipRequest;
use crate::wire::peer_client::PeerClient;

/// Pause between two rounds of gossip.
const EVERY: Duration = Duration::from_millis(500);
/// Longest wait until another node has taken a message.
const DEADLINE: Duration = Duration::from_secs(2);
/// Messages that wait to be read; what is more is said again.
const INBOX: usize = 64;
/// A node that was not heard of for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// What was marked as no longer said is kept for so long.
const TAKEN_BACK: Duration = Duration::from_secs(60);
/// Doubt at which a node counts as gone.
const PHI: f64 = 8.0;
/// Intervals between signs of life by which that is judged, and the longest that counts.
const INTERVALS: usize = 100;
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);

/// A part of a conversation, with whom it is from.
type Heard = (SocketAddr, ChitchatMessage);

/// Where messages of other nodes go.
#[derive(Clone)]
pub(crate) struct Inbox(mpsc::Sender<Heard>);

impl Inbox {
    /// Takes a message, as it came from a node; forgets it if too many wait.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn take(&self, from: &NodeName, mut message: &[u8]) -> Result<(), String> {
        let message = ChitchatMessage::deserialize(&mut message);
        let message = message.map_err(|error| error.to_string())?;
        let _ = self.0.try_send((address(from), message));
        Ok(())
    }
}

/// Gossip of this node, before it begins.
pub(crate) struct Gossip {
    cluster: Arc<Cluster>,
    heard: mpsc::Receiver<Heard>,
}

/// Where messages go, and what becomes of them.
pub(crate) fn open(cluster: Arc<Cluster>) -> (Inbox, Gossip) {
    let (sender, heard) = mpsc::channel(INBOX);
    (Inbox(sender), Gossip { cluster, heard })
}

/// Stands for a node where the library wants an address: a hash of its name.
fn address(node: &NodeName) -> SocketAddr {
    let name = node.as_str().bytes();
    let (one, other) = (spread(name.clone()), spread(name.rev().chain([0])));
    let bits = u128::from(one) << 64 | u128::from(other);
    SocketAddr::from((Ipv6Addr::from_bits(bits), 1))
}

impl Gossip {
    /// Gossips until stopped; what is heard goes to the node's hints.
    pub(crate) async fn keep(self, handler: Arc<dyn Handler>, stop: CancellationToken) {
        let Self { cluster, heard } = self;
        let own = address(cluster.name());
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(cluster.name().to_string(), cluster.info().starts, own),
            cluster_id: "fulmar".to_owned(),
            gossip_interval: EVERY,
            listen_addr: own,
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig::new(
                PHI,
                INTERVALS,
                LONGEST_INTERVAL,
                EVERY,
                FORGOTTEN,
            ),
            marked_for_deletion_grace_period: TAKEN_BACK,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let transport = OverPeers {
            cluster: cluster.clone(),
            heard: Mutex::new(Some(heard)),
        };
        let spoken = match spawn_chitchat(config, Vec::new(), &transport).await {
            Ok(spoken) => spoken,
            Err(error) => return tracing::error!(%error, "there is no gossip"),
        };
        let state = spoken.chitchat();
        let mut others = state.lock().await.live_nodes_watcher();
        let mut again = tokio::time::interval(EVERY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = others.changed() => {
                    let told: HashMap<NodeName, Told> = others
                        .borrow_and_update()
                        .iter()
                        .filter_map(|(id, state)| Some((NodeName::new(&id.node_id).ok()?, words::read(state))))
                        .collect();
                    cluster.hints().hear(told);
                }
                _ = again.tick() => {
                    let told = Told {
                        room_bytes: handler.room_bytes(),
                        worker_bytes: handler.worker_bytes(),
                        execution_times: handler.execution_times().into_iter().collect(),
                        ways: cluster.hints().ways(),
                    };
                    let mut state = state.lock().await;
                    words::tell(state.self_node_state(), &told);
                    let met: HashSet<SocketAddr> = state.node_states().keys().map(|id| id.gossip_advertise_addr).collect();
                    drop(state);
                    // The first word; from then on they are told of by others as well.
                    for node in cluster.others().iter().map(address).filter(|node| !met.contains(node)) {
                        let _ = spoken.gossip(node);
                    }
                }
            }
        }
    }
}

/// Gossip by calls of the peer protocol.
struct OverPeers {
    cluster: Arc<Cluster>,
    /// Until it is opened.
    heard: Mutex<Option<mpsc::Receiver<Heard>>>,
}

#[tonic::async_trait]
impl Transport for OverPeers {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let heard = self.heard.lock().take();
        let heard = heard.ok_or_else(|| anyhow::anyhow!("gossip is open already"))?;
        let cluster = self.cluster.clone();
        Ok(Box::new(Calls { cluster, heard }))
    }
}

struct Calls {
    cluster: Arc<Cluster>,
    heard: mpsc::Receiver<Heard>,
}

#[tonic::async_trait]
impl Socket for Calls {
    /// What does not arrive is said again some time.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let mut others = self.cluster.others().into_iter();
        let Some(node) = others.find(|node| address(node) == to) else {
            return Ok(());
        };
        let message = GossipRequest {
            message: message.serialize_to_vec().into(),
        };
        let peers = self.cluster.peers().clone();
        let request = peers.request(message, DEADLINE);
        // Nobody else waits for whoever is slow.
        tokio::spawn(async move {
            let sent = peers.call(&node, DEADLINE, |channel| async move {
                PeerClient::new(channel).gossip(request).await
            });
            if let Err(error) = sent.await {
                tracing::trace!(%error, "a node does not hear gossip");
            }
        });
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<Heard> {
        let heard = self.heard.recv().await;
        heard.ok_or_else(|| anyhow::anyhow!("nobody is answered any more"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_addresses_of_their_own() {
        let names = (0..10_000).map(|at| NodeName::new(&format!("node-{at}")).unwrap());
        let addresses: HashSet<SocketAddr> = names.map(|name| address(&name)).collect();
        assert_eq!(addresses.len(), 10_000);
    }

    #[tokio::test]
    async fn garbage_is_refused() {
        let (sender, _heard) = mpsc::channel(1);
        let inbox = Inbox(sender);
        let from = NodeName::new("a").unwrap();
        for garbage in [&b""[..], &[0; 3], &[0x53, 0xb0, 0, 9], &[0xff; 4000]] {
            inbox.take(&from, garbage).unwrap_err();
        }
    }
}
