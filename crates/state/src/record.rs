//! The records of the local data store, apart from raw state: a format byte, then postcard.
//!
//! Fields are only ever added at the end of a new format number; an unknown number is an error that
//! says so, never a guess.

use fulmar_model::{Epoch, FunctionName, NodeName, SessionName, SiteName, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The only format so far.
const FORMAT: u8 = 1;

/// A stored record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Nothing there.
    #[error("the record is empty")]
    Empty,
    /// Written by a newer version, or damaged.
    #[error("the record has format {found}; this version of fulmar reads format {FORMAT}")]
    Format {
        /// The format byte found.
        found: u8,
    },
    /// Right format, but not what was expected.
    #[error("the record is damaged: {0}")]
    Damaged(String),
}

/// A record of the local data store.
pub trait Record: Serialize + DeserializeOwned {
    /// The stored form.
    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![FORMAT]).unwrap_or_else(|error| {
            // Records are plain structs of owned data; postcard has no case left to refuse.
            unreachable!("a record could not be encoded: {error}")
        })
    }

    /// Reads the stored form; all of it must be used up.
    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes.split_first() {
            None => Err(RecordError::Empty),
            Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
                Ok((record, [])) => Ok(record),
                Ok((_, rest)) => Err(RecordError::Damaged(format!(
                    "{} bytes too many",
                    rest.len()
                ))),
                Err(error) => Err(RecordError::Damaged(error.to_string())),
            },
            Some((&found, _)) => Err(RecordError::Format { found }),
        }
    }
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The last version that the session may have reached; it goes on after it when it is loaded.
    pub version: Version,
    /// Epoch of the home that made the last commit.
    pub epoch: Epoch,
    /// When the record was written, in milliseconds since the Unix epoch.
    pub updated_unix_ms: u64,
}

/// Who sends or receives a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The function.
    pub function: FunctionName,
    /// Its session, if one is meant.
    pub session: Option<SessionName>,
}

/// What an invocation was given to do, when it does not come over a waiting connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRequest {
    /// HTTP method, for functions that speak HTTP.
    pub method: String,
    /// Path and query below the function and session, for functions that speak HTTP.
    pub path: String,
    /// Header names and values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

/// A message that waits for its delivery, or was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// Who sent it; none for an asynchronous invocation by a client.
    pub from: Option<Address>,
    /// Who gets it.
    pub to: Address,
    /// What it says.
    pub request: StoredRequest,
    /// The asynchronous invocation that it is, if it is one.
    pub invocation: Option<String>,
    /// The client's idempotency key, for an asynchronous invocation.
    pub idempotency_key: Option<String>,
    /// Failed deliveries so far.
    pub attempts: u32,
    /// What the last failed delivery said.
    pub error: String,
    /// When it was sent, or given up, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

/// An answer, kept for its idempotency key or its asynchronous invocation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredReply {
    /// HTTP status.
    pub status: u16,
    /// Header names and values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

/// The answer to an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// SHA-256 of method, path and body, so that another request under the same key is noticed.
    pub request: [u8; 32],
    /// The invocation that ran.
    pub invocation: String,
    /// What it answered.
    pub reply: StoredReply,
    /// From when on the record may go, in milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
}

/// How far an asynchronous invocation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InvocationStatus {
    /// Accepted, not finished.
    Pending,
    /// Finished and committed.
    Done(StoredReply),
    /// Given up, with the problem document (JSON).
    Failed(Vec<u8>),
}

/// An asynchronous invocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvocationRecord {
    /// What was invoked.
    pub to: Address,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub submitted_unix_ms: u64,
    /// When it was done or given up, in milliseconds since the Unix epoch; 0 before.
    pub finished_unix_ms: u64,
    /// How far it is.
    pub status: InvocationStatus,
    /// From when on the record may go, in milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
}

/// A deployed function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionRecord {
    /// How often it was deployed.
    pub version: u64,
    /// SHA-256 of the component, in hexadecimal.
    pub artifact: String,
    /// The manifest, as TOML.
    pub manifest: String,
    /// When, in milliseconds since the Unix epoch.
    pub deployed_unix_ms: u64,
}

/// A token that lets its bearer in; the token itself is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// SHA-256 of the token's secret part.
    pub secret_sha256: [u8; 32],
    /// What it is for, in the words of whoever made it.
    pub label: String,
    /// May invoke functions.
    pub may_invoke: bool,
    /// May deploy and remove functions.
    pub may_deploy: bool,
    /// May do everything else.
    pub may_admin: bool,
    /// Functions that it is for: names, or beginnings of names that end in `*`, each of its namespace; all of
    /// them if there is none.
    pub functions: Vec<String>,
    /// When, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

/// What the functions of a namespace may have in all; none: as much as there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaRecord {
    /// Deployed functions.
    pub max_functions: Option<u32>,
    /// Invocations at once that clients have handed to one node.
    pub max_concurrency: Option<u32>,
    /// Invocations a second that clients hand to one node.
    pub max_rate: Option<u32>,
    /// State on one node, in bytes.
    pub max_state_bytes: Option<u64>,
}

/// Keys that seal and open the state that clients carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRingRecord {
    /// From the oldest to the one that seals.
    pub keys: Vec<SealingKey>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingKey {
    /// Its number, in every token that it sealed.
    pub number: u32,
    /// The key.
    pub secret: [u8; 32],
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealingKey({})", self.number)
    }
}

/// A key of the embedded registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryRecord {
    /// Its value.
    pub value: Vec<u8>,
    /// Its last change.
    pub revision: u64,
    /// The lease that it goes with; 0: none.
    pub lease: u64,
    /// The lease's time, in milliseconds.
    pub lease_ttl_ms: u64,
}

/// Who is home to a session, kept by the owner of its directory shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectoryRecord {
    /// This site keeps the directory for the session.
    Here {
        /// The home; none when the session was removed.
        home: Option<NodeName>,
        /// Under which epoch; grows with every other home, also across removals.
        epoch: Epoch,
    },
    /// Another site does.
    At {
        /// Which one.
        site: SiteName,
    },
}

/// A session that is on its way: its directory shard decides where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HomeRecord {
    /// From here.
    Leaving {
        /// The node that it is to go to.
        to: NodeName,
        /// The epoch that it has there.
        epoch: Epoch,
    },
    /// To here.
    Arriving {
        /// The node that it comes from.
        from: NodeName,
        /// The epoch that it has here then.
        epoch: Epoch,
        /// Tells this attempt from earlier ones.
        attempt: u64,
    },
    /// Taken over, perhaps.
    Doubted {
        /// The node that may have taken it over.
        by: NodeName,
        /// The epoch that it has there then.
        epoch: Epoch,
        /// The last commit that may have been taken over.
        last: u64,
    },
}

/// What the node remembers of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Starts so far: the epoch of everything that this start commits.
    pub epoch: Epoch,
}

impl Record for SessionRecord {}
impl Record for MessageRecord {}
impl Record for IdempotencyRecord {}
impl Record for InvocationRecord {}
impl Record for FunctionRecord {}
impl Record for NodeRecord {}
impl Record for RegistryRecord {}
impl Record for DirectoryRecord {}
impl Record for HomeRecord {}
impl Record for StoredReply {}
impl Record for TokenRecord {}
impl Record for KeyRingRecord {}
impl Record for QuotaRecord {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_of_a_newer_format_is_refused_by_number() {
        let mut bytes = NodeRecord { epoch: Epoch(7) }.encode();
        assert_eq!(
            NodeRecord::decode(&bytes),
            Ok(NodeRecord { epoch: Epoch(7) })
        );
        bytes[0] = 2;
        assert_eq!(
            NodeRecord::decode(&bytes),
            Err(RecordError::Format { found: 2 })
        );
        assert_eq!(NodeRecord::decode(&[]), Err(RecordError::Empty));
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = MessageRecord::decode(&bytes);
            let _ = IdempotencyRecord::decode(&bytes);
            let _ = InvocationRecord::decode(&bytes);
            let _ = FunctionRecord::decode(&bytes);
            let _ = SessionRecord::decode(&bytes);
        }
    }
}
