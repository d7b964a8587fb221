//! What a worker needs to know of its function's manifest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fulmar_model::ExecutionModel;
use fulmar_model::manifest::HostGrant;

/// Weight of a function whose manifest names none.
const DEFAULT_WEIGHT: u32 = 100;

/// Limits and grants of a function's workers. Nothing is granted by default.
#[derive(Debug, Clone, Default)]
pub struct FunctionSettings {
    /// Memory of one worker, in bytes: linear memory of an instance, all of a program's.
    pub memory_bytes: usize,
    /// How much CPU a worker that is a process has.
    pub cpu: Cpu,
    /// Largest response, in bytes.
    pub max_response_bytes: usize,
    /// Where the state of the function's sessions is.
    pub execution_model: ExecutionModel,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Answers of `wasi:config/store`.
    pub config: BTreeMap<String, String>,
    /// Hosts that may be called over HTTP.
    pub http: Vec<HostGrant>,
    /// Whether a program may use the network.
    pub network: bool,
    /// Folders that may be used.
    pub files: Vec<FileGrant>,
}

/// How much CPU a worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpu {
    /// What others leave, by weight: 1 to 10,000.
    Weight(u32),
    /// So many thousandths of a CPU, no more and no less.
    Reserved {
        /// Thousandths.
        millis: u32,
    },
}

impl Cpu {
    /// Its weight where what is reserved does not count.
    pub(crate) fn weight(self) -> u32 {
        match self {
            Self::Weight(weight) => weight,
            Self::Reserved { .. } => DEFAULT_WEIGHT,
        }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::Weight(DEFAULT_WEIGHT)
    }
}

/// A folder that a function may use.
#[derive(Debug, Clone)]
pub struct FileGrant {
    /// Where it is on the node.
    pub host: PathBuf,
    /// Where the function sees it.
    pub guest: String,
    /// Whether files may be written, made and removed.
    pub writable: bool,
}
