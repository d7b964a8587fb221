//! Where an invocation goes: to this node's own queues, or to the node that is home to its session.
//!
//! What is decided here is a guess, from what is hot and what was last heard of; the home itself knows
//! better, and says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_cluster::{Cluster, Home, NotHere, PeerError};
use fulmar_model::{Code, ExecutionModel, FunctionName, Group, NodeName, Problem, SessionName};
use http::{HeaderName, Request, Response, header};
use http_body_util::{Either, Full};

use crate::core::Core;
use crate::functions::Function;
use crate::homes;
use crate::respond::{self, Body};
use crate::transition;

/// Marks a request that another node passed on: it is not passed on again.
pub(crate) const RELAYED: HeaderName = HeaderName::from_static("fulmar-relayed");
/// Marks a request that another node passed on to run here: with the node that lends its session's state, or nothing.
pub(crate) const OFFLOADED: HeaderName = HeaderName::from_static("fulmar-offloaded");
/// Homes that are asked for one request, each because the one before said that it is not it.
pub(crate) const MAX_HOPS: usize = 6;
/// What an answer may take besides the function's own time: waiting in queues, loading, the way.
const SLACK: Duration = Duration::from_secs(60);

/// Where an invocation goes.
pub(crate) enum Place {
    Here,
    There(NodeName),
}

/// Where an invocation of a session goes, as far as this node knows.
pub(crate) fn of_session(core: &Core, function: &Function, session: &SessionName) -> Place {
    let Some(cluster) = &core.cluster else {
        return Place::Here;
    };
    let in_use = function.sessions.peek(session.as_str());
    if in_use.is_some_and(|session| session.state().is_some()) {
        return Place::Here;
    }
    let group = group(&function.name, session);
    match cluster.directory().cached(&group) {
        Some(home) => Place::There(home.node),
        None => Place::Here,
    }
}

/// Where an invocation goes whose session, if it has one, has no home, and whose idempotency key is to be
/// found again: all with the same `name` to the same node.
pub(crate) async fn of_key(
    core: &Core,
    function: &FunctionName,
    name: &str,
) -> Result<Place, Problem> {
    let Some(cluster) = &core.cluster else {
        return Ok(Place::Here);
    };
    // Only its hash counts: no session of this name comes into being.
    let session = SessionName::new(name)
        .map_err(|error| Problem::new(Code::IdempotencyKeyInvalid, error.to_string()))?;
    let owner = cluster.directory().owner(&group(function, &session)).await;
    let owner = owner.map_err(|error| homes::unknown(&error))?;
    Ok(match owner == *cluster.name() {
        true => Place::Here,
        false => Place::There(owner),
    })
}

pub(crate) fn group(function: &FunctionName, session: &SessionName) -> Group {
    Group {
        function: function.clone(),
        session: session.clone(),
    }
}

/// What another node made of a request.
pub(crate) enum Answered {
    /// The client's response.
    Response(Response<Body>),
    /// The session is not there; where it may be is in the directory's cache.
    Elsewhere,
    /// It has no memory for another worker: nothing ran.
    NoRoom,
}

/// Lets another node answer.
pub(crate) async fn send(
    core: &Core,
    cluster: &Cluster,
    node: &NodeName,
    group: Option<&Group>,
    head: &http::request::Parts,
    body: Bytes,
    timeout: Duration,
) -> Result<Answered, Problem> {
    let mut request = Request::from_parts(head.clone(), body);
    respond::strip_hop_by_hop(request.headers_mut());
    // The other node knows by the connection who asks.
    request.headers_mut().remove(header::AUTHORIZATION);
    let forwarded = cluster.forward(node, request, timeout + SLACK).await;
    let forwarded = match forwarded {
        Ok(forwarded) => forwarded,
        Err(error) => {
            if let Some(group) = group
                && error.nothing_sent()
                && has_another_home(cluster, group, node).await
            {
                return Ok(Answered::Elsewhere);
            }
            return Err(lost(&error));
        }
    };
    if let Some(group) = group
        && let Some((node, epoch)) = forwarded.moved
    {
        cluster.directory().learn(group, Home { node, epoch });
        return Ok(Answered::Elsewhere);
    }
    if forwarded.response.status() == http::StatusCode::SERVICE_UNAVAILABLE
        && let Ok(problem) = serde_json::from_slice::<Problem>(forwarded.response.body())
    {
        match (problem.code, group) {
            (Code::NoRoom, _) if head.headers.contains_key(&OFFLOADED) => {
                return Ok(Answered::NoRoom);
            }
            (Code::SessionMoved, Some(group)) => {
                cluster.directory().unlearn(group);
                return Ok(Answered::Elsewhere);
            }
            _ => {}
        }
    }
    let mut response = forwarded.response.map(|body| Either::Left(Full::new(body)));
    let chosen = response.headers_mut().remove(&transition::CHOSEN);
    if let (Some(group), Some(chosen)) = (group, chosen)
        && let Some(model) = chosen.to_str().ok().and_then(ExecutionModel::parse)
    {
        core.models.learn(group, model);
    }
    Ok(Answered::Response(response))
}

/// Has another node's own API answer, which does not pass the request on again.
///
/// # Errors
/// When it cannot be asked; what it answers may be a problem as well.
pub(crate) async fn relay(
    cluster: &Cluster,
    node: &NodeName,
    method: &str,
    path: &str,
    body: Bytes,
    deadline: Duration,
) -> Result<Response<Bytes>, Problem> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(RELAYED, "1")
        .body(body)
        .map_err(|error| Problem::new(Code::BadRequest, error.to_string()))?;
    let answered = cluster.forward(node, request, deadline).await;
    Ok(answered.map_err(|error| lost(&error))?.response)
}

/// The same for what is answered if all is well.
///
/// # Errors
/// When it cannot be asked, or answers with a problem.
pub(crate) async fn ask(
    cluster: &Cluster,
    node: &NodeName,
    method: &str,
    path: &str,
    body: Bytes,
    deadline: Duration,
) -> Result<Bytes, Problem> {
    let answer = relay(cluster, node, method, path, body, deadline).await?;
    if answer.status().is_success() {
        return Ok(answer.into_body());
    }
    let problem = serde_json::from_slice(answer.body());
    Err(problem.unwrap_or_else(|error| Problem::new(Code::Internal, error.to_string())))
}

/// What all other nodes answer, those included that do not run at this moment.
///
/// # Errors
/// When one of them does not.
pub(crate) async fn ask_all_others(
    cluster: &Cluster,
    path: &str,
    deadline: Duration,
) -> Result<Vec<serde_json::Value>, Problem> {
    let members = cluster.view().members().into_iter();
    let others = members.filter(|member| member.name != *cluster.name());
    let asked = others.map(|member| async move {
        let answer = ask(cluster, &member.name, "GET", path, Bytes::new(), deadline).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))
    });
    futures_util::future::try_join_all(asked).await
}

/// That what was to be lent is not there; where it is is in the directory's cache then, if the node knew.
pub(crate) fn elsewhere(cluster: &Cluster, group: &Group, not_here: NotHere) -> Problem {
    match not_here {
        NotHere::Failed(problem) => problem,
        NotHere::Moved(to) => {
            match to {
                Some((node, epoch)) => {
                    cluster.directory().learn(group, Home { node, epoch });
                }
                None => cluster.directory().unlearn(group),
            }
            Problem::new(Code::SessionMoved, format!("{group} is elsewhere"))
        }
    }
}

/// Whether the directory knows another home than the one that cannot be reached.
async fn has_another_home(cluster: &Cluster, group: &Group, unreachable: &NodeName) -> bool {
    match cluster.directory().find(group, None).await {
        Ok(Some(home)) if home.node != *unreachable => {
            cluster.directory().learn(group, home);
            true
        }
        Ok(None) => {
            cluster.directory().unlearn(group);
            true
        }
        _ => false,
    }
}

/// What a client is told when another node does not answer, and nothing was to happen there.
pub(crate) fn lost_before(error: &PeerError) -> Problem {
    Problem::new(Code::HomeUnreachable, error.to_string())
}

/// What a client is told when another node does not answer.
pub(crate) fn lost(error: &PeerError) -> Problem {
    let code = match error {
        PeerError::Unknown(_) | PeerError::Unreachable { .. } => Code::HomeUnreachable,
        PeerError::Lost { .. } => Code::OutcomeUnknown,
        PeerError::Refused { .. } => Code::Internal,
    };
    Problem::new(code, error.to_string())
}

/// The name of a node that this one is not, and the others.
pub(crate) fn other(core: &Core, node: Option<NodeName>) -> Option<(Arc<Cluster>, NodeName)> {
    let cluster = core.cluster.clone()?;
    let node = node.filter(|node| node != cluster.name())?;
    Some((cluster, node))
}
