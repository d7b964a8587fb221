//! Requests about a session that is at home on another node: answered there.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, Response, Uri};
use axum::middleware::Next;
use axum::response::IntoResponse;
use fulmar_model::{Code, Group, NodeName, Problem};

use super::{Failed, function_name, relay, segments, session_name};
use crate::core::Core;
use crate::{homes, route};

/// Largest body that is passed on in bytes: a value of a key.
const MAX_BODY_BYTES: usize = 17 << 20;

/// Answers here, or has the session's home answer.
pub(super) async fn at_home(
    State(core): State<Arc<Core>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let is_relayed = request.headers().contains_key(&route::RELAYED);
    let found = match is_relayed {
        true => Ok(None),
        false => home(&core, request.method().clone(), request.uri().clone()).await,
    };
    match found {
        Ok(None) => next.run(request).await,
        Ok(Some(node)) => pass_on(&core, &node, request)
            .await
            .unwrap_or_else(IntoResponse::into_response),
        Err(failed) => failed.into_response(),
    }
}

/// The other node that is home to the session that a request is about, if it is about one.
async fn home(core: &Core, method: Method, uri: Uri) -> Result<Option<NodeName>, Failed> {
    let Some(cluster) = &core.cluster else {
        return Ok(None);
    };
    let Some(group) = group(&uri)? else {
        return Ok(None);
    };
    if super::external::is_external(core, group.function.as_str())
        || homes::is_surely_here(core, &group)?
    {
        return Ok(None);
    }
    let found = cluster.directory().find(&group, None).await;
    match found.map_err(|error| homes::unknown(&error))? {
        Some(home) if home.node == *cluster.name() => Ok(None),
        Some(home) => Ok(Some(home.node)),
        // Looking at what is not there does not make it.
        None if method != Method::PUT => Err(Failed(Problem::new(
            Code::SessionNotFound,
            format!("no session {group} is known"),
        ))),
        None => Ok(None),
    }
}

/// The session in a request's path.
fn group(uri: &Uri) -> Result<Option<Group>, Failed> {
    for prefix in ["/admin/sessions/", "/admin/state/session/"] {
        if uri.path().starts_with(prefix)
            && let [function, session, ..] = &segments(uri, prefix)?[..]
        {
            return Ok(Some(Group {
                function: function_name(function)?,
                session: session_name(session)?,
            }));
        }
    }
    Ok(None)
}

async fn pass_on(core: &Core, node: &NodeName, request: Request) -> Result<Response<Body>, Failed> {
    let cluster = super::nodes::cluster(core)?;
    let (head, body) = request.into_parts();
    let body = super::read(body, MAX_BODY_BYTES).await?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    relay(cluster, node, head.method.as_str(), path, body).await
}
