//! What a worker's component can reach: its invocation's state, and nothing else unless granted.

pub(crate) mod config;
pub(crate) mod function;
pub(crate) mod keyvalue;
pub(crate) mod keyvalue_draft2;
pub(crate) mod limits;
pub(crate) mod logging;
pub(crate) mod outgoing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use fulmar_model::id::{bucket_within, check_key};
use fulmar_model::{Bucket, FunctionName, SessionName};
use fulmar_state::{KeyRange, StateError, Transaction};
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::bindings::offered;
use crate::call::{Call, CallError};
use crate::logs::{Level, LineStream, LogSink, Writer};
use crate::settings::FunctionSettings;
use limits::Limits;
use outgoing::Outgoing;

/// Handles (buckets, streams, requests) that one worker may hold at once: each costs the node memory
/// that the function's limit does not count.
const MAX_HANDLES: usize = 10_000;

/// Why there is no state and no context while a worker starts.
const NOT_YET: &str = "there is no invocation while the worker starts";

/// The data of a worker's store.
pub(crate) struct Host {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    pub(crate) table: ResourceTable,
    pub(crate) limits: Limits,
    pub(crate) settings: Arc<FunctionSettings>,
    pub(crate) writer: Arc<Writer>,
    /// Standard output and error.
    standard: [LineStream; 2],
    pub(crate) deadline: Instant,
    pub(crate) timed_out: bool,
    pub(crate) current: Option<Current>,
    tx: Option<Transaction>,
}

/// The running invocation.
pub(crate) struct Current {
    pub(crate) id: Arc<str>,
    pub(crate) function: FunctionName,
    pub(crate) session: Option<SessionName>,
    pub(crate) idempotency_key: Option<Arc<str>>,
    pub(crate) attempt: u32,
    pub(crate) deadline_unix_ms: u64,
}

impl Host {
    pub(crate) fn new(
        function: &FunctionName,
        settings: &Arc<FunctionSettings>,
        logs: &Arc<dyn LogSink>,
    ) -> Result<Self, CallError> {
        let writer = Writer::new(logs.clone(), function.clone());
        let standard =
            [Level::Info, Level::Error].map(|level| LineStream::new(writer.clone(), level));
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        let mut wasi = WasiCtx::builder();
        wasi.stdout(standard[0].clone())
            .stderr(standard[1].clone())
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false);
        if !settings.env.is_empty() {
            wasi.envs(&settings.env);
        }
        for grant in &settings.files {
            let perms = if grant.writable {
                FsPerms::ReadWrite
            } else {
                FsPerms::ReadOnly
            };
            wasi.preopened_dir(&grant.host, &grant.guest, perms)
                .map_err(|error| {
                    CallError::Start(format!(
                        "the granted folder {} cannot be opened: {error}",
                        grant.host.display()
                    ))
                })?;
        }
        Ok(Self {
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            outgoing: Outgoing::new(settings.clone()),
            table,
            limits: Limits::new(settings.memory_bytes),
            settings: settings.clone(),
            writer,
            standard,
            deadline: Instant::now(),
            timed_out: false,
            current: None,
            tx: None,
        })
    }

    pub(crate) fn begin(&mut self, call: &Call, tx: Transaction) {
        self.deadline = call.deadline;
        self.timed_out = false;
        self.limits.begin();
        self.writer.begin(call.session.clone(), call.id.clone());
        self.current = Some(Current::of(call));
        self.tx = Some(tx);
    }

    /// Ends the call and gives its transaction back.
    pub(crate) fn end(&mut self) -> Transaction {
        for stream in &self.standard {
            stream.end_line();
        }
        self.current = None;
        self.tx
            .take()
            .unwrap_or_else(|| unreachable!("`begin` was called before"))
    }

    /// The invocation's state; none while the worker starts.
    pub(crate) fn tx(&mut self) -> Option<&mut Transaction> {
        self.tx.as_mut()
    }

    /// Uses a bucket as the invocation's namespace has it; none while the worker starts.
    pub(crate) fn in_bucket<T>(
        &mut self,
        bucket: Bucket<'_>,
        use_state: impl FnOnce(&mut Transaction, Bucket<'_>) -> T,
    ) -> Option<T> {
        let Bucket::Shared(name) = bucket else {
            return Some(use_state(self.tx.as_mut()?, bucket));
        };
        let namespace = self.current.as_ref()?.function.namespace();
        let name = bucket_within(namespace, name);
        Some(use_state(self.tx.as_mut()?, Bucket::Shared(&name)))
    }

    /// The full name of a shared bucket, while an invocation runs.
    fn full_name(&self, bucket: &str) -> Option<String> {
        let namespace = self.current.as_ref()?.function.namespace();
        Some(bucket_within(namespace, bucket).into_owned())
    }

    /// Asks for a key that is used next, if it is a shared one that is placed among nodes and not known yet.
    pub(crate) async fn fetch(&mut self, bucket: Bucket<'_>, key: &str) -> Result<(), StateError> {
        let Bucket::Shared(name) = bucket else {
            return Ok(());
        };
        check_key(key)?;
        let (Some(name), Some(tx)) = (self.full_name(name), &self.tx) else {
            return Ok(());
        };
        let Some(placed) = tx.lacks(Bucket::Shared(&name), key) else {
            return Ok(());
        };
        let asked = Instant::now();
        let found = self.reached(placed.read(&name, key).await)?;
        if let Some(tx) = &mut self.tx {
            tx.fetched(&name, key, found, asked.elapsed());
        }
        Ok(())
    }

    /// Remembers that a shared key could not be asked for.
    fn reached<T>(&mut self, answer: Result<T, StateError>) -> Result<T, StateError> {
        if let (Err(StateError::Unreachable(problem)), Some(tx)) = (&answer, &mut self.tx) {
            tx.unreachable(problem.clone());
        }
        answer
    }

    /// The keys of a bucket, wherever they are; none while the worker starts.
    pub(crate) async fn list(
        &mut self,
        bucket: Bucket<'_>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Option<Result<Vec<String>, StateError>> {
        let lister = self.tx.as_ref()?.lister(bucket);
        let (Bucket::Shared(name), Some((lister, more))) = (bucket, lister) else {
            return self.in_bucket(bucket, |tx, bucket| {
                tx.list_keys(bucket, prefix, after, limit)
            });
        };
        let name = self.full_name(name)?;
        let range = KeyRange {
            bucket: &name,
            prefix,
            after,
            limit,
        };
        let limit = limit + more;
        let listed = lister.list(KeyRange { limit, ..range }).await;
        let listed = self.reached(listed);
        let tx = self.tx.as_ref()?;
        Some(listed.map(|listed| tx.with_own_keys(range, listed)))
    }

    /// A hint at what the function wrote last, for the message of a trap.
    pub(crate) fn last_words(&self) -> &'static str {
        "; its log may say more"
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.outgoing,
        }
    }
}

/// Everything that a component may import.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    offered::Host_::add_to_linker::<_, HasSelf<Host>>(&mut linker, |host| host)?;
    Ok(linker)
}
