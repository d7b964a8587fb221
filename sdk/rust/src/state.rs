//! State of the session, typed, and of shared buckets, as bytes.
//!
//! Typed values live in [`cache`] between the invocations of a worker, as Rust values under their
//! stored key; what an invocation changed is written when it succeeds, each key once. The node drops
//! the worker whenever somebody else changed the session, or when an invocation failed, so what is
//! cached is always what is stored.

pub(crate) mod bucket;
pub(crate) mod cache;
pub(crate) mod counter;
pub(crate) mod list;
pub(crate) mod map;
mod name;
pub(crate) mod stored;
pub(crate) mod value;
