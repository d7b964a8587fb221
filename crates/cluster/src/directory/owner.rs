//! The directory's records, at the owners of its shards.

use fulmar_model::{Epoch, Group, SiteName};
use fulmar_state::record::DirectoryRecord;
use fulmar_state::{Bookkeeping, Table, Ticket, key};

use super::{Answer, Directory, DirectoryError, EPOCH_BITS, Home, Question, failed, shard_of};

/// A record, and the commit that wrote it.
type Found = Option<(DirectoryRecord, Ticket)>;

impl Directory {
    /// Answers a question about a session of this site, if this node owns its shard.
    ///
    /// # Errors
    /// When another site has to be asked and cannot be, the local data store fails, or another node may own the
    /// shard by now without this one's knowing.
    pub(crate) async fn answer(
        &self,
        group: &Group,
        question: &Question,
    ) -> Result<Answer, DirectoryError> {
        if self.owner(group).await? != self.own {
            return Ok(Answer::NotOwner);
        }
        let shard = || self.view.shard(&self.site, shard_of(group));
        let owned = shard();
        let answer = self.answer_as_owner(group, question).await?;
        // While the answer waited for the log, another node may have taken the shard over, and this one a new log, in which
        // the answer is safe and counts no more.
        match shard() == owned {
            true => Ok(answer),
            false => Ok(Answer::NotOwner),
        }
    }

    async fn answer_as_owner(
        &self,
        group: &Group,
        question: &Question,
    ) -> Result<Answer, DirectoryError> {
        if let Some(answer) = self.answer_known(group, question).await? {
            return Ok(answer);
        }
        // Nothing is known of it here. By its name some site knows whether another one does.
        let claims = matches!(question, Question::Find { claimant: Some(_) });
        match self.introduce(group, claims).await {
            Ok(Some(site)) if site == self.site => self.answer_new(group, question, false).await,
            Ok(Some(site)) => Ok(Answer::AtSite(site)),
            Ok(None) => Ok(Answer::Home(None)),
            // Cut off, this site goes on by itself.
            Err(error) if claims => {
                tracing::info!(%group, %error, "a session begins without asking other sites");
                self.answer_new(group, question, true).await
            }
            Err(error) => Err(error),
        }
    }

    /// Answers from the record, if there is one.
    async fn answer_known(
        &self,
        group: &Group,
        question: &Question,
    ) -> Result<Option<Answer>, DirectoryError> {
        let (found, ticket) = {
            let _stripe = self.stripe(group).lock();
            match self.record(group)? {
                None => return Ok(None),
                Some((DirectoryRecord::At { site }, _)) => return Ok(Some(Answer::AtSite(site))),
                Some((record, ticket)) => {
                    let changed = self.changed(group, question, Some(&record));
                    match changed {
                        None => (record, ticket),
                        Some(changed) => {
                            let ticket = self.write(group, &changed, false)?;
                            (changed, ticket)
                        }
                    }
                }
            }
        };
        self.store.safe(ticket).await.map_err(failed)?;
        self.custody.sure().await.map_err(failed)?;
        Ok(Some(Answer::Home(home(&found))))
    }

    /// Answers about a session that this site begins to keep the directory for.
    async fn answer_new(
        &self,
        group: &Group,
        question: &Question,
        provisional: bool,
    ) -> Result<Answer, DirectoryError> {
        {
            let _stripe = self.stripe(group).lock();
            if self.record(group)?.is_none()
                && let Some(record) = self.changed(group, question, None)
            {
                self.write(group, &record, provisional)?;
            }
        }
        // As it is now, whoever wrote it.
        let known = self.answer_known(group, question).await?;
        Ok(known.unwrap_or(Answer::Home(None)))
    }

    /// What a question makes of a record; none: it stays as it is.
    fn changed(
        &self,
        group: &Group,
        question: &Question,
        found: Option<&DirectoryRecord>,
    ) -> Option<DirectoryRecord> {
        let present = found.and_then(home);
        let (home, epoch) = match question {
            Question::Find { claimant } => {
                let claimant = claimant.clone().filter(|_| present.is_none())?;
                let (_, since) = self.view.shard(&self.site, shard_of(group))?;
                (Some(claimant), next_epoch(found, since))
            }
            Question::Relocate { from, to } => {
                let from = present.filter(|present| present == from)?;
                (Some(to.clone()), Epoch(from.epoch.0 + 1))
            }
            // The epoch stays, so that whoever comes next gets a higher one.
            Question::Forget { home } => {
                let home = present.filter(|present| present == home)?;
                (None, home.epoch)
            }
        };
        Some(DirectoryRecord::Here { home, epoch })
    }

    /// Which site keeps the directory for a session, as this site knows by its name; `site` becomes it if
    /// none does and it claims to. None in the first place: this node does not own the shard.
    ///
    /// # Errors
    /// When the local data store fails.
    pub(crate) async fn introduced(
        &self,
        group: &Group,
        site: &SiteName,
        claim: bool,
    ) -> Result<Option<Option<SiteName>>, DirectoryError> {
        if self.owner(group).await? != self.own {
            return Ok(None);
        }
        let (site, ticket) = {
            let _stripe = self.stripe(group).lock();
            match self.record(group)? {
                Some((DirectoryRecord::At { site }, ticket)) => (site, ticket),
                Some((DirectoryRecord::Here { .. }, ticket)) => (self.site.clone(), ticket),
                None if !claim => return Ok(Some(None)),
                None => {
                    let record = DirectoryRecord::At { site: site.clone() };
                    (site.clone(), self.write(group, &record, false)?)
                }
            }
        };
        self.store.safe(ticket).await.map_err(failed)?;
        self.custody.sure().await.map_err(failed)?;
        Ok(Some(Some(site)))
    }

    fn record(&self, group: &Group) -> Result<Found, DirectoryError> {
        self.store
            .record_with_ticket::<DirectoryRecord>(Table::Directory, &key::session(group))
            .map_err(failed)
    }

    /// Writes a record; for whoever holds the group's stripe.
    fn write(
        &self,
        group: &Group,
        record: &DirectoryRecord,
        provisional: bool,
    ) -> Result<Ticket, DirectoryError> {
        let mut bookkeeping = Bookkeeping::default();
        bookkeeping.put(Table::Directory, &key::session(group), record);
        if provisional {
            self.names.note(group, &mut bookkeeping);
        }
        self.store
            .commit_bookkeeping(bookkeeping, Box::new(|_| {}))
            .map_err(failed)
    }

    /// Records that this node keeps as the owner of shards, about.
    pub fn records(&self) -> usize {
        self.store.approximate_len(Table::Directory)
    }
}

fn home(record: &DirectoryRecord) -> Option<Home> {
    match record {
        DirectoryRecord::Here {
            home: Some(node),
            epoch,
        } => Some(Home {
            node: node.clone(),
            epoch: *epoch,
        }),
        _ => None,
    }
}

/// Higher than all before, whoever gave them.
fn next_epoch(found: Option<&DirectoryRecord>, since: u64) -> Epoch {
    let root = since << EPOCH_BITS;
    match found {
        Some(DirectoryRecord::Here { epoch, .. }) => Epoch(root.max(epoch.0 + 1)),
        _ => Epoch(root),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Arc;

    use fulmar_model::{FunctionName, NodeName, SessionName};
    use fulmar_state::changelog::ship;
    use fulmar_state::objects::Objects;
    use fulmar_state::{DataDir, Store, Submitters};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::custody::Custody;
    use crate::directory::FIRST_EPOCH;
    use crate::network::Network;
    use crate::peers::Peers;
    use crate::registry::Entry;
    use crate::registry::embedded::Embedded;
    use crate::view::{ShardRecord, View, shard_key, value};

    /// The shard goes to another node while what is to be answered is not safe yet; when it is, in a new log, it is too
    /// late.
    #[tokio::test]
    async fn whoever_is_not_the_owner_any_more_when_all_is_safe_does_not_answer() {
        for taken in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let data = DataDir::open(&folder.path().join("data")).unwrap();
            let threads = Arc::new(Submitters::uncounted());
            let releases = Arc::new(|releases: Box<dyn FnOnce() + Send>| releases());
            let store = Store::local(&data, Arc::new(()), releases, threads, true).unwrap();
            let own = NodeName::new("n1").unwrap();
            let other = NodeName::new("n2").unwrap();
            let site = SiteName::new("here").unwrap();
            let group = Group {
                function: FunctionName::new("f").unwrap(),
                session: SessionName::new("s").unwrap(),
            };
            let view = Arc::new(View::kept(&store).unwrap());
            let directory = Directory::open(
                own.clone(),
                site.clone(),
                view.clone(),
                Arc::new(Embedded::open(store.clone()).unwrap()),
                Arc::new(Peers::new(own, Network::System, None, HashMap::new(), None)),
                store.clone(),
                Arc::new(Custody::new(store.clone())),
            )
            .unwrap();
            let claimant = Some(other.clone());
            let question = Question::Find { claimant };
            let mut answer = Box::pin(directory.answer(&group, &question));
            // Everything that it can do without the log.
            while directory.record(&group).unwrap().is_none() {
                assert!(futures_util::poll!(&mut answer).is_pending());
                tokio::task::yield_now().await;
            }
            if taken {
                let (_, since) = view.shard(&site, shard_of(&group)).unwrap();
                view.learn(Entry {
                    key: shard_key(&site, shard_of(&group)),
                    value: value(&ShardRecord { owner: other }),
                    revision: since + 1,
                });
            }
            let log = store.changelog().unwrap().clone();
            let objects = folder.path().join("objects");
            let objects = Objects::open(objects.to_str().unwrap(), &BTreeMap::new()).unwrap();
            let stop = CancellationToken::new();
            let instance = "instance".to_owned();
            let ship = ship::ship(store, log.clone(), objects, instance, stop.clone());
            let shipping = tokio::spawn(ship);
            log.ready().await;
            log.open();
            let answer = answer.await.unwrap();
            match taken {
                true => assert!(matches!(answer, Answer::NotOwner)),
                false => assert!(matches!(answer, Answer::Home(Some(_)))),
            }
            stop.cancel();
            shipping.await.unwrap().unwrap();
        }
    }

    #[test]
    fn epochs_grow_across_homes_removals_and_owners() {
        let first = next_epoch(None, 7);
        let record = |epoch| DirectoryRecord::Here { home: None, epoch };
        let second = next_epoch(Some(&record(first)), 7);
        let other_owner = next_epoch(Some(&record(second)), 9);
        assert!(FIRST_EPOCH <= first && first < second && second < other_owner);
    }
}
