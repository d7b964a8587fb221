//! State homes, the local data store, group commit.
pub mod transaction;
pub use transaction::{StateError, Transaction};
