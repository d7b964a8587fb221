//! The directory: who is home to a session.
//!
//! A session belongs to one of some hundred shards by the hash of its name. Each site has shards of its own: the
//! registry says which of its nodes owns one, and nothing more; the owner keeps a record for each session
//! in its local data store ([`owner`]). A node that needs a shard that nobody owns becomes its owner by
//! compare-and-swap, and the revision of that change is the root of the epochs that it gives out. The
//! site in which a session began keeps its record, wherever its home is later; other sites find it by the
//! session's name ([`names`]).
//!
//! Answers are cached, with bounded memory, and corrected by the homes themselves.

mod cache;
mod names;
mod owner;
mod shards;

use std::sync::Arc;
use std::time::Duration;

use cache::Cache;
use fulmar_model::{Epoch, Group, NodeName, SiteName};
use fulmar_state::{Store, StoreError};
use names::Names;
use parking_lot::Mutex;

use crate::custody::Custody;
use crate::peers::{PeerError, Peers};
use crate::registry::{Entry, Registry, RegistryError, Written};
use crate::view::{ShardRecord, View, shard_key, value};
use crate::wire::{self, ask_request, directory_client::DirectoryClient};

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
/// Tries while owners change, and sites that are asked.
const TRIES: usize = 4;
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

/// What can be asked of the owner of a shard.
#[derive(Debug, Clone)]
pub(crate) enum Question {
    /// Who is home? If nobody is, the claimant becomes it.
    Find { claimant: Option<NodeName> },
    /// Another home, if the present one is as expected.
    Relocate { from: Home, to: NodeName },
    /// Nobody, if the present one is as expected.
    Forget { home: Home },
}

/// What the owner of a shard says.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Who is home now.
    Home(Option<Home>),
    /// Another site keeps the directory for the session.
    AtSite(SiteName),
    /// It is not the owner.
    NotOwner,
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
    /// No node of the site can be asked.
    #[error("no node of the site {0}, which keeps the directory for this session, is running")]
    SiteGone(SiteName),
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
    names: Names,
    custody: Arc<Custody>,
}

/// FNV-1a, 64 bits: the same on every machine and in every version.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A hash of some bytes, spread over all its bits: for choices that all nodes make alike.
pub fn spread(bytes: impl Iterator<Item = u8>) -> u64 {
    fnv(bytes).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn hash(group: &Group) -> u64 {
    let function = group.function.as_str().bytes();
    fnv(function.chain([0]).chain(group.session.as_str().bytes()))
}

/// The shard of a session in every site.
pub fn shard_of(group: &Group) -> u16 {
    (hash(group) % u64::from(SHARDS)) as u16
}

/// Whether under an epoch a session has not been anywhere before, unless it was removed in between.
pub fn is_first(epoch: Epoch) -> bool {
    epoch.0.trailing_zeros() >= EPOCH_BITS
}

fn failed(error: impl std::fmt::Display) -> DirectoryError {
    DirectoryError::Store(error.to_string())
}

impl Directory {
    pub(crate) fn open(
        own: NodeName,
        site: SiteName,
        view: Arc<View>,
        registry: Arc<dyn Registry>,
        peers: Arc<Peers>,
        store: Arc<Store>,
        custody: Arc<Custody>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            names: Names::recover(&store)?,
            custody,
            own,
            site,
            view,
            registry,
            peers,
            store,
            stripes: [const { Mutex::new(()) }; STRIPES],
            cache: Mutex::default(),
        })
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
        let claimant = claimant.cloned();
        self.ask(group, &Question::Find { claimant }).await
    }

    /// Makes `to` the home of a session that is at `from`; its new epoch. That it has been done already is
    /// fine.
    ///
    /// # Errors
    /// When the session is elsewhere, or the owner of its shard cannot be found or asked.
    pub async fn relocate(
        &self,
        group: &Group,
        from: &Home,
        to: &NodeName,
    ) -> Result<Home, DirectoryError> {
        let question = Question::Relocate {
            from: from.clone(),
            to: to.clone(),
        };
        let expected = Home {
            node: to.clone(),
            epoch: Epoch(from.epoch.0 + 1),
        };
        match self.ask(group, &question).await? {
            Some(home) if home == expected => Ok(home),
            other => Err(DirectoryError::Changed(other)),
        }
    }

    /// Makes nobody the home of a session that is at `home`.
    ///
    /// # Errors
    /// When the owner of its shard cannot be found or asked.
    pub async fn forget(&self, group: &Group, home: &Home) -> Result<(), DirectoryError> {
        let home = home.clone();
        self.ask(group, &Question::Forget { home }).await?;
        Ok(())
    }

    /// Asks the owner of the session's shard in this site, and in the site that it names.
    async fn ask(
        &self,
        group: &Group,
        question: &Question,
    ) -> Result<Option<Home>, DirectoryError> {
        let mut site = self.site.clone();
        for _ in 0..TRIES {
            let owner = match site == self.site {
                true => self.owner(group).await?,
                false => self.owner_at(&site, group)?,
            };
            let answer = match owner == self.own {
                true => self.answer(group, question).await?,
                false => self.ask_node(&owner, group, question).await?,
            };
            match answer {
                Answer::Home(home) => return Ok(home),
                Answer::AtSite(other) => site = other,
                Answer::NotOwner => {
                    tracing::debug!(%owner, "a directory shard's owner says that it is not");
                    self.view.has(self.view.revision() + 1, CATCH_UP).await;
                }
            }
        }
        Err(DirectoryError::Unsettled)
    }

    async fn ask_node(
        &self,
        node: &NodeName,
        group: &Group,
        question: &Question,
    ) -> Result<Answer, DirectoryError> {
        let question = match question.clone() {
            Question::Find { claimant } => ask_request::Question::Find(wire::Find {
                claimant: claimant
                    .map(|claimant| claimant.to_string())
                    .unwrap_or_default(),
            }),
            Question::Relocate { from, to } => ask_request::Question::Relocate(wire::Relocate {
                from: from.node.to_string(),
                epoch: from.epoch.0,
                to: to.to_string(),
            }),
            Question::Forget { home } => ask_request::Question::Forget(wire::Forget {
                home: home.node.to_string(),
                epoch: home.epoch.0,
            }),
        };
        let message = wire::AskRequest {
            group: Some(group.into()),
            question: Some(question),
        };
        let request = self.peers.request(message, DEADLINE);
        let reply = self
            .peers
            .call(node, DEADLINE, |channel| async move {
                DirectoryClient::new(channel).ask(request).await
            })
            .await?;
        if reply.not_owner {
            return Ok(Answer::NotOwner);
        }
        if !reply.at_site.is_empty() {
            return Ok(Answer::AtSite(
                SiteName::new(&reply.at_site).map_err(failed)?,
            ));
        }
        if reply.home.is_empty() {
            return Ok(Answer::Home(None));
        }
        Ok(Answer::Home(Some(Home {
            node: NodeName::new(&reply.home).map_err(failed)?,
            epoch: Epoch(reply.epoch),
        })))
    }

    /// Who owns the session's shard in this site; this node becomes it if nobody does.
    ///
    /// # Errors
    /// When nobody does, and the registry cannot be asked.
    pub async fn owner(&self, group: &Group) -> Result<NodeName, DirectoryError> {
        let shard = shard_of(group);
        match self.view.shard(&self.site, shard) {
            Some((owner, _)) => Ok(owner),
            None => self.claim(shard).await,
        }
    }

    /// Who owns the session's shard in another site; if nobody does, a node of it that may become it.
    fn owner_at(&self, site: &SiteName, group: &Group) -> Result<NodeName, DirectoryError> {
        if let Some((owner, _)) = self.view.shard(site, shard_of(group)) {
            return Ok(owner);
        }
        let members = self.view.members().into_iter();
        let mut running = members.filter(|member| member.live && member.info.site == *site);
        let gone = || DirectoryError::SiteGone(site.clone());
        running.next().map(|member| member.name).ok_or_else(gone)
    }

    /// Becomes the owner of a shard of this site, unless somebody else does; who it is.
    async fn claim(&self, shard: u16) -> Result<NodeName, DirectoryError> {
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
        let owner = self.view.shard(&self.site, shard);
        owner
            .map(|(owner, _)| owner)
            .ok_or(DirectoryError::Unsettled)
    }

    /// Becomes the owner of this node's part of the shards that nobody owns, so that the site can go on by
    /// itself when it is cut off from the registry.
    ///
    /// # Errors
    /// When the registry cannot be asked.
    pub(crate) async fn claim_part(&self) -> Result<(), DirectoryError> {
        let members = self.view.members().into_iter();
        let running: Vec<NodeName> = members
            .filter(|member| member.live && member.info.site == self.site)
            .map(|member| member.name)
            .collect();
        for shard in 0..SHARDS {
            // The highest hash of node and shard: the same choice at every node that sees the same nodes.
            let weight = |node: &&NodeName| {
                let low = shard.to_be_bytes();
                spread(node.as_str().bytes().chain(low))
            };
            let is_mine = running.iter().max_by_key(weight) == Some(&self.own);
            if is_mine && self.view.shard(&self.site, shard).is_none() {
                self.claim(shard).await?;
            }
        }
        Ok(())
    }

    fn stripe(&self, group: &Group) -> &Mutex<()> {
        &self.stripes[(hash(group) >> 32) as usize % STRIPES]
    }
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
}
