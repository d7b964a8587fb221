//! Deploying functions: artefacts by digest, then the manifest that names one.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::{get, put};
use fulmar_model::id::split_bucket;
use fulmar_model::{Code, Manifest, Problem};
use fulmar_state::aside;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failed, bad_request, json, no_content};
use crate::accesses::Access;
use crate::artifacts::is_digest;
use crate::core::Core;
use crate::functions::Function;
use crate::{access, clock, deploy, keys};

/// Largest component in bytes: a Python interpreter with its library is about 40 MiB.
const MAX_ARTIFACT_BYTES: usize = 256 << 20;
/// Largest deployment request in bytes: a manifest.
const MAX_DEPLOY_BYTES: usize = 1 << 20;

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/admin/artifacts/{digest}", put(upload).head(exists))
        .route("/admin/functions/{name}/kept", get(kept))
        .route("/admin/functions", get(list))
        .route(
            "/admin/functions/{name}",
            get(show).put(put_function).delete(remove),
        )
}

async fn exists(State(core): State<Arc<Core>>, Path(digest): Path<String>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    if !core.artifacts.has(&digest) {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}

async fn upload(State(core): State<Arc<Core>>, Path(digest): Path<String>, body: Body) -> Answer {
    if !is_digest(&digest) {
        return Err(bad_request(
            "the artefact's path has to end in its SHA-256 digest, 64 lower-case hexadecimal digits",
        ));
    }
    let wasm = super::read(body, MAX_ARTIFACT_BYTES).await?;
    let size = wasm.len();
    let name = digest.clone();
    let stored = aside::run(move || core.artifacts.store(&core.runtime, &name, &wasm)).await;
    stored.map_err(|error| {
        Problem::new(Code::Internal, format!("compiling the artefact: {error}"))
    })??;
    Ok(json(&json!({ "artifact": digest, "bytes": size })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deployment {
    manifest: String,
    artifact: String,
}

async fn put_function(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    body: Body,
) -> Answer {
    let body = super::read(body, MAX_DEPLOY_BYTES).await?;
    let deployment: Deployment = serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the deployment is not as expected: {error}")))?;
    let manifest = Manifest::parse(&deployment.manifest, "fulmar.toml")
        .map_err(|error| Problem::new(Code::ManifestInvalid, error.to_string()))?;
    if manifest.name.as_str() != name {
        let detail = format!(
            "the manifest names the function {}, the path {name}",
            manifest.name
        );
        return Err(bad_request(detail));
    }
    let outcome = deploy::deploy(&core, manifest, &deployment.artifact).await?;
    let current = outcome.function.current();
    let mut answer = json!({
        "name": outcome.function.name,
        "version": current.version,
        "artifact": current.digest,
        "changed": outcome.changed,
    });
    if core.cluster.is_some() {
        let pending = outcome.pending.iter();
        let pending = pending.map(|(node, reason)| json!({ "node": node, "reason": reason }));
        answer["pending"] = pending.collect();
    }
    Ok(json(&answer))
}

fn summary(function: &Function) -> Value {
    let current = function.current();
    let (hot, waiting) = function.sessions.count();
    json!({
        "name": function.name,
        "version": current.version,
        "artifact": current.digest,
        "world": current.world().to_string(),
        "durability": current.manifest.durability,
        "deployed_at": clock::rfc3339(current.deployed_unix_ms),
        "sessions_hot": hot,
        "queued": waiting + function.waiting(),
    })
}

async fn list(State(core): State<Arc<Core>>, headers: HeaderMap) -> Response<Body> {
    let functions: Vec<Value> = core
        .functions
        .all()
        .iter()
        .filter(|function| access::may_see(&headers, function.name.as_str()))
        .map(|function| summary(function))
        .collect();
    json(&json!({ "functions": functions }))
}

async fn show(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Answer {
    let function = find(&core, &name)?;
    let mut shown = summary(&function);
    let current = function.current();
    shown["manifest"] = json!(current.manifest);
    if current.manifest.slo.promises() {
        shown["slo"] = json!(core.metrics.kept(function.name.as_str()));
    }
    if let Some(fleet) = &current.fleet {
        shown["workers"] = fleet.describe(&core.pool);
    }
    let accesses = function.accesses.all();
    if !accesses.is_empty() {
        let mut accesses: Vec<Value> = accesses.iter().filter_map(describe_access).collect();
        let probability = |access: &Value| access["probability"].as_f64().unwrap_or_default();
        accesses.sort_by(|one, other| probability(other).total_cmp(&probability(one)));
        shown["shared_keys"] = accesses.into();
    }
    Ok(json(&shown))
}

/// A shared key that the function uses on this node, with the probability that an invocation does.
fn describe_access(access: &Access) -> Option<Value> {
    let (bucket, key) = keys::parse(&access.key.function, access.key.session.as_str())?;
    let (_, bucket) = split_bucket(&bucket);
    Some(
        json!({ "bucket": bucket, "key": key, "probability": access.probability, "bytes": access.bytes }),
    )
}

/// Whether this node keeps state of the function's sessions.
async fn kept(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Answer {
    let kept = deploy::keeps_sessions(&core, &name).await?;
    Ok(json(&json!({ "kept": kept })))
}

async fn remove(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Answer {
    find(&core, &name)?;
    deploy::remove(&core, &name).await?;
    Ok(no_content())
}

fn find(core: &Core, name: &str) -> Result<Arc<Function>, Failed> {
    core.functions.get(name).ok_or_else(|| {
        Failed(Problem::new(
            Code::FunctionNotFound,
            format!("no function {name:?} is deployed"),
        ))
    })
}
