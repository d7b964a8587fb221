//! Namespaces: what they may have, and what they have.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Response;
use axum::routing::get;
use fulmar_model::ByteSize;
use fulmar_model::id::check_namespace;
use fulmar_state::record::QuotaRecord;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failed, bad_request, json, no_content};
use crate::core::Core;
use crate::namespaces;

/// Largest request in bytes.
const MAX_REQUEST_BYTES: usize = 4 << 10;

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new().route("/admin/namespaces", get(list)).route(
        "/admin/namespaces/{name}",
        get(show).put(set).delete(remove),
    )
}

/// Quotas as they are asked for: what is left out is not limited.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quota {
    max_functions: Option<u32>,
    max_concurrency: Option<u32>,
    max_rate: Option<u32>,
    max_state: Option<ByteSize>,
}

fn describe(core: &Core, name: &str) -> Value {
    let usage = namespaces::usage(core, name);
    let quota = core.namespaces.quota(name);
    let mut described = json!({
        "name": name,
        "functions": usage.functions,
        "running": usage.running,
        "state_bytes": usage.state_bytes,
    });
    if let Some(quota) = quota {
        described["quota"] = json!({
            "max_functions": quota.max_functions,
            "max_concurrency": quota.max_concurrency,
            "max_rate": quota.max_rate,
            "max_state_bytes": quota.max_state_bytes,
        });
    }
    described
}

/// Those that have functions or quotas.
async fn list(State(core): State<Arc<Core>>) -> Response<Body> {
    let functions = core.functions.all();
    let with_functions = functions.iter().map(|function| function.name.namespace());
    let mut names: BTreeSet<String> = with_functions.map(str::to_owned).collect();
    names.extend(core.namespaces.limited());
    let namespaces: Vec<Value> = names.iter().map(|name| describe(&core, name)).collect();
    json(&json!({ "namespaces": namespaces }))
}

fn checked(name: &str) -> Result<(), Failed> {
    check_namespace(name).map_err(|error| bad_request(error.to_string()))
}

async fn show(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Answer {
    checked(&name)?;
    Ok(json(&describe(&core, &name)))
}

async fn set(State(core): State<Arc<Core>>, Path(name): Path<String>, body: Body) -> Answer {
    checked(&name)?;
    let body = super::read(body, MAX_REQUEST_BYTES).await?;
    let quota: Quota = serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the quotas are not as expected: {error}")))?;
    let quota = QuotaRecord {
        max_functions: quota.max_functions,
        max_concurrency: quota.max_concurrency,
        max_rate: quota.max_rate,
        max_state_bytes: quota.max_state.map(ByteSize::bytes),
    };
    namespaces::set(&core, &name, Some(quota)).await?;
    Ok(json(&describe(&core, &name)))
}

async fn remove(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Answer {
    checked(&name)?;
    namespaces::set(&core, &name, None).await?;
    Ok(no_content())
}
