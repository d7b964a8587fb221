//! The external store, as this node uses it: connected to when it is first needed, and only if it is the one that the
//! other nodes use.

pub(crate) mod closed;

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fulmar_cluster::links::Links;
use fulmar_model::{Code, ExecutionModel, Group, NodeName, Problem, Version};
use fulmar_state::external::{External, ExternalError};
use rustc_hash::FxBuildHasher;
use tokio::sync::{Mutex, OnceCell};

use crate::core::Core;
use crate::functions::Deployed;
use crate::{carry, clock};

/// Key of the store's identity in the registry.
const IDENTITY: &str = "external-store";

/// Senders whose messages are taken at the same time.
const TAKEN_AT_ONCE: usize = 64;

/// The external store of a node.
pub(crate) struct ExternalStore {
    store: External,
    ready: OnceCell<()>,
    /// Held while messages of a sender change from the store to this node, so that none is taken twice.
    taking: [Mutex<()>; TAKEN_AT_ONCE],
}

impl Deployed {
    /// Whether the sessions of the function are in the external store.
    pub(crate) fn is_external(&self) -> bool {
        self.manifest.execution_model == ExecutionModel::External
    }
}

impl ExternalStore {
    pub(crate) fn open(
        url: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<Self, ExternalError> {
        Ok(Self {
            store: External::open(url, options)?,
            ready: OnceCell::new(),
            taking: [const { Mutex::const_new(()) }; TAKEN_AT_ONCE],
        })
    }

    /// The store, if it can be used.
    async fn ready(&self, core: &Core) -> Result<&External, Problem> {
        self.ready
            .get_or_try_init(|| async {
                let ready = self.store.prepare().await;
                let ready = ready.map_err(|error| problem(&error))?;
                agree(core, &ready.identity).await?;
                for caveat in ready.caveats {
                    tracing::warn!("{caveat}");
                }
                Ok(())
            })
            .await?;
        Ok(&self.store)
    }

    /// What is held while messages of a sender are taken.
    pub(crate) fn taking(&self, sender: &Group) -> &Mutex<()> {
        &self.taking[FxBuildHasher.hash_one(sender) as usize % TAKEN_AT_ONCE]
    }

    /// Whether it was reached, and is the right one.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.initialized()
    }
}

/// Makes sure that all nodes use one store: the first that any of them has used.
async fn agree(core: &Core, identity: &str) -> Result<(), Problem> {
    let Some(cluster) = &core.cluster else {
        return Ok(());
    };
    let mut agreed = None;
    let updated = cluster.update(IDENTITY, |present| {
        let value = present.cloned();
        let value = value.unwrap_or_else(|| Bytes::copy_from_slice(identity.as_bytes()));
        agreed = Some(value.clone());
        Some(value)
    });
    if let Err(error) = updated.await {
        return Err(Problem::new(Code::RegistryUnreachable, error.to_string()));
    }
    if agreed.is_some_and(|agreed| agreed == identity) {
        return Ok(());
    }
    let detail = "the external store of this node is not the one that the other nodes use: [external] has to be the same on all of them";
    Err(Problem::new(Code::ExternalStoreUnreachable, detail))
}

/// The external store.
///
/// # Errors
/// When none is configured, it cannot be reached, or it is another one than that of the other nodes.
pub(crate) async fn of(core: &Core) -> Result<&External, Problem> {
    match &core.external {
        Some(external) => external.ready(core).await,
        None => Err(missing()),
    }
}

/// What stands for the store among emulated links.
const LINK: &str = "external-store";

/// Waits for as long as bytes are on their way to the store, where links are emulated.
pub(crate) async fn there(core: &Core, bytes: usize) {
    if let Some((links, store)) = link(core) {
        links.there(&store, bytes).await;
    }
}

/// The same for bytes from the store.
pub(crate) async fn back(core: &Core, bytes: usize) {
    if let Some((links, store)) = link(core) {
        links.back(&store, bytes).await;
    }
}

/// How long the store takes to answer a small question about a session, in seconds.
///
/// # Errors
/// When it does not.
pub(crate) async fn round_trip(core: &Core, group: &Group) -> Result<f64, Problem> {
    let store = of(core).await?;
    let asked = Instant::now();
    there(core, 0).await;
    let answered = store
        .answered(group, &["round-trip"], clock::unix_ms())
        .await;
    answered.map_err(|error| problem(&error))?;
    back(core, 0).await;
    Ok(asked.elapsed().as_secs_f64())
}

fn link(core: &Core) -> Option<(&Arc<Links>, NodeName)> {
    let links = core.cluster.as_ref()?.peers().links()?;
    Some((links, NodeName::new(LINK).ok()?))
}

/// The next version of a session in the external store. A new one begins with the time, so that one that was removed
/// and made again is never taken for what it was.
pub(crate) fn after(version: Version) -> Version {
    /// Commits that a session would have to see every millisecond to catch up with the time.
    const A_MILLISECOND: u64 = 1 << 20;
    match version {
        Version(0) => Version(clock::unix_ms() * A_MILLISECOND + fastrand::u64(..A_MILLISECOND)),
        version => version.next(),
    }
}

/// That this node has no external store.
pub(crate) fn missing() -> Problem {
    let detail = "this node has no external store; give --external URL to `fulmar dev`, or [external] in the configuration of every node";
    Problem::new(Code::ExternalStoreUnreachable, detail)
}

/// Why the sessions of a function are at home on no node, if so.
pub(crate) fn on_no_node(deployed: &Deployed) -> Option<Problem> {
    let function = &deployed.manifest.name;
    if deployed.is_in_client() {
        return Some(carry::unreachable(function.as_str()));
    }
    deployed.is_external().then(|| {
        let detail = format!(
            "sessions of {function} are in the external store and at home on no node: every node runs their invocations"
        );
        Problem::new(Code::BadRequest, detail)
    })
}

/// What is said when the store does not do what it is asked before anything has happened.
pub(crate) fn problem(error: &ExternalError) -> Problem {
    let code = match error {
        ExternalError::Damaged(_) => Code::Internal,
        _ => Code::ExternalStoreUnreachable,
    };
    Problem::new(code, error.to_string())
}
