//! What the registry says, as last heard: nodes, shards, functions and whatever else is kept there.
//!
//! One task follows the registry; everybody else reads here, without waiting. Kept in the local data
//! store as well, so that a node that starts cut off knows what it knew.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::{NodeName, SiteName};
use fulmar_state::record::{Record, RecordError};
use fulmar_state::{Bookkeeping, Store, StoreError, Table};
use futures_util::StreamExt;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::peers::Peers;
use crate::registry::{Change, Entry, Registry, RegistryError, Revision, Snapshot};

/// Prefixes of the keys.
pub(crate) const NODES: &str = "node/";
pub(crate) const LIVE: &str = "live/";
pub(crate) const SHARDS: &str = "shard/";
/// Where functions are, by name.
pub const FUNCTIONS: &str = "function/";

/// Pauses before the registry is tried again.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// Key of the kept view in the system table.
const KEPT: &[u8] = b"cluster/view";

/// What a node says of itself; stays when the node goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Made with the node's data directory.
    pub instance: String,
    /// How often that data directory was started.
    pub starts: u64,
    /// Tells this start from all others, also of copies of the data directory.
    pub run: u64,
    /// Nodes that share a LAN.
    pub site: SiteName,
    /// `edge` or `cloud`.
    pub zone: String,
    /// Where peers reach it; empty: nobody can dial it.
    pub peer: String,
    /// Where clients reach it.
    pub http: String,
    /// Its version of Fulmar.
    pub version: String,
    /// How fast it computes, against the reference machine.
    pub speed_up_thousandths: u64,
}

impl Record for NodeInfo {}

/// Who owns a directory shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardRecord {
    pub(crate) owner: NodeName,
}

impl Record for ShardRecord {}

/// Keys and values of the registry, as kept locally.
#[derive(Serialize, Deserialize)]
struct KeptView {
    entries: Vec<(String, Vec<u8>, u64)>,
    revision: u64,
}

impl Record for KeptView {}

/// What the registry says.
pub struct View {
    state: RwLock<State>,
    revision: watch::Sender<Revision>,
    /// Whether the registry is followed at this moment.
    connected: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    shards: HashMap<(SiteName, u16), (NodeName, Revision)>,
    nodes: BTreeMap<NodeName, NodeInfo>,
}

/// A node as the registry knows it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// What it says of itself.
    pub info: NodeInfo,
    /// Whether its lease is alive.
    pub live: bool,
}

pub(crate) fn shard_key(site: &SiteName, shard: u16) -> String {
    format!("{SHARDS}{site}/{shard:04}")
}

fn parse_shard(key: &str) -> Option<(SiteName, u16)> {
    let (site, shard) = key.strip_prefix(SHARDS)?.split_once('/')?;
    Some((SiteName::new(site).ok()?, shard.parse().ok()?))
}

fn read<R: Record>(key: &str, value: &[u8]) -> Option<R> {
    let logged = |error: &RecordError| {
        tracing::warn!(key, %error, "the registry has a record that cannot be read");
    };
    R::decode(value).inspect_err(logged).ok()
}

impl View {
    /// What was kept when the node last followed the registry.
    pub(crate) fn kept(store: &Store) -> Result<Self, StoreError> {
        let view = Self {
            state: RwLock::default(),
            revision: watch::Sender::new(0),
            connected: watch::Sender::new(false),
        };
        if let Some(kept) = store.record::<KeptView>(Table::System, KEPT)? {
            let entries = kept.entries.into_iter();
            view.replace(Snapshot {
                entries: entries
                    .map(|(key, value, revision)| Entry {
                        key,
                        value: value.into(),
                        revision,
                    })
                    .collect(),
                revision: kept.revision,
            });
        }
        Ok(view)
    }

    /// The last change that is in it.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Hears of every change.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Whether the registry is followed at this moment.
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Waits until a change is in it, at most so long; whether it is.
    pub async fn has(&self, revision: Revision, deadline: Duration) -> bool {
        let mut revisions = self.revision.subscribe();
        let reached = revisions.wait_for(|seen| *seen >= revision);
        matches!(tokio::time::timeout(deadline, reached).await, Ok(Ok(_)))
    }

    /// A key.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.state.read().entries.get(key).cloned()
    }

    /// All keys that start with `prefix`.
    pub fn list(&self, prefix: &str) -> Vec<Entry> {
        let state = self.state.read();
        let from = state.entries.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect()
    }

    /// All nodes.
    pub fn members(&self) -> Vec<Member> {
        let state = self.state.read();
        let members = state.nodes.iter().map(|(name, info)| Member {
            name: name.clone(),
            info: info.clone(),
            live: state.entries.contains_key(&format!("{LIVE}{name}")),
        });
        members.collect()
    }

    /// A node.
    pub fn member(&self, name: &NodeName) -> Option<NodeInfo> {
        self.state.read().nodes.get(name).cloned()
    }

    /// Who owns a shard, since which change.
    pub(crate) fn shard(&self, site: &SiteName, shard: u16) -> Option<(NodeName, Revision)> {
        let state = self.state.read();
        state.shards.get(&(site.clone(), shard)).cloned()
    }

    /// Shards by owner.
    pub fn shards_of(&self, node: &NodeName) -> usize {
        let state = self.state.read();
        state
            .shards
            .values()
            .filter(|(owner, _)| owner == node)
            .count()
    }

    fn replace(&self, snapshot: Snapshot) {
        let mut state = State::default();
        for entry in snapshot.entries {
            state.put(entry);
        }
        *self.state.write() = state;
        self.revision.send_replace(snapshot.revision);
    }

    fn apply(&self, changes: Vec<Change>) {
        let Some(last) = changes.last().map(|change| change.revision) else {
            return;
        };
        {
            let mut state = self.state.write();
            for Change {
                key,
                value,
                revision,
            } in changes
            {
                match value {
                    Some(value) => state.put(Entry {
                        key,
                        value,
                        revision,
                    }),
                    None => state.delete(&key, revision),
                }
            }
        }
        self.revision.send_replace(last);
    }

    /// Takes over what the registry just answered to this node, ahead of the changes that bring it.
    pub(crate) fn learn(&self, entry: Entry) {
        self.state.write().put(entry);
    }

    fn keep(&self, store: &Store) {
        let kept = {
            let state = self.state.read();
            let entries = state.entries.values();
            KeptView {
                entries: entries
                    .map(|entry| (entry.key.clone(), entry.value.to_vec(), entry.revision))
                    .collect(),
                revision: self.revision(),
            }
        };
        let mut bookkeeping = Bookkeeping::default();
        bookkeeping.put(Table::System, KEPT, &kept);
        // Only a help for a start without the registry: nobody waits for it.
        if let Err(error) = store.commit_bookkeeping(bookkeeping, Box::new(|_| {})) {
            tracing::warn!(%error, "what the registry says cannot be kept");
        }
    }
}

impl State {
    fn put(&mut self, entry: Entry) {
        let known = self.entries.get(&entry.key);
        if known.is_some_and(|known| known.revision >= entry.revision) {
            return;
        }
        if let Some(name) = entry.key.strip_prefix(NODES)
            && let Ok(name) = NodeName::new(name)
            && let Some(info) = read(&entry.key, &entry.value)
        {
            self.nodes.insert(name, info);
        }
        if let Some(shard) = parse_shard(&entry.key)
            && let Some(ShardRecord { owner }) = read(&entry.key, &entry.value)
        {
            self.shards.insert(shard, (owner, entry.revision));
        }
        self.entries.insert(entry.key.clone(), entry);
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        let known = self.entries.get(key);
        if known.is_none_or(|known| known.revision > revision) {
            return;
        }
        if let Some(name) = key.strip_prefix(NODES) {
            self.nodes.remove(name);
        }
        if let Some(shard) = parse_shard(key) {
            self.shards.remove(&shard);
        }
        self.entries.remove(key);
    }
}

/// Follows the registry until stopped.
pub(crate) async fn follow(
    view: Arc<View>,
    registry: Arc<dyn Registry>,
    peers: Arc<Peers>,
    store: Arc<Store>,
    stop: CancellationToken,
) {
    let mut pause = RETRY;
    loop {
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = follow_once(&view, &*registry, &peers, &store, &mut pause) => result,
        };
        view.connected.send_replace(false);
        match result {
            Err(RegistryError::Compacted(_)) => {}
            Err(error) => tracing::warn!(%error, "the registry is not followed at this moment"),
            Ok(()) => tracing::debug!("the registry ended the stream of its changes"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn follow_once(
    view: &View,
    registry: &dyn Registry,
    peers: &Peers,
    store: &Store,
    pause: &mut Duration,
) -> Result<(), RegistryError> {
    let snapshot = registry.list("").await?;
    let after = snapshot.revision;
    if after < view.revision() {
        return Err(RegistryError::Refused(format!(
            "its last change is {after}, and this node has seen {}: it was restored from a backup, or is another registry",
            view.revision()
        )));
    }
    view.replace(snapshot);
    let mut changes = registry.watch(after).await?;
    *pause = RETRY;
    view.connected.send_replace(true);
    loop {
        peers.set_advertised(addresses(view));
        view.keep(store);
        match changes.next().await {
            None => return Ok(()),
            Some(changes) => view.apply(changes?),
        }
    }
}

fn addresses(view: &View) -> HashMap<NodeName, String> {
    let state = view.state.read();
    let nodes = state.nodes.iter();
    nodes
        .filter(|(_, info)| !info.peer.is_empty())
        .map(|(name, info)| (name.clone(), info.peer.clone()))
        .collect()
}

/// A value of the registry.
pub(crate) fn value(record: &impl Record) -> Bytes {
    record.encode().into()
}
