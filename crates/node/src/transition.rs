//! Sessions that change their execution model: from their home to their client, and back. (How they go to the external
//! store, and come back, is in [`outside`](crate::outside).)
//!
//! A request says by a header which model it wants. To the client: the invocation runs at the session's home, and its
//! commit notes that the session has left; the answer has the token. The home keeps its copy, which nobody is served
//! from. Back: the invocation runs at the home on what the token has, and its commit writes all of that and takes the note
//! away. A token names the time that it left; one of an earlier time is refused, so that what the client did with an old
//! copy never comes over what the home has done since.

use fulmar_model::{Code, ExecutionModel, Group, Problem};
use fulmar_state::record::{IdempotencyRecord, StoredReply};
use fulmar_state::sealed::Carried;
use fulmar_state::{Bookkeeping, StoreError, Table, key};
use http::{HeaderName, HeaderValue, Response, header::HeaderMap};

use crate::core::Core;
use crate::external;
use crate::functions::Deployed;
use crate::respond::Body;

/// The execution model that a request wants for its session; in the answer, the one that it had.
pub(crate) const MODEL: HeaderName = HeaderName::from_static("fulmar-execution-model");

/// In what one node answers another: the model that was chosen for the session.
pub(crate) const CHOSEN: HeaderName = HeaderName::from_static("fulmar-session-model");

/// What a request wants.
///
/// # Errors
/// When the header says nothing that the function can do.
pub(crate) fn wanted(
    core: &Core,
    headers: &HeaderMap,
    deployed: &Deployed,
) -> Result<Option<ExecutionModel>, Problem> {
    let Some(value) = headers.get(&MODEL) else {
        return Ok(None);
    };
    let model = value.to_str().ok().and_then(ExecutionModel::parse);
    let bad = |detail: String| Err(Problem::new(Code::ExecutionModelRefused, detail));
    let function = &deployed.manifest.name;
    match (model, deployed.manifest.execution_model) {
        (None, _) => bad(format!(
            "{value:?} is no execution model; in-function, in-edge, external and in-client are"
        )),
        (Some(model), fixed) if model == fixed => Ok(Some(model)),
        (Some(_), fixed) if fixed != ExecutionModel::Auto => bad(format!(
            "{function} has execution_model = \"{fixed}\"; with \"auto\" requests may choose"
        )),
        (Some(ExecutionModel::External), _) if core.external.is_none() => Err(external::missing()),
        (Some(ExecutionModel::InClient), _) if deployed.manifest.anti_rollback => bad(format!(
            "{function} has anti_rollback, which needs execution_model = \"in-client\" from the beginning"
        )),
        (model, _) => Ok(model),
    }
}

/// Tells the client which model its request had.
pub(crate) fn tell(response: &mut Response<Body>, model: ExecutionModel) {
    let value = HeaderValue::from_static(model.as_str());
    response.headers_mut().insert(MODEL, value);
}

/// Where the state of a session is that is not at its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Away {
    /// With its client, since a time that its tokens name.
    WithClient(u64),
    /// In the external store, for a stay of this number.
    InStore(u64),
}

/// Begins what a note says of a session in the external store; of one with its client it says when it left.
const IN_STORE: &str = "external:";

/// Where the state of a session is, if not here, at its home.
pub(crate) fn away(core: &Core, group: &Group) -> Result<Option<Away>, StoreError> {
    let text = read_note(core, &key::away(group))?;
    Ok(text.and_then(|text| match text.strip_prefix(IN_STORE) {
        Some(stay) => stay.parse().ok().map(Away::InStore),
        None => text.parse().ok().map(Away::WithClient),
    }))
}

/// The execution model that was chosen for a session that is at home here.
pub(crate) fn chosen(core: &Core, group: &Group) -> Result<Option<ExecutionModel>, StoreError> {
    let text = read_note(core, &key::chosen(group))?;
    Ok(text.and_then(|text| ExecutionModel::parse(&text)))
}

fn read_note(core: &Core, key: &[u8]) -> Result<Option<String>, StoreError> {
    let note = core
        .store
        .record::<IdempotencyRecord>(Table::Idempotency, key)?;
    Ok(note.map(|note| note.invocation))
}

/// What those are told who ask the home.
pub(crate) fn with_client(group: &Group) -> Problem {
    let detail = format!(
        "the state of {group} is with its client: send it in Fulmar-State; `fulmar sessions set-model` lets the session go on from the copy that the node has kept"
    );
    Problem::new(Code::StateWithClient, detail)
}

/// What those are told who ask the home for the state of a session that is in the external store.
pub(crate) fn in_store(group: &Group) -> Problem {
    let detail = format!("the state of {group} is in the external store");
    Problem::new(Code::SessionInStore, detail)
}

/// Notes with a commit that the session's state leaves.
pub(crate) fn note(group: &Group, away: Away, bookkeeping: &mut Bookkeeping) {
    let text = match away {
        Away::WithClient(left) => left.to_string(),
        Away::InStore(stay) => format!("{IN_STORE}{stay}"),
    };
    write_note(&key::away(group), text, bookkeeping);
}

/// Notes with a commit that it is back.
pub(crate) fn take_note_away(group: &Group, bookkeeping: &mut Bookkeeping) {
    bookkeeping.delete(Table::Idempotency, &key::away(group));
}

/// Notes with a commit which execution model was chosen for a session; `auto`: none.
pub(crate) fn choose(group: &Group, model: ExecutionModel, bookkeeping: &mut Bookkeeping) {
    let key = key::chosen(group);
    match model {
        ExecutionModel::Auto => bookkeeping.delete(Table::Idempotency, &key),
        model => write_note(&key, model.to_string(), bookkeeping),
    }
}

// A record like those of idempotency keys, so that it goes with the session as they do.
fn write_note(key: &[u8], text: String, bookkeeping: &mut Bookkeeping) {
    let note = IdempotencyRecord {
        request: [0; 32],
        invocation: text,
        reply: StoredReply::default(),
        expires_unix_ms: u64::MAX,
    };
    bookkeeping.put(Table::Idempotency, key, &note);
}

/// Whether a token may come back to a home.
///
/// # Errors
/// `state-token-stale` if the home has gone on without it.
pub(crate) fn check_return(
    group: &Group,
    carried: &Carried,
    away: Option<Away>,
    is_new: bool,
) -> Result<(), Problem> {
    if away == Some(Away::WithClient(carried.left)) || (away.is_none() && is_new) {
        return Ok(());
    }
    let detail = match away {
        None | Some(Away::InStore(_)) => {
            format!("{group} is at its home again, and has gone on there")
        }
        Some(Away::WithClient(_)) => {
            format!("{group} was at its home again, and has left with a newer token")
        }
    };
    Err(Problem::new(Code::StateTokenStale, detail))
}
