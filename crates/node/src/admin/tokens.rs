//! Tokens: made, listed, revoked.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Response;
use axum::routing::{delete, get};
use fulmar_model::{Code, Problem};
use fulmar_state::record::TokenRecord;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failed, bad_request, json, no_content};
use crate::access::{self, Access};
use crate::clock;
use crate::core::Core;

/// Largest request in bytes, longest label, most patterns.
const MAX_REQUEST_BYTES: usize = 64 << 10;
const MAX_LABEL_BYTES: usize = 200;
const MAX_PATTERNS: usize = 100;

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/admin/tokens", get(list).post(create))
        .route("/admin/tokens/{id}", delete(revoke))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    scopes: Vec<Scope>,
    #[serde(default)]
    functions: Vec<String>,
    #[serde(default)]
    label: String,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Scope {
    Invoke,
    Deploy,
    Admin,
}

async fn create(State(core): State<Arc<Core>>, body: Body) -> Answer {
    let body = super::read(body, MAX_REQUEST_BYTES).await?;
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the token is not as expected: {error}")))?;
    if wanted.scopes.is_empty() {
        return Err(bad_request(
            "a token needs at least one scope: invoke, deploy or admin",
        ));
    }
    if wanted.label.len() > MAX_LABEL_BYTES || wanted.functions.len() > MAX_PATTERNS {
        return Err(bad_request(format!(
            "a label has at most {MAX_LABEL_BYTES} bytes, and a token at most {MAX_PATTERNS} patterns"
        )));
    }
    for pattern in &wanted.functions {
        if !access::is_pattern(pattern) {
            return Err(bad_request(format!(
                "{pattern:?} is no pattern: a function's name, or the beginning of one and a *; a namespace in front stays whole, as in shop.*"
            )));
        }
    }
    let has = |scope: Scope| wanted.scopes.contains(&scope);
    let record = TokenRecord {
        secret_sha256: [0; 32],
        may_invoke: has(Scope::Invoke),
        may_deploy: has(Scope::Deploy),
        may_admin: has(Scope::Admin),
        label: wanted.label,
        functions: wanted.functions,
        created_unix_ms: 0,
    };
    let (id, token) = Access::create(&core, record).await?;
    Ok(json(&json!({ "id": id, "token": token })))
}

fn summary(id: &str, token: &TokenRecord) -> Value {
    let scopes = [
        ("invoke", token.may_invoke),
        ("deploy", token.may_deploy),
        ("admin", token.may_admin),
    ];
    let scopes: Vec<&str> = scopes
        .iter()
        .filter(|(_, may)| *may)
        .map(|(scope, _)| *scope)
        .collect();
    json!({
        "id": id,
        "label": token.label,
        "scopes": scopes,
        "functions": token.functions,
        "created_at": clock::rfc3339(token.created_unix_ms),
    })
}

async fn list(State(core): State<Arc<Core>>) -> Response<Body> {
    let tokens = core.access.all();
    let tokens: Vec<Value> = tokens
        .iter()
        .map(|(id, token)| summary(id, token))
        .collect();
    json(&json!({ "tokens": tokens }))
}

async fn revoke(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Answer {
    match Access::revoke(&core, &id).await? {
        true => Ok(no_content()),
        false => Err(Failed(Problem::new(
            Code::NotFound,
            format!("there is no token {id}"),
        ))),
    }
}
