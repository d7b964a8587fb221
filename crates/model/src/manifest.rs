//! `fulmar.toml`: what a function is called, what it may use and how it is run.
//!
//! [`Manifest::parse`] is the only way in from text; a `Manifest` that exists is within its
//! [`limits`]. Errors name the place in the file, what is allowed there and what to do. An option
//! that this node cannot honour is refused, never ignored.

pub mod error;
pub mod grants;
pub mod limits;
pub mod schema;

mod canonical;
mod reader;
mod suggest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

pub use error::{ManifestError, ManifestIssue};
pub use grants::{FileGrant, FileMode, Grants, HostGrant};

use crate::id::{FunctionName, NameError};
use crate::units::{ByteSize, CpuAmount, Duration};

/// How a function is called, limited and run. Serialises (JSON) with the key names of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Name of the function.
    pub name: FunctionName,
    /// Path of the component, of a program's files or of an image as written: relative to the manifest.
    pub artifact: String,
    /// What its workers are.
    pub runtime: Runtime,
    /// When an invocation is acknowledged.
    pub durability: Durability,
    /// What becomes of the sessions of a node that is gone.
    pub on_partition: OnPartition,
    /// Where the state of a session lives.
    pub execution_model: ExecutionModel,
    /// Whether a carried state that is not the newest is refused.
    pub anti_rollback: bool,
    /// What invocations are promised.
    pub slo: Slo,
    /// Methods whose invocations only read, in upper case.
    pub read_only_methods: BTreeSet<String>,
    /// The program that is run instead of a component, if it is one.
    pub process: Process,
    /// Limits of one invocation.
    pub limits: Limits,
    /// The function's worker pool.
    pub workers: Workers,
    /// Waiting invocations.
    pub queue: Queue,
    /// Invocations of one session that run together.
    pub batch: Batch,
    /// Deliveries of messages to the function.
    pub messages: Messages,
    /// Replay of responses.
    pub idempotency: Idempotency,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Answers of `wasi:config/store`.
    pub config: BTreeMap<String, String>,
    /// What the function may touch outside.
    pub grants: Grants,
}

impl Manifest {
    /// Reads a manifest. `file_name` is only for messages.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ManifestError> {
        reader::read(text, file_name)
    }

    /// The defaults, as for a component that is deployed without a manifest.
    pub fn for_artifact(name: FunctionName) -> Self {
        Self {
            artifact: format!("{name}.wasm"),
            runtime: Runtime::default(),
            name,
            durability: Durability::default(),
            on_partition: OnPartition::default(),
            execution_model: ExecutionModel::default(),
            anti_rollback: false,
            slo: Slo::default(),
            read_only_methods: BTreeSet::new(),
            process: Process::default(),
            limits: Limits::default(),
            workers: Workers::default(),
            queue: Queue::default(),
            batch: Batch::default(),
            messages: Messages::default(),
            idempotency: Idempotency::default(),
            env: BTreeMap::new(),
            config: BTreeMap::new(),
            grants: Grants::default(),
        }
    }

    /// The canonical text: every key with its value, so that later defaults change nothing that
    /// is deployed. Parses to an equal manifest.
    pub fn to_toml(&self) -> String {
        canonical::write(self)
    }

    /// Whether workers are processes of their own rather than instances of a component.
    pub fn is_program(&self) -> bool {
        self.runtime != Runtime::Wasm
    }

    /// Whether invocations with this HTTP method are declared read-only.
    pub fn is_read_only(&self, method: &str) -> bool {
        self.read_only_methods.contains(method)
    }
}

/// The name of a function deployed from a bare component: the file's stem in lower case with
/// hyphens for underscores (Cargo writes `my_function.wasm` for the package `my-function`).
pub fn function_name_of(artifact: &Path) -> Result<FunctionName, NameError> {
    let stem = artifact.file_stem().unwrap_or_default().to_string_lossy();
    FunctionName::new(&stem.to_lowercase().replace('_', "-"))
}

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// The word in the manifest.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// What the word in the manifest says.
            pub fn parse(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

word_enum! {
    /// When an invocation is acknowledged.
    Durability {
        /// At once: a crash of the node loses it.
        Memory = "memory",
        /// After its commit is synced to the node's disk.
        #[default]
        Local = "local",
        /// After its commit is in the object store as well.
        Replicated = "replicated",
    }
}

word_enum! {
    /// What a function's workers are.
    Runtime {
        /// Instances of a WebAssembly component.
        #[default]
        Wasm = "wasm",
        /// Programs, confined.
        Process = "process",
        /// Containers of an image.
        Container = "container",
    }
}

word_enum! {
    /// Where the state of a session lives.
    ExecutionModel {
        /// The platform decides.
        #[default]
        Auto = "auto",
        /// Next to the session's worker: invocations go where the state is.
        InFunction = "in-function",
        /// In one node's data store: the state goes where the invocations are, and back.
        InEdge = "in-edge",
        /// In a store that all nodes share and none of them keeps.
        External = "external",
        /// In a sealed token that the client sends along.
        InClient = "in-client",
    }
}

/// What becomes of the sessions of a node that is gone or cut off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPartition {
    /// They wait for it.
    #[default]
    KeepOwner,
    /// Another node takes them over when it has been gone for so long.
    TakeoverAfter(Duration),
}

impl OnPartition {
    /// What the text in the manifest says.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "keep-owner" {
            return Some(Self::KeepOwner);
        }
        let after = text.strip_prefix("takeover-after ")?.trim().parse().ok()?;
        (limits::MIN_TAKEOVER..=limits::MAX_TAKEOVER)
            .contains(&after)
            .then_some(Self::TakeoverAfter(after))
    }

    /// After which time another node takes the sessions over, if one does.
    pub fn takeover_after(self) -> Option<Duration> {
        match self {
            Self::KeepOwner => None,
            Self::TakeoverAfter(after) => Some(after),
        }
    }
}

impl std::fmt::Display for OnPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KeepOwner => f.write_str("keep-owner"),
            Self::TakeoverAfter(after) => write!(f, "takeover-after {after}"),
        }
    }
}

impl Serialize for OnPartition {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `[slo]`: what invocations are promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slo {
    /// Longest response time.
    pub max_response: Duration,
    /// Longest mean time of an access to data.
    pub max_data_access: Duration,
    /// What each second costs that a response is late.
    pub penalty_per_second: u32,
    /// Whether an invocation runs although no node is expected to keep the promise.
    pub best_effort: bool,
}

impl Slo {
    /// Whether anything is promised.
    pub fn promises(&self) -> bool {
        self.max_response < limits::MAX_SLO || self.promises_access()
    }

    /// Whether accesses to data are promised to be short.
    pub fn promises_access(&self) -> bool {
        self.max_data_access < limits::MAX_SLO
    }
}

impl Default for Slo {
    fn default() -> Self {
        Self {
            max_response: limits::MAX_SLO,
            max_data_access: limits::MAX_SLO,
            penalty_per_second: limits::DEFAULT_PENALTY,
            best_effort: false,
        }
    }
}

/// `[process]`: a program that is run instead of a component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// What is run, with its arguments; empty for a component, and for an image that says it itself.
    pub command: Vec<String>,
}

/// `[limits]`: what one invocation may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Memory of a worker.
    pub memory: ByteSize,
    /// Time of an invocation.
    pub timeout: Duration,
    /// Runs of an invocation whose workers crash.
    pub attempts: u32,
    /// Body of a request.
    pub max_request: ByteSize,
    /// Body of a response.
    pub max_response: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: limits::DEFAULT_MEMORY,
            timeout: limits::DEFAULT_TIMEOUT,
            attempts: limits::DEFAULT_RUNS,
            max_request: limits::DEFAULT_REQUEST,
            max_response: limits::DEFAULT_RESPONSE,
        }
    }
}

/// `[workers]`: the function's worker pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Workers {
    /// Live workers that are always kept, if they are processes of their own.
    pub min: u32,
    /// Live workers without a session at once; all of a program or container.
    pub max: u32,
    /// A worker idle for longer is dropped.
    pub idle_ttl: Duration,
    /// CPU that each has for itself, if it is a process of its own; 0 for what others leave.
    pub reserved_cpu: CpuAmount,
    /// How much of what others leave.
    pub cpu_weight: u32,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            min: 0,
            max: limits::DEFAULT_WORKERS,
            idle_ttl: limits::DEFAULT_IDLE_TTL,
            reserved_cpu: CpuAmount::default(),
            cpu_weight: limits::DEFAULT_CPU_WEIGHT,
        }
    }
}

/// `[queue]`: invocations that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Most of one session, and most of all without a session.
    pub max: u32,
    /// How long one may have to wait for a worker that is a process of its own; 0 for what suits the function.
    pub max_wait: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max: limits::DEFAULT_QUEUE,
            max_wait: Duration::default(),
        }
    }
}

/// `[batch]`: invocations of one session that run one after the other in one worker and are committed together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Batch {
    /// Most of them; 1 for none together.
    pub max: u32,
    /// How long the first waits for others.
    pub max_wait: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max: 1,
            max_wait: Duration::default(),
        }
    }
}

/// `[messages]`: how deliveries to the function are retried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Messages {
    /// Deliveries before the message is parked as a dead letter.
    pub max_attempts: u32,
    /// First pause.
    pub backoff_initial: Duration,
    /// Longest pause; at least `backoff_initial`.
    pub backoff_max: Duration,
}

impl Default for Messages {
    fn default() -> Self {
        Self {
            max_attempts: limits::DEFAULT_ATTEMPTS,
            backoff_initial: limits::DEFAULT_BACKOFF_INITIAL,
            backoff_max: limits::DEFAULT_BACKOFF_MAX,
        }
    }
}

/// `[idempotency]`: replay of responses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Idempotency {
    /// How long a response is kept.
    pub retention: Duration,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self {
            retention: limits::DEFAULT_RETENTION,
        }
    }
}
