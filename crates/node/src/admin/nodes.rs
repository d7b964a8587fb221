//! The nodes of the cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::routing::{delete, get, post, put};
use fulmar_cluster::links::{Link, Links};
use fulmar_cluster::view::Member;
use fulmar_cluster::{Cluster, Copying};
use fulmar_model::{Code, NodeName, Problem};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failed, bad_request, json, no_content};
use crate::core::Core;
use crate::{drain, route};

/// Longest wait for a node to say hello.
const HELLO: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/admin/nodes", get(list))
        .route("/admin/nodes/{name}", delete(forget))
        .route("/admin/nodes/{name}/drain", post(drain_node))
        .route("/admin/links", get(links))
        .route("/admin/links/{name}", put(link))
}

pub(super) fn cluster(core: &Core) -> Result<&Arc<Cluster>, Failed> {
    core.cluster.as_ref().ok_or_else(|| {
        Failed(Problem::new(
            Code::NotClustered,
            "there are no other nodes to speak of",
        ))
    })
}

/// All nodes, and how each is reached from this one.
async fn list(State(core): State<Arc<Core>>) -> Answer {
    let cluster = cluster(&core)?;
    let members = cluster.view().members().into_iter();
    let described = members.map(|member| describe(&core, cluster, member));
    let nodes = futures_util::future::join_all(described).await;
    Ok(json(&json!({ "nodes": nodes })))
}

async fn describe(core: &Core, cluster: &Cluster, member: Member) -> Value {
    let is_own = member.name == *cluster.name();
    let started = Instant::now();
    let hello = match is_own {
        true => Ok(Copying::of(&core.store)),
        false => {
            let hello = cluster.peers().hello(&member.name, HELLO).await;
            hello.map(|hello| hello.copying)
        }
    };
    let round_trip = (!is_own && hello.is_ok()).then(|| started.elapsed().as_secs_f64());
    let copying = hello.as_ref().ok().cloned().flatten();
    let copying = copying.map(|copying| {
        json!({
            "open": copying.is_open,
            "behind_seconds": copying.behind.as_secs_f64(),
            "fault": copying.fault,
        })
    });
    let takeover = cluster.takeover_of(&member.name);
    let takeover =
        takeover.filter(|record| cluster.log_of(&member.name).as_ref() == Some(&record.log));
    json!({
        "name": member.name,
        "site": member.info.site,
        "zone": member.info.zone,
        "live": member.live,
        "own": is_own,
        "reached": hello.is_ok(),
        "error": hello.err().map(|error| error.to_string()),
        "round_trip_seconds": round_trip,
        "peer": member.info.peer,
        "http": member.info.http,
        "version": member.info.version,
        "speed_up": member.info.speed_up_thousandths as f64 / 1000.0,
        "directory_shards": cluster.view().shards_of(&member.name),
        "behind_seconds": copying.as_ref().map(|copying| copying["behind_seconds"].clone()),
        "copying": copying,
        "taken_over_by": takeover.map(|record| record.by),
    })
}

/// Removes a node that is gone for good, so that another may take its name.
async fn forget(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Answer {
    let cluster = cluster(&core)?;
    let name = NodeName::new(&name).map_err(|error| bad_request(error.to_string()))?;
    let members = cluster.view().members();
    let Some(member) = members.into_iter().find(|member| member.name == name) else {
        let detail = format!("no node is called {name}");
        return Err(Failed(Problem::new(Code::NodeNotFound, detail)));
    };
    let shards = cluster.view().shards_of(&name);
    if member.live || shards > 0 {
        let detail = match member.live {
            true => format!("{name} is running"),
            false => format!("{name} keeps {shards} shards of its site's directory"),
        };
        return Err(Failed(Problem::new(Code::NodeInUse, detail)));
    }
    let removed = cluster.forget(&name).await;
    removed.map_err(|error| Problem::new(Code::RegistryUnreachable, error.to_string()))?;
    Ok(no_content())
}

/// Largest description of a link in bytes.
const MAX_LINK_BYTES: usize = 4 << 10;

fn emulated(core: &Core) -> Result<&Arc<Links>, Failed> {
    cluster(core)?.peers().links().ok_or_else(|| {
        bad_request(
            "links are not emulated here; start the node with emulate_links = true for that",
        )
    })
}

/// The emulated links of this node, with what has gone over them.
async fn links(State(core): State<Arc<Core>>) -> Answer {
    let links = emulated(&core)?.all();
    Ok(json(&json!({ "links": links })))
}

/// Changes the emulated link from this node to another, or to the external store.
async fn link(State(core): State<Arc<Core>>, Path(name): Path<String>, body: Body) -> Answer {
    let links = emulated(&core)?;
    let name = NodeName::new(&name).map_err(|error| bad_request(error.to_string()))?;
    let body = super::read(body, MAX_LINK_BYTES).await?;
    let link: Link = serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the link is not as expected: {error}")))?;
    link.check().map_err(bad_request)?;
    links.set(&name, link);
    Ok(json(&json!(link)))
}

/// Largest request to move sessions in bytes, and sessions that it moves before it answers.
const MAX_DRAIN_BYTES: usize = 4 << 10;
const MAX_DRAINED: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    to: String,
    function: Option<String>,
}

/// Moves sessions that are at home on a node to another; asked of any node.
async fn drain_node(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let cluster = cluster(&core)?;
    let body = super::read(body, MAX_DRAIN_BYTES).await?;
    let wanted: Drain = serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the request is not as expected: {error}")))?;
    let node = |name: &str| NodeName::new(name).map_err(|error| bad_request(error.to_string()));
    let (from, to) = (node(&name)?, node(&wanted.to)?);
    for node in [&from, &to] {
        if cluster.view().member(node).is_none() {
            let detail = format!("no node is called {node}");
            return Err(Failed(Problem::new(Code::NodeNotFound, detail)));
        }
    }
    if from == to {
        return Err(bad_request(format!("{from} cannot be drained to itself")));
    }
    if from != *cluster.name() {
        if headers.contains_key(&route::RELAYED) {
            return Err(bad_request(format!("this is not {from}")));
        }
        let path = format!("/admin/nodes/{from}/drain");
        return super::relay(cluster, &from, "POST", &path, body).await;
    }
    let function = wanted.function.as_deref().map(super::function_name);
    let function = function.transpose()?;
    let drained = drain::drain(&core, cluster, &to, function.as_ref(), MAX_DRAINED).await?;
    let told = drained.told.iter().map(|(group, problem)| {
        json!({ "function": group.function, "session": group.session, "problem": problem })
    });
    Ok(json(&json!({
        "moved": drained.moved,
        "failed": drained.failed,
        "failures": told.collect::<Vec<_>>(),
        "more": drained.more,
        "seconds": drained.took.as_secs_f64(),
    })))
}
