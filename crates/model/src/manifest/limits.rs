//! Bounds and defaults of the manifest's values, each with its reason.

use crate::units::{ByteSize, CpuAmount, Duration};

/// Longest manifest in bytes: a hundred times what a long one needs, little enough to keep whole.
pub const MAX_MANIFEST_BYTES: usize = 256 << 10;

/// Least memory of a worker: one page of WebAssembly memory.
pub const MIN_MEMORY: ByteSize = ByteSize::kib(64);
/// Most memory of a worker: what 32-bit WebAssembly can address.
pub const MAX_MEMORY: ByteSize = ByteSize::gib(4);
/// Enough for most functions; a small board still holds a dozen such workers.
pub const DEFAULT_MEMORY: ByteSize = ByteSize::mib(64);

/// Shortest time-out: the resolution of the clock that interrupts functions.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(1);
/// Shortest time after which a node that is gone loses its sessions: below it a hiccup would do.
pub const MIN_TAKEOVER: Duration = Duration::from_secs(1);
/// Longest time after which it does; whoever can wait for longer can wait for ever.
pub const MAX_TAKEOVER: Duration = Duration::from_hours(24);

/// Longest time-out: a session is blocked and a client waits for this long.
pub const MAX_TIMEOUT: Duration = Duration::from_hours(1);
/// Within the patience of common HTTP clients and proxies.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Most runs of an invocation: whatever crashes so often does not come back by itself.
pub const MAX_RUNS: u32 = 16;
/// What a worker did outside before it crashed would happen again.
pub const DEFAULT_RUNS: u32 = 1;

/// Most CPU of one worker.
pub const MAX_CPU: CpuAmount = CpuAmount::from_millis(1_024_000);
/// Largest weight of a worker, as the kernel has it.
pub const MAX_CPU_WEIGHT: u32 = 10_000;
/// What the kernel gives to whoever says nothing.
pub const DEFAULT_CPU_WEIGHT: u32 = 100;

/// Smallest limit of a body.
pub const MIN_BODY: ByteSize = ByteSize(1);
/// Largest body in either direction: bodies are held in memory until the commit.
pub const MAX_BODY: ByteSize = ByteSize::mib(64);
/// Requests at the edge are small; a large one is declared.
pub const DEFAULT_REQUEST: ByteSize = ByteSize::mib(1);
/// Responses may be images.
pub const DEFAULT_RESPONSE: ByteSize = ByteSize::mib(16);

/// Most workers of one function on a node: beyond it they only compete for the cores.
pub const MAX_WORKERS: u32 = 10_000;
/// Some for each core of a large machine.
pub const DEFAULT_WORKERS: u32 = 64;
/// Shortest life of an idle worker: below it every invocation would start cold.
pub const MIN_IDLE_TTL: Duration = Duration::from_millis(1);
/// Longest life of an idle worker.
pub const MAX_IDLE_TTL: Duration = Duration::from_hours(24);
/// Outlives the pauses of a client that sends every few minutes at most.
pub const DEFAULT_IDLE_TTL: Duration = Duration::from_secs(300);

/// Longest queue: each waiting invocation holds its body in memory.
pub const MAX_QUEUE: u32 = 1_000_000;
/// A burst of a second at a thousand invocations a second.
pub const DEFAULT_QUEUE: u32 = 1_024;

/// Whatever suits the function.
pub const MIN_WAIT: Duration = Duration::from_millis(0);

/// Most invocations that are committed together: who is in a batch waits for all of it.
pub const MAX_BATCH: u32 = 1_024;
/// Longest wait for a batch to fill.
pub const MAX_BATCH_WAIT: Duration = Duration::from_secs(10);

/// Most deliveries of one message before it is parked.
pub const MAX_ATTEMPTS: u32 = 1_000;
/// With the default back-off about 13 seconds.
pub const DEFAULT_ATTEMPTS: u32 = 8;
/// Shortest pause between deliveries.
pub const MIN_BACKOFF: Duration = Duration::from_millis(1);
/// Longest pause between deliveries.
pub const MAX_BACKOFF: Duration = Duration::from_hours(24);
/// First pause between deliveries.
pub const DEFAULT_BACKOFF_INITIAL: Duration = Duration::from_millis(100);
/// Pauses double up to this one.
pub const DEFAULT_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Shortest promise.
pub const MIN_SLO: Duration = Duration::from_millis(1);
/// Longest promise, which promises nothing.
pub const MAX_SLO: Duration = Duration::from_hours(24);
/// Highest penalty for each second.
pub const MAX_PENALTY: u32 = 1_000_000;
/// Penalty for each second.
pub const DEFAULT_PENALTY: u32 = 1;
/// Shortest memory of an idempotency key: long enough for one retry.
pub const MIN_RETENTION: Duration = Duration::from_secs(1);
/// Longest memory of an idempotency key: every one of them is a stored response.
pub const MAX_RETENTION: Duration = Duration::from_hours(30 * 24);
/// What public APIs with idempotency keys promise.
pub const DEFAULT_RETENTION: Duration = Duration::from_hours(24);

/// Most entries in each of `[env]`, `[config]` and the lists of `[grants]`.
pub const MAX_ENTRIES: usize = 256;
/// Longest name in `[env]` and `[config]`, in bytes.
pub const MAX_ENTRY_NAME_BYTES: usize = 256;
/// Longest value in `[env]` and `[config]`, in bytes.
pub const MAX_ENTRY_VALUE_BYTES: usize = 64 << 10;
/// Longest path, as in Linux.
pub const MAX_PATH_BYTES: usize = 4_096;
/// Longest host name, as in the DNS.
pub const MAX_HOST_BYTES: usize = 253;
