//! Deploying: the record first, then what new invocations run.

use std::sync::Arc;

use fulmar_model::manifest::FileMode;
use fulmar_model::{Code, ExecutionModel, Manifest, Problem};
use fulmar_state::record::{FunctionRecord, Record};
use fulmar_state::{Bookkeeping, Table, key};
use fulmar_worker::{FileGrant, FunctionSettings};
use tokio::sync::{Semaphore, oneshot};

use crate::clock;
use crate::core::Core;
use crate::execute::storage_failed;
use crate::functions::{Deployed, Function};

/// Prefix of the functions' keys in the system table.
const KEY_PREFIX: &str = "function/";

fn record_key(name: &str) -> Vec<u8> {
    format!("{KEY_PREFIX}{name}").into_bytes()
}

/// Deploys a function; says whether anything changed.
pub(crate) async fn deploy(
    core: &Arc<Core>,
    manifest: Manifest,
    digest: &str,
) -> Result<(Arc<Function>, bool), Problem> {
    let before = core.functions.get(manifest.name.as_str());
    if let Some(function) = before.filter(|function| {
        let current = function.current();
        current.manifest == manifest && current.digest == digest
    }) {
        return Ok((function, false));
    }
    if let Some(refused) = core.refuses_writes() {
        return Err(refused);
    }
    let artifact = {
        let (core, digest) = (core.clone(), digest.to_owned());
        let loaded =
            tokio::task::spawn_blocking(move || core.artifacts.load(&core.runtime, &digest)).await;
        loaded.map_err(|error| Problem::new(Code::Internal, error.to_string()))??
    };
    // One at a time, so that versions count up in the order in which they take effect.
    let _turn = core.deploying.lock().await;
    if manifest.execution_model == ExecutionModel::InClient {
        // What was committed before may not be where a scan looks yet.
        core.durable(core.store.commits().submitted()).await?;
        refuse_stored_sessions(core, &manifest)?;
    }
    let record_key = record_key(manifest.name.as_str());
    let stored = core
        .store
        .record::<FunctionRecord>(Table::System, &record_key);
    let stored = stored.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let record = FunctionRecord {
        version: stored.map_or(1, |record| record.version + 1),
        artifact: digest.to_owned(),
        manifest: manifest.to_toml(),
        deployed_unix_ms: clock::unix_ms(),
    };
    let mut bookkeeping = Bookkeeping::default();
    bookkeeping.put(Table::System, &record_key, &record);
    store(core, bookkeeping).await?;
    let deployed = Deployed {
        version: record.version,
        settings: settings(&manifest)?,
        workers: Arc::new(Semaphore::new(manifest.workers.max as usize)),
        digest: record.artifact,
        deployed_unix_ms: record.deployed_unix_ms,
        artifact,
        manifest,
    };
    tracing::info!(function = %deployed.manifest.name, version = deployed.version, "deployed");
    let function = core.functions.deploy(deployed);
    core.pool.evict_function(&function.name);
    Ok((function, true))
}

/// Sessions that the node keeps would be overlooked from now on. (A counter of a carried session is
/// fine: it says that there is a token.)
fn refuse_stored_sessions(core: &Core, manifest: &Manifest) -> Result<(), Problem> {
    let prefix = [manifest.name.as_str().as_bytes(), key::SEPARATOR].concat();
    let mut is_any = false;
    core.store
        .scan(Table::State, &prefix, None, &mut |_, _| {
            is_any = true;
            false
        })
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    match is_any {
        false => Ok(()),
        true => Err(Problem::new(
            Code::SessionsInTheWay,
            format!("{} has sessions with state on this node", manifest.name),
        )),
    }
}

/// Removes a function; its sessions' state stays until they are removed.
pub(crate) async fn remove(core: &Arc<Core>, name: &str) -> Result<(), Problem> {
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
    let (durable, stored) = oneshot::channel();
    let release = Box::new(move |result| {
        let _ = durable.send(result);
    });
    let failed = |failure| storage_failed(&failure);
    core.store
        .commit_bookkeeping(bookkeeping, release)
        .map_err(failed)?;
    match stored.await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(Problem::new(
            Code::ShuttingDown,
            "the node stopped before it was stored",
        )),
    }
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
    core.functions.deploy(Deployed {
        version: record.version,
        settings: settings(&manifest)?,
        workers: Arc::new(Semaphore::new(manifest.workers.max as usize)),
        artifact: core.artifacts.load(&core.runtime, &record.artifact)?,
        digest: record.artifact,
        deployed_unix_ms: record.deployed_unix_ms,
        manifest,
    });
    Ok(())
}

/// What a worker needs to know of the manifest.
fn settings(manifest: &Manifest) -> Result<Arc<FunctionSettings>, Problem> {
    Ok(Arc::new(FunctionSettings {
        memory_bytes: manifest.limits.memory.as_usize(),
        max_response_bytes: manifest.limits.max_response.as_usize(),
        env: manifest.env.clone().into_iter().collect(),
        config: manifest.config.clone(),
        http: manifest.grants.http.clone(),
        files: manifest
            .grants
            .files
            .iter()
            .map(|grant| FileGrant {
                host: grant.host.clone().into(),
                guest: grant.guest.clone(),
                writable: grant.mode == FileMode::ReadWrite,
            })
            .collect(),
    }))
}
