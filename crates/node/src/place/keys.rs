//! Which shared keys the functions use that are promised short accesses, on all nodes: what their Data Proxies have counted,
//! put together for whoever places keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_cluster::Cluster;
use fulmar_model::{FunctionName, Group, NodeName};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::is_placed;
use crate::core::Core;
use crate::{homes, keys, route};

/// Path of [`own`] in a node's own API.
pub(crate) const PATH: &str = "/admin/accesses";
/// Longest wait for a node's answer: without it its accesses do not count this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// It is told so often that a key stays.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What a function's invocations do on a node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(super) function: FunctionName,
    pub(super) invocations_per_second: f64,
    pub(super) keys: Vec<Use>,
}

/// How they use a shared key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Use {
    /// By its name among those of all namespaces.
    bucket: String,
    key: String,
    /// That an invocation uses it.
    pub(super) probability: f64,
    /// How large it is.
    pub(super) bytes: f64,
    /// Where it is at home, as far as the node knows.
    pub(super) home: Option<NodeName>,
}

impl Use {
    pub(super) fn group(&self) -> Option<Group> {
        keys::group(&self.bucket, &self.key).ok()
    }
}

/// Shared keys at home here that are placed.
#[derive(Default)]
pub(crate) struct Placed {
    /// When it was told last that one stays.
    told: Mutex<HashMap<Group, Instant>>,
    /// Whether another node has read any since the last look.
    is_read_elsewhere: AtomicBool,
}

impl Placed {
    /// Whether a key is placed here, so that nobody else moves it.
    pub(crate) fn has(&self, group: &Group) -> bool {
        self.told.lock().contains_key(group)
    }

    /// Another node has read a key that is at home here.
    pub(crate) fn read_elsewhere(&self) {
        self.is_read_elsewhere.store(true, Ordering::Relaxed);
    }

    /// From now on these are; whether it is to be told of each that it stays.
    pub(super) fn set<'a>(&self, groups: impl Iterator<Item = &'a Group>) -> Vec<bool> {
        let (mut placed, now) = (HashMap::new(), Instant::now());
        let mut before = self.told.lock();
        let told = groups.map(|group| {
            let last = before.remove(group);
            let is_to_be_told = last.is_none_or(|last| now - last >= TOLD_EVERY);
            let told = last.filter(|_| !is_to_be_told).unwrap_or(now);
            placed.insert(group.clone(), told);
            is_to_be_told
        });
        let told = told.collect();
        *before = placed;
        told
    }
}

/// What was counted on this node.
pub(crate) fn own(core: &Core, cluster: &Cluster) -> Vec<Usage> {
    let now = core.started.elapsed().as_secs_f64();
    let functions = core.functions.all().into_iter();
    let promised = functions.filter(|function| is_placed(cluster, &function.current().manifest));
    let usages = promised.map(|function| Usage {
        function: function.name.clone(),
        invocations_per_second: function.accesses.per_second(now),
        keys: (function.accesses.all().into_iter())
            .filter_map(|access| {
                let (bucket, key) = keys::parse(&access.key.function, access.key.session.as_str())?;
                Some(Use {
                    bucket,
                    key,
                    probability: access.probability,
                    bytes: access.bytes,
                    home: home(core, cluster, &access.key),
                })
            })
            .collect(),
    });
    usages.filter(|usage| !usage.keys.is_empty()).collect()
}

fn home(core: &Core, cluster: &Cluster, group: &Group) -> Option<NodeName> {
    match homes::is_surely_here(core, group) {
        Ok(true) => Some(cluster.name().clone()),
        _ => Some(cluster.directory().cached(group)?.node),
    }
}

/// What was counted on all nodes, if any of them has used keys since the last time that are at home here.
pub(super) async fn all(core: &Arc<Core>, cluster: &Arc<Cluster>) -> Vec<(NodeName, Vec<Usage>)> {
    let placed = &core.placed_keys;
    if !placed.is_read_elsewhere.swap(false, Ordering::Relaxed) {
        return Vec::new();
    }
    let asked = cluster.others().into_iter().map(|node| async move {
        let answer = route::ask(cluster, &node, "GET", PATH, Bytes::new(), PATIENCE).await;
        let usages = serde_json::from_slice(&answer.ok()?).ok()?;
        Some((node, usages))
    });
    let others = futures_util::future::join_all(asked).await;
    let own = (cluster.name().clone(), own(core, cluster));
    others.into_iter().flatten().chain([own]).collect()
}
