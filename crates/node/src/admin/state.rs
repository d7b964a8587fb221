//! Buckets and keys: read, written, listed.

mod lines;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{any, get, post};
use fulmar_model::id::{DEFAULT_NAMESPACE, bucket_within, check_namespace, split_bucket};
use fulmar_model::{Bucket, Code, FunctionName, Group, Problem};
use fulmar_state::{Bookkeeping, KeyRange, MAX_VALUE_BYTES, StateError, Table, key};
use serde::Deserialize;
use serde_json::json;

use super::{
    Answer, Failed, bad_request, function_name, json, no_content, page, segments, session_name,
};
use crate::carry;
use crate::core::Core;
use crate::hold::Hold;
use crate::{keys, respond, route};

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/admin/state/shared", get(buckets))
        .route("/admin/state/{*path}", any(keys))
        .merge(lines::routes())
        .route("/admin/state-keys/rotate", post(rotate_keys))
}

/// Seals the state that clients carry with a new key from now on.
async fn rotate_keys(State(core): State<Arc<Core>>) -> Answer {
    let number = carry::rotate(&core).await?;
    Ok(json(&json!({ "key": number })))
}

pub(super) fn problem(error: StateError) -> Failed {
    let code = match &error {
        StateError::InvalidName(_) => Code::KeyInvalid,
        StateError::TooLarge { .. } => Code::BodyTooLarge,
        StateError::NoSession | StateError::ReadOnly | StateError::WrongType(_) => Code::BadRequest,
        StateError::Unreachable(problem) => return Failed(problem.clone()),
        StateError::Storage(_) => Code::Internal,
    };
    Failed(Problem::new(code, error.to_string()))
}

/// Where keys are: a shared bucket, by its name among those of all namespaces, or a session.
enum Scope {
    Shared(String),
    Session(Group),
}

impl Scope {
    /// From path segments; gives back what is behind the scope.
    fn parse(segments: &[String]) -> Result<(Self, &[String]), Failed> {
        match segments {
            [kind, bucket, rest @ ..] if kind == "shared" => {
                Ok((Self::shared(DEFAULT_NAMESPACE, bucket)?, rest))
            }
            [kind, namespace, bucket, rest @ ..] if kind == "namespace" => {
                Ok((Self::shared(namespace, bucket)?, rest))
            }
            [kind, function, session, rest @ ..] if kind == "session" => {
                let group = Group {
                    function: function_name(function)?,
                    session: session_name(session)?,
                };
                Ok((Self::Session(group), rest))
            }
            _ => Err(bad_request(
                "the scope has to be shared/BUCKET, namespace/NAMESPACE/BUCKET or session/FUNCTION/SESSION, each percent-encoded",
            )),
        }
    }

    fn shared(namespace: &str, bucket: &str) -> Result<Self, Failed> {
        check_namespace(namespace).map_err(|error| bad_request(error.to_string()))?;
        match Bucket::new(bucket) {
            Ok(Bucket::Shared(_)) => {
                Ok(Self::Shared(bucket_within(namespace, bucket).into_owned()))
            }
            Ok(Bucket::Session) => Err(bad_request(
                "the bucket `session` is private to each session: use session/FUNCTION/SESSION",
            )),
            Err(error) => Err(Failed(Problem::new(Code::KeyInvalid, error.to_string()))),
        }
    }

    async fn hold(&self, core: &Arc<Core>) -> Result<Hold, Problem> {
        match self {
            Self::Shared(_) => Ok(Hold::shared(core)),
            Self::Session(group) => Hold::session(core, group).await,
        }
    }

    fn bucket(&self) -> Bucket<'_> {
        match self {
            Self::Shared(name) => Bucket::Shared(name),
            Self::Session(_) => Bucket::Session,
        }
    }
}

async fn buckets(State(core): State<Arc<Core>>, headers: HeaderMap) -> Answer {
    let mut namespaces: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // Skips from bucket to bucket: their keys are not looked at.
    let mut after: Option<Vec<u8>> = None;
    loop {
        let mut found = None;
        core.store
            .scan(Table::Shared, &[], after.as_deref(), &mut |path, _| {
                found = path.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
                false
            })?;
        let Some(bucket) = found else { break };
        let name = String::from_utf8_lossy(&bucket);
        let (namespace, name) = split_bucket(&name);
        let buckets = namespaces.entry(namespace.to_owned()).or_default();
        buckets.push(name.to_owned());
        // The separator plus one: greater than every key of the bucket.
        after = Some([&bucket[..], b"\x01"].concat());
    }
    if let Some(cluster) = &core.cluster {
        namespaces = placed_buckets(&core).await?;
        if !headers.contains_key(&route::RELAYED) {
            for answer in
                route::ask_all_others(cluster, "/admin/state/shared", super::RELAY).await?
            {
                let other: Buckets = serde_json::from_value(answer).unwrap_or_default();
                let of_default = (DEFAULT_NAMESPACE.to_owned(), other.buckets);
                for (namespace, buckets) in other.namespaces.into_iter().chain([of_default]) {
                    let known = namespaces.entry(namespace).or_default();
                    known.extend(buckets);
                    known.sort_unstable();
                    known.dedup();
                }
            }
        }
    }
    let buckets = namespaces.remove(DEFAULT_NAMESPACE).unwrap_or_default();
    Ok(json(
        &json!({ "buckets": buckets, "namespaces": namespaces }),
    ))
}

/// Shared buckets, as a node lists them.
#[derive(Default, Deserialize)]
struct Buckets {
    buckets: Vec<String>,
    namespaces: BTreeMap<String, Vec<String>>,
}

/// The shared buckets of which keys are stored here, among other nodes.
async fn placed_buckets(core: &Core) -> Result<BTreeMap<String, Vec<String>>, Failed> {
    core.durable(core.store.commits().submitted()).await?;
    let mut namespaces: BTreeMap<String, Vec<String>> = BTreeMap::new();
    core.store.scan(Table::State, &[], None, &mut |path, _| {
        let found = key::parse_session(path).and_then(|(function, rest)| {
            let function = FunctionName::new(function).ok()?;
            let (session, _) = rest.split_once('\0')?;
            function
                .is_shared_keys()
                .then(|| keys::parse(&function, session))?
        });
        if let Some((bucket, _)) = found {
            let (namespace, bucket) = split_bucket(&bucket);
            let buckets = namespaces.entry(namespace.to_owned()).or_default();
            if buckets.last().is_none_or(|last| last != bucket) {
                buckets.push(bucket.to_owned());
            }
        }
        true
    })?;
    Ok(namespaces)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    prefix: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

async fn keys(State(core): State<Arc<Core>>, request: Request) -> Answer {
    let segments = segments(request.uri(), "/admin/state/")?;
    let (scope, rest) = Scope::parse(&segments)?;
    let method = request.method().clone();
    match rest {
        [keys] if keys == "keys" && method == "GET" => {
            let Query(options) = Query::<Listing>::try_from_uri(request.uri())
                .map_err(|error| bad_request(error.to_string()))?;
            let limit = page(options.limit);
            let prefix = options.prefix.unwrap_or_default();
            if let (Scope::Shared(bucket), Some(_)) = (&scope, &core.cluster) {
                let after = options.after.as_deref();
                let range = KeyRange {
                    bucket,
                    prefix: &prefix,
                    after: after.filter(|after| !after.is_empty()),
                    limit,
                };
                let keys = match request.headers().contains_key(&route::RELAYED) {
                    true => keys::list_here(&core, range).await?,
                    false => keys::list(&core, range).await?,
                };
                let next = keys.last().filter(|_| keys.len() == limit);
                return Ok(json(&json!({ "keys": keys, "next": next })));
            }
            let hold = scope.hold(&core).await?;
            let listed =
                hold.begin()
                    .list_keys(scope.bucket(), &prefix, options.after.as_deref(), limit);
            let keys = listed.map_err(problem)?;
            let next = keys.last().filter(|_| keys.len() == limit);
            Ok(json(&json!({ "keys": keys, "next": next })))
        }
        [kind, key] if kind == "key" => {
            let hold = scope.hold(&core).await?;
            let mut tx = hold.begin();
            match method.as_str() {
                "GET" => {
                    if let Scope::Shared(bucket) = &scope
                        && let Some(placed) = tx.lacks(scope.bucket(), key)
                    {
                        let found = placed.read(bucket, key).await.map_err(problem)?;
                        tx.fetched(bucket, key, found, Duration::ZERO);
                    }
                    match tx.get(scope.bucket(), key).map_err(problem)? {
                        Some(value) => {
                            hold.settled().await?;
                            Ok(
                                respond::bytes(StatusCode::OK, "application/octet-stream", value)
                                    .map(Body::new),
                            )
                        }
                        None => Err(Failed(Problem::new(
                            Code::KeyNotFound,
                            format!("there is no key {key:?}"),
                        ))),
                    }
                }
                "PUT" => {
                    let value = super::read(request.into_body(), MAX_VALUE_BYTES).await?;
                    tx.set(scope.bucket(), key, value).map_err(problem)?;
                    hold.commit(tx, Bookkeeping::default()).await?;
                    Ok(no_content())
                }
                "DELETE" => {
                    tx.delete(scope.bucket(), key).map_err(problem)?;
                    hold.commit(tx, Bookkeeping::default()).await?;
                    Ok(no_content())
                }
                other => Err(Failed(Problem::new(
                    Code::MethodNotAllowed,
                    format!("{other} is not allowed here; GET, PUT and DELETE are"),
                ))),
            }
        }
        _ => Err(bad_request("the path has to go on with /keys or /key/KEY")),
    }
}
