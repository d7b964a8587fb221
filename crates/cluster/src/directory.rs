//! The directory: who is home to a session.
//!
//! A session belongs to one of some hundred shards of its site by the hash of its name. The registry says
//! who owns a shard, and nothing more; the owner keeps a record for each of its sessions in its local
//! data store. Whoever needs a shard that nobody owns becomes its owner by compare-and-swap, and the
//! revision of that change is the root of the epochs that it gives out.
//!
//! Answers are cached, with bounded memory, and corrected by the homes themselves.

use std::sync::Arc;
use std::time::Duration;

use fulmar_model::{Epoch, Group, NodeName, SiteName};
use fulmar_state::record::DirectoryRecord;
use fulmar_state::{Bookkeeping, Store, Table, key};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::peers::{PeerError, Peers};
use crate::registry::{Entry, Registry, RegistryError, Written};
use crate::view::{ShardRecord, View, shard_key, value};
use crate::wire::{self, directory_client::DirectoryClient};

/// Shards of a site: enough to be spread over its nodes, few enough for the registry.
pub const SHARDS: u16 = 256;
/// Epochs that one owner can give to a session: the low bits, below the revision of its ownership.
const EPOCH_BITS: u32 = 24;
/// Epochs below come from a node that was alone.
pub const FIRST_EPOCH: Epoch = Epoch(1 << EPOCH_BITS);
/// Longest wait for the owner of a shard.
const DEADLINE: Duration = Duration::from_secs(3);
/// Longest wait until a change of ownership is seen here.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Tries while owners change.
const TRIES: usize = 4;
/// Sessions of other nodes that are remembered, in two generations of this size.
const CACHED: usize = 100_000;
/// Locks that the records are spread over while one is looked at and changed.
const STRIPES: usize = 64;

/// Who is home to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The node.
    pub node: NodeName,
    /// Since which epoch.
    pub epoch: Epoch,
}

/// The directory cannot answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DirectoryError {
    /// Who owns the shard cannot be found out, or nobody can become its owner.
    #[error("who keeps the directory for this session cannot be found out: {0}")]
    Registry(#[from] RegistryError),
    /// The owner of the shard cannot be asked.
    #[error("the node that keeps the directory for this session cannot be asked: {0}")]
    Owner(#[from] PeerError),
    /// The local data store failed.
    #[error("the directory's records: {0}")]
    Store(String),
    /// The session's home is another than the one expected.
    #[error("the session's home has changed: it is {0:?}")]
    Changed(Option<Home>),
    /// Owners change all the time.
    #[error("the owner of the directory's shard keeps changing")]
    Unsettled,
}

/// What the owner of a shard says; none: it is not the owner.
type OwnAnswer = Option<Result<Option<Home>, DirectoryError>>;

/// The directory, as seen by one node.
pub struct Directory {
    own: NodeName,
    site: SiteName,
    view: Arc<View>,
    registry: Arc<dyn Registry>,
    peers: Arc<Peers>,
    store: Arc<Store>,
    stripes: [Mutex<()>; STRIPES],
    cache: Mutex<Cache>,
}

/// Two generations: when the young one is full it becomes the old one, which is forgotten.
#[derive(Default)]
struct Cache {
    young: FxHashMap<Group, Home>,
    old: FxHashMap<Group, Home>,
}

impl Cache {
    fn get(&mut self, group: &Group) -> Option<Home> {
        if let Some(home) = self.young.get(group) {
            return Some(home.clone());
        }
        let (group, home) = self.old.remove_entry(group)?;
        self.put(group, home.clone());
        Some(home)
    }

    fn put(&mut self, group: Group, home: Home) {
        if self.young.len() >= CACHED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(group, home);
    }

    fn remove(&mut self, group: &Group) {
        self.young.remove(group);
        self.old.remove(group);
    }
}

/// FNV-1a, 64 bits: the same on every machine and in every version.
fn hash(group: &Group) -> u64 {
    let bytes = group.function.as_str().bytes();
    let bytes = bytes.chain([0]).chain(group.session.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The shard of a session in its site.
pub fn shard_of(group: &Group) -> u16 {
    (hash(group) % u64::from(SHARDS)) as u16
}

fn failed(error: impl std::fmt::Display) -> DirectoryError {
    DirectoryError::Store(error.to_string())
}

impl Directory {
    pub(crate) fn new(
        own: NodeName,
        site: SiteName,
        view: Arc<View>,
        registry: Arc<dyn Registry>,
        peers: Arc<Peers>,
        store: Arc<Store>,
    ) -> Self {
        Self {
            own,
            site,
            view,
            registry,
            peers,
            store,
            stripes: [const { Mutex::new(()) }; STRIPES],
            cache: Mutex::default(),
        }
    }

    /// Where a session was when it was last heard of. May be out of date.
    pub fn cached(&self, group: &Group) -> Option<Home> {
        self.cache.lock().get(group)
    }

    /// Takes over where a session is, unless something newer is known.
    pub fn learn(&self, group: &Group, home: Home) {
        let mut cache = self.cache.lock();
        if home.node == self.own {
            cache.remove(group);
        } else if cache
            .get(group)
            .is_none_or(|known| known.epoch <= home.epoch)
        {
            cache.put(group.clone(), home);
        }
    }

    /// Forgets where a session was.
    pub fn unlearn(&self, group: &Group) {
        self.cache.lock().remove(group);
    }

    /// Who is home to a session; if nobody is, `claimant` becomes it.
    ///
    /// # Errors
    /// When the owner of its shard cannot be found or asked.
    pub async fn find(
        &self,
        group: &Group,
        claimant: Option<&NodeName>,
    ) -> Result<Option<Home>, DirectoryError> {
        let message = wire::FindRequest {
            group: Some(group.into()),
            claimant: claimant.map(NodeName::to_string).unwrap_or_default(),
        };
        for _ in 0..TRIES {
            let owner = self.owner(group).await?;
            if owner == self.own {
                if let Some(answer) = self.find_own(group, claimant).await {
                    return answer;
                }
                continue;
            }
            let request = self.peers.request(message.clone(), DEADLINE);
            let reply = self
                .peers
                .call(&owner, DEADLINE, |channel| async move {
                    DirectoryClient::new(channel).find(request).await
                })
                .await?;
            if let Some(answer) = self.answer(&owner, reply).await {
                return answer;
            }
        }
        Err(DirectoryError::Unsettled)
    }

    /// Makes `to` the home of a session that is at `from` under `epoch`; its new epoch. That it has been
    /// done already is fine.
    ///
    /// # Errors
    /// When the session is elsewhere, or the owner of its shard cannot be found or asked.
    pub async fn relocate(
        &self,
        group: &Group,
        from: &Home,
        to: &NodeName,
    ) -> Result<Home, DirectoryError> {
        let message = wire::RelocateRequest {
            group: Some(group.into()),
            from: from.node.to_string(),
            epoch: from.epoch.0,
            to: to.to_string(),
        };
        for _ in 0..TRIES {
            let owner = self.owner(group).await?;
            let answer = if owner == self.own {
                self.relocate_own(group, from, to).await
            } else {
                let request = self.peers.request(message.clone(), DEADLINE);
                let reply = self
                    .peers
                    .call(&owner, DEADLINE, |channel| async move {
                        DirectoryClient::new(channel).relocate(request).await
                    })
                    .await?;
                self.answer(&owner, reply).await
            };
            if let Some(answer) = answer {
                let expected = Home {
                    node: to.clone(),
                    epoch: Epoch(from.epoch.0 + 1),
                };
                return match answer? {
                    Some(home) if home == expected => Ok(home),
                    other => Err(DirectoryError::Changed(other)),
                };
            }
        }
        Err(DirectoryError::Unsettled)
    }

    /// Makes nobody the home of a session that is at `home`.
    ///
    /// # Errors
    /// When the owner of its shard cannot be found or asked.
    pub async fn forget(&self, group: &Group, home: &Home) -> Result<(), DirectoryError> {
        let message = wire::ForgetRequest {
            group: Some(group.into()),
            home: home.node.to_string(),
            epoch: home.epoch.0,
        };
        for _ in 0..TRIES {
            let owner = self.owner(group).await?;
            if owner == self.own {
                if self.forget_own(group, home).await?.is_some() {
                    return Ok(());
                }
                continue;
            }
            let request = self.peers.request(message.clone(), DEADLINE);
            let reply = self
                .peers
                .call(&owner, DEADLINE, |channel| async move {
                    DirectoryClient::new(channel).forget(request).await
                })
                .await?;
            if !reply.not_owner {
                return Ok(());
            }
            self.lost_track(&owner).await;
        }
        Err(DirectoryError::Unsettled)
    }

    /// What another node answered; none: it is not the owner.
    async fn answer(&self, owner: &NodeName, reply: wire::FindReply) -> OwnAnswer {
        if reply.not_owner {
            self.lost_track(owner).await;
            return None;
        }
        if reply.home.is_empty() {
            return Some(Ok(None));
        }
        Some(match NodeName::new(&reply.home) {
            Ok(node) => Ok(Some(Home {
                node,
                epoch: Epoch(reply.epoch),
            })),
            Err(error) => Err(failed(error)),
        })
    }

    /// Waits for news: what this node knows of the shard's owner, or what the owner knows, is old.
    async fn lost_track(&self, owner: &NodeName) {
        tracing::debug!(%owner, "a directory shard's owner says that it is not");
        self.view.has(self.view.revision() + 1, CATCH_UP).await;
    }

    /// Who owns the session's shard; this node becomes it if nobody does.
    ///
    /// # Errors
    /// When nobody does, and the registry cannot be asked.
    pub async fn owner(&self, group: &Group) -> Result<NodeName, DirectoryError> {
        let shard = shard_of(group);
        if let Some((owner, _)) = self.view.shard(&self.site, shard) {
            return Ok(owner);
        }
        let owner = self.own.clone();
        let record = value(&ShardRecord { owner });
        let key = shard_key(&self.site, shard);
        let entry = match self.registry.put(&key, record.clone(), 0, None).await? {
            Written::Done(revision) => Entry {
                key,
                value: record,
                revision,
            },
            Written::Conflict(Some(present)) => present,
            Written::Conflict(None) => return Err(DirectoryError::Unsettled),
        };
        self.view.learn(entry);
        match self.view.shard(&self.site, shard) {
            Some((owner, _)) => Ok(owner),
            None => Err(DirectoryError::Unsettled),
        }
    }

    /// The revision at which this node became the owner of the session's shard; none if it is not.
    fn owned_since(&self, group: &Group) -> Option<u64> {
        let (owner, since) = self.view.shard(&self.site, shard_of(group))?;
        (owner == self.own).then_some(since)
    }

    fn stripe(&self, group: &Group) -> &Mutex<()> {
        &self.stripes[(hash(group) >> 32) as usize % STRIPES]
    }

    /// Looks a record up, lets `change` change it, and waits until what was found or written is durable.
    async fn update(
        &self,
        group: &Group,
        change: impl FnOnce(Option<&DirectoryRecord>) -> Option<DirectoryRecord> + Send,
    ) -> Result<Option<Home>, DirectoryError> {
        let record_key = key::session(group);
        let (record, ticket) = {
            let _stripe = self.stripe(group).lock();
            let found = self
                .store
                .record_with_ticket::<DirectoryRecord>(Table::Directory, &record_key)
                .map_err(failed)?;
            let (found, ticket) = found.map_or((None, None), |(record, ticket)| {
                (Some(record), Some(ticket))
            });
            match change(found.as_ref()) {
                None => (found, ticket),
                Some(changed) => {
                    let mut bookkeeping = Bookkeeping::default();
                    bookkeeping.put(Table::Directory, &record_key, &changed);
                    let ticket = self
                        .store
                        .commit_bookkeeping(bookkeeping, Box::new(|_| {}))
                        .map_err(failed)?;
                    (Some(changed), Some(ticket))
                }
            }
        };
        if let Some(ticket) = ticket {
            self.store.durable(ticket).await.map_err(failed)?;
        }
        Ok(record.and_then(|record| {
            Some(Home {
                node: record.home?,
                epoch: record.epoch,
            })
        }))
    }

    /// As [`Directory::find`], for a session whose shard this node owns.
    pub(crate) async fn find_own(&self, group: &Group, claimant: Option<&NodeName>) -> OwnAnswer {
        let since = self.owned_since(group)?;
        let claimed = self.update(group, |found| {
            let claimant = claimant?;
            let is_free = found.is_none_or(|record| record.home.is_none());
            is_free.then(|| DirectoryRecord {
                home: Some(claimant.clone()),
                epoch: next_epoch(found, since),
            })
        });
        Some(claimed.await)
    }

    /// As [`Directory::relocate`], for a session whose shard this node owns.
    pub(crate) async fn relocate_own(
        &self,
        group: &Group,
        from: &Home,
        to: &NodeName,
    ) -> OwnAnswer {
        self.owned_since(group)?;
        let relocated = self.update(group, |found| {
            let found = found?;
            let is_from = found.home.as_ref() == Some(&from.node) && found.epoch == from.epoch;
            is_from.then(|| DirectoryRecord {
                home: Some(to.clone()),
                epoch: Epoch(from.epoch.0 + 1),
            })
        });
        Some(relocated.await)
    }

    /// As [`Directory::forget`]; none if this node does not own the shard.
    pub(crate) async fn forget_own(
        &self,
        group: &Group,
        home: &Home,
    ) -> Result<Option<()>, DirectoryError> {
        if self.owned_since(group).is_none() {
            return Ok(None);
        }
        self.update(group, |found| {
            let found = found?;
            let is_there = found.home.as_ref() == Some(&home.node) && found.epoch == home.epoch;
            // The epoch stays, so that whoever comes next gets a higher one.
            is_there.then_some(DirectoryRecord {
                home: None,
                epoch: home.epoch,
            })
        })
        .await?;
        Ok(Some(()))
    }

    /// Records that this node keeps as the owner of shards, about.
    pub fn records(&self) -> usize {
        self.store.approximate_len(Table::Directory)
    }
}

/// Higher than all before, whoever gave them.
fn next_epoch(found: Option<&DirectoryRecord>, since: u64) -> Epoch {
    let root = since << EPOCH_BITS;
    Epoch(found.map_or(root, |record| root.max(record.epoch.0 + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fulmar_model::{FunctionName, SessionName};

    fn group(session: &str) -> Group {
        Group {
            function: FunctionName::new("tracker").unwrap(),
            session: SessionName::new(session).unwrap(),
        }
    }

    #[test]
    fn sessions_are_spread_over_the_shards_and_stay_there() {
        // Known answers: records on disk depend on them.
        assert_eq!(shard_of(&group("line-3")), 51);
        let mut shards: Vec<u16> = (0..2000)
            .map(|n| shard_of(&group(&n.to_string())))
            .collect();
        shards.sort_unstable();
        shards.dedup();
        assert!(shards.len() > 240, "{}", shards.len());
    }

    #[test]
    fn epochs_grow_across_homes_removals_and_owners() {
        let first = next_epoch(None, 7);
        let record = |epoch| DirectoryRecord { home: None, epoch };
        let second = next_epoch(Some(&record(first)), 7);
        let other_owner = next_epoch(Some(&record(second)), 9);
        assert!(FIRST_EPOCH <= first && first < second && second < other_owner);
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        let home = Home {
            node: NodeName::new("n1").unwrap(),
            epoch: Epoch(1),
        };
        cache.put(group("used"), home.clone());
        for n in 0..CACHED {
            cache.put(group(&n.to_string()), home.clone());
        }
        assert_eq!(cache.get(&group("used")), Some(home.clone()));
        for n in 0..CACHED {
            cache.put(group(&format!("more-{n}")), home.clone());
        }
        assert!(cache.young.len() + cache.old.len() <= 2 * CACHED + 2);
        assert_eq!(cache.get(&group("used")), Some(home));
        assert_eq!(cache.get(&group("0")), None);
    }
}
