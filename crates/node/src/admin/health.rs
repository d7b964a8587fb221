//! `/healthz`, `/readyz`, `/metrics`, `/admin/node`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::routing::get;
use fulmar_model::{Code, Problem};
use fulmar_state::{changelog, datadir};
use serde_json::json;

use super::{Answer, Failed};
use crate::core::Core;
use crate::respond;

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/admin/node", get(node))
}

/// The process lives.
async fn healthy() -> Response<Body> {
    super::json(&json!({ "status": "ok" }))
}

/// The node takes invocations; if not, why.
async fn ready(State(core): State<Arc<Core>>) -> Answer {
    if core.stopping.is_cancelled() {
        return Err(Failed(Problem::new(Code::ShuttingDown, "the node stops")));
    }
    core.refuses_writes().map_or_else(
        || Ok(super::json(&json!({ "status": "ready" }))),
        |problem| Err(Failed(problem)),
    )
}

async fn metrics(State(core): State<Arc<Core>>) -> Answer {
    let text = core
        .metrics
        .render()
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(respond::bytes(StatusCode::OK, "text/plain; version=0.0.4", text).map(Body::new))
}

async fn node(State(core): State<Arc<Core>>) -> Response<Body> {
    let mut answer = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "data": core.data_path,
        "format": datadir::FORMAT,
        "uptime_seconds": core.started.elapsed().as_secs_f64(),
        "functions": core.functions.all().len(),
        "invocations": core.admission.invocations(),
        "workers_idle": core.pool.len(),
        "allocation": core.runtime.allocation(),
        "epoch": core.store.epoch().0,
        "commit": core.store.commits().durable().0,
        "storage": core.refuses_writes().map_or("ok", |problem| problem.code.as_str()),
    });
    if let Some(changelog) = core.store.changelog() {
        let standing = changelog.standing();
        answer["changelog"] = json!({
            "stream": standing.stream,
            "prefix": core.cluster.as_ref().map(|cluster| {
                changelog::prefix(&cluster.info().instance, standing.stream)
            }),
            "open": standing.open,
            "taken_over_by": standing.fenced_by,
            "behind_seconds": standing.behind.as_secs_f64(),
            "behind_commits": core.store.commits().applied().0.saturating_sub(standing.shipped.0),
            "object_store": standing.trouble.as_deref().unwrap_or("ok"),
        });
    }
    if let Some(cluster) = &core.cluster {
        let standing = cluster.standing();
        let (provisional, contested) = cluster.directory().provisional();
        let contested = contested.iter().map(|(group, site)| {
            json!({ "function": group.function, "session": group.session, "site": site })
        });
        answer["cluster"] = json!({
            "name": cluster.name(),
            "site": cluster.info().site,
            "zone": cluster.info().zone,
            "peer": cluster.info().peer,
            "speed_up": cluster.info().speed_up_thousandths as f64 / 1000.0,
            "registry": if standing.registry { "followed" } else { "not reached" },
            "lease": if standing.lease { "alive" } else { "run out" },
            "fault": standing.fault,
            "directory_shards": cluster.view().shards_of(cluster.name()),
            "directory_records": cluster.directory().records(),
            "sessions_not_introduced": provisional,
            "sessions_contested": contested.collect::<Vec<_>>(),
        });
    }
    super::json(&answer)
}
