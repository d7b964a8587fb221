//! What a worker's component can reach: its invocation's state, and nothing else unless granted.

pub(crate) mod config;
pub(crate) mod function;
pub(crate) mod keyvalue;
pub(crate) mod keyvalue_draft2;
pub(crate) mod limits;
pub(crate) mod logging;
pub(crate) mod outgoing;

use std::sync::Arc;
use std::time::Instant;

use fulmar_model::{FunctionName, SessionName};
use fulmar_state::Transaction;
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

/// The data of a worker's store.
pub(crate) struct Host {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    pub(crate) table: ResourceTable,
    pub(crate) limits: Limits,
    pub(crate) settings: Arc<FunctionSettings>,
    pub(crate) writer: Arc<Writer>,
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
        let mut wasi = WasiCtx::builder();
        wasi.stdout(LineStream::new(writer.clone(), Level::Info))
            .stderr(LineStream::new(writer.clone(), Level::Error))
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
            table: ResourceTable::new(),
            limits: Limits::new(settings.memory_bytes),
            settings: settings.clone(),
            writer,
            deadline: Instant::now(),
            timed_out: false,
            current: None,
            tx: None,
        })
    }

    pub(crate) fn begin(&mut self, call: &Call, tx: Transaction) {
        self.deadline = call.deadline;
        self.timed_out = false;
        self.writer.begin(call.session.clone(), call.id.clone());
        self.current = Some(Current::of(call));
        self.tx = Some(tx);
    }

    /// Ends the call and gives its transaction back.
    pub(crate) fn end(&mut self) -> Transaction {
        self.current = None;
        self.tx
            .take()
            .unwrap_or_else(|| unreachable!("`begin` was called before"))
    }

    /// The invocation's state; none while the worker starts.
    pub(crate) fn tx(&mut self) -> Option<&mut Transaction> {
        self.tx.as_mut()
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
