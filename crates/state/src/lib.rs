//! State homes, the local data store, group commit.
//!
//! Everything that an invocation writes goes through here, in this order: [`Transaction`] (what the
//! running invocation sees), [`SessionState`] (the session's hot state), [`Store::commit`] (one
//! batch of state, messages and bookkeeping), [`GroupCommit`] (one fsync for many, then release),
//! an [`engine`]. Imports `model` only; knows nothing of functions, HTTP or workers.

pub mod aside;
pub mod changelog;
pub mod commit;
pub mod datadir;
pub mod engine;
pub mod external;
pub mod fjall_engine;
mod instance;
pub mod key;
pub mod memory_engine;
pub mod objects;
pub mod observe;
mod placed;
mod recent;
pub mod record;
pub mod sealed;
mod session;
mod shared;
mod store;
mod submitters;
mod transaction;

pub use commit::{Cause, GroupCommit, Release, RunReleases, StoreFailure, Ticket, Writer};
pub use datadir::{DataDir, DataDirError};
pub use engine::Table;
pub use observe::CommitObserver;
pub use placed::{Answer, Found, KeyRange, PlacedKeys};
pub use session::{Changes, SessionState};
pub use store::{Bookkeeping, Committed, Prepared, ReservedKeys, Store, StoreError};
pub use submitters::Submitters;
pub use transaction::{
    KeyWrite, MAX_MESSAGES, MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, OutgoingMessage, StateError,
    Transaction, VALUE,
};
