//! The node's own API: what an operator and the command line use. Everything but `/fn/...`.

mod dead_letters;
mod decisions;
mod elsewhere;
mod external;
mod functions;
mod health;
mod logs;
mod namespaces;
mod nodes;
mod sessions;
mod state;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use fulmar_cluster::Cluster;
use fulmar_model::{Code, FunctionName, NodeName, Problem, SessionName};
use http_body_util::BodyExt;

use crate::core::Core;
use crate::target::decode_segment;
use crate::{broker, respond, route};

/// Longest wait for another node's answer.
const RELAY: Duration = Duration::from_secs(60);
/// Entries of one page if the client names no limit.
const PAGE: usize = 100;
/// Most entries of one page.
const MAX_PAGE: usize = 10_000;

/// A problem as the answer of a handler.
struct Failed(Problem);

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<fulmar_state::StoreError> for Failed {
    fn from(error: fulmar_state::StoreError) -> Self {
        Self(Problem::new(Code::Internal, error.to_string()))
    }
}

impl From<fulmar_state::engine::EngineError> for Failed {
    fn from(error: fulmar_state::engine::EngineError) -> Self {
        Self(Problem::new(Code::Internal, error.to_string()))
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response<Body> {
        respond::problem(&self.0).map(Body::new)
    }
}

type Answer = Result<Response<Body>, Failed>;

/// The router of everything but invocations.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .merge(health::routes())
        .merge(functions::routes())
        .merge(logs::routes())
        .merge(dead_letters::routes())
        .merge(sessions::routes())
        .merge(state::routes())
        .merge(tokens::routes())
        .merge(namespaces::routes())
        .merge(nodes::routes())
        .merge(decisions::routes())
        .fallback(fallback)
        .layer(from_fn_with_state(core.clone(), elsewhere::at_home))
        .with_state(core)
}

/// Paths with names that may hold encoded slashes are taken apart here rather than by the router.
async fn fallback(State(core): State<Arc<Core>>, request: Request) -> Response<Body> {
    let path = request.uri().path();
    if path.starts_with("/invocations/") && request.method() == "GET" {
        return match broker::invocation_status(&core, path, request.headers()).await {
            Ok(response) => response.map(Body::new),
            Err(problem) => Failed(problem).into_response(),
        };
    }
    Failed(Problem::new(
        Code::NotFound,
        format!("there is nothing at {path}"),
    ))
    .into_response()
}

fn json(value: &serde_json::Value) -> Response<Body> {
    respond::bytes(StatusCode::OK, "application/json", value.to_string()).map(Body::new)
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn bad_request(detail: impl Into<String>) -> Failed {
    Failed(Problem::new(Code::BadRequest, detail))
}

/// The path below a prefix, as decoded segments. (The router would decode the slash within a name.)
fn segments(uri: &Uri, prefix: &str) -> Result<Vec<String>, Failed> {
    let rest = uri.path().strip_prefix(prefix).unwrap_or_default();
    rest.split('/')
        .map(|segment| decode_segment(segment).map(String::from))
        .collect::<Option<_>>()
        .ok_or_else(|| bad_request("the path is not percent-encoded UTF-8"))
}

fn function_name(text: &str) -> Result<FunctionName, Failed> {
    FunctionName::new(text).map_err(|error| bad_request(error.to_string()))
}

fn session_name(text: &str) -> Result<SessionName, Failed> {
    SessionName::new(text)
        .map_err(|error| Failed(Problem::new(Code::SessionNameInvalid, error.to_string())))
}

/// Has another node answer, which does not pass it on again.
async fn relay(
    cluster: &Cluster,
    node: &NodeName,
    method: &str,
    path: &str,
    body: bytes::Bytes,
) -> Answer {
    let answer = route::relay(cluster, node, method, path, body, RELAY).await?;
    Ok(answer.map(Body::from))
}

fn page(limit: Option<usize>) -> usize {
    limit.unwrap_or(PAGE).clamp(1, MAX_PAGE)
}

async fn read(body: Body, max: usize) -> Result<bytes::Bytes, Failed> {
    match http_body_util::Limited::new(body, max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Failed(Problem::new(
            Code::BodyTooLarge,
            format!("at most {max} bytes are allowed here"),
        ))),
        Err(error) => Err(bad_request(format!("the body broke off: {error}"))),
    }
}
