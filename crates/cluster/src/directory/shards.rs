//! Shards that change hands: taken over from a node that is gone, and kept by a node that comes back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fulmar_model::{Epoch, FunctionName, Group, NodeName, SessionName};
use fulmar_state::aside;
use fulmar_state::engine::Engine;
use fulmar_state::record::{DirectoryRecord, Record};
use fulmar_state::{Bookkeeping, Store, Table, key};

use super::{Directory, DirectoryError, SHARDS, failed, shard_of};
use crate::registry::{Entry, Revision, Written};
use crate::view::{ShardRecord, shard_key, value};

/// Records that one commit takes over.
const RECORDS_AT_ONCE: usize = 5000;

fn group(record_key: &[u8]) -> Option<Group> {
    let (function, session) = key::parse_session(record_key)?;
    Some(Group {
        function: FunctionName::new(function).ok()?,
        session: SessionName::new(session).ok()?,
    })
}

impl Directory {
    /// Sessions that are at home on a node, by the shards that this node owns.
    ///
    /// # Errors
    /// When the local data store fails.
    pub async fn homes_of(&self, node: &NodeName) -> Result<Vec<(Group, Epoch)>, DirectoryError> {
        let owned: HashSet<u16> = self.shards_of(&self.own).into_keys().collect();
        let (store, node) = (self.store.clone(), node.clone());
        let found = aside::run(move || homes(&store, &owned, &node));
        found.await.map_err(failed)?
    }

    /// The shards of this site that a node owns, each since which change, as last heard.
    pub fn shards_of(&self, node: &NodeName) -> HashMap<u16, Revision> {
        let owned = (0..SHARDS).filter_map(|shard| {
            let (owner, since) = self.view.shard(&self.site, shard)?;
            (owner == *node).then_some((shard, since))
        });
        owned.collect()
    }

    /// Writes again that this node owns its shards, so that whoever is about to take them finds them changed; those
    /// that were taken before are not its own any more. For a node whose new log is known to the others, before it
    /// answers anything: whoever sees the changed shards sees the new log.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn keep_shards(&self) -> Result<(), DirectoryError> {
        for (shard, since) in self.shards_of(&self.own) {
            self.change_owner(shard, since).await?;
        }
        Ok(())
    }

    /// Takes shards of this site over from another node, if they are as they were; its records are in `image`. How
    /// many there were.
    ///
    /// # Errors
    /// When the registry cannot be reached, or the records cannot be stored.
    pub async fn take_shards(
        &self,
        wanted: &HashMap<u16, Revision>,
        image: Arc<dyn Engine>,
    ) -> Result<usize, DirectoryError> {
        if wanted.is_empty() {
            return Ok(0);
        }
        let shards: HashSet<u16> = wanted.keys().copied().collect();
        // What is here of them is from another time.
        let (store, old) = (self.store.clone(), shards.clone());
        let collected = aside::run(move || {
            let mut changes = Vec::new();
            store.scan(Table::Directory, &[], None, &mut |key, _| {
                if group(key).is_some_and(|group| old.contains(&shard_of(&group))) {
                    changes.push((key.to_vec(), None));
                }
                true
            })?;
            image.scan(Table::Directory, &[], None, &mut |key, value| {
                if group(key).is_some_and(|group| shards.contains(&shard_of(&group))) {
                    changes.push((key.to_vec(), Some(value.to_vec())));
                }
                true
            })?;
            Ok::<_, fulmar_state::engine::EngineError>(changes)
        });
        let changes = collected.await.map_err(failed)?.map_err(failed)?;
        let mut last = self.store.commits().submitted();
        for some in changes.chunks(RECORDS_AT_ONCE) {
            let mut bookkeeping = Bookkeeping::default();
            for (key, value) in some {
                match value {
                    Some(value) => {
                        let record = DirectoryRecord::decode(value).map_err(failed)?;
                        bookkeeping.put(Table::Directory, key, &record);
                    }
                    None => bookkeeping.delete(Table::Directory, key),
                }
            }
            last = self
                .store
                .commit_durably(bookkeeping)
                .await
                .map_err(failed)?;
        }
        self.store.safe(last).await.map_err(failed)?;
        let mut taken = 0;
        for (shard, since) in wanted {
            taken += usize::from(self.change_owner(*shard, *since).await?);
        }
        Ok(taken)
    }

    /// Becomes the owner of a shard that is as it was; whether it was.
    async fn change_owner(&self, shard: u16, since: Revision) -> Result<bool, DirectoryError> {
        let owner = self.own.clone();
        let record = value(&ShardRecord { owner });
        let key = shard_key(&self.site, shard);
        let written = self.registry.put(&key, record.clone(), since, None).await?;
        let (entry, is_done) = match written {
            Written::Done(revision) => {
                let value = record;
                let entry = Entry {
                    key,
                    value,
                    revision,
                };
                (entry, true)
            }
            Written::Conflict(Some(present)) => (present, false),
            Written::Conflict(None) => return Ok(false),
        };
        self.view.learn(entry);
        Ok(is_done)
    }
}

fn homes(
    store: &Store,
    owned: &HashSet<u16>,
    node: &NodeName,
) -> Result<Vec<(Group, Epoch)>, DirectoryError> {
    let mut found = Vec::new();
    let visit = &mut |record_key: &[u8], value: &[u8]| {
        if let Ok(DirectoryRecord::Here {
            home: Some(home),
            epoch,
        }) = DirectoryRecord::decode(value)
            && home == *node
            && let Some(group) = group(record_key)
            && owned.contains(&shard_of(&group))
        {
            found.push((group, epoch));
        }
        true
    };
    store
        .scan(Table::Directory, &[], None, visit)
        .map_err(failed)?;
    Ok(found)
}
