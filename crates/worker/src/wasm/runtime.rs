//! The WebAssembly engine of a node: how components are compiled and isolated, and the clock that
//! interrupts them.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fulmar_model::FunctionName;
use wasmtime::component::Linker;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::compute::Compute;
use crate::wasm::host::{self, Host};

/// Stack of a function in bytes: half of wasmtime's default for async stacks, so that the host's
/// part fits as well.
const WASM_STACK_BYTES: usize = 1 << 20;
/// Stack that a running invocation is given, in bytes.
const ASYNC_STACK_BYTES: usize = 2 << 20;
/// Largest linear memory in bytes: all that 32 bits address.
const MAX_MEMORY_BYTES: usize = 4 << 30;
/// Core modules of one component: `wasm32-wasip2` links one and some small adapters, Python more.
const CORE_INSTANCES_PER_WORKER: u32 = 8;
/// Memories of one component on average; most have one, some adapters another.
const MEMORIES_PER_WORKER: u32 = 1;
/// Tables of one component on average.
const TABLES_PER_WORKER: u32 = 4;
/// Slots beyond the workers that wait: for those that start before an old one is let go.
const SPARE_WORKERS: u32 = 128;
/// Bytes of a memory or stack kept in place when its slot is used again.
const KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// How the runtime is sized.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// Live workers at once.
    pub max_workers: u32,
    /// How often running functions let others run and are checked for their deadline.
    pub tick: Duration,
    /// Threads for calls that compute for longer than a moment; without any they stay on the thread that asked for them.
    pub computing_threads: usize,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            max_workers: 1000,
            tick: Duration::from_millis(2),
            computing_threads: std::thread::available_parallelism().map_or(1, NonZero::get),
        }
    }
}

/// The engine cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Wasmtime said no.
    #[error("cannot set up the WebAssembly engine: {0:#}")]
    Engine(wasmtime::Error),
    /// A thread could not be started.
    #[error("cannot start the clock of the WebAssembly engine: {0}")]
    Thread(#[from] std::io::Error),
}

/// The WebAssembly engine of a node. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    engine: Engine,
    linker: Linker<Host>,
    allocation: &'static str,
    ticker: Ticker,
    compute: Option<Compute>,
}

impl Runtime {
    /// Sets the engine up: with memory slots reserved ahead, or, where address space is short (small
    /// boards), with memory mapped on demand.
    pub fn new(options: &RuntimeOptions) -> Result<Self, RuntimeError> {
        let (engine, allocation) = match Engine::new(&config(Some(options.max_workers))) {
            Ok(engine) => (engine, "pooling"),
            Err(error) => {
                tracing::warn!(%error, "no address space for a pool of workers: memory is mapped on demand");
                (
                    Engine::new(&config(None)).map_err(RuntimeError::Engine)?,
                    "on-demand",
                )
            }
        };
        let linker = host::linker(&engine).map_err(RuntimeError::Engine)?;
        let ticker = Ticker::start(engine.clone(), options.tick)?;
        let compute = match options.computing_threads {
            0 => None,
            threads => Some(Compute::start(threads)?),
        };
        Ok(Self(Arc::new(Inner {
            engine,
            linker,
            allocation,
            ticker,
            compute,
        })))
    }

    /// How memory is allocated: `pooling` or `on-demand`.
    pub fn allocation(&self) -> &'static str {
        self.0.allocation
    }

    /// Names what compiled artefacts depend on: this version of the engine and its settings.
    pub fn compatibility(&self) -> String {
        use std::hash::{Hash, Hasher};
        let mut hasher = rustc_hash::FxHasher::default();
        self.0
            .engine
            .precompile_compatibility_hash()
            .hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Calls of a function that compute for long and wait for a thread.
    pub fn waiting(&self, function: &FunctionName) -> usize {
        let compute = self.compute();
        compute.map_or(0, |compute| compute.waiting(function))
    }

    /// What calls that take long run on.
    pub(crate) fn compute(&self) -> Option<&Compute> {
        self.0.compute.as_ref()
    }

    pub(crate) fn linker(&self) -> &Linker<Host> {
        &self.0.linker
    }

    /// Keeps the clock running while it lives.
    pub(crate) fn running(&self) -> Running<'_> {
        self.0.ticker.begin();
        Running(&self.0.ticker)
    }
}

fn config(pooled_workers: Option<u32>) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(ASYNC_STACK_BYTES)
        .concurrency_support(false)
        .wasm_component_model(true);
    if let Some(workers) = pooled_workers.map(|workers| workers.saturating_add(SPARE_WORKERS)) {
        let mut pool = PoolingAllocationConfig::default();
        pool.total_component_instances(workers)
            .total_core_instances(workers.saturating_mul(CORE_INSTANCES_PER_WORKER))
            .total_memories(workers.saturating_mul(MEMORIES_PER_WORKER) + workers / 4)
            .total_tables(workers.saturating_mul(TABLES_PER_WORKER))
            .total_stacks(workers)
            .max_memory_size(MAX_MEMORY_BYTES)
            .max_memories_per_component(8)
            .max_tables_per_component(64)
            .max_core_instances_per_component(64)
            .table_elements(100_000)
            .max_unused_warm_slots(100)
            .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
            .table_keep_resident(KEEP_RESIDENT_BYTES)
            .async_stack_keep_resident(KEEP_RESIDENT_BYTES);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

/// Advances the engine's epoch while anything runs.
struct Ticker {
    shared: Arc<TickerShared>,
    /// Joined when dropped.
    handle: Option<std::thread::JoinHandle<()>>,
}

struct TickerShared {
    stop: AtomicBool,
    /// Whether anything ran since the last tick; the thread parks when not.
    active: AtomicBool,
    parked: AtomicBool,
    running: std::sync::atomic::AtomicUsize,
    thread: std::sync::OnceLock<std::thread::Thread>,
}

/// A call in progress.
pub(crate) struct Running<'a>(&'a Ticker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.shared.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ticker {
    fn start(engine: Engine, tick: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(TickerShared {
            stop: AtomicBool::new(false),
            active: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            running: 0.into(),
            thread: std::sync::OnceLock::new(),
        });
        let handle = std::thread::Builder::new()
            .name("fulmar-ticker".into())
            .spawn({
                let shared = shared.clone();
                move || {
                    while !shared.stop.load(Ordering::Relaxed) {
                        std::thread::sleep(tick);
                        engine.increment_epoch();
                        let active = shared.active.swap(false, Ordering::Relaxed);
                        if !active && shared.running.load(Ordering::Relaxed) == 0 {
                            shared.parked.store(true, Ordering::SeqCst);
                            // A call that began before it could see the flag is seen here.
                            if shared.running.load(Ordering::SeqCst) == 0
                                && !shared.stop.load(Ordering::SeqCst)
                            {
                                std::thread::park();
                            }
                            shared.parked.store(false, Ordering::SeqCst);
                        }
                    }
                }
            })?;
        // Set once, right here: nobody else has the cell.
        let _ = shared.thread.set(handle.thread().clone());
        Ok(Self {
            shared,
            handle: Some(handle),
        })
    }

    fn begin(&self) {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if !self.shared.active.load(Ordering::Relaxed) {
            self.shared.active.store(true, Ordering::Relaxed);
        }
        if self.shared.parked.load(Ordering::SeqCst)
            && let Some(thread) = self.shared.thread.get()
        {
            thread.unpark();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(handle) = self.handle.take() {
            handle.thread().unpark();
            // At most a tick. It does not panic, and nothing is lost if it did.
            let _ = handle.join();
        }
    }
}
