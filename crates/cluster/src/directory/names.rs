//! Names across sites: which site keeps the directory for a session.
//!
//! For each shard one site knows, the first that needed it: the registry says which. A site that begins a
//! session introduces it there. A site that is cut off begins sessions all the same, and introduces them
//! when it is back; if another site has begun a session of the same name meanwhile, both stay, each found
//! from its own site, and both say so.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use fulmar_model::{FunctionName, Group, NodeName, SessionName, SiteName};
use fulmar_state::record::{Record, RecordError};
use fulmar_state::{Bookkeeping, Store, StoreError, Table, key};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Directory, DirectoryError, shard_of};
use crate::peers::PeerError;
use crate::registry::{Entry, RegistryError, Written};
use crate::view::value;
use crate::wire::{self, directory_client::DirectoryClient};

/// Prefix of the registry's keys that say which site knows a shard's names.
const NAMES: &str = "names/";
/// Prefix of the system table's keys of sessions that are still to be introduced.
const PROVISIONAL: &str = "provisional/";
/// Longest wait for an answer about a name: who waits for it waits for more than that.
const INTRODUCE: Duration = Duration::from_secs(1);
/// Who did not answer is not asked again for so long.
const AWAY: Duration = Duration::from_secs(10);

const SILENT: &str = "it did not answer a moment ago";

/// Which site knows a shard's names.
#[derive(Serialize, Deserialize)]
struct NamesRecord {
    site: SiteName,
}

impl Record for NamesRecord {}

/// A session that was begun without asking the site that knows its name.
#[derive(Serialize, Deserialize)]
struct ProvisionalRecord {
    function: FunctionName,
    session: SessionName,
}

impl Record for ProvisionalRecord {}

/// What is still to be introduced, and what cannot be.
#[derive(Default)]
pub(super) struct Names {
    provisional: Mutex<BTreeSet<Group>>,
    contested: Mutex<HashMap<Group, SiteName>>,
    /// Who did not answer lately, until when: nodes, and the registry.
    away: Mutex<HashMap<Asked, Instant>>,
}

/// Who is asked about names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Asked {
    Node(NodeName),
    Registry,
}

fn provisional_key(group: &Group) -> Vec<u8> {
    [PROVISIONAL.as_bytes(), &key::session(group)].concat()
}

impl Names {
    /// Takes up what an earlier run of the node left to be introduced.
    pub(super) fn recover(store: &Store) -> Result<Self, StoreError> {
        let names = Self::default();
        let mut bad: Option<RecordError> = None;
        store.scan(
            Table::System,
            PROVISIONAL.as_bytes(),
            None,
            &mut |_, value| {
                match ProvisionalRecord::decode(value) {
                    Ok(ProvisionalRecord { function, session }) => {
                        names.provisional.lock().insert(Group { function, session });
                    }
                    Err(error) => bad = Some(error),
                }
                bad.is_none()
            },
        )?;
        let table = Table::System;
        bad.map_or(Ok(names), |error| Err(StoreError::Record { table, error }))
    }

    fn is_away(&self, asked: &Asked) -> bool {
        let away = self.away.lock();
        away.get(asked).is_some_and(|until| *until > Instant::now())
    }

    fn answered(&self, asked: Asked, answered: bool) {
        let mut away = self.away.lock();
        match answered {
            true => away.remove(&asked),
            false => away.insert(asked, Instant::now() + AWAY),
        };
    }

    /// Notes that a session is still to be introduced.
    pub(super) fn note(&self, group: &Group, bookkeeping: &mut Bookkeeping) {
        let record = ProvisionalRecord {
            function: group.function.clone(),
            session: group.session.clone(),
        };
        bookkeeping.put(Table::System, &provisional_key(group), &record);
        self.provisional.lock().insert(group.clone());
    }
}

impl Directory {
    /// Which site keeps the directory for a session; this one becomes it if none does and it claims to.
    ///
    /// # Errors
    /// When the site that knows cannot be found or asked.
    pub(super) async fn introduce(
        &self,
        group: &Group,
        claim: bool,
    ) -> Result<Option<SiteName>, DirectoryError> {
        let knows = self.knowing_site(group).await?;
        if knows == self.site {
            return Ok(Some(knows));
        }
        let node = self.owner_at(&knows, group)?;
        let asked = Asked::Node(node.clone());
        if self.names.is_away(&asked) {
            let reason = SILENT.to_owned();
            return Err(PeerError::Unreachable { node, reason }.into());
        }
        let message = wire::IntroduceRequest {
            group: Some(group.into()),
            site: self.site.to_string(),
            claim,
        };
        let request = self.peers.request(message, INTRODUCE);
        let called = self.peers.call(&node, INTRODUCE, |channel| async move {
            DirectoryClient::new(channel).introduce(request).await
        });
        let called = called.await;
        self.names.answered(asked, called.is_ok());
        let reply = called?;
        if reply.not_owner {
            return Err(DirectoryError::Unsettled);
        }
        if reply.site.is_empty() {
            return Ok(None);
        }
        let site = SiteName::new(&reply.site);
        site.map(Some).map_err(super::failed)
    }

    /// Which site knows the names of the session's shard; this one becomes it if none does.
    async fn knowing_site(&self, group: &Group) -> Result<SiteName, DirectoryError> {
        let name = format!("{NAMES}{:04}", shard_of(group));
        let known = |entry: Entry| NamesRecord::decode(&entry.value).map(|record| record.site);
        if let Some(entry) = self.view.get(&name) {
            return known(entry).map_err(super::failed);
        }
        let site = self.site.clone();
        let record = value(&NamesRecord { site });
        let silent = || RegistryError::Unreachable(SILENT.to_owned());
        if self.names.is_away(&Asked::Registry) {
            return Err(silent().into());
        }
        let writing = self.registry.put(&name, record.clone(), 0, None);
        let written = tokio::time::timeout(INTRODUCE, writing).await;
        let written = written.unwrap_or_else(|_| Err(silent()));
        self.names.answered(Asked::Registry, written.is_ok());
        let written = written?;
        let entry = match written {
            Written::Done(revision) => Entry {
                key: name,
                value: record,
                revision,
            },
            Written::Conflict(Some(present)) => present,
            Written::Conflict(None) => return Err(DirectoryError::Unsettled),
        };
        self.view.learn(entry.clone());
        known(entry).map_err(super::failed)
    }

    /// Introduces what was begun without asking, as far as the sites that know can be reached.
    pub(crate) async fn introduce_provisional(&self) {
        if !self.view.is_connected() {
            // Most likely still cut off.
            return;
        }
        let waiting: Vec<Group> = self.names.provisional.lock().iter().cloned().collect();
        for group in waiting {
            match self.introduce(&group, true).await {
                Ok(Some(site)) if site == self.site => {
                    let mut bookkeeping = Bookkeeping::default();
                    bookkeeping.delete(Table::System, &provisional_key(&group));
                    if self.store.commit_durably(bookkeeping).await.is_ok() {
                        self.names.provisional.lock().remove(&group);
                        self.names.contested.lock().remove(&group);
                    }
                }
                Ok(Some(site)) => {
                    let mut contested = self.names.contested.lock();
                    if contested.insert(group.clone(), site.clone()).is_none() {
                        tracing::error!(%group, %site, "another site has begun a session of this name while this one was cut off; both stay, each found from its own site");
                    }
                }
                Ok(None) => {}
                // The next one is no nearer.
                Err(_) => return,
            }
        }
    }

    /// Sessions that are still to be introduced, and those of them whose names another site has taken.
    pub fn provisional(&self) -> (usize, Vec<(Group, SiteName)>) {
        let contested = self.names.contested.lock();
        let contested = contested.iter();
        let contested = contested.map(|(group, site)| (group.clone(), site.clone()));
        (self.names.provisional.lock().len(), contested.collect())
    }
}
