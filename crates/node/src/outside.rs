//! Sessions of functions with `execution_model = "auto"` whose state goes to the external store while they are in use, and
//! comes back.
//!
//! The session's home stays its home, and notes where the state is. In the store it is *closed* while it is on its way: then
//! only the home writes it, and whoever else finds it closed asks the home. Out: the state is copied, closed; the note is
//! stored; the state is opened. Back: it is closed; one commit at home writes all of it and takes the note away. So whatever
//! breaks off, the note says where the state is, and a home that finds its note and the state closed opens it again. What
//! somebody computed from state that has been closed meanwhile conflicts: closing makes a version, and versions never come
//! back. What closes it names the stay in the store and the home's epoch, so that a home of before, which is late, does not
//! open what a later one has closed. What is left behind in the store is empty, and closed.

mod copy;

use std::sync::Arc;
use std::time::Duration;

use fulmar_model::{
    Code, Durability, Epoch, ExecutionModel, FunctionName, Group, Problem, SessionName, Version,
};
use fulmar_state::external::{External, Kept};
use fulmar_state::record::SessionRecord;
use fulmar_state::{Bookkeeping, SessionState, Table, Transaction, key};
use futures_util::StreamExt;
use tokio::sync::oneshot;

use copy::Copy;

use crate::core::Core;
use crate::execute::{self, storage_failed};
use crate::external::closed::{
    MAX_CONFLICTS, Writes, check, closing, contended, load, lost, open, write,
};
use crate::functions::{Deployed, Function};
use crate::sessions::Session;
use crate::transition::{self, Away};
use crate::{clock, courier, custody, external, homes, migrate};

/// A session above this many bytes is copied before it is held up.
const COPY_FIRST_BYTES: usize = 256 << 10;
/// Longest wait for the messages that a session has sent: those that it sends afterwards must not overtake them.
const MESSAGES: Duration = Duration::from_secs(2);

impl Deployed {
    /// Whether sessions of the function may be in the external store, some of them, for some time.
    pub(crate) fn may_be_in_store(&self, core: &Core) -> bool {
        self.manifest.execution_model == ExecutionModel::Auto && core.external.is_some()
    }
}

/// Where a session goes.
#[derive(Clone, Copy)]
enum To {
    Store,
    Home,
}

/// Puts the state of a session that is at home here into the external store; false if it is there already.
///
/// # Errors
/// When it is not at home here, or cannot go; it stays then. If the store fails in the last moment the session goes on
/// there when the store is back.
pub(crate) async fn go(core: &Arc<Core>, group: &Group) -> Result<bool, Problem> {
    cross(core, group, To::Store).await
}

/// Takes it back; false if it is at home already.
///
/// # Errors
/// When it is not at home here, or the store cannot be asked; it stays in the store then.
pub(crate) async fn come_back(core: &Arc<Core>, group: &Group) -> Result<bool, Problem> {
    cross(core, group, To::Home).await
}

/// On a task of its own: whoever asked for it may go away.
async fn cross(core: &Arc<Core>, group: &Group, to: To) -> Result<bool, Problem> {
    let (core, group) = (core.clone(), group.clone());
    let crossing = tokio::spawn(async move {
        let departure = core.departures.of(&group);
        let _alone = departure.lock().await;
        let function = core.functions.get(group.function.as_str()).ok_or_else(|| {
            let detail = format!("no function {} is deployed", group.function);
            Problem::new(Code::FunctionNotFound, detail)
        })?;
        let session = function.sessions.of(group.session.shared());
        let crossing = Crossing {
            core: &core,
            store: external::of(&core).await?,
            group: &group,
            function: &function,
            session: &session,
        };
        let crossed = match to {
            To::Store => crossing.put_out().await,
            To::Home => crossing.take_back().await,
        }?;
        core.metrics.crossings.inc_by(crossed.into());
        Ok(crossed)
    });
    crossing
        .await
        .unwrap_or_else(|error| Err(Problem::new(Code::Internal, error.to_string())))
}

/// The sessions at home here whose state is in the external store, of one function or of all.
pub(crate) fn all(core: &Core, function: Option<&FunctionName>) -> Result<Vec<Group>, Problem> {
    if core.external.is_none() {
        return Ok(Vec::new());
    }
    let prefix = function.map_or_else(Vec::new, |function| {
        [function.as_str().as_bytes(), key::SEPARATOR].concat()
    });
    let mut groups = Vec::new();
    let scanned = core
        .store
        .scan(Table::Sessions, &prefix, None, &mut |key, _| {
            groups.extend(key::parse_session(key).and_then(|(function, session)| {
                Some(Group {
                    function: FunctionName::new(function).ok()?,
                    session: SessionName::new(session).ok()?,
                })
            }));
            true
        });
    scanned.map_err(internal)?;
    let mut outside = Vec::new();
    for group in groups {
        if let Some(Away::InStore(_)) = transition::away(core, &group).map_err(internal)? {
            outside.push(group);
        }
    }
    Ok(outside)
}

/// Empties what stays in the store, closed, of a session that has come back: once nobody may find it there any more who
/// takes over. If that fails it is in nobody's way.
async fn leave_nothing(core: Arc<Core>, group: Group, kept: Kept) {
    let keys = kept.entries.into_iter().map(|(key, _)| (key, None));
    let writes: Writes = keys.collect();
    let last = core.store.commits().submitted();
    let left = async {
        let safe = custody::safe(&core, &group.function, last).await;
        safe.map_err(|failure| storage_failed(&failure))?;
        let store = external::of(&core).await?;
        write(&core, store, &group, kept.version, &writes).await
    };
    if let Err(problem) = left.await {
        tracing::debug!(%group, %problem, "a session's state stays in the external store, unused");
    }
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Internal, error.to_string())
}

/// A session on its way, alone.
struct Crossing<'a> {
    core: &'a Arc<Core>,
    store: &'a External,
    group: &'a Group,
    function: &'a Arc<Function>,
    session: &'a Arc<Session>,
}

impl Crossing<'_> {
    async fn put_out(&self) -> Result<bool, Problem> {
        let Self {
            core,
            group,
            function,
            session,
            ..
        } = *self;
        if !function.current().may_be_in_store(core) {
            let detail = format!(
                "{} has execution_model = \"{}\"; with \"auto\" its sessions may go to the external store",
                group.function,
                function.current().manifest.execution_model
            );
            return Err(Problem::new(Code::ExecutionModelRefused, detail));
        }
        let mut turn = execute::turn(core, function, session).await?;
        let state = homes::load_for_others(core, group, session).await?;
        match transition::away(core, group).map_err(internal)? {
            None => {}
            Some(Away::WithClient(_)) => return Err(transition::with_client(group)),
            Some(Away::InStore(_)) => return Ok(false),
        }
        let (stay, epoch) = (fastrand::u64(1..), state.epoch());
        let mut copy = Copy::begin(self, &closing(stay, epoch)).await?;
        let is_large = state.whole().is_none() || state.hot_bytes() > COPY_FIRST_BYTES;
        if is_large {
            state.begin_copy();
            drop(turn);
            let copied = copy.whole().await;
            turn = execute::turn(core, function, session).await?;
            // Another one has not the changes that this one remembers.
            let is_same = session.state().is_some_and(|now| Arc::ptr_eq(&now, &state));
            if let Err(problem) = copied.and_then(|()| match is_same {
                true => Ok(()),
                false => Err(self.stays("it was removed or replaced while it was copied")),
            }) {
                state.end_copy();
                return Err(problem);
            }
        }
        if let Err(problem) = self.settled().await {
            if is_large {
                state.end_copy();
            }
            return Err(problem);
        }
        match is_large {
            true => copy.changed(&state).await?,
            false => copy.whole().await?,
        }
        copy.end().await?;
        let mut bookkeeping = Bookkeeping::default();
        transition::note(group, Away::InStore(stay), &mut bookkeeping);
        if core
            .store
            .session_record(group)
            .map_err(internal)?
            .is_none()
        {
            // So that it is known of, though nothing was ever written here.
            let record = SessionRecord {
                version: state.version(),
                epoch: state.epoch(),
                updated_unix_ms: clock::unix_ms(),
            };
            bookkeeping.put(Table::Sessions, &key::session(group), &record);
        }
        // From here on it is there, whatever breaks off.
        session.set_state(None);
        core.pool
            .evict_session(&function.name, group.session.as_str());
        let stored = core.store.commit_durably(bookkeeping).await;
        stored.map_err(|failure| storage_failed(&failure))?;
        open(core, group, stay, epoch).await?;
        if let Err(problem) = self.drop_rows().await {
            tracing::warn!(%group, %problem, "rows of a session that is in the external store stay at its home, unused");
        }
        drop(turn);
        Ok(true)
    }

    async fn take_back(&self) -> Result<bool, Problem> {
        let Self {
            core,
            group,
            function,
            session,
            ..
        } = *self;
        let manifest = &function.current().manifest;
        if let Some(refused) = core
            .refuses_writes()
            .or_else(|| custody::refuses(core, manifest))
        {
            return Err(refused);
        }
        let _turn = execute::turn(core, function, session).await?;
        // What was committed here before may not be where it is loaded from.
        core.durable(core.store.commits().submitted()).await?;
        let state = homes::load_copy(core, group).await?;
        let stay = match transition::away(core, group).map_err(internal)? {
            None => return Ok(false),
            Some(Away::WithClient(_)) => return Err(transition::with_client(group)),
            Some(Away::InStore(stay)) => stay,
        };
        let epoch = state.epoch();
        let kept = self.close(stay, epoch).await?;
        let (tx, bookkeeping) = match self.bring_home(state, &kept).await {
            Ok(brought) => brought,
            Err(problem) => {
                // It goes on there.
                open(core, group, stay, epoch).await?;
                return Err(problem);
            }
        };
        let (durable, committed) = oneshot::channel();
        {
            let release = Box::new(move |result| {
                let _ = durable.send(result);
            });
            let prepared = core.store.prepare(tx, 0);
            let prepared = prepared.map_err(|_| internal("a shared key was written"))?;
            let now = clock::unix_ms();
            // Whatever the function has: the store's copy goes afterwards. What the release hears is what counts.
            let _ = prepared.commit(Durability::Local, bookkeeping, now, release);
        }
        let gone = |_| Problem::new(Code::ShuttingDown, "the node stopped before it was stored");
        let committed = committed.await.map_err(gone)?;
        committed.map_err(|failure| storage_failed(&failure))?;
        core.models.forget(group);
        core.pool
            .evict_session(&function.name, group.session.as_str());
        tokio::spawn(leave_nothing(core.clone(), group.clone(), kept));
        Ok(true)
    }

    /// What there is to commit at home of what the store has.
    async fn bring_home(
        &self,
        state: Arc<SessionState>,
        kept: &Kept,
    ) -> Result<(Transaction, Bookkeeping), Problem> {
        let Self {
            core, store, group, ..
        } = *self;
        self.delivered().await?;
        let answers = store.answers(group, clock::unix_ms()).await;
        let answers = answers.map_err(|error| external::problem(&error))?;
        let mut tx = core.store.begin(Some(state), false);
        let entries = kept.entries.iter();
        let entries = entries.map(|(key, value)| (key.clone(), value.to_vec()));
        let brought = tx.bring_back(entries.collect());
        brought.map_err(|error| Problem::new(Code::StateTooLarge, error.to_string()))?;
        let mut bookkeeping = Bookkeeping::default();
        for (name, record) in &answers {
            let at_home = courier::answer_at_home(group, name);
            bookkeeping.put(Table::Idempotency, &at_home, record);
        }
        transition::take_note_away(group, &mut bookkeeping);
        Ok((tx, bookkeeping))
    }

    fn stays(&self, why: &str) -> Problem {
        let detail = format!("{} stays here: {why}", self.group);
        Problem::new(Code::MigrationFailed, detail)
    }

    /// Waits until all that the session has sent is delivered, and all that it has committed is where a scan looks.
    async fn settled(&self) -> Result<(), Problem> {
        let drained = self.core.courier.drained(self.group);
        if tokio::time::timeout(MESSAGES, drained).await.is_err() {
            return Err(self.stays("messages that it sent are not delivered yet"));
        }
        let last = self.core.store.commits().submitted();
        self.core.durable(last).await
    }

    /// Deletes what is left at home of a state that is in the store.
    async fn drop_rows(&self) -> Result<(), Problem> {
        let core = self.core;
        let rows = migrate::stored(core, self.group, vec![Table::State]);
        futures_util::pin_mut!(rows);
        let prefix = key::session_state(self.group);
        while let Some(part) = rows.next().await {
            let mut bookkeeping = Bookkeeping::default();
            for entry in part {
                bookkeeping.delete_raw(entry.table, &[&prefix, &entry.key[..]].concat());
            }
            let committed = core.store.commit_bookkeeping(bookkeeping, Box::new(|_| {}));
            committed.map_err(|failure| storage_failed(&failure))?;
        }
        Ok(())
    }

    /// Closes the session in the store; what it has then, under the version that it has then.
    async fn close(&self, stay: u64, epoch: Epoch) -> Result<Kept, Problem> {
        let Self {
            core, store, group, ..
        } = *self;
        for _ in 0..MAX_CONFLICTS {
            let mut kept = load(core, store, group).await?;
            if kept.version == Version(0) {
                return Err(lost(group));
            }
            if let Some(closed) = kept.closed {
                // By an attempt that broke off; of this home, or of one before.
                check(group, &closed, stay, epoch)?;
            }
            let closing = closing(stay, epoch);
            if let Some(version) = write(core, store, group, kept.version, &closing).await? {
                kept.version = version;
                return Ok(kept);
            }
        }
        Err(contended(group))
    }

    /// Waits until what the session has sent to other sessions from the store is delivered.
    async fn delivered(&self) -> Result<(), Problem> {
        let (core, group) = (self.core, self.group);
        let delivering = async {
            loop {
                let messages = self.store.messages(group).await;
                let messages = messages.map_err(|error| external::problem(&error))?;
                let ordered = |unsent: &fulmar_state::external::Unsent| {
                    // Those to no session have no order, and go from the store by themselves.
                    unsent.message.to.session.is_some()
                };
                if !messages.iter().any(|(_, unsent)| ordered(unsent)) {
                    return Ok(());
                }
                courier::take_up(core, group).await?;
                core.courier.drained(group).await;
            }
        };
        match tokio::time::timeout(MESSAGES, delivering).await {
            Ok(delivered) => delivered,
            Err(_) => {
                let detail = format!(
                    "{group} stays in the external store: messages that it sent are not delivered yet"
                );
                Err(Problem::new(Code::MigrationFailed, detail))
            }
        }
    }
}
