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

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::{
    Code, Epoch, ExecutionModel, FunctionName, Group, Problem, SessionName, Version,
};
use fulmar_state::external::{CLOSED, Change, Closed, External, Kept, Outcome};
use fulmar_state::record::{IdempotencyRecord, Record, SessionRecord};
use fulmar_state::{Bookkeeping, SessionState, Table, key};
use futures_util::StreamExt;
use tokio::sync::oneshot;

use crate::core::Core;
use crate::execute::lender::after;
use crate::execute::{self, storage_failed};
use crate::functions::{Deployed, Function};
use crate::sessions::Session;
use crate::transition::{self, Away};
use crate::{clock, courier, custody, external, homes, migrate};

/// A session above this many bytes stays where it is: every invocation would have to fetch it.
const MAX_BYTES: usize = 32 << 20;
/// A session above this many bytes is copied before it is held up.
const COPY_FIRST_BYTES: usize = 256 << 10;
/// Bytes that one write to the store takes, about.
const PART_BYTES: usize = 4 << 20;
/// Longest wait for the messages that a session has sent: those that it sends afterwards must not overtake them.
const MESSAGES: Duration = Duration::from_secs(2);
/// Attempts to close a session that others keep writing.
const MAX_CONFLICTS: u32 = 100;

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
        match to {
            To::Store => crossing.put_out().await,
            To::Home => crossing.take_back().await,
        }
    });
    crossing
        .await
        .unwrap_or_else(|error| Err(Problem::new(Code::Internal, error.to_string())))
}

/// Makes sure, in a session's turn, that what its home, under this epoch, has put into the store can be used, and remembers
/// that it is there.
///
/// # Errors
/// When the store cannot be asked, or has lost it; `session-moved` if another node has become its home.
pub(crate) async fn open(
    core: &Core,
    group: &Group,
    stay: u64,
    epoch: Epoch,
) -> Result<(), Problem> {
    let store = external::of(core).await?;
    for _ in 0..MAX_CONFLICTS {
        let kept = load(core, store, group).await?;
        if kept.version == Version(0) {
            return Err(lost(group));
        }
        if let Some(closed) = kept.closed {
            check(group, &closed, stay, epoch)?;
            // Whoever takes over has to find the note as well, and what was delivered before.
            custody::known_to_takers(core, core.store.commits().submitted()).await?;
            let opened = write(core, store, group, kept.version, &opening()).await?;
            if opened.is_none() {
                continue;
            }
        }
        core.models.learn(group, ExecutionModel::External);
        return Ok(());
    }
    Err(contended(group))
}

/// Whether what is closed in the store is this stay of the session, and not closed by a later home.
fn check(group: &Group, closed: &Closed, stay: u64, epoch: Epoch) -> Result<(), Problem> {
    if closed.stay == stay && closed.epoch <= epoch {
        return Ok(());
    }
    let detail = format!("another node has become home to {group}");
    Err(Problem::new(Code::SessionMoved, detail))
}

fn lost(group: &Group) -> Problem {
    let detail = format!("the external store does not have {group}, which was put there");
    Problem::new(Code::ExternalStoreUnreachable, detail)
}

fn contended(group: &Group) -> Problem {
    let detail = format!("other nodes keep changing {group} in the external store");
    Problem::new(Code::QueueFull, detail)
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

type Writes = Vec<(String, Option<Bytes>)>;

fn opening() -> Writes {
    vec![(CLOSED.to_owned(), None)]
}

fn closing(stay: u64, epoch: Epoch) -> Writes {
    vec![(CLOSED.to_owned(), Some(Closed { stay, epoch }.value()))]
}

async fn load(core: &Core, store: &External, group: &Group) -> Result<Kept, Problem> {
    external::there(core, 0).await;
    let kept = store.load(group).await;
    let kept = kept.map_err(|error| external::problem(&error))?;
    let entries = kept.entries.iter();
    let bytes = entries.map(|(key, value)| key.len() + value.len());
    external::back(core, bytes.sum()).await;
    Ok(kept)
}

/// Writes to the store; none if the session has another version there.
async fn write(
    core: &Core,
    store: &External,
    group: &Group,
    base: Version,
    writes: &Writes,
) -> Result<Option<Version>, Problem> {
    external::there(core, bytes_of(writes)).await;
    let change = Change {
        group,
        base,
        next: after(base),
        writes,
        messages: &[],
        idempotency: None,
        now_unix_ms: clock::unix_ms(),
    };
    let outcome = store.commit(&change).await;
    external::back(core, 0).await;
    match outcome.map_err(|error| external::problem(&error))? {
        Outcome::Committed(version) => Ok(Some(version)),
        Outcome::Conflict | Outcome::Replay(_) => Ok(None),
    }
}

fn bytes_of(writes: &Writes) -> usize {
    let sizes = writes
        .iter()
        .map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len));
    sizes.sum()
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
        self.drop_rows().await?;
        drop(turn);
        Ok(true)
    }

    async fn take_back(&self) -> Result<bool, Problem> {
        let Self {
            core,
            store,
            group,
            function,
            session,
        } = *self;
        let _turn = execute::turn(core, function, session).await?;
        // What was committed here before may not be where it is loaded from.
        core.durable(core.store.commits().submitted()).await?;
        let state = homes::load_copy(core, group).await?;
        let stay = match transition::away(core, group).map_err(internal)? {
            None => return Ok(false),
            Some(Away::WithClient(_)) => return Err(transition::with_client(group)),
            Some(Away::InStore(stay)) => stay,
        };
        let kept = self.close(stay, state.epoch()).await?;
        if let Err(problem) = self.delivered().await {
            // It goes on there.
            open(core, group, stay, state.epoch()).await?;
            return Err(problem);
        }
        let answers = store.answers(group, clock::unix_ms()).await;
        let answers = answers.map_err(|error| external::problem(&error))?;
        let mut tx = core.store.begin(Some(state), false);
        let entries = kept.entries.iter();
        let entries = entries.map(|(key, value)| (key.clone(), value.to_vec()));
        tx.bring_back(entries.collect()).map_err(internal)?;
        let mut bookkeeping = Bookkeeping::default();
        for (name, record) in &answers {
            let at_home = courier::answer_at_home(group, name);
            bookkeeping.put(Table::Idempotency, &at_home, record);
        }
        transition::take_note_away(group, &mut bookkeeping);
        let (durable, committed) = oneshot::channel();
        {
            let release = Box::new(move |result| {
                let _ = durable.send(result);
            });
            let prepared = core.store.prepare(tx, 0);
            let prepared = prepared.map_err(|_| internal("a shared key was written"))?;
            let durability = function.current().manifest.durability;
            // What the release hears is what counts.
            let _ = prepared.commit(durability, bookkeeping, clock::unix_ms(), release);
        }
        let gone = |_| Problem::new(Code::ShuttingDown, "the node stopped before it was stored");
        let committed = committed.await.map_err(gone)?;
        committed.map_err(|failure| storage_failed(&failure))?;
        custody::known_to_takers(core, core.store.commits().submitted()).await?;
        core.models.forget(group);
        core.pool
            .evict_session(&function.name, group.session.as_str());
        self.leave_nothing(kept).await;
        Ok(true)
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

    /// Empties what stays in the store, closed. If that fails it is in nobody's way.
    async fn leave_nothing(&self, kept: Kept) {
        let keys = kept.entries.into_iter().map(|(key, _)| (key, None));
        let writes: Writes = keys.collect();
        if writes.is_empty() {
            return;
        }
        let written = write(self.core, self.store, self.group, kept.version, &writes).await;
        if let Err(problem) = written {
            tracing::debug!(group = %self.group, %problem, "a session's state stays in the external store, unused");
        }
    }
}

/// A copy of a session in the store, closed.
struct Copy<'a> {
    of: &'a Crossing<'a>,
    version: Version,
    /// What was there before, from an earlier time.
    stale: BTreeSet<String>,
    bytes: usize,
}

impl<'a> Copy<'a> {
    async fn begin(of: &'a Crossing<'a>, closing: &Writes) -> Result<Self, Problem> {
        let kept = load(of.core, of.store, of.group).await?;
        if kept.version != Version(0) && kept.closed.is_none() {
            let detail = format!("the external store has another session {}", of.group);
            return Err(Problem::new(Code::SessionsInTheWay, detail));
        }
        let mut copy = Self {
            of,
            version: kept.version,
            stale: kept.entries.into_iter().map(|(key, _)| key).collect(),
            bytes: 0,
        };
        copy.write(closing.clone()).await?;
        Ok(copy)
    }

    async fn write(&mut self, writes: Writes) -> Result<(), Problem> {
        for (key, _) in &writes {
            self.stale.remove(key);
        }
        self.bytes += bytes_of(&writes);
        if self.bytes > MAX_BYTES {
            let detail = format!(
                "{} has over {MAX_BYTES} bytes, which is too much to be fetched for every invocation",
                self.of.group
            );
            return Err(Problem::new(Code::StateTooLarge, detail));
        }
        let Crossing {
            core, store, group, ..
        } = *self.of;
        match write(core, store, group, self.version, &writes).await? {
            Some(version) => {
                self.version = version;
                Ok(())
            }
            None => Err(self
                .of
                .stays("somebody else writes it to the external store")),
        }
    }

    /// Copies what is stored at home.
    async fn whole(&mut self) -> Result<(), Problem> {
        let Crossing { core, group, .. } = *self.of;
        // What was committed before has to be where a scan looks.
        core.durable(core.store.commits().submitted()).await?;
        let rows = migrate::stored(core, group, vec![Table::State]);
        futures_util::pin_mut!(rows);
        let mut part = Writes::new();
        while let Some(entries) = rows.next().await {
            for entry in entries {
                part.push((name(&entry.key)?, entry.value));
            }
            if bytes_of(&part) >= PART_BYTES {
                self.write(std::mem::take(&mut part)).await?;
            }
        }
        self.write(part).await
    }

    /// Copies what has changed since.
    async fn changed(&mut self, state: &SessionState) -> Result<(), Problem> {
        let Crossing { core, group, .. } = *self.of;
        let changes = migrate::changed(core, group, state.end_copy())?;
        let writes = changes
            .into_iter()
            .filter(|entry| entry.table == Table::State)
            .map(|entry| Ok((name(&entry.key)?, entry.value)));
        let writes = writes.collect::<Result<Writes, Problem>>()?;
        self.write(writes).await
    }

    /// Deletes what was there before, and takes along what the session has answered and got.
    async fn end(&mut self) -> Result<(), Problem> {
        let stale = std::mem::take(&mut self.stale);
        self.write(stale.into_iter().map(|key| (key, None)).collect())
            .await?;
        let Crossing {
            core, store, group, ..
        } = *self.of;
        let records = migrate::stored(core, group, vec![Table::Idempotency]);
        futures_util::pin_mut!(records);
        while let Some(part) = records.next().await {
            let mut answers = Vec::with_capacity(part.len());
            for entry in part {
                if let (Some(name), Some(value)) =
                    (courier::answer_in_store(&entry.key), entry.value)
                {
                    let record = IdempotencyRecord::decode(&value).map_err(internal)?;
                    answers.push((name, record));
                }
            }
            let kept = store.keep_answers(group, &answers, clock::unix_ms()).await;
            kept.map_err(|error| external::problem(&error))?;
        }
        Ok(())
    }
}

fn name(key: &[u8]) -> Result<String, Problem> {
    String::from_utf8(key.to_vec()).map_err(internal)
}
