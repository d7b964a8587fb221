//! What this node commits is copied to the object store, and what is to be done when another has taken over.
//!
//! Copying is `state`'s ([`ship`]); who may speak for what is `cluster`'s ([`fulmar_cluster::Custody`]). Here they are
//! brought together: the others are told where the log is, every new lease is proven, and a node that was taken
//! over from comes back: it puts aside what was not copied, asks the directory about each session that it may
//! have lost, and goes on in a new log.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fulmar_cluster::directory::FIRST_EPOCH;
use fulmar_cluster::{Cluster, LogRecord};
use fulmar_model::{Code, Epoch, FunctionName, Group, Manifest, NodeName, Problem, SessionName};
use fulmar_state::aside;
use fulmar_state::changelog::ship::{self, Ended};
use fulmar_state::engine::EngineError;
use fulmar_state::objects::Objects;
use fulmar_state::record::{HomeRecord, Record, SessionRecord};
use fulmar_state::{Bookkeeping, StoreError, StoreFailure, Table, Ticket, key};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::execute::{self, storage_failed};
use crate::functions::{Deployed, Function};
use crate::{clock, courier, homes};

/// Pause before something is tried again that the registry or the directory could not do.
const RETRY: Duration = Duration::from_millis(500);
/// Sessions that are doubted with one commit.
const DOUBTED_AT_ONCE: usize = 1000;

/// Whether sessions of a function may be taken over by other nodes.
pub(crate) fn is_taken_over(manifest: &Manifest) -> bool {
    manifest.on_partition.takeover_after().is_some()
}

/// Why an invocation of a function would be in vain now, if so.
pub(crate) fn refuses(core: &Core, manifest: &Manifest) -> Option<Problem> {
    if manifest.durability != fulmar_model::Durability::Replicated {
        return None;
    }
    match core.store.changelog() {
        None => {
            let detail = "this node has no [store], and the function is replicated";
            Some(Problem::new(Code::ObjectStoreUnreachable, detail))
        }
        Some(changelog) => changelog.trouble().map(|failure| storage_failed(&failure)),
    }
}

/// Makes sure that what was read of a function's sessions was not taken over by another node before. Who has missed a while
/// may have missed that by a version that is gone as well.
///
/// # Errors
/// When it was, or that cannot be found out.
pub(crate) async fn sure(core: &Core, deployed: &Deployed) -> Result<(), Problem> {
    match &core.cluster {
        Some(cluster) if deployed.was_taken_over && !cluster.custody().is_sure() => {
            let sure = cluster.custody().sure().await;
            sure.map_err(|failure| storage_failed(&failure))
        }
        _ => Ok(()),
    }
}

/// Waits until others know where this node's log is, if there is one: before that it must not become home to anything
/// that could be taken over from it.
///
/// # Errors
/// When another node has taken over, or the object store cannot be asked.
pub(crate) async fn open(core: &Core) -> Result<(), Problem> {
    match core.store.changelog() {
        Some(_) => {
            let open = core.store.safe(Ticket(0)).await;
            open.map_err(|failure| storage_failed(&failure))
        }
        None => Ok(()),
    }
}

/// Whether what sessions of a function commit has to be copied before it has effects on others: whoever takes them over as
/// they were before that has them run again.
pub(crate) fn is_copied_first(core: &Core, function: &FunctionName) -> bool {
    let function = core.functions.named(function);
    core.store.changelog().is_some()
        && function.is_some_and(|function| {
            let manifest = &function.current().manifest;
            is_taken_over(manifest) || manifest.durability == fulmar_model::Durability::Replicated
        })
}

/// Waits until a commit is as safe as the function's sessions have to be when they move.
pub(crate) async fn safe(
    core: &Core,
    function: &FunctionName,
    ticket: Ticket,
) -> Result<(), StoreFailure> {
    match is_copied_first(core, function) {
        true => core.store.safe(ticket).await,
        false => core.store.durable(ticket).await,
    }
}

/// Waits until a commit is as safe as it has to be for other nodes to see it: as safe as an answer that rests on it.
pub(crate) async fn shown(core: &Core, function: &Function, ticket: Ticket) -> Result<(), Problem> {
    let shown = match function.current().manifest.durability {
        fulmar_model::Durability::Replicated => core.store.safe(ticket).await,
        _ => core.store.durable(ticket).await,
    };
    shown.map_err(|failure| storage_failed(&failure))
}

/// Copies until stopped, whatever other nodes do meanwhile.
pub(crate) async fn keep(
    core: Arc<Core>,
    cluster: Arc<Cluster>,
    objects: Objects,
    stop: CancellationToken,
) {
    let Some(log) = core.store.changelog().cloned() else {
        return;
    };
    let instance = cluster.info().instance.clone();
    // An earlier run may have come back and not found out about all of its sessions.
    tokio::spawn(settle_all(core.clone()));
    loop {
        let shipping = ship::ship(
            core.store.clone(),
            log.clone(),
            objects.clone(),
            instance.clone(),
            stop.clone(),
        );
        let ended = tokio::select! {
            ended = shipping => ended,
            () = prove(&core, &cluster) => return,
        };
        match ended {
            Ok(Ended::Stopped) => return,
            Ok(Ended::Fenced { by, last }) => {
                tracing::warn!(
                    by,
                    "another node has taken over from this one, as it seemed to be gone"
                );
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = come_back(&core, &cluster, &by, last) => {}
                }
            }
            Err(error) => {
                tracing::error!(%error, "nothing more is copied to the object store");
                return log.give_up(&error.to_string());
            }
        }
    }
}

/// Tells the others where the log is, and proves under every lease that it is this node's. Ends never.
async fn prove(core: &Core, cluster: &Cluster) {
    let Some(log) = core.store.changelog() else {
        return std::future::pending().await;
    };
    log.ready().await;
    let here = LogRecord {
        instance: cluster.info().instance.clone(),
        stream: log.standing().stream,
    };
    let is_told = cluster.log_of(cluster.name()).as_ref() == Some(&here);
    // With a first log nobody has taken over before.
    let mut is_done = is_told && here.stream == 1;
    while !is_done {
        let told = async {
            let published = cluster.publish_log(here.stream).await;
            published.map_err(fulmar_cluster::DirectoryError::from)?;
            cluster.directory().keep_shards().await
        };
        match told.await {
            Ok(()) => is_done = true,
            Err(error) => {
                tracing::warn!(%error, "other nodes cannot be told where this one's log is");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    log.open();
    let mut leases = cluster.custody().leases();
    loop {
        let lease = *leases.borrow_and_update();
        if let Some(lease) = lease {
            match log.prove().await {
                Ok(()) => cluster.custody().proven(lease),
                Err(error) => {
                    tracing::debug!(%error, "it is not certain that nobody has taken over");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if leases.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// After another node has taken over.
async fn come_back(core: &Arc<Core>, cluster: &Arc<Cluster>, by: &str, last: Ticket) {
    cluster.custody().doubt();
    let aside = core.data_path.as_ref();
    let aside = aside.map(|data| data.join(format!("uncopied-{}.jsonl", clock::unix_ms())));
    let by = NodeName::new(by).unwrap_or_else(|_| cluster.name().clone());
    loop {
        let done = async {
            if let Some(aside) = &aside {
                put_aside(core, aside).await?;
            }
            let takeover = cluster
                .update_takeover(cluster.name(), |record| {
                    let mut record = record?;
                    record.returned |= !record.adopted;
                    Some(record)
                })
                .await
                .map_err(|error| Problem::new(Code::RegistryUnreachable, error.to_string()))?;
            if takeover.is_some_and(|record| record.adopted) {
                courier::disown(core, None, last).await?;
            }
            // Of all functions, also those that are not deployed any more: what is taken over may be another with the
            // next version.
            for function in kept_functions(core).await? {
                doubt(core, &function, &by, last).await?;
            }
            let closed = ship::close(&core.store);
            closed.map_err(|error| Problem::new(Code::Internal, error.to_string()))
        };
        match done.await {
            Ok(()) => break,
            Err(problem) => {
                tracing::warn!(%problem, "this node cannot come back yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    tokio::spawn(settle_all(core.clone()));
}

/// Writes what was not copied to a file, for people to look at: one line of JSON for each write.
async fn put_aside(core: &Arc<Core>, aside: &Path) -> Result<(), Problem> {
    if aside.exists() {
        return Ok(());
    }
    let (core, path) = (core.clone(), aside.to_owned());
    let written = aside::run(move || write_aside(&core, &path)).await;
    let written = written.map_err(std::io::Error::other).flatten();
    let writes = written.map_err(|error| {
        let detail = format!("{} cannot be written: {error}", aside.display());
        Problem::new(Code::StorageFull, detail)
    })?;
    if writes > 0 {
        tracing::warn!(file = %aside.display(), writes, "what was committed here and not copied is put aside; what of it belongs to sessions that were taken over counts no more");
    }
    Ok(())
}

/// Writes the file, if there is anything to be written; how many writes there were.
fn write_aside(core: &Core, path: &Path) -> std::io::Result<usize> {
    // There may be much of it, after hours without the object store.
    let unfinished = path.with_extension("unfinished");
    let mut lines = BufWriter::new(File::create(&unfinished)?);
    let mut count = 0;
    let collected = ship::uncopied(&core.store, &mut |ticket, writes| {
        for write in writes {
            let parts = write.key.split(|byte| *byte == 0);
            let parts = parts.map(|part| String::from_utf8_lossy(part).into_owned());
            let line = json!({
                "commit": ticket.0,
                "table": write.table.name(),
                "key": parts.collect::<Vec<_>>(),
                "value_base64": write.value.map(|value| BASE64_STANDARD.encode(value)),
            });
            writeln!(lines, "{line}").map_err(|error| EngineError(error.to_string()))?;
            count += 1;
        }
        Ok(())
    });
    collected.map_err(std::io::Error::other)?;
    lines.into_inner()?.sync_all()?;
    match count {
        0 => std::fs::remove_file(&unfinished)?,
        _ => std::fs::rename(&unfinished, path)?,
    }
    Ok(count)
}

/// Functions that are deployed here, or of which sessions are stored here, and what stands for shared keys.
async fn kept_functions(core: &Core) -> Result<BTreeSet<FunctionName>, Problem> {
    let internal = |error: String| Problem::new(Code::Internal, error);
    core.durable(core.store.commits().submitted()).await?;
    let known = core.functions.with_shared_keys();
    let mut functions: BTreeSet<_> = known.iter().map(|known| known.name.clone()).collect();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let mut next = None;
        core.store
            .scan(Table::Sessions, &[], after.as_deref(), &mut |key, _| {
                next = key::parse_session(key).map(|(function, _)| function.to_owned());
                false
            })
            .map_err(|error| internal(error.to_string()))?;
        let Some(function) = next else {
            return Ok(functions);
        };
        // The separator plus one: after all of its sessions.
        after = Some([function.as_bytes(), &[1]].concat());
        functions
            .insert(FunctionName::new(&function).map_err(|error| internal(error.to_string()))?);
    }
}

/// From now on the directory is asked about each session of a function that is stored here.
async fn doubt(
    core: &Arc<Core>,
    function: &FunctionName,
    by: &NodeName,
    last: Ticket,
) -> Result<(), Problem> {
    let prefix = [function.as_str().as_bytes(), key::SEPARATOR].concat();
    loop {
        let doubted = doubt_stored(core, &prefix, by, last).await?;
        // What is hot must not be taken for what is at home. Whatever runs ends before, without a commit that counts; it may
        // have found that the session stays here after all, or has come.
        if let Some(function) = core.functions.named(function) {
            for name in function.sessions.names() {
                let session = function.sessions.of(&name);
                let _turn = execute::turn(core, &function, &session).await?;
                let record_key = [&prefix, name.as_bytes()].concat();
                doubt_these(core, &[record_key], by, last).await?;
                session.set_state(None);
                core.pool.evict_session(&function.name, &name);
            }
        }
        // Those that came since may be hot.
        if doubted == 0 {
            return Ok(());
        }
    }
}

/// Doubts the stored sessions whose keys begin so; how many were not doubted before.
async fn doubt_stored(
    core: &Core,
    prefix: &[u8],
    by: &NodeName,
    last: Ticket,
) -> Result<usize, Problem> {
    core.durable(core.store.commits().submitted()).await?;
    let mut after: Option<Vec<u8>> = None;
    let mut count = 0;
    loop {
        let mut found = Vec::new();
        core.store
            .scan(Table::Sessions, prefix, after.as_deref(), &mut |key, _| {
                found.push(key.to_vec());
                found.len() < DOUBTED_AT_ONCE
            })
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        count += doubt_these(core, &found, by, last).await?;
        match found.pop() {
            Some(last) if found.len() + 1 == DOUBTED_AT_ONCE => after = Some(last),
            _ => return Ok(count),
        }
    }
}

async fn doubt_these(
    core: &Core,
    sessions: &[Vec<u8>],
    by: &NodeName,
    last: Ticket,
) -> Result<usize, Problem> {
    let internal = |error: StoreError| Problem::new(Code::Internal, error.to_string());
    let mut bookkeeping = Bookkeeping::default();
    let mut count = 0;
    for session in sessions {
        let on_its_way = core.store.record::<HomeRecord>(Table::Homes, session);
        if matches!(
            on_its_way.map_err(internal)?,
            Some(HomeRecord::Arriving { .. } | HomeRecord::Doubted { .. })
        ) {
            // The directory is asked about it anyway.
            continue;
        }
        // As it is now: it may have come since.
        let record = core.store.record::<SessionRecord>(Table::Sessions, session);
        let record = record.map_err(internal)?;
        let Some(record) = record.filter(|record| record.epoch >= FIRST_EPOCH) else {
            continue;
        };
        let doubted = HomeRecord::Doubted {
            by: by.clone(),
            epoch: Epoch(record.epoch.0 + 1),
            last: last.0,
        };
        bookkeeping.put(Table::Homes, session, &doubted);
        count += 1;
    }
    if count > 0 {
        let stored = core.store.commit_durably(bookkeeping).await;
        stored.map_err(|failure| storage_failed(&failure))?;
    }
    Ok(count)
}

/// Asks the directory about all sessions that may have been taken over, until it has answered for each.
async fn settle_all(core: Arc<Core>) {
    let (mut back, mut gone) = (0, 0);
    loop {
        let waiting = match doubted(&core) {
            Ok(waiting) => waiting,
            Err(problem) => {
                return tracing::error!(%problem, "sessions that may have been taken over are asked for later");
            }
        };
        let mut left = 0;
        for group in waiting {
            if core.stopping.is_cancelled() {
                return;
            }
            match settle(&core, &group).await {
                Ok(()) => back += 1,
                Err(problem) if problem.code == Code::SessionMoved => gone += 1,
                Err(problem) => {
                    tracing::debug!(%group, %problem, "where a session is cannot be found out yet");
                    left += 1;
                }
            }
        }
        if left == 0 {
            break;
        }
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    if back + gone > 0 {
        tracing::info!(
            back,
            gone,
            "it is known of all sessions here whether they were taken over"
        );
    }
}

async fn settle(core: &Arc<Core>, group: &Group) -> Result<(), Problem> {
    let Some(function) = core.functions.of(group) else {
        return Ok(());
    };
    let session = function.sessions.of(group.session.shared());
    let _turn = execute::turn(core, &function, &session).await?;
    homes::confirm_here(core, group).await
}

fn doubted(core: &Core) -> Result<Vec<Group>, Problem> {
    let mut groups = Vec::new();
    core.store
        .scan(Table::Homes, &[], None, &mut |key, value| {
            if let Ok(HomeRecord::Doubted { .. }) = HomeRecord::decode(value)
                && let Some((function, session)) = key::parse_session(key)
                && let (Ok(function), Ok(session)) =
                    (FunctionName::new(function), SessionName::new(session))
            {
                groups.push(Group { function, session });
            }
            true
        })
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(groups)
}
