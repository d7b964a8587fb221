//! Deploying: the record first, then what new invocations run.

use std::sync::Arc;
use std::time::Duration;

use fulmar_cluster::Cluster;
use fulmar_cluster::registry::RegistryError;
use fulmar_cluster::view::FUNCTIONS;
use fulmar_model::{
    Code, Durability, ExecutionModel, FunctionName, Manifest, NodeName, OnPartition, Problem,
};
use fulmar_state::aside;
use fulmar_state::record::{FunctionRecord, Record};
use fulmar_state::{Bookkeeping, Table, key};
use fulmar_worker::Artifact;

use crate::core::Core;
use crate::execute::storage_failed;
use crate::functions::{Deployed, Function};
use crate::{clock, custody, external, fleet, namespaces, outside, route};

/// Longest wait for another node to take up a deployment.
const EVERYWHERE: Duration = Duration::from_secs(30);
/// Prefix of the functions' keys in the system table.
const KEY_PREFIX: &str = "function/";

fn record_key(name: &str) -> Vec<u8> {
    format!("{KEY_PREFIX}{name}").into_bytes()
}

/// What a deployment did.
pub(crate) struct Outcome {
    pub(crate) function: Arc<Function>,
    /// Whether anything changed.
    pub(crate) changed: bool,
    /// Nodes on which it is not live yet, each with the reason.
    pub(crate) pending: Vec<(NodeName, String)>,
}

/// Deploys a function, on this node and on all others that can be reached.
pub(crate) async fn deploy(
    core: &Arc<Core>,
    manifest: Manifest,
    digest: &str,
) -> Result<Outcome, Problem> {
    let before = core.functions.get(manifest.name.as_str());
    if let Some(function) = before.filter(|function| {
        let current = function.current();
        current.manifest == manifest && current.digest == digest
    }) {
        return Ok(Outcome {
            function,
            changed: false,
            pending: Vec::new(),
        });
    }
    if let Some(refused) = core.refuses_writes() {
        return Err(refused);
    }
    namespaces::refuse_one_too_many(core, &manifest.name)?;
    refuse_without_store(core, &manifest)?;
    refuse_without_external_store(core, &manifest)?;
    refuse_lost_external_sessions(core, &manifest).await?;
    // Compiled once before anybody hears of it.
    load(core, digest, &manifest).await?;
    if let Some(cluster) = core.cluster.clone() {
        return publish(core, &cluster, manifest, digest).await;
    }
    // One at a time, so that versions count up in the order in which they take effect.
    let _turn = core.deploying.lock().await;
    let stored = core
        .store
        .record::<FunctionRecord>(Table::System, &record_key(manifest.name.as_str()));
    let stored = stored.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let record = FunctionRecord {
        version: stored.map_or(1, |record| record.version + 1),
        artifact: digest.to_owned(),
        manifest: manifest.to_toml(),
        deployed_unix_ms: clock::unix_ms(),
    };
    let function = put_into_effect(core, manifest, record).await?;
    Ok(Outcome {
        function,
        changed: true,
        pending: Vec::new(),
    })
}

/// What rests on the object store needs one.
fn refuse_without_store(core: &Core, manifest: &Manifest) -> Result<(), Problem> {
    let wants = match (manifest.durability, manifest.on_partition) {
        (Durability::Replicated, _) => "durability = \"replicated\"",
        (_, OnPartition::TakeoverAfter(_)) => "on_partition = \"takeover-after\"",
        _ => return Ok(()),
    };
    if core.store.changelog().is_some() {
        return Ok(());
    }
    let detail = format!(
        "{wants} needs an object store; start every node with `fulmar node` and [store] in its configuration"
    );
    Err(Problem::new(Code::ManifestInvalid, detail))
}

/// What is in the external store needs one, and is as durable as that is.
fn refuse_without_external_store(core: &Core, manifest: &Manifest) -> Result<(), Problem> {
    if manifest.execution_model != ExecutionModel::External {
        return Ok(());
    }
    let wants_more = match (manifest.durability, manifest.on_partition) {
        (Durability::Replicated, _) => Some("durability = \"replicated\""),
        (_, OnPartition::TakeoverAfter(_)) => Some("on_partition = \"takeover-after\""),
        _ => None,
    };
    if let Some(wants_more) = wants_more {
        let detail = format!(
            "execution_model = \"external\" and {wants_more} contradict each other: no node keeps what could be copied or taken over; leave it out"
        );
        return Err(Problem::new(Code::ManifestInvalid, detail));
    }
    match core.external {
        Some(_) => Ok(()),
        None => Err(Problem::new(
            Code::ManifestInvalid,
            external::missing().detail,
        )),
    }
}

/// Sessions in the external store stay there: no other model finds them.
async fn refuse_lost_external_sessions(core: &Core, manifest: &Manifest) -> Result<(), Problem> {
    let was_external = core
        .functions
        .get(manifest.name.as_str())
        .is_some_and(|function| function.current().is_external());
    if !was_external || manifest.execution_model == ExecutionModel::External {
        return Ok(());
    }
    let store = external::of(core).await?;
    let sessions = store.sessions(&manifest.name, None, 1).await;
    match sessions
        .map_err(|error| external::problem(&error))?
        .is_empty()
    {
        true => Ok(()),
        false => Err(in_the_way(manifest, "the external store")),
    }
}

/// Whether sessions that nodes keep would not be found any more.
fn leaves_nodes(manifest: &Manifest) -> bool {
    matches!(
        manifest.execution_model,
        ExecutionModel::InClient | ExecutionModel::External
    )
}

/// Tells all nodes by the registry, and waits until those that can be reached have taken it up.
async fn publish(
    core: &Arc<Core>,
    cluster: &Arc<Cluster>,
    manifest: Manifest,
    digest: &str,
) -> Result<Outcome, Problem> {
    refuse_lost_sessions(core, &manifest).await?;
    refuse_lost_sessions_elsewhere(cluster, &manifest).await?;
    let name = manifest.name.clone();
    let toml = manifest.to_toml();
    let now = clock::unix_ms();
    let written = cluster
        .update(&format!("{FUNCTIONS}{name}"), |present| {
            let present = present.and_then(|present| FunctionRecord::decode(present).ok());
            let record = FunctionRecord {
                version: present.map_or(1, |present| present.version + 1),
                artifact: digest.to_owned(),
                manifest: toml.clone(),
                deployed_unix_ms: now,
            };
            Some(record.encode().into())
        })
        .await;
    let pending = in_effect(core, cluster, written).await?;
    let gone = || Problem::new(Code::FunctionNotFound, format!("{name} was removed again"));
    let function = core.functions.get(name.as_str()).ok_or_else(gone)?;
    Ok(Outcome {
        function,
        changed: true,
        pending,
    })
}

/// Waits until a change of the registry is in effect here and on all nodes that can be reached.
pub(crate) async fn in_effect(
    core: &Core,
    cluster: &Arc<Cluster>,
    written: Result<u64, RegistryError>,
) -> Result<Vec<(NodeName, String)>, Problem> {
    let revision = written.map_err(|error| not_written(&error))?;
    core.in_effect.wait(revision).await?;
    Ok(everywhere(cluster, revision).await)
}

/// Waits until the other nodes have taken up a change; those that have not, with the reason.
async fn everywhere(cluster: &Arc<Cluster>, revision: u64) -> Vec<(NodeName, String)> {
    let asked = cluster.others().into_iter().map(|node| {
        let cluster = cluster.clone();
        async move {
            let caught_up = cluster.catch_up(&node, revision, EVERYWHERE).await;
            caught_up.err().map(|error| (node, error.to_string()))
        }
    });
    let late: Vec<_> = futures_util::future::join_all(asked).await;
    late.into_iter().flatten().collect()
}

fn not_written(error: &RegistryError) -> Problem {
    Problem::new(Code::RegistryUnreachable, error.to_string())
}

/// Takes up a function that was deployed on any node.
pub(crate) async fn take_up(core: &Arc<Core>, record: FunctionRecord) -> Result<(), Problem> {
    let name = Manifest::parse(&record.manifest, "fulmar.toml")
        .map_err(|error| Problem::new(Code::ManifestInvalid, error.to_string()))?;
    let is_current = core.functions.get(name.name.as_str()).is_some_and(|known| {
        let current = known.current();
        current.version == record.version && current.digest == record.artifact
    });
    if is_current {
        return Ok(());
    }
    let _turn = core.deploying.lock().await;
    put_into_effect(core, name, record).await.map(|_| ())
}

/// The artefact, compiled if need be.
async fn load(
    core: &Arc<Core>,
    digest: &str,
    manifest: &Manifest,
) -> Result<Arc<Artifact>, Problem> {
    let (core, digest, manifest) = (core.clone(), digest.to_owned(), manifest.clone());
    let loaded = aside::run(move || artifact(&core, &digest, &manifest)).await;
    loaded.map_err(|error| Problem::new(Code::Internal, error.to_string()))?
}

/// What a function runs, loaded again if nobody has used it for a while.
pub(crate) async fn loaded(
    core: &Arc<Core>,
    deployed: &Deployed,
) -> Result<Option<Arc<Artifact>>, Problem> {
    let Some(loaded) = &deployed.artifact else {
        return Ok(None);
    };
    if let Some(artifact) = loaded.get() {
        return Ok(Some(artifact));
    }
    let artifact = load(core, &deployed.digest, &deployed.manifest).await?;
    loaded.keep(artifact.clone());
    Ok(Some(artifact))
}

fn artifact(core: &Core, digest: &str, manifest: &Manifest) -> Result<Arc<Artifact>, Problem> {
    let programs = &core.programs;
    core.artifacts.of(&core.runtime, digest, manifest, programs)
}

/// Stores what is deployed, and lets new invocations run it. For whoever holds `core.deploying`.
async fn put_into_effect(
    core: &Arc<Core>,
    manifest: Manifest,
    record: FunctionRecord,
) -> Result<Arc<Function>, Problem> {
    let artifact = load(core, &record.artifact, &manifest).await?;
    refuse_lost_sessions(core, &manifest).await?;
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.put(Table::System, &record_key(manifest.name.as_str()), &record);
    if custody::is_taken_over(&manifest) {
        bookkeeping.put(Table::System, &taken_over_key(&manifest.name), &record);
    }
    store(core, bookkeeping).await?;
    let deployed = deployed(core, record, manifest, artifact)?;
    tracing::info!(function = %deployed.manifest.name, version = deployed.version, "deployed");
    let function = core.functions.deploy(deployed);
    core.pool.evict_function(&function.name);
    fleet::begin(core, &function);
    Ok(function)
}

/// With state that clients carry, sessions that the node keeps would be overlooked from now on. (A counter of
/// a carried session is fine: it says that there is a token.)
async fn refuse_lost_sessions(core: &Core, manifest: &Manifest) -> Result<(), Problem> {
    if !leaves_nodes(manifest) {
        return Ok(());
    }
    match keeps_sessions(core, manifest.name.as_str()).await? {
        false => Ok(()),
        true => Err(in_the_way(manifest, "this node")),
    }
}

/// The same for the sessions that the other nodes keep: all of them have to answer.
async fn refuse_lost_sessions_elsewhere(
    cluster: &Cluster,
    manifest: &Manifest,
) -> Result<(), Problem> {
    if !leaves_nodes(manifest) {
        return Ok(());
    }
    for node in cluster.others() {
        let request = http::Request::get(format!("/admin/functions/{}/kept", manifest.name));
        let request = request
            .body(bytes::Bytes::new())
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        let answered = cluster.forward(&node, request, EVERYWHERE).await;
        let answered = answered.map_err(|error| route::lost_before(&error))?;
        let kept: Option<serde_json::Value> = serde_json::from_slice(answered.response.body()).ok();
        if kept.is_none_or(|kept| kept["kept"] != false) {
            return Err(in_the_way(manifest, node.as_str()));
        }
    }
    Ok(())
}

fn in_the_way(manifest: &Manifest, node: &str) -> Problem {
    let detail = format!("{} has sessions with state on {node}", manifest.name);
    Problem::new(Code::SessionsInTheWay, detail)
}

/// Whether the node keeps state of a function's sessions.
pub(crate) async fn keeps_sessions(core: &Core, function: &str) -> Result<bool, Problem> {
    // What was committed before may not be where a scan looks yet.
    core.durable(core.store.commits().submitted()).await?;
    let prefix = [function.as_bytes(), key::SEPARATOR].concat();
    let mut is_any = false;
    core.store
        .scan(Table::State, &prefix, None, &mut |_, _| {
            is_any = true;
            false
        })
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let function = FunctionName::new(function);
    let function = function.map_err(|error| Problem::new(Code::BadRequest, error.to_string()))?;
    Ok(is_any || !outside::all(core, Some(&function))?.is_empty())
}

/// Removes a function, on this node and on all others; its sessions' state stays until they are removed.
pub(crate) async fn remove(core: &Arc<Core>, name: &str) -> Result<(), Problem> {
    let Some(cluster) = core.cluster.clone() else {
        return take_down(core, name).await;
    };
    let removed = cluster
        .update(&format!("{FUNCTIONS}{name}"), |_| None)
        .await;
    in_effect(core, &cluster, removed).await?;
    Ok(())
}

/// Removes a function from this node.
pub(crate) async fn take_down(core: &Arc<Core>, name: &str) -> Result<(), Problem> {
    let _turn = core.deploying.lock().await;
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.delete(Table::System, &record_key(name));
    store(core, bookkeeping).await?;
    if let Some(function) = core.functions.remove(name) {
        core.pool.evict_function(&function.name);
        core.logs.forget(&function.name);
    }
    Ok(())
}

/// Commits and waits until it is durable.
pub(crate) async fn store(core: &Core, bookkeeping: Bookkeeping) -> Result<(), Problem> {
    let stored = core.store.commit_durably(bookkeeping).await;
    stored
        .map(|_| ())
        .map_err(|failure| storage_failed(&failure))
}

/// Takes up the functions that are deployed. One that cannot be loaded is reported and left out.
pub(crate) fn recover(core: &Arc<Core>) -> Result<(), Problem> {
    let mut records = Vec::new();
    core.store
        .scan(
            Table::System,
            KEY_PREFIX.as_bytes(),
            None,
            &mut |key, value| {
                records.push((
                    String::from_utf8_lossy(key).into_owned(),
                    FunctionRecord::decode(value),
                ));
                true
            },
        )
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    for (key, record) in records {
        let recovered = record
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))
            .and_then(|record| recover_one(core, record));
        if let Err(problem) = recovered {
            tracing::error!(key, %problem, "a deployed function cannot be loaded");
        }
    }
    Ok(())
}

fn recover_one(core: &Arc<Core>, record: FunctionRecord) -> Result<(), Problem> {
    let manifest = Manifest::parse(&record.manifest, "fulmar.toml")
        .map_err(|error| Problem::new(Code::ManifestInvalid, error.to_string()))?;
    let artifact = artifact(core, &record.artifact, &manifest)?;
    let deployed = deployed(core, record, manifest, artifact)?;
    if let Some(loaded) = &deployed.artifact {
        // Until somebody uses it.
        loaded.let_go();
    }
    fleet::begin(core, &core.functions.deploy(deployed));
    Ok(())
}

fn deployed(
    core: &Core,
    record: FunctionRecord,
    manifest: Manifest,
    artifact: Arc<Artifact>,
) -> Result<Deployed, Problem> {
    let (version, at) = (record.version, record.deployed_unix_ms);
    let taken_over = taken_over_key(&manifest.name);
    let taken_over = core
        .store
        .record::<FunctionRecord>(Table::System, &taken_over);
    let taken_over = taken_over.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let was_taken_over = taken_over.is_some() || custody::is_taken_over(&manifest);
    Ok(Deployed {
        was_taken_over,
        ..Deployed::new(manifest, version, record.artifact, at, Some(artifact))
    })
}

/// Key of the last version of a function whose sessions other nodes take over. It outlives the function, as its sessions do.
fn taken_over_key(name: &FunctionName) -> Vec<u8> {
    format!("taken-over/{name}").into_bytes()
}
