//! Sessions that change their execution model: from their home to their client, and back.
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
use crate::functions::Deployed;
use crate::respond::Body;

/// The execution model that a request wants for its session; in the answer, the one that it had.
pub(crate) const MODEL: HeaderName = HeaderName::from_static("fulmar-execution-model");

/// What a request wants.
///
/// # Errors
/// When the header says nothing that the function can do.
pub(crate) fn wanted(
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
            "{value:?} is no execution model; in-function, in-edge and in-client are"
        )),
        (Some(model), fixed) if model == fixed => Ok(Some(model)),
        (Some(_), fixed) if fixed != ExecutionModel::Auto => bad(format!(
            "{function} has execution_model = \"{fixed}\"; with \"auto\" requests may choose"
        )),
        (Some(ExecutionModel::External), _) => bad(format!(
            "sessions of {function} do not move to the external store: only with execution_model = \"external\" are they there"
        )),
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

/// When a session left with its client, if it has.
pub(crate) fn left(core: &Core, group: &Group) -> Result<Option<u64>, StoreError> {
    let note = core
        .store
        .record::<IdempotencyRecord>(Table::Idempotency, &key::carried(group))?;
    Ok(note.and_then(|note| note.invocation.parse().ok()))
}

/// What those are told who ask the home.
pub(crate) fn with_client(group: &Group) -> Problem {
    let detail = format!(
        "the state of {group} is with its client: send it in Fulmar-State; `fulmar sessions set-model` lets the session go on from the copy that the node has kept"
    );
    Problem::new(Code::StateWithClient, detail)
}

/// Notes with a commit that the session leaves.
pub(crate) fn note(group: &Group, left: u64, bookkeeping: &mut Bookkeeping) {
    let note = IdempotencyRecord {
        request: [0; 32],
        invocation: left.to_string(),
        reply: StoredReply::default(),
        expires_unix_ms: u64::MAX,
    };
    bookkeeping.put(Table::Idempotency, &key::carried(group), &note);
}

/// Notes with a commit that it is back.
pub(crate) fn take_note_away(group: &Group, bookkeeping: &mut Bookkeeping) {
    bookkeeping.delete(Table::Idempotency, &key::carried(group));
}

/// Whether a token may come back to a home.
///
/// # Errors
/// `state-token-stale` if the home has gone on without it.
pub(crate) fn check_return(
    group: &Group,
    carried: &Carried,
    left: Option<u64>,
    is_new: bool,
) -> Result<(), Problem> {
    if left == Some(carried.left) || (left.is_none() && is_new) {
        return Ok(());
    }
    let detail = match left {
        None => format!("{group} is at its home again, and has gone on there"),
        Some(_) => format!("{group} was at its home again, and has left with a newer token"),
    };
    Err(Problem::new(Code::StateTokenStale, detail))
}
