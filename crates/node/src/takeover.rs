//! A node that has been gone for long: its sessions are taken over, from the object store.
//!
//! Its log is ended first, so that nothing that it commits from then on counts; then it is made sure that it is
//! still gone, for it may have come back in between, and then it finds out by itself. Its shards of the directory
//! come next. Then each session that the directory has at the lost node is staged here like one that comes
//! from a living node, and the directory decides, session by session: whatever the lost node does when
//! it comes back, it asks the same directory.

mod image;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_cluster::directory::is_first;
use fulmar_cluster::registry::Revision;
use fulmar_cluster::view::Member;
use fulmar_cluster::{Cluster, DirectoryError, Home, LogRecord, StageHead, TakeoverRecord};
use fulmar_model::{Code, Epoch, FunctionName, Group, NodeName, Problem};
use fulmar_state::changelog::restore::{self, RestoreError};
use fulmar_state::engine::Engine;
use fulmar_state::objects::Objects;
use fulmar_state::record::{IdempotencyRecord, InvocationRecord, MessageRecord, Record};
use fulmar_state::{Bookkeeping, Table, key};
use futures_util::StreamExt;
use image::Image;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::courier::Posted;
use crate::execute::storage_failed;
use crate::{arrive, homes};

/// Pause between two looks at who is gone.
const LOOK: Duration = Duration::from_millis(500);
/// Sessions that are taken over at once.
const AT_ONCE: usize = 8;
/// Where logs are read into, in the data directory.
const FOLDER: &str = "takeover";

/// What is known of a node that is gone.
struct Gone {
    since: Instant,
    image: Option<Image>,
    /// A log that cannot be read is not tried again.
    hopeless: Option<LogRecord>,
    /// Whether there was nothing left to do at the last look, for so many functions and live nodes.
    settled_for: Option<(usize, usize)>,
}

/// Takes over from nodes that are gone, until stopped.
pub(crate) async fn watch(
    core: Arc<Core>,
    cluster: Arc<Cluster>,
    objects: Objects,
    stop: CancellationToken,
) {
    let mut gone: HashMap<NodeName, Gone> = HashMap::new();
    if let Some(data) = &core.data_path {
        // What an earlier run of this node left; most often there is nothing.
        let _ = std::fs::remove_dir_all(data.join(FOLDER));
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if !cluster.view().is_connected() {
            // Whoever does not hear of others cannot say that they are gone.
            gone.clear();
            continue;
        }
        let members = cluster.view().members();
        gone.retain(|name, _| {
            members
                .iter()
                .any(|member| member.name == *name && !member.live)
        });
        for member in members.iter().filter(|member| !member.live) {
            // Before the log: whoever comes back tells of a new log first and then keeps its shards.
            let shards = cluster.directory().shards_of(&member.name);
            let Some(log) = cluster.log_of(&member.name) else {
                continue;
            };
            let known = gone.entry(member.name.clone()).or_insert_with(|| Gone {
                since: Instant::now(),
                image: None,
                hopeless: None,
                settled_for: None,
            });
            let functions = due(&core, known.since.elapsed());
            let live = members.iter().filter(|member| member.live).count();
            if functions.is_empty()
                || known.hopeless.as_ref() == Some(&log)
                || known.settled_for == Some((functions.len(), live))
                || !is_chosen(&cluster, member, &members)
                || !cluster.custody().is_sure()
            {
                continue;
            }
            let take = Take {
                core: &core,
                cluster: &cluster,
                objects: &objects,
                node: &member.name,
                log: &log,
                shards: &shards,
            };
            match take.over(known, &functions).await {
                Ok(true) => known.settled_for = Some((functions.len(), live)),
                Ok(false) => {}
                Err(problem) => {
                    tracing::warn!(node = %member.name, %problem, "taking over is tried again")
                }
            }
        }
    }
}

/// Functions whose sessions do not wait any longer for a node that has been gone for so long.
fn due(core: &Core, elapsed: Duration) -> HashSet<FunctionName> {
    let functions = core.functions.all().into_iter();
    functions
        .filter(|function| {
            let after = function.current().manifest.on_partition.takeover_after();
            after.is_some_and(|after| elapsed >= after.get())
        })
        .map(|function| function.name.clone())
        .collect()
}

/// Whether this node is the one to take over: the same choice at every node of the site that sees the same ones.
fn is_chosen(cluster: &Cluster, lost: &Member, members: &[Member]) -> bool {
    let weight = |name: &NodeName| {
        let text = lost
            .name
            .as_str()
            .bytes()
            .chain([0])
            .chain(name.as_str().bytes());
        fulmar_cluster::directory::spread(text)
    };
    let can = members.iter().filter(|member| {
        member.live && member.info.site == lost.info.site && cluster.log_of(&member.name).is_some()
    });
    let chosen = can.max_by_key(|member| weight(&member.name));
    chosen.is_some_and(|chosen| chosen.name == *cluster.name())
}

struct Take<'a> {
    core: &'a Arc<Core>,
    cluster: &'a Arc<Cluster>,
    objects: &'a Objects,
    node: &'a NodeName,
    log: &'a LogRecord,
    /// Its shards of the directory, as they were when this was its log.
    shards: &'a HashMap<u16, Revision>,
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Internal, error.to_string())
}

impl Take<'_> {
    /// Takes over what there is of some functions; whether nothing is left to do for now.
    async fn over(
        &self,
        gone: &mut Gone,
        functions: &HashSet<FunctionName>,
    ) -> Result<bool, Problem> {
        let registry = |error: fulmar_cluster::registry::RegistryError| {
            Problem::new(Code::RegistryUnreachable, error.to_string())
        };
        if gone
            .image
            .as_ref()
            .is_none_or(|image| image.log != *self.log)
        {
            let record = self.claim().await?;
            if record.by != *self.cluster.name() {
                return Ok(false);
            }
            gone.image = None;
            match self.read().await {
                Ok(image) => gone.image = Some(image),
                Err(
                    error @ (RestoreError::NoBase
                    | RestoreError::Damaged { .. }
                    | RestoreError::Lost(_)),
                ) => {
                    tracing::error!(node = %self.node, %error, "the sessions of a node that is gone cannot be taken over; they wait for it");
                    gone.hopeless = Some(self.log.clone());
                    return Ok(false);
                }
                Err(error) => return Err(internal(error)),
            }
        }
        let Some(image) = &mut gone.image else {
            return Ok(false);
        };
        if self.cluster.is_live(self.node).await.map_err(registry)? {
            tracing::info!(node = %self.node, "a node that seemed to be gone is back before its sessions were taken over");
            return Ok(false);
        }
        self.keyed(image, functions).await?;
        let image = &*image;
        // Its shards were looked at before: if they are those of a node that is back, so is its log.
        if !self.is_still_the_log().await? {
            return Ok(false);
        }
        let directory = self.cluster.directory();
        let shards = directory
            .take_shards(self.shards, image.engine.clone())
            .await;
        let shards = shards.map_err(|error| homes::unknown(&error))?;
        let (groups, all_answered) = self.homes().await?;
        // What it has under these epochs is what is in this log, unless it is back.
        if !self.is_still_the_log().await? {
            return Ok(false);
        }
        let wanted = groups
            .into_iter()
            .filter(|(group, _)| functions.contains(&group.function));
        let wanted: Vec<_> = wanted.collect();
        let taking = wanted.into_iter().map(|(group, epoch)| async move {
            let taken = self.session(image, &group, epoch).await;
            if let Err(problem) = &taken {
                tracing::warn!(%group, %problem, "a session of a node that is gone could not be taken over yet");
            }
            taken.is_ok()
        });
        let mut taking = futures_util::stream::iter(taking).buffer_unordered(AT_ONCE);
        let (mut taken, mut failed) = (0, 0);
        while let Some(is_taken) = taking.next().await {
            match is_taken {
                true => taken += 1,
                false => failed += 1,
            }
        }
        drop(taking);
        self.adopt_sessionless(image, functions).await?;
        if taken + failed + shards > 0 {
            self.core.metrics.taken_over.inc_by(taken as u64);
            tracing::warn!(node = %self.node, sessions = taken, failed, shards, "took over from a node that is gone");
        }
        Ok(failed == 0 && all_answered)
    }

    /// Whether what was read is still where the node goes on, by the registry itself.
    async fn is_still_the_log(&self) -> Result<bool, Problem> {
        let found = self.cluster.find_log(self.node).await;
        let found =
            found.map_err(|error| Problem::new(Code::RegistryUnreachable, error.to_string()))?;
        Ok(found.as_ref() == Some(self.log))
    }

    /// Says in the registry who takes over: this node, unless another one is at it.
    async fn claim(&self) -> Result<TakeoverRecord, Problem> {
        let own = self.cluster.name();
        let members = self.cluster.view().members();
        let is_live = |name: &NodeName| {
            members
                .iter()
                .any(|member| member.live && member.name == *name)
        };
        let claimed = self
            .cluster
            .update_takeover(self.node, |present| {
                let present = present.filter(|present| present.log == *self.log);
                Some(match present {
                    Some(present) if is_live(&present.by) => present,
                    Some(present) => TakeoverRecord {
                        by: own.clone(),
                        ..present
                    },
                    None => TakeoverRecord {
                        log: self.log.clone(),
                        by: own.clone(),
                        adopted: false,
                        returned: false,
                    },
                })
            })
            .await
            .map_err(|error| Problem::new(Code::RegistryUnreachable, error.to_string()))?;
        claimed.ok_or_else(|| internal("the record of the takeover is gone"))
    }

    /// Ends the log and reads it.
    async fn read(&self) -> Result<Image, RestoreError> {
        let data = self.core.data_path.clone().unwrap_or_default();
        let folder = data.join(FOLDER);
        let folder = folder.join(format!("{}-{:08x}", self.node, fastrand::u32(..)));
        let image = Image::open(self.log.clone(), folder)?;
        let (instance, stream) = (&self.log.instance, self.log.stream);
        let by = self.cluster.name().as_str();
        let restored = restore::take(self.objects, instance, stream, by, &*image.engine).await?;
        tracing::warn!(node = %self.node, segments = restored.end, "ended the log of a node that is gone");
        Ok(image.indexed()?)
    }

    /// Sessions that are at home on the lost node, by all directories; whether all of them have answered.
    async fn homes(&self) -> Result<(Vec<(Group, Epoch)>, bool), Problem> {
        let own = self.cluster.directory().homes_of(self.node).await;
        let mut homes = own.map_err(|error| homes::unknown(&error))?;
        let mut all_answered = true;
        for other in self.cluster.others() {
            match self.cluster.homes_of(&other, self.node).await {
                Ok(found) => homes.extend(found),
                Err(error) => {
                    tracing::info!(%error, "what a node's directory has of a lost one is asked again");
                    all_answered = false;
                }
            }
        }
        Ok((homes, all_answered))
    }

    /// Takes one session over.
    async fn session(&self, image: &Image, group: &Group, epoch: Epoch) -> Result<(), Problem> {
        let (core, cluster) = (self.core, self.cluster);
        // Whatever else comes of it, from a node that does not know yet that it is gone, comes too late.
        let arrival = core.arrivals.of(group);
        let _alone = arrival.lock().await;
        let stored = image.version(group, epoch)?;
        tracing::debug!(%group, ?epoch, ?stored, "taking over");
        if stored.is_none() && !is_first(epoch) {
            // Where it has been before, there was at least its record.
            tracing::error!(node = %self.node, %group, ?epoch, "a session of a node that is gone begins anew: its log has nothing of it; if nobody has removed it before, what it had is lost");
        }
        let new = Epoch(epoch.0 + 1);
        let head = StageHead {
            group: group.clone(),
            epoch: new,
            attempt: arrive::last_attempt(core, group)?,
            first: true,
            last: Some(stored.unwrap_or_default()),
        };
        let entries = match stored {
            Some(_) => image.entries(group).map_err(internal)?,
            None => Vec::new(),
        };
        let entries = futures_util::stream::iter(entries.into_iter().map(Ok)).boxed();
        arrive::take(core, self.node, head, entries).await?;
        let messages = match stored {
            Some(_) => image.messages.get(&Some(group.clone())),
            None => None,
        };
        let messages = messages.cloned().unwrap_or_default();
        let session = Some(group.clone());
        self.adopt(image, &session, &messages).await?;
        // They wait until it is known whose they are, also if this attempt does not hear of it.
        for (posted, message) in &messages {
            core.courier.adopt(core, posted.clone(), message.clone());
        }
        let from = Home {
            node: self.node.clone(),
            epoch,
        };
        match cluster
            .directory()
            .relocate(group, &from, cluster.name())
            .await
        {
            Ok(home) => {
                homes::take_over(core, group, home.epoch).await?;
                cluster.directory().learn(group, home);
                Ok(())
            }
            // It is elsewhere, and was before.
            Err(DirectoryError::Changed(_)) => {
                self.disown(&messages).await?;
                homes::purge(core, group).await
            }
            Err(error) => Err(homes::unknown(&error)),
        }
    }

    /// Stores messages that the lost node had to deliver, and what is known of the invocations of a session, or of
    /// those without one.
    async fn adopt(
        &self,
        image: &Image,
        session: &Option<Group>,
        messages: &[(Posted, MessageRecord)],
    ) -> Result<(), Problem> {
        let invocations = image.invocations.get(session);
        if messages.is_empty() && invocations.is_none() {
            return Ok(());
        }
        let mut bookkeeping = Bookkeeping::default();
        for (posted, message) in messages {
            bookkeeping.put(posted.table(), &posted.stored_key(), message);
        }
        for id in invocations.into_iter().flatten() {
            let known = image.engine.get(Table::Invocations, id.as_bytes());
            if let Some(record) = known.map_err(internal)? {
                let record = InvocationRecord::decode(&record).map_err(internal)?;
                bookkeeping.put(Table::Invocations, id.as_bytes(), &record);
            }
        }
        let stored = self.core.store.commit_durably(bookkeeping).await;
        let ticket = stored.map_err(|failure| storage_failed(&failure))?;
        let safe = self.core.store.safe(ticket).await;
        safe.map_err(|failure| storage_failed(&failure))
    }

    /// Takes over the invocations that the lost node had accepted for functions without a session, unless it has come
    /// back before.
    async fn adopt_sessionless(
        &self,
        image: &Image,
        functions: &HashSet<FunctionName>,
    ) -> Result<(), Problem> {
        let known = self.cluster.takeover_of(self.node);
        if known.is_some_and(|record| record.adopted || record.returned) {
            return Ok(());
        }
        let waiting = image.messages.get(&None).into_iter().flatten();
        let waiting: Vec<_> = waiting
            .filter(|(_, message)| functions.contains(&message.to.function))
            .cloned()
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        self.adopt(image, &None, &waiting).await?;
        let own = self.cluster.name();
        let record = self
            .cluster
            .update_takeover(self.node, |record| {
                let mut record = record?;
                record.adopted |= !record.returned && record.by == *own && record.log == *self.log;
                Some(record)
            })
            .await
            .map_err(|error| Problem::new(Code::RegistryUnreachable, error.to_string()))?;
        let is_own = record.is_some_and(|record| record.adopted && record.by == *own);
        if is_own {
            for (posted, message) in waiting {
                self.core.courier.adopt(self.core, posted, message);
            }
            return Ok(());
        }
        self.disown(&waiting).await
    }

    /// Forgets messages that are not this node's after all.
    async fn disown(&self, messages: &[(Posted, MessageRecord)]) -> Result<(), Problem> {
        let mut bookkeeping = Bookkeeping::default();
        for (posted, _) in messages {
            bookkeeping.delete(posted.table(), &posted.stored_key());
        }
        let stored = self.core.store.commit_durably(bookkeeping).await;
        stored.map_err(|failure| storage_failed(&failure))?;
        Ok(())
    }

    /// Takes over what was answered to idempotency keys of invocations without a session.
    async fn keyed(
        &self,
        image: &mut Image,
        functions: &HashSet<FunctionName>,
    ) -> Result<(), Problem> {
        for function in functions {
            if !image.keyed.insert(function.clone()) {
                continue;
            }
            let prefix = key::idempotency(function.as_str(), None, "");
            let mut found = Vec::new();
            let scanned =
                image
                    .engine
                    .scan(Table::Idempotency, &prefix, None, &mut |key, value| {
                        found.push((key.to_vec(), value.to_vec()));
                        true
                    });
            scanned.map_err(internal)?;
            let mut bookkeeping = Bookkeeping::default();
            for (key, value) in found {
                let known = self
                    .core
                    .store
                    .record::<IdempotencyRecord>(Table::Idempotency, &key);
                if known.map_err(internal)?.is_none() {
                    let record = IdempotencyRecord::decode(&value).map_err(internal)?;
                    bookkeeping.put(Table::Idempotency, &key, &record);
                }
            }
            let stored = self.core.store.commit_durably(bookkeeping).await;
            let ticket = stored.map_err(|failure| storage_failed(&failure))?;
            let safe = self.core.store.safe(ticket).await;
            safe.map_err(|failure| storage_failed(&failure))?;
        }
        Ok(())
    }
}
