//! Sessions whose state the client carries: tokens in and out, and the keys that seal them.

use std::sync::Arc;
use std::time::Duration;

use fulmar_cluster::Cluster;
use fulmar_model::{Code, ExecutionModel, Group, Problem, Version};
use fulmar_state::record::{KeyRingRecord, Record, SessionRecord};
use fulmar_state::sealed::{Carried, KeyRing, SealError};
use fulmar_state::{Bookkeeping, SessionState, Table, Transaction, key};
use fulmar_worker::Reply;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};

use crate::core::Core;
use crate::functions::Deployed;
use crate::invocation::BYTES_TYPE;
use crate::{deploy, homes};

/// Carries the state, both ways.
pub(crate) const STATE: HeaderName = HeaderName::from_static("fulmar-state");
/// Key of the ring in the system table, and in the registry.
const RING: &str = "state-keys";
/// Longest wait for a key that another node seals with already.
const NEW_KEY: Duration = Duration::from_secs(2);
/// Tag of a worker that knows no state: no token has it, since tags of tokens are odd.
const NO_TAG: u64 = 0;

/// The keys; none before the first session needs them.
#[derive(Default)]
pub(crate) struct StateKeys {
    ring: RwLock<Option<Arc<KeyRing>>>,
    /// Held while keys change.
    changing: tokio::sync::Mutex<()>,
}

/// A session as its client sent it.
pub(crate) struct Opened {
    pub(crate) state: Arc<SessionState>,
    /// Tells workers that know this very state from others.
    pub(crate) tag: u64,
}

impl Deployed {
    /// Whether clients carry all sessions of the function.
    pub(crate) fn is_in_client(&self) -> bool {
        self.manifest.execution_model == ExecutionModel::InClient
    }

    /// Whether clients may carry some of them, as they wish.
    pub(crate) fn may_be_in_client(&self) -> bool {
        self.manifest.execution_model == ExecutionModel::Auto && !self.manifest.anti_rollback
    }
}

/// The token in a request's headers.
///
/// # Errors
/// When it was sent twice, or is no text.
pub(crate) fn token(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    let mut tokens = headers.get_all(&STATE).iter();
    let Some(token) = tokens.next() else {
        return Ok(None);
    };
    match (token.to_str(), tokens.next()) {
        (Ok(token), None) => Ok(Some(token.into())),
        (_, Some(_)) => Err(Problem::new(
            Code::StateTokenInvalid,
            "the Fulmar-State header was sent twice",
        )),
        (Err(_), None) => Err(Problem::new(
            Code::StateTokenInvalid,
            "the Fulmar-State header has characters that no token has",
        )),
    }
}

/// What everybody but the client is told who wants the session's state.
pub(crate) fn unreachable(function: &str) -> Problem {
    Problem::new(
        Code::StateWithClient,
        format!("sessions of {function} are carried by their clients"),
    )
}

fn refused(error: &SealError) -> Problem {
    let code = match error {
        SealError::Malformed => Code::StateTokenInvalid,
        SealError::Refused => Code::StateTokenRefused,
        SealError::UnknownKey(_) => Code::StateKeyRetired,
        SealError::TooLarge(_) => Code::StateTooLarge,
        SealError::NoRandom => Code::Internal,
    };
    Problem::new(code, error.to_string())
}

/// Odd, so that it is never [`NO_TAG`].
pub(crate) fn tag(token: &str) -> u64 {
    let digest = Sha256::digest(token);
    digest
        .iter()
        .take(8)
        .fold(0, |tag, byte| tag << 8 | u64::from(*byte))
        | 1
}

/// The session that a client sent; without a token a new one.
pub(crate) async fn open(
    core: &Core,
    deployed: &Deployed,
    group: Group,
    token: Option<&str>,
) -> Result<Opened, Problem> {
    let carried = match token {
        Some(token) => open_token(core, deployed, &group, token).await?,
        None => Carried {
            version: Version(0),
            left: 0,
            entries: Vec::new(),
        },
    };
    if deployed.manifest.anti_rollback {
        homes::confirm_here(core, &group).await?;
        let known = core
            .store
            .record::<SessionRecord>(Table::Sessions, &key::session(&group))
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))?
            .map_or(Version(0), |record| record.version);
        if carried.version < known {
            return Err(Problem::new(
                Code::StateTokenStale,
                format!(
                    "its version is {}, the session's is {}",
                    carried.version.0, known.0
                ),
            ));
        }
    }
    Ok(Opened {
        state: core.store.carry_session(group, carried),
        tag: token.map_or(NO_TAG, tag),
    })
}

/// What a client sent of a session.
///
/// # Errors
/// When it was not sealed for this session, or while the function kept its sessions elsewhere.
pub(crate) async fn open_token(
    core: &Core,
    deployed: &Deployed,
    group: &Group,
    token: &str,
) -> Result<Carried, Problem> {
    let known = ring(core).await?;
    let opened = match (known.open(group, token), &core.cluster) {
        (Err(SealError::UnknownKey(number)), Some(cluster)) if number > known.current() => {
            // Another node seals with a new key already.
            let next = cluster.view().revision() + 1;
            cluster.view().has(next, NEW_KEY).await;
            core.state_keys.take_up(cluster);
            ring(core).await?.open(group, token)
        }
        (opened, _) => opened,
    };
    let carried = opened.map_err(|error| refused(&error))?;
    if (carried.left == 0) != deployed.is_in_client() {
        let detail = format!(
            "the state of {group} was sealed when {} had another execution model",
            group.function
        );
        return Err(Problem::new(Code::SessionsInTheWay, detail));
    }
    Ok(carried)
}

/// Seals what the invocation leaves behind into its reply, before it is committed; a session that did
/// not change keeps its token, if it is not just leaving. Gives the new token's tag, and a counter to commit where one
/// is kept.
pub(crate) async fn close(
    core: &Core,
    deployed: &Deployed,
    tx: &Transaction,
    leaving: Option<u64>,
    reply: &mut Reply,
) -> Result<Option<Closed>, Problem> {
    let Some(session) = tx
        .session()
        .filter(|_| tx.has_written() || leaving.is_some())
    else {
        return Ok(None);
    };
    let group = session.group();
    let Some(carried) = tx.to_carry(leaving.unwrap_or(session.left())) else {
        return Err(refused(&SealError::TooLarge(session.hot_bytes())));
    };
    let token = ring(core)
        .await?
        .seal(group, &carried)
        .map_err(|error| refused(&error))?;
    let tag = tag(&token);
    // Base64 is a header value.
    let value = HeaderValue::try_from(token)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let mut response = match std::mem::replace(reply, Reply::Bytes(bytes::Bytes::new())) {
        Reply::Http(response) => response,
        Reply::Bytes(body) => {
            let mut response = http::Response::new(body);
            let bytes = HeaderValue::from_static(BYTES_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, bytes);
            Box::new(response)
        }
    };
    response.headers_mut().insert(STATE, value);
    *reply = Reply::Http(response);
    let counter = deployed.manifest.anti_rollback.then_some(carried.version);
    Ok(Some(Closed {
        tag,
        counter: counter.map(|version| (key::session(group), version)),
    }))
}

/// A state that was sealed and is to be committed.
pub(crate) struct Closed {
    pub(crate) tag: u64,
    counter: Option<(Vec<u8>, Version)>,
}

impl Closed {
    /// Adds the counter, if one is kept.
    pub(crate) fn count(&self, core: &Core, now_unix_ms: u64, bookkeeping: &mut Bookkeeping) {
        if let Some((key, version)) = &self.counter {
            let record = SessionRecord {
                version: *version,
                epoch: core.store.epoch(),
                updated_unix_ms: now_unix_ms,
            };
            bookkeeping.put(Table::Sessions, key, &record);
        }
    }
}

/// The keys, made and stored when they are needed first.
async fn ring(core: &Core) -> Result<Arc<KeyRing>, Problem> {
    if let Some(ring) = core.state_keys.ring.read().clone() {
        return Ok(ring);
    }
    let _turn = core.state_keys.changing.lock().await;
    if let Some(ring) = core.state_keys.ring.read().clone() {
        return Ok(ring);
    }
    if let Some(cluster) = &core.cluster {
        change(core, cluster, Ok).await?;
        let made = || Problem::new(Code::Internal, "the keys were removed at once");
        return core.state_keys.ring.read().clone().ok_or_else(made);
    }
    let stored = core
        .store
        .record::<KeyRingRecord>(Table::System, RING.as_bytes())
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let ring = match stored {
        Some(record) => KeyRing::from_record(record),
        None => {
            let ring = KeyRing::new().map_err(|error| refused(&error))?;
            store(core, &ring).await?;
            ring
        }
    };
    let ring = Arc::new(ring);
    *core.state_keys.ring.write() = Some(ring.clone());
    Ok(ring)
}

/// Seals with a new key from now on; the number of it.
pub(crate) async fn rotate(core: &Core) -> Result<u32, Problem> {
    if let Some(cluster) = &core.cluster {
        let _turn = core.state_keys.changing.lock().await;
        return change(core, cluster, |mut ring| ring.rotate().map(|()| ring)).await;
    }
    let mut next = (*ring(core).await?).clone();
    let _turn = core.state_keys.changing.lock().await;
    next.rotate().map_err(|error| refused(&error))?;
    store(core, &next).await?;
    let number = next.current();
    *core.state_keys.ring.write() = Some(Arc::new(next));
    Ok(number)
}

/// Changes the keys of all nodes, which are made if there are none; the number of the one that seals.
async fn change(
    core: &Core,
    cluster: &Arc<Cluster>,
    change: impl Fn(KeyRing) -> Result<KeyRing, SealError> + Send + Sync,
) -> Result<u32, Problem> {
    let mut failed = None;
    let mut number = 0;
    let written = cluster
        .update(RING, |present| {
            let known = present.and_then(|present| KeyRingRecord::decode(present).ok());
            let changed = match known {
                Some(record) => change(KeyRing::from_record(record)),
                None => KeyRing::new(),
            };
            match changed {
                Ok(ring) => {
                    number = ring.current();
                    Some(ring.record().encode().into())
                }
                Err(error) => {
                    failed = Some(error);
                    present.cloned()
                }
            }
        })
        .await;
    if let Some(error) = failed {
        return Err(refused(&error));
    }
    let written =
        written.map_err(|error| Problem::new(Code::RegistryUnreachable, error.to_string()));
    written?;
    core.state_keys.take_up(cluster);
    Ok(number)
}

impl StateKeys {
    /// Takes over the keys that all nodes share.
    pub(crate) fn take_up(&self, cluster: &Cluster) {
        let Some(entry) = cluster.view().get(RING) else {
            return;
        };
        match KeyRingRecord::decode(&entry.value) {
            Ok(record) => *self.ring.write() = Some(Arc::new(KeyRing::from_record(record))),
            Err(error) => tracing::error!(%error, "the keys of carried state cannot be read"),
        }
    }
}

async fn store(core: &Core, ring: &KeyRing) -> Result<(), Problem> {
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.put(Table::System, RING.as_bytes(), ring.record());
    deploy::store(core, bookkeeping).await
}
