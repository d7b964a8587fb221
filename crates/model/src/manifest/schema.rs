//! The keys of `fulmar.toml`: one table that the parser, its messages, the canonical text and the
//! reference page (`docs/configuration.md`) all come from.

use crate::manifest::limits;
use crate::units::{ByteSize, CpuAmount, Duration};

/// One key of the manifest.
#[derive(Debug)]
pub struct Field {
    /// Its table; empty for the top level.
    pub table: &'static str,
    /// Its name. Empty when any name may be chosen, as in `[env]`.
    pub key: &'static str,
    /// What values it takes.
    pub rule: Rule,
    /// What it does, in a sentence or two of Markdown.
    pub about: &'static str,
}

/// What values a key takes.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// A size as text.
    Size {
        /// Smallest.
        min: ByteSize,
        /// Largest.
        max: ByteSize,
    },
    /// A duration as text.
    Time {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// An amount of CPU as text.
    Cpu {
        /// Largest.
        max: CpuAmount,
    },
    /// A whole number.
    Count {
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// One of some words.
    Choice(&'static [&'static str]),
    /// True or false.
    Flag,
    /// A list of some words.
    Choices(&'static [&'static str]),
    /// Anything else, described.
    Form(&'static str),
}

impl Rule {
    /// The values in words, to follow "allowed: ".
    pub fn allowed(&self) -> String {
        match self {
            Self::Size { min, max } => format!("a size from {min} to {max} such as \"64MiB\""),
            Self::Time { min, max } => format!("a duration from {min} to {max} such as \"30s\""),
            Self::Cpu { max } => format!("an amount of CPU up to {max} such as \"500m\""),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Choice(allowed) => quoted(allowed),
            Self::Flag => "true or false".to_owned(),
            Self::Choices(words) => format!("a list of {}", quoted(words)),
            Self::Form(text) => (*text).to_owned(),
        }
    }
}

fn quoted(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    words.join(", ")
}

macro_rules! fields {
    ($($(#[doc = $about:literal])+ $name:ident = $table:literal $key:literal $rule:expr;)*) => {
        $(
            pub(super) static $name: Field = Field {
                table: $table,
                key: $key,
                rule: $rule,
                about: concat!($($about),+),
            };
        )*

        /// All keys, in the order of the canonical text.
        pub static FIELDS: &[&Field] = &[$(&$name),*];
    };
}

const SIZE_OF_BODY: Rule = Rule::Size {
    min: limits::MIN_BODY,
    max: limits::MAX_BODY,
};
const SLO: Rule = Rule::Time {
    min: limits::MIN_SLO,
    max: limits::MAX_SLO,
};
const BACKOFF: Rule = Rule::Time {
    min: limits::MIN_BACKOFF,
    max: limits::MAX_BACKOFF,
};

fields! {
    /// Name of the function: `/fn/{name}` invokes it. With a namespace in front, as in `shop.counter`, the function shares buckets
    /// with the functions of that namespace, sends messages to them, and counts for its quotas.
    NAME = "" "name" Rule::Form("1 to 63 of a-z, 0-9 and, between them, hyphens; a namespace of the same form and a dot may be in front");
    /// Path of the WebAssembly component, relative to the manifest; of a program, the folder, file or .tar that it starts in; of a
    /// container, the folder or .tar of an OCI image layout, or an image in a registry as in `oci://registry.example/team/name@sha256:…`,
    /// which `fulmar deploy` pulls with the credentials of `docker login` or `podman login`.
    ARTIFACT = "" "artifact" Rule::Form("the path of a .wasm file, of a program's files or of an image, relative to the manifest; or oci:// and the name of an image");
    /// What workers are: `wasm` instances of a component, `process` programs that serve HTTP on a Unix socket, `container` the same in
    /// a container. Without it, `process` if `process.command` is given, else `wasm`.
    RUNTIME = "" "runtime" Rule::Choice(&["wasm", "process", "container"]);
    /// When an invocation is acknowledged: `memory` at once (a crash of the node loses it),
    /// `local` after it is synced to the node's disk, `replicated` after it is in the object store as well,
    /// so that the loss of the node loses nothing. `replicated` needs nodes with `[store]`.
    DURABILITY = "" "durability" Rule::Choice(&["memory", "local", "replicated"]);
    /// What becomes of sessions whose node is gone or cut off from the registry: with `keep-owner` they wait
    /// for it; with `takeover-after 30s` another node takes them over from the object store when it has been
    /// gone for so long, and the node itself stops serving them before that.
    ON_PARTITION = "" "on_partition" Rule::Form("\"keep-owner\", or \"takeover-after\" with a duration from 1s to 24h such as \"takeover-after 30s\"");
    /// Where the state of a session lives: `auto` lets the platform decide, `in-function` keeps it
    /// next to the session's worker, so that an invocation runs on the node that has the state; `in-edge`
    /// keeps it in one node's data store, and an invocation runs on the node that took it, with the state
    /// fetched and given back. On a single node all three mean the same. `external` keeps it in Redis, PostgreSQL or
    /// an object store, and an invocation runs on the node that took it, which needs `[external]` in its configuration
    /// (`--external` with `fulmar dev`). `in-client` seals it into the `Fulmar-State` header of the response, which the
    /// client sends with its next request.
    EXECUTION_MODEL = "" "execution_model" Rule::Choice(&["auto", "in-function", "in-edge", "external", "in-client"]);
    /// With `in-client`: refuse a token that is not the session's newest, for which the node keeps a
    /// counter for each session.
    ANTI_ROLLBACK = "" "anti_rollback" Rule::Flag;
    /// HTTP methods that only read. Their invocations of one session may run together, and writes in them are
    /// refused with `read-only-violation`.
    READ_ONLY_METHODS = "" "read_only_methods" Rule::Choices(METHODS);

    /// What is run, with its arguments, of a program: it serves HTTP on the Unix socket that `FULMAR_SOCKET` names. What has a `/` is a
    /// path in the artefact, anything else is looked for in the system's folders. Of a container, what is run instead of what its
    /// image says.
    PROCESS_COMMAND = "process" "command" Rule::Form("a list of texts such as [\"python3\", \"main.py\"]; empty for a component");

    /// Memory of one worker: linear memory of a component, all memory of a program or container with what it starts. An invocation
    /// that needs more fails with `memory-limit`.
    MEMORY = "limits" "memory" Rule::Size { min: limits::MIN_MEMORY, max: limits::MAX_MEMORY };
    /// Time of one invocation. After it the invocation is cut off with `function-timeout` and leaves no trace.
    TIMEOUT = "limits" "timeout" Rule::Time { min: limits::MIN_TIMEOUT, max: limits::MAX_TIMEOUT };
    /// Runs of one invocation whose worker crashes or has too little memory, within its time. Nothing that such a run wrote or sent
    /// is kept; what it did elsewhere may happen again.
    ATTEMPTS = "limits" "attempts" Rule::Count { min: 1, max: limits::MAX_RUNS };
    /// Largest body of a request; a larger one is refused with `body-too-large`.
    MAX_REQUEST = "limits" "max_request" SIZE_OF_BODY;
    /// Largest body of a response; a larger one fails with `response-too-large`.
    MAX_RESPONSE = "limits" "max_response" SIZE_OF_BODY;

    /// Workers of a program or container that are always there, from its deployment on. Above it they come and go as they are needed.
    WORKERS_MIN = "workers" "min" Rule::Count { min: 0, max: limits::MAX_WORKERS };
    /// Live workers without a session at once, hence invocations without a session that run at once. All sessions of a program share
    /// them.
    WORKERS_MAX = "workers" "max" Rule::Count { min: 1, max: limits::MAX_WORKERS };
    /// A worker without work for so long is dropped.
    IDLE_TTL = "workers" "idle_ttl" Rule::Time { min: limits::MIN_IDLE_TTL, max: limits::MAX_IDLE_TTL };

    /// CPU that each worker that is a program or container has for itself, no more and no less; nodes keep as much of theirs free
    /// for it. `0m` reserves none.
    RESERVED_CPU = "workers" "reserved_cpu" Rule::Cpu { max: limits::MAX_CPU };
    /// How much of the CPU that is not reserved a program or container gets when there is not enough for all: in proportion to
    /// this.
    CPU_WEIGHT = "workers" "cpu_weight" Rule::Count { min: 1, max: limits::MAX_CPU_WEIGHT };

    /// Waiting invocations of one session, and of all invocations without a session together. Over it: 429 `queue-full`.
    QUEUE_MAX = "queue" "max" Rule::Count { min: 1, max: limits::MAX_QUEUE };

    /// How long an invocation may have to wait for a worker of a program or container when more comes than they work off; whoever
    /// would wait for longer gets 429 `overloaded` at once. `0s` is what an invocation takes, and at least 10 ms. A burst may
    /// wait for 400 ms, messages for as long as it takes.
    QUEUE_MAX_WAIT = "queue" "max_wait" Rule::Time { min: limits::MIN_WAIT, max: limits::MAX_TIMEOUT };

    /// Invocations of one session that run one after the other in one worker and are committed together, at most: one write to the
    /// disk or to the external store for all of them. Each sees what those before it wrote. If one fails, nothing of the batch is kept, and
    /// each runs again on its own. Read-only invocations are not among them.
    BATCH_MAX = "batch" "max" Rule::Count { min: 1, max: limits::MAX_BATCH };
    /// How long the first invocation of a batch waits for others. With `0s` the batch is what waits in the session's queue.
    BATCH_MAX_WAIT = "batch" "max_wait" Rule::Time { min: limits::MIN_WAIT, max: limits::MAX_BATCH_WAIT };

    /// Deliveries of a message to this function before it is parked as a dead letter.
    MAX_ATTEMPTS = "messages" "max_attempts" Rule::Count { min: 1, max: limits::MAX_ATTEMPTS };
    /// Pause before the second delivery; it doubles each time, with jitter.
    BACKOFF_INITIAL = "messages" "backoff_initial" BACKOFF;
    /// The longest pause between deliveries; at least `backoff_initial`.
    BACKOFF_MAX = "messages" "backoff_max" BACKOFF;

    /// How long the response to an `Idempotency-Key` is kept and replayed.
    RETENTION = "idempotency" "retention" Rule::Time { min: limits::MIN_RETENTION, max: limits::MAX_RETENTION };

    /// Longest response time, from the arrival of a request at its node to the answer; a later answer is a miss. Among
    /// other nodes an invocation runs where it is expected soonest, and is refused with `slo-unattainable` where none is
    /// expected to be in time. `24h` promises nothing.
    SLO_RESPONSE = "slo" "max_response" SLO;
    /// Longest mean time of an access to the session's state: nodes that are further from it are out of the question. `24h`
    /// promises nothing.
    SLO_DATA = "slo" "max_data_access" SLO;
    /// What each second costs that an answer is late, in units of your own; summed up in the metrics.
    SLO_PENALTY = "slo" "penalty_per_second" Rule::Count { min: 0, max: limits::MAX_PENALTY };
    /// Run an invocation also if no node is expected to be in time.
    SLO_BEST_EFFORT = "slo" "best_effort" Rule::Flag;

    /// Environment variables that the function sees; it sees no others.
    ENV = "env" "" Rule::Form("NAME = \"value\"; names of letters, digits and _, not starting with a digit; values of up to 64 KiB");
    /// Answers of `wasi:config/store`.
    CONFIG = "config" "" Rule::Form("key = \"value\"; keys of up to 256 bytes without control characters; values of up to 64 KiB");
    /// Whether a program may use the network. Components are granted hosts instead, with `http`.
    GRANTS_NETWORK = "grants" "network" Rule::Flag;
    /// Hosts that `wasi:http/outgoing-handler` may call. Without a port every port of the host is meant.
    GRANTS_HTTP = "grants" "http" Rule::Form("a list of \"host\" or \"host:port\" without scheme, path or wildcard");
    /// Directories of the node that the function sees as its own: `host` there, `guest` here,
    /// `mode` `ro` (the default) or `rw`. A program sees them where they are: `host` and `guest` are the same then.
    GRANTS_FILES = "grants" "files" Rule::Form("a list of { host = \"/absolute\", guest = \"/absolute\", mode = \"ro\" }");
}

/// Methods that can be declared read-only.
pub(super) static METHODS: &[&str] = &["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];

/// Keys of one entry of `grants.files`.
pub(super) static FILE_GRANT_KEYS: &[&str] = &["host", "guest", "mode"];

/// Tables of the manifest, in order, without the top level.
pub(super) fn tables() -> Vec<&'static str> {
    let mut tables: Vec<&str> = FIELDS.iter().map(|field| field.table).collect();
    tables.dedup();
    tables.retain(|table| !table.is_empty());
    tables
}

/// What may stand in a table (its keys; at the top level also the tables). Empty: any key.
pub(super) fn allowed_keys(table: &str) -> Vec<&'static str> {
    let mut keys: Vec<&str> = FIELDS
        .iter()
        .filter(|field| field.table == table && !field.key.is_empty())
        .map(|field| field.key)
        .collect();
    if table.is_empty() {
        keys.extend(tables());
    }
    keys
}

/// The table that has a key of this name, if there is exactly one: for keys put in the wrong place.
pub(super) fn home_of(key: &str) -> Option<&'static Field> {
    let mut homes = FIELDS.iter().filter(|field| field.key == key);
    match (homes.next(), homes.next()) {
        (Some(home), None) => Some(home),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_says_what_it_does_once() {
        for field in FIELDS {
            assert!(
                field.about.trim().ends_with('.'),
                "{}.{}",
                field.table,
                field.key
            );
            let same = FIELDS
                .iter()
                .filter(|other| (other.table, other.key) == (field.table, field.key));
            assert_eq!(same.count(), 1);
        }
    }
}
