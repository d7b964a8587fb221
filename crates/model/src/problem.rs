//! What clients are told when something goes wrong: RFC 9457 problems with stable codes.
//!
//! A [`Code`] is public and never changes its meaning; the error catalogue (`docs/errors.md`) is
//! made from the table below.

use std::borrow::Cow;
use std::fmt;

/// Where the codes are explained; the code follows.
pub const TYPE_BASE: &str = "https://fulmar.dev/errors/";
/// Media type of a problem in a response.
pub const CONTENT_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($variant:ident $code:literal $status:literal $title:literal
        explanation: $explanation:literal
        fix: $fix:literal)*) => {
        /// What went wrong, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(
                #[doc = concat!("`", $code, "`: ", $title, ".")]
                $variant,
            )*
        }

        impl Code {
            /// Every code, in the order of the catalogue.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The stable text of the code.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),* }
            }

            /// The HTTP status that goes with it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }

            /// A short name of the problem, the same in every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }

            /// When it happens and what it means for state, for the catalogue.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $explanation),* }
            }

            /// What usually helps.
            pub const fn fix(self) -> &'static str {
                match self { $(Self::$variant => $fix),* }
            }
        }
    };
}

codes! {
    BadRequest "bad-request" 400 "The request cannot be understood"
        explanation: "A path, a query parameter, a header or a body of the node's own API does not have the expected form. Nothing was done."
        fix: "Correct the part of the request that the detail names."
    NotFound "not-found" 404 "There is nothing at this path"
        explanation: "The path belongs to no route of the node."
        fix: "Check the path; functions are below /fn/ and the node's own API below /admin/."
    TokenRequired "token-required" 401 "A token is required"
        explanation: "The node has tokens, and the request came without one. Nothing was done."
        fix: "Send `Authorization: Bearer TOKEN`; the command line takes --token or FULMAR_TOKEN."
    TokenRefused "token-refused" 401 "The token is not known"
        explanation: "The bearer token is malformed, was never made here, or was revoked. Nothing was done."
        fix: "Use a token made with `fulmar token create` and not revoked since."
    ScopeMissing "scope-missing" 403 "The token does not allow this"
        explanation: "The token is good, but not for this: its scopes or its function pattern do not cover the request. Nothing was done."
        fix: "Use a token with the scope, and the function, that the detail names."
    TooManyFailures "too-many-failures" 429 "Too many refused tokens"
        explanation: "So many requests from this address came with tokens that are not good that further such requests are put off for a while. Good tokens are let in all the same."
        fix: "Wait a minute, and correct the token."
    TokensInUse "tokens-in-use" 409 "This would lock everybody out"
        explanation: "As soon as there is a token every request needs one, so there always has to be one with the scope admin. Nothing was changed."
        fix: "Make a token with `--scope admin` first, and revoke the last of those after all others."
    MethodNotAllowed "method-not-allowed" 405 "The method is not allowed here"
        explanation: "The path exists but does not take this method. Functions of the world fulmar:function take only POST; functions of wasi:http/proxy take every method."
        fix: "Use one of the methods in the Allow header."
    FunctionNotFound "function-not-found" 404 "No such function"
        explanation: "No function of this name is deployed on the node."
        fix: "Check the name with `fulmar functions ls`, or deploy it with `fulmar deploy`."
    SessionNameInvalid "session-name-invalid" 400 "The session's name is not valid"
        explanation: "The session in the path is empty, longer than 512 bytes, not UTF-8 or has control characters after percent-decoding. The function did not run."
        fix: "Use 1 to 512 bytes of percent-encoded UTF-8 without control characters."
    StateTokenInvalid "state-token-invalid" 400 "The state that came along cannot be read"
        explanation: "The Fulmar-State header is cut off, sent twice, or was never a token of this node's form. The function did not run."
        fix: "Send the Fulmar-State header of the last response of the same session, unchanged."
    StateTokenRefused "state-token-refused" 403 "The state that came along is not this session's"
        explanation: "The token in Fulmar-State was changed, or was sealed for another function or session, or by another node. The function did not run."
        fix: "Send the Fulmar-State header of the last response of the same session, unchanged."
    StateKeyRetired "state-key-retired" 403 "The state that came along is too old to be opened"
        explanation: "The token was sealed with a key that is no longer in use: keys were replaced several times since. The function did not run."
        fix: "The state in it is lost; begin the session anew, without the header. Replace keys less often than clients come back."
    StateTokenStale "state-token-stale" 409 "The state that came along is not the newest"
        explanation: "The function has anti_rollback and a later invocation of the session has been acknowledged since this token was made; or the session has come back from its client since. The function did not run."
        fix: "Send the Fulmar-State header of the last response of the session."
    StateTooLarge "state-too-large" 507 "The session's state does not fit into a token"
        explanation: "With execution_model = \"in-client\" the state travels in a header, which has to stay below 12 KiB. Nothing of the invocation was kept."
        fix: "Keep less in the session, or use another execution model."
    SessionsInTheWay "sessions-in-the-way" 409 "There are sessions whose state is elsewhere"
        explanation: "The function's execution model was changed, or is to be changed, between `in-client` and one that keeps sessions on the node, and there are sessions of the other kind: they would begin anew without anybody noticing. Nothing was done."
        fix: "Remove the function's sessions first (`fulmar sessions rm`), send no Fulmar-State header, or deploy under another name."
    StateWithClient "state-with-client" 409 "The session's state is with its client"
        explanation: "The session's state is in a token that only its client has, so that messages, asynchronous invocations and operators cannot reach it. Nothing was done."
        fix: "Have the client make the invocation, with Fulmar-Execution-Model: in-function to bring the state back if the function has execution_model = \"auto\", or use another execution model."
    IdempotencyKeyInvalid "idempotency-key-invalid" 400 "The idempotency key is not valid"
        explanation: "The Idempotency-Key header is empty, longer than 255 characters, sent twice or has characters other than visible ASCII. The function did not run."
        fix: "Send one key of 1 to 255 visible ASCII characters, such as a UUID."
    IdempotencyKeyReused "idempotency-key-reused" 422 "The idempotency key was used for another request"
        explanation: "An earlier request with the same Idempotency-Key had another method, path or body. Its response is not replayed, and the function did not run again."
        fix: "Use a new key for a new request, and the same key only to repeat a request unchanged."
    BodyTooLarge "body-too-large" 413 "The request's body is too large"
        explanation: "The body is larger than limits.max_request of the function. The function did not run."
        fix: "Send less, or raise limits.max_request in the function's manifest (up to 64MiB)."
    BodyTimeout "body-timeout" 408 "The request's body did not arrive in time"
        explanation: "The client stopped sending, or sent too slowly. The function did not run."
        fix: "Send the whole body without pauses, then try again."
    QueueFull "queue-full" 429 "Too many invocations are waiting"
        explanation: "queue.max invocations of the session (or, without a session, of the function) are already waiting. The function did not run."
        fix: "Wait for as long as Retry-After says; raise queue.max if such bursts are usual."
    Overloaded "overloaded" 429 "The function has more to do than its workers can"
        explanation: "For a while more has come than the function's workers work off, or a burst would take longer than 0.4 s: whoever came now would wait for too long. What is accepted stays quick, and messages are never refused. The function did not run."
        fix: "Come again after Retry-After; add nodes, raise workers.max or queue.max_wait, or have clients send less."
    NoRoom "no-room" 503 "The node has no room for another worker"
        explanation: "The node's memory or CPU for workers (limits.worker_memory and limits.worker_cpu in its configuration) is less than the function's limits.memory or workers.reserved_cpu, or running workers had all of it for as long as the invocation may take. The function did not run."
        fix: "Try again later or on another node; raise the limit of the node, or lower what the function asks for."
    WorkerNotStarted "worker-not-started" 502 "A worker of the function could not start"
        explanation: "The program ended before it listened on its socket, took too long, or cannot be run or confined here. The function did not run."
        fix: "Read the detail and the function's log with `fulmar logs FUNCTION`, and correct what is deployed."
    CrashLoop "crash-loop" 503 "The function's workers crash again and again"
        explanation: "Several workers in a row ended by themselves, had too little memory or did not start. The node waits before it starts the next one, longer each time up to 30 s; a worker that does its work ends that, and so does another version. The function did not run."
        fix: "Read the detail and the function's log with `fulmar logs FUNCTION`, and correct what is deployed."
    QuotaExceeded "quota-exceeded" 429 "The namespace has all that it may have"
        explanation: "The quotas of the function's namespace allow no further invocation on this node now, or no further function. The function did not run; nothing was deployed."
        fix: "Wait for as long as Retry-After says, remove a function, or raise the quota with `fulmar namespaces set`."
    NamespaceFull "namespace-full" 507 "The namespace has no room for more state"
        explanation: "The namespace's functions keep as much state on the node as its quotas allow. What only reads goes on; the function did not run. State is measured every few seconds."
        fix: "Remove sessions or keys that are not needed any more, or raise the quota with `fulmar namespaces set`."
    SharedWriteRefused "shared-write-refused" 409 "The invocation cannot write shared keys with its session"
        explanation: "The session's state is in the external store, and shared keys are kept by nodes: both cannot be written in one commit. Nothing that the invocation wrote or sent was kept."
        fix: "Send a message to a session that writes the shared key, or give the function another execution_model."
    FunctionTrap "function-trap" 500 "The function crashed"
        explanation: "The function trapped: a panic, an unreachable instruction, an access out of bounds. Nothing that the invocation wrote or sent was kept, and the next invocation gets a fresh worker."
        fix: "Read the function's log with `fulmar logs FUNCTION` and correct the function."
    FunctionTimeout "function-timeout" 504 "The function took too long"
        explanation: "The invocation ran for longer than limits.timeout and was cut off. Nothing that it wrote or sent was kept."
        fix: "Make the function faster, or raise limits.timeout in its manifest (up to 1h)."
    MemoryLimit "memory-limit" 500 "The function needs too much memory"
        explanation: "The worker asked for more than limits.memory and then trapped. Nothing that the invocation wrote or sent was kept."
        fix: "Use less memory, or raise limits.memory in the function's manifest (up to 4GiB)."
    StackOverflow "stack-overflow" 500 "The function used up its stack"
        explanation: "Recursion went too deep. Nothing that the invocation wrote or sent was kept."
        fix: "Bound the recursion in the function, or replace it with a loop."
    FunctionFailed "function-failed" 500 "The function reported a failure"
        explanation: "The function answered that it could not do its work now. Nothing that it wrote or sent was kept. A message that is answered so is delivered again."
        fix: "See the detail, which is the function's own text, and the function's log."
    RejectedByFunction "rejected-by-function" 400 "The function rejected the input"
        explanation: "The function answered that the input is wrong. Nothing that it wrote or sent was kept. A message that is answered so is parked as a dead letter without another attempt."
        fix: "Correct the input as the detail says, which is the function's own text."
    NoResponse "no-response" 500 "The function ended without a response"
        explanation: "A function of wasi:http/proxy returned without setting its response, or without finishing its body. Nothing that it wrote or sent was kept."
        fix: "Set the response outparam, and finish the outgoing body, on every path through the function."
    ResponseTooLarge "response-too-large" 500 "The function's response is too large"
        explanation: "The response is larger than limits.max_response. Nothing that the invocation wrote or sent was kept."
        fix: "Answer with less, or raise limits.max_response in the function's manifest (up to 64MiB)."
    ReadOnlyViolation "read-only-violation" 500 "A read-only invocation tried to write"
        explanation: "The manifest declares the request's method as read-only, and the function wrote state or sent a message. Nothing was kept."
        fix: "Remove the method from read_only_methods, or do not write when the context says read-only."
    InvocationNotFound "invocation-not-found" 404 "No such invocation"
        explanation: "No invocation of this id is known: it never existed, its retention is over, or it was in memory only when the node stopped."
        fix: "Use the path from the Location header of the 202 response."
    ArtifactInvalid "artifact-invalid" 422 "The artefact cannot be run"
        explanation: "The bytes are not a WebAssembly component, do not match the digest in the path, export neither fulmar:function nor wasi:http/proxy, or import something that the node does not offer."
        fix: "Build for wasm32-wasip2, and use only the interfaces that the detail lists."
    ArtifactNotFound "artifact-not-found" 404 "No such artefact"
        explanation: "No artefact with this SHA-256 digest was uploaded to the node."
        fix: "Upload it first (PUT /admin/artifacts/{sha256}); `fulmar deploy` does both."
    ManifestInvalid "manifest-invalid" 422 "The manifest is not valid"
        explanation: "The manifest is not TOML, has unknown keys or has values that are not allowed. Nothing was deployed."
        fix: "Correct the lines that the detail names."
    SessionNotFound "session-not-found" 404 "No such session"
        explanation: "The session has no state on the node. A session exists from its first commit that writes."
        fix: "Check function and session with `fulmar sessions ls`."
    KeyNotFound "key-not-found" 404 "No such key"
        explanation: "The bucket has no value under the key."
        fix: "Check the key with `fulmar state ls`."
    KeyInvalid "key-invalid" 400 "The bucket or key is not valid"
        explanation: "A bucket or key is empty, longer than 1,024 bytes, not UTF-8 or has control characters."
        fix: "Use 1 to 1,024 bytes of percent-encoded UTF-8 without control characters."
    DeadLetterNotFound "dead-letter-not-found" 404 "No such dead letter"
        explanation: "No parked message has this id: it was retried or dropped."
        fix: "List the dead letters again."
    SessionMoved "session-moved" 503 "The session is on its way to another node"
        explanation: "The session changed its home while the request was looking for it, several times in a row. The function did not run."
        fix: "Try again."
    SessionInStore "session-in-store" 503 "The session is on its way to or from the external store"
        explanation: "The session's state changed between its home and the external store while the request was looking for it, several times in a row. The function did not run."
        fix: "Try again."
    HomeUnreachable "home-unreachable" 503 "The session's home cannot be reached"
        explanation: "The node that has the session's state cannot be connected to from the node that took the request. The function did not run."
        fix: "Try again when that node, or the way to it, is back; `fulmar nodes ls` tells how the nodes are."
    OutcomeUnknown "outcome-unknown" 504 "Whether the function ran is unknown"
        explanation: "The request was handed to the session's home, and the connection broke or the time was over before it answered. The function may have run, once, or not at all."
        fix: "Send the request again with the same Idempotency-Key: it runs at most once. Without such a key look at the state first."
    DirectoryUnreachable "directory-unreachable" 503 "Where the session is cannot be found out"
        explanation: "The node that keeps the directory for this session, or the registry, cannot be asked. The function did not run."
        fix: "Try again when the nodes reach each other again; sessions whose home is known go on meanwhile."
    RegistryUnreachable "registry-unreachable" 503 "The registry cannot be reached"
        explanation: "What was asked for has to be read from the registry or written to it, and it does not answer. Whether something was written is unknown. A function that is not known here may have been deployed since the registry was last followed."
        fix: "Try again when the registry is back, or at another node."
    MigrationFailed "migration-failed" 409 "The session was not moved"
        explanation: "The session could not be copied to the other node, or has sent messages that are not delivered yet. It stays where it is, whole, and goes on there."
        fix: "Try again; if it fails again, look at the detail and at the other node."
    NodeNotFound "node-not-found" 404 "No such node"
        explanation: "No node of this name has ever joined."
        fix: "Check the name with `fulmar nodes ls`."
    NodeInUse "node-in-use" 409 "The node is still there"
        explanation: "The node is running, or it is home to sessions or keeps a part of the directory, which would be lost. Nothing was changed."
        fix: "Stop the node, and move what it has to others first."
    NotClustered "not-clustered" 409 "The node is alone"
        explanation: "The request is about other nodes, and this node was started with `fulmar dev`."
        fix: "Start nodes with `fulmar node --config FILE`."
    ShuttingDown "shutting-down" 503 "The node is shutting down"
        explanation: "The node finishes what it has accepted and takes nothing new. The function did not run."
        fix: "Try again when the node is back, with the same Idempotency-Key if there is one."
    ObjectStoreUnreachable "object-store-unreachable" 503 "The object store cannot be reached"
        explanation: "The function has durability = \"replicated\", and the object store does not take what the node commits. If the detail says so the invocation is stored on the node, and its effects will be there when the object store is back; otherwise it did not run."
        fix: "Send the request again with the same Idempotency-Key: it runs at most once. `fulmar nodes ls` tells how far each node's copy is behind."
    SloUnattainable "slo-unattainable" 503 "No node can answer in time"
        explanation: "The function has an [slo], and by what is known of the nodes, of the ways between them and of earlier invocations none of them is expected to keep it. The function did not run."
        fix: "Try again later, at a node that is closer to the session, or say best_effort = true in [slo]. `fulmar explain FUNCTION` shows what was expected of each node."
    ExecutionModelRefused "execution-model-refused" 400 "The session cannot have this execution model"
        explanation: "The Fulmar-Execution-Model header names a model that there is not, or that the function's manifest does not leave to its requests. The function did not run."
        fix: "Leave the header out, or deploy the function with execution_model = \"auto\"."
    ExternalStoreUnreachable "external-store-unreachable" 503 "The external store cannot be used"
        explanation: "The function has execution_model = \"external\", and the store that keeps its sessions does not answer, is not the one that the other nodes use, or is not configured on this node. Nothing that the invocation wrote or sent was kept."
        fix: "Look at the node's log and at the store, then try again. `fulmar nodes ls` and /admin/node say how each node stands with it."
    TakenOver "taken-over" 503 "Another node has taken over"
        explanation: "The node that answered seemed to be gone, and another node has taken over the sessions of functions with on_partition = \"takeover-after\". What this one still did does not count."
        fix: "Send the request again with the same Idempotency-Key: it goes to the new home, and runs at most once."
    StorageFailed "storage-failed" 503 "The node's storage failed"
        explanation: "A write or a sync of the data directory failed. The node acknowledges nothing any more, since it cannot keep its promise; whether the invocation was stored is unknown until the node restarts."
        fix: "Look at the node's log and at the disk, restart the node, then repeat the request with the same Idempotency-Key."
    StorageFull "storage-full" 507 "The node's disk is full"
        explanation: "The data directory has no room for the commit. Nothing that the invocation wrote or sent was kept."
        fix: "Free space on the disk of the data directory, then try again."
    Internal "internal" 500 "The node has a fault"
        explanation: "Something happened in the node that should not happen."
        fix: "Look at the node's log around the invocation's id, and report it."
}

impl Code {
    /// The code of this text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "unknown problem code {text:?}; is the node newer than this program?"
            ))
        })
    }
}

/// One occurrence of a problem.
///
/// In JSON it has the members `type`, `title`, `status`, `detail`, `code` and `fix`; only `code`,
/// `detail` and `fix` are read back, since the others follow from the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind of problem it is.
    pub code: Code,
    /// What happened this time, for people.
    pub detail: String,
    /// What to do about it.
    pub fix: Cow<'static, str>,
}

impl Problem {
    /// A problem with the usual advice of its code.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            fix: Cow::Borrowed(code.fix()),
        }
    }

    /// The same with better advice.
    #[must_use]
    pub fn with_fix(mut self, fix: impl Into<Cow<'static, str>>) -> Self {
        self.fix = fix.into();
        self
    }

    /// The HTTP status of its code.
    pub fn status(&self) -> u16 {
        self.code.status()
    }

    /// The body of a response of type [`CONTENT_TYPE`].
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and a number: serialising to memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code.title(), self.code, self.detail)
    }
}

impl std::error::Error for Problem {}

impl serde::Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut out = s.serialize_struct("Problem", 6)?;
        out.serialize_field("type", &format!("{TYPE_BASE}{}", self.code))?;
        out.serialize_field("title", self.code.title())?;
        out.serialize_field("status", &self.code.status())?;
        out.serialize_field("detail", &self.detail)?;
        out.serialize_field("code", &self.code)?;
        out.serialize_field("fix", &self.fix)?;
        out.end()
    }
}

impl<'de> serde::Deserialize<'de> for Problem {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Members {
            code: Code,
            detail: String,
            fix: String,
        }
        let members = Members::deserialize(d)?;
        Ok(Self::new(members.code, members.detail).with_fix(members.fix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_stable_texts_with_error_statuses() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            let text = code.as_str();
            assert!(seen.insert(text), "{text} twice");
            assert!(
                text.chars().all(|c| c.is_ascii_lowercase() || c == '-'),
                "{text}"
            );
            assert!((400..600).contains(&code.status()), "{text}");
            assert!(
                code.fix().ends_with('.') && code.explanation().ends_with('.'),
                "{text}"
            );
            assert_eq!(Code::parse(text), Some(*code));
        }
        assert_eq!(Code::parse("no-such-code"), None);
    }

    #[test]
    fn json_has_the_members_of_rfc_9457_and_reads_back() {
        let problem = Problem::new(Code::FunctionNotFound, "no function \"conter\" is deployed")
            .with_fix("did you mean \"counter\"?");
        let json: serde_json::Value = serde_json::from_slice(&problem.to_json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "type": "https://fulmar.dev/errors/function-not-found",
                "title": "No such function",
                "status": 404,
                "detail": "no function \"conter\" is deployed",
                "code": "function-not-found",
                "fix": "did you mean \"counter\"?",
            })
        );
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }

    #[test]
    fn every_problem_has_advice() {
        assert_eq!(
            Problem::new(Code::QueueFull, "1024 are waiting").fix,
            Code::QueueFull.fix()
        );
    }
}
