//! What the node has decided about sessions, and from what.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Uri};
use axum::routing::get;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failed, json};
use crate::core::Core;
use crate::{route, usages};

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/admin/decisions", get(list))
        .route(usages::PATH, get(accesses))
}

/// Which shared keys functions use on this node that are promised short accesses, for whoever places keys.
async fn accesses(State(core): State<Arc<Core>>) -> Answer {
    let usages = core
        .cluster
        .as_ref()
        .map(|cluster| usages::own(&core, cluster));
    Ok::<_, Failed>(json(&json!(usages.unwrap_or_default())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    function: String,
    session: Option<String>,
}

/// The last decisions of all nodes that can be reached, the oldest first.
async fn list(
    State(core): State<Arc<Core>>,
    Query(about): Query<About>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let own = core
        .decisions
        .about(&about.function, about.session.as_deref());
    let mut decisions: Vec<Value> = own.into_iter().map(|decision| json!(decision)).collect();
    if let (Some(cluster), false) = (&core.cluster, headers.contains_key(&route::RELAYED)) {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let asked = cluster.others().into_iter().map(|node| async move {
            let nothing = axum::body::Bytes::new();
            let answer = super::relay(cluster, &node, "GET", path, nothing)
                .await
                .ok()?;
            let body = answer.into_body().collect().await.ok()?.to_bytes();
            let mut answer: Value = serde_json::from_slice(&body).ok()?;
            Some(answer["decisions"].as_array_mut()?.split_off(0))
        });
        // What a node that is not reached has decided is not told.
        let others = futures_util::future::join_all(asked).await;
        decisions.extend(others.into_iter().flatten().flatten());
    }
    decisions.sort_by(|one, other| one["at"].as_str().cmp(&other["at"].as_str()));
    Ok::<_, Failed>(json(&json!({ "decisions": decisions })))
}
