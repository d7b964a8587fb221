//! Which shared keys the functions with an SLO use, on all nodes, put together: what every node's Data Proxy has counted
//! ([`crate::accesses`]), as it is known to those that decide where invocations run and where keys live. A node that has all
//! invocations of a function run elsewhere counts nothing itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_cluster::Cluster;
use fulmar_model::{FunctionName, Group, NodeName};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::accesses::Access;
use crate::core::Core;
use crate::functions::Function;
use crate::{homes, keys, route};

/// Path of [`own`] in a node's own API.
pub(crate) const PATH: &str = "/admin/accesses";
/// Pause between two rounds of asking.
const EVERY: Duration = Duration::from_secs(2);
/// Longest wait for a node's answer: without it what it has counted does not count this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a function's invocations do on a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) function: FunctionName,
    pub(crate) invocations_per_second: f64,
    pub(crate) keys: Vec<Use>,
}

/// How they use a shared key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Use {
    /// By its name among those of all namespaces.
    bucket: String,
    key: String,
    /// That an invocation uses it.
    pub(crate) probability: f64,
    /// How large it is.
    pub(crate) bytes: f64,
    /// Where it is at home, as far as the node knows.
    pub(crate) home: Option<NodeName>,
}

impl Use {
    pub(crate) fn group(&self) -> Option<Group> {
        keys::group(&self.bucket, &self.key).ok()
    }
}

/// A shared key that a function's invocations use, wherever they run.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) access: Access,
    /// Where it is at home, as those who use it know.
    pub(crate) home: Option<NodeName>,
}

/// What was counted on all nodes, as of late.
#[derive(Default)]
pub(crate) struct Usages(RwLock<Known>);

#[derive(Default)]
struct Known {
    by_node: Arc<Vec<(NodeName, Vec<Usage>)>>,
    together: HashMap<FunctionName, Arc<Vec<Shared>>>,
}

impl Usages {
    /// By node.
    pub(crate) fn by_node(&self) -> Arc<Vec<(NodeName, Vec<Usage>)>> {
        self.0.read().by_node.clone()
    }

    /// The keys that a function uses, of all its invocations; of those here only as long as nothing else is known.
    pub(crate) fn of(
        &self,
        core: &Core,
        cluster: &Cluster,
        function: &Function,
    ) -> Arc<Vec<Shared>> {
        if let Some(known) = self.0.read().together.get(&function.name) {
            return known.clone();
        }
        let own = function.accesses.all().into_iter();
        let own = own.map(|access| Shared {
            home: home(core, cluster, &access.key),
            access,
        });
        Arc::new(own.collect())
    }
}

/// What was counted on this node.
pub(crate) fn own(core: &Core, cluster: &Cluster) -> Vec<Usage> {
    let now = core.started.elapsed().as_secs_f64();
    let functions = core.functions.all().into_iter();
    let promised = functions.filter(|function| function.current().manifest.slo.promises());
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

/// Where a key is at home, as far as is known here.
fn home(core: &Core, cluster: &Cluster, group: &Group) -> Option<NodeName> {
    match homes::is_surely_here(core, group) {
        Ok(true) => Some(cluster.name().clone()),
        _ => Some(cluster.directory().cached(group)?.node),
    }
}

/// Asks all others now and then until stopped, as long as there are functions with an SLO.
pub(crate) async fn run(core: Arc<Core>, cluster: Arc<Cluster>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let promises = |function: &Arc<Function>| function.current().manifest.slo.promises();
        if !core.functions.all().iter().any(promises) {
            continue;
        }
        let asked = cluster.others().into_iter().map(|node| {
            let cluster = cluster.clone();
            async move {
                let answer = route::ask(&cluster, &node, "GET", PATH, Bytes::new(), PATIENCE).await;
                let usages: Vec<Usage> = serde_json::from_slice(&answer.ok()?).ok()?;
                Some((node, usages))
            }
        });
        let others = futures_util::future::join_all(asked).await;
        let own = (cluster.name().clone(), own(&core, &cluster));
        let by_node: Vec<_> = others.into_iter().flatten().chain([own]).collect();
        let together = together(&by_node);
        *core.usages.0.write() = Known {
            by_node: Arc::new(by_node),
            together,
        };
    }
}

/// What the invocations of each function do, wherever they run.
fn together(by_node: &[(NodeName, Vec<Usage>)]) -> HashMap<FunctionName, Arc<Vec<Shared>>> {
    #[derive(Default)]
    struct Sum {
        rate: f64,
        keys: HashMap<Group, (f64, f64, Option<NodeName>)>,
    }
    let mut sums: HashMap<&FunctionName, Sum> = HashMap::new();
    for usage in by_node.iter().flat_map(|(_, usages)| usages) {
        let sum = sums.entry(&usage.function).or_default();
        // What has not run for long has its weight as well: it may be all that is known.
        let rate = usage.invocations_per_second.max(1e-9);
        sum.rate += rate;
        for used in &usage.keys {
            let Some(group) = used.group() else { continue };
            let (often, bytes, home) = sum.keys.entry(group).or_default();
            *often += rate * used.probability;
            *bytes = bytes.max(used.bytes);
            if home.is_none() {
                home.clone_from(&used.home);
            }
        }
    }
    let functions = sums.into_iter().map(|(function, sum)| {
        let keys = sum
            .keys
            .into_iter()
            .map(|(key, (often, bytes, home))| Shared {
                access: Access {
                    key,
                    probability: often / sum.rate,
                    bytes,
                },
                home,
            });
        (function.clone(), Arc::new(keys.collect()))
    });
    functions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(rate: f64, probability: f64, home: Option<&str>) -> Usage {
        Usage {
            function: FunctionName::new("f").unwrap(),
            invocations_per_second: rate,
            keys: vec![Use {
                bucket: "b".into(),
                key: "k".into(),
                probability,
                bytes: 100.0,
                home: home.map(|name| NodeName::new(name).unwrap()),
            }],
        }
    }

    #[test]
    fn nodes_count_as_often_as_they_run_it() {
        let node = |name| NodeName::new(name).unwrap();
        let by_node = [
            (node("n1"), vec![usage(1.0, 1.0, None)]),
            (node("n2"), vec![usage(3.0, 0.2, Some("n3"))]),
        ];
        let all = together(&by_node);
        let [shared] = &all[&FunctionName::new("f").unwrap()][..] else {
            panic!("one key")
        };
        assert!((shared.access.probability - 0.4).abs() < 1e-9, "{shared:?}");
        assert_eq!(shared.home, Some(node("n3")));
    }
}
