//! Namespaces: what the functions of one may have in all, and what they have.
//!
//! Invocations are counted where clients hand them in, state where it is at home, so that no node asks another before it
//! lets somebody in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_cluster::registry::Entry;
use fulmar_model::id::{DEFAULT_NAMESPACE, bucket_within, split_bucket, split_namespace};
use fulmar_model::{ByteSize, Code, FunctionName, Problem};
use fulmar_state::aside;
use fulmar_state::engine::EngineError;
use fulmar_state::record::{QuotaRecord, Record as _};
use fulmar_state::{Bookkeeping, Store, Table, key};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::deploy;

/// Prefix of the records in the system table, and in the registry.
pub(crate) const KEY_PREFIX: &str = "namespace/";
/// Pause between two measurements of the state.
const MEASURE: Duration = Duration::from_secs(5);
/// What a measurement may take of a core.
const SHARE: u32 = 20;

/// The namespaces that have quotas.
#[derive(Default)]
pub(crate) struct Namespaces {
    /// Whether there are any; read by every request.
    is_any: AtomicBool,
    limited: RwLock<HashMap<String, Arc<Namespace>>>,
    /// Rings when quotas change.
    changed: Notify,
}

/// A namespace with quotas.
#[derive(Default)]
struct Namespace {
    quota: RwLock<QuotaRecord>,
    running: AtomicUsize,
    allowance: Mutex<Option<Allowance>>,
    /// State on this node, in bytes, as of the last measurement.
    state_bytes: AtomicU64,
}

/// Invocations that may still be handed in, as of when.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: f64,
    at: Instant,
}

/// An invocation's place in its namespace, given back when dropped.
pub(crate) struct Running(Arc<Namespace>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a namespace has.
pub(crate) struct Usage {
    /// Functions that are deployed.
    pub(crate) functions: usize,
    /// Invocations that clients have handed to this node and that are not answered.
    pub(crate) running: usize,
    /// State on this node, in bytes; only measured where there is a quota for it.
    pub(crate) state_bytes: Option<u64>,
}

impl Namespace {
    fn admit(&self, name: &str, read_only: bool) -> Result<(), Problem> {
        let quota = self.quota.read().clone();
        let exceeded = |detail: String| Problem::new(Code::QuotaExceeded, detail);
        if let Some(max) = quota.max_state_bytes
            && !read_only
        {
            let state = self.state_bytes.load(Ordering::Relaxed);
            if state >= max {
                let (state, max) = (ByteSize(state), ByteSize(max));
                let detail = format!(
                    "the namespace {name} has {state} of state on this node; at most {max} are allowed"
                );
                return Err(Problem::new(Code::NamespaceFull, detail));
            }
        }
        if let Some(max) = quota.max_concurrency {
            let running = self.running.load(Ordering::Relaxed);
            if running > max as usize {
                return Err(exceeded(format!(
                    "{max} invocations of the namespace {name} are running, which is all that it may have at once"
                )));
            }
        }
        if let Some(max) = quota.max_rate {
            let mut allowance = self.allowance.lock();
            if !Allowance::take(&mut allowance, f64::from(max), Instant::now()) {
                return Err(exceeded(format!(
                    "the namespace {name} has had its {max} invocations of this second"
                )));
            }
        }
        Ok(())
    }
}

impl Allowance {
    /// Takes one of so many a second; whether there was one.
    fn take(allowance: &mut Option<Self>, per_second: f64, now: Instant) -> bool {
        let left = allowance.map_or(per_second, |allowance| {
            let since = now.saturating_duration_since(allowance.at);
            (allowance.left + since.as_secs_f64() * per_second).min(per_second)
        });
        let may = left >= 1.0;
        let left = if may { left - 1.0 } else { left };
        *allowance = Some(Self { left, at: now });
        may
    }
}

impl Namespaces {
    /// Lets an invocation in that a client hands in, if its namespace's quotas do. Without quotas there is nothing to give
    /// back.
    pub(crate) fn admit(
        &self,
        function: &FunctionName,
        read_only: bool,
    ) -> Result<Option<Running>, Problem> {
        if !self.is_any.load(Ordering::Acquire) {
            return Ok(None);
        }
        let name = function.namespace();
        let Some(namespace) = self.limited.read().get(name).cloned() else {
            return Ok(None);
        };
        namespace.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(namespace);
        running.0.admit(name, read_only)?;
        Ok(Some(running))
    }

    /// The quotas of a namespace.
    pub(crate) fn quota(&self, name: &str) -> Option<QuotaRecord> {
        let limited = self.limited.read();
        limited
            .get(name)
            .map(|namespace| namespace.quota.read().clone())
    }

    /// Namespaces that have quotas.
    pub(crate) fn limited(&self) -> Vec<String> {
        self.limited.read().keys().cloned().collect()
    }

    /// Takes up the quotas that are stored on a node that is alone.
    pub(crate) fn recover(&self, store: &Store) -> Result<(), Problem> {
        let mut stored = Vec::new();
        let scanned = store.scan(
            Table::System,
            KEY_PREFIX.as_bytes(),
            None,
            &mut |key, value| {
                let name = String::from_utf8_lossy(&key[KEY_PREFIX.len()..]).into_owned();
                stored.push((name, Bytes::copy_from_slice(value)));
                true
            },
        );
        scanned.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        self.replace(stored);
        Ok(())
    }

    /// Takes over the quotas that all nodes share.
    pub(crate) fn take_up(&self, entries: Vec<Entry>) {
        let entries = entries.into_iter();
        self.replace(entries.filter_map(|entry| {
            Some((entry.key.strip_prefix(KEY_PREFIX)?.to_owned(), entry.value))
        }));
    }

    fn replace(&self, records: impl IntoIterator<Item = (String, Bytes)>) {
        let mut limited = self.limited.write();
        let mut before = std::mem::take(&mut *limited);
        let mut has_changed = false;
        for (name, record) in records {
            let quota = match QuotaRecord::decode(&record) {
                Ok(quota) => quota,
                Err(error) => {
                    tracing::error!(namespace = name, %error, "quotas cannot be read and do not count");
                    continue;
                }
            };
            let namespace = before.remove(&name).unwrap_or_default();
            has_changed |= *namespace.quota.read() != quota;
            *namespace.quota.write() = quota;
            limited.insert(name, namespace);
        }
        self.is_any.store(!limited.is_empty(), Ordering::Release);
        if has_changed {
            self.changed.notify_one();
        }
    }
}

/// What a namespace has.
pub(crate) fn usage(core: &Core, name: &str) -> Usage {
    let limited = core.namespaces.limited.read();
    let namespace = limited.get(name);
    let is_measured =
        |namespace: &&Arc<Namespace>| namespace.quota.read().max_state_bytes.is_some();
    Usage {
        functions: functions(core, name).len(),
        running: namespace.map_or(0, |namespace| namespace.running.load(Ordering::Relaxed)),
        state_bytes: namespace
            .filter(is_measured)
            .map(|namespace| namespace.state_bytes.load(Ordering::Relaxed)),
    }
}

fn functions(core: &Core, namespace: &str) -> Vec<FunctionName> {
    let functions = core.functions.all().into_iter();
    functions
        .map(|function| function.name.clone())
        .filter(|name| name.namespace() == namespace)
        .collect()
}

/// Refuses a function that would be one too many in its namespace.
pub(crate) fn refuse_one_too_many(core: &Core, function: &FunctionName) -> Result<(), Problem> {
    let name = function.namespace();
    let quota = core.namespaces.quota(name).unwrap_or_default();
    let Some(max) = quota.max_functions else {
        return Ok(());
    };
    let present = functions(core, name);
    if present.contains(function) || present.len() < max as usize {
        return Ok(());
    }
    let detail = format!(
        "the namespace {name} has {} functions; at most {max} are allowed",
        present.len()
    );
    Err(Problem::new(Code::QuotaExceeded, detail))
}

/// Gives a namespace quotas, on all nodes; none: it has none any more.
///
/// # Errors
/// When they cannot be stored, or the registry cannot be reached.
pub(crate) async fn set(
    core: &Core,
    name: &str,
    quota: Option<QuotaRecord>,
) -> Result<(), Problem> {
    let key = format!("{KEY_PREFIX}{name}");
    if let Some(cluster) = &core.cluster {
        let value = quota.map(|quota| Bytes::from(quota.encode()));
        let written = cluster.update(&key, |_| value.clone()).await;
        deploy::in_effect(core, cluster, written).await?;
        return Ok(());
    }
    let _turn = core.deploying.lock().await;
    let mut bookkeeping = Bookkeeping::default();
    match &quota {
        Some(quota) => bookkeeping.put(Table::System, key.as_bytes(), quota),
        None => bookkeeping.delete(Table::System, key.as_bytes()),
    }
    deploy::store(core, bookkeeping).await?;
    core.namespaces.recover(&core.store)
}

/// Measures the state of namespaces that have a quota for it, until stopped.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.namespaces.changed.notified() => {}
            () = tokio::time::sleep(pause.max(MEASURE)) => {}
        }
        let limited = core.namespaces.limited.read().clone();
        let started = Instant::now();
        for (name, namespace) in limited {
            if namespace.quota.read().max_state_bytes.is_none() {
                continue;
            }
            let (core, of) = (core.clone(), name.clone());
            let measured = aside::run(move || measure(&core.store, &of)).await;
            match measured {
                Ok(Ok(bytes)) => namespace.state_bytes.store(bytes, Ordering::Relaxed),
                Ok(Err(error)) => {
                    tracing::warn!(namespace = name, %error, "state cannot be measured");
                }
                Err(error) => tracing::warn!(namespace = name, %error, "state was not measured"),
            }
        }
        pause = started.elapsed() * SHARE;
    }
}

/// The keys and values of a namespace that are stored on this node, in bytes.
fn measure(store: &Store, namespace: &str) -> Result<u64, EngineError> {
    let is_default = namespace == DEFAULT_NAMESPACE;
    let sessions = format!("{namespace}.");
    let buckets = bucket_within(namespace, "");
    let mut bytes = 0;
    for (table, prefix) in [(Table::State, &*sessions), (Table::Shared, &*buckets)] {
        let prefix = if is_default { "" } else { prefix };
        store.scan(table, prefix.as_bytes(), None, &mut |path, value| {
            let first = path.split(|byte| key::SEPARATOR == [*byte]).next();
            let first = first.and_then(|first| std::str::from_utf8(first).ok());
            let of = first.map(|first| match table {
                Table::Shared => split_bucket(first).0,
                _ => split_namespace(first).0,
            });
            if of == Some(namespace) {
                bytes += (path.len() + value.len()) as u64;
            }
            true
        })?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_allows_so_many_and_no_more_are_saved_up() {
        let (mut allowance, start) = (None, Instant::now());
        let mut taken = |at: f64| {
            let now = start + Duration::from_secs_f64(at);
            (0..10)
                .filter(|_| Allowance::take(&mut allowance, 3.0, now))
                .count()
        };
        assert_eq!(taken(0.0), 3);
        assert_eq!(taken(0.2), 0);
        assert_eq!(taken(0.4), 1);
        assert_eq!(taken(60.0), 3);
    }
}
