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

use fulmar_model::FunctionName;
use fulmar_state::Transaction;
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::call::{Call, CallError};
use crate::compute::Ticks;
use crate::logs::{Level, LineStream, LogSink, Writer};
use crate::running::Running;
use crate::settings::FunctionSettings;
use crate::wasm::bindings::offered;
use limits::Limits;
use outgoing::Outgoing;

/// Handles (buckets, streams, requests) that one worker may hold at once: each costs the node memory
/// that the function's limit does not count.
const MAX_HANDLES: usize = 10_000;

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
    /// How often it was interrupted.
    pub(crate) ticks: Ticks,
    pub(crate) running: Running,
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
            ticks: Ticks::default(),
            running: Running::new(settings.execution_model),
        })
    }

    pub(crate) fn begin(&mut self, call: &Call, tx: Transaction) {
        self.deadline = call.deadline;
        self.timed_out = false;
        self.limits.begin();
        self.writer.begin(call.session.clone(), call.id.clone());
        self.running.begin(call, tx);
    }

    /// Ends the call and gives its transaction back.
    pub(crate) fn end(&mut self) -> Transaction {
        for stream in &self.standard {
            stream.end_line();
        }
        self.running.end()
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
